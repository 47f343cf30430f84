"""One-sided features: those of a survey that kept one sign, and with what certainty."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from signflip import checks

if TYPE_CHECKING:
    from signflip.objectives import Objective
    from signflip.survey import SiteSurvey, Survey


@dataclass(frozen=True)
class OneSided:
    """A feature that kept one sign on all, or all but a few, of the surveyed tokens.

    Attributes
    ----------
    site, index
        Where.
    side
        The sign it kept, 1 or -1.
    n_tokens, n_units
        Tokens and units (documents, cut into contexts where longer) seen.
    rate
        Observed rate of the other sign, over tokens.
    rate_bound
        Upper bound on the probability that a new unit holds the other sign, valid for all features of the survey at
        once: exact binomial (Clopper-Pearson) over units, Bonferroni over every feature looked at.
    min, max
        Extremes seen.
    margin
        How far the value nearest to the other side stayed from zero; negative: how far it crossed.
    reach
        The furthest value on the other side that the norm in front of the layer permits at all (on the own side of
        zero if it does not permit any); None where no bound is known.
    certified
        Whether the reach does not cross: one-sided for every input.
    mean, std
        Of all values seen.
    seen
        The most extreme value seen on the other side where the feature acts (the linear part of a gated MLP: where its
        gate is open; others: anywhere); None if there was none.
    """

    site: str
    index: int
    side: int
    n_tokens: int
    n_units: int
    rate: float
    rate_bound: float
    min: float
    max: float
    margin: float
    reach: float | None
    certified: bool
    mean: float = float("nan")
    std: float = float("nan")
    seen: float | None = None

    def flip(self, position: Any = -1) -> Objective:
        """The objective that is positive exactly when the feature is on the other side."""
        from signflip.objectives import neuron

        objective = neuron(self.site, self.index, position)
        return -objective if self.side > 0 else objective

    def __str__(self) -> str:
        sign = "positive" if self.side > 0 else "negative"
        seen = (
            f"on {self.n_tokens} tokens"
            if self.rate == 0
            else f"but for a rate of {self.rate:.2g} of {self.n_tokens} tokens"
        )
        bound = "for every input (certified)" if self.certified else f"at most {self.rate_bound:.2g} of units cross"
        return f"{self.site}[{self.index}]: {sign} {seen}, {self.min:.4g} to {self.max:.4g}; {bound}"


class OneSidedList(list[OneSided]):
    """A list of one-sided features."""

    def table(self, limit: int | None = 30) -> str:
        """The first features as a table."""
        head = (
            "site",
            "index",
            "side",
            "tokens",
            "units",
            "rate",
            "bound",
            "min",
            "max",
            "margin",
            "reach",
            "certified",
        )
        rows = [head] + [
            (
                one.site,
                str(one.index),
                "+" if one.side > 0 else "-",
                str(one.n_tokens),
                str(one.n_units),
                f"{one.rate:.2g}",
                f"{one.rate_bound:.2g}",
                f"{one.min:.4g}",
                f"{one.max:.4g}",
                f"{one.margin:.4g}",
                "" if one.reach is None else f"{one.reach:.4g}",
                "yes" if one.certified else "",
            )
            for one in self[:limit]
        ]
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        lines = [
            "  ".join([row[0].ljust(widths[0])] + [c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)])
            for row in rows
        ]
        if limit is not None and len(self) > limit:
            lines.append(f"... and {len(self) - limit} more")
        return "\n".join(lines)

    def to_json(self) -> str:
        """The features as a JSON array of objects."""
        return json.dumps([asdict(one) for one in self])

    def to_dataframe(self) -> Any:
        """The features as a pandas DataFrame, one row each.

        Raises
        ------
        ImportError
            If pandas is not installed.
        """
        import pandas as pd

        return pd.DataFrame([asdict(one) for one in self], columns=list(OneSided.__dataclass_fields__))


def rate_bound(hits: NDArray[np.int64], n: int, alpha: float) -> NDArray[np.float64]:
    """One-sided exact upper limit of a binomial rate (Clopper and Pearson, 1934).

    Parameters
    ----------
    hits
        How many of `n` units.
    n
        Units.
    alpha
        Probability that a limit is below its rate.
    """
    hits = np.asarray(hits, np.int64)
    # isf keeps the precision that 1 - alpha would lose.
    limit = beta.isf(alpha, hits + 1, np.maximum(n - hits, 1))
    return np.where(hits < n, limit, 1.0)


def find(survey: Survey, max_rate: float, confidence: float) -> OneSidedList:
    """The features of a survey that kept one sign: see `Survey.one_sided`."""
    max_rate = checks.number("max_rate", max_rate, 0, math.nextafter(1, 0), "a number of at least 0 and below 1")
    confidence = checks.number(
        "confidence", confidence, math.nextafter(0, 1), math.nextafter(1, 0), "a number between 0 and 1"
    )
    alpha = (1 - confidence) / survey.n_features
    found = [one for site in survey.sites for one in _of_site(survey[site], max_rate, alpha)]
    found.sort(key=lambda one: (one.rate, -_relative(one.margin, one.std), one.site, one.index))
    return OneSidedList(found)


def _relative(margin: float, std: float) -> float:
    return margin / std if std > 0 else float(np.copysign(np.inf, margin)) if margin else 0.0


def _of_site(site: SiteSurvey, max_rate: float, alpha: float) -> list[OneSided]:
    if site.n_tokens == 0:
        return []
    above = site.positive >= site.negative
    other = np.where(above, site.negative, site.positive)
    chosen = np.flatnonzero((site.positive + site.negative > 0) & (other <= max_rate * site.n_tokens))
    above, other = above[chosen], other[chosen]
    units = np.where(above, site.units_negative[chosen], site.units_positive[chosen])
    bounds = rate_bound(units, site.n_units, alpha)
    low, high = site.min[chosen].astype(float), site.max[chosen].astype(float)
    margin = np.where(above, low, -high)
    reach = None if site.reach is None else np.where(above, site.reach[chosen, 0], site.reach[chosen, 1])
    mean, std = site.mean[chosen], np.sqrt(site.var[chosen])
    if site.acting_min is None or site.acting_max is None:
        acting = np.where(above, low, high)
    else:
        acting = np.where(above, site.acting_min[chosen], site.acting_max[chosen]).astype(float)
    return [
        OneSided(
            site=site.name,
            index=int(index),
            side=side,
            n_tokens=site.n_tokens,
            n_units=site.n_units,
            rate=float(other[i]) / site.n_tokens,
            rate_bound=float(bounds[i]),
            min=float(low[i]),
            max=float(high[i]),
            margin=float(margin[i]),
            reach=None if reach is None else float(reach[i]),
            certified=reach is not None and bool(reach[i] * side >= 0),
            mean=float(mean[i]),
            std=float(std[i]),
            seen=float(acting[i]) if np.isfinite(acting[i]) and acting[i] * side < 0 else None,
        )
        for i, index in enumerate(chosen)
        for side in (1 if above[i] else -1,)
    ]
