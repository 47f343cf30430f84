"""Edits: changes written into the forward pass."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from signflip.checks import integer, listed
from signflip.errors import ArgumentError, SignflipError, SiteError

if TYPE_CHECKING:
    from signflip.model import Model

Op = Literal["set", "add", "scale", "clamp", "zero", "mean", "resample"]
OPS: tuple[Op, ...] = ("set", "add", "scale", "clamp", "zero", "mean", "resample")


_LARGEST = float(np.finfo(np.float32).max)


class PerSequence(list[Any]):
    """One value (positions, columns, edit values) for each sequence of a call, in order."""


Positions = int | slice | Sequence[int] | PerSequence | None


@dataclass(frozen=True)
class Edit:
    """A change of a site's values.

    Parameters
    ----------
    site
        The site's name.
    op
        `set`, `add`, `scale` take `value`; `clamp` takes `(low, high)`, either of which may be None; `zero` takes
        nothing; `mean` takes the mean as `value` (an array over the site's width, or a survey, whose mean is read);
        `resample` takes donor tokens as `value`: each edited position gets the site's values at a position of the
        donors drawn with `seed`, a draw that depends on the tokens up to there and on nothing else of the call.
    value
        A number, or an array that broadcasts to `[index]`, or to `[positions, index]` when `positions` are given.
        `PerSequence` gives each sequence its own.
    index
        Neuron or neurons, or `head` or `(head, dim)` where the site has a head axis; all by default.
    positions
        All by default; an index, a list or a slice, counted in each sequence (negative from its end), or
        `PerSequence`.
    seed
        For `resample`; 0 to 2**64 - 1.
    """

    site: str
    op: Op
    value: Any = None
    index: int | Sequence[int] | tuple[int, int] | None = None
    positions: Positions = None
    seed: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        """Check what can be checked without a model."""
        if not isinstance(self.site, str):
            raise SiteError(f"site {self.site!r}: expected a name")
        integer("seed", self.seed, 0, 2**64 - 1)
        if not isinstance(self.op, str) or self.op not in OPS:
            raise ArgumentError(f"op: expected one of {', '.join(OPS)}, found {self.op!r}")
        if self.op == "zero" and self.value is not None:
            raise ArgumentError(f"value: expected none for op 'zero', found {self.value!r}")
        if self.op != "zero" and self.value is None:
            raise ArgumentError(f"value: expected one for op {self.op!r}, found none")


def check_entries(positions: Positions, n: int) -> None:
    """That positions given for each sequence are given for as many as there are.

    Raises
    ------
    ArgumentError
        If they are not.
    """
    if isinstance(positions, PerSequence) and len(positions) != n:
        raise ArgumentError(f"positions: expected {n} entries, one a sequence, found {len(positions)}")


def resolve_positions(positions: Positions, sequence: int, length: int) -> list[int]:
    """Absolute positions in one sequence.

    Raises
    ------
    ArgumentError
        If a position lies outside the sequence.
    """
    if isinstance(positions, PerSequence):
        positions = positions[sequence]
    if positions is None:
        return list(range(length))
    if isinstance(positions, slice):
        try:
            return list(range(length))[positions]
        except (TypeError, ValueError) as err:
            raise ArgumentError(f"positions: expected a slice of integers, found {positions!r}: {err}") from None
    if isinstance(positions, (bool, int, np.integer)):
        positions = [positions]
    found = []
    for position in listed("positions", positions, "an index, a list of them or a slice"):
        place = integer("positions", position)
        if not -length <= place < length:
            raise ArgumentError(f"positions: expected {-length} to {length - 1} in sequence {sequence}, found {place}")
        found.append(place % length)
    return found


def resolve_columns(
    name: str, index: int | Sequence[int] | tuple[int, int] | None, heads: int | None, width: int, n_keys: int
) -> list[int] | None:
    """Columns of a site that an index means; `None` for all.

    Raises
    ------
    SiteError
        If the index lies outside the site.
    """
    pattern = name.endswith("attn.hook_pattern")
    if pattern:
        width *= n_keys
    if index is None:
        return None
    if heads is not None:
        d_head = width // heads
        parts = [index] if isinstance(index, (int, np.integer)) else listed("index", index, "head or (head, dim)")
        if len(parts) not in (1, 2):
            raise SiteError(f"site {name!r}: expected an index head or (head, dim), found {index!r}")
        head, dim = (*parts, None)[:2]
        if not _whole(head) or not 0 <= head < heads:
            raise SiteError(f"site {name!r}: expected a head of 0 to {heads - 1}, found {index!r}")
        if dim is None:
            return [int(head) * d_head + i for i in range(d_head)]
        if not _whole(dim) or not 0 <= dim < d_head:
            raise SiteError(f"site {name!r}: expected a dimension of 0 to {d_head - 1}, found {index!r}")
        return [int(head) * d_head + int(dim)]
    if isinstance(index, (int, np.integer)):
        columns = [integer("index", index)]
    else:
        columns = [integer("index", i) for i in listed("index", index, "a neuron or a list of them")]
    if not columns:
        raise ArgumentError(f"index: expected at least one at {name}, found none")
    for column in columns:
        if not 0 <= column < width:
            raise SiteError(f"site {name!r}: expected an index of 0 to {width - 1}, found {column}")
    return columns


def _whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def core_values(
    model: Model,
    edit: Edit,
    columns: list[int] | None,
    places: Sequence[Sequence[int]],
    ids: Sequence[Sequence[int]],
) -> tuple[str, list[list[Any]]]:
    """The engine's operation and, for each sequence, the values: one list `[1 | index | positions * index]`.

    Raises
    ------
    ArgumentError
        If a value is not finite or has the wrong shape.
    """
    _, heads, width = model._core.site(edit.site)
    n = len(columns) if columns is not None else width
    if columns is not None and len(set(columns)) < n:
        twice = next(one for i, one in enumerate(columns) if one in columns[:i])
        raise ArgumentError(f"index: expected each once, found {twice} twice at {edit.site}")
    if edit.op == "zero":
        return "set", [[0.0] for _ in places]
    if edit.op == "clamp":
        return "clamp", [_limits(edit.value) for _ in places]
    if edit.op == "resample":
        return "set", _donors(model, edit, columns, places, ids)
    value = edit.value
    op = "set" if edit.op == "mean" else edit.op
    per_sequence = list(value) if isinstance(value, PerSequence) else [value] * len(places)
    if len(per_sequence) != len(places):
        raise ArgumentError(f"value: expected {len(places)} entries, one a sequence, found {len(per_sequence)}")
    if edit.op == "mean":
        per_sequence = [_mean(one, edit, heads, width, columns) for one in per_sequence]
    else:
        per_sequence = [one[edit.site].mean if hasattr(one, "one_sided") else one for one in per_sequence]
    explicit = edit.positions is not None
    if heads is not None and edit.index is None and not edit.site.endswith("attn.hook_pattern"):
        # As the cache shows the site: the last two axes are [head, d_head].
        per_sequence = [_merge_heads(one, heads, width // heads) for one in per_sequence]
    return op, [_flat(one, n, len(place), edit, explicit) for one, place in zip(per_sequence, places, strict=True)]


def _merge_heads(value: Any, heads: int, d_head: int) -> Any:
    shape = np.shape(value) if isinstance(value, (np.ndarray, list, tuple)) else ()
    return np.reshape(value, (*shape[:-2], heads * d_head)) if shape[-2:] == (heads, d_head) else value


def _mean(value: Any, edit: Edit, heads: int | None, width: int, columns: list[int] | None) -> NDArray[np.float32]:
    """A mean over the site, or over the columns alone, as values of the columns."""
    if isinstance(value, Mapping) or hasattr(value, "one_sided"):
        try:
            value = value[edit.site].mean
        except (LookupError, AttributeError) as err:
            if isinstance(err, SignflipError):
                raise
            raise ArgumentError(f"value: expected a survey of {edit.site}, found {value!r}") from None
    array = _numbers(value, edit)
    if heads is not None and array.shape == (heads, width // heads):
        array = array.reshape(width)
    return array[columns] if columns is not None and array.shape == (width,) else array


def _limits(value: Any) -> list[Any]:
    try:
        low, high = value
    except (TypeError, ValueError):
        raise ArgumentError(f"value: expected (low, high) for op 'clamp', found {value!r}") from None
    if isinstance(low, str) or isinstance(high, str):
        raise ArgumentError(f"value: expected two numbers or None for op 'clamp', found {value!r}")
    try:
        low = -np.inf if low is None else float(low)
        high = np.inf if high is None else float(high)
    except (TypeError, ValueError, OverflowError):
        raise ArgumentError(f"value: expected two numbers or None for op 'clamp', found {value!r}") from None
    if not low <= high:
        raise ArgumentError(f"value: expected low <= high for op 'clamp', found {value!r}")
    # An open end is infinite; a limit is a number that float32 holds.
    if low > _LARGEST or high < -_LARGEST or -np.inf < low < -_LARGEST or _LARGEST < high < np.inf:
        raise ArgumentError(f"value: expected finite float32 limits or None for op 'clamp', found {value!r}")
    return [low, high]


def _numbers(value: Any, edit: Edit) -> NDArray[np.float32]:
    """Finite float32."""
    try:
        found = np.asarray(value)
        if found.dtype.kind not in "fiub":
            raise TypeError
        with np.errstate(over="ignore"):  # what float32 cannot hold is refused below, as infinite
            array: NDArray[np.float32] = found.astype(np.float32)
    except (TypeError, ValueError, RuntimeError):
        raise ArgumentError(f"value: expected numbers for op {edit.op!r} at {edit.site}, found {value!r}") from None
    if not np.isfinite(array).all():
        raise ArgumentError(f"value: expected finite numbers for op {edit.op!r} at {edit.site}, found {value!r}")
    return array


def _flat(value: ArrayLike, n_columns: int, n_positions: int, edit: Edit, explicit: bool) -> list[Any]:
    array = _numbers(value, edit)
    if array.ndim == 0:
        return [float(array)]
    if array.ndim == 1 and array.size == n_columns:
        return list(array.tolist())
    if array.ndim == 1 and n_columns == 1 and array.size == n_positions:
        return list(array.tolist())
    if explicit or array.ndim == 2:
        try:
            return list(np.broadcast_to(array, (n_positions, n_columns)).ravel().tolist())
        except ValueError:
            pass
    raise ArgumentError(
        f"value: expected a number, [{n_columns}] or [{n_positions}, {n_columns}] at {edit.site}, "
        f"found shape {array.shape}"
    )


def _donors(
    model: Model, edit: Edit, columns: list[int] | None, places: Sequence[Sequence[int]], ids: Sequence[Sequence[int]]
) -> list[list[Any]]:
    from signflip.reads import Values

    if edit.site.endswith("attn.hook_pattern"):
        raise SiteError(f"site {edit.site!r}: expected another op than 'resample', for keys differ among donors")
    donors = model.as_sequences(edit.value)
    (values,) = model.read(donors, [Values(edit.site, None, columns)])[0]
    pool = np.concatenate(values)
    return [
        list(pool[_draws(edit.seed, sequence, place, len(pool))].ravel().tolist())
        for sequence, place in zip(ids, places, strict=True)
    ]


def _draws(seed: int, sequence: Sequence[int], places: Sequence[int], n: int) -> list[int]:
    """A number below n for each place, from a stream keyed by the seed and the tokens up to there alone."""
    prefix, keys = hashlib.blake2b(seed.to_bytes(8, "little"), digest_size=16), []
    for token in sequence:
        prefix.update(token.to_bytes(8, "little"))
        keys.append(prefix.digest())
    streams = (np.random.Philox(key=int.from_bytes(keys[place], "little")) for place in places)
    return [int(np.random.Generator(stream).integers(n)) for stream in streams]
