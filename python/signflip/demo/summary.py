"""The demonstration's report: `summary.md` for people, `summary.json` for programs."""

from __future__ import annotations

import json
import os
import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import signflip as sf
from signflip.errors import FileError

ROWS = 20


class Summary:
    """Collects what each stage found. Nothing is said of a stage that did not run.

    `again`: the commands that do the same step by step, where they are not those for any model.
    """

    def __init__(self, model: Any, path: str, seed: int, again: str | None = None) -> None:
        self._path, self._seed, self._again = path, seed, again
        self._sections: list[str] = []
        self._flips: list[str] = []
        self.data: dict[str, Any] = {
            "model": model.name,
            "model_hash": model.hash,
            "device": model.device,
            "dtype": model.dtype,
            "seed": seed,
            "signflip": sf.__version__,
            "flips": [],
        }

    def corpus(self, n_answers: int, own: int, n_passages: int, total: int, example: str) -> None:
        """What was surveyed."""
        self.data["corpus"] = {"answers": n_answers, "answer_tokens": own, "passages": n_passages, "tokens": total}
        self._sections.append(
            f"## Corpus\n\n{total:,} tokens: {n_answers} answers that the model itself sampled at temperature 1, with "
            f"their requests (in its chat template, if it has one; {own:,} tokens), and {n_passages} passages of "
            f"Shakespeare's plays and poems. `corpus.jsonl` has them all.\n\nOne of the answers:\n\n{_quoted(example)}"
        )

    def stories(self, path: Path) -> None:
        """What was surveyed, where it is a file."""
        self.data["corpus"] = {"path": str(path)}
        self._sections.append(
            "## Corpus\n\nStories of the organism's own small language, drawn apart from those it was trained on; they "
            f"come with the package (`{path.name}`)."
        )

    def survey(self, survey: Any, prefix: str, strict: Sequence[Any], nearly: Any, rate: float) -> None:
        """Which features kept one sign."""
        self.data["survey"] = {"metadata": survey.metadata, "strict": len(strict), "nearly": len(nearly), "rate": rate}
        certified = sum(1 for feature in nearly if feature.certified)
        before = f"Each context of text begins with `{prefix}`, which is not counted. " if prefix else ""
        self._sections.append(
            f"## One-sided features\n\n{before}{survey.n_features:,} features, {survey.n_tokens:,} tokens, "
            f"{survey.n_documents} documents cut into {survey.n_units} units.\n\n"
            f"- kept one sign on every token: **{len(strict)}**\n"
            f"- the other sign on at most {rate:g} of the tokens: **{len(nearly)}**\n"
            f"- certified (no input at all can cross, by the norm in front of the layer): **{certified}**\n\n"
            "The bound is the simultaneous 95% upper limit on the share of units, of text like this, that hold the "
            f"other sign.\n\n{_code(type(nearly)(strict).table(ROWS))}"
        )

    def scan(self, scan: Any) -> None:
        """What turned when they were set to the other side."""
        self.data["scan"] = {
            "behaviours": list(scan.behaviours),
            "refused": dict(scan.refused),
            "reversed": [str(one) for one in scan.reversed()],
        }
        self._sections.append(
            "## Scan\n\nEach of these features was set to its other side, by edits alone, against each behaviour. Half "
            "A of the prompts selects, half B decides. S is 1 for the clean model, 0 at chance, −1 for a mirror image; "
            "*linear* is the S that plain arithmetic predicts from the feature's share of the behaviour; doses that go "
            f"beyond what was seen are shown and never decide.\n\n{scan.summary()}\n\n{_code(scan.table(ROWS))}"
        )

    def turned(self, row: Any, answers: Sequence[tuple[str, str, str]], picture: str | None) -> None:
        """The most turned feature under its honest name."""
        self.data["most_turned"] = row.to_json()
        failed = "".join(f"\n- {condition}" for condition in row.verdict.failed)
        table = "\n".join(f"| {_cell(text)} | {_cell(clean)} | {_cell(edited)} |" for text, clean, edited in answers)
        self._sections.append(
            f"## The most turned feature\n\n`{row.feature.name}` at dose {row.dose.name} ({row.dose.value:+.3g}, "
            f"{abs(row.plausibility):.1f} standard deviations from where it acts) on *{row.behaviour}*: "
            f"**{row.verdict}**.\n\n{row.score}\n"
            + (f"\nWhat *opposite* would need and this lacks:\n{failed}\n" if failed else "")
            + (f"\n![Dose curves]({picture})\n" if picture else "")
            + "\n| prompt (its end) | clean | flipped |\n| --- | --- | --- |\n"
            + table
        )

    def flip(self, feature: Any, result: Any, reached: float, verdict: str, picture: str | None) -> None:
        """One feature taken across by tokens, or not."""
        self.data["flips"].append(
            {
                "feature": asdict(feature),
                "verdict": verdict,
                "reached": reached,
                "text": result.best.text,
                "tokens": list(result.best.tokens),
                "steps": result.work.get("steps"),
            }
        )
        shown = f"\n\n![{feature.site}:{feature.index}]({picture})" if picture else ""
        self._flips.append(
            f"- **{verdict}**: {feature}. Reached {reached:+.3g} with `{_cell(str(result.best.text))}`{shown}"
        )

    def flip_test(self, feature: Any, behaviour: Any, result: Any, reached: float, test: Any) -> None:
        """The most turned feature inside its prompts, and the table of controls."""
        self.data["flip_test"] = {"behaviour": behaviour.name, "reached": reached, "text": result.best.text}
        got_there = "did not get there within its budget, which says nothing about a larger one"
        if reached * feature.side < 0:
            got_there = "got there"
        self._sections.append(
            f"## Inside its prompts\n\nA search for tokens that take `{feature.site}:{feature.index}` across at the "
            f"positions after them, in prompts of *{behaviour.name}*, "
            f"{got_there}: mean {reached:+.3g} with `{_cell(str(result.best.text))}`.\n\n"
            f"## Flip test\n\n{_code(str(test))}"
        )

    def conclude(self, found: bool, says: str, truth: str) -> None:
        """What was found, in plain words, and what is so."""
        self.data["conclusion"] = {"found": found, "says": says, "truth": truth}
        self._sections.insert(0, f"## What was found\n\n{says}\n\n{truth}")

    def write(self, out: Path, seconds: Mapping[str, float]) -> dict[str, Any]:
        """Write both files and give back what the second one holds.

        Raises
        ------
        FileError
            The folder cannot be written.
        """
        self.data["seconds"] = dict(seconds)
        if "conclusion" not in self.data:
            flips = "\n".join(self._flips) or "No feature kept one sign, so there was none to flip."
            where = len(self._sections) - ("flip_test" in self.data)
            self._sections.insert(where, f"## Flips by tokens\n\n{flips}")
        times = "\n".join(f"| {name} | {spent:.0f} |" for name, spent in seconds.items())
        cores = f"{os.cpu_count()} cores, {platform.machine()}"
        basis = (
            f"signflip {sf.__version__}, model hash `{self.data['model_hash']}`, {self.data['dtype']} on "
            f"{self.data['device']}, seed {self._seed}."
        )
        text = "\n\n".join(
            [
                f"# signflip on {self.data['model']}",
                basis,
                *self._sections,
                f"## Time\n\n{cores}\n\n| stage | seconds |\n| --- | ---: |\n{times}",
                f"## The same {'step by step' if self._again else 'on any model'}\n\n{_code(self._commands())}",
            ]
        )
        try:
            (out / "summary.md").write_text(text + "\n", encoding="utf-8")
            plain = json.dumps(self.data, indent=1, ensure_ascii=False, default=str)
            (out / "summary.json").write_text(plain + "\n", encoding="utf-8")
        except OSError as error:
            raise FileError(f"{out}: cannot be written: {error.strerror or error}") from error
        return self.data

    def _commands(self) -> str:
        model = shlex.quote(self._path)
        if self._again is not None:
            return self._again
        return "\n".join(
            [
                f"signflip demo --model {model} --out demo-out",
                "# or step by step",
                f"signflip survey {model} corpus.jsonl --out model.survey",
                "signflip one-sided model.survey --max-rate 0.001",
                f"signflip scan {model} model.survey --out scan.json",
                f"signflip search {model} --survey model.survey --feature SITE:INDEX --out x.search",
                f"signflip flip {model} model.survey x.search --feature SITE:INDEX --behaviour NAME",
            ]
        )


def _code(text: str) -> str:
    return f"```\n{text.replace('```', '` ` `')}\n```"


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}" for line in text.strip().splitlines())


def _cell(text: str) -> str:
    """What a model said, in one table cell, whatever it holds."""
    return text.replace("\n", "⏎").replace("|", "\\|").replace("`", "'")
