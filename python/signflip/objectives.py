"""Objectives: one differentiable scalar of a prompt, that a search raises.

>>> from signflip import objectives
>>> -objectives.neuron("blocks.5.mlp.hook_post", 17) + 0.5 * objectives.logprob(" yes")
-neuron('blocks.5.mlp.hook_post', 17) + 0.5 * logprob(' yes')
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from signflip.checks import listed
from signflip.errors import ArgumentError, TokenError, TokenizerError
from signflip.sequences import continued_ids

__all__ = ["Objective", "direction", "logit_diff", "logprob", "neuron", "reward"]

Position = int | str
_RULES = ("best", "after")

# Weights and offsets are the core's float32s.
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Term:
    """One scalar. `fields` are its own arguments, in order."""

    kind: str
    fields: tuple[tuple[str, Any], ...]

    def __repr__(self) -> str:
        shown = []
        for name, value in self.fields:
            if (name, value) in (("position", -1), ("label", 0)):
                continue
            if isinstance(value, bytes):
                value = f"<{len(value) // 4} values>"
                shown.append(value)
            elif name in ("position", "label"):
                shown.append(f"{name}={value!r}")
            else:
                shown.append(repr(list(value)) if isinstance(value, tuple) else repr(value))
        return f"{self.kind}({', '.join(shown)})"


@dataclass(frozen=True)
class Objective:
    """A weighted sum of terms. Objectives can be negated, scaled, added, subtracted, compared and hashed.

    Attributes
    ----------
    terms
        Weight and term, in order of summation.
    offset
        Added to the sum.

    Raises
    ------
    ArgumentError
        From arithmetic that leaves a weight or the offset beyond float32's range.
    """

    terms: tuple[tuple[float, Term], ...]
    offset: float = 0.0

    def __neg__(self) -> Objective:
        return -1.0 * self

    def __pos__(self) -> Objective:
        return self

    def __mul__(self, factor: float) -> Objective:
        if not _is_number(factor):
            return NotImplemented
        by = _within("a factor", factor)
        terms = tuple((_within("weights", by * w), t) for w, t in self.terms)
        return Objective(terms, _within("an offset", by * self.offset))

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Objective:
        if not _is_number(divisor) or divisor == 0:
            raise ArgumentError(f"objective: expected a number other than 0 to divide by, found {divisor!r}")
        return self * (1.0 / _within("a divisor", divisor))

    def __add__(self, other: Objective | float) -> Objective:
        if isinstance(other, Objective):
            return Objective(self.terms + other.terms, _within("an offset", self.offset + other.offset))
        if _is_number(other):
            return Objective(self.terms, _within("an offset", self.offset + _within("an offset", other)))
        return NotImplemented

    __radd__ = __add__

    def __sub__(self, other: Objective | float) -> Objective:
        return self + -other

    def __rsub__(self, other: float) -> Objective:
        return -self + other

    def __repr__(self) -> str:
        text = ""
        for weight, term in self.terms:
            sign = "-" if weight < 0 or (weight == 0 and math.copysign(1, weight) < 0) else "+"
            factor = "" if abs(weight) == 1 else f"{abs(weight):g} * "
            lead = ("-" if sign == "-" else "") if not text else f" {sign} "
            text += f"{lead}{factor}{term!r}"
        if self.offset:
            text += f" {'-' if self.offset < 0 else '+'} {abs(self.offset):g}"
        return text

    def to_dict(self) -> dict[str, Any]:
        """A form that JSON can hold; `from_dict` reads it."""
        terms = []
        for weight, term in self.terms:
            fields: dict[str, Any] = {"kind": term.kind}
            for name, value in term.fields:
                if isinstance(value, bytes):
                    fields[name] = np.frombuffer(value, np.float32).tolist()
                else:
                    fields[name] = list(value) if isinstance(value, tuple) else value
            terms.append([weight, fields])
        return {"terms": terms, "offset": self.offset}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Objective:
        """The objective that `to_dict` wrote.

        Raises
        ------
        ArgumentError
            If it is something else.
        """
        makers: dict[str, Callable[..., Objective]] = {
            "neuron": neuron,
            "direction": direction,
            "logit_diff": logit_diff,
            "logprob": logprob,
            "reward": reward,
        }
        try:
            terms: tuple[tuple[float, Term], ...] = ()
            for weight, fields in data["terms"]:
                rest = {name: value for name, value in fields.items() if name != "kind"}
                terms += (float(weight) * makers[fields["kind"]](**rest)).terms
            return cls(terms, _within("an offset", float(data.get("offset", 0.0))))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as err:
            raise ArgumentError(f"objective: expected what Objective.to_dict wrote, found {str(data)[:80]}") from err


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def _within(what: str, value: float) -> float:
    if not abs(value) <= _LARGEST:
        shown = f"one of {value.bit_length()} bits" if isinstance(value, int) else f"{float(value)}"
        raise ArgumentError(f"objective: expected {what} within float32's range (+-{_LARGEST:.3g}), found {shown}")
    return float(value)


def _index(name: str, value: Any) -> int:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise ArgumentError(f"{name}: expected an integer, found {value!r}")
    return int(value)


def _natural(name: str, value: Any) -> int:
    if (index := _index(name, value)) < 0:
        raise ArgumentError(f"{name}: expected at least 0, found {index}")
    return index


def _position(value: Any) -> Position:
    if isinstance(value, str):
        if value not in _RULES:
            raise ArgumentError(f"position: expected an integer, 'best' or 'after', found {value!r}")
        return value
    return _index("position", value)


def _site(value: Any) -> str:
    if not isinstance(value, str):
        raise ArgumentError(f"site: expected a site's name, found {value!r}")
    return value


def _one(kind: str, **fields: Any) -> Objective:
    return Objective(((1.0, Term(kind, tuple(fields.items()))),))


def neuron(site: str, index: int, position: Position = -1) -> Objective:
    """One column of a site: a neuron, or at a site with heads the column `head * d_head + dim`.

    Parameters
    ----------
    site
        A site's name, such as ``blocks.5.mlp.hook_post``.
    index
        The column.
    position
        A token's index, negative from the end of the whole sequence; ``"best"``: the highest value over the free
        tokens and all that follows them (over every token where scoring is not told which are free); ``"after"``: the
        mean over the tokens that a context has after the free ones.

    Raises
    ------
    ArgumentError
        If an argument is of the wrong kind. Whether the model has the site is checked when the objective is used.
    """
    return _one("neuron", site=_site(site), index=_natural("index", index), position=_position(position))


def direction(site: str, vector: ArrayLike, position: Position = -1) -> Objective:
    """The inner product of a site's values with a vector (float64, rounded once).

    Parameters
    ----------
    site
        A site's name.
    vector
        `[width of the site]`, taken as float32.
    position
        As for `neuron`.

    Raises
    ------
    ArgumentError
        If the vector is not one, or not finite.
    """
    try:
        values = np.asarray(vector, np.float32)
    except (TypeError, ValueError) as err:
        raise ArgumentError(f"vector: expected numbers, found {str(vector)[:60]}") from err
    if values.ndim != 1 or values.size == 0:
        raise ArgumentError(f"vector: expected shape [width], found {values.shape}")
    if not np.isfinite(values).all():
        raise ArgumentError("vector: expected finite values, found NaN or infinity")
    return _one("direction", site=_site(site), vector=values.tobytes(), position=_position(position))


def _token(name: str, value: Any) -> int | str:
    if isinstance(value, str):
        return value
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)) or value < 0:
        raise TokenError(f"tokens: expected an id or a token's text for {name}, found {value!r}")
    return int(value)


def logit_diff(a: int | str, b: int | str, position: Position = -1) -> Objective:
    """`logit[a] - logit[b]`, for next-token logits.

    Parameters
    ----------
    a, b
        Token ids, or texts that are one token each.
    position
        As for `neuron`.
    """
    return _one("logit_diff", a=_token("a", a), b=_token("b", b), position=_position(position))


def logprob(target: str | Sequence[int]) -> Objective:
    """Log-probability of a continuation after the last token, summed over its tokens, in nats.

    Parameters
    ----------
    target
        Text (no BOS is put in front of it) or token ids.
    """
    if isinstance(target, str):
        return _one("logprob", target=target)
    try:
        ids = list(target)
    except TypeError as err:
        raise TokenError(f"tokens: expected text or ids to continue with, found {target!r}") from err
    if not ids:
        raise TokenError("tokens: expected at least one token to continue with, found none")
    if any(isinstance(one, str) for one in ids):
        raise TokenError(f"tokens: expected ids to continue with, found {ids!r}")
    return _one("logprob", target=tuple(_token("target", one) for one in ids))


def reward(label: int = 0) -> Objective:
    """An output of a reward model's head, read at the last token that is not padding."""
    return _one("reward", label=_natural("label", label))


def for_core(model: Any, objective: Any) -> str:
    """An objective with its texts as ids, as the extension reads it."""
    if not isinstance(objective, Objective):
        raise ArgumentError(
            f"objective: expected an objective such as signflip.objectives.neuron(site, index), found {objective!r}"
        )
    data = objective.to_dict()
    for _, fields in data["terms"]:
        for name in ("a", "b", "target"):
            if isinstance(fields.get(name), str):
                fields[name] = _encode(model, name, fields[name])
        fields["kind"] = {"logprob": "log_prob"}.get(fields["kind"], fields["kind"])
    try:
        return json.dumps(data, allow_nan=False)
    except ValueError as err:
        raise ArgumentError(f"objective: expected finite weights and offset, found {objective!r}") from err


def all_for_core(model: Any, objective: Any, n: int, of_what: str) -> tuple[str, list[int] | None]:
    """One objective of all, or one each of `n`: as the extension reads them, and which is that of each.

    Raises
    ------
    ArgumentError
        If it is neither an objective nor a list of `n`.
    """
    if isinstance(objective, Objective):
        return for_core(model, objective), None
    each = listed("objective", objective, f"an objective, or a list of one each of {n} {of_what}")
    if len(each) != n:
        raise ArgumentError(f"objective: expected one, or one each of {n} {of_what}, found {len(each)}")
    texts = [for_core(model, one) for one in each]
    distinct = list(dict.fromkeys(texts))
    if len(distinct) == 1:
        return distinct[0], None
    places = {text: i for i, text in enumerate(distinct)}
    return "[" + ",".join(distinct) + "]", [places[text] for text in texts]


def _encode(model: Any, name: str, text: str) -> int | list[int]:
    if model.tokenizer is None:
        raise TokenizerError(
            f"tokenizer: {model.name} has none, so the objective's text {text!r} cannot be used; give ids"
        )
    ids = continued_ids(model, text)
    if name == "target":
        return ids
    if len(ids) != 1:
        raise TokenError(f"tokens: expected one token for {name}, found {len(ids)} in {text!r}")
    return ids[0]
