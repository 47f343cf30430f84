"""How errors are judged: ours against those of transformers' own float32 eager run, both from a float64 reference.

A second correct float32 implementation has, array by array, up to 6 times the error of the first by luck alone, so
errors are pooled over the sequences of a quantity (root mean square), and asked: median at most 1.5, at most 1% above
2, none above 4. Deliberate mistakes (eps, GELU's form, a window, a scale) score from 47 to millions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

HALF_ULP = 2.0**-25  # a correctly rounded float32 is off by about this much, relative to its size


class Pool:
    """Sums of squared errors of named quantities, ours and the peer's, over sequences."""

    def __init__(self) -> None:
        self.sums: dict[str, dict[str, list[float]]] = {}

    def add(self, name: str, exact: npt.ArrayLike, peer: npt.ArrayLike, ours: npt.ArrayLike, part: str = "") -> None:
        """Adds one sequence's values of one quantity. Parts of a quantity differ in scale and count alike."""
        e, p, o = (np.asarray(x, dtype=np.float64) for x in (exact, peer, ours))
        assert e.shape == p.shape == o.shape, f"{name}: shape {o.shape}, expected {e.shape}"
        assert np.isfinite(o).all(), f"{name}: not finite"
        sums = self.sums.setdefault(name, {}).setdefault(part, [0.0, 0.0, 0.0])
        for i, x in enumerate((o - e, p - e, e)):
            sums[i] += float((x * x).sum())

    def ratios(self) -> dict[str, float]:
        """Our error divided by the peer's, a quantity.

        Where the peer is exact by luck (a sum of one term), nobody is asked to be better than a correctly rounded
        float32; where the exact value is zero and the peer's is, ours must be.
        """
        out = {}
        for name, parts in self.sums.items():
            assert all(ours == 0 for ours, peer, size in parts.values() if size == peer == 0), f"{name}: not zero"
            scaled = [
                (ours / (size or peer), peer / (size or peer)) for ours, peer, size in parts.values() if size or peer
            ]
            ours, peer = (math.fsum(column) for column in zip(*scaled, strict=True)) if scaled else (0.0, 0.0)
            floor = max(math.sqrt(peer), HALF_ULP * math.sqrt(len(scaled)))
            out[name] = math.sqrt(ours) / floor if floor > 0 else 0.0
        return out


def worst(ratios: Mapping[str, float], n: int = 8) -> str:
    """The largest ratios, for a message."""
    return ", ".join(f"{k} {v:.2f}" for k, v in sorted(ratios.items(), key=lambda item: -item[1])[:n])


def judge(ratios: Mapping[str, float]) -> None:
    """Asserts the three conditions over all quantities."""
    values = np.array(list(ratios.values()))
    assert values.max() <= 4, f"above 4: {worst(ratios)}"
    assert (values > 2).mean() <= 0.01, f"{(values > 2).sum()} of {len(values)} above 2: {worst(ratios)}"
    assert np.median(values) <= 1.5, f"median {np.median(values):.2f}"
