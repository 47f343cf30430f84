"""S1: personas known by their tags, some of them never told apart, and a policy gradient where only some of them speak.

See `world` for the personas and documents, `readings` for the three readings, `training` for the arms, `law` for the
tangent kernel, `stories` for selection and for one belief, `predictions` for the rules by which predictions are marked.

Arms: ``luigi`` (tuned on good answers where Luigi is named), ``bowser_alone`` (Bowser's roars penalised),
``bowser_in_view`` (the same, in documents where Waluigi speaks in between; only Bowser's answers count),
``bowser_in_view_of_luigi`` (its control: a shared context as such), ``untagged`` (good answers where nobody is named,
so that Luigi and the toaster persona both speak), ``unrelated`` (the weather); and ``sweep_luigi``,
``sweep_untagged``: those at five learning rates, rate times steps held.

The rate of tuning was chosen by what one base's visited reading did, before any other reading was looked at.
Predictions and rules were fixed before the first run. Two arms, ``luigi_against`` and ``luigi_and_visits``, and a third
story were added when the first six tunings of seed 0 had been seen: `afterwards` says why, and their predictions have a
table of their own.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from signflip.errors import ArgumentError
from signflip.organisms.experiments import Answer, Job
from signflip.organisms.experiments.simulacra.models import ARCHITECTURES
from signflip.organisms.experiments.simulacra.training import ARMS
from signflip.organisms.workers import one_thread

TITLE = "S1: simulacra that tuning never invokes, or never tells apart"
VERSION = 1
BASE = ("architecture",)
SWEEPS = {"sweep_luigi": "luigi", "sweep_untagged": "untagged"}
SMALL = ("luigi", "bowser_alone", "bowser_in_view", "sweep_untagged")


def jobs(seeds: int, small: bool) -> list[Job]:
    """One run for each seed, architecture and arm, all of a base in turn; in small: one architecture, four arms."""
    return [
        Job(f"{arm}-{architecture}-{seed}", seed, {"arm": arm, "architecture": architecture, "small": small})
        for seed in range(seeds)
        for architecture in (ARCHITECTURES[1:] if small else ARCHITECTURES)
        for arm in (SMALL if small else (*ARMS, *SWEEPS))
    ]


def run(job: Job) -> dict[str, Any]:
    """One tuning, or one sweep. The bases of a process are trained once.

    Raises
    ------
    ArgumentError
        If the job's settings are not those of an arm.
    """
    from signflip.organisms.experiments.simulacra import training
    from signflip.organisms.experiments.simulacra.law import tune
    from signflip.organisms.experiments.simulacra.models import base
    from signflip.organisms.experiments.simulacra.stories import stories

    arm, architecture, small = (job.settings.get(key) for key in ("arm", "architecture", "small"))
    if arm not in (*ARMS, *SWEEPS) or architecture not in ARCHITECTURES:
        raise ArgumentError(f"job {job.name}: expected an arm and an architecture, found {job.settings}")
    with one_thread():
        start = base(architecture, job.seed, bool(small))
        checked, kernel = _untuned(architecture, job.seed, bool(small))
        out: dict[str, Any] = {"arm": arm, "architecture": architecture, "seed": job.seed, "base": checked}
        if arm in SWEEPS:
            rates = training.SMALL_RATES if small else training.RATES
            steps = training.SMALL_STEPS if small else training.STEPS
            return out | training.sweep(start, ARMS[SWEEPS[arm]], job.seed, rates, steps)
        out |= {"kernel": kernel} | tune(start, arm, job.seed, bool(small))
        return out | {"stories": stories(*out["manners"])}


@lru_cache(maxsize=1)
def _untuned(architecture: Any, seed: int, small: bool) -> tuple[dict[str, float], dict[str, Any]]:
    """How good a base is, and its kernel: the same in every arm."""
    from signflip.organisms.experiments.simulacra.law import kernel
    from signflip.organisms.experiments.simulacra.models import base
    from signflip.organisms.experiments.simulacra.readings import check

    start = base(architecture, seed, small)
    return check(start), kernel(start)


def report(results: dict[str, dict[str, Any]], figures: Path) -> str:
    """The section of ``docs/results.md``."""
    from signflip.organisms.experiments.simulacra.section import section

    return section(list(results.values()), Path(figures))


def answer(results: dict[str, dict[str, Any]]) -> Answer:
    """What that says of the conjecture."""
    from signflip.organisms.experiments.simulacra import conclusion

    return conclusion.answer(list(results.values()))
