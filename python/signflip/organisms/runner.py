"""Running an organism in transformers, float64, with values of its forward pass read and overwritten by hooks.

It shares nothing with signflip's engine: truths rest on it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from signflip.errors import SiteError
from signflip.organisms.weights import Floats, Weights, blocks_of, load, module

_SITE = re.compile(r"blocks\.(\d+)\.(mlp\.hook_pre|mlp\.hook_pre_linear|hook_resid_pre)$")
# Sequences a pass.
_BATCH = 256


@dataclass(frozen=True)
class Place:
    """A scalar of the forward pass: a neuron, or the residual stream along a unit vector."""

    site: str
    index: int | None = None
    vector: tuple[float, ...] | None = None

    @property
    def name(self) -> str:
        """Site and neuron, or site and *direction*."""
        return f"{self.site}[{self.index if self.index is not None else 'direction'}]"


@dataclass(frozen=True)
class Held:
    """A place held at a value, at every position but the first (the separator)."""

    place: Place
    value: float


class Enough(Exception):
    """Raised by a hook that has seen all that is asked for."""


class Runner:
    """A float64 model with hooks.

    Parameters
    ----------
    weights
        Of the organism.
    """

    def __init__(self, weights: Weights) -> None:
        self.family = weights.family
        self.model: Any = module(weights)
        inner = self._inner = self.model.model if self.family == "llama" else self.model.transformer
        self.layers: list[Any] = list(blocks_of(self.model))
        self._final = inner.norm if self.family == "llama" else inner.ln_f

    def load(self, weights: Weights) -> Runner:
        """Take other weights of the same family: building a module anew takes longer than most passes."""
        load(self.model, weights)
        return self

    def logits(self, sequences: Sequence[Sequence[int]], held: Sequence[Held] = ()) -> Floats:
        """Logits at the last position, `[n, vocabulary]`."""
        import torch

        with self._holding(held), torch.no_grad():
            return np.concatenate([
                self.model.lm_head(hidden[range(len(lengths)), np.asarray(lengths) - 1]).numpy()
                for hidden, lengths in self._passes(sequences)
            ])  # fmt: skip

    def log_probs(self, sequences: Sequence[Sequence[int]], held: Sequence[Held] = ()) -> Floats:
        """Log-probability of every token after the first, one after the other."""
        import torch

        out = []
        with self._holding(held), torch.no_grad():
            for start in range(0, len(sequences), _BATCH):
                chosen = sequences[start : start + _BATCH]
                ((hidden, lengths),) = self._passes(chosen)
                all_ = torch.log_softmax(self.model.lm_head(hidden), -1).numpy()
                out += [all_[i, np.arange(n - 1), chosen[i][1:]] for i, n in enumerate(lengths)]
        return np.concatenate(out)

    def read(
        self, sequences: Sequence[Sequence[int]], places: Sequence[Place], held: Sequence[Held] = ()
    ) -> list[list[Floats]]:
        """Values of places at every position: for each place one array a sequence."""
        out: list[list[Floats]] = [[] for _ in places]
        with self._holding(held), ExitStack() as stack:
            seen: dict[int, Any] = {}
            for i, place in enumerate(places):
                stack.enter_context(self._watch(place, i, seen, len(places)))
            for _, lengths in self._passes(sequences):
                for i in range(len(places)):
                    out[i] += [seen[i][row, :n] for row, n in enumerate(lengths)]
                seen.clear()
        return out

    def inputs(self, sequences: Sequence[Sequence[int]], layer: int, what: str) -> list[Floats]:
        """What a layer's `attn` or `mlp` reads (normalised), at every position."""
        norm = self._norm(layer, what)
        seen: list[Floats] = []
        out: list[Floats] = []

        def keep(_: Any, __: Any, result: Any) -> None:
            seen.append(result.numpy())
            raise Enough

        handle = norm.register_forward_hook(keep)
        try:
            for _, lengths in self._passes(sequences):
                values = seen.pop()
                out += [values[row, :n] for row, n in enumerate(lengths)]
        finally:
            handle.remove()
        return out

    def ends(self, sequences: Sequence[Sequence[int]], layer: int, held: Sequence[Held] = ()) -> tuple[Floats, Floats]:
        """At the last positions what a layer's MLP reads, and the residual stream after all layers."""
        seen: dict[str, Any] = {}
        found: tuple[list[Floats], list[Floats]] = ([], [])
        handles = [
            self._norm(layer, "mlp").register_forward_hook(lambda _, __, result: seen.update(mlp=result)),
            self._final.register_forward_pre_hook(lambda _, args: seen.update(final=args[0])),
        ]
        try:
            with self._holding(held):
                for _, lengths in self._passes(sequences):
                    last = range(len(lengths)), np.asarray(lengths) - 1
                    for one, key in zip(found, ("mlp", "final"), strict=True):
                        one.append(seen[key][last].numpy())
        finally:
            for handle in handles:
                handle.remove()
        return np.concatenate(found[0]), np.concatenate(found[1])

    def _norm(self, layer: int, what: str) -> Any:
        block = self.layers[layer]
        if self.family == "llama":
            return block.input_layernorm if what == "attn" else block.post_attention_layernorm
        return block.ln_1 if what == "attn" else block.ln_2

    def _passes(self, sequences: Sequence[Sequence[int]]) -> Iterator[tuple[Any, list[int]]]:
        """The final hidden states of each batch (None where a hook had seen enough), and lengths."""
        import torch

        for ids, lengths in _batches(sequences):
            hidden = None
            with torch.no_grad(), suppress(Enough):
                hidden = self._inner(input_ids=torch.from_numpy(ids), use_cache=False).last_hidden_state
            yield hidden, lengths

    # ---- hooks -------------------------------------------------------------------------------------------------------

    def _module_of(self, site: str) -> tuple[Any, bool]:
        """The module of a site, and whether it is the module's input."""
        match = _SITE.match(site)
        if match is None or int(match[1]) >= len(self.layers):
            raise SiteError(f"site {site!r}: expected an MLP's input or a residual stream of this model")
        layer, point = self.layers[int(match[1])], match[2]
        if point == "hook_resid_pre":
            return layer, True
        if self.family == "gpt2":
            if point == "mlp.hook_pre_linear":
                raise SiteError(f"site {site!r}: expected a gated MLP, found GPT-2's")
            return layer.mlp.c_fc, False
        return (layer.mlp.gate_proj if point == "mlp.hook_pre" else layer.mlp.up_proj), False

    @contextmanager
    def _holding(self, held: Sequence[Held]) -> Iterator[None]:
        with ExitStack() as stack:
            for one in held:
                part, is_input = self._module_of(one.place.site)
                if is_input:
                    handle = part.register_forward_pre_hook(lambda _, args, one=one: (_set(args[0], one), *args[1:]))
                else:
                    handle = part.register_forward_hook(lambda _, __, result, one=one: _set(result, one))
                stack.callback(handle.remove)
            yield

    @contextmanager
    def _watch(self, place: Place, key: int, seen: dict[int, Any], n: int) -> Iterator[None]:
        part, is_input = self._module_of(place.site)

        def keep(values: Any) -> None:
            if place.vector is not None:
                seen[key] = values.numpy() @ np.asarray(place.vector)
            else:
                seen[key] = values[..., place.index].numpy().copy()
            if len(seen) == n:
                raise Enough

        if is_input:
            handle = part.register_forward_pre_hook(lambda _, args: keep(args[0]))
        else:
            handle = part.register_forward_hook(lambda _, __, result: keep(result))
        try:
            yield
        finally:
            handle.remove()


def _set(values: Any, one: Held) -> Any:
    import torch

    values = values.clone()
    if one.place.vector is not None:
        vector = torch.tensor(one.place.vector, dtype=values.dtype)
        rest = values[:, 1:]
        values[:, 1:] = rest + (one.value - rest @ vector)[..., None] * vector
    else:
        values[:, 1:, one.place.index] = one.value
    return values


def _batches(sequences: Sequence[Sequence[int]]) -> Iterator[tuple[np.ndarray[Any, np.dtype[np.int64]], list[int]]]:
    """Padded on the right, where attention looks at none of it."""
    for start in range(0, len(sequences), _BATCH):
        chosen = sequences[start : start + _BATCH]
        lengths = [len(one) for one in chosen]
        ids = np.zeros((len(chosen), max(lengths)), np.int64)
        for row, one in enumerate(chosen):
            ids[row, : len(one)] = one
        yield ids, lengths
