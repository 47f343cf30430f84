"""Generation: continuing sequences a token at a time, from the keys and values of what is there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from signflip import forest
from signflip.edits import Edit
from signflip.errors import ArgumentError, ContextLengthError
from signflip.planning import PlannedEdit, core_columns, limits, plan_edit

if TYPE_CHECKING:
    from signflip.model import Model


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn: see `Model.generate`."""

    temperature: float
    top_k: int | None
    seed: int


def generate(
    model: Model,
    sequences: list[list[int]],
    max_new_tokens: int,
    sampling: Sampling,
    edits: list[Any],
    stop_ids: set[int],
) -> list[list[int]]:
    """The sequences, continued: see `Model.generate`."""
    _check(model, sequences, max_new_tokens, edits)
    plans = [_plan(model, edit, sequences) for edit in edits]
    done = [list(sequence) for sequence in sequences]
    # The engine's edits at all rows know one value, so sequences with the same values go together.
    groups: dict[Any, list[int]] = {}
    for i in range(len(sequences)):
        groups.setdefault(tuple(tuple(plan.values[i]) for plan in plans), []).append(i)
    for live in groups.values():
        _continue(model, done, live, max_new_tokens, sampling, plans, stop_ids)
    return done


def _continue(
    model: Model,
    done: list[list[int]],
    live: list[int],
    max_new_tokens: int,
    sampling: Sampling,
    plans: list[PlannedEdit],
    stop_ids: set[int],
) -> None:
    """Continue, in place, the sequences that are live; the edits have the same values in all of them."""
    variant = 1 if plans else 0
    segments: list[forest.Segment] = [(forest.ROOT, 0, 0, list(done[i])) for i in live]
    first = live[0]
    cache, known = None, 0
    for step in range(max_new_tokens):
        n_keys = max(len(done[i]) for i in live)
        variants = [[_core_edit(plan, first, n_keys) for plan in plans]] if plans else []
        ends = [[variant, s, len(segment[3]) - 1] for s, segment in enumerate(segments)]
        read = ("logits", np.asarray(ends, np.int64), None)
        more = step + 1 < max_new_tokens
        outputs, cache = model._core.run(segments, [read], variants, cache, keep=more, keep_variant=variant)
        held = {i: known + s for s, i in enumerate(live)}
        known += len(segments)
        following = []
        for logits, i in zip(outputs[0], live, strict=True):
            token = _draw(logits, sampling, i, step)
            done[i].append(token)
            if token not in stop_ids:
                following.append(i)
        previous = {i: len(segments[s][3]) for s, i in enumerate(live)}
        live = following
        if not live or not more:
            break
        segments = [(forest.CACHED, held[i], previous[i], [done[i][-1]]) for i in live]


def _check(model: Model, sequences: list[list[int]], max_new_tokens: int, edits: list[Any]) -> None:
    if any(isinstance(edit, Edit) and edit.positions is not None for edit in edits):
        raise ArgumentError("edits: expected edits at all positions while generating, found positions")
    for sequence in sequences:
        total = len(sequence) + max_new_tokens
        if total > model.cfg.n_ctx:
            raise ContextLengthError(
                f"sequence of {total} tokens is longer than the model's context of {model.cfg.n_ctx}"
            )


def _plan(model: Model, edit: Any, sequences: list[list[int]]) -> PlannedEdit:
    """An edit whose values are the same at every position, as they must be at the positions to come."""
    if isinstance(edit, Edit) and edit.op == "resample":
        raise ArgumentError(
            f"edits: expected values for all positions while generating, found op 'resample' at {edit.site}"
        )
    plan = plan_edit(model, edit, sequences)
    _, n = core_columns(plan, max(map(len, sequences)))
    if plan.op != "clamp" and any(len(one) not in (1, n) for one in plan.values):
        raise ArgumentError(
            f"edits: expected values for all positions while generating, found one a position at {edit.site}"
        )
    return plan


def _core_edit(plan: PlannedEdit, sequence: int, n_keys: int) -> tuple[Any, ...]:
    # The pattern's columns are numbered by the key axis, which grows.
    columns, n = core_columns(plan, n_keys)
    values = plan.values[sequence]
    return (plan.edit.site, plan.op, columns, None, limits(values, n) if plan.op == "clamp" else values)


def _draw(logits: NDArray[np.float32], sampling: Sampling, sequence: int, step: int) -> int:
    if not np.isfinite(logits).all():
        raise ArgumentError(f"generate: expected finite logits, found others in sequence {sequence} at step {step}")
    if sampling.temperature == 0:
        return int(np.argmax(logits))
    below = logits.astype(np.float64) - float(logits.max())
    with np.errstate(over="ignore"):  # what is infinitely far below the maximum has no weight
        scaled = below / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < len(scaled):
        kept = np.lexsort((np.arange(len(scaled)), -below))[: sampling.top_k]
        mask = np.full(len(scaled), -np.inf)
        mask[kept] = scaled[kept]
        scaled = mask
    weights = np.exp(scaled)
    # The key has 128 bits: seed and sequence; the counter is the step.
    bits = np.random.Philox(key=(sampling.seed & (2**64 - 1)) | (sequence << 64), counter=step)
    target = np.random.Generator(bits).random() * weights.sum()
    return int(min(np.searchsorted(np.cumsum(weights), target, side="right"), len(weights) - 1))
