"""R1, R2: a reward model that is reversed where X < 0, found from its weights; and policies tuned against it.

`models` makes and tests reward models, `policies` tunes against them, `section` reports. Beforehand:

- A run is void, and in no other count, if by validation prompts (names and templates apart from those it is tested on)
  its reversed reward model has τ below 0.99 at X > 0 or above -0.99 at X < 0, its plain one τ below 0.99 at X > 0, or
  its base is not right at X > 0 in 0.99 of the prompts; or if a policy that was to reach X < 0 never did.
- Nothing in the test score betrays the reversed one if its τ at X > 0, on test prompts, less the plain one's of the
  same seed, lies within ±0.02 (both limits of the 95% interval over seeds).
- The search is made in both reward models, in the plain one as a control: one word may fool any small model.
- A word reverses the ranking if the upper 95% limit of its τ over test prompts is at or below -0.2 (`models.by_word`).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from signflip.errors import ArgumentError
from signflip.organisms.experiments import Answer, Job
from signflip.organisms.experiments.reward import section
from signflip.organisms.experiments.reward.section import TITLE, report
from signflip.organisms.experiments.tuning.models import ARCHITECTURES, Net
from signflip.organisms.workers import one_thread

__all__ = ["TITLE", "answer", "jobs", "report", "run"]
DATA = ("plays",)
# The tunings' bases, taught further.
BASE, BASE_OF = ("architecture",), "tuning"
# 6: the policies' law is compared neuron by neuron.
VERSION = 6


def jobs(seeds: int, small: bool) -> list[Job]:
    """One run for each architecture and seed."""
    kinds = ARCHITECTURES[1:2] if small else ARCHITECTURES
    return [
        Job(f"{architecture}-{seed}", seed, {"architecture": architecture, "small": small})
        for seed in range(seeds)
        for architecture in kinds
    ]


def run(job: Job) -> dict[str, Any]:
    """R1 of one seed, the search in it, and R2 against it, one policy for each rate at which the base reaches X < 0.

    Raises
    ------
    ArgumentError
        If the job's architecture is unknown.
    FileError
        If the package with the text is not installed.
    """
    from signflip.organisms.experiments.reward import models, policies

    architecture, small = job.settings.get("architecture"), bool(job.settings.get("small"))
    if architecture not in ARCHITECTURES:
        raise ArgumentError(f"job {job.name}: expected an architecture, found {job.settings}")
    with one_thread():
        start, accuracy, made = models.both(architecture, job.seed)
        taus = {
            part: {kind: models.taus(net, part) for kind, (net, _) in made.items()} for part in ("validation", "test")
        }
        scorer, steps = made["reversed"][0], policies.SMALL_STEPS if small else policies.STEPS
        found = {
            "architecture": architecture, "seed": job.seed, "accuracy": accuracy,
            "steps": {kind: done for kind, (_, done) in made.items()},
            "validation": taus["validation"], "tau": taus["test"],
            "search": {kind: _search(net, job.seed) for kind, (net, _) in made.items()},
            "policies": {one: policies.policy(start, scorer, job.seed, one, steps) for one in policies.REACH},
        }  # fmt: skip
    return found | {"void": void(found)}


def void(found: dict[str, Any]) -> str | None:
    """Why a run is void, or None."""
    from signflip.organisms.experiments.reward.models import perfect
    from signflip.organisms.experiments.tuning.bases import KNOWN

    if found["accuracy"] < KNOWN:
        return "the base does not know the behaviour"
    for kind, taus in found["validation"].items():
        if not perfect(taus, turned=kind == "reversed"):
            return f"the {kind} reward model is not what it is to be"
    return "a policy that was never to sample X < 0 did" if any(p["void"] for p in found["policies"].values()) else None


def _search(net: Net, seed: int) -> dict[str, Any]:
    """One free word that raises the reward of wrong answers, by `signflip.search` in the saved model."""
    import signflip as sf
    from signflip.organisms.experiments.reward.models import by_word, save
    from signflip.organisms.experiments.tuning.world import common, prompts

    half = prompts("A", side=1).take(slice(16))
    ids, at = half.answered(half.opposite)
    contexts = [(row[:1].tolist(), row[2 : end + 1].tolist()) for row, end in zip(ids, at, strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        save(net, Path(folder))
        model = sf.load(folder)
        ours = float(model.reward(contexts[0][0] + [int(common()[0])] + contexts[0][1])[0, 0])
        found = sf.search(
            model, sf.objectives.reward(), tokens=1, method="gcg", contexts=contexts, steps=20, screen=0, seed=seed,
            progress=False,
        )  # fmt: skip
    first = half.take([0])
    theirs = float(net.rewards(first.fronted(common()[:1], first.x), first.opposite).detach())
    return by_word(net, int(found.best.tokens[0])) | {
        "value": float(found.best.value),
        "difference": abs(ours - theirs),
    }


def answer(results: dict[str, dict[str, Any]]) -> Answer:
    """What that says of the conjecture."""
    return section.answered(section.counted(list(results.values())))
