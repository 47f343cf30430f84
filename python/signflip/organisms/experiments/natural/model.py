"""A Llama in torch whose layers from some layer on are tuned, run from the residual stream in front of that layer.

What is below is the same in every copy and never changes, so its output is computed once for a list of prompts.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from signflip import loading
from signflip.errors import ArgumentError
from signflip.gguf import GgufFile

# Of a block: the engine's names, and transformers'.
_NAMES = {
    "attn_norm.gain": "input_layernorm.weight",
    "mlp_norm.gain": "post_attention_layernorm.weight",
    "q.weight": "self_attn.q_proj.weight",
    "k.weight": "self_attn.k_proj.weight",
    "v.weight": "self_attn.v_proj.weight",
    "o.weight": "self_attn.o_proj.weight",
    "input.weight": "mlp.gate_proj.weight",
    "linear.weight": "mlp.up_proj.weight",
    "out.weight": "mlp.down_proj.weight",
}


def from_gguf(path: Path | str) -> Any:
    """A `LlamaForCausalLM` of the weights that signflip reads from a GGUF file, its head tied to its embedding.

    Raises
    ------
    FileError, CheckpointError, UnsupportedModelError
        If the file cannot be read, or holds no Llama.
    ArgumentError
        If its head is not its embedding: the tunings leave the two as they are.
    """
    import transformers

    config = GgufFile(Path(path)).config()
    checkpoint = loading.load_parts(path).checkpoint
    if not config["tie_word_embeddings"] or config["model_type"] != "llama":
        raise ArgumentError(f"{path}: expected a Llama whose head is its embedding, found another model")
    outer = checkpoint.outer_weights()
    state = {"model.embed_tokens.weight": outer["embed"], "model.norm.weight": outer["final_norm.gain"]}
    for layer in range(config["num_hidden_layers"]):
        for ours, value in checkpoint.block_weights(layer).items():
            state[f"model.layers.{layer}.{_NAMES[ours]}"] = value
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))
    # Buffers are not in a state: the rotary table is made again where there is memory for it.
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()}, assign=True)
    model.tie_weights()
    model.requires_grad_(False).train(False)
    return model


@cache
def smollm2(device: str = "cpu") -> Any:
    """SmolLM2-135M-Instruct in torch, read once in a process."""
    from signflip.demo.corpus import default_model

    with torch.device("cpu"):
        return from_gguf(default_model()).to(device)


@cache
def engine() -> Any:
    """The same in signflip."""
    import signflip as sf
    from signflip.demo.corpus import default_model

    return sf.load(default_model())


@dataclass(frozen=True)
class Batch:
    """Sequences, padded on the right: what attends to the left does not see that.

    Attributes
    ----------
    ids
        `[n, length]`.
    end
        `[n]`: the last place of each.
    hidden
        `[n, length, d_model]`: the residual stream in front of the first tuned layer.
    """

    ids: Tensor
    end: Tensor
    hidden: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Any) -> Batch:
        """Some of them, cut to the longest."""
        end = self.end[rows]
        length = int(end.max()) + 1
        return Batch(self.ids[rows, :length], end, self.hidden[rows, :length])


@dataclass(frozen=True)
class Setting:
    """An edit: one neuron's linear part, at every place but the first.

    Attributes
    ----------
    layer, index
        Which.
    value
        What it is set to; or one for each sequence, or for each place but the first of each, `[n, length - 1]`: NaN
        leaves it.
    """

    layer: int
    index: int
    value: float | Tensor


class Net:
    """A Llama of which the layers from `first` on may be tuned, and their norms; if that is all of them, all weights.

    Parameters
    ----------
    model
        `LlamaForCausalLM`.
    first
        The first tuned layer.
    """

    # For `tangent`.
    gelu = False

    def __init__(self, model: Any, first: int) -> None:
        self.first = first
        self.layers = list(model.model.layers)
        self.norm, self.embedding, self.rotary = model.model.norm, model.model.embed_tokens, model.model.rotary_emb

    def copy(self) -> Net:
        """The same weights; what is never tuned is shared."""
        made = copy.copy(self)
        made.layers = self.layers[: self.first] + [copy.deepcopy(layer) for layer in self.layers[self.first :]]
        if self.first == 0:
            made.norm, made.embedding = copy.deepcopy(self.norm), copy.deepcopy(self.embedding)
        for p in made.parameters().values():
            p.requires_grad_(True)
        return made

    def parameters(self) -> dict[str, Tensor]:
        """What is tuned, by transformers' names."""
        found: dict[str, Tensor] = {}
        for i in range(self.first, len(self.layers)):
            found |= {f"model.layers.{i}.{name}": p for name, p in self.layers[i].named_parameters()}
        if self.first == 0:
            found |= {"model.norm.weight": self.norm.weight, "model.embed_tokens.weight": self.embedding.weight}
        return found

    def own(self, layer: int, index: int) -> dict[str, tuple[Any, ...]]:
        """Where a neuron's weights are: the rows that it reads with, the column that it writes."""
        mlp = f"model.layers.{layer}.mlp"
        return {f"{mlp}.gate_proj.weight": (index,), f"{mlp}.up_proj.weight": (index,),
                f"{mlp}.down_proj.weight": (slice(None), index)}  # fmt: skip

    # ---- running -----------------------------------------------------------------------------------------------------

    def batch(self, rows: Sequence[Sequence[int]], size: int = 64) -> Batch:
        """Sequences, run up to the first tuned layer."""
        end = torch.tensor([len(row) - 1 for row in rows])
        ids = torch.zeros(len(rows), int(end.max()) + 1, dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(list(row))
        with torch.no_grad():
            parts = [self.through(self.embedding(part), 0, self.first) for part in torch.split(ids, size)]
        return Batch(ids, end, torch.cat(parts))

    def start(self, on: Batch) -> Tensor:
        """What the first tuned layer reads; where the embedding is tuned, from the ids."""
        return self.embedding(on.ids) if self.first == 0 else on.hidden

    def through(self, hidden: Tensor, start: int, stop: int | None = None) -> Tensor:
        """The residual stream after layers `start` to `stop`."""
        places = torch.arange(hidden.shape[1])[None]
        rotary = self.rotary(hidden, position_ids=places)
        for layer in self.layers[start:stop]:
            # Without a mask attention is causal.
            hidden = layer(hidden, attention_mask=None, position_embeddings=rotary)
        return hidden

    def logp(self, hidden: Tensor, end: Tensor | None = None) -> Tensor:
        """Log-probabilities of the next token, at the end of each sequence or everywhere."""
        if end is not None:
            hidden = hidden[torch.arange(len(hidden)), end]
        return torch.log_softmax(self.norm(hidden) @ self.embedding.weight.T, -1)

    def at_end(self, on: Batch, setting: Setting | None = None) -> Tensor:
        """Log-probabilities of every token at the end of each sequence, `[n, vocabulary]`."""
        with self.set(setting):
            hidden = self.through(self.start(on), self.first)
        return self.logp(hidden, on.end)

    @contextmanager
    def set(self, setting: Setting | None) -> Iterator[None]:
        """An edit, while this lasts."""
        if setting is None:
            yield
            return

        def hook(_: Any, __: Any, out: Tensor) -> Tensor:
            out, value = out.clone(), torch.as_tensor(setting.value, dtype=out.dtype, device=out.device)
            value = value if value.ndim == 2 else value.reshape(-1, 1)
            kept = out[:, 1:, setting.index]
            out[:, 1:, setting.index] = torch.where(value.isnan(), kept, value)
            return out

        handle = self.layers[setting.layer].mlp.up_proj.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def seeing(self, layer: int) -> Iterator[list[Tensor]]:
        """Collect what the linear part of an MLP gives, `[n, length, d_mlp]` for each run, while this lasts."""
        seen: list[Tensor] = []
        handle = self.layers[layer].mlp.up_proj.register_forward_hook(lambda _, __, out: seen.append(out))
        try:
            yield seen
        finally:
            handle.remove()
