"""The stages that every demonstration has, each timed, each writing what the next one reads."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import signflip as sf
from signflip.behaviours import document_separator
from signflip.demo import pictures
from signflip.demo.summary import Summary

NEARLY = 1e-3
PROMPTS_SEARCHED = 8
SHOWN_TOKENS = 10


@dataclass
class Stage:
    """Where the time went."""

    say: Callable[[str], None]
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time a stage and say so."""
        self.say(f"\n=== {name}")
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start
        self.say(f"=== {name}: {self.seconds[name]:.0f} s")


@dataclass
class Way:
    """What one stage leaves for the next.

    Attributes
    ----------
    model, path, out, seed, progress, say, summary
        What is looked at, where results go, and how they are told.
    behaviours
        What is measured.
    scanning
        Arguments of `sf.scan`.
    """

    model: Any
    path: str
    out: Path
    seed: int
    progress: bool
    say: Callable[[str], None]
    summary: Summary
    behaviours: Sequence[sf.Behaviour]
    scanning: Mapping[str, Any]
    surveyed: Any = None
    features: Any = None
    scanned: Any = None
    turned: Any = None

    def survey(self, documents: Any, **more: Any) -> None:
        """One pass over all of it."""
        prefix = document_separator(self.model)
        self.surveyed = sf.survey(
            self.model,
            documents,
            prefix=prefix or None,
            out=self.out / "model.survey",
            top=3,
            progress=self.progress,
            **more,
        )
        self.features = self.surveyed.one_sided(max_rate=NEARLY)
        strict = self.strict()
        self.say(f"{self.surveyed}")
        self.say(f"one-sided on every token: {len(strict)}; on all but {NEARLY:g}: {len(self.features)}")
        self.say(type(self.features)(strict).table(20))
        (self.out / "one-sided.json").write_text(self.features.to_json() + "\n", encoding="utf-8")
        self.summary.survey(self.surveyed, prefix, strict, self.features, NEARLY)

    def strict(self) -> list[Any]:
        """Those whose other side was never seen."""
        return [feature for feature in self.features if feature.rate == 0]

    def scan(self) -> None:
        """Every nearly one-sided feature against every behaviour."""
        if not self.features:
            self.say("no feature is one-sided at this rate: nothing to scan")
            return
        self.scanned = sf.scan(
            self.model,
            self.features,
            self.behaviours,
            seed=self.seed,
            progress=self.progress and sys.stderr.isatty(),
            **self.scanning,
        )
        self.scanned.save(self.out / "scan.json")
        self.say(self.scanned.table(12))
        self.say(self.scanned.summary())
        self.summary.scan(self.scanned)

    def behaviour(self, name: str) -> sf.Behaviour:
        """The behaviour of a name."""
        (found,) = (one for one in self.behaviours if one.name == name)
        return found

    def show(self, row: Any) -> None:
        """A turned feature's dose curve on every behaviour, and what the model answers before and after."""
        self.turned = row
        behaviours = [one for one in self.behaviours if one.name in self.scanned.behaviours]
        full = sf.scan(
            self.model, [row.feature], behaviours, screen=0, tiers=("T0",), confirm=0, replicates=500, seed=self.seed
        )
        curves = {}
        for name in full.behaviours:
            rows = [r for r in full.curve(row.feature, name) if r.tier == "T0" and r.score.refusal is None]
            curves[name] = [
                pictures.Dose(r.dose.value, r.score.s.value, r.score.s.low, r.score.s.high, bool(r.dose.extrapolated))
                for r in rows
            ]
        seen = (row.feature.min, row.feature.max)
        drawn = pictures.available()
        if drawn:
            pictures.dose_curves(self.out / "dose-curves.png", row.feature.name, curves, seen)
        answers = self.before_and_after(row)
        self.say(f"{row.feature.name} at {row.dose.name} ({row.dose.value:+.3g}) on {row.behaviour}: {row.verdict}")
        for text, clean, edited in answers:
            self.say(f"  {text!r} -> {clean!r} | flipped: {edited!r}")
        self.summary.turned(row, answers, "dose-curves.png" if drawn else None)

    def before_and_after(self, row: Any) -> list[tuple[str, str, str]]:
        """What the model says on four prompts of that behaviour, clean and with the feature set to the dose."""
        behaviour = self.behaviour(row.behaviour)
        prompts = behaviour.prompts_for(self.model, "B")
        shown = [prompts[i] for i in behaviour.subset(4, "B", seed=self.seed)]
        edit = sf.Edit(row.feature.site, "set", row.dose.value, index=row.feature.index)
        ids = [list(one.ids) for one in shown]
        out = []
        clean = self.model.generate(ids, SHOWN_TOKENS)
        edited = self.model.generate(ids, SHOWN_TOKENS, edits=[edit])
        for start, a, b in zip(ids, clean, edited, strict=True):
            text = self.model.to_string(start)[-60:]
            out.append((text, self.model.to_string(a[len(start) :]), self.model.to_string(b[len(start) :])))
        return out

    def search_inside(self, row: Any, out: str, **budget: Any) -> tuple[Any, sf.Behaviour, Any, float]:
        """A trigger for a turned feature inside prompts of its behaviour.

        Returns
        -------
        feature, behaviour, result, where
            The feature as the survey has it, the search's result, and X's mean over the prompts with the best trigger.
        """
        behaviour = self.behaviour(row.behaviour)
        (feature,) = (one for one in self.features if place(one) == place(row.feature))
        objective, contexts = self.inside(feature, behaviour)
        result = sf.search(
            self.model,
            objective,
            contexts=contexts,
            seed=self.seed,
            out=self.out / out,
            progress=self.progress,
            **budget,
        )
        where = -feature.side * result.best.value
        self.say(f"inside {len(contexts)} prompts: mean {where:+.3g} on {result.best.text!r}")
        return feature, behaviour, result, where

    def inside(self, feature: Any, behaviour: sf.Behaviour) -> tuple[Any, list[Any]]:
        """Where the scan says that the effect is carried; else all that follows the trigger, in a few prompts."""
        for one in self.scanned.reversed():
            if place(one.feature) == place(feature) and one.behaviour == behaviour.name and one.contexts:
                return one.flip(), one.contexts[:PROMPTS_SEARCHED]
        prompts = behaviour.prompts_for(self.model, "A")
        chosen = behaviour.subset(PROMPTS_SEARCHED, "A", seed=self.seed)
        return feature.flip(position="after"), [(prompts[i].before, prompts[i].after) for i in chosen]

    def flip_test(self, feature: Any, behaviour: sf.Behaviour, result: Any, where: float) -> Any:
        """The table of controls for a feature and its trigger."""
        test = sf.flip(self.model, feature, result, behaviour, seed=self.seed)
        test.save(self.out / "flip-test.json")
        self.say(str(test))
        self.summary.flip_test(feature, behaviour, result, where, test)
        return test


def place(feature: Any) -> tuple[str, int]:
    """Which feature it is."""
    return feature.site, feature.index
