"""SmolLM2-135M-Instruct: flips whose right verdict is known from measurement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

import signflip as sf
from signflip.dosing import Feature
from smollm2 import gguf_path

pytestmark = [pytest.mark.smollm2, pytest.mark.slow]

UP = "blocks.24.mlp.hook_pre_linear"
# The strictly one-sided features of a survey of 99,450 tokens (site, neuron, the extreme on the side that they keep).
STRICT: Sequence[tuple[str, int, float]] = ()


@pytest.fixture(scope="module")
def model() -> sf.Model:
    return sf.load(gguf_path())


def test_reflection_is_opposite(model: sf.Model) -> None:
    """The positive control: both contexts turn, the answers keep their mass and their dependence on the context."""
    from signflip.reflection import reflect

    found = reflect(model, sf.behaviours.pronoun(), replicates=500)
    assert not isinstance(found, str)
    print(found, found.verdict.failed)
