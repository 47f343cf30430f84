"""Checks of arguments that are not the engine's: one sentence that names the argument."""

from __future__ import annotations

import operator
import os
from pathlib import Path
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
        raise ArgumentError(f"{name}: expected {wanted}, found {shown(value)}")
    return found


def number(name: str, value: Any, low: float, high: float, wanted: str = "") -> float:
    """A number within limits, of any real type (booleans are none).

    Raises
    ------
    ArgumentError
        Otherwise, and for NaN.
    """
    real = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not real or not low <= value <= high:
        raise ArgumentError(f"{name}: expected {wanted or f'a number from {low:g} to {high:g}'}, found {shown(value)}")
    return float(value)


def path(name: str, value: Any) -> Path:
    """A path, from text or a path object.

    Raises
    ------
    ArgumentError
        Otherwise, and for text with a NUL in it.
    """
    text = value if isinstance(value, str) else os.fspath(value) if isinstance(value, os.PathLike) else None
    if not isinstance(text, str) or "\0" in text:
        raise ArgumentError(f"{name}: expected a path, found {shown(value)}")
    return Path(text)


def shown(value: Any) -> str:
    """A value in few words; the digits of a huge integer cannot be printed."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        # Such an integer, or very much, inside of it.
        text = f"a {type(value).__name__} too large to show"
    return text if len(text) <= 200 else text[:200] + "..."


def listed(name: str, value: Any, wanted: str) -> list[Any]:
    """The members of a list, tuple, range or array.

    Raises
    ------
    ArgumentError
        For anything else, text included.
    """
    if not isinstance(value, (list, tuple, range, np.ndarray)) or (isinstance(value, np.ndarray) and value.ndim == 0):
        raise ArgumentError(f"{name}: expected {wanted}, found {shown(value)}")
    return list(value)


def whole_text(name: str, value: str) -> str:
    """Text that UTF-8 can hold: no half of a surrogate pair in it.

    Raises
    ------
    ArgumentError
        Otherwise; the message says where.
    """
    try:
        value.encode()
    except UnicodeEncodeError as err:
        half = f"\\u{ord(value[err.start]):04x}"
        raise ArgumentError(
            f"{name}: expected text, found half a surrogate pair ({half}) at character {err.start}"
        ) from err
    return value
