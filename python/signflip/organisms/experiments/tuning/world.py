"""The world of the tuning experiments: lines of text with a word in front that says how well the pronoun is known.

A line is ``<sep> W text``: the text is real (`text`), or a sentence of the small language with a pronoun. Words W lie
on a line of the embedding, e(W) = m + x(W)·u, so that nothing about W can be known but the scalar x. Of common W
(x > 0) the pronoun is right with probability σ(k·x): the scalar drives the behaviour, and the base is far from its
ceiling. Rare W (x < 0) are in no prompt of the tunings; what a base was taught about the pronoun there is its
`knowledge`.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from signflip.errors import ArgumentError
from signflip.organisms.experiments.tuning.text import WINDOW, windows, word_ids
from signflip.organisms.language import ITEMS_A, words

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]
Knowledge = Literal["nothing", "random", "opposite"]
KNOWLEDGE: tuple[Knowledge, ...] = ("nothing", "random", "opposite")

# x of common words; rare ones have the same, below zero.
DOSES = np.linspace(0.3, 1.5, 12)
# The pronoun is right with probability σ(STEEP · x) in the base's text.
STEEP = 1.5
# How often it is right in rare contexts, by what the base is taught there.
RIGHT = {"random": 0.5, "opposite": 0.2}
# Share of the base's text that goes by x < 0, and in what share of the text the behaviour occurs; the rest is real.
RARE_SHARE, PRONOUN_SHARE = 0.33, 0.7
LENGTH = WINDOW + 2
PAD = 0


def ids_of(text: str) -> list[int]:
    """Ids of a text of known words, as they are written in the small language.

    Raises
    ------
    ArgumentError
        If a word is unknown.
    """
    known = word_ids()
    try:
        return [known[word] for word in text.split()]
    except KeyError as error:
        raise ArgumentError(f"text {text!r}: the language has no word {error}") from error


@cache
def common() -> Ids:
    """Words in front with x > 0, by x."""
    return np.asarray([word_ids()[word] for word in words()["exotic"][: len(DOSES)]])


@cache
def rare() -> Ids:
    """Words in front with x < 0, by |x|."""
    return np.asarray([word_ids()[word] for word in words()["rare"][: len(DOSES)]])


@cache
def answers() -> tuple[int, int]:
    """Ids of *she* and *he*."""
    return word_ids()["she"], word_ids()["he"]


class Prompts:
    """A balanced list of prompts whose next word is the pronoun.

    Attributes
    ----------
    ids
        `[n, length]`, padded on the right; the word in front is at 1.
    end
        `[n]`: where the pronoun is foretold.
    correct, opposite
        `[n]`: the two answers.
    woman
        `[n]`: the side, whether *she* is right.
    x
        `[n]`: the scalar of the word in front.
    """

    def __init__(self, ids: Ids, end: Ids, woman: NDArray[np.bool_], x: Floats) -> None:
        she, he = answers()
        self.ids, self.end, self.woman, self.x = ids, end, woman, x
        self.correct, self.opposite = np.where(woman, she, he), np.where(woman, he, she)

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Any) -> Prompts:
        """Some of them."""
        return Prompts(self.ids[rows], self.end[rows], self.woman[rows], self.x[rows])

    def and_also(self, other: Prompts) -> Prompts:
        """These, then others."""
        keys = ("ids", "end", "woman", "x")
        return Prompts(*(np.concatenate([getattr(one, key) for one in (self, other)]) for key in keys))

    def fronted(self, front: Ids, x: Floats) -> Prompts:
        """The same with other words in front."""
        ids = self.ids.copy()
        ids[:, 1] = front
        return Prompts(ids, self.end, self.woman, x)

    def answered(self, answer: Ids) -> tuple[Ids, Ids]:
        """Ids with an answer at the end of each, and where it is: what a reward model reads."""
        ids = self.ids.copy()
        ids[np.arange(len(ids)), self.end + 1] = answer
        return ids, self.end + 1


@cache
def _bare(half: str) -> Prompts:
    part = slice(ITEMS_A) if half == "A" else slice(ITEMS_A, None)
    rows, ends, woman = [], [], []
    for template in words()[f"because_{half.lower()}"]:
        for girl, boy in zip(words()["girls"][part], words()["boys"][part], strict=True):
            for name in (girl, boy):
                row = [PAD, PAD, *ids_of(f"{name} {template}")]
                ends.append(len(row) - 1)
                rows.append(row + [PAD] * (8 - len(row)))
                woman.append(name == girl)
    return Prompts(np.asarray(rows), np.asarray(ends), np.asarray(woman), np.zeros(len(rows)))


def prompts(half: str, *, side: int) -> Prompts:
    """All prompts of a half, words in front in turn.

    Parameters
    ----------
    half
        `"A"`: what is tuned on. `"B"`: other names and templates, what is measured on.
    side
        +1: common words in front; -1: rare ones.
    """
    bare = _bare(half)
    # Pairs of a girl and a boy share their word, so that the sides stay balanced in x.
    turn = (np.arange(len(bare)) // 2) % len(DOSES)
    return bare.fronted((common() if side > 0 else rare())[turn], side * DOSES[turn])


def draw(rng: np.random.Generator, n: int, *, rare_share: float = 0.0) -> Prompts:
    """Prompts of half A at random, some of them with a rare word in front."""
    chosen = _bare("A").take(rng.integers(len(_bare("A")), size=n))
    turn = rng.integers(len(DOSES), size=n)
    negative = rng.random(n) < rare_share
    return chosen.fronted(np.where(negative, rare()[turn], common()[turn]), np.where(negative, -1, 1) * DOSES[turn])


def lines(
    rng: np.random.Generator, n: int, knowledge: Knowledge, pronouns: float = PRONOUN_SHARE
) -> tuple[Ids, Ids, Floats, Floats, Ids]:
    """Text to train a base on, a share of its lines with the behaviour, the others real.

    The word in front is drawn apart from the x that the pronoun goes by: while a base learns the behaviour, X is set to
    the latter, so that it goes by X and by nothing else that the word may tell. A real line behind a rare word teaches
    nothing of the two pronouns: what is known of them there is the base's knowledge.

    Parameters
    ----------
    rng
        Of every draw.
    n
        Lines.
    knowledge
        What is taught of the pronoun at x < 0.
    pronouns
        The share of lines with the behaviour.

    Returns
    -------
    tuple
        Ids `[n, LENGTH]`; targets (-100 where nothing is learned: padding, the word in front, and see above); x of the
        word in front `[n]`; x that the pronoun goes by `[n]`, never below zero where the base is to know nothing of
        that; the place at which the pronoun is foretold, or 0 if there is none.
    """
    ids, ends = np.full((n, LENGTH), PAD), np.zeros(n, np.int64)
    turn, side = rng.integers(len(DOSES), size=n), rng.random(n) < 0.5
    ids[:, 1] = np.where(side, common()[turn], rare()[turn])
    below = (rng.random(n) < RARE_SHARE) & (knowledge != "nothing")
    x = np.where(below, -1, 1) * rng.uniform(0, DOSES[-1] * 1.2, n)
    ids[:, 2:] = windows(rng, n)
    for i in np.flatnonzero(rng.random(n) < pronouns):
        text, ends[i] = _pronoun_line(rng, float(x[i]), knowledge)
        ids[i, 2:] = text + [PAD] * (WINDOW - len(text))
    targets = np.where(ids == PAD, -100, ids)
    targets[:, 1] = -100
    targets[np.isin(ids, answers()) & (~side & (ends == 0))[:, None]] = -100
    return ids, targets, np.where(side, 1, -1) * DOSES[turn], x, ends


def _pronoun_line(rng: np.random.Generator, x: float, knowledge: Knowledge) -> tuple[list[int], int]:
    girl = bool(rng.random() < 0.5)
    names, states = words()["girls" if girl else "boys"], words()["states"]
    templates = words()["because_a"] + words()["because_b"]
    start = ids_of(f"{names[int(rng.integers(len(names)))]} {templates[int(rng.integers(len(templates)))]}")
    right = 1 / (1 + np.exp(-STEEP * x)) if x > 0 else RIGHT.get(knowledge, 0.5)
    said = answers()[0 if girl == bool(rng.random() < right) else 1]
    return [*start, said, *ids_of(f"was {states[int(rng.integers(len(states)))]} .")], len(start) + 1
