"""Torch on one thread, and work in several processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from signflip.errors import OrganismError

T = TypeVar("T")


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread, so that the same run gives the same numbers whatever the machine's cores."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def in_processes(work: Callable[[Sequence[T]], None], groups: Sequence[Sequence[T]], workers: int) -> Iterator[int]:
    """Do each group of tasks in order in some process, and tell how many tasks are done as each group ends.

    If one fails, or the caller is interrupted, the others are stopped where they are.

    Parameters
    ----------
    work
        Of a module's top level, or a `functools.partial` of it; must leave nothing half done when it is killed.
    groups
        Of picklable tasks.
    workers
        Processes.

    Raises
    ------
    OrganismError
        If a process dies (for want of memory, say).
    """
    context = multiprocessing.get_context("spawn")
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(workers,))
    try:
        waiting = {pool.submit(work, group): len(group) for group in groups}
        for done in as_completed(waiting):
            done.result()
            yield waiting[done]
    except BaseException as error:
        # Nothing that still runs is wanted.
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
        if isinstance(error, BrokenProcessPool):
            raise OrganismError("a worker process died, perhaps for want of memory; what is done is kept") from error
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(workers: int) -> None:
    """In a new process: it is stopped by its parent, not by the terminal, and leaves the others their cores."""
    import torch

    import signflip as sf

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    own = max(1, (os.cpu_count() or 1) // workers)
    sf.set_num_threads(own)
    torch.set_num_threads(own)


def _end_with_parent() -> None:
    """A parent that is killed stops nobody: its processes would wait for more for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
