"""Reach: how far a feature can go at all, whatever the input."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from signflip import _core
from signflip.errors import ArgumentError


def reach(model: Any, site: str) -> NDArray[np.float64] | None:
    r"""The interval that each feature of a site can never leave.

    In front of a linear map stands a norm, and a norm bounds its output: over `d` dimensions an RMS norm gives `u` with
    :math:`\|u\|^2 \le d`, a LayerNorm moreover :math:`\sum u = 0`. With gain `g`, norm bias `β`, weights `w` and bias
    `b` the feature is :math:`w \cdot (g \circ u + \beta) + b`, so it lies within :math:`\sqrt d\, \|w \circ g\|` of
    :math:`w \cdot \beta + b` (for LayerNorm, with the mean of `w∘g` removed). Both ends are attained by `u` along
    `±w∘g`. Behind the activation: the image of that interval; for a gated product: the product of intervals, which
    need not be attained. Where a site's value depends on nothing but the token (the embedding; at layer 0 of models
    without learned positions the residual, queries, keys before rotary, and values), the bound is exact: every token of
    the vocabulary is tried.

    Parameters
    ----------
    model
        A loaded model.
    site
        A site's full name.

    Returns
    -------
    float64 array `[width, 2]` or None
        Lowest and highest value of each feature; None where no bound is known. Bounds of linear maps are widened by the
        worst rounding of float32 arithmetic, so that they hold for what the engine computes (for LayerNorm: if the
        residual's mean is at most 1024 of its standard deviations).

    Raises
    ------
    SiteError
        If the model has no such site.
    ArgumentError
        If `site` is no text.
    """
    if not isinstance(site, str):
        raise ArgumentError(f"site: expected a site's name, found {site!r}")
    found: NDArray[np.float64] | None = _core.reach(model._core, site)
    return found
