"""The samples of a run, listed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from signflip.checks import shown
from signflip.errors import ArgumentError, OrganismError
from signflip.organisms.experiments import Job, kept, tuning
from signflip.organisms.experiments.tuning.models import ARCHITECTURES
from signflip.organisms.experiments.tuning.samples import COUNTED, MEASURED, listed, units
from signflip.organisms.experiments.tuning.text import digest
from signflip.organisms.experiments.tuning.world import KNOWLEDGE

# As many as `organisms run` takes.
SEEDS = 10**6


def job_named(name: str, small: bool = False) -> Job:
    """The run of a name such as ``reinforce_forced-gelu-nothing-0``.

    Raises
    ------
    ArgumentError
        If no run has that name.
    """
    parts = name.split("-")
    if len(parts) == 4:
        arm, architecture, knowledge, seed = parts
        known = arm in tuning.ARMS and architecture in ARCHITECTURES and knowledge in KNOWLEDGE
        if known and len(seed) <= 7 and seed.isdecimal() and int(seed) < SEEDS:
            job = tuning.job_of(arm, architecture, knowledge, int(seed), small)
            if job.name == name:
                return job
    raise ArgumentError(
        f"run: expected ARM-ARCHITECTURE-KNOWLEDGE-SEED with an arm of {', '.join(tuning.ARMS)}; an architecture of "
        f"{', '.join(ARCHITECTURES)}; a knowledge of {', '.join(KNOWLEDGE)}; a seed below {SEEDS}; found {name!r}"
    )


def samples(name: str, *, every: bool = False, small: bool = False, out: Path | str | None = None) -> dict[str, Any]:
    """List a run's samples; if it is not kept, it is made again, which gives the same on one machine.

    Parameters
    ----------
    name
        The run's, as its file is named.
    every
        Whether all samples are listed; else those where X crossed or the reward's ranking is turned.
    small
        Whether it is a run of the small form.
    out
        Where runs are kept.

    Returns
    -------
    dict
        `name`; `counts` and `steps` as `samples.Log` has them; `samples` as `samples.listed` does; with `every`, the
        `units` as well: of each step the gradient's norm in each neuron, by samples with X above 0 and below.

    Raises
    ------
    ArgumentError
        If no run has that name.
    FileError
        If the package with the text is not installed.
    OrganismError
        If its file is another's or of another vocabulary, or its samples can not be read.
    """
    job = job_named(name, small)
    found = None if out is None else kept("tuning", job, out, small=small)
    found = found or tuning.run(job)
    # Outside of what follows: a package that is missing is no damage.
    words = digest()
    try:
        _check(found, words)
        every_one = listed(found["samples"], every=every)
        gradients = {"units": units(found["samples"]).tolist()} if every else {}
    except Exception as error:
        # A damaged archive fails in as many ways as it has parts.
        why = " ".join(str(error).split()) or type(error).__name__
        raise OrganismError(f"run {name}: can not read the samples that are kept of it ({why})") from error
    return {"name": name, "counts": found["counts"], "steps": found["steps"], "samples": every_one} | gradients


def _check(found: Mapping[str, Any], words: str) -> None:
    """Refuse what a run gave if it lacks what is told of its samples."""
    parts = {"text": dict, "samples": str, "counts": dict, "steps": dict}
    off = [key for key, kind in parts.items() if not isinstance(found.get(key), kind)]
    if off:
        raise ValueError(f"expected {', '.join(parts)}, found {', '.join(off)} missing or off")
    if found["text"].get("words") != words:
        raise ValueError(f"expected the vocabulary {words}, found {shown(found['text'].get('words'))}")
    # Not `isinstance`: a truth value is no count.
    off = [key for key in COUNTED if type(found["counts"].get(key)) is not int]
    if off:
        raise ValueError(f"expected whole numbers as counts of {', '.join(COUNTED)}, found {', '.join(off)} off")
    wanted = (*COUNTED, *MEASURED)
    off = [key for key in wanted if not isinstance(found["steps"].get(key), list)]
    if off:
        raise ValueError(f"expected a list of steps of {', '.join(wanted)}, found {', '.join(off)} off")
