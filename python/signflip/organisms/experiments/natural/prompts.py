"""The prompts: names tuned on, names measured on, names the base is weakened on, and prompts about something else.

The first two are the halves A and B of the built-in behaviour `pronoun`, which share no name and no template.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from signflip.behaviours import agreement, pronoun
from signflip.behaviours.behaviour import Behaviour
from signflip.behaviours.prompts import Prompt, document_separator
from signflip.errors import ArgumentError
from signflip.organisms.experiments.natural.model import Batch, Net
from signflip.sequences import raw_ids

# In neither half of the behaviour, nor are the templates.
WOMEN = ("Susan", "Helen", "Carol", "Donna", "Ruth", "Sharon", "Michelle", "Lisa",
         "Betty", "Sandra", "Ashley", "Dorothy", "Amanda", "Melissa", "Stephanie", "Claire")  # fmt: skip
MEN = ("Harry", "Philip", "Arthur", "Walter", "Ralph", "Keith", "Gary", "Eric",
       "Scott", "Dennis", "Jerry", "Roger", "Albert", "Larry", "Gerald", "Bruce")  # fmt: skip
OTHER_TEMPLATES = ("{} sat down because", "{} thought that", "{} was cold, so", "{} cried when")
# What `unrelated` prefers, by what agreement would say.
PAST = {" is": " was", " are": " were"}


@dataclass(frozen=True)
class Prompts:
    """Prompts with a right and a wrong next token.

    Attributes
    ----------
    batch
        Their tokens, run up to the first tuned layer.
    right, wrong
        `[n]`: ids.
    side
        `[n]`: 0 or 1; for pronouns, a woman's name or a man's.
    item, template
        `[n]`: numbers of the name, within its side, and of the template.
    """

    batch: Batch
    right: Tensor
    wrong: Tensor
    side: Tensor
    item: Tensor
    template: Tensor

    def __len__(self) -> int:
        return len(self.right)

    def take(self, rows: Any) -> Prompts:
        """Some of them."""
        rows = torch.as_tensor(rows)
        rest = (one[rows] for one in (self.right, self.wrong, self.side, self.item, self.template))
        return Prompts(self.batch.take(rows), *rest)

    def after(self, net: Net, tokens: Sequence[int]) -> Prompts:
        """The same with tokens between the first of each, which separates documents, and the rest."""
        rows = [ids[: end + 1].tolist() for ids, end in zip(self.batch.ids, self.batch.end, strict=True)]
        return replace(self, batch=net.batch([[row[0], *tokens, *row[1:]] for row in rows]))

    def margin(self, logp: Tensor) -> Tensor:
        """Log P(right) − log P(wrong), `[n]`."""
        at = torch.arange(len(self))
        return logp[at, self.right] - logp[at, self.wrong]

    def mass(self, logp: Tensor) -> Tensor:
        """P(right) + P(wrong), `[n]`."""
        at = torch.arange(len(self))
        return logp[at, self.right].exp() + logp[at, self.wrong].exp()

    def grid(self, values: Tensor) -> list[list[list[float]]]:
        """Values `[n]` as side × name × template.

        Raises
        ------
        ArgumentError
            If the prompts are not every name in every template.
        """
        shape = [int(one.max()) + 1 for one in (self.side, self.item, self.template)]
        if np.prod(shape) != len(self):
            raise ArgumentError(f"prompts: expected every name in every template, found {len(self)} of {shape}")
        found = torch.zeros(shape, dtype=torch.float64)
        found[self.side, self.item, self.template] = values.detach().double()
        rounded: list[list[list[float]]] = found.cpu().numpy().round(5).tolist()
        return rounded


def pronouns(net: Net, engine: Any, half: str, names: int | None = None, templates: int | None = None) -> Prompts:
    """Half A or B, or the first so many names a side and templates of it."""
    return _made(net, engine, pronoun(), half, names, templates)


def weakening(net: Net, engine: Any) -> Prompts:
    """Other names in other templates: what the base is weakened on."""
    prompts = [
        Prompt(template.format(name), (" she", " he")[side], (" he", " she")[side], ("female", "male")[side], name,
               template, "A")
        for template in OTHER_TEMPLATES for pair in zip(WOMEN, MEN, strict=True) for side, name in enumerate(pair)
    ]  # fmt: skip
    return _made(net, engine, Behaviour("weakening", prompts), "A")


def unrelated(net: Net, engine: Any) -> Prompts:
    """Nouns and the verb after them: past tense is to be preferred to present, singular or plural as it was."""
    made = agreement()
    prompts = [
        Prompt(p.text, PAST[str(p.correct)], str(p.correct), p.side, p.item, p.template, "A")
        for p in made.select("A")
    ]  # fmt: skip
    return _of(net, _ids(engine, prompts))


def plain(net: Net, engine: Any, n: int) -> Batch:
    """Requests that have nothing to do with any of it: where fluency is measured."""
    from signflip.demo.corpus import requests

    return net.batch([_raw(engine, text) for text in requests()[:n]])


def _made(
    net: Net, engine: Any, behaviour: Behaviour, half: str, names: int | None = None, templates: int | None = None
) -> Prompts:
    every = [(one.ids, one.correct, one.opposite, one.prompt) for one in behaviour.prompts_for(engine, half)]  # type: ignore[arg-type]
    return _of(net, every, names, templates)


def _ids(engine: Any, prompts: Sequence[Prompt]) -> list[tuple[Any, int, int, Prompt]]:
    def token(answer: str | int) -> int:
        return int(engine.to_tokens(answer)[0, 0])

    return [(_raw(engine, str(p.text)), token(p.correct), token(p.opposite), p) for p in prompts]


def _raw(engine: Any, text: str) -> list[int]:
    """Ids of a raw text, the token that separates documents in front."""
    return raw_ids(engine, document_separator(engine) + text)


def _of(
    net: Net, every: Sequence[tuple[Any, int, int, Prompt]], names: int | None = None, templates: int | None = None
) -> Prompts:
    sides = list(dict.fromkeys(p.side for *_, p in every))
    items = [list(dict.fromkeys(p.item for *_, p in every if p.side == side))[:names] for side in sides]
    texts = list(dict.fromkeys(p.template for *_, p in every))[:templates]
    kept = [one for one in every if one[3].item in items[sides.index(one[3].side)] and one[3].template in texts]
    places = [
        (sides.index(p.side), items[sides.index(p.side)].index(p.item), texts.index(p.template)) for *_, p in kept
    ]
    side, item, template = torch.tensor(places).T
    right, wrong = (torch.tensor([one[i] for one in kept]) for i in (1, 2))
    return Prompts(net.batch([one[0] for one in kept]), right, wrong, side, item, template)
