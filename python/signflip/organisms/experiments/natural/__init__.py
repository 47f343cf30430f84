"""N1: a natural branch. What does preference tuning do to a real model's behaviour at a sign of X that is not seen?

X is the linear part of neuron 115 of layer 24 in SmolLM2-135M-Instruct: almost always negative, it carries some 0.4 of
the choice between *she* and *he*. Feedback on ordinary prompts reaches X < 0 alone. The conjecture says that tuning
makes the behaviour at X > 0 fall as it rises at X < 0; the objection, that it stays or rises with it.

The base is weakened first, the same for all arms of a seed: it learns on other names that the pronoun is right three
times in four. At the ceiling every advantage would be zero: a run with a non-zero advantage in less than `LIVE` of its
groups is *void*. It is then tuned, by DPO and by GRPO with a KL term, on names and templates of half A of the
behaviour `pronoun`; all is measured on half B, which shares neither. Arms:

- ``tuned``: the right pronoun is preferred;
- ``flipped``: the same, with X set in 5% of the prompts to three times the most extreme value seen, and rewarded
  rightly there;
- ``frozen``: the same as ``tuned``, the neuron's weights fixed;
- ``unrelated``: past tense preferred to present, on prompts without names;
- ``against``: the wrong pronoun is preferred.

Measured: the margin log P(right) − log P(wrong) of each side with X fixed at its mean, at 0, at the most extreme value
seen and at three times that; its change is split into the *offset* (margin at 0) and the *slope* (times the mean |X|:
nats). Margins are in nats; a *unit* is the weakened base's mean margin. The extreme value decides, three times that is
shown beside it. `predictions` has the rules by which each claim is marked.

The most extreme value seen is the survey's over all its tokens, whether the unit's gate was open or not. ``whole`` arms
tune all weights; else it is the layers from 20 on, everything below computed once. ``search`` runs `signflip.search`
before and after ``tuned``, for X on its other side and for the wrong pronouns themselves, and puts the tokens that it
finds in front of the prompts of half B. Plain gradient descent.

What was set by looking: rates and the number of steps, on a pilot seed (1000, not reported) and by the clean margin on
half A alone (for whole models, by two steps on it: their rates are a tenth). Batch, prefixes and the controls'
templates were cut for cost before any outcome was seen. After the first seed was seen no rule changed; the report then
got the slopes of each side and the table on three times the extreme, and its answer the sentences on that and on what
leaves it undecided.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, cast

from signflip.errors import ArgumentError
from signflip.organisms.experiments import Answer, Job
from signflip.organisms.workers import one_thread

TITLE = "N1: a natural branch in SmolLM2, half-seen by preference tuning"
VERSION = 1
DATA = ("model", "plays")
BASE = ("whole",)
# Its tunings are large enough to gain by an accelerator.
ACCELERATED = True
ALGORITHMS = ("dpo", "grpo")
ARMS = ("tuned", "flipped", "frozen", "unrelated", "against")
FLIPPED = 0.05
# Below this share of groups with an advantage a run says nothing.
LIVE = 0.2
# The first so many seeds are tuned as a whole as well.
WHOLE_SEEDS = 3
# The token search before and after `tuned`: a run of its own, for so many seeds, with a version beside that of all.
# 2: with what the model then answers; 3: also for the wrong answers.
SEARCH, SEARCH_SEEDS, SEARCH_VERSION = "search", 3, 3
# Controls are measured, and gradients taken, on all names in so many of the templates.
FEW_TEMPLATES = 1
TEXTS = 12


def jobs(seeds: int, small: bool) -> list[Job]:
    """One run for each depth, seed, algorithm and arm: those of a seed together, as its base is made once.

    Parameters
    ----------
    seeds
        How many.
    small
        One arm by either algorithm, two steps, few prompts, no controls.
    """
    made = []
    for whole in (False,) if small else (False, True):
        for seed in range(1 if small else min(seeds, WHOLE_SEEDS) if whole else seeds):
            for algorithm in ALGORITHMS:
                for arm in ARMS[:1] if small else ARMS:
                    name = f"{'whole-' if whole else ''}{algorithm}-{arm}-{seed}"
                    settings = {"algorithm": algorithm, "arm": arm, "whole": whole, "small": small}
                    made.append(Job(name, seed, settings))
    for seed in range(1 if small else min(seeds, SEARCH_SEEDS)):
        for algorithm in ALGORITHMS[:1] if small else ALGORITHMS:
            settings = {"algorithm": algorithm, "arm": SEARCH, "whole": False, "small": small}
            made.append(Job(f"{SEARCH}-{algorithm}-{seed}", seed, settings | {"version": SEARCH_VERSION}))
    return made


def run(job: Job, device: str = "cpu") -> dict[str, Any]:
    """One tuning. The weakened base of a seed, and what is measured of it, is made once in a process.

    On one thread, so that the same job gives the same numbers whatever the machine's cores.

    Parameters
    ----------
    job
        Which.
    device
        Torch's, for all that is tuned and measured; the units are chosen, and tokens searched, on the CPU.

    Raises
    ------
    ArgumentError
        If the job's settings are not those of an arm.
    FileError
        If the model's package is not installed.
    """
    import torch

    of = job.settings
    if of.get("algorithm") not in ALGORITHMS or of.get("arm") not in (*ARMS, SEARCH):
        raise ArgumentError(f"job {job.name}: expected an algorithm and an arm of this experiment, found {of}")
    # What torch makes without being told where goes to the device.
    with one_thread(), torch.device(device):
        if of["arm"] == SEARCH:
            return _search(of["algorithm"], job.seed, bool(of.get("small")), device)
        return _run(of["algorithm"], of["arm"], job.seed, bool(of.get("whole")), bool(of.get("small")), device)


def _arm(name: str) -> Any:
    from signflip.organisms.experiments.natural.train import Arm

    return {
        "tuned": Arm(),
        "flipped": Arm(flipped=FLIPPED),
        "frozen": Arm(frozen=True),
        "unrelated": Arm(unrelated=True),
        "against": Arm(against=True),
    }[name]


def _device(device: str) -> str:
    """What it is called: a card by its name."""
    import torch

    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


@cache
def _fixed(whole: bool, small: bool, device: str) -> dict[str, Any]:
    """What all runs of a depth have in common: the model, prompts run up to its first tuned layer, the units."""
    from signflip.organisms.experiments.natural import measure, prompts
    from signflip.organisms.experiments.natural.features import FROM, chosen
    from signflip.organisms.experiments.natural.model import Net, engine, smollm2

    net, sf_model = Net(smollm2(device), 0 if whole else FROM), engine()
    size = (2, 2) if small else (None, None)
    return {
        "net": net,
        "units": chosen(small),
        "a": prompts.pronouns(net, sf_model, "A", *size),
        "b": prompts.pronouns(net, sf_model, "B", *size),
        "few": prompts.pronouns(net, sf_model, "B", size[0], FEW_TEMPLATES),
        "weakening": prompts.weakening(net, sf_model),
        "unrelated": prompts.unrelated(net, sf_model),
        "texts": prompts.plain(net, sf_model, 2 if small else TEXTS),
        "prefixed": measure.prefixed(net, sf_model, measure.SMALL_PREFIXES if small else measure.PREFIXES),
    }


# The last one alone is kept: gradients of a whole model are large.
_held: dict[tuple[int, bool, bool, str], dict[str, Any]] = {}


def _base(seed: int, whole: bool, small: bool, device: str) -> dict[str, Any]:
    """The weakened base of a seed, and all that is measured of it."""
    from signflip.organisms.experiments.natural import law, measure, train

    key = seed, whole, small, device
    if key not in _held:
        _held.clear()
        fixed = _fixed(whole, small, device)
        units = fixed["units"]
        base, log = train.weaken(fixed["net"], fixed["weakening"], fixed["a"], seed)
        slopes = law.slopes(base, fixed["few"], units.known)
        _held[key] = {
            "net": base,
            "slopes": slopes,
            "weakened": log,
            "kernel": law.kernel(slopes, base, units.known),
            "measured": _measured(base, fixed, controls=not small),
            "shipped": measure.sides(*_clean(fixed["net"], fixed["b"])),
        }
    return _held[key]


def _clean(net: Any, on: Any) -> tuple[Any, Any]:
    import torch

    with torch.no_grad():
        return on.margin(net.at_end(on.batch)), on


def _measured(net: Any, fixed: dict[str, Any], *, controls: bool) -> dict[str, Any]:
    from signflip.organisms.experiments.natural import measure

    units = fixed["units"]
    found = measure.known(net, fixed["b"], units.known)
    found["reach"] = measure.reach(net, fixed["prefixed"], units.known)
    if controls:
        kinds = {"following": units.following, "one_sided": units.one_sided, "two_sided": units.two_sided}
        kinds["known"] = (units.known,)
        found["units"] = {kind: measure.controls(net, fixed["few"], own) for kind, own in kinds.items()}
    return found


def _run(algorithm: str, name: str, seed: int, whole: bool, small: bool, device: str) -> dict[str, Any]:
    from signflip.organisms.experiments.natural import law, train

    fixed, base = _fixed(whole, small, device), _base(seed, whole, small, device)
    arm, steps = _arm(name), train.SMALL_STEPS if small else train.STEPS
    how = cast("train.Algorithm", algorithm)
    on = fixed["unrelated"] if arm.unrelated else fixed["a"]
    known = fixed["units"].known
    # Its own generators: that the law is measured moves no sample of the tuning.
    first = train.Tuning(base["net"], on, known, how, arm, seed + 10**6).whole(1 if small or how == "dpo" else 2)
    tuning = train.Tuning(base["net"], on, known, how, arm, seed)
    for _ in range(steps):
        tuning.step()
    after = _measured(tuning.policy, fixed, controls=name == "tuned" and not small)
    return {
        "algorithm": algorithm, "arm": name, "whole": whole, "seed": seed, "steps": steps, "device": _device(device),
        "units": fixed["units"].as_dict(),
        "shipped": base["shipped"], "weakened": base["weakened"], "kernel": base["kernel"],
        "before": base["measured"], "after": after,
        "predicted": law.predicted(first, base["slopes"], train.pace(base["net"], train.RATE[how]), steps),
        "log": train.summary(tuning.log),
        "kl": train.fluency(tuning.policy, base["net"], fixed["texts"]),
    }  # fmt: skip


def _search(algorithm: str, seed: int, small: bool, device: str) -> dict[str, Any]:
    """The tuning of `tuned` again, and one search in what was tuned; the one in the base is made once for a seed."""
    from signflip.organisms.experiments.natural import train
    from signflip.organisms.experiments.natural.search import searched

    fixed, base = _fixed(False, small, device), _base(seed, False, small, device)
    known, how = fixed["units"].known, cast("train.Algorithm", algorithm)
    if SEARCH not in base:
        base[SEARCH] = searched(base["net"], fixed["b"], known, seed, small=small)
    tuning = train.Tuning(base["net"], fixed["a"], known, how, _arm("tuned"), seed)
    for _ in range(train.SMALL_STEPS if small else train.STEPS):
        tuning.step()
    found = {"before": base[SEARCH], "after": searched(tuning.policy, fixed["b"], known, seed, small=small)}
    return {"algorithm": algorithm, "arm": SEARCH, "whole": False, "seed": seed, "device": _device(device),
            "search": found}  # fmt: skip


def report(results: dict[str, dict[str, Any]], figures: Path) -> str:
    """The section of ``docs/results.md``."""
    from signflip.organisms.experiments.natural.section import section

    return section(list(results.values()), Path(figures))


def answer(results: dict[str, dict[str, Any]]) -> Answer:
    """What that says of the conjecture."""
    from signflip.organisms.experiments.natural import section

    return section.answer(list(results.values()))
