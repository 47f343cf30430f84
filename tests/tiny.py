"""Tiny random models made by transformers, saved as a checkpoint folder, and loaded by signflip."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, settings

import signflip as sf
from reference import peer
from reference.restated import Restated

# On models this small torch's threads cost more than they do.
torch.set_num_threads(1)


def profile(examples: int) -> settings:
    """Deterministic, so that a parity table is the same table in every run."""
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        # Shrinking a failure of a model takes minutes and tells little more than the first one found.
        phases=[Phase.explicit, Phase.generate],
    )


@contextlib.contextmanager
def loaded(config: Any, seed: int = 0, reward: bool = False, size: float = 1.0) -> Iterator[tuple[Any, Any, Restated]]:
    """The model in signflip, in transformers, and restated in float64."""
    theirs = peer.make(config, seed, reward, size)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        yield sf.load(folder), theirs, Restated(theirs.config.to_dict(), theirs.state_dict())


@contextlib.contextmanager
def loaded_default(family: str, seed: int = 0, **changes: Any) -> Iterator[tuple[Any, Any, Restated]]:
    """One fixed tiny model of a family, for tests that draw other things."""
    with loaded(config_of(family, **changes), seed) as found:
        yield found


def config_of(family: str, **changes: Any) -> Any:
    """A fixed tiny config, with grouped heads and odd widths."""
    import transformers

    if family == "llama":
        fixed: dict[str, Any] = {
            "vocab_size": 61,
            "hidden_size": 20,
            "intermediate_size": 45,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 6,
            "max_position_embeddings": 96,
            "attention_bias": True,
            "mlp_bias": True,
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": None,
        }
        return transformers.LlamaConfig(**{**fixed, **changes})
    fixed = {
        "vocab_size": 61,
        "n_positions": 96,
        "n_embd": 21,
        "n_layer": 3,
        "n_head": 3,
        "n_inner": 45,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    return transformers.GPT2Config(**{**fixed, **changes})
