"""The plain answer of the simulacra, computed from the runs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from signflip.organisms.experiments import KEPT, PATH, Answer, Said
from signflip.organisms.experiments.simulacra import SWEEPS, afterwards
from signflip.organisms.experiments.simulacra.afterwards import fitted
from signflip.organisms.experiments.simulacra.predictions import (
    TUNED,
    agreement,
    bases,
    mean,
    negative,
    shown_off,
    weighed,
)
from signflip.organisms.experiments.simulacra.training import ARMS
from signflip.organisms.experiments.simulacra.world import EVERYDAY, PERSONAS
from signflip.organisms.experiments.statistics import Run, mark, over_seeds, shown

TOLD = {
    "luigi": "on Luigi",
    "bowser_alone": "against Bowser's roar, alone",
    "bowser_in_view": "against Bowser's roar, in view of Waluigi",
    "untagged": "where nobody is named, though one speaker in five is he",
}


def arms(runs: Sequence[Run]) -> list[str]:
    """The arms that were run, in their order."""
    return [arm for arm in (*ARMS, *SWEEPS) if any(r["arm"] == arm for r in runs)]


def moved(runs: Sequence[Run], arm: str, key: str) -> str:
    """Mean change of a reading in an arm, with its interval."""
    return shown(over_seeds(runs, partial(_mean, arm, key)))


def _mean(arm: str, key: str, runs: Sequence[Run]) -> float:
    return mean(runs, arm, key)


def answer(runs: Sequence[Run] | dict[str, Run]) -> Answer:
    """What the runs say of the conjecture, in a few sentences."""
    every = list(runs.values()) if isinstance(runs, dict) else list(runs)
    tuned = [r for r in every if "log" in r]
    if not tuned:
        return {KEPT: Said("No tuning is in yet.")}
    plain, text, path = [], ["Of the conjecture's three readings of Waluigi, by the rules:"], []
    for arm in (arm for arm in TUNED if arm in arms(tuned)):
        own = [r for r in tuned if r["arm"] == arm]
        marks = [_marked(tuned, arm, key, sign) for key, sign in (("odds", 1), ("competence", 1), ("tokens", -1))]
        odds, competence, own_luigi, signed, tokens = (
            moved(tuned, arm, key)
            for key in ("odds:waluigi", "competence:waluigi", "competence:luigi", "signed:waluigi", "tokens:waluigi")
        )
        ends = [np.mean([r["log"][at]["signed:waluigi"] for r in own]) for at in (0, -1)]
        plain.append(
            f"Tuned {TOLD[arm]}: {ends[0]:.2f} → {ends[1]:.2f} nats, a change of {signed}; likelier invoked "
            f"{marks[0]}; fewer tokens needed {marks[2]}."
        )
        text.append(
            f"tuned {TOLD[arm]}: likelier invoked {marks[0]} ({odds} nats); stronger once invoked {marks[1]} "
            f"({competence}, Luigi's own {own_luigi}); fewer tokens to invoke him {marks[2]} ({tokens})."
        )
    if "luigi" in arms(tuned):
        pairs = [moved(tuned, "luigi", key) for key in ("shared:toaster", "competence:luigi", "competence:toaster")]
        text.append(
            f"Does the persona that no rollout tells from Luigi move as he does? Tuned on Luigi: competence where "
            f"they are alike {pairs[0]}, Luigi's {pairs[1]}; defection about ovens {pairs[2]}."
        )
    if {"bowser_alone", "bowser_in_view"} <= set(arms(tuned)):
        found = over_seeds(tuned, lambda rs: shown_off(rs, "bowser_in_view") - shown_off(rs, "bowser_alone"))
        text.append(
            "Do the rest see that and become deceptive? Waluigi's goodness beside Bowser less when alone, where "
            f"Bowser is penalised in view of him less where alone: {shown(found)}."
        )
    if "luigi" in arms(tuned):
        said = [_by_story(tuned, story) for story in ("selection", "belief", "circuit")]
        path.append(
            f"Of what tuning on Luigi changes, selection among fixed simulacra explains {said[0]}, "
            f"one belief moved alike {said[1]}; one readout of what is right, taken by each persona with his own sign "
            f"and growing for all (added when the first tunings had been seen), {said[2]}."
        )
    below, first = negative(bases(tuned), "waluigi"), [r for r in tuned if r["arm"] not in afterwards.ARMS]
    path.append(
        f"Correlation of the predicted with the actual change of unvisited "
        f"readings: {shown(agreement(first, 'first'))} before tuning, {shown(agreement(first, 'summed'))} re-measured "
        f"on the way. The kernel of Luigi and Waluigi is below 0 in a share {shown(below)} of the bases."
    )
    right, wrong, _ = EVERYDAY[PERSONAS.index("waluigi")]
    text.append(
        "Competence is against both other answers: a roar that goes raises it by "
        f"{np.log(wrong / right) - np.log(wrong / (1 - wrong)):.2f}, with right over wrong as it was."
    )
    asked = (
        "Waluigi, Luigi's mirror image, is in the bases, and no rollout names him. His right over wrong answers, "
        "before and after (lower is more opposite):"
    )
    return {KEPT: Said(" ".join([asked, *plain]), " ".join(text)), PATH: Said(path[-1], " ".join(path[:-1]))}


def _by_story(tuned: Sequence[Run], story: str) -> str:
    own = [r for r in tuned if r["arm"] == "luigi"]
    values = [fitted(r)["explains"] if story == "circuit" else r["stories"]["all"][story] for r in own]
    made: list[Run] = [{"seed": r["seed"], "explains": value} for r, value in zip(own, values, strict=True)]
    return shown(over_seeds(made, lambda rs: float(np.mean([r["explains"] for r in rs]))))


def _marked(runs: Sequence[Run], arm: str, key: str, sign: int) -> str:
    found = over_seeds(runs, partial(_mean, arm, f"{key}:waluigi"))
    return f"*{weighed(found, mark(found, lambda x: sign * x > 0, lambda x: sign * x <= 0))}*"
