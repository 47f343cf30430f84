"""Worker threads of the CPU backend."""

from __future__ import annotations

from signflip import _core
from signflip.checks import integer


def set_num_threads(n: int) -> None:
    """Set the number of worker threads of all CPU models of this process. No result depends on it.

    Parameters
    ----------
    n
        1 to 512.

    Raises
    ------
    ArgumentError
        For anything else.
    """
    _core.set_num_threads(integer("threads", n, 1, 512))
