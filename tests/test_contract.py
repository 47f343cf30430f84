"""The public calls keep the forms that the design's contract states: shapes, dtypes, containers, names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import signflip as sf  # noqa: E402
from tiny import config_of, loaded, loaded_default  # noqa: E402


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Any, Any]]:
    with loaded_default(request.param) as (model, theirs, _):
        yield model, theirs


def test_cfg(pair: Any) -> None:
    model, theirs = pair
    cfg, llama = model.cfg, theirs.config.model_type == "llama"
    assert (cfg.n_layers, cfg.d_model, cfg.d_mlp) == (3, 20 if llama else 21, 45)
    assert (cfg.n_heads, cfg.n_kv_heads, cfg.d_head) == ((4, 2, 6) if llama else (3, 3, 7))
    assert (cfg.d_vocab, cfg.n_ctx, cfg.family) == (61, 96, theirs.config.model_type)
    assert cfg.act_fn == ("silu" if llama else "gelu_new")


def test_every_form_of_tokens_gives_the_same_logits(pair: Any) -> None:
    model, _ = pair
    ids = [4, 8, 15, 16, 23, 42]
    one = model.run(ids)
    assert one.shape == (1, 6, 61)
    assert one.dtype == np.float32
    forms: list[Any] = [tuple(ids), [ids], (tuple(ids),)]
    forms += [np.array(ids, dtype=t) for t in (np.int8, np.uint8, np.int16, np.int32, np.uint32, np.int64, np.uint64)]
    forms += [np.array([ids]), np.asfortranarray(np.array([ids])), np.repeat(ids, 2)[::2], np.array(ids[::-1])[::-1]]
    forms += [torch.tensor(ids), torch.tensor([ids])]
    forms += [np.array(ids, dtype=">i8"), [np.int64(i) for i in ids]]
    for form in forms:
        np.testing.assert_array_equal(model.run(form), one)
    two = model.run([ids, ids[::-1]])
    assert two.shape == (2, 6, 61)
    np.testing.assert_array_equal(two, model.run(np.array([ids, ids[::-1]])))
    wide = np.zeros((2, 12), dtype=np.int64)
    wide[:, ::2] = [ids, ids[::-1]]
    np.testing.assert_array_equal(model.run(wide[:, ::2]), two)
    ragged = model.run([ids, ids[:2]])
    assert isinstance(ragged, list)
    assert [r.shape for r in ragged] == [(6, 61), (2, 61)]
    np.testing.assert_array_equal(ragged[0], one[0])


def test_what_comes_back_is_the_callers_own(pair: Any) -> None:
    model, _ = pair
    logits, cache = model.run_with_cache([1, 2, 3])
    for array in (logits, cache["blocks.0.hook_resid_pre"]):
        assert type(array) is np.ndarray
        assert array.flags.writeable
        assert array.flags.c_contiguous
        array[:] = 0
    assert model.run([1, 2, 3]).any()


def test_cache_shapes_and_short_names(pair: Any) -> None:
    model, _ = pair
    c = model.cfg
    logits, cache = model.run_with_cache([[1, 2, 3, 4, 5], [5, 4, 3, 2, 1]])
    assert list(cache) == model.sites()
    shapes = {"hook_q": (c.n_heads, c.d_head), "hook_z": (c.n_heads, c.d_head), "hook_rot_q": (c.n_heads, c.d_head)}
    shapes |= dict.fromkeys(("hook_k", "hook_v", "hook_rot_k"), (c.n_kv_heads, c.d_head))
    shapes |= dict.fromkeys(("hook_pre", "hook_post", "hook_pre_linear"), (c.d_mlp,))
    for name, value in cache.items():
        last = name.split(".")[-1]
        expected = (2, c.n_heads, 5, 5) if last == "hook_pattern" else (2, 5, *shapes.get(last, (c.d_model,)))
        assert value.shape == expected, name
        assert value.dtype == np.float32
    pattern = cache["blocks.0.attn.hook_pattern"]
    np.testing.assert_allclose(pattern.sum(-1), 1, rtol=1e-6)
    assert not np.triu(pattern[0, 0], 1).any()
    for short, layer, name in (
        ("post", 1, "blocks.1.mlp.hook_post"),
        ("pre", 2, "blocks.2.mlp.hook_pre"),
        ("resid_mid", 0, "blocks.0.hook_resid_mid"),
        ("q", 1, "blocks.1.attn.hook_q"),
        ("pattern", 1, "blocks.1.attn.hook_pattern"),
        ("attn_out", 1, "blocks.1.hook_attn_out"),
    ):
        np.testing.assert_array_equal(cache[short, layer], cache[name])
    np.testing.assert_array_equal(logits, model.run([[1, 2, 3, 4, 5], [5, 4, 3, 2, 1]]))


def test_ragged_caches_are_lists(pair: Any) -> None:
    model, _ = pair
    logits, cache = model.run_with_cache([[1, 2, 3], [4]])
    assert isinstance(logits, list)
    for name, value in cache.items():
        assert isinstance(value, list), name
        assert len(value) == 2
    assert [a.shape for a in cache["blocks.0.attn.hook_pattern"]] == [
        (model.cfg.n_heads, 3, 3),
        (model.cfg.n_heads, 1, 1),
    ]
    assert [a.shape for a in cache["blocks.0.attn.hook_q"]] == [
        (3, model.cfg.n_heads, model.cfg.d_head),
        (1, model.cfg.n_heads, model.cfg.d_head),
    ]


@pytest.mark.parametrize("stop", [None, 2])
def test_names_filter_in_every_form(pair: Any, stop: int | None) -> None:
    model, _ = pair
    _, full = model.run_with_cache([1, 2, 3])
    one, some = "blocks.1.mlp.hook_post", ["blocks.1.mlp.hook_post", "blocks.0.hook_resid_pre"]
    for names, expected in (
        (one, {one}),
        (some, set(some)),
        (tuple(some), set(some)),
        (
            lambda name: name.endswith("hook_post"),
            {f"blocks.{i}.mlp.hook_post" for i in range(3 if stop is None else stop)},
        ),
        ([], set()),
    ):
        out, cache = model.run_with_cache([1, 2, 3], names_filter=names, stop_at_layer=stop)
        assert set(cache) == expected
        for name in cache:
            np.testing.assert_array_equal(cache[name], full[name])
        expected_out = model.run([1, 2, 3]) if stop is None else full["blocks.2.hook_resid_pre"]
        np.testing.assert_array_equal(out, expected_out)


def test_stop_at_layer_counts_from_the_end_too(pair: Any) -> None:
    model, _ = pair
    a, _ = model.run_with_cache([1, 2, 3], stop_at_layer=-1)
    b, _ = model.run_with_cache([1, 2, 3], stop_at_layer=2)
    np.testing.assert_array_equal(a, b)


def test_score_and_gradient_shapes(pair: Any) -> None:
    model, _ = pair
    objective = sf.objectives.neuron("blocks.1.mlp.hook_post", 3)
    scores = model.score([[1, 2], [1, 2, 3], [4]], objective)
    assert scores.shape == (3,)
    assert scores.dtype == np.float32
    value, grads = model.gradient([1, 2, 3], objective)
    assert np.float32(value) == scores[1]
    assert set(grads) == {"hook_embed"}
    assert grads["hook_embed"].shape == (1, 3, model.cfg.d_model)
    _, grads = model.gradient(
        [1, 2, 3], objective, wrt=["hook_embed", "blocks.2.hook_resid_pre", "blocks.1.attn.hook_k"]
    )
    assert not grads["blocks.2.hook_resid_pre"].any()
    assert grads["blocks.1.attn.hook_k"].shape == (1, 3, model.cfg.n_kv_heads, model.cfg.d_head)


def test_the_best_position_is_the_largest_value(pair: Any) -> None:
    model, _ = pair
    site, ids = "blocks.1.mlp.hook_pre", [9, 3, 27, 51, 8, 8]
    _, cache = model.run_with_cache(ids, names_filter=site)
    for neuron in range(5):
        values = cache[site][0, :, neuron]
        best = sf.objectives.neuron(site, neuron, position="best")
        assert model.score([ids], best)[0] == values.max()
        value, grads = model.gradient(ids, best, wrt=(site,))
        assert np.float32(value) == values.max()
        hot = np.zeros_like(cache[site])
        hot[0, values.argmax(), neuron] = 1
        np.testing.assert_array_equal(grads[site], hot)


def test_greedy_generation_is_transformers(pair: Any) -> None:
    model, theirs = pair
    for ids in ([5], [1, 2, 3, 4], [60, 0, 60]):
        expected = theirs.generate(
            torch.tensor([ids]), max_new_tokens=12, do_sample=False, attention_mask=torch.ones(1, len(ids))
        )[0].tolist()
        out = np.asarray(model.generate(ids, max_new_tokens=12)).reshape(-1).tolist()
        assert out in (expected, expected[len(ids) :])


def test_sampling_is_reproducible_and_a_distribution(pair: Any) -> None:
    model, _ = pair

    def draw(**how: Any) -> list[int]:
        return np.asarray(model.generate([1, 2, 3], **how)).reshape(-1).tolist()

    a = draw(max_new_tokens=20, temperature=1.0, seed=3)
    assert a == draw(max_new_tokens=20, temperature=1.0, seed=3)
    assert a != draw(max_new_tokens=20, temperature=1.0, seed=4)
    greedy = draw(max_new_tokens=5)
    assert draw(max_new_tokens=5, temperature=1.0, top_k=1, seed=9) == greedy
    # The first token's frequencies over 400 seeds against the softmax: a chi-square of 5 classes, far in the tail.
    logits = model.run([1, 2, 3])[0, -1].astype(np.float64) / 0.7
    p = np.exp(logits - logits.max())
    p /= p.sum()
    first = np.array([draw(max_new_tokens=1, temperature=0.7, seed=s)[-1] for s in range(400)])
    top = np.argsort(-p)[:5]
    seen = np.array([(first == t).sum() for t in top] + [(~np.isin(first, top)).sum()])
    expected = 400 * np.array([*p[top], 1 - p[top].sum()])
    keep = expected > 4
    assert ((seen - expected)[keep] ** 2 / expected[keep]).sum() < 30
    kept = np.argsort(-p)[:2]
    assert np.isin([draw(max_new_tokens=1, temperature=0.7, top_k=2, seed=s)[-1] for s in range(40)], kept).all()


def test_generation_stops_at_the_context(pair: Any) -> None:
    model, _ = pair
    with pytest.raises(sf.errors.ContextLengthError):
        model.generate([1] * 96, max_new_tokens=1)


def test_reward_models() -> None:
    with loaded(config_of("gpt2", pad_token_id=7, num_labels=2), reward=True) as (model, theirs, _):
        rows = [[1, 2, 3, 4], [1, 2, 7, 7], [7, 7, 7, 7], [7, 7, 1, 7], [1, 7, 2, 3]]
        ours = model.reward(rows)
        assert ours.shape == (5, 2)
        with torch.no_grad():
            np.testing.assert_allclose(ours, theirs(input_ids=torch.tensor(rows)).logits, rtol=2e-4, atol=2e-5)
        edited = model.reward(rows, edits=[sf.Edit("blocks.2.hook_resid_post", "zero")])
        assert not np.array_equal(edited, ours)
        with pytest.raises(sf.errors.SignflipError):
            model.generate([1, 2], max_new_tokens=2)
    with loaded_default("llama") as (model, _, _), pytest.raises(sf.errors.SignflipError, match="reward"):
        model.reward([1, 2])
