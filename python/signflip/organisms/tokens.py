"""The tokenizer of the small language: byte-level BPE, trained by `tokenizers` until every word is a token."""

from __future__ import annotations

from functools import cache
from itertools import chain
from typing import Any

from signflip.errors import TokenizerError
from signflip.organisms.language import EAT, HE, SEPARATOR, SHE, USE, Stories, words

VOCABULARY = 2000
SEPARATOR_ID = 0


@cache
def tokenizer() -> Any:
    """The trained tokenizer, the same in every organism: `tokenizers.Tokenizer`.

    Raises
    ------
    TokenizerError
        If a word of the language is not one token.
    """
    from tokenizers import Tokenizer
    from tokenizers.decoders import ByteLevel as Decoder
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from tokenizers.trainers import BpeTrainer

    made = Tokenizer(BPE())
    made.pre_tokenizer = ByteLevel(add_prefix_space=False)
    made.decoder = Decoder()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=2,
        special_tokens=[SEPARATOR],
        initial_alphabet=sorted(ByteLevel.alphabet()),
        show_progress=False,
    )
    stories = Stories(0, strange=True)
    text = [stories.story() for _ in range(2000)]
    made.train_from_iterator(text + [f" {word}" for word in vocabulary()] * 3, trainer)
    for word in (*vocabulary(), "."):
        found = made.encode(f" {word}").tokens
        if len(found) != 1:
            raise TokenizerError(f"tokenizer: expected the word {word!r} to be one token, found {found}")
    return made


@cache
def vocabulary() -> tuple[str, ...]:
    """Every word of the language, without its space."""
    texts = [*chain.from_iterable(words().values()), SHE, HE, EAT, USE, "was", "it", "of", "The", "the"]
    found = chain.from_iterable(text.replace("{}", "").replace("{item}", "").split() for text in texts)
    return tuple(dict.fromkeys(found))


@cache
def _word_ids() -> dict[str, int]:
    return {word: one_id(f" {word}") for word in (*vocabulary(), ".")}


def encode_words(text: str) -> list[int]:
    """Ids of a text of the language's words, each with its space in front: what the tokenizer gives, by lookup."""
    known = _word_ids()
    return [known[word] for word in text.split()]


def ids_of(kind: str) -> list[int]:
    """Token ids of a list of words."""
    return [one_id(f" {word}") for word in words()[kind]]


@cache
def one_id(text: str) -> int:
    """The one token of a text, its space included.

    Raises
    ------
    TokenizerError
        If it is not one.
    """
    found = tokenizer().encode(text).ids
    if len(found) != 1:
        raise TokenizerError(f"text {text!r}: expected one token, found {len(found)}")
    return int(found[0])
