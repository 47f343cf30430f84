"""Objectives: values that add up, with errors that name what is wrong."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import signflip as sf
from signflip import errors
from signflip.objectives import Objective
from signflip.search_result import Step
from tiny import loaded_default

SITE = "blocks.1.mlp.hook_pre"


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest) -> Iterator[Any]:
    with loaded_default(request.param) as (found, _, _):
        yield found


def test_objectives_are_values() -> None:
    o = sf.objectives
    made = [
        -o.neuron(SITE, 3) + 0.5 * o.logit_diff(1, " b", position=2),
        2 * o.direction("blocks.0.hook_resid_post", np.arange(3.0), position="best") - 1.5,
        o.logprob("yes") - o.logprob([1, 2]) / 4,
        o.reward(),
    ]
    for objective in made:
        assert Objective.from_dict(json.loads(json.dumps(objective.to_dict()))) == objective
        assert hash(Objective.from_dict(objective.to_dict())) == hash(objective)
    assert len(set(made)) == 4
    assert repr(made[0]) == f"-neuron('{SITE}', 3) + 0.5 * logit_diff(1, ' b', position=2)"
    assert repr(made[1]) == "2 * direction('blocks.0.hook_resid_post', <3 values>, position='best') - 1.5"
    negative = -made[0]
    assert -negative == made[0]
    with pytest.raises(errors.ArgumentError):
        Objective.from_dict({"terms": [[1.0, {"kind": "neuron"}]]})


@pytest.mark.parametrize(
    "make",
    [
        lambda n: 1e300 * n,
        lambda n: n + 1e39,
        lambda n: (n + 1e38) * 10,
        lambda n: (n + 3e38) + (n + 3e38),
        lambda n: 3e38 * n * 2,
        lambda n: n / 1e-39,
        lambda n: n / 10**400,
        lambda n: 10**400 * n,
        lambda n: n + 10**400,
        lambda n: n + float("nan"),
        lambda n: n - np.float64("inf"),
        lambda n: n / float("nan"),
        lambda n: Objective.from_dict({**n.to_dict(), "offset": 10**400}),
        lambda n: Objective.from_dict({"terms": [[1e39, n.to_dict()["terms"][0][1]]]}),
    ],
)
def test_weights_and_offsets_beyond_float32_are_refused(make: Any) -> None:
    with pytest.raises(errors.ArgumentError, match="objective: expected"):
        make(sf.objectives.neuron(SITE, 0))


def test_values_that_overflow_are_one_typed_error(model: Any, tmp_path: Path) -> None:
    objective = 3e38 * sf.objectives.direction("blocks.0.hook_resid_post", np.full(model.cfg.d_model, 1e6), position=0)
    for out in (None, tmp_path / "x"):
        with pytest.raises(errors.SearchError, match="finite value"):
            sf.search(model, objective, tokens=2, steps=2, width=8, out=out, progress=False)
    # Some of them: these are written and read as missing.
    result = sf.search(model, sf.objectives.neuron(SITE, 0), tokens=2, steps=2, width=8, progress=False)
    step = Step("step", [dataclasses.replace(result.front[0], tokens=[0, 0], value=float("nan"))])
    dataclasses.replace(result, history=[*result.history, step]).save(tmp_path / "y")
    assert np.isnan(sf.SearchResult.open(tmp_path / "y").history[-1].members[0].value)


def test_sums_of_objectives_are_sums_of_scores(model: Any) -> None:
    o = sf.objectives
    parts = [
        (2.0, o.neuron(SITE, 3, position="best")),
        (-0.5, o.direction("blocks.0.hook_resid_post", np.linspace(-1, 1, model.cfg.d_model), position=0)),
        (1.5, o.logit_diff(3, 4)),
        (0.25, o.logprob([7, 7, 1])),
    ]
    whole = sum((w * p for w, p in parts[1:]), parts[0][0] * parts[0][1]) + 0.125
    prompts = [[1, 2, 3], [1, 2, 4, 5], [9]]
    expected = 0.125 + sum(w * model.score(prompts, p).astype(np.float64) for w, p in parts)
    np.testing.assert_allclose(model.score(prompts, whole), expected, rtol=1e-6)
    value, gradients = model.gradient(prompts[1], whole, wrt=("hook_embed", SITE))
    assert value == model.score(prompts, whole)[1]
    for name, array in gradients.items():
        each = [w * model.gradient(prompts[1], p, wrt=name)[1][name].astype(np.float64) for w, p in parts]
        np.testing.assert_allclose(array, sum(each), rtol=1e-4, atol=1e-5)


def test_a_sequence_may_have_an_objective_of_its_own(model: Any) -> None:
    o = sf.objectives
    objectives = [o.neuron(SITE, 3), o.logprob([7, 7, 1]), o.neuron(SITE, 3), o.logit_diff(3, 4) - 1]
    prompts = [[1, 2, 3], [1, 2, 3], [1, 2, 4, 5], [9]]
    values = model.score(prompts, objectives)
    for prompt, objective, value in zip(prompts, objectives, values, strict=True):
        assert model.score([prompt], objective)[0] == value
    for some in (objectives[:3], [], [*objectives[:3], 3]):
        with pytest.raises(errors.ArgumentError, match="objective"):
            model.score(prompts, some)


def test_gradients_of_ragged_prompts_are_lists(model: Any) -> None:
    values, gradients = model.gradient([[1, 2], [3, 4, 5]], sf.objectives.logprob([1, 2]))
    assert values.shape == (2,)
    assert [array.shape for array in gradients["hook_embed"]] == [(2, model.cfg.d_model), (3, model.cfg.d_model)]
    one, alone = model.gradient([3, 4, 5], sf.objectives.logprob([1, 2]))
    assert one == values[1]
    np.testing.assert_array_equal(alone["hook_embed"][0], gradients["hook_embed"][1])


def test_search_module_is_where_the_function_says() -> None:
    assert importlib.import_module("signflip.search").search is sf.search
