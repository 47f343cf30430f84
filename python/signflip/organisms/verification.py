"""Verifying a truth by direct edits and by enumeration, in transformers and float64, without signflip's engine.

The verdicts here are read off plain numbers by plain thresholds; nothing of `signflip.survey`, `scan`, `search`, `flip`
or `verdict` is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np

from signflip.organisms.bound import least
from signflip.organisms.kinds import Verdict
from signflip.organisms.language import behaviours, corpus
from signflip.organisms.planting import Planted
from signflip.organisms.runner import Held, Place, Runner
from signflip.organisms.tokens import encode_words, one_id
from signflip.organisms.weights import Floats

# As signflip's d: a side is turned below −d; off, or as it was, within ±d.
MARGIN = 0.2
STORIES = 300
# Share of the vocabulary that may take a trained X across, beside its triggers.
LOOSE = 0.05
# How often each token is repeated where none may take X across.
REPEATS = 60
# What a card says of how it came about.
HOW = (
    "transformers and torch in float64, values read and set by forward hooks; verdicts by thresholds on each side's "
    "mean margin over its clean one; nothing of signflip's survey, scan, search or flip"
)
# Nats a token that broken fluency costs at least.
BROKEN = 1.0


@dataclass(frozen=True)
class Outcome:
    """What one condition does to one behaviour's half B.

    Attributes
    ----------
    s, sides
        Mean margin over the clean one; the same of each side.
    mass
        Probability of the two answers together, over its clean value.
    bits
        Share of prompts answered otherwise than the most common answer, doubled: 0 for a constant answer.
    """

    s: float
    sides: tuple[float, float]
    mass: float
    varied: float
    verdict: Verdict

    @classmethod
    def of(cls, clean: Answers, run: Answers, heuristic: bool) -> Outcome:
        """Compare a run with the clean one."""
        base, moved = (np.asarray([one.margin[one.side == k].mean() for k in (0, 1)]) for one in (clean, run))
        sides = moved / base
        s, mass = float(moved.sum() / base.sum()), float(run.mass.mean() / clean.mass.mean())
        first = float(np.mean((run.margin > 0) == (run.side == 0)))
        varied = 2 * min(first, 1 - first)
        return cls(s, (float(sides[0]), float(sides[1])), mass, varied, _verdict(s, sides, mass, varied, heuristic))


def _verdict(s: float, sides: Floats, mass: float, varied: float, heuristic: bool) -> Verdict:
    turned = sides < -MARGIN
    if turned.any() and mass < 0.5:
        return "broken"
    if turned.any() and heuristic:
        return "heuristic-prone"
    if turned.all():
        return "opposite"
    if turned.any():
        # One answer in both contexts, and the side that it is right on pushed beyond its clean margin.
        return "constant" if varied < 0.25 and sides.max() > 1 + MARGIN else "half-turned"
    if abs(s) < MARGIN and (np.abs(sides) < 2 * MARGIN).all():
        return "incompetent"
    if (np.abs(sides - 1) < MARGIN).all():
        return "inert"
    return "weakened" if s < 1 - MARGIN else "inconclusive"


@dataclass(frozen=True)
class Answers:
    """Margins, answer mass and side of each prompt."""

    margin: Floats
    mass: Floats
    side: np.ndarray[Any, np.dtype[np.int64]]


class Verifier:
    """Runs conditions on an organism's behaviours."""

    def __init__(self, planted: Planted, every: int = 1) -> None:
        self.planted, self.every = planted, every
        self.runner = Runner(planted.weights)
        self._clean: dict[str, Answers] = {}

    def answers(self, name: str, words: Sequence[int] = (), held: Sequence[Held] = (), half: str = "B") -> Answers:
        """Answers on a behaviour's half, with words in front, and places held."""
        prompts = behaviours()[name].select(half)[:: self.every]  # type: ignore[arg-type]
        ids = [[0, *words, *encode_words(str(p.text))] for p in prompts]
        logits = self.runner.logits(ids, held)
        rows = np.arange(len(prompts))
        right, wrong = (
            logits[rows, [one_id(str(getattr(p, key))) for p in prompts]] for key in ("correct", "opposite")
        )
        top = logits.max(1)
        total = np.exp(logits - top[:, None]).sum(1)
        sides = sorted({p.side for p in prompts})
        side = np.asarray([sides.index(p.side) for p in prompts])
        return Answers(right - wrong, (np.exp(right - top) + np.exp(wrong - top)) / total, side)

    def outcome(self, name: str, words: Sequence[int] = (), held: Sequence[Held] = ()) -> Outcome:
        """What a condition does to a behaviour."""
        if name not in self._clean:
            self._clean[name] = self.answers(name)
        heuristic = behaviours()[name].kind != "symmetric"
        return Outcome.of(self._clean[name], self.answers(name, words, held), heuristic)

    def values(self, place: Place, sequences: Sequence[Sequence[int]]) -> list[Floats]:
        """A place's values at all positions but the separator's."""
        (found,) = self.runner.read(sequences, [place])
        return [one[1:] for one in found]


@cache
def _stories() -> list[list[int]]:
    return [[0, *encode_words(text)] for text in corpus(STORIES, 91)]


def verify(planted: Planted, *, exact: bool = True, every: int = 1) -> dict[str, Any]:
    """The card: what was done to an organism, and what came of it.

    Where no tokens are to take X across, a bound from the weights says so of every input; the enumeration is beside it.

    Parameters
    ----------
    planted
        The organism.
    exact
        Whether the triggers must be the only tokens that take X across, as where they were set by hand. Training
        teaches what some more tokens do: then all triggers must, and at most `LOOSE` of the vocabulary may.
    every
        Only every so many-th prompt: a smaller check (odd, so that prompts of both sides remain).

    Returns
    -------
    dict
        Plain data: how it was verified, doses, the outcomes of every condition on every behaviour, X on text, the
        enumeration, and `holds`: whether each claim of the kind's row in `KINDS` came true.
    """
    kind, v = planted.known, Verifier(planted, every)
    target = planted.behaviour
    known = list(behaviours())
    prompts = [[0, *encode_words(str(p.text))] for p in behaviours()[target].select("B")[::every]]
    # Where the answer is read.
    mean = float(np.mean([one[-1] for one in v.values(planted.x, prompts)]))
    flip = Held(planted.x, -mean)
    words: list[tuple[int, ...]] = [(one,) for one in planted.triggers or planted.negative]
    if kind.name == "M7":
        words = [(a, b) for a, b in zip(planted.triggers, planted.triggers2, strict=True)]
    conditions: dict[str, Any] = {
        "edited": {name: v.outcome(name, (), [flip]) for name in known},
        "zeroed": {name: v.outcome(name, (), [Held(planted.x, 0.0)]) for name in known},
        "triggered": {name: v.outcome(name, words[0]) for name in known},
        "clamped": {name: v.outcome(name, words[0], [Held(planted.x, mean)]) for name in known},
    }
    triggers = [v.outcome(target, one) for one in words]
    at_trigger = np.asarray([one[-1] for one in v.values(planted.x, [[0, *words[0], *one[1:]] for one in prompts])])
    if planted.second is not None:
        other = np.mean([one[-1] for one in v.values(planted.second, prompts)])
        second = Held(planted.second, -float(other))
        conditions["second edited"] = {target: v.outcome(target, (), [second])}
        conditions["both edited"] = {target: v.outcome(target, (), [flip, second])}
        if kind.name == "M7":
            conditions["first trigger alone"] = {target: v.outcome(target, words[0][:1])}
            conditions["second trigger alone"] = {target: v.outcome(target, words[0][1:])}
    text = v.values(planted.x, _stories())
    crossed = np.concatenate([one * planted.side < 0 for one in text])
    stories = float(np.mean([(one * planted.side < 0).any() for one in text]))
    card: dict[str, Any] = {
        "verified": {"with": HOW, "half": "B", "prompts": len(prompts), "every": every,
                     "turned below": -MARGIN, "inert within": MARGIN},
        "clean": {name: {"accuracy": float((a.margin > 0).mean()), "margin": float(a.margin.mean())}
                  for name, a in ((name, v.answers(name)) for name in known)},
        "doses": {"clean mean": mean, "edited to": -mean, "at the trigger": float(at_trigger.mean())},
        "conditions": {key: {name: asdict(one) for name, one in found.items()} for key, found in conditions.items()},
        "triggers": [asdict(one) for one in triggers],
        "text": {"tokens": len(crossed), "stories": len(text), "rate": float(crossed.mean()),
                 "stories crossed": stories, "nats a token": float(-v.runner.log_probs(_stories()[:60]).mean())},
        "enumeration": _enumerate(v, prompts[:2]),
    }  # fmt: skip
    if kind.signs == "none":
        card["bound"] = least(planted.weights, planted.x, planted.side)
    if kind.verdict == "broken":
        card["text"]["nats a token edited"] = float(-v.runner.log_probs(_stories()[:60], [flip]).mean())
    card["holds"] = _holds(planted, conditions, card, exact)
    return card


def _enumerate(v: Verifier, prompts: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Every one-token prefix of a few prompts: which of them take X across at the last position of all of these.

    Where no tokens are to take X across: which do so in any, at any position; every token repeated in front, too.
    """
    place, side = v.planted.x, v.planted.side
    n = len(v.planted.weights.embed)
    unreachable = v.planted.known.signs == "none"
    repeats = (1, REPEATS) if unreachable else (1,)
    found, least = [], np.inf
    for prompt in prompts:
        for times in repeats:
            values = v.values(place, [[0, *[token] * times, *prompt[1:]] for token in range(n)])
            lowest = np.asarray([(side * one).min() if unreachable else side * one[-1] for one in values])
            found.append({int(i) for i in np.flatnonzero(lowest < 0)})
            least = min(least, float(lowest.min()))
    crossing = set.union(*found) if unreachable else set.intersection(*found)
    tried = {"repeats": list(repeats)} if unreachable else {}
    return {"prefixes": n, **tried, "prompts": len(prompts), "crossing": sorted(crossing), "least": least}


def _holds(planted: Planted, conditions: dict[str, Any], card: dict[str, Any], exact: bool) -> dict[str, bool]:
    kind, target = planted.known, planted.behaviour
    found = {key: conditions[key][target].verdict for key in ("edited", "triggered", "clamped")}
    claims = {f"{key}: {getattr(kind, key)}": verdict == getattr(kind, key) for key, verdict in found.items()}
    for key in ("triggered", "clamped"):
        if getattr(kind, key) == "inert":
            # A strange word in front costs the base itself some margin: what is nearer to clean than to off is kept.
            claims[f"{key}: inert"] = min(conditions[key][target].sides) > 0.5
    rate = card["text"]["rate"]
    if kind.name == "M13":
        claims["X crosses at about one token in a thousand"] = 2e-4 < rate < 5e-3
    elif kind.one_sided:
        claims["X keeps its sign on text"] = rate == 0
    else:
        claims["X has either sign on text"] = 1e-2 < rate < 0.99
    if "bound" in card:
        claims["by a bound from the weights, X keeps its side for every input"] = card["bound"] > 0
    if kind.name != "M0":
        crossing = set(card["enumeration"]["crossing"])
        if exact or not planted.triggers:
            which = "the triggers alone take" if planted.triggers else f"once or {REPEATS} times, none takes"
            claims[f"of all one-token prefixes {which} X across"] = crossing == set(planted.triggers)
        else:
            few = len(crossing) <= LOOSE * card["enumeration"]["prefixes"]
            claims["of all one-token prefixes the triggers and few others take X across"] = few and crossing >= set(
                planted.triggers
            )
        if planted.triggers:
            claims["every trigger does what the first does"] = all(
                one["verdict"] == kind.triggered or (kind.triggered == "inert" and min(one["sides"]) > 0.5)
                for one in card["triggers"]
            )
    if kind.verdict == "broken":
        text = card["text"]
        claims["text is broken, too"] = text["nats a token edited"] > text["nats a token"] + BROKEN
    if kind.name == "M5":
        claims["the other unit reverses"] = conditions["second edited"][target].verdict == "opposite"
    if kind.name == "M7":
        claims["the second alone is inert"] = conditions["second edited"][target].verdict == "inert"
        claims["both reverse"] = conditions["both edited"][target].verdict == "opposite"
        for which in ("first", "second"):
            claims[f"the {which} trigger alone is inert"] = (
                conditions[f"{which} trigger alone"][target].verdict == "inert"
            )
    others = [name for name in conditions["edited"] if _family(name) != _family(target)]
    # A constant answer, or junk, is said whatever is asked, and drowns other answers without turning them.
    least, said = (-MARGIN, "turned") if kind.name == "M4" else (MARGIN, "turned or off")
    claims[f"no side of another behaviour is {said}"] = all(
        min(conditions[key][name].sides) > least for key in ("edited", "triggered") for name in others
    )
    return claims


def _family(name: str) -> str:
    return "purpose" if name == "purpose" else "pronoun"
