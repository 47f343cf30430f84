"""Corpora: files, texts and token ids as one stream of documents."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from signflip.checks import whole_text
from signflip.errors import ArgumentError, FileError, SurveyError, TokenError, TokenizerError

# Texts are tokenised together, in parallel, up to so many characters.
_BATCH_CHARACTERS = 1 << 18

Document = tuple[list[int], int]


class Corpus:
    """A corpus as batches of `(ids, n_bos)`.

    `n_bos` is how many of a document's first ids the tokenizer put there itself.

    Parameters
    ----------
    model
        Whose tokenizer and vocabulary to use.
    corpus
        A path, as a str or Path: a file. A list of Paths: files. Any other iterable: its strings are texts, its lists
        (or integer arrays) of ids documents. A `.jsonl` file holds one document a line; any other file is one document.
    field
        Where a JSON line holds its text: a key, or keys joined by dots.
    bos
        Whether texts begin with the BOS that the tokenizer puts there, if it does.

    Raises
    ------
    FileError
        At once, if a file is missing.
    ArgumentError
        If the corpus or the field is of no such kind.
    """

    def __init__(self, model: Any, corpus: Any, field: str = "text", bos: bool = True) -> None:
        scalar = isinstance(corpus, np.ndarray) and corpus.ndim == 0
        if isinstance(corpus, (bytes, bytearray, Mapping)) or scalar or not isinstance(corpus, (str, Path, Iterable)):
            raise ArgumentError(f"corpus: expected a path, or an iterable of texts, found {type(corpus).__name__}")
        if not isinstance(field, str):
            raise ArgumentError(f"field: expected a key, or keys joined by dots, found {field!r}")
        self._model = model
        self._field = field.split(".")
        self._bos = bos
        self._items: Iterable[Any] = [Path(corpus)] if isinstance(corpus, (str, Path)) else corpus
        if isinstance(self._items, (list, tuple)):
            for item in self._items:
                if isinstance(item, Path):
                    _check_file(item)
        self._number = 0

    def batches(self) -> Iterator[list[Document]]:
        """The documents, in order.

        Raises
        ------
        SurveyError
            For text that is not UTF-8 or a line that is not a JSON object with the field; the message names the place.
        TokenizerError
            For text, if the model has no tokenizer.
        TokenError
            For ids outside the vocabulary.
        """
        texts: list[str] = []
        size = 0
        for item in self._parts():
            if isinstance(item, str):
                texts.append(item)
                size += len(item)
                if size >= _BATCH_CHARACTERS:
                    yield self._encode(texts)
                    texts, size = [], 0
            else:
                if texts:
                    yield self._encode(texts)
                    texts, size = [], 0
                yield [(item, 0)]
        if texts:
            yield self._encode(texts)

    def _parts(self) -> Iterator[str | list[int]]:
        for item in self._items:
            if isinstance(item, Path):
                yield from read_file(item, self._field)
            elif isinstance(item, str):
                yield whole_text(f"document {self._number} of the corpus", item)
            else:
                yield self._ids(item)
            self._number += 1

    def _ids(self, item: Any) -> list[int]:
        name = f"document {self._number} of the corpus"
        if isinstance(item, np.ndarray) and item.ndim == 1 and item.dtype.kind in "iu":
            ids = item.tolist()
        elif isinstance(item, (list, tuple)):
            ids = list(item)
        else:
            raise ArgumentError(f"corpus: expected texts, lists of ids or Paths, found {type(item).__name__} as {name}")
        for token in ids:
            if isinstance(token, bool) or not isinstance(token, (int, np.integer)):
                raise TokenError(f"tokens: expected integer ids, found {token!r} in {name}")
            if not 0 <= token < self._model.cfg.d_vocab:
                size = self._model.cfg.d_vocab
                raise TokenError(f"tokens: id {token} in {name} is outside the vocabulary of {size} ids")
        return [int(token) for token in ids]

    def _encode(self, texts: list[str]) -> list[Document]:
        tokenizer = self._model.tokenizer
        if tokenizer is None:
            raise TokenizerError(
                f"tokenizer: {self._model.name} has none, so a corpus of text cannot be used; give lists of ids"
            )
        n_bos = len(tokenizer.prefix_ids) if self._bos else 0
        return [(ids, min(n_bos, len(ids))) for ids in tokenizer.encode_batch(texts, add_special_tokens=self._bos)]


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise FileError(f"{path}: expected a text or .jsonl file, found a folder")
    if not path.exists():
        raise FileError(f"{path}: no such file")


def read_file(path: Path, field: list[str]) -> Iterator[str]:
    """The documents of a file.

    Parameters
    ----------
    path
        `.jsonl` (or `.ndjson`): one document a line, blank lines aside. Anything else: one document.
    field
        Keys from a line's object down to its text.

    Raises
    ------
    FileError
        If the file cannot be read.
    SurveyError
        If it is not UTF-8, or a line is not a JSON object with that field.
    """
    _check_file(path)
    try:
        if path.suffix not in (".jsonl", ".ndjson"):
            yield _decode(path, 1, path.read_bytes())
            return
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _field(path, number, _decode(path, number, line), field)
    except OSError as err:
        raise FileError(f"{path}: {err.strerror or err}") from err


def _decode(path: Path, line: int, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as err:
        at = line + data.count(b"\n", 0, err.start)
        column = err.start - (data.rfind(b"\n", 0, err.start) + 1)
        raise SurveyError(f"{path} line {at}: not UTF-8 (byte 0x{data[err.start]:02x} at column {column})") from err


def _field(path: Path, line: int, text: str, field: list[str]) -> str:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as err:
        raise SurveyError(f"{path} line {line}: not JSON ({err})") from err
    for key in field:
        if not isinstance(value, dict):
            raise SurveyError(
                f"{path} line {line}: expected an object with a field {key!r}, found {type(value).__name__}"
            )
        if key not in value:
            has = ", ".join(map(repr, list(value)[:8])) or "none"
            raise SurveyError(f"{path} line {line}: no field {key!r}; its fields are {has}")
        value = value[key]
    if not isinstance(value, str):
        name = ".".join(field)
        raise SurveyError(f"{path} line {line}: expected text in the field {name!r}, found {type(value).__name__}")
    try:
        return whole_text(f"{path} line {line}", value)
    except ArgumentError as err:
        raise SurveyError(str(err)) from err
