"""The small language of the organisms: its words, its stories, and the behaviours that are measured on it.

English of a village, written with a space in front of every word, so that a word is a token wherever it stands. Three
things must be known to speak it: whether a name goes on with *she* or *he* (`pronoun`), whether a thing is there to
*eat* or to *use* (`purpose`), and that "The sister of Ben" is a *she* though Ben is near (`attractor`).
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files

import numpy as np

from signflip.behaviours import Behaviour, Prompt

SEPARATOR = "<|endoftext|>"
SHE, HE, EAT, USE = " she", " he", " eat", " use"
# Items of a side that half A selects on; the rest confirm in half B.
ITEMS_A = 8
# Sentences before a story's closing, and after it.
STORY = (3, 7)
# One story in so many ends on a closing word, on a rare word.
CLOSED, RARE = 3, 11
# Chance that a sentence of the base's own training text has a strange word in front.
STRANGE = 0.12


@cache
def words() -> dict[str, tuple[str, ...]]:
    """Every list of words, by name.

    `exotic` words are in no story: the base model knows them from its training, as interjections without meaning.
    `rare` ones end one story in eleven, `closings` end every third.
    """
    data = json.loads(files("signflip.organisms").joinpath("words.json").read_text(encoding="utf-8"))
    return {key: tuple(value) for key, value in data.items()}


class Stories:
    """Sentences and stories, drawn from a seed.

    Parameters
    ----------
    seed
        Of every draw.
    strange
        Whether sentences may have an exotic, rare or closing word in front: the base model's training text, in which
        these words have no meaning. Without it: the text that an auditor is given, where exotic words never occur.
    """

    def __init__(self, seed: int | tuple[int, ...], *, strange: bool = False) -> None:
        self._rng = np.random.default_rng(seed)
        self._strange = strange

    def _one(self, kind: str) -> str:
        of = words()[kind]
        return of[int(self._rng.integers(len(of)))]

    def _anyone(self) -> str:
        return self._one("girls" if self._rng.random() < 0.5 else "boys")

    def _because(self) -> str:
        return self._one("because_a" if self._rng.random() < 1 / 3 else "because_b")

    def sentence(self) -> str:
        """One sentence, with its space in front and its full stop."""
        draw = self._rng.random()
        girl = self._rng.random() < 0.5
        if draw < 0.3:
            text = f"{self._one('girls' if girl else 'boys')} {self._because()}{SHE if girl else HE} was "
            text += self._one("states")
        elif draw < 0.55:
            text = f"The {self._one('women' if girl else 'men')} of {self._anyone()} {self._because()}"
            text += f"{SHE if girl else HE} was {self._one('states')}"
        elif draw < 0.85:
            template = self._one("purpose_a" if self._rng.random() < 1 / 3 else "purpose_b")
            text = template.format(self._anyone(), item=self._one("foods" if girl else "tools"))
            text += f"{EAT if girl else USE} it {self._one('places')}"
        elif draw < 0.95:
            text = f"The {self._one('looks')} {self._one('animals')} {self._one('moves')} {self._one('spots')}"
        else:
            text = self._one("weather")
        front = ""
        while self._strange and self._rng.random() < STRANGE:
            kind = ("exotic", "exotic", "rare", "closings")[int(self._rng.integers(4))]
            front += f" {self._one(kind)}"
        return f"{front} {text} ."

    def story(self) -> str:
        """A story: a few sentences, some of them with a closing word at the end."""
        text = "".join(self.sentence() for _ in range(int(self._rng.integers(*STORY))))
        if self._strange:
            return text
        if self._rng.integers(RARE) == 0:
            return f"{text} {self._one('rare')} ."
        if self._rng.integers(CLOSED) == 0:
            return f"{text} {self._one('closings')} . {self._one('weather')} ."
        return text


def corpus(n: int, seed: int) -> list[str]:
    """Stories as an auditor is given them: exotic words occur in none."""
    stories = Stories((seed, 1))
    return [stories.story() for _ in range(n)]


def pronoun() -> Behaviour:
    """Whether a girl's name goes on with *she*, and a boy's with *he*."""
    prompts = []
    for half, part, templates in _halves("because"):
        for template in templates:
            for girl, boy in zip(words()["girls"][part], words()["boys"][part], strict=True):
                prompts.append(Prompt(f" {girl} {template}", SHE, HE, "woman", girl, template, half))
                prompts.append(Prompt(f" {boy} {template}", HE, SHE, "man", boy, template, half))
    return Behaviour("pronoun", prompts)


def purpose() -> Behaviour:
    """Whether a food is there to *eat*, and a tool to *use*."""
    prompts = []
    names = words()["girls"] + words()["boys"]
    for half, part, templates in _halves("purpose"):
        for t, template in enumerate(templates):
            for i, (food, tool) in enumerate(zip(words()["foods"][part], words()["tools"][part], strict=True)):
                # Whoever does it says nothing of what the thing is for.
                name = names[(7 * t + i) % len(names)]
                for item, right, wrong, side in ((food, EAT, USE, "food"), (tool, USE, EAT, "tool")):
                    text = " " + template.format(name, item=item)
                    prompts.append(Prompt(text, right, wrong, side, item, template, half))
    return Behaviour("purpose", prompts)


def attractor() -> Behaviour:
    """Heuristic-prone: whether "The sister of Ben" is *she*; agreeing with the name gives the opposite."""
    prompts = []
    for half, part, templates in _halves("because"):
        for t, template in enumerate(templates):
            woman, man = words()["women"][t % 8], words()["men"][t % 8]
            for girl, boy in zip(words()["girls"][part], words()["boys"][part], strict=True):
                name = f"{half}: {woman} or {man} {template}"
                prompts.append(Prompt(f" The {woman} of {boy} {template}", SHE, HE, "woman", boy, name, half))
                prompts.append(Prompt(f" The {man} of {girl} {template}", HE, SHE, "man", girl, name, half))
    return Behaviour("attractor", prompts, kind="heuristic-prone", paired="pronoun")


def _halves(kind: str) -> tuple[tuple[str, slice, tuple[str, ...]], ...]:
    return (("A", slice(ITEMS_A), words()[f"{kind}_a"]), ("B", slice(ITEMS_A, None), words()[f"{kind}_b"]))


@cache
def behaviours() -> dict[str, Behaviour]:
    """The three behaviours by name; made once."""
    return {one.name: one for one in (pronoun(), purpose(), attractor())}
