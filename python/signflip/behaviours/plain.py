"""Plain text on which an edit's side effects are measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from typing import TYPE_CHECKING

import numpy as np

from signflip.behaviours.prompts import document_separator, leading_bos

if TYPE_CHECKING:
    from signflip.model import Model


def plain_texts() -> list[str]:
    """A dozen sentences written for this project, of as many kinds."""
    return list(json.loads(files("signflip.behaviours").joinpath("data/plain.json").read_text(encoding="utf-8")))


def plain_sequences(model: Model, prompts: Sequence[Sequence[int]]) -> tuple[list[list[int]], list[int]]:
    """Their tokens, document separator included, and how many leading tokens each has that no edit touches.

    They are cut to the model's context. A model without a tokenizer gets seeded random sequences of the prompts' own
    ids instead.
    """
    if model.tokenizer is None:
        rng = np.random.Generator(np.random.Philox(0))
        length = min(16, model.cfg.n_ctx)
        known = sorted({token for prompt in prompts for token in prompt})
        return rng.choice(known, (12, length)).tolist(), [0] * 12
    separator = document_separator(model)
    ids = [[int(i) for i in model.to_tokens(separator + text)[0]][: model.cfg.n_ctx] for text in plain_texts()]
    leading = len(model.to_tokens(separator)[0]) if separator else leading_bos(model)
    return ids, [min(leading, len(one) - 1) for one in ids]
