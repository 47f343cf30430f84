"""The samples of a run, listed."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

from signflip.errors import ArgumentError, OrganismError
from signflip.organisms.experiments import Job, kept, tuning
from signflip.organisms.experiments.tuning.models import ARCHITECTURES
from signflip.organisms.experiments.tuning.samples import listed, units
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
    try:
        if found["text"]["words"] != digest():
            raise ValueError(f"expected the vocabulary {digest()}, found {found['text']['words']}")
        every_one = listed(found["samples"], every=every)
        gradients = {"units": units(found["samples"]).tolist()} if every else {}
    except (LookupError, TypeError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise OrganismError(f"run {name}: can not read the samples that are kept of it ({error})") from error
    return {"name": name, "counts": found["counts"], "steps": found["steps"], "samples": every_one} | gradients
