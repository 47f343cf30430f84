"""What a search found, as an object and as a file."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from signflip import checks
from signflip.errors import FileError, SearchError
from signflip.files import read_text
from signflip.objectives import Objective
from signflip.scoring import Prompts

FORMAT = "signflip search 1"

# Objectives that a printed result names.
SHOWN = 4

# One objective of all contexts, or one a context.
Raised = Objective | tuple[Objective, ...]

# What a file's settings and work hold, and of which type.
_SETTINGS: dict[str, type | tuple[type, ...]] = {
    "method": str,
    "variant": str,
    "tokens": int,
    "steps": int,
    "width": int,
    "topk": int,
    "population": int,
    "aggregate": str,
    "seed": int,
    "stop_at": (float, int, type(None)),
    "prune": bool,
    "screen": int,
    "patience": int,
    "start": list,
    "start_required": bool,
    "contexts": list,
    "filters": dict,
    "allowed": str,
    "model": str,
    "device": str,
    "dtype": str,
}
_WORK = ("steps", "values", "looked_up", "pruned")


@dataclass(frozen=True)
class Found:
    """A prompt that a search chose.

    Attributes
    ----------
    tokens
        The free tokens.
    text
        Their text, None without a tokenizer.
    value
        The objective, over all contexts; NaN where it is not finite.
    cross_entropy
        Nats a token, over the free tokens that have something in front of them, the mean over all contexts; None on a
        reward model.
    """

    tokens: list[int]
    text: str | None
    value: float
    cross_entropy: float | None


@dataclass(frozen=True)
class Best(Found):
    """The prompt of the highest value.

    Attributes
    ----------
    sequences
        The whole ids, one list a context. Scoring them gives `value` again (with contexts, after aggregation).
    """

    sequences: Prompts


@dataclass(frozen=True)
class Step:
    """The population after a step.

    Attributes
    ----------
    event
        ``"start"``, ``"step"``, ``"restart"`` (all slots take the prompt best at one penalty) or ``"fresh"`` (the
        population stood still and was drawn anew).
    members
        One a slot.
    """

    event: str
    members: list[Found]


@dataclass(frozen=True)
class SearchResult:
    """What a search found, and what it rests on.

    Attributes
    ----------
    best
        The prompt of the highest value of all that were scored in every context.
    front
        The Pareto front of value against cross-entropy over the members ever chosen, lowest cross-entropy first.
    history
        The chosen members, step by step; the first is the start.
    ended
        ``"steps"``, ``"reached"`` (`stop_at`) or ``"exhausted"`` (every prompt of allowed tokens was met).
    work
        Counts of work done and saved.
    objective
        What was raised; where each context had an objective of its own, these.
    settings
        All that decides the result: the arguments, the contexts' ids, the model's hash.
    version
        Of signflip.
    """

    best: Best
    front: list[Found]
    history: list[Step]
    ended: str
    work: dict[str, int]
    objective: Raised
    settings: dict[str, Any]
    version: str

    def __str__(self) -> str:
        s, w = self.settings, self.work
        ended = f"{w['steps']} steps ({self.ended})"
        counts = f"{w['values']} values, {w['looked_up']} looked up, {w['pruned']} pruned"
        lines = [
            f"{s['method']} ({s['variant']}), {s['tokens']} tokens, seed {s['seed']}: {ended}",
            counts,
            f"raised: {_in_contexts(self.objective)}",
            f"{'value':>10}  {'nats/token':>10}  prompt",
        ]
        for found in self.front:
            entropy = "" if found.cross_entropy is None else f"{found.cross_entropy:.3f}"
            lines.append(f"{found.value:>10.4g}  {entropy:>10}  {_shown(found)}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """A form that JSON can hold; prompts are listed once."""
        index: dict[tuple[int, ...], int] = {}
        prompts: list[dict[str, Any]] = []

        def place(found: Found) -> int:
            key = tuple(found.tokens)
            if key not in index:
                index[key] = len(prompts)
                prompts.append(
                    {
                        "tokens": found.tokens,
                        "text": found.text,
                        # JSON has neither infinities nor NaN.
                        "value": found.value if math.isfinite(found.value) else None,
                        "cross_entropy": found.cross_entropy,
                    }
                )
            return index[key]

        return {
            "format": FORMAT,
            "version": self.version,
            "settings": self.settings,
            "objective": self.objective.to_dict()
            if isinstance(self.objective, Objective)
            else [one.to_dict() for one in self.objective],
            "best": place(self.best),
            "sequences": list(self.best.sequences),
            "spans": [list(span) for span in self.best.sequences.spans],
            "front": [place(found) for found in self.front],
            "history": [
                {"event": step.event, "members": [place(found) for found in step.members]} for step in self.history
            ],
            "ended": self.ended,
            "work": self.work,
            "prompts": prompts,
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the result as JSON, whole or not at all.

        Raises
        ------
        FileError
            If the file cannot be written.
        ArgumentError
            If `path` is none.
        """
        _write(
            checks.path("path", path),
            json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), allow_nan=False) + "\n",
        )

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> SearchResult:
        """A result that `save` wrote.

        Raises
        ------
        FileError
            If the file cannot be read.
        SearchError
            If it is not a search's result, whole.
        ArgumentError
            If `path` is none.
        """
        path = checks.path("path", path)
        text = read_text(path, "a search's result")
        try:
            return cls._from_dict(json.loads(text))
        except KeyError as err:
            raise SearchError(f"search: {path}: expected a result that signflip wrote, found none of {err}") from err
        except (ValueError, TypeError, IndexError, AttributeError, RecursionError, OverflowError) as err:
            raise SearchError(f"search: {path}: expected a result that signflip wrote, found something else") from err

    @classmethod
    def _from_dict(cls, data: Mapping[str, Any]) -> SearchResult:
        if data["format"] != FORMAT:
            raise ValueError(data["format"])
        for name, kind in _SETTINGS.items():
            if not isinstance(data["settings"][name], kind):
                raise TypeError(name)
        work = {name: int(count) for name, count in data["work"].items()}
        for name in _WORK:
            work[name]
        texts = [data["ended"], data["version"], *(step["event"] for step in data["history"])]
        texts += [p["text"] for p in data["prompts"] if p["text"] is not None]
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("text")
        prompts = [
            Found(
                [int(one) for one in p["tokens"]],
                p["text"],
                math.nan if p["value"] is None else float(p["value"]),
                _number(p["cross_entropy"]),
            )
            for p in data["prompts"]
        ]
        best = prompts[data["best"]]
        spans = [(start, end) for start, end in data["spans"]]
        raised = data["objective"]
        if isinstance(raised, list) and len(raised) != len(data["settings"]["contexts"]):
            raise ValueError("objective")
        return cls(
            best=Best(best.tokens, best.text, best.value, best.cross_entropy, Prompts(data["sequences"], spans)),
            front=[prompts[i] for i in data["front"]],
            history=[Step(step["event"], [prompts[i] for i in step["members"]]) for step in data["history"]],
            ended=data["ended"],
            work=work,
            objective=tuple(map(Objective.from_dict, raised))
            if isinstance(raised, list)
            else Objective.from_dict(raised),
            settings=data["settings"],
            version=data["version"],
        )


def _in_contexts(objective: Raised) -> str:
    if isinstance(objective, Objective):
        return str(objective)
    count = Counter(objective).most_common()
    said = [f"{one} in {n} context{'s' * (n > 1)}" for one, n in count[:SHOWN]]
    return "; ".join([*said, *([f"{len(count) - SHOWN} others"] if len(count) > SHOWN else [])])


def _shown(found: Found) -> str:
    return repr(found.text) if found.text is not None else str(found.tokens)


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _write(path: Path, text: str) -> None:
    beside = path.with_name(path.name + ".tmp")
    try:
        with beside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as err:
        raise FileError(f"{path}: {err.strerror or err}") from err
