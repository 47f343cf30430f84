"""Controls by other units of the same layer: the same push on random neurons, and the same dose on two-sided ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from signflip.dosing import Feature, acting
from signflip.edits import Edit, PerSequence
from signflip.resample import Estimate, to_plain
from signflip.sweep import RowEdit, Sweep
from signflip.verdict import Divergence

if TYPE_CHECKING:
    from signflip.behaviours.prompts import Triggered
    from signflip.model import Model

Floats = NDArray[np.float32]
# Enough for a 95% quantile: the second largest of 20.
N_MATCHED = 20
# A neuron whose rarer sign has at least this share over the rows at hand is two-sided.
TWO_SIDED = 0.05
# Rows of plain text on which KL is taken, and rows where X acts.
TEXT_ROWS = 48
ACTS_ROWS = 16


def activate(name: str, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The MLP's nonlinearity, by its name in the checkpoint."""
    if name in ("silu", "swish"):
        return np.asarray(x / (1 + np.exp(-np.clip(x, -700, 700))))
    if name == "relu":
        return np.maximum(x, 0)
    if name in ("gelu", "gelu_python"):
        from scipy.special import ndtr

        return np.asarray(x * ndtr(x))
    return np.asarray(0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))))


class Layer:
    """The MLP of one layer over a sweep: clean activations of all neurons, and the norms of their output vectors."""

    def __init__(self, model: Model, sweep: Sweep, layer: int) -> None:
        self.model, self.sweep, self.layer = model, sweep, layer
        at = f"blocks.{layer}.mlp.hook_"
        self.sites = {"pre": at + "pre", "post": at + "post"}
        if model.cfg.gated_mlp:
            self.sites["pre_linear"] = at + "pre_linear"
        names = list(self.sites)
        arrays = sweep.many_values([(self.sites[name], None) for name in names])
        self.clean = dict(zip(names, arrays, strict=True))
        self.out = np.asarray(model._core.weight_matrix("out", layer), np.float64)
        self.norm = np.linalg.norm(self.out, axis=1)

    def shift(self, feature: Feature, value: float) -> list[Floats]:
        """How far the neuron's output activation moves at each row when X is set to a value: `[rows]` a chunk."""
        place = feature.place
        if place is None:
            return [np.zeros(len(chunk), np.float32) for chunk in self.clean["post"]]
        i = feature.index
        moved = []
        for c, post in enumerate(self.clean["post"]):
            if place[1] == "post":
                new = np.full(len(post), value)
            elif place[1] == "pre_linear":
                new = activate(self.model.cfg.act_fn, self.clean["pre"][c][:, i].astype(np.float64)) * value
            else:
                new = np.full(len(post), float(activate(self.model.cfg.act_fn, np.asarray([value]))[0]))
                if self.model.cfg.gated_mlp:
                    new = new * self.clean["pre_linear"][c][:, i]
            moved.append(np.asarray(new - post[:, i], np.float32))
        return moved

    def push(self, feature: Feature, value: float, neuron: int) -> list[RowEdit]:
        """Moves another neuron's output by as much, row by row, as setting X moves the output of X's neuron."""
        shift = self.shift(feature, value)
        ratio = np.float32(self.norm[feature.index] / max(self.norm[neuron], 1e-30))
        return [RowEdit(self.sites["post"], "add", (neuron,), lambda c: shift[c][:, None] * ratio)]

    def carry(self, feature: Feature, moved: Sequence[Floats], inserted: Sequence[Triggered], neuron: int) -> Edit:
        """Moves another neuron's output after a string by as much as X's neuron's was moved (`moved`, after another).

        Where fewer positions follow the string than were measured, the last ones count.
        """
        ratio = np.float32(self.norm[feature.index] / max(self.norm[neuron], 1e-30))
        n = [min(len(one), put.n_after) for one, put in zip(moved, inserted, strict=True)]
        return Edit(
            self.sites["post"],
            "add",
            PerSequence([one[len(one) - k :] * ratio for one, k in zip(moved, n, strict=True)]),
            index=neuron,
            positions=PerSequence([list(range(-k, 0)) for k in n]),
        )

    def matched(self, feature: Feature, n: int = N_MATCHED, seed: int = 0) -> list[int]:
        """Random neurons among those whose output norm is nearest to that of X's neuron."""
        distance = np.abs(np.log(np.maximum(self.norm, 1e-30) / max(self.norm[feature.index], 1e-30)))
        distance[feature.index] = np.inf
        nearest = np.argsort(distance, kind="stable")[: min(5 * n, len(distance) - 1)]
        rng = np.random.Generator(np.random.Philox(seed))
        return [int(i) for i in rng.permutation(nearest)[:n]]

    def mean_acting(self, point: str, neuron: int) -> float:
        """A neuron's mean at a point over the rows where it acts: where its gate is open, if it has one."""
        x = np.concatenate([chunk[:, neuron] for chunk in self.clean[point]])
        if point != "pre_linear":
            return float(x.mean())
        gate = np.concatenate([chunk[:, neuron] for chunk in self.clean["pre"]])
        return float(x[acting(gate)].mean())

    def two_sided(self, point: str, n: int) -> list[int]:
        """The neurons with both signs at a point that write most, by the norm of what they add."""
        x = np.concatenate(self.clean[point])
        rarer = np.minimum((x > 0).mean(0), (x < 0).mean(0))
        size = np.sqrt((np.concatenate(self.clean["post"]).astype(np.float64) ** 2).mean(0)) * self.norm
        size[rarer < TWO_SIDED] = -1.0
        order = np.argsort(-size, kind="stable")
        return [int(i) for i in order[:n] if size[i] > 0]


def text_divergences(
    layer: Layer | None,
    sweep: Sweep,
    variants: Sequence[Sequence[RowEdit]],
    feature: Feature,
    skip: Sequence[int],
    bounds_at: Sequence[float | None] = (),
    n: int = N_MATCHED,
) -> list[Divergence]:
    """KL of edits over tokens other than the answers (`skip`), on plain text and where X acts there.

    `bounds_at` holds for each edit a value of X, or None: with one, there are also the 95% quantiles over `n` units of
    X's layer whose output is moved by as much as X's own when it is set to that value.
    """
    acts = np.concatenate(acting_rows(layer, sweep, feature))
    # Whole rows of logits cost as much as the model: some of the rows everywhere, and those where X acts.
    spread = np.zeros(len(acts), bool)
    spread[:: max(1, len(acts) // TEXT_ROWS)] = True
    rows = np.flatnonzero(spread | acts)
    matched = [] if layer is None or not any(at is not None for at in bounds_at) else layer.matched(feature, n)
    pushed = {at: i for i, at in enumerate(dict.fromkeys(at for at in bounds_at if at is not None and matched))}
    controls = [layer.push(feature, at, neuron) for at in pushed for neuron in matched if layer is not None]
    kl = sweep.divergence(rows, [*variants, *controls], skip)
    text = kl[:, spread[rows]].mean(1)
    where = kl[:, acts[rows]].mean(1)
    out = []
    for v, at in zip(range(len(variants)), bounds_at or [None] * len(variants), strict=True):
        own = float(text[v]), float(where[v])
        if at not in pushed:
            out.append(Divergence(*own))
            continue
        first = len(variants) + pushed[at] * len(matched)
        text_bound, acts_bound = (float(np.quantile(one[first : first + len(matched)], 0.95)) for one in (text, where))
        out.append(Divergence(*own, text_bound, acts_bound, len(matched)))
    return out


def acting_rows(layer: Layer | None, sweep: Sweep, feature: Feature) -> list[NDArray[np.bool_]]:
    """The rows at which X's neuron (or the feature itself) is largest in size."""
    if layer is not None:
        size = [np.abs(chunk[:, feature.index]) for chunk in layer.clean["post"]]
    else:
        size = [np.abs(chunk[:, 0]) for chunk in sweep.values(feature.site, [feature.index])]
    flat = np.concatenate(size)
    bound = np.sort(flat)[-min(ACTS_ROWS, len(flat))]
    return [one >= bound for one in size]


@dataclass(frozen=True)
class TwoSided:
    """What the same dose does on two-sided neurons of the same layer that carry an equal share.

    Attributes
    ----------
    neurons, shares
        Which, and their p.
    s
        S of each at −k times its own mean.
    looked
        How many were looked at.
    """

    neurons: tuple[int, ...]
    shares: tuple[float, ...]
    s: tuple[float, ...]
    looked: int

    @property
    def lowest(self) -> float | None:
        """The most reversed of them; None where none has an equal share."""
        return min(self.s) if self.s else None

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {key: to_plain(getattr(self, key)) for key in self.__dataclass_fields__}


def exceeds(s: Estimate, prediction: float, twins: TwoSided | None, margin: float) -> bool:
    """Whether a reversal is more than arithmetic: below the line, and below two-sided neurons of equal p."""
    below_line = s.upper < prediction - margin
    below_twins = twins is not None and twins.lowest is not None and s.upper < twins.lowest - margin
    return bool(below_line and below_twins)
