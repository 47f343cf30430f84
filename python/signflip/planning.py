"""From reads and edits of ragged sequences to requests of the engine, and back to one array a sequence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from signflip import forest
from signflip.edits import Edit, check_entries, core_values, resolve_columns, resolve_positions
from signflip.errors import ArgumentError
from signflip.reads import Logits, LogProb, Project, Read, Values, groups, wanted

if TYPE_CHECKING:
    from signflip.model import Model

Floats = NDArray[np.float32]

# Rows of one engine request: enough for the kernels to be at their best, few enough for the buffers to stay small.
MAX_ROWS = 2048


@dataclass(frozen=True)
class PlannedEdit:
    """An edit resolved against a model and sequences; `places` and `values` have one entry a sequence."""

    edit: Edit
    op: str
    columns: list[int] | None
    heads: int | None
    width: int
    places: list[list[int]]
    values: list[list[Any]]


def read(
    model: Model, ids: list[list[int]], reads: Sequence[Read], variants: Sequence[Sequence[Edit]]
) -> list[list[list[Floats]]]:
    """Values `out[variant][read][sequence]`: see `Model.read`."""
    for read in reads:
        check_entries(getattr(read, "positions", None), len(ids))
    extra = sum(1 for edits in variants if len(edits))
    out: list[list[list[Floats]]] = [[[np.empty(0, np.float32)] * len(ids) for _ in reads] for _ in variants]
    plans = [[plan_edit(model, edit, ids) for edit in edits] for edits in variants]
    for batch in _batches(ids, 1 + extra):
        _read_batch(model, ids, batch, reads, plans, out)
    return out


def plan_edit(model: Model, edit: Edit, ids: list[list[int]]) -> PlannedEdit:
    """Resolve an edit's columns, positions and values.

    Raises
    ------
    SiteError
        If the model has no such site or column.
    ArgumentError
        If the edit covers no position or its value does not fit.
    """
    if not isinstance(edit, Edit):
        raise ArgumentError(f"edits: expected a list of Edit, found {edit!r} in it")
    _, heads, width = model._core.site(edit.site)
    check_entries(edit.positions, len(ids))
    places = [resolve_positions(edit.positions, i, len(sequence)) for i, sequence in enumerate(ids)]
    if edit.positions is not None and not any(places):
        raise ArgumentError(f"positions: the edit at {edit.site} covers no position")
    n_keys = max(map(len, ids))
    columns = resolve_columns(edit.site, edit.index, heads, width, n_keys)
    if edit.site.endswith("attn.hook_pattern"):
        op, values = core_values(model, edit, columns if edit.index is not None else None, places, ids)
        if any(len(one) > (2 if op == "clamp" else 1) for one in values):
            raise ArgumentError(f"value: expected one number at {edit.site}, found an array")
    else:
        op, values = core_values(model, edit, columns, places, ids)
    # The pattern's columns depend on the batch's own key axis, so the index itself is kept.
    return PlannedEdit(edit, op, columns, heads, width, places, values)


def _read_batch(
    model: Model,
    ids: list[list[int]],
    batch: list[int],
    reads: Sequence[Read],
    plans: list[list[PlannedEdit]],
    out: list[list[list[Floats]]],
) -> None:
    edited = [plan for plan in plans if plan]
    number = {v: sum(1 for plan in plans[: v + 1] if plan) if plans[v] else 0 for v in range(len(plans))}
    marks = _marks(batch, ids, edited)
    trie = forest.build([ids[i] for i in batch], marks)
    longest = max(len(ids[i]) for i in batch)
    core_variants = [[_core_edit(plan, batch, trie, longest) for plan in plans_of] for plans_of in edited]
    core_reads = []
    for r, read in enumerate(reads):
        places = [wanted(read, i, ids[i]) for i in batch]
        # Each group is one engine read: sequences that ask for the same columns.
        for columns, members in groups(read, batch):
            # In the order given, so that what comes back is one array already.
            members = sorted(members, key=lambda b: batch[b])
            cells = np.concatenate([trie.rows[b][places[b]] for b in members])
            splits = np.cumsum([len(places[b]) for b in members])[:-1]
            core_reads.append((r, read, cells, columns, members, splits))
    calls = []
    for v in range(len(plans)):
        for _, read, cells, columns, members, _ in core_reads:
            rows = np.hstack([np.full((len(cells), 1), number[v]), cells]).astype(np.int64)
            calls.append(_core_read(model, read, rows, columns, members, batch))
    outputs, _ = model._core.run(trie.segments, calls, core_variants)
    at = iter(outputs)
    for v in range(len(plans)):
        for r, read, _, _, members, splits in core_reads:
            for b, values in zip(members, np.split(next(at), splits), strict=True):
                out[v][r][batch[b]] = _shape(model, read, values, len(ids[batch[b]]), longest)


def _shape(model: Model, read: Read, values: Floats, length: int, n_keys: int) -> Floats:
    if isinstance(read, Values) and read.site.endswith("attn.hook_pattern") and read.columns is None:
        heads = model.cfg.n_heads
        return values.reshape(len(values), heads, n_keys)[:, :, :length].reshape(len(values), heads * length)
    return values


def _core_read(
    model: Model, read: Read, rows: NDArray[np.int64], columns: Any, members: list[int], batch: list[int]
) -> tuple[Any, ...]:
    match read:
        case Values():
            return ("values", rows, read.site, columns)
        case Project():
            vector = np.asarray(read.vector, np.float32)
            width = model.site_width(read.site)
            if vector.shape != (width,):
                raise ArgumentError(f"vector: expected [{width}] at {read.site}, found shape {vector.shape}")
            return ("project", rows, read.site, vector.tolist())
        case Logits():
            return ("logits", rows, columns)
        case LogProb():
            return ("log_prob", rows, [int(t) for b in members for t in read.targets[batch[b]]])


def _core_edit(plan: PlannedEdit, batch: list[int], trie: forest.Forest, n_keys: int) -> tuple[Any, ...]:
    edit = plan.edit
    columns, n = core_columns(plan, n_keys)
    values = [plan.values[i] for i in batch]
    same = all(one == values[0] for one in values) and (plan.op == "clamp" or len(values[0]) in (1, n))
    if edit.positions is None and same:
        return (edit.site, plan.op, columns, None, limits(values[0], n) if plan.op == "clamp" else values[0])
    cells: dict[tuple[int, int], list[float]] = {}
    for b, i in enumerate(batch):
        rowwise = plan.op != "clamp" and _per_row(values[b], n, plan.places[i])
        for p, place in enumerate(plan.places[i]):
            segment, offset = trie.rows[b][place]
            own = values[b][p * n : (p + 1) * n] if rowwise else values[b]
            cells[int(segment), int(offset)] = own
    rows = list(cells)
    if plan.op == "clamp" or same:
        flat = limits(values[0], n) if plan.op == "clamp" else values[0]
    else:
        flat = [value for row in rows for value in (cells[row] * n if len(cells[row]) == 1 else cells[row])]
    return (edit.site, plan.op, columns, rows, flat)


def core_columns(plan: PlannedEdit, n_keys: int) -> tuple[list[int] | None, int]:
    """An edit's columns in a request with this key axis (None for all), and how many they are."""
    if not plan.edit.site.endswith("attn.hook_pattern"):
        return plan.columns, len(plan.columns) if plan.columns is not None else plan.width
    columns = resolve_columns(plan.edit.site, plan.edit.index, plan.heads, plan.width, n_keys)
    return columns, len(columns) if columns is not None else plan.width * n_keys


def limits(values: list[float], n: int) -> list[float]:
    """A clamp's two limits as the engine takes them: `n` lower ones, then `n` upper ones."""
    return [values[0]] * n + [values[1]] * n if n > 1 else values


def _per_row(values: list[float], n: int, places: list[int]) -> bool:
    """Whether values are one a (position, column), where their number leaves no doubt."""
    return len(values) == len(places) * n and len(values) not in (1, n)


def _marks(batch: list[int], ids: list[list[int]], variants: list[list[PlannedEdit]]) -> list[list[Any]] | None:
    """Per token, how the edits with positions or sequence-wise values treat it; None if all tokens are alike."""
    special = [
        plan
        for plans in variants
        for plan in plans
        if plan.edit.positions is not None or any(plan.values[i] != plan.values[batch[0]] for i in batch)
    ]
    if not special:
        return None
    marks: list[list[Any]] = [[()] * len(ids[i]) for i in batch]
    for e, plan in enumerate(special):
        n = len(plan.columns) if plan.columns is not None else plan.width
        for b, i in enumerate(batch):
            rowwise = _per_row(plan.values[i], n, plan.places[i])
            for p, place in enumerate(plan.places[i]):
                own = tuple(plan.values[i][p * n : (p + 1) * n]) if rowwise else tuple(plan.values[i])
                marks[b][place] = (*marks[b][place], (e, own))
    return marks


def _batches(ids: list[list[int]], copies: int) -> Iterator[list[int]]:
    """Indices of sequences in batches of at most `MAX_ROWS` rows, neighbours in sorted order together."""
    batch: list[int] = []
    rows = 0
    for i in sorted(range(len(ids)), key=lambda i: ids[i]):
        cost = len(ids[i]) * copies
        if batch and rows + cost > MAX_ROWS:
            yield batch
            batch, rows = [], 0
        batch.append(i)
        rows += cost
    if batch:
        yield batch
