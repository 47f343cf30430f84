"""Reach: never exceeded by search or direct optimisation, attained by construction."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import signflip as sf
from survey_models import DOCS, make, peer


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, sf.Model, Path]:
    """transformers' model, signflip's, and the folder."""
    return make(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> sf.Model:
    """A GPT-2 with a neuron that is constant (0), one that is always zero (1), one just out of reach of zero (2)."""
    folder = tmp_path_factory.mktemp("planted")
    made = peer("gpt2")
    mlp, norm = made.transformer.h[1].mlp, made.transformer.h[1].ln_2
    with torch.no_grad():
        mlp.c_fc.weight[:, :2] = 0
        mlp.c_fc.bias[:2] = torch.tensor([1.5, 0.0])
        scaled = (mlp.c_fc.weight[:, 2] * norm.weight).double()
        radius = (20 * ((scaled - scaled.mean()) ** 2).sum()).sqrt()
        mlp.c_fc.bias[2] = (radius * 1.02 - mlp.c_fc.weight[:, 2].double() @ norm.bias.double()).float()
    made.save_pretrained(folder)
    return sf.load(folder)


def test_certified_features_are_known(planted: sf.Model) -> None:
    site = "blocks.1.mlp.hook_pre"
    found = {one.index: one for one in sf.survey(planted, DOCS, sites=site, context=24).one_sided()}
    assert found[0].certified
    assert found[0].side == 1
    assert found[0].min == found[0].max == 1.5
    assert 1 not in found
    assert found[2].certified
    assert found[2].reach is not None
    assert 0 < found[2].reach < found[2].min
    others = [one for one in found.values() if one.index > 2]
    assert others
    assert all(one.reach is not None and one.certified == (one.reach * one.side >= 0) for one in others)


def test_a_site_that_is_no_name_is_refused(planted: sf.Model) -> None:
    with pytest.raises(sf.errors.ArgumentError, match=r"site: .* found 5"):
        sf.reach(planted, 5)  # type: ignore[arg-type]


def test_reach_holds_and_is_attained(pair: tuple[Any, sf.Model, Path]) -> None:
    _, model, _ = pair
    draw = np.random.default_rng(0)
    layer, d = 1, model.cfg.d_model
    gain = np.asarray(model._core.weight_matrix("mlp_norm_gain", layer), np.float64)[0]
    kinds = {"mlp.hook_pre": "in", **({"mlp.hook_pre_linear": "in_linear"} if model.cfg.gated_mlp else {})}
    for name, kind in kinds.items():
        site = f"blocks.{layer}.{name}"
        bounds = sf.reach(model, site)
        assert bounds is not None
        weights = np.asarray(model._core.weight_matrix(kind, layer), np.float64)
        for i in (0, 7, 30):
            along = weights[i] * gain
            # The residual along ±w∘g, steps away from it (an optimiser's last ones), and anything else.
            steps = [sign * (along + draw.normal(size=d) * size) for sign in (1, -1) for size in (0, 1e-3, 0.1)]
            inputs = [1e3 * step for step in steps] + [draw.normal(size=d) * 10 for _ in range(20)]
            edits = [[sf.Edit(f"blocks.{layer}.hook_resid_mid", "set", x.astype(np.float32))] for x in inputs]
            read = sf.model.Values(site, [-1], [i])
            values = np.array([float(v[0][0][0, 0]) for v in model.read([[3]], [read], edits)])
            assert np.all((values >= bounds[i, 0]) & (values <= bounds[i, 1]))
            width = bounds[i, 1] - bounds[i, 0]
            assert values.max() >= bounds[i, 1] - 0.01 * width
            assert values.min() <= bounds[i, 0] + 0.01 * width
    post = sf.reach(model, f"blocks.{layer}.mlp.hook_post")
    assert post is not None
    seen = sf.survey(model, DOCS, sites="mlp.hook_post", context=24)[f"blocks.{layer}.mlp.hook_post"]
    assert np.all((post[:, 0] <= seen.min) & (seen.max <= post[:, 1]))


@pytest.mark.parametrize("sign", [1, -1])
def test_neither_search_nor_optimisation_goes_beyond_the_reach(pair: tuple[Any, sf.Model, Path], sign: int) -> None:
    theirs, model, _ = pair
    layer, index = 1, 7
    site = f"blocks.{layer}.mlp.hook_pre"
    bounds = sf.reach(model, site)
    assert bounds is not None
    bound = sign * bounds[index, 0 if sign < 0 else 1]
    objective = sign * sf.objectives.neuron(site, index)
    found = sf.search(model, objective, tokens=4, steps=20, width=64, printable=False, retokenize=False)
    assert found.best.value <= bound

    # The residual itself, by L-BFGS through transformers' own norm and map, in float64 from where a prompt put it.
    double = copy.deepcopy(theirs).double()
    if model.cfg.family == "llama":
        block = double.model.layers[layer]
        norm, project = block.post_attention_layernorm, block.mlp.gate_proj
    else:
        block = double.transformer.h[layer]
        norm, project = block.ln_2, block.mlp.c_fc
    _, cache = model.run_with_cache([[3, 9, 4]], names_filter=f"blocks.{layer}.hook_resid_mid")
    residual = torch.tensor(cache[f"blocks.{layer}.hook_resid_mid"][0, -1], dtype=torch.float64, requires_grad=True)
    steps = torch.optim.LBFGS([residual], max_iter=500, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        steps.zero_grad()
        value = -sign * project(norm(residual[None]))[0, index]
        value.backward()
        return value

    steps.step(loss)
    optimum = -loss().item()
    assert found.best.value < optimum <= bound
    assert bound - optimum < 0.01 * (bounds[index, 1] - bounds[index, 0])
    edit = sf.Edit(f"blocks.{layer}.hook_resid_mid", "set", residual.detach().numpy().astype(np.float32))
    _, edited = model.run_with_cache([[3]], names_filter=site, edits=[edit])
    assert sign * float(edited[site][0, 0, index]) <= bound


def test_reach_of_a_tokens_own_features_tries_the_vocabulary(pair: tuple[Any, sf.Model, Path]) -> None:
    _, model, _ = pair
    for name in ("hook_embed", "blocks.0.hook_resid_pre", "blocks.0.attn.hook_q", "blocks.0.attn.hook_v"):
        bounds = sf.reach(model, name)
        if model.cfg.family == "gpt2" and name != "hook_embed":
            assert bounds is None
            continue
        values = np.concatenate(
            list(model.read([[t] for t in range(model.cfg.d_vocab)], [sf.model.Values(name)])[0][0])
        )
        values = values.reshape(model.cfg.d_vocab, -1)
        np.testing.assert_array_equal(bounds, np.stack([values.min(0), values.max(0)], 1))
        longer = model.read([[7, 3, 9, 3]], [sf.model.Values(name)])[0][0][0].reshape(4, -1)
        assert bounds is not None
        assert np.all((longer >= bounds[:, 0]) & (longer <= bounds[:, 1]))
    assert sf.reach(model, "blocks.1.attn.hook_z") is None
