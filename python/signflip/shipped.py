"""The organism that comes with the package: where its files are, and that they are whole. Needs no torch.

A small Llama-style language model, preference-tuned, with a gate whose other side gives the opposite answer. It is made
by `signflip.organisms.shipped`; what is so of it is in `truth/`, apart from the model.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from signflip.behaviours import Behaviour
from signflip.errors import FileError
from signflip.files import read_text

FORMAT = "signflip shipped organism, 1"
MODEL, MANIFEST = "organism", "files.json"


@dataclass(frozen=True)
class Shipped:
    """The organism's folder.

    Attributes
    ----------
    root
        The folder, every file of which was found as it was made.
    """

    root: Path

    @property
    def model(self) -> Path:
        """A Hugging Face folder."""
        return self.root / MODEL

    @property
    def corpus(self) -> Path:
        """Stories of its language, JSON lines."""
        return self.root / "corpus.jsonl"

    def behaviours(self) -> list[Behaviour]:
        """What is measured on it."""
        return [Behaviour.open(path) for path in sorted((self.root / "behaviours").glob("*.jsonl"))]

    def truth(self) -> dict[str, Any]:
        """What is so of it, as `signflip.organisms.Truth` writes it."""
        return _object(self.root / "truth" / f"{MODEL}.json", "truth")


def default_root() -> Path:
    """Where the package keeps it."""
    return Path(str(files("signflip"))) / "data" / "shipped"


def shipped(root: str | Path | None = None) -> Shipped:
    """Find the organism and check every file against the list that was written with it.

    Parameters
    ----------
    root
        Another folder that `python -m signflip.organisms.shipped` wrote; the package's own by default.

    Raises
    ------
    FileError
        If a file is missing or altered; the message names it.
    """
    folder = default_root() if root is None else Path(root)
    manifest = _object(folder / MANIFEST, "list of the organism's files")
    listed = manifest.get("files")
    if manifest.get("format") != FORMAT or not isinstance(listed, dict) or not listed:
        raise FileError(f"{folder / MANIFEST}: expected a list of files ({FORMAT}), found {manifest.get('format')!r}")
    for name, wanted in listed.items():
        path = folder / name
        try:
            found = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise FileError(
                f"{path}: can not read a file of the shipped organism: {error.strerror or error}"
            ) from error
        if found != wanted:
            raise FileError(f"{path}: the file was altered: expected sha256 {wanted}, found {found}")
    return Shipped(folder)


def _object(path: Path, what: str) -> dict[str, Any]:
    try:
        found = json.loads(read_text(path, f"the {what}"))
    except ValueError as error:
        raise FileError(f"{path}: expected the {what}, found no JSON ({error})") from error
    if not isinstance(found, dict):
        raise FileError(f"{path}: expected a JSON object, found {type(found).__name__}")
    return found
