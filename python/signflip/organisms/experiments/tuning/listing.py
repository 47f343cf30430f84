"""The samples of a run, listed."""

from __future__ import annotations

from typing import Any

from signflip.errors import ArgumentError
from signflip.organisms.experiments import Job, tuning
from signflip.organisms.experiments.tuning.models import ARCHITECTURES
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


def samples(name: str, *, every: bool = False, small: bool = False) -> dict[str, Any]:
    """Make a run again, which gives the same, and list its samples.

    Parameters
    ----------
    name
        The run's, as its file is named.
    every
        Whether all samples are listed; else those where X crossed or the reward's ranking is turned.
    small
        Whether it is a run of the small form.

    Returns
    -------
    dict
        `name`; `counts`; `steps` and `samples` as `samples.Log` has them (`steps`, `listed`).

    Raises
    ------
    ArgumentError
        If no run has that name.
    """
    found = tuning.run(job_named(name, small), every=every)
    return {"name": name, "counts": found["counts"], "steps": found["steps"], "samples": found["listed"]}
