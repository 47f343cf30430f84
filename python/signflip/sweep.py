"""Many edits over one set of sequences: one forest, and variants in groups that fill the kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from signflip import forest

if TYPE_CHECKING:
    from signflip.model import Model

Floats = NDArray[np.float32]

# Rows of one forest, and of all variants of one request: the kernels are at their best long before, buffers stay small.
FOREST_ROWS = 4096
REQUEST_ROWS = 8192
# Whole rows of logits held at once, at most.
LOGIT_ROWS = 512


@dataclass(frozen=True, eq=False)
class Chunk:
    """Some of the sequences as one forest.

    Attributes
    ----------
    trie
        The forest.
    members
        Which sequences.
    rows
        int64 `[rows, 2]`: segment and offset of every token that edits touch.
    ends
        int64 `[members, 2]`: each sequence's last token.
    from_end
        int64 `[rows]`: for forests that share nothing, each row's position counted from its sequence's end (−1 last).
    owner
        int64 `[rows]`: a sequence that the row belongs to.
    """

    trie: forest.Forest
    members: tuple[int, ...]
    rows: NDArray[np.int64]
    ends: NDArray[np.int64]
    from_end: NDArray[np.int64]
    owner: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class RowEdit:
    """An edit over a sweep's rows.

    Attributes
    ----------
    site, op
        As in `Edit`, `op` one of set, add, scale.
    columns
        Columns of the site, None for all.
    values
        One number, or for each chunk an array `[rows, columns]`.
    mask
        For each chunk which rows are edited; None: all.
    """

    site: str
    op: str
    columns: tuple[int, ...] | None
    values: float | Callable[[int], Floats]
    mask: Callable[[int], NDArray[np.bool_]] | None = None


class Sweep:
    """Sequences prepared for many variants.

    Parameters
    ----------
    model
        The model.
    sequences
        Token ids.
    n_leading
        For each sequence, how many leading tokens no edit touches.
    share
        Whether common prefixes are computed once. Without it each row belongs to one sequence, so that edits can name
        positions counted from the end.
    """

    def __init__(
        self, model: Model, sequences: Sequence[Sequence[int]], n_leading: Sequence[int], share: bool = True
    ) -> None:
        self.model = model
        self.sequences = [list(sequence) for sequence in sequences]
        self.chunks = list(_chunks(self.sequences, list(n_leading), share))

    @property
    def n_rows(self) -> int:
        """Tokens of the clean pass."""
        return sum(chunk.trie.n_tokens for chunk in self.chunks)

    def values(self, site: str, columns: Sequence[int] | None = None) -> list[Floats]:
        """Clean values at every row that edits touch, `[rows, columns]` a chunk."""
        out = []
        for chunk in self.chunks:
            rows = _refs(0, chunk.rows)
            outputs, _ = self.model._core.run(
                chunk.trie.segments, [("values", rows, site, None if columns is None else list(columns))], []
            )
            out.append(np.asarray(outputs[0]).reshape(len(chunk.rows), -1))
        return out

    def many_values(self, wanted: Sequence[tuple[str, Sequence[int] | None]]) -> list[list[Floats]]:
        """`values` for several sites in one pass: `out[site][chunk]`."""
        out: list[list[Floats]] = [[] for _ in wanted]
        for chunk in self.chunks:
            rows = _refs(0, chunk.rows)
            reads = [("values", rows, site, None if cols is None else list(cols)) for site, cols in wanted]
            outputs, _ = self.model._core.run(chunk.trie.segments, reads, [])
            for kept, array in zip(out, outputs, strict=True):
                kept.append(np.asarray(array).reshape(len(chunk.rows), -1))
        return out

    def ends(
        self,
        columns: Sequence[Sequence[int]],
        variants: Sequence[Sequence[RowEdit]],
        targets: Sequence[int] | None = None,
        on_done: Callable[[int], None] | None = None,
    ) -> tuple[Floats, Floats | None]:
        """Read the last position of every sequence under every variant (an empty one is the clean model).

        Parameters
        ----------
        columns
            Vocabulary columns of each sequence, the same number for all.
        variants
            The edits.
        targets
            For each sequence a token whose log-probability to read, too.
        on_done
            Called with the number of variants finished.

        Returns
        -------
        tuple
            Logits `[variants, sequences, columns]`, and log-probabilities `[variants, sequences]` or None.
        """
        logits = np.empty((len(variants), len(self.sequences), len(columns[0])), np.float32)
        log_probs = None if targets is None else np.empty((len(variants), len(self.sequences)), np.float32)
        for c, chunk in enumerate(self.chunks):
            groups: dict[tuple[int, ...], list[int]] = {}
            for m, i in enumerate(chunk.members):
                groups.setdefault(tuple(columns[i]), []).append(m)
            for part in self._parts(chunk, len(variants)):
                core, numbers = self._core(c, [variants[v] for v in part])
                reads: list[tuple[Any, ...]] = []
                for number in numbers:
                    for cols, members in groups.items():
                        reads.append(("logits", _refs(number, chunk.ends[members]), list(cols)))
                    if targets is not None:
                        reads.append(("log_prob", _refs(number, chunk.ends), [targets[i] for i in chunk.members]))
                outputs, _ = self.model._core.run(chunk.trie.segments, reads, core)
                at = iter(outputs)
                for v in part:
                    for members in groups.values():
                        logits[v, [chunk.members[m] for m in members]] = next(at)
                    if log_probs is not None:
                        log_probs[v, list(chunk.members)] = np.asarray(next(at)).reshape(-1)
                if on_done is not None and c == len(self.chunks) - 1:
                    on_done(len(part))
        return logits, log_probs

    def divergence(
        self, rows: NDArray[np.int64], variants: Sequence[Sequence[RowEdit]], skip: Sequence[int] = ()
    ) -> NDArray[np.float64]:
        """KL(clean ‖ variant) of the next token in nats, `[variants, rows]`.

        Parameters
        ----------
        rows
            Which of the rows that edits touch, counted over all chunks.
        variants
            The edits.
        skip
            Tokens left out of both distributions.
        """
        out = np.empty((len(variants), len(rows)))
        start = 0
        for c, chunk in enumerate(self.chunks):
            at = np.flatnonzero((rows >= start) & (rows < start + len(chunk.rows)))
            cells = chunk.rows[rows[at] - start]
            start += len(chunk.rows)
            if not len(cells):
                continue
            # Whole rows of logits: a few variants at a time. The clean pass is variant 0 of the first.
            step = max(1, LOGIT_ROWS // len(cells))
            clean = np.empty(0, np.float32)
            for first in range(0, len(variants), step):
                part = list(range(first, min(first + step, len(variants))))
                core, numbers = self._core(c, [variants[v] for v in part])
                wanted = numbers if first else [0, *numbers]
                reads = [("logits", _refs(number, cells), None) for number in wanted]
                outputs, _ = self.model._core.run(chunk.trie.segments, reads, core)
                arrays = [np.asarray(one) for one in outputs]
                if not first:
                    clean = log_softmax(arrays.pop(0), skip)
                    probability = np.exp(clean)
                for v, array in zip(part, arrays, strict=True):
                    kl = (probability * (clean - log_softmax(array, skip))).sum(1, dtype=np.float64)
                    out[v, at] = np.maximum(kl, 0)
        return out

    def whole_ends(self, c: int, members: Sequence[int], variants: Sequence[Sequence[RowEdit]]) -> list[Floats]:
        """Whole rows of logits at the last position of some members of a chunk: `[members, d_vocab]` a variant."""
        ends = self.chunks[c].ends[list(members)]
        out: list[Floats] = []
        step = max(1, LOGIT_ROWS // max(1, len(ends)))
        for start in range(0, len(variants), step):
            core, numbers = self._core(c, variants[start : start + step])
            reads = [("logits", _refs(number, ends), None) for number in numbers]
            outputs, _ = self.model._core.run(self.chunks[c].trie.segments, reads, core)
            out.extend(np.asarray(one) for one in outputs)
        return out

    def _parts(self, chunk: Chunk, n: int) -> Iterator[list[int]]:
        step = max(1, REQUEST_ROWS // max(1, chunk.trie.n_tokens))
        for start in range(0, n, step):
            yield list(range(start, min(start + step, n)))

    def _core(self, c: int, variants: Sequence[Sequence[RowEdit]]) -> tuple[list[list[Any]], list[int]]:
        """The engine's variants, and the number of each (0 is the clean forest)."""
        core: list[list[Any]] = []
        numbers = []
        chunk = self.chunks[c]
        for edits in variants:
            plain = []
            for edit in edits:
                rows, values = chunk.rows, edit.values if isinstance(edit.values, float) else edit.values(c)
                if edit.mask is not None:
                    kept = edit.mask(c)
                    rows = rows[kept]
                    values = values if isinstance(values, float) else values[kept]
                if not len(rows):
                    continue
                flat = [values] if isinstance(values, float) else np.ravel(np.asarray(values, np.float32))
                columns = None if edit.columns is None else list(edit.columns)
                plain.append((edit.site, edit.op, columns, np.ascontiguousarray(rows), flat))
            if plain:
                core.append(plain)
            numbers.append(len(core) if plain else 0)
        return core, numbers


def _refs(variant: int, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.hstack([np.full((len(rows), 1), variant, np.int64), rows])


def log_softmax(logits: Floats, skip: Sequence[int] = ()) -> Floats:
    """Log-probabilities of rows over the vocabulary, tokens to skip left out of it."""
    x = np.delete(logits, list(skip), axis=1) if len(skip) else logits
    x = x - x.max(1, keepdims=True)
    return np.asarray(x - np.log(np.exp(x).sum(1, keepdims=True, dtype=np.float64)).astype(np.float32))


def _chunks(sequences: list[list[int]], n_leading: list[int], share: bool) -> Iterator[Chunk]:
    order = sorted(range(len(sequences)), key=lambda i: sequences[i])
    batch: list[int] = []
    rows = 0
    previous: list[int] = []
    for i in order:
        own = len(sequences[i]) - (_shared(sequences[i], previous) if share else 0)
        if batch and rows + own > FOREST_ROWS:
            yield _chunk(sequences, n_leading, batch, share)
            batch, rows, own = [], 0, len(sequences[i])
        batch.append(i)
        rows += own
        previous = sequences[i]
    if batch:
        yield _chunk(sequences, n_leading, batch, share)


def _shared(a: list[int], b: list[int]) -> int:
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n


def _chunk(sequences: list[list[int]], n_leading: list[int], batch: list[int], share: bool) -> Chunk:
    own = [sequences[i] for i in batch]
    trie = forest.build(own) if share else forest.flat(own)
    seen: dict[tuple[int, int], None] = {}
    from_end, owner = [], []
    for i, cells in zip(batch, trie.rows, strict=True):
        length = len(cells)
        for position in range(n_leading[i], length):
            cell = (int(cells[position, 0]), int(cells[position, 1]))
            if cell not in seen:
                seen[cell] = None
                from_end.append(position - length)
                owner.append(i)
    rows = np.asarray(list(seen), np.int64).reshape(-1, 2)
    ends = np.stack([cells[-1] for cells in trie.rows])
    return Chunk(trie, tuple(batch), rows, ends, np.asarray(from_end, np.int64), np.asarray(owner, np.int64))
