"""Results as files: what cannot be written is an error that names the file and what was to go there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from signflip.errors import FileError


def read_text(path: str | Path, what: str, encoding: str = "utf-8") -> str:
    """The text of a file that is to hold `what`.

    Raises
    ------
    FileError
        If the file can not be read, or holds no text: a survey's file, say, in place of a search's.
    """
    try:
        return Path(path).read_text(encoding=encoding)
    except UnicodeDecodeError as error:
        raise FileError(f"{path}: expected {what}, found a file that is no text") from error
    except OSError as error:
        raise FileError(f"{path}: can not read {what}: {error.strerror or error}") from error


def write_text(path: str | Path, text: str, what: str) -> None:
    """Write `text`, which is `what`, to a file.

    Raises
    ------
    FileError
        If the file can not be written.
    """
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise FileError(f"{path}: can not write {what}: {error.strerror or error}") from error


def make_folder(path: str | Path) -> Path:
    """Make a folder, and those above it, where there is none.

    Raises
    ------
    FileError
        If it can not be made.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"{path}: cannot be made: {error.strerror or error}") from error
    return path


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A path to write to that takes the place of another in the end, so that a kill on the way leaves no half of it.

    Raises
    ------
    FileError
        If it cannot be written, or cannot take that place.
    """
    written = path.with_name(path.name + ".tmp")
    try:
        yield written
        written.replace(path)
    except OSError as error:
        raise FileError(f"{path}: cannot be written: {error.strerror or error}") from error


def write_json(path: str | Path, plain: Any, what: str) -> None:
    """Write plain data as JSON that people can read, too.

    Raises
    ------
    FileError
        If the file can not be written.
    """
    write_text(path, json.dumps(plain, indent=1, allow_nan=False) + "\n", what)
