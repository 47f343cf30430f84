"""Resampling over clusters: the bootstrap that intervals come from, and the sign-flip test that p-values come from."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Up to this many clusters every assignment of signs is counted; beyond it they are drawn.
EXACT = 16
DRAWS = 1 << 16


@dataclass(frozen=True)
class Estimate:
    """A number with its uncertainty.

    Attributes
    ----------
    value
        The point estimate.
    low, high
        The two-sided 95% interval.
    lower, upper
        The one-sided 95% limits, which decide.
    """

    value: float
    low: float
    high: float
    lower: float
    upper: float

    @classmethod
    def of(cls, value: float, replicates: Array) -> Estimate:
        """An estimate from its bootstrap replicates (percentiles; replicates that are not finite are left out)."""
        finite = replicates[np.isfinite(replicates)]
        if not np.isfinite(value) or len(finite) == 0:
            return cls(float(value), *([float("nan")] * 4))
        low, high, lower, upper = np.percentile(finite, [2.5, 97.5, 5.0, 95.0])
        return cls(float(value), float(low), float(high), float(lower), float(upper))

    @classmethod
    def from_json(cls, plain: dict[str, float | None]) -> Estimate:
        """What `to_json` gave."""
        return cls(**{key: float("nan") if number is None else float(number) for key, number in plain.items()})

    def __format__(self, spec: str) -> str:
        spec = spec or ".2f"
        return f"{self.value:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"

    def to_json(self) -> dict[str, float | None]:
        """As plain data, what is not finite as None."""
        fields = {"value": self.value, "low": self.low, "high": self.high, "lower": self.lower, "upper": self.upper}
        return {key: number if np.isfinite(number) else None for key, number in fields.items()}


def cluster_weights(
    items: Sequence[Hashable], templates: Sequence[Hashable], strata: Sequence[Hashable], replicates: int, seed: int
) -> Array:
    """Weights of a bootstrap that resamples items and templates jointly: the product of both draws.

    Within each stratum n − 1 of n clusters are drawn and weighted by n / (n − 1), so that the variance of a mean is
    that of n clusters without bias (Rao & Wu 1988). A stratum with a single cluster is kept as it is.

    Parameters
    ----------
    items, templates
        The clusters of each prompt.
    strata
        Items are drawn within these (the sides that an item occurs on).
    replicates, seed
        Number of replicates, and the seed that fixes them.

    Returns
    -------
    float64 array `[replicates, prompts]`.
    """
    rng = np.random.Generator(np.random.Philox(seed))
    weights = np.ones((replicates, len(items)))
    for labels, groups in ((items, strata), (templates, [0] * len(templates))):
        for stratum in sorted(set(groups), key=repr):
            members = [i for i, group in enumerate(groups) if group == stratum]
            names = sorted({labels[i] for i in members}, key=repr)
            n = len(names)
            if n < 2:
                continue
            draws = rng.multinomial(n - 1, np.full(n, 1 / n), size=replicates) * (n / (n - 1))
            place = {name: k for k, name in enumerate(names)}
            weights[:, members] *= draws[:, [place[labels[i]] for i in members]]
    return weights


def cluster_means(values: Array, clusters: Sequence[Hashable]) -> Array:
    """Mean of each cluster, clusters in sorted order."""
    names = sorted(set(clusters), key=repr)
    place = {name: k for k, name in enumerate(names)}
    index = np.asarray([place[one] for one in clusters])
    return np.bincount(index, values, len(names)) / np.bincount(index, minlength=len(names))


def sign_flip(values: Array, seed: int = 0) -> float:
    """One-sided p-value that the mean of clusters is not below 0, by flipping the signs of whole clusters.

    Exact for up to 16 clusters; else 65,536 seeded draws, the observed signs counted among them.
    """
    n = len(values)
    if n == 0 or not np.isfinite(values).all():
        return 1.0
    observed = values.sum()
    # Sums within rounding of the observed one are ties, and count.
    slack = 1e-12 * np.abs(values).sum()
    # Flipping a cluster changes the sum by twice its value.
    below = np.count_nonzero(observed - 2 * (_flips(n, seed) @ values) <= observed + slack)
    return float(below / (1 << n)) if n <= EXACT else float((1 + below) / (DRAWS + 1))


@lru_cache(maxsize=8)
def _flips(n: int, seed: int) -> Array:
    """Which clusters to flip, `[assignments, n]`: every assignment for few clusters, else seeded draws."""
    if n <= EXACT:
        return np.asarray((np.arange(1 << n)[:, None] >> np.arange(n)) & 1, np.float64)
    rng = np.random.Generator(np.random.Philox(seed))
    return rng.integers(0, 2, size=(DRAWS, n), dtype=np.int8).astype(np.float64)


def holm(p: Sequence[float]) -> list[float]:
    """P-values adjusted for the number of tests (Holm 1979): reject where at most the level."""
    order = np.argsort(np.asarray(p, float), kind="stable")
    adjusted = [1.0] * len(p)
    running = 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(p) - rank) * float(p[i])))
        adjusted[int(i)] = running
    return adjusted


def to_plain(value: Any) -> Any:
    """Numpy numbers, tuples and numbers that are not finite as JSON has them."""
    if isinstance(value, dict):
        return {str(key): to_plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(one) for one in value]
    if isinstance(value, np.ndarray):
        return to_plain(value.tolist())
    if isinstance(value, (np.integer, np.bool_)):
        return value.item()
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    if hasattr(value, "to_json"):
        return to_plain(value.to_json())
    return value
