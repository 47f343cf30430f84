"""From ragged token sequences, reads and edits to one request of the engine: a forest that shares prefixes.

Sequences share a token only where everything before it is the same and every edit treats it the same, so sharing never
changes a value.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Segment = tuple[int, int, int, list[int]]

ROOT, CHILD, CACHED = -1, 0, 1


@dataclass(frozen=True)
class Forest:
    """Segments for the engine, and where each sequence's tokens lie in them.

    Attributes
    ----------
    segments
        `(kind, index, keep, tokens)` for the engine, parents first.
    rows
        One int64 array `[pos, 2]` a sequence: segment and offset of each of its tokens.
    n_tokens
        Tokens computed.
    """

    segments: list[Segment]
    rows: list[NDArray[np.int64]]
    n_tokens: int


def build(sequences: Sequence[Sequence[int]], marks: Sequence[Sequence[Hashable]] | None = None) -> Forest:
    """Share the prefixes of sequences.

    Parameters
    ----------
    sequences
        Token ids, each sequence at least one.
    marks
        One mark a token: tokens with different marks are never shared, nor what follows them.

    Returns
    -------
    Forest
        Rows in the order of `sequences`.
    """
    keys: list[list[tuple[int, Hashable]]] = [
        [(int(token), None if marks is None else marks[i][p]) for p, token in enumerate(sequence)]
        for i, sequence in enumerate(sequences)
    ]
    order = sorted(range(len(keys)), key=lambda i: [(token, repr(mark)) for token, mark in keys[i]])
    segments: list[Segment] = []
    rows: list[NDArray[np.int64]] = [np.empty((0, 2), np.int64)] * len(keys)
    previous: list[tuple[int, Hashable]] = []
    where = np.empty((0, 2), np.int64)
    n_tokens = 0
    for i in order:
        key = keys[i]
        shared = 0
        for ours, theirs in zip(key, previous, strict=False):
            if ours != theirs:
                break
            shared += 1
        if shared == len(key):
            rows[i] = where[:shared]
        else:
            own = [token for token, _ in key[shared:]]
            if shared:
                index, offset = (int(value) for value in where[shared - 1])
                segments.append((CHILD, index, offset + 1, own))
            else:
                segments.append((ROOT, 0, 0, own))
            new = np.stack([np.full(len(own), len(segments) - 1), np.arange(len(own))], axis=1)
            rows[i] = np.concatenate([where[:shared], new])
            n_tokens += len(own)
            previous, where = key, rows[i]
    return Forest(segments, rows, n_tokens)


def flat(sequences: Sequence[Sequence[int]]) -> Forest:
    """One segment a sequence, nothing shared."""
    segments: list[Segment] = [(ROOT, 0, 0, [int(token) for token in sequence]) for sequence in sequences]
    rows = [
        np.stack([np.full(len(sequence), i), np.arange(len(sequence))], axis=1) for i, sequence in enumerate(sequences)
    ]
    return Forest(segments, rows, sum(len(sequence) for sequence in sequences))
