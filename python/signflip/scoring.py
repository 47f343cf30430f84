"""Objectives of given prompts, and their gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from signflip import _core, checks
from signflip.errors import ArgumentError
from signflip.objectives import Objective, all_for_core, for_core
from signflip.sequences import parse

Floats = NDArray[np.float32]


class Prompts(list[list[int]]):
    """Whole prompts that know which of their tokens are free, as objectives at ``"best"`` and ``"after"`` ask.

    Attributes
    ----------
    spans
        Start and end of the free tokens of each.
    """

    def __init__(self, prompts: Sequence[Sequence[int]], spans: Sequence[tuple[int, int]]) -> None:
        super().__init__([int(one) for one in prompt] for prompt in prompts)
        self.spans = [(int(start), int(end)) for start, end in spans]


def score(model: Any, token_lists: Any, objective: Objective | Sequence[Objective]) -> Floats:
    """The objective of each sequence.

    Shared prefixes are computed once, and computation stops where the objective is read; neither shows in the values.

    Parameters
    ----------
    model
        A `signflip.Model`.
    token_lists
        Sequences in any accepted form. Those of a search's result (``result.best.sequences``) know which of their
        tokens are free.
    objective
        From `signflip.objectives`; or one a sequence.

    Returns
    -------
    float32 array `[n]`

    Raises
    ------
    SiteError
        If the objective names a site or column that the model does not have.
    ArgumentError
        If its position is outside a sequence, or asks for free tokens that are not known, or there are several and not
        one a sequence.
    """
    spans = token_lists.spans if isinstance(token_lists, Prompts) else None
    sequences = model.as_sequences(token_lists)
    text, of = all_for_core(model, objective, len(sequences), "sequences")
    return np.asarray(_core.score(model._core, sequences, text, spans, of))


def gradient(
    model: Any, tokens: Any, objective: Objective, wrt: str | Sequence[str] = ("hook_embed",)
) -> tuple[Any, dict[str, Any]]:
    """An objective's value and its derivative by the values of sites, one row a given token.

    Parameters
    ----------
    model
        A `signflip.Model`.
    tokens
        One sequence, or several.
    objective
        From `signflip.objectives`.
    wrt
        Names of sites.

    Returns
    -------
    (value, {name: array})
        For one sequence `[pos]` the value is one float32 and arrays are `[1, pos, width]` (or `[1, pos, head, d_head]`,
        or `[1, head, q, k]` for `attn.hook_pattern`); for more the value is `[batch]` and arrays have that batch axis,
        or are lists where lengths differ.

    Raises
    ------
    SiteError
        If a site is unknown; the message names the nearest.
    """
    names = [wrt] if isinstance(wrt, str) else checks.listed("wrt", wrt, "names of sites")
    if not names:
        raise ArgumentError("wrt: expected at least one site, found none")
    for name in names:
        if not isinstance(name, str):
            raise ArgumentError(f"wrt: expected names of sites, found {name!r}")
    text = for_core(model, objective)
    spans = tokens.spans if isinstance(tokens, Prompts) else None
    sequences, single = parse(model, tokens)
    values: list[float] = []
    arrays: dict[str, list[Floats]] = {name: [] for name in names}
    for i, ids in enumerate(sequences):
        span = None if spans is None else spans[i]
        value, found = _core.gradient(model._core, ids, text, list(arrays), span)
        values.append(value)
        for name, array in zip(arrays, found, strict=True):
            if name.endswith("attn.hook_pattern"):
                # Keys behind the given tokens are those of the objective's continuation.
                n, heads = len(ids), model.cfg.n_heads
                array = np.ascontiguousarray(array.reshape(n, heads, -1)[:, :, :n].reshape(n, heads * n))
            arrays[name].append(array)
    shaped = {name: model.site_array(name, found) for name, found in arrays.items()}
    return (np.float32(values[0]) if single else np.asarray(values, np.float32)), shaped
