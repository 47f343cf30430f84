"""Functions of the caller's that see, and may change, the values of sites during a pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from signflip import forest
from signflip.cache import HookPoint
from signflip.errors import ArgumentError

if TYPE_CHECKING:
    from signflip.model import Model

Floats = NDArray[np.float32]
Hook = Callable[[Floats, Any], "Floats | None"]


def run(model: Model, sequences: list[list[int]], hooks: dict[str, list[Hook]]) -> Any:
    """Logits `[batch, pos, d_vocab]` with hooks by site; a list, computed one by one, where lengths differ."""
    if len({len(sequence) for sequence in sequences}) == 1:
        return _together(model, sequences, hooks)
    return [_together(model, [sequence], hooks)[0] for sequence in sequences]


def _together(model: Model, sequences: list[list[int]], hooks: dict[str, list[Hook]]) -> Floats:
    batch, length = len(sequences), len(sequences[0])

    def step(name: str, flat: Floats) -> Floats:
        heads = model._core.site(name)[1]
        shape = (batch, length, -1) if heads is None else (batch, length, heads, -1)
        act: Floats = flat.reshape(shape)
        if name.endswith("hook_pattern"):
            act = np.ascontiguousarray(act.transpose(0, 2, 1, 3))
        for function in hooks[name]:
            new = function(act, HookPoint(name))
            if new is not None:
                act = _checked(name, new, act.shape)
        if name.endswith("hook_pattern"):
            act = act.transpose(0, 2, 1, 3)
        return np.ascontiguousarray(act.reshape(flat.shape))

    trie = forest.flat(sequences)
    rows = np.concatenate([np.hstack([np.zeros((length, 1), np.int64), cells]) for cells in trie.rows])
    read = ("logits", np.ascontiguousarray(rows), None)
    outputs, _ = model._core.run(trie.segments, [read], [], hooks=(list(hooks), step))
    return np.asarray(outputs[0]).reshape(batch, length, -1)


def _checked(name: str, new: Any, shape: tuple[int, ...]) -> Floats:
    """What a hook returned, as float32."""
    try:
        new = np.asarray(new.detach().cpu().numpy() if hasattr(new, "detach") else new)
    except (TypeError, ValueError) as err:
        raise ArgumentError(f"hook at {name}: expected an array of shape {shape}, found what is none: {err}") from None
    if new.dtype.kind not in "fiub":
        raise ArgumentError(f"hook at {name}: expected real numbers, found {new.dtype}")
    values: Floats = new.astype(np.float32)
    if values.shape != shape:
        raise ArgumentError(f"hook at {name}: expected shape {shape}, found {values.shape}")
    return values
