"""Doses and tiers: what values a feature is set to, and how it is brought there by edits."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from signflip.checks import integer, listed
from signflip.errors import ArgumentError, SiteError
from signflip.resample import to_plain
from signflip.sweep import RowEdit, Sweep

if TYPE_CHECKING:
    from signflip.model import Model

Floats = NDArray[np.float32]
Tier = Literal["T0", "T1"]
Metric = Literal["", "norm", "covariance"]
# What a float32 can hold.
LARGEST = float(np.finfo(np.float32).max)
# A gate counts as open above this; where fewer than MIN_ACTS rows have it open, the MIN_ACTS most open ones are taken.
GATE_OPEN = 0.0
MIN_ACTS = 16
# Activations that are (nearly) 0 for every negative input: a gate cannot be mirrored through them.
_ONE_WAY = {"silu", "relu", "gelu", "gelu_new", "gelu_pytorch_tanh", "swish", "gelu_fast", "gelu_python"}
_MLP = re.compile(r"blocks\.(\d+)\.mlp\.hook_(pre|pre_linear|post)$")


@dataclass(frozen=True)
class Feature:
    """One neuron at a site, with what a survey knows of it.

    Attributes
    ----------
    site, index
        Where.
    side
        The sign it keeps, +1 or −1; 0 if not known yet.
    min, max
        Extremes seen; NaN if not known.
    seen
        The survey's most extreme value on the other side where the feature acts; NaN if there is none.
    rate, rate_bound, n_tokens
        Rate of the other sign over tokens, its upper bound a unit, tokens surveyed (0: no survey).
    """

    site: str
    index: int
    side: int = 0
    min: float = float("nan")
    max: float = float("nan")
    seen: float = float("nan")
    rate: float = float("nan")
    rate_bound: float = float("nan")
    n_tokens: int = 0

    @classmethod
    def of(cls, given: Any) -> Feature:
        """A feature from a `OneSided`, a `Reversal`, a `Feature`, or a tuple `(site, index)`.

        Raises
        ------
        ArgumentError
            If it is none of these.
        """
        if isinstance(given, cls):
            return given
        if isinstance(given, (tuple, list)) and len(given) == 2 and isinstance(given[0], str):
            return cls(given[0], integer(f"feature: index at {given[0]!r}", given[1]))
        inner = getattr(given, "feature", None)
        if isinstance(inner, cls):
            return inner
        if hasattr(given, "site") and hasattr(given, "index") and hasattr(given, "side"):
            names = ("min", "max", "rate", "rate_bound", "n_tokens")
            known = {key: getattr(given, key) for key in names if hasattr(given, key)}
            seen = getattr(given, "seen", None)
            known["seen"] = float("nan") if seen is None else float(seen)
            index = integer(f"feature: index at {given.site!r}", given.index)
            return cls(str(given.site), index, side_sign(given.side), **known)
        raise ArgumentError(f"feature: expected a one-sided feature or (site, index), found {given!r}")

    @property
    def name(self) -> str:
        """Site and neuron, as tables print them."""
        return f"{self.site}[{self.index}]"

    @property
    def place(self) -> tuple[int, str] | None:
        """Layer and point (`pre`, `pre_linear`, `post`) of an MLP site; None elsewhere."""
        match = _MLP.match(self.site)
        return (int(match[1]), match[2]) if match else None

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {key: to_plain(getattr(self, key)) for key in self.__dataclass_fields__}


def side_sign(side: Any) -> int:
    """+1 or −1 for any way to write a side."""
    if isinstance(side, str):
        return {"positive": 1, "+": 1, "negative": -1, "-": -1}.get(side, 0)
    return int(np.sign(side)) if side is not None else 0


@dataclass(frozen=True)
class Dose:
    """A value that a feature is set to.

    Attributes
    ----------
    name
        `mean`, `zero`, `seen` (the most extreme value seen on the other side where X acts), and the extrapolated
        `survey extreme` (seen, but with the gate shut), `minus mean`, `mirror` (of the extreme on its own side).
    value
        The value.
    extrapolated
        Whether it goes beyond what was seen on the other side where X acts: shown, never decisive.
    crosses
        Whether X is then on its other side.
    """

    name: str
    value: float
    extrapolated: bool
    crosses: bool

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {key: to_plain(getattr(self, key)) for key in self.__dataclass_fields__}


@dataclass(frozen=True)
class Profile:
    """What clean runs say of a feature where it acts.

    Attributes
    ----------
    feature
        The feature, its side and extremes filled in.
    mean, sd
        Of X over rows where it acts.
    other
        Its most extreme value on the other side over those rows and the survey's tokens where it acts, or NaN where it
        never was there.
    n_acts, n_crossed
        Rows where it acts, and those of them with X on the other side.
    mirrorable
        Whether values on the other side reach the rest of the model at all.
    note
        Why not.
    """

    feature: Feature
    mean: float
    sd: float
    other: float
    n_acts: int
    n_crossed: int
    mirrorable: bool
    note: str

    def plausibility(self, value: float) -> float:
        """(t − mean)/sd of X where it acts."""
        return (value - self.mean) / self.sd if self.sd > 0 else float("inf")

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {key: to_plain(getattr(self, key)) for key in self.__dataclass_fields__}


def profiles(model: Model, features: Sequence[Feature], sweeps: Sequence[Sweep]) -> list[Profile]:
    """Clean statistics of features over prepared sequences: one pass for all of them.

    Raises
    ------
    SiteError
        If a site is unknown, or an index is outside it.
    """
    wanted: dict[str, list[int]] = {}
    for feature in features:
        width = model.site_width(feature.site)
        if feature.site.endswith("attn.hook_pattern"):
            raise SiteError(
                f"site {feature.site!r}: expected a site with as many values at every token, found one whose "
                "columns are the keys of each sequence"
            )
        if not 0 <= feature.index < width:
            raise SiteError(f"site {feature.site!r}: expected an index of 0 to {width - 1}, found {feature.index}")
        wanted.setdefault(feature.site, []).append(feature.index)
        if _has_gate(model, feature):
            wanted.setdefault(gate_site(feature), []).append(feature.index)
    columns = {site: sorted(set(indices)) for site, indices in wanted.items()}
    sites = list(columns)
    gathered: list[list[Floats]] = [[] for _ in sites]
    for sweep in sweeps:
        for kept, chunks in zip(gathered, sweep.many_values([(site, columns[site]) for site in sites]), strict=True):
            kept.extend(chunks)
    table = {site: np.concatenate(chunks).astype(np.float64) for site, chunks in zip(sites, gathered, strict=True)}

    def column(site: str, index: int) -> NDArray[np.float64]:
        return np.asarray(table[site][:, columns[site].index(index)])

    out = []
    for feature in features:
        x = column(feature.site, feature.index)
        acts = np.ones(len(x), bool)
        if _has_gate(model, feature):
            acts = acting(column(gate_site(feature), feature.index))
        out.append(_profile(model, feature, x[acts], x))
    return out


def acting(gate: NDArray[Any]) -> NDArray[np.bool_]:
    """Where a gate lets its linear part through: above 0, or at its most open rows where that is nearly nowhere."""
    acts = gate > GATE_OPEN
    if np.count_nonzero(acts) < min(MIN_ACTS, len(gate)):
        acts = gate >= np.sort(gate)[-min(MIN_ACTS, len(gate))]
    return np.asarray(acts)


def _has_gate(model: Model, feature: Feature) -> bool:
    return model.cfg.gated_mlp and feature.place is not None and feature.place[1] == "pre_linear"


def gate_site(feature: Feature) -> str:
    """The gate's pre-activation in front of a linear part."""
    return feature.site.removesuffix("_linear")


def _profile(model: Model, feature: Feature, x: NDArray[np.float64], everywhere: NDArray[np.float64]) -> Profile:
    mean, sd = float(x.mean()), float(x.std(ddof=1)) if len(x) > 1 else 0.0
    side = feature.side or (1 if mean >= 0 else -1)
    low = np.nanmin([feature.min, everywhere.min()])
    high = np.nanmax([feature.max, everywhere.max()])
    crossed = x[x * side < 0]
    other = float(crossed.min() if side > 0 else crossed.max()) if len(crossed) else float("nan")
    if feature.seen * side < 0:
        other = float(np.fmin(other, feature.seen) if side > 0 else np.fmax(other, feature.seen))
    note = ""
    gate = feature.place is not None and feature.place[1] == "pre" and model.cfg.act_fn in _ONE_WAY
    if gate and side > 0:
        note = f"an always positive gate cannot be mirrored through {model.cfg.act_fn}: below 0 it is off, as at 0"
    filled = replace(feature, side=side, min=float(low), max=float(high))
    return Profile(filled, mean, sd, other, len(x), len(crossed), not note, note)


def asked_doses(asked: Any) -> list[float | str | Dose] | None:
    """Doses as they are asked for: numbers that float32 can hold, names, or `Dose`s; None for the default ones.

    Raises
    ------
    ArgumentError
        If they are anything else.
    """
    if asked is None:
        return None
    wanted = "a list of finite float32 numbers or names"
    chosen: list[float | str | Dose] = []
    for one in listed("doses", asked, wanted):
        value = one.value if isinstance(one, Dose) else one
        number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
        if not isinstance(one, str) and not (number and abs(value) <= LARGEST):
            raise ArgumentError(f"doses: expected {wanted}, found {one!r}")
        chosen.append(one if isinstance(one, (str, Dose)) else float(one))
    return chosen


def doses(profile: Profile, asked: Sequence[float | str | Dose] | None = None) -> list[Dose]:
    """The doses of a feature, by default `mean`, `zero`, `seen` and the extrapolated ones; or those asked for.

    Raises
    ------
    ArgumentError
        If a dose's name is unknown or a number is not finite.
    """
    feature = profile.feature
    side = feature.side
    extreme = feature.max if side > 0 else feature.min
    survey = feature.min if side > 0 else feature.max
    known = {
        "mean": profile.mean,
        "zero": 0.0,
        "seen": profile.other,
        "survey extreme": survey if survey * side < 0 else float("nan"),
        "minus mean": -profile.mean,
        "mirror": -extreme,
        "triple mirror": -3 * extreme,
    }
    if asked is None:
        wanted: list[float | str | Dose] = ["mean", "zero", "seen"]
        if profile.mirrorable:
            wanted += ["survey extreme", "minus mean", "mirror"]
    else:
        wanted = asked_doses(asked) or []
    out: list[Dose] = []
    for one in wanted:
        if isinstance(one, Dose):
            out.append(one)
            continue
        name = one if isinstance(one, str) else f"{float(one):g}"
        if isinstance(one, str) and one not in known:
            raise ArgumentError(f"doses: expected numbers or names of {', '.join(known)}, found {one!r}")
        value = known[one] if isinstance(one, str) else float(one)
        if not np.isfinite(value):
            continue
        crosses = value * side < 0
        beyond = crosses and not (np.isfinite(profile.other) and value * side >= profile.other * side)
        if name == "survey extreme" and any(dose.name == "seen" and dose.value == value for dose in out):
            continue
        out.append(Dose(name, float(value), bool(beyond), bool(crosses)))
    return out


def edit_index(model: Model, feature: Feature) -> int | tuple[int, int]:
    """The feature as an `Edit` names it: `(head, dim)` where the site has heads."""
    _, heads, width = model._core.site(feature.site)
    return feature.index if heads is None else divmod(feature.index, width // heads)


class Moves:
    """How the MLP's normalised input h is moved so that X changes by one, the least possible, by two measures of least.

    The direction is u = w/‖w‖² by norm, and u = Σw/(wᵀΣw) by the covariance Σ of h over the sequences at hand. No site
    lies between the norm and the input maps, so a move is held as what it adds to every neuron: W u.
    """

    def __init__(self, model: Model, background: Sequence[Sweep]) -> None:
        self.model = model
        self.background = list(background)
        self._moves: dict[tuple[str, int, str], list[tuple[str, Floats]]] = {}
        self._inputs: dict[int, Floats] = {}

    def of(self, feature: Feature, metric: Metric) -> list[tuple[str, Floats]]:
        """For each input map of the layer its site and W u, `[d_mlp]`.

        Raises
        ------
        ArgumentError
            If the feature is not an MLP's input.
        """
        key = (feature.site, feature.index, metric)
        if key not in self._moves:
            place = feature.place
            if place is None or place[1] == "post":
                raise ArgumentError(f"tier: expected a feature that the MLP's input map writes, found {feature.site}")
            layer, point = place
            core = self.model._core
            maps = {"pre": np.asarray(core.weight_matrix("in", layer), np.float64)}
            if self.model.cfg.gated_mlp:
                maps["pre_linear"] = np.asarray(core.weight_matrix("in_linear", layer), np.float64)
            w = maps[point][feature.index]
            u = w / (w @ w)
            if metric == "covariance":
                h = self._input(layer).astype(np.float64)
                centred = h - h.mean(0)
                moved = centred.T @ (centred @ w) / max(1, len(h) - 1)
                if w @ moved > 0:
                    u = moved / (w @ moved)
            self._moves[key] = [
                (f"blocks.{layer}.mlp.hook_{name}", np.asarray(matrix @ u, np.float32)) for name, matrix in maps.items()
            ]
        return self._moves[key]

    def _input(self, layer: int) -> Floats:
        """The MLP's normalised input, gain and bias included, over all rows at hand."""
        if layer not in self._inputs:
            site = f"blocks.{layer}.hook_resid_mid"
            rows = np.concatenate([chunk for sweep in self.background for chunk in sweep.values(site)]).astype(
                np.float64
            )
            core = self.model._core
            eps = float(json.loads(core.spec())["norm_eps"])
            if self.model.cfg.normalization == "LN":
                rows = rows - rows.mean(1, keepdims=True)
            rows /= np.sqrt((rows**2).mean(1, keepdims=True) + eps)
            gain = np.asarray(core.weight_row("mlp_norm_gain", layer, 0), np.float64)
            bias = np.asarray(core.weight_row("mlp_norm_bias", layer, 0), np.float64)
            self._inputs[layer] = np.asarray(rows * gain + bias, np.float32)
        return self._inputs[layer]


def tiers_of(feature: Feature) -> list[tuple[Tier, Metric]]:
    """The tiers that exist at the feature's site."""
    place = feature.place
    if place is None or place[1] == "post":
        return [("T0", "")]
    return [("T0", ""), ("T1", "norm"), ("T1", "covariance")]


class Tiers:
    """Edits that bring a feature to a value over a sweep's rows.

    T0 overwrites X itself. T1 moves the MLP's normalised input by δ = (t − X) u (see `Moves`), so that every unit of
    the layer responds: W δ is added to each.
    """

    def __init__(self, moves: Moves, sweep: Sweep) -> None:
        self.moves = moves
        self.sweep = sweep
        self._clean: dict[tuple[str, int], list[Floats]] = {}

    def edits(self, feature: Feature, value: float, tier: Tier = "T0", metric: Metric = "") -> list[RowEdit]:
        """The edits of one variant.

        Raises
        ------
        ArgumentError
            If the tier does not exist at the site.
        """
        if tier == "T0":
            return [RowEdit(feature.site, "set", (feature.index,), float(value))]
        if (tier, metric) not in tiers_of(feature):
            raise ArgumentError(f"tier: expected one that {feature.site} has, found {tier} by {metric!r}")
        key = (feature.site, feature.index)
        if key not in self._clean:
            self._clean[key] = self.sweep.values(feature.site, [feature.index])
        clean = self._clean[key]
        out = []
        for site, vector in self.moves.of(feature, metric):

            def rows(c: int, vector: Floats = vector) -> Floats:
                return np.asarray((np.float32(value) - clean[c]) * vector[None, :], np.float32)

            out.append(RowEdit(site, "add", None, rows))
        return out
