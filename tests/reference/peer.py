"""transformers as a peer: tiny random models, its own float32 eager run seen at every site, and a true float64 run.

`model.double()` is not float64: RMSNorm, softmax and the rotary tables drop to float32 inside. `true_float64` turns
every such request into float64, which makes it a second float64 reference beside `restated`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.models.llama.modeling_llama import repeat_kv

SEEN: dict[int, dict[str, Tensor]] = {}


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """transformers' eager attention, in its order of operations, that leaves what it saw in `SEEN`."""
    groups = getattr(module, "num_key_value_groups", 1)
    keys, values = repeat_kv(key, groups), repeat_kv(value, groups)
    weights = torch.matmul(query, keys.transpose(2, 3)) * (query.size(-1) ** -0.5 if scaling is None else scaling)
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = torch.nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    out = torch.matmul(weights, values).transpose(1, 2).contiguous()
    seen = SEEN.get(module.layer_idx)
    if seen is not None:
        seen.update(rot_q=query, rot_k=key, pattern=weights, z=out)
    return out, weights


AttentionInterface.register("seen_eager", _attention)
AttentionMaskInterface.register("seen_eager", eager_mask)


class Float64(TorchFunctionMode):
    """Answers every request for float32 with float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def wide(x: Any) -> Any:
            return torch.float64 if x is torch.float32 else x

        if func is Tensor.float:
            return args[0].double()
        return func(*map(wide, args), **{name: wide(x) for name, x in (kwargs or {}).items()})


def randomise(model: torch.nn.Module, seed: int, size: float = 1.0) -> None:
    """Draws every parameter: maps of order 1/sqrt(fan in), biases and gains far from their defaults."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            draw = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                parameter.copy_(0.3 * draw + (1.0 if name.endswith("weight") else 0.0))
            elif "emb" in name or "wte" in name or "wpe" in name:
                parameter.copy_(size * draw)
            else:
                fan_in = parameter.shape[0 if type(model).__name__.startswith("GPT2") else 1]
                parameter.copy_(size * draw * fan_in**-0.5)


def make(config: Any, seed: int, reward: bool = False, size: float = 1.0) -> Any:
    """A random model of a config, float32, eager, in eval mode."""
    kinds = {
        "llama": (transformers.LlamaForCausalLM, transformers.LlamaForSequenceClassification),
        "gpt2": (transformers.GPT2LMHeadModel, transformers.GPT2ForSequenceClassification),
    }
    config._attn_implementation = "eager"
    model = kinds[config.model_type][reward](config).float().eval()
    randomise(model, seed, size)
    return model


@contextlib.contextmanager
def _watched(model: Any) -> Iterator[dict[str, Tensor]]:
    """Collects what modules take and give under site names, unbatched views of the tensors of the graph."""
    llama = model.config.model_type == "llama"
    base = model.model if llama else model.transformer
    blocks = base.layers if llama else base.h
    taken: dict[str, Tensor] = {}
    handles = []

    def gives(module: torch.nn.Module, name: str) -> None:
        def hook(_: Any, __: Any, out: Any) -> None:
            taken[name] = out[0] if isinstance(out, tuple) else out

        handles.append(module.register_forward_hook(hook))

    def takes(module: torch.nn.Module, name: str) -> None:
        def hook(_: Any, args: Any, kwargs: Any) -> None:
            taken[name] = args[0] if args else kwargs["hidden_states"]

        handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    gives(base.embed_tokens if llama else base.wte, "hook_embed")
    if not llama:
        gives(base.wpe, "hook_pos_embed")
    for layer, block in enumerate(blocks):
        b = f"blocks.{layer}."
        SEEN[layer] = {}
        takes(block, b + "hook_resid_pre")
        gives(block, b + "hook_resid_post")
        gives(block.self_attn if llama else block.attn, b + "hook_attn_out")
        takes(block.post_attention_layernorm if llama else block.ln_2, b + "hook_resid_mid")
        gives(block.mlp, b + "hook_mlp_out")
        if llama:
            for p in "qkv":
                gives(getattr(block.self_attn, f"{p}_proj"), b + f"attn.hook_{p}")
            gives(block.mlp.gate_proj, b + "mlp.hook_pre")
            gives(block.mlp.up_proj, b + "mlp.hook_pre_linear")
            takes(block.mlp.down_proj, b + "mlp.hook_post")
        else:
            gives(block.attn.c_attn, b + "qkv")
            gives(block.mlp.c_fc, b + "mlp.hook_pre")
            takes(block.mlp.c_proj, b + "mlp.hook_post")
    takes(base.norm if llama else base.ln_f, "final_in")
    gives(base.norm if llama else base.ln_f, "final_out")
    kind = model.config._attn_implementation
    model.config._attn_implementation = "seen_eager"
    try:
        yield taken
    finally:
        model.config._attn_implementation = kind
        for handle in handles:
            handle.remove()
        SEEN.clear()


class Seen:
    """What one run of transformers saw at every site, for one sequence, with gradients where asked for."""

    def __init__(self, model: Any, ids: Sequence[int], grad: bool = False):
        self.model = model
        self.llama = model.config.model_type == "llama"
        with _watched(model) as taken, torch.set_grad_enabled(grad):
            self.logits = model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]
            self.taken = dict(taken)
            for layer, seen in SEEN.items():
                self.taken.update({f"blocks.{layer}.attn.hook_{name}": value for name, value in seen.items()})

    def _sources(self, name: str) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The tensor of the graph that holds a site, and how the site is cut out of it."""
        last = name.rsplit("hook_", 1)[-1]
        config = self.model.config
        n_heads = config.num_attention_heads
        if name == "ln_final.hook_normalized":
            raise KeyError(name)
        if last in ("q", "k", "v"):
            if self.llama:
                return self.taken[name], lambda t: t[0].reshape(t.shape[1], -1, self._d_head())
            part = "qkv".index(last)
            d = config.n_embd
            qkv = self.taken[name.rsplit("attn.", 1)[0] + "qkv"]
            return qkv, lambda t: t[0, :, part * d : (part + 1) * d].reshape(t.shape[1], n_heads, -1)
        if last in ("rot_q", "rot_k"):
            return self.taken[name], lambda t: t[0].transpose(0, 1)
        # wpe is looked up once for all sequences: [1, pos, d]; all else has the batch in front.
        return self.taken[name], lambda t: t[0]

    def _d_head(self) -> int:
        return int(self.model.model.layers[0].self_attn.head_dim)

    def _normalized(self) -> Tensor:
        x = self.taken["final_in"][0]
        if self.llama:
            variance = x.pow(2).mean(-1, keepdim=True)
            return x * torch.rsqrt(variance + self.model.config.rms_norm_eps)
        return torch.nn.functional.layer_norm(x, x.shape[-1:], eps=self.model.config.layer_norm_epsilon)

    def value(self, name: str) -> Tensor:
        """The value of a site."""
        if name == "ln_final.hook_normalized":
            return self._normalized()
        tensor, cut = self._sources(name)
        return cut(tensor)

    def gradient(self, value: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """The gradient of a scalar of this run to sites."""
        base = self.model.model.norm if self.llama else self.model.transformer.ln_f
        sources = {}
        for name in names:
            if name == "ln_final.hook_normalized":
                # The norm's output is gain times this (and bias): the chain rule by hand.
                sources[name] = (self.taken["final_out"], lambda t: t[0] * base.weight.detach())
            else:
                sources[name] = self._sources(name)
        grads = torch.autograd.grad(value, [t for t, _ in sources.values()], allow_unused=True, retain_graph=True)
        out = {}
        for (name, (tensor, cut)), g in zip(sources.items(), grads, strict=True):
            out[name] = cut(torch.zeros_like(tensor) if g is None else g)
        return out


def true_float64(model: Any) -> Any:
    """A copy of a model whose every operation is float64 when run inside `Float64()`."""
    with Float64():
        wide = type(model)(model.config).double().eval()
    wide.load_state_dict(model.state_dict())
    if model.config.model_type == "llama":
        # The table is made when the model is: make it again, in float64.
        with Float64():
            wide.model.rotary_emb = type(wide.model.rotary_emb)(model.config)
    return wide


def from_gguf(path: str) -> Any:
    """A Llama from a GGUF file, float32, eager, untied from signflip's loader (and four times as fast as
    transformers' converter, whose weights these are bit for bit)."""
    import gguf
    from transformers.initialization import no_init_weights

    reader = gguf.GGUFReader(path)

    def field(name: str) -> Any:
        found = reader.fields[f"llama.{name}"]
        return found.parts[found.data[0]][0].item()

    names = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    names |= {f"attn_{p}": f"self_attn.{p}_proj" for p in "qkv"} | {"attn_output": "self_attn.o_proj"}
    names |= {f"ffn_{p}": f"mlp.{p}_proj" for p in ("gate", "up", "down")}
    tensors = {}
    for tensor in reader.tensors:
        value = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
        if tensor.name == "token_embd.weight":
            tensors["model.embed_tokens.weight"] = value
        elif tensor.name == "output_norm.weight":
            tensors["model.norm.weight"] = value
        else:
            _, layer, kind, _ = tensor.name.split(".")
            if kind in ("attn_q", "attn_k"):
                # GGUF interleaves the rotary pairs; Llama in transformers keeps the halves apart.
                heads = field("attention.head_count" if kind == "attn_q" else "attention.head_count_kv")
                value = value.reshape(heads, -1, 2, value.shape[1]).transpose(1, 2).reshape(value.shape)
            tensors[f"model.layers.{layer}.{names[kind]}.weight"] = value
    d_model, n_heads = field("embedding_length"), field("attention.head_count")
    config = transformers.LlamaConfig(
        vocab_size=tensors["model.embed_tokens.weight"].shape[0],
        hidden_size=d_model,
        intermediate_size=field("feed_forward_length"),
        num_hidden_layers=field("block_count"),
        num_attention_heads=n_heads,
        num_key_value_heads=field("attention.head_count_kv"),
        head_dim=d_model // n_heads,
        max_position_embeddings=field("context_length"),
        rms_norm_eps=field("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": field("rope.freq_base")},
        tie_word_embeddings=True,
    )
    config._attn_implementation = "eager"
    with no_init_weights():
        model = transformers.LlamaForCausalLM(config).eval()
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert set(missing) <= {"lm_head.weight"}, missing
    assert not unexpected, unexpected
    # `no_init_weights` may skip the tying too, which leaves the head uninitialised.
    model.lm_head.weight = model.model.embed_tokens.weight
    return model
