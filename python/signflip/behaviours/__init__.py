"""Behaviours: signed scores over balanced prompts, built in and users' own."""

from __future__ import annotations

from signflip.behaviours.behaviour import Behaviour
from signflip.behaviours.builtin import (
    agreement,
    all,  # noqa: A004 - `sf.behaviours.all()` is the contract's word
    antonym,
    attractor,
    capital,
    indirect_object,
    language,
    moral,
    pronoun,
    say,
    sentiment,
)
from signflip.behaviours.prompts import ModelPrompt, Prompt, document_separator

__all__ = [
    "Behaviour",
    "ModelPrompt",
    "Prompt",
    "agreement",
    "all",
    "antonym",
    "attractor",
    "capital",
    "document_separator",
    "indirect_object",
    "language",
    "moral",
    "pronoun",
    "say",
    "sentiment",
]
