"""A plain torch forward of the Llama family, written apart from the engine, that a test can change at any step."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

Tensor = torch.Tensor


class TorchModel:
    """A Llama model in plain torch.

    Parameters
    ----------
    config
        The checkpoint's ``config.json``.
    weights
        Its tensors, under Hugging Face's names.
    dtype
        Type to compute in.
    """

    def __init__(
        self,
        config: dict[str, Any],
        weights: dict[str, Tensor],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.dtype = dtype
        self.weights = {name: tensor.to(dtype) for name, tensor in weights.items()}
        heads = config["num_attention_heads"]
        d_model = config["hidden_size"]
        self.cfg = SimpleNamespace(
            n_layers=config["num_hidden_layers"],
            d_model=d_model,
            d_mlp=config["intermediate_size"],
            n_heads=heads,
            n_kv_heads=config.get("num_key_value_heads") or heads,
            d_head=config.get("head_dim") or d_model // heads,
            d_vocab=config["vocab_size"],
            n_ctx=config["max_position_embeddings"],
            family="llama",
            act_fn=config.get("hidden_act", "silu"),
        )
        self.eps = config.get("rms_norm_eps", 1e-6)
        theta = (config.get("rope_parameters") or {}).get("rope_theta") or config.get("rope_theta", 1e4)
        half = self.cfg.d_head // 2
        inverse = torch.tensor([theta ** (-i / half) for i in range(half)], dtype=torch.float64)
        angles = torch.arange(min(self.cfg.n_ctx, 2048), dtype=torch.float64)[:, None] * inverse
        self.cos, self.sin = angles.cos().to(dtype), angles.sin().to(dtype)
        self.act: Callable[[Tensor], Tensor] = {"silu": torch.nn.functional.silu, "relu": torch.relu}[self.cfg.act_fn]

    @classmethod
    def from_folder(cls, folder: str | Path, dtype: torch.dtype = torch.float32) -> TorchModel:
        """Reads a Hugging Face folder with one safetensors file."""
        from safetensors.torch import load_file

        folder = Path(folder)
        config = json.loads((folder / "config.json").read_text())
        return cls(config, load_file(folder / "model.safetensors"), dtype)

    # ---- forward ----------------------------------------------------------------------------------------------------
    def _norm(self, x: Tensor, gain: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * gain

    def _rotate(self, x: Tensor) -> Tensor:
        cos, sin = self.cos[: x.shape[0], None, :], self.sin[: x.shape[0], None, :]
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)

    def forward(self, ids: Sequence[int], visit: Callable[[str, Tensor], Tensor]) -> Tensor:
        """Final normalised residual of one sequence; ``visit(site, values [pos, width])`` may replace values."""
        cfg, w = self.cfg, self.weights
        x = visit("hook_embed", w["model.embed_tokens.weight"][torch.as_tensor(list(ids))])
        n = x.shape[0]
        mask = torch.full((n, n), float("-inf"), dtype=self.dtype).triu(1)
        for layer in range(cfg.n_layers):
            at, names = f"blocks.{layer}.", f"model.layers.{layer}."
            x = visit(at + "hook_resid_pre", x)
            h = self._norm(x, w[names + "input_layernorm.weight"])

            def heads(kind: str, count: int, h: Tensor = h, names: str = names, at: str = at) -> Tensor:
                flat = visit(f"{at}attn.hook_{kind}", h @ w[f"{names}self_attn.{kind}_proj.weight"].T)
                return flat.view(n, count, cfg.d_head)

            q, k, v = heads("q", cfg.n_heads), heads("k", cfg.n_kv_heads), heads("v", cfg.n_kv_heads)
            q, k = self._rotate(q), self._rotate(k)
            repeat = cfg.n_heads // cfg.n_kv_heads
            k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
            scores = torch.einsum("qhd,khd->hqk", q, k) * cfg.d_head**-0.5 + mask
            z = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).reshape(n, -1)
            z = visit(at + "attn.hook_z", z)
            x = visit(
                at + "hook_resid_mid", x + visit(at + "hook_attn_out", z @ w[names + "self_attn.o_proj.weight"].T)
            )
            h = self._norm(x, w[names + "post_attention_layernorm.weight"])
            pre = visit(at + "mlp.hook_pre", h @ w[names + "mlp.gate_proj.weight"].T)
            linear = visit(at + "mlp.hook_pre_linear", h @ w[names + "mlp.up_proj.weight"].T)
            post = visit(at + "mlp.hook_post", self.act(pre) * linear)
            out = visit(at + "hook_mlp_out", post @ w[names + "mlp.down_proj.weight"].T)
            x = visit(at + "hook_resid_post", x + out)
        return self._norm(x, w["model.norm.weight"])

    @property
    def unembed(self) -> Tensor:
        return self.weights.get("lm_head.weight", self.weights["model.embed_tokens.weight"])
