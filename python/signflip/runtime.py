"""The process-wide settings of the core: how many threads it computes with, and what the CPU offers it."""

from __future__ import annotations

from typing import Any

from signflip import _core

__all__ = ["cpu_info", "set_num_threads"]


def set_num_threads(n: int) -> None:
    """Set how many threads every later computation uses.

    Results do not depend on it, to the bit. The default is one thread per available core.

    Parameters
    ----------
    n : int
        Threads, at least 1.

    Raises
    ------
    ArgumentError
        `n` is below 1.
    """
    _core.set_num_threads(n)


def cpu_info() -> dict[str, Any]:
    """What the core sees of the CPU and which kernels it chose.

    Returns
    -------
    dict
        ``threads`` (int), ``features`` (list of str: the instruction sets found), ``kernel`` (str: the one in use).
    """
    return dict(_core.cpu_info())
