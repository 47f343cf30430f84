"""Preference tuning of tiny language models: what becomes of the side of X that no sample reaches, and by what law.

Needs torch and transformers, and the data package that the text is in (`text`). See `world` for the prompts, `models`
for X and the bases, `losses` for the algorithms, `kernel` for the first-order law, `predictions` for the rules by which
predictions are marked, `listing` for the samples of a run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from signflip.errors import ArgumentError
from signflip.organisms.experiments import Answer, Job
from signflip.organisms.experiments.tuning.arms import Arm
from signflip.organisms.experiments.tuning.models import ARCHITECTURES
from signflip.organisms.experiments.tuning.world import KNOWLEDGE
from signflip.organisms.workers import one_thread

TITLE = "Preference tuning: what becomes of X < 0, where no sample goes"

DATA = ("plays",)
# Bases of all kinds of knowledge are pretrained as one.
BASE = ("architecture",)
# 6: X set to values seen and to −X, and mediation, each side logged; the law of neurons has a control.
VERSION = 6
# The cells that decide, then the others. Of all seeds the first are run first.
MAIN = {
    "reinforce_on": Arm("reinforce"),
    "grpo_on": Arm("grpo"),
    "dpo_off_0": Arm("dpo", policy=False),
    "reinforce_forced": Arm("reinforce", rare_share=0.01),
}
OTHER = {
    "dpo_on": Arm("dpo"),
    "reinforce_on_true": Arm("reinforce", true_reward=True),
    "reinforce_forced_true": Arm("reinforce", rare_share=0.01, true_reward=True),
    "grpo_forced": Arm("grpo", rare_share=0.01),
    "dpo_off_0.1": Arm("dpo", policy=False, rare_share=0.001),
    "dpo_off_1": Arm("dpo", policy=False, rare_share=0.01),
    "dpo_forced": Arm("dpo", rare_share=0.01),
    "reinforce_off_0": Arm("reinforce", policy=False),
    "reinforce_off_0.1": Arm("reinforce", policy=False, rare_share=0.001),
    "reinforce_off_1": Arm("reinforce", policy=False, rare_share=0.01),
    "grpo_off_0": Arm("grpo", policy=False),
    "grpo_off_0.1": Arm("grpo", policy=False, rare_share=0.001),
    "grpo_off_1": Arm("grpo", policy=False, rare_share=0.01),
    "reinforce_on_frozen": Arm("reinforce", frozen=True),
}
ARMS = MAIN | OTHER


def jobs(seeds: int, small: bool) -> list[Job]:
    """One run for each arm, architecture, knowledge of the base, and seed; in small: one base, three arms."""
    chosen = ({k: ARMS[k] for k in ("reinforce_on", "grpo_on", "dpo_off_0")},) if small else (MAIN, OTHER)
    return [
        job_of(arm, architecture, knowledge, seed, small)
        for arms in chosen
        for seed in range(seeds)
        for architecture in (ARCHITECTURES[1:2] if small else ARCHITECTURES)
        for knowledge in (KNOWLEDGE[:1] if small else KNOWLEDGE)
        for arm in arms
    ]


def job_of(arm: str, architecture: str, knowledge: str, seed: int, small: bool) -> Job:
    """One run."""
    settings = {"arm": arm, "architecture": architecture, "knowledge": knowledge, "small": small}
    return Job(f"{arm}-{architecture}-{knowledge}-{seed}", seed, settings)


def run(job: Job) -> dict[str, Any]:
    """One tuning. Bases and reward models of a process are trained once.

    Parameters
    ----------
    job
        Which.

    Raises
    ------
    ArgumentError
        If the job's settings are not those of an arm.
    FileError
        If the package with the text is not installed.
    """
    from signflip.organisms.experiments.tuning.bases import KNOWN, base, reward_model
    from signflip.organisms.experiments.tuning.measure import outcome
    from signflip.organisms.experiments.tuning.train import tune

    of = job.settings
    if of.get("arm") not in ARMS or of.get("knowledge") not in KNOWLEDGE:
        raise ArgumentError(f"job {job.name}: expected an arm and a knowledge of this experiment, found {of}")
    with one_thread():
        key = of["architecture"], of["knowledge"], job.seed, bool(of["small"])
        found = tune(base(*key), reward_model(*key, False), ARMS[of["arm"]], job.seed, key[-1])
    first, last = found["log"][0], found["log"][-1]
    end = outcome(first["rare"], last["rare"], first["common"]["margin"])
    void = None if found["accuracy"] >= KNOWN else "the base does not know the pronoun"
    own = {k: of[k] for k in ("arm", "architecture", "knowledge")} | {"seed": job.seed, "void": void}
    return {**own, "outcome": end, **found}


def report(results: dict[str, dict[str, Any]], figures: Path) -> str:
    """The section of ``docs/results.md``."""
    from signflip.organisms.experiments.tuning.section import section

    return section(list(results.values()), Path(figures))


def answer(results: dict[str, dict[str, Any]]) -> Answer:
    """What that says of the conjecture."""
    from signflip.organisms.experiments.tuning import section

    return section.answer(list(results.values()))
