"""Intervals over seeds: the t interval of a mean, coverage at few seeds, and when there are no limits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom, sem, t

from signflip.organisms.experiments.natural.predictions import interval
from signflip.organisms.experiments.statistics import SHARE, correlated, mark, over_seeds, pearson, spearman

RNG_SEED = 20


def mean(runs: Sequence[dict[str, Any]]) -> float:
    values = [r["v"] for r in runs if "v" in r]
    return float(np.mean(values)) if values else float("nan")


def runs_of(values: Sequence[float]) -> list[dict[str, Any]]:
    return [{"seed": seed, "v": float(v)} for seed, v in enumerate(values)]


@pytest.mark.parametrize("n", [3, 5, 10])
def test_of_a_mean_it_is_students(n: int) -> None:
    values = np.random.default_rng(RNG_SEED).standard_normal(n)
    found = over_seeds(runs_of(values), mean)
    assert found[0] == pytest.approx(values.mean())
    assert found[1:] == pytest.approx(t.interval(0.95, n - 1, values.mean(), sem(values)))
    # Nothing is drawn.
    assert over_seeds(runs_of(values), mean) == found
    assert over_seeds(runs_of(values)[::-1], mean) == pytest.approx(found)
    # Runs of a seed go together: repeating each changes nothing.
    assert over_seeds(runs_of(values) * 4, mean) == pytest.approx(found)


@pytest.mark.parametrize("n", [3, 5, 10])
def test_coverage_is_nominal_at_few_seeds(n: int) -> None:
    times = 3000
    values = np.random.default_rng(RNG_SEED).standard_normal((times, n))
    found = [over_seeds(runs_of(row), mean) for row in values]
    covered = sum(low < 0 < high for _, low, high in found)
    assert binom.ppf(0.001, times, 0.95) <= covered <= binom.ppf(0.999, times, 0.95)
    # The percentiles of a bootstrap, given before, do not stand this.
    drawn = values[:, np.random.default_rng(0).integers(n, size=(500, n))].mean(2)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=1)
    assert np.sum((low < 0) & (high > 0)) < binom.ppf(0.001, times, 0.95)


def test_coverage_of_a_ratio_of_means() -> None:
    times, n = 1000, 10
    rng = np.random.default_rng(RNG_SEED)

    def ratio(runs: Sequence[dict[str, Any]]) -> float:
        over, under = np.mean([r["v"] for r in runs], 0)
        return float(over / under)

    found = [over_seeds([{"seed": i, "v": v} for i, v in enumerate(rng.normal((1, 2), 0.4, (n, 2)))], ratio)
             for _ in range(times)]  # fmt: skip
    covered = sum(low < 0.5 < high for _, low, high in found)
    # Not exact: a ratio is no mean.
    assert 0.93 <= covered / times <= 0.97


def pairs(runs: Sequence[dict[str, Any]]) -> float:
    return pearson([r["x"] for r in runs], [r["y"] for r in runs])


@pytest.mark.parametrize(("n", "rho"), [(5, 0.0), (10, 0.0), (10, 0.9)])
def test_coverage_of_a_correlation(n: int, rho: float) -> None:
    times, rng, covered = 800, np.random.default_rng(RNG_SEED), 0
    for _ in range(times):
        points = rng.multivariate_normal((0, 0), ((1, rho), (rho, 1)), n)
        value, low, high = correlated([{"seed": i, "x": x, "y": y} for i, (x, y) in enumerate(points)], pairs)
        assert -1 <= low < value < high <= 1
        covered += low < rho < high
    assert binom.ppf(0.001, times, 0.95) <= covered <= 0.985 * times


def test_no_limits_where_nothing_can_be_said() -> None:
    assert np.isnan(over_seeds(runs_of([1, 2]), mean)[1:]).all()
    # All alike: no seed says how far another would be from it.
    assert np.isnan(over_seeds(runs_of([0.1] * 7), mean)[1:]).all()
    # Three points less one are no correlation.
    three = [{"seed": i, "x": x, "y": y} for i, (x, y) in enumerate([(0, 0), (1, 2), (2, 1)])]
    found = correlated(three, pairs)
    assert found[0] == pytest.approx(0.5)
    assert np.isnan(found[1:]).all()


def test_seeds_without_a_part_do_not_count() -> None:
    """Else three seeds among ten would pass for ten, with nine degrees of freedom."""
    some = runs_of([1.0, 2.0, 4.0])
    without: list[dict[str, Any]] = [{"seed": seed} for seed in range(3, 10)]
    assert over_seeds([*some, *without], mean) == over_seeds(some, mean)
    assert np.isnan(over_seeds([*some[:2], *without], mean)[1:]).all()
    # One that is at the mean has a part, though the mean is the same without it.
    at = runs_of([1.0, 2.0, 3.0])
    assert over_seeds(at, mean)[1:] == pytest.approx(t.interval(0.95, 2, 2.0, sem([1, 2, 3])))


def test_limits_are_cut_where_a_number_cannot_go() -> None:
    assert over_seeds(runs_of([0.0, 1.0, 1.0, 1.0]), mean, SHARE)[2] == 1
    assert over_seeds(runs_of([0.0, 0.0, 1.0]), mean, SHARE)[1] == 0
    assert over_seeds(runs_of([0.0, 0.0, 1.0]), mean)[1] < 0
    points = np.random.default_rng(RNG_SEED).standard_normal((8, 5, 1)).repeat(2, 2)
    points[..., 1] += 0.3 * np.random.default_rng(1).standard_normal((8, 5))
    runs = [{"seed": i, "at": at} for i, at in enumerate(points)]
    found = correlated(runs, lambda rs: spearman(*np.concatenate([r["at"] for r in rs]).T.tolist()))
    assert 0 < found[1] < found[0] < found[2] <= 1


def test_a_claim_that_holds_inside_has_not_failed() -> None:
    def within(x: float) -> bool:
        return abs(x) < 0.2

    marks = [mark((0.0, *of), within, lambda x: not within(x)) for of in ((-0.1, 0.1), (-0.5, 0.6), (0.3, 0.6))]
    assert marks == ["held", "open", "failed"]


@pytest.mark.parametrize("seeds", [3, 10])
def test_natural_covers_when_seeds_names_and_templates_vary(seeds: int) -> None:
    times, sides, names, templates = 1000, 2, 20, 8
    rng = np.random.default_rng(RNG_SEED)
    covered = 0
    for _ in range(times):
        effects = (rng.normal(0, 1, (seeds, 1, 1, 1)), rng.normal(0, 1, (sides, names, 1)),
                   rng.normal(0, 0.5, (templates,)), rng.normal(0, 1, (seeds, sides, names, templates)))  # fmt: skip
        _, low, high = interval(list(np.asarray(sum(effects))))
        covered += low < 0 < high
    # Never too narrow; on the wide side.
    assert binom.ppf(0.001, times, 0.95) <= covered < times


def test_natural_of_seeds_alone_is_students() -> None:
    values = np.random.default_rng(RNG_SEED).standard_normal(6)
    found = interval([np.full((1, 1, 1), v) for v in values])
    assert found[1:] == pytest.approx(t.interval(0.95, 5, values.mean(), sem(values)))
