"""Every accepted form of tokens as lists of ids, and lists of results as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from signflip.errors import TokenError, TokenizerError

if TYPE_CHECKING:
    from signflip.model import Model


def parse(model: Model, tokens: Any, check: bool = True) -> tuple[list[list[int]], bool]:
    """The sequences, and whether they were given as one; with `check`, none of them empty or outside the vocabulary.

    Raises
    ------
    TokenError
        For what is no form of tokens, and for ids that fail the check.
    """
    if isinstance(tokens, str):
        tokens = model.to_tokens(tokens)[0]
    elif isinstance(tokens, (list, tuple)) and tokens and all(isinstance(one, str) for one in tokens):
        tokens = [ids.tolist() for ids in model.to_tokens(tokens)]
    if hasattr(tokens, "detach"):
        tokens = tokens.detach().cpu().numpy()
    if isinstance(tokens, np.ndarray):
        if tokens.dtype.kind not in "iu":
            raise TokenError(f"tokens: expected integer ids, found an array of {tokens.dtype}")
        if tokens.ndim not in (1, 2):
            raise TokenError(f"tokens: expected an array [pos] or [batch, pos], found shape {tokens.shape}")
        tokens = tokens.tolist()
    if not isinstance(tokens, (list, tuple, range)):
        raise TokenError(f"tokens: expected text, ids or lists of ids, found {type(tokens).__name__}")
    rows = list(tokens)
    single = not rows or not isinstance(rows[0], (list, tuple, range, np.ndarray))
    sequences = [_ids(row) for row in ([rows] if single else rows)]
    if check:
        for i, sequence in enumerate(sequences):
            _check(i, sequence, model.cfg.d_vocab)
        if not sequences:
            raise TokenError("tokens: expected at least one sequence, found none")
    return sequences, single


class Rendered(tuple[str, str]):
    """`(before, after)` texts of a rendered chat template, which writes its own special tokens."""

    __slots__ = ()


# What is before and after the free tokens of a search, as texts or as ids.
Context = tuple[str | Sequence[int], str | Sequence[int]]


def _encoded(model: Model, text: str, refused: str = "text cannot be used; give ids") -> list[int]:
    """Ids of a text, with nothing in front."""
    if model.tokenizer is None:
        raise TokenizerError(f"tokenizer: {model.name} has none, so {refused}")
    return [int(one) for one in model.tokenizer.encode(text, False)]


def raw_ids(model: Model, text: str) -> list[int]:
    """Ids of the beginning of a raw text: what the tokenizer puts in front, and the text's own.

    A text that goes on has nothing behind it, even where the tokenizer would put an EOS there.

    Raises
    ------
    TokenizerError
        If the model has no tokenizer, or it refuses the text.
    """
    own = _encoded(model, text)
    return [*model.tokenizer.prefix_ids, *own]


def rendered_ids(model: Model, text: str) -> list[int]:
    """Ids of a rendered chat template, or a part of one.

    A template writes its own special tokens, so the tokenizer puts none in front: as transformers'
    ``apply_chat_template(tokenize=True)`` does.

    Raises
    ------
    TokenizerError
        If the model has no tokenizer, or it refuses the text.
    """
    return _encoded(model, text, "a chat template cannot be used")


# Texts that a tokenizer hardly joins with what follows.
_ANCHORS = ("\n", ".", "0", "x")


def continued_ids(model: Model, text: str) -> list[int]:
    """Ids of a text that goes on from another.

    Tokenizers such as Llama 2's mark the beginning of every text that they are given (``"he"`` becomes ``"▁he"``). What
    goes on from a text has no such mark.

    Raises
    ------
    TokenizerError
        If the model has no tokenizer, or it refuses the text.
    """
    for anchor in _ANCHORS if text else ():
        before, whole = _encoded(model, anchor), _encoded(model, anchor + text)
        if before and whole[: len(before)] == before:
            return whole[len(before) :]
    return _encoded(model, text)


def continued_text(model: Model, before: Sequence[int], ids: Sequence[int]) -> str:
    """The text of ids that go on from others: with the space in front that the decoding of a beginning leaves out.

    Parameters
    ----------
    model
        A model with a tokenizer.
    before
        What they go on from, without what the tokenizer puts in front of any text.
    ids
        The tokens.
    """
    whole, start = str(model.to_string([*before, *ids])), str(model.to_string(list(before))) if before else ""
    return whole[len(start) :] if whole.startswith(start) else str(model.to_string(list(ids)))


def _ids(row: Any) -> list[int]:
    if not isinstance(row, (list, tuple, range, np.ndarray)):
        raise TokenError(f"tokens: expected a list of ids, found {type(row).__name__}")
    if isinstance(row, np.ndarray) and row.ndim != 1:
        raise TokenError(f"tokens: expected ids [pos] for a sequence, found shape {row.shape}")
    ids = []
    for token in row:
        if isinstance(token, (bool, np.bool_)) or not isinstance(token, (int, np.integer)):
            raise TokenError(f"tokens: expected integer ids, found {token!r} of type {type(token).__name__}")
        ids.append(int(token))
    return ids


def _check(i: int, sequence: list[int], d_vocab: int) -> None:
    if not sequence:
        raise TokenError(f"tokens: expected at least one token in sequence {i}, found none")
    wrong = next((token for token in sequence if not 0 <= token < d_vocab), None)
    if wrong is not None:
        raise TokenError(f"tokens: id {wrong} in sequence {i} is outside the vocabulary of {d_vocab} ids")


def stack(arrays: Sequence[NDArray[Any]]) -> Any:
    """One array with a batch axis, or the list where shapes differ."""
    if len({array.shape for array in arrays}) != 1:
        return arrays
    first = arrays[0]
    if len(arrays) == 1:
        return first[None]
    # Pieces of one array that follow each other are that array already: logits are too large to copy for nothing.
    at = first.__array_interface__["data"][0]
    follow = all(
        one.base is first.base is not None
        and one.dtype == first.dtype
        and one.flags.c_contiguous
        and one.__array_interface__["data"][0] == at + i * first.nbytes
        for i, one in enumerate(arrays)
    )
    if follow and first.size:
        strides = (first.nbytes, *first.strides)
        return np.lib.stride_tricks.as_strided(first, (len(arrays), *first.shape), strides)
    return np.stack(arrays)
