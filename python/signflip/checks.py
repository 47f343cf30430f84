"""Checks of arguments that are not the engine's: one sentence that names the argument."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from signflip.errors import ArgumentError


def integer(name: str, value: Any, low: int | None = None, high: int | None = None) -> int:
    """A whole number within limits, of any integer type (booleans are none).

    Raises
    ------
    ArgumentError
        Otherwise.
    """
    wanted = "an integer"
    if low is not None or high is not None:
        wanted += f" {low} to {high}" if low is not None and high is not None else f" of at least {low}"
    try:
        found = None if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        found = None
    if found is None or (low is not None and found < low) or (high is not None and found > high):
        raise ArgumentError(f"{name}: expected {wanted}, found {value!r}")
    return found


def listed(name: str, value: Any, wanted: str) -> list[Any]:
    """The members of a list, tuple, range or array.

    Raises
    ------
    ArgumentError
        For anything else, text included.
    """
    if not isinstance(value, (list, tuple, range, np.ndarray)) or (isinstance(value, np.ndarray) and value.ndim == 0):
        raise ArgumentError(f"{name}: expected {wanted}, found {value!r}")
    return list(value)
