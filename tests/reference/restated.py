"""Llama and GPT-2 written down once more, plainly, in any torch dtype.

One sequence at a time, no batch, no cache, no fused operation: every line is a line of the papers. The names of the
values are TransformerLens'. In float64 it is the reference (gradients through autograd); in float32 it is a second
float32 implementation, which is what an error of edited runs is compared with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Hook = Callable[[Tensor], Tensor | None]


def _gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda x: torch.where(x > 0, x, torch.zeros_like(x)),
    "gelu": lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "silu": lambda x: x / (1 + torch.exp(-x)),
}


def inverse_frequencies(config: Mapping[str, Any], d_head: int) -> Tensor:
    """Angular frequency of each rotary pair, float64, with the scalings `linear` and `llama3`."""
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    base = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    inverse = base ** -(torch.arange(0, d_head, 2, dtype=torch.float64) / d_head)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return inverse
    if kind == "linear":
        return inverse / rope["factor"]
    if kind == "llama3":
        old, low, high = rope["original_max_position_embeddings"], rope["low_freq_factor"], rope["high_freq_factor"]
        out = []
        for f in inverse.tolist():
            wavelength = 2 * math.pi / f
            if wavelength > old / low:
                out.append(f / rope["factor"])
            elif wavelength < old / high:
                out.append(f)
            else:
                s = (old / wavelength - low) / (high - low)
                out.append((1 - s) * f / rope["factor"] + s * f)
        return torch.tensor(out, dtype=torch.float64)
    raise ValueError(kind)


class Restated:
    """A model from a transformers config (`to_dict()`) and state dict.

    Parameters
    ----------
    config
        `model.config.to_dict()`; `model_type` is `llama` or `gpt2`.
    state
        `model.state_dict()`, of a language model or of a sequence classifier.
    dtype
        What to compute in.
    """

    def __init__(self, config: Mapping[str, Any], state: Mapping[str, Tensor], dtype: torch.dtype = torch.float64):
        self.config = config
        self.dtype = dtype
        self.llama = config["model_type"] == "llama"
        self.state = {name: tensor.detach().to(dtype) for name, tensor in state.items()}
        c = config
        if self.llama:
            self.n_layers, self.n_heads = c["num_hidden_layers"], c["num_attention_heads"]
            self.n_kv_heads = c.get("num_key_value_heads") or self.n_heads
            self.d_model = c["hidden_size"]
            self.d_head = c.get("head_dim") or self.d_model // self.n_heads
            self.act, self.eps, self.stem = c["hidden_act"], c["rms_norm_eps"], "model."
        else:
            self.n_layers, self.n_heads = c["n_layer"], c["n_head"]
            self.n_kv_heads, self.d_model = self.n_heads, c["n_embd"]
            self.d_head = self.d_model // self.n_heads
            self.act, self.eps, self.stem = c["activation_function"], c["layer_norm_epsilon"], "transformer."

    # -- names ---------------------------------------------------------------------------------------------------
    def sites(self) -> list[str]:
        """Every site, in forward order, restated from the contract."""
        block = ["hook_resid_pre", "attn.hook_q", "attn.hook_k", "attn.hook_v"]
        block += ["attn.hook_rot_q", "attn.hook_rot_k"] if self.llama else []
        block += ["attn.hook_pattern", "attn.hook_z", "hook_attn_out", "hook_resid_mid", "mlp.hook_pre"]
        block += ["mlp.hook_pre_linear"] if self.llama else []
        block += ["mlp.hook_post", "hook_mlp_out", "hook_resid_post"]
        names = ["hook_embed"] + ([] if self.llama else ["hook_pos_embed"])
        names += [f"blocks.{layer}.{name}" for layer in range(self.n_layers) for name in block]
        return [*names, "ln_final.hook_normalized"]

    # -- pieces --------------------------------------------------------------------------------------------------
    def _w(self, name: str) -> Tensor:
        return self.state[self.stem + name]

    def _linear(self, x: Tensor, name: str) -> Tensor:
        """Applies a linear map; `[out, in]` in Llama, `[in, out]` in GPT-2."""
        weight = self._w(name + ".weight")
        y = x @ (weight.T if self.llama else weight)
        bias = self.state.get(self.stem + name + ".bias")
        return y if bias is None else y + bias

    def normalized(self, x: Tensor) -> Tensor:
        """The norm before its gain and bias."""
        if not self.llama:
            x = x - x.mean(-1, keepdim=True)
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.eps)

    def _gain(self, x: Tensor, name: str) -> Tensor:
        y = x * self._w(name + ".weight")
        return y if self.llama else y + self._w(name + ".bias")

    def _rotate(self, x: Tensor) -> Tensor:
        """Rotary position embedding of `[pos, head, d_head]`, half split."""
        n, half = x.shape[0], self.d_head // 2
        # The angle is made in float64 in any case: a reference is not to lose what the checkpoint did not.
        angle = torch.arange(n, dtype=torch.float64)[:, None] * inverse_frequencies(self.config, self.d_head)
        cos, sin = angle.cos().to(self.dtype)[:, None, :], angle.sin().to(self.dtype)[:, None, :]
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)

    def _attn_scale(self, layer: int) -> float:
        if self.llama:
            return self.d_head**-0.5
        scale = self.d_head**-0.5 if self.config.get("scale_attn_weights", True) else 1.0
        return scale / (layer + 1) if self.config.get("scale_attn_by_inverse_layer_idx") else scale

    # -- forward -------------------------------------------------------------------------------------------------
    def run(
        self,
        ids: Sequence[int],
        hooks: Mapping[str, Sequence[Hook]] | None = None,
        grad: bool = False,
        stop_at_layer: int | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits `[pos, d_vocab]` (or reward outputs `[pos, labels]`) and every site's value after its hooks.

        With `grad`, each value is part of the autograd graph. With `stop_at_layer`, the residual instead of logits.
        """
        hooks = hooks or {}
        cache: dict[str, Tensor] = {}

        def at(name: str, value: Tensor) -> Tensor:
            for fn in hooks.get(name, ()):
                changed = fn(value)
                value = value if changed is None else changed.to(self.dtype)
            if grad and not value.requires_grad:
                value = value.clone().requires_grad_()
            cache[name] = value
            return value

        ids_t = torch.as_tensor(list(ids), dtype=torch.long)
        n = len(ids_t)
        with torch.set_grad_enabled(grad):
            x = at("hook_embed", self._w("embed_tokens.weight" if self.llama else "wte.weight")[ids_t])
            if not self.llama:
                x = x + at("hook_pos_embed", self._w("wpe.weight")[:n])
            for layer in range(self.n_layers):
                if layer == stop_at_layer:
                    return x, cache
                x = self._block(x, layer, at)
            if stop_at_layer == self.n_layers:
                return x, cache
            normalized = at("ln_final.hook_normalized", self.normalized(x))
            return self.head(self._gain(normalized, "norm" if self.llama else "ln_f")), cache

    def head(self, x: Tensor) -> Tensor:
        """The unembedding, or the reward head, of final-normed values."""
        if "score.weight" in self.state:
            return x @ self.state["score.weight"].T
        tied = self._w("embed_tokens.weight" if self.llama else "wte.weight")
        return x @ self.state.get("lm_head.weight", tied).T

    def _block(self, x: Tensor, layer: int, at: Callable[[str, Tensor], Tensor]) -> Tensor:
        b, n = f"blocks.{layer}.", x.shape[0]
        h = f"layers.{layer}." if self.llama else f"h.{layer}."
        x = at(b + "hook_resid_pre", x)
        y = self._gain(self.normalized(x), h + ("input_layernorm" if self.llama else "ln_1"))
        if self.llama:
            q, k, v = (self._linear(y, f"{h}self_attn.{p}_proj") for p in "qkv")
        else:
            q, k, v = self._linear(y, h + "attn.c_attn").split(self.d_model, dim=-1)
        q = at(b + "attn.hook_q", q.reshape(n, self.n_heads, self.d_head))
        k = at(b + "attn.hook_k", k.reshape(n, self.n_kv_heads, self.d_head))
        v = at(b + "attn.hook_v", v.reshape(n, self.n_kv_heads, self.d_head))
        if self.llama:
            q, k = at(b + "attn.hook_rot_q", self._rotate(q)), at(b + "attn.hook_rot_k", self._rotate(k))
        group = torch.arange(self.n_heads) // (self.n_heads // self.n_kv_heads)
        scores = torch.einsum("qhd,khd->hqk", q, k[:, group]) * self._attn_scale(layer)
        future = torch.ones(n, n, dtype=torch.bool).triu(1)
        scores = scores.masked_fill(future, -torch.inf)
        weights = torch.exp(scores - scores.max(-1, keepdim=True).values)
        pattern = at(b + "attn.hook_pattern", weights / weights.sum(-1, keepdim=True))
        z = at(b + "attn.hook_z", torch.einsum("hqk,khd->qhd", pattern, v[:, group]))
        out = self._linear(z.reshape(n, -1), h + ("self_attn.o_proj" if self.llama else "attn.c_proj"))
        x = at(b + "hook_resid_mid", x + at(b + "hook_attn_out", out))

        y = self._gain(self.normalized(x), h + ("post_attention_layernorm" if self.llama else "ln_2"))
        act = ACTIVATIONS[self.act]
        if self.llama:
            pre = at(b + "mlp.hook_pre", self._linear(y, h + "mlp.gate_proj"))
            linear = at(b + "mlp.hook_pre_linear", self._linear(y, h + "mlp.up_proj"))
            post = at(b + "mlp.hook_post", act(pre) * linear)
            out = self._linear(post, h + "mlp.down_proj")
        else:
            post = at(b + "mlp.hook_post", act(at(b + "mlp.hook_pre", self._linear(y, h + "mlp.c_fc"))))
            out = self._linear(post, h + "mlp.c_proj")
        return at(b + "hook_resid_post", x + at(b + "hook_mlp_out", out))

    # -- gradients -----------------------------------------------------------------------------------------------
    def gradient(
        self,
        ids: Sequence[int],
        objective: Callable[[Tensor, dict[str, Tensor]], Tensor],
        wrt: Sequence[str],
        hooks: Mapping[str, Sequence[Hook]] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """A scalar `objective(logits, cache)` and its gradient to each site (zeros where it does not depend on it)."""
        logits, cache = self.run(ids, hooks, grad=True)
        value = objective(logits, cache)
        grads = torch.autograd.grad(value, [cache[name] for name in wrt], allow_unused=True)
        pairs = zip(wrt, grads, strict=True)
        return value.detach(), {n: torch.zeros_like(cache[n]) if g is None else g for n, g in pairs}
