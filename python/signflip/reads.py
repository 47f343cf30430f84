"""What can be read of a forward pass, and the positions and columns that a read wants."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from numpy.typing import ArrayLike

from signflip.edits import PerSequence, Positions, resolve_positions
from signflip.errors import ArgumentError


@dataclass(frozen=True)
class Values:
    """A read of a site: `[positions, columns]` a sequence."""

    site: str
    positions: Positions = None
    columns: Sequence[int] | None = None


@dataclass(frozen=True)
class Project:
    """A read of a site along a vector: `[positions]` a sequence."""

    site: str
    positions: Positions
    vector: ArrayLike


@dataclass(frozen=True)
class Logits:
    """A read of next-token logits: `[positions, columns]` a sequence."""

    positions: Positions = -1
    columns: Sequence[int] | PerSequence | None = None


@dataclass(frozen=True)
class LogProb:
    """A read of next-token log-probabilities: `[len(targets[i])]` for sequence i.

    `targets[i]` are the tokens that follow the last `len(targets[i])` positions of sequence i.
    """

    targets: Sequence[Sequence[int]]


Read = Values | Project | Logits | LogProb


def wanted(read: Read, i: int, sequence: list[int]) -> list[int]:
    """The positions that a read wants of sequence i."""
    if isinstance(read, LogProb):
        n = len(read.targets[i])
        if not 0 < n <= len(sequence):
            raise ArgumentError(f"targets: expected 1 to {len(sequence)} tokens for sequence {i}, found {n}")
        return list(range(len(sequence) - n, len(sequence)))
    return resolve_positions(read.positions, i, len(sequence))


def groups(read: Read, batch: list[int]) -> Iterable[tuple[list[int] | None, list[int]]]:
    """Members of a batch by the columns that a read wants of them."""
    columns = getattr(read, "columns", None)
    if not isinstance(columns, PerSequence):
        yield None if columns is None else [int(c) for c in columns], list(range(len(batch)))
        return
    groups: dict[tuple[int, ...], list[int]] = {}
    for b, i in enumerate(batch):
        groups.setdefault(tuple(int(c) for c in columns[i]), []).append(b)
    for key, members in groups.items():
        yield list(key), members
