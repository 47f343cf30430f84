"""The behaviours that come with signflip.

Each is items × templates, in two halves that share neither: half A to select on (at least 8 items a side × 4
templates), half B to confirm on (at least 20 × 8). The symmetric ones have no shallow heuristic that yields the
opposite answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.resources import files
from typing import Any

from signflip.behaviours.behaviour import HALVES, Behaviour
from signflip.behaviours.prompts import Prompt


def _build(name: str) -> Behaviour:
    """A behaviour from its data file.

    The file has `kind`, `chat`, `sides`, `answers` (or answers with each item), and for each half `templates` and
    `items`. A template is a text, or one for each side; `{}` (or `{0}`, `{1}`, ...) stands for what the item puts
    there on that side, `{lower}` for the same with a small first letter, `{answer}` for the right answer. An item is
    what it puts there, or one of these for each side.
    """
    data = json.loads(files("signflip.behaviours").joinpath(f"data/{name}.json").read_text(encoding="utf-8"))
    prompts: list[Prompt] = []
    for half in HALVES:
        for template in data[half]["templates"]:
            for item in data[half]["items"]:
                prompts.extend(_pair(data, half, template, item))
    return Behaviour(name, prompts, kind=data["kind"], chat=data.get("chat", False), paired=data.get("paired"))


def _pair(data: dict[str, Any], half: str, template: str | list[str], item: Any) -> list[Prompt]:
    """The two prompts of an item in a template, one a side."""
    both = item if isinstance(item, list) else [item, item]
    answers = data["answers"] if "answers" in data else [" " + one["answer"] for one in both]
    out = []
    for side in (0, 1):
        fill = both[side]["fill"] if isinstance(both[side], dict) else [both[side]]
        text = template if isinstance(template, str) else template[side]
        filled = text.format(*fill, lower=fill[0][:1].lower() + fill[0][1:], answer=answers[side])
        # Items of unrelated things (a woman's and a man's name) are clusters of their own, mates are one.
        label = str(fill[0]) if data.get("nested") else "/".join(_label(one) for one in both)
        out.append(
            Prompt(
                filled, answers[side], answers[1 - side], data["sides"][side], label, _name(template), half, None,
                data.get("prefill", ""),
            )
        )  # fmt: skip
    return out


def _label(one: Any) -> str:
    return " ".join(one["fill"]) if isinstance(one, dict) else str(one)


def _name(template: str | list[str]) -> str:
    return template if isinstance(template, str) else " | ".join(template)


def sentiment() -> Behaviour:
    """Whether a review is positive or negative, with four examples in front."""
    return _build("sentiment")


def pronoun() -> Behaviour:
    """Whether a woman's name goes on with *she*, and a man's with *he*."""
    return _build("pronoun")


def moral() -> Behaviour:
    """Whether an act is good or bad, with four examples in front."""
    return _build("moral")


def say() -> Behaviour:
    """Whether the model, asked in chat to say *Yes* or to say *No*, does so."""
    return _build("say")


def language() -> Behaviour:
    """Whether a French sentence goes on with *la*, and an English one with *the*."""
    return _build("language")


def capital() -> Behaviour:
    """Whether a country's capital is preferred to another country's."""
    return _build("capital")


def agreement() -> Behaviour:
    """Whether a singular noun goes on with *is*, and a plural with *are*."""
    return _build("agreement")


def antonym() -> Behaviour:
    """Heuristic-prone: whether a word's opposite is preferred to the word itself, which copying yields."""
    return _build("antonym")


def indirect_object() -> Behaviour:
    """Heuristic-prone: whether the one who gets something is preferred to the giver, whose name was read last."""
    return _build("indirect_object")


def attractor() -> Behaviour:
    """Heuristic-prone: whether the verb agrees with its noun, not with a nearer one; goes with `agreement`."""
    return _build("attractor")


BUILTIN: tuple[Callable[[], Behaviour], ...] = (
    sentiment, pronoun, moral, say, language, capital, agreement, antonym, indirect_object, attractor,
)  # fmt: skip


def all() -> list[Behaviour]:  # noqa: A001 - `sf.behaviours.all()` is the contract's word
    """Every behaviour that comes with signflip, the heuristic-prone ones last."""
    return [make() for make in BUILTIN]
