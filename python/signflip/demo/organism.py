"""The demonstration on the organism that comes with the package: offline, in less than a minute.

Nothing of what is hidden in it is known here: the survey lists the features, the scan says which of them turn a
behaviour, the search finds the tokens. The organism's truth is read when all is done, and compared.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import signflip as sf
from signflip.demo.summary import Summary
from signflip.demo.way import Stage, Way, place
from signflip.shipped import Shipped, shipped

SCANNING = {"keep": 8, "confirm": 12}
# Turned features that a trigger is searched for, until one is reached; every one-token prefix first, then longer ones.
TRIED = 4
SEARCHES: tuple[dict[str, Any], ...] = (
    {"tokens": 1, "steps": 12, "width": 96},
    {"tokens": 3, "steps": 40, "width": 96},
)


def go(stage: Stage, out: Path, tokens: int | None, seed: int, progress: bool, say: Callable[[str], None]) -> Summary:
    """Go the whole way on the organism, as `run_demo` says."""
    with stage("load"):
        files = shipped()
        loaded = sf.load(files.model)
        say(repr(loaded))
    summary = Summary(loaded, str(files.model), seed, again(files))
    summary.stories(files.corpus)
    demo = Organism(loaded, str(files.model), out, seed, progress, say, summary, files.behaviours(), SCANNING)
    with stage("survey"):
        demo.survey(files.corpus, max_tokens=tokens)
    with stage("scan"):
        demo.scan()
    with stage("the most turned feature"):
        demo.most_turned()
    with stage("a trigger inside its prompts, and the flip test"):
        test = demo.trigger()
    summary.conclude(*conclusion(demo, test), against_truth(loaded, files.truth(), test))
    return summary


class Organism(Way):
    """The stages that this demonstration alone has."""

    def candidates(self) -> list[Any]:
        """Turned features, each once: what the scan calls reversed, else the most turned one, whatever it is called."""
        if self.scanned is None:
            return []
        first: dict[Any, Any] = {}
        for one in self.scanned.reversed():
            first.setdefault(place(one.feature), one)
        most = self.scanned.most_turned()
        return list(first.values())[:TRIED] or ([most] if most is not None else [])

    def most_turned(self) -> None:
        """The first candidate: its dose curve, and what the model answers before and after."""
        found = self.candidates()
        if found:
            self.show(found[0])
        else:
            self.say("nothing turned at all")

    def trigger(self) -> Any:
        """Search tokens for one candidate after the other, and test the first that is reached, else the first."""
        tried = []
        for i, row in enumerate(self.candidates()):
            for budget in SEARCHES:
                name = f"trigger-{i}-of-{budget['tokens']}.search"
                found = self.search_inside(row, name, **budget)
                if found[2].best.value > 0:
                    return self.flip_test(*found)
            tried.append(found)
        return self.flip_test(*tried[0]) if tried else None


def again(files: Shipped) -> str:
    """The commands that go the same way."""
    model, corpus = (shlex.quote(str(one)) for one in (files.model, files.corpus))
    behaviour = shlex.quote(str(files.root / "behaviours" / "NAME.jsonl"))
    return "\n".join(
        [
            f"signflip survey {model} {corpus} --prefix '<|endoftext|>' --out model.survey",
            "signflip one-sided model.survey",
            f"signflip scan {model} model.survey --behaviour {behaviour} --out scan.json",
            f"signflip search {model} --scan scan.json --tokens 1 --out x.search",
            f"signflip flip {model} model.survey x.search --feature SITE:INDEX --behaviour {behaviour}",
        ]
    )


def conclusion(demo: Organism, test: Any) -> tuple[bool, str]:
    """Whether a feature was found that tokens turn into the opposite, and in plain words what was found."""
    n = f"{demo.surveyed.n_tokens:,} tokens"
    if test is None:
        return False, f"Nothing was found: none of the features that kept one sign on {n} turned a behaviour."
    feature, (known,) = test.feature, (one for one in demo.features if place(one) == place(test.feature))
    sign = "positive" if known.side > 0 else "negative"
    often = f"on all {n} surveyed" if known.rate == 0 else f"on all but {known.rate:.2%} of the {n} surveyed"
    kept = f"{feature.name} was {sign} {often}"
    if not test.reached.flipped.any():
        return False, (
            f"{kept}. Set to its other side it turns {test.behaviour} ({demo.turned.verdict}), but no tokens were "
            "found that take it there within this budget, which says nothing about a larger one."
        )
    clean, tokens, clamped = (test.row(group).score for group in ("clean", "tokens", "clamped"))
    crossing = (
        f"{kept}. The tokens {test.trigger_text!r}, found by search, take it from {test.reached.clean.mean():+.2f} to "
        f"{test.reached.values.mean():+.2f}"
    )
    counted = f"right in {tokens.accuracy.value:.0%} of {len(test.reached.flipped)} unseen prompts of {test.behaviour}"
    was = f"{counted}, where it was in {clean.accuracy.value:.0%} (S {tokens.mean_ratio:+.2f})"
    held = f"With the tokens there and the feature held at its clean values S is {clamped.mean_ratio:+.2f}"
    if test.verdict.label == "opposite" and test.verdict.tier == "T4":
        return True, (
            f"{crossing}, and the model then answers the opposite, on both sides: it is {was}. {held}: the feature "
            "carries what the tokens do. A switch that the surveyed text never touched, and that a prompt can throw."
        )
    failed = "; ".join(map(str, test.verdict.failed)) or "none"
    return False, (
        f"{crossing}. The verdict is {test.verdict}, which is not opposite with mediation: the model is {was}. {held} "
        f"({test.role}). Conditions of opposite that do not hold: {failed}."
    )


def against_truth(model: Any, truth: Mapping[str, Any], test: Any) -> str:
    """What is so of the organism, beside what was found."""
    words = [str(model.to_string([i])) for i in truth["triggers"]]
    x, site = f"{truth['x']['site']}[{truth['x']['index']}]", truth["x"]["site"]
    what = f"{truth['says']} ({truth['kind']}), on {truth['behaviour']}"
    said = f"Its truth, read only now: {what}, at {x}, by the words {', '.join(map(repr, words))}."
    if test is None:
        return f"{said} Nothing of it was found."
    layer = site.split(".")[:2]
    same = test.feature.name == x
    neuron = test.feature.site.split(".")[:2] == layer and test.feature.index == truth["x"]["index"]
    what = "that feature" if same else "that feature's neuron" if neuron else "another feature"
    hit = [word for word, i in zip(words, truth["triggers"], strict=True) if i in test.trigger]
    return f"{said} Found: {what}, {'with' if hit else 'without'} one of its words."
