"""What a call costs beside the arithmetic: tiny models, where the border between Python and the core is most of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import signflip as sf

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from tiny import loaded_default


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    with loaded_default("llama") as (ours, _, _):
        yield ours


@pytest.fixture(scope="module")
def rows(model: Any) -> Any:
    return np.random.default_rng(0).integers(0, model.cfg.d_vocab, size=(256, 12))


def test_run_of_one_short_prompt(benchmark: Any, model: Any, rows: Any) -> None:
    logits = benchmark(model.run, rows[0])
    assert logits.shape == (1, 12, model.cfg.d_vocab)


def test_run_with_cache_of_every_site(benchmark: Any, model: Any, rows: Any) -> None:
    _, cache = benchmark(model.run_with_cache, rows[:8])
    assert list(cache) == model.sites()


def test_score_of_256_ragged_lists(benchmark: Any, model: Any, rows: Any) -> None:
    site = "blocks.1.mlp.hook_pre"
    lists = [row[: 6 + i % 7].tolist() for i, row in enumerate(rows)]
    scores = benchmark(model.score, lists, sf.objectives.neuron(site, 7))
    _, cache = model.run_with_cache(lists[3], names_filter=site)
    assert scores[3] == cache[site][0, -1, 7]


def test_gradient_to_the_embeddings(benchmark: Any, model: Any, rows: Any) -> None:
    _, gradient = benchmark(model.gradient, rows[0], sf.objectives.logit_diff(3, 5))
    assert gradient["hook_embed"].shape[-2:] == (12, model.cfg.d_model)


def test_one_sided_of_a_survey(benchmark: Any, model: Any, rows: Any) -> None:
    survey = sf.survey(model, rows.tolist())
    found = benchmark(survey.one_sided, max_rate=0.01)
    assert all(feature.rate <= 0.01 for feature in found)
