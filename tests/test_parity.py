"""Logits, every site, and gradients against a float64 restatement, judged by transformers' own float32 error."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

import signflip as sf  # noqa: E402
from reference import peer, shapes  # noqa: E402
from reference.restated import Restated  # noqa: E402
from reference.yardstick import Pool, judge, worst  # noqa: E402
from tiny import loaded, profile  # noqa: E402


@dataclass
class Asked:
    """An objective in both forms, the tokens that continue the prompt in it, and the sites to differentiate by.

    The gradient of one objective on one prompt may be a small difference of large numbers, and either float32 lucky
    with it: a quantity is the gradient by one site, its errors pooled over all objectives and prompts.
    """

    label: str
    mine: Callable[[int], Any]
    restated: Callable[[int], Callable[[Any, dict[str, Any]], Any]]
    target: list[int]
    wrt: list[str]


def questions(model: Any, rng: np.random.Generator) -> list[Asked]:
    """Objectives of every kind. Both forms take the number of tokens of the prompt."""
    vocab, names, o = model.cfg.d_vocab, model.sites(), sf.objectives
    layer = int(rng.integers(model.cfg.n_layers))
    post, resid = f"blocks.{layer}.mlp.hook_post", f"blocks.{layer}.hook_resid_post"
    i, depth = int(rng.integers(model.cfg.d_mlp)), float(rng.uniform(0.3, 1))
    a, b = (int(x) for x in rng.choice(vocab, size=2, replace=False))
    target = [int(x) for x in rng.integers(vocab, size=3)]
    anywhere = [name for name in names if not name.endswith("pattern")]
    site = anywhere[int(rng.integers(len(anywhere)))]
    vector, along = (rng.standard_normal(model.site_width(s)).astype(np.float32) for s in (resid, site))

    def at(n: int) -> int:
        return int(depth * n)

    def project(name: str, v: Any, position: Callable[[int], int]) -> Any:
        v = torch.from_numpy(v)
        return lambda n: lambda _, c: c[name][position(n)].reshape(-1) @ v.to(c[name].dtype)

    def logprob(n: int) -> Any:
        def value(logits: Any, _: Any) -> Any:
            rows = logits[n - 1 : n - 1 + len(target)].log_softmax(-1)
            return rows[torch.arange(len(target)), torch.tensor(target)].sum()

        return value

    last = project(resid, vector, lambda n: n - 1)
    return [
        Asked(
            "neuron", lambda n: o.neuron(post, i, position=at(n)), lambda n: lambda _, c: c[post][at(n), i], [], names
        ),
        Asked("direction", lambda n: o.direction(resid, vector), last, [], names),
        Asked(f"at {site}", lambda n: o.direction(site, along, position=at(n)), project(site, along, at), [], names),
        Asked("logit_diff", lambda n: o.logit_diff(a, b), lambda n: lambda y, _: y[-1, a] - y[-1, b], [], names),
        Asked("logprob", lambda n: o.logprob(target), logprob, target, names),
        Asked(
            "sum",
            lambda n: 2 * o.logit_diff(a, b, position=at(n)) - o.neuron(post, i),
            lambda n: lambda y, c: 2 * (y[at(n), a] - y[at(n), b]) - c[post][-1, i],
            [],
            names,
        ),
    ]


def compare_sites(model: Any, theirs: Any, exact: Restated, sequences: list[list[int]], pool: Pool) -> None:
    """Adds logits and every site of these sequences to a pool."""
    names = exact.sites()
    assert model.sites() == names
    outs, caches = model.run_with_cache(sequences)
    for s, ids in enumerate(sequences):
        seen = peer.Seen(theirs, ids)
        logits, cache = exact.run(ids)
        pool.add("logits", logits, seen.logits, outs[s])
        for name in names:
            pool.add(name, cache[name], seen.value(name), caches[name][s])


def compare_gradients(
    model: Any, theirs: Any, exact: Restated, sequences: list[list[int]], asked: list[Asked], pool: Pool
) -> None:
    """Adds values and gradients of these objectives to a pool."""
    names = exact.sites()
    for ids in sequences:
        n = len(ids)
        for ask in asked:
            if n + len(ask.target) > model.cfg.n_ctx:
                continue
            seen = peer.Seen(theirs, ids + ask.target, grad=True)
            value = ask.restated(n)(seen.logits, {name: seen.value(name) for name in names})
            peers = seen.gradient(value, ask.wrt)
            exact_value, exact_grads = exact.gradient(ids + ask.target, ask.restated(n), ask.wrt)
            mine_value, mine_grads = model.gradient(ids, ask.mine(n), wrt=ask.wrt)
            pool.add("value", exact_value, value.detach(), mine_value, ask.label)
            for name in ask.wrt:
                e, p = exact_grads[name], peers[name].detach()
                if name.endswith("pattern"):
                    # A token has no weights for later tokens, so nor has it a gradient to them.
                    e, p = e[:, :n, :n].tril(), p[:, :n, :n].tril()
                else:
                    e, p = e[:n], p[:n]
                pool.add(f"gradient {name}", e, p, mine_grads[name][0], ask.label)


def test_tiny_models_are_as_exact_as_transformers() -> None:
    ratios: dict[str, float] = {}

    @profile(14)
    @given(st.data())
    def collect(data: st.DataObject) -> None:
        config = data.draw(shapes.configs)
        seed = data.draw(st.integers(0, 99))
        pool = Pool()
        with loaded(config, seed) as (model, theirs, exact):
            compare_sites(model, theirs, exact, data.draw(shapes.sequences(config.vocab_size)), pool)
            prompts = data.draw(shapes.sequences(config.vocab_size, n=8, longest=20))
            compare_gradients(model, theirs, exact, prompts, questions(model, np.random.default_rng(seed)), pool)
        found = pool.ratios()
        assert max(found.values()) <= 4, f"{config.model_type}: {worst(found)}"
        ratios.update({f"{len(ratios)} {name}": value for name, value in found.items()})

    collect()
    assert len(ratios) > 1000
    judge(ratios)


def test_reward_models_are_as_exact_as_transformers() -> None:
    ratios: dict[str, float] = {}

    @profile(10)
    @given(st.data())
    def collect(data: st.DataObject) -> None:
        config = data.draw(shapes.configs)
        config.num_labels = data.draw(st.integers(1, 3))
        config.pad_token_id = data.draw(st.one_of(st.none(), st.integers(0, 4)))
        with loaded(config, 3, reward=True) as (model, theirs, exact):
            pool = Pool()
            for ids in data.draw(shapes.sequences(config.vocab_size)):
                # transformers pools at the last id that is not the padding id, at 0 if all are; at the end without one.
                kept = [i for i, x in enumerate(ids) if x != config.pad_token_id]
                pooled = kept[-1] if kept else 0
                with torch.no_grad():
                    peers = theirs(input_ids=torch.tensor([ids])).logits[0]
                reward = model.reward(ids)
                assert reward.shape == (1, config.num_labels)
                pool.add("reward", exact.run(ids)[0][pooled], peers, reward[0])
                if config.num_labels == 1:
                    value, grads = model.gradient(ids, sf.objectives.reward())
                    e, g = exact.gradient(ids, lambda y, _, at=pooled: y[at, 0], ["hook_embed"])
                    seen = peer.Seen(theirs, ids, grad=True)
                    p = seen.gradient(seen.logits[0], ["hook_embed"])
                    pool.add("value", e, peers[0], value)
                    pool.add("gradient", g["hook_embed"], p["hook_embed"], np.asarray(grads["hook_embed"])[0])
        ratios.update({f"{len(ratios)} {name}": value for name, value in pool.ratios().items()})

    collect()
    judge(ratios)


def test_shards_and_untied_heads_load_alike() -> None:
    config = shapes_fixed()
    theirs = peer.make(config, 5)
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as many:
        theirs.save_pretrained(one)
        theirs.save_pretrained(many, max_shard_size="5KB")
        a, b = sf.load(one).run([1, 2, 3]), sf.load(many).run([1, 2, 3])
    np.testing.assert_array_equal(a, b)


def shapes_fixed() -> Any:
    from tiny import config_of

    return config_of("llama", tie_word_embeddings=False)
