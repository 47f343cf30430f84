"""Logits, every site, and gradients against a float64 restatement, judged by transformers' own float32 error."""

from __future__ import annotations

import tempfile
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


def objectives(model: Any, exact: Restated, n: int, rng: np.random.Generator) -> list[tuple[str, Any, Any, list[int]]]:
    """`(name, signflip's objective, the same of (logits, cache), tokens that continue the prompt)`."""
    vocab, d_mlp, d_model = model.cfg.d_vocab, model.cfg.d_mlp, model.cfg.d_model
    layer = int(rng.integers(model.cfg.n_layers))
    post, resid = f"blocks.{layer}.mlp.hook_post", f"blocks.{layer}.hook_resid_post"
    i, position = int(rng.integers(d_mlp)), int(rng.integers(n))
    vector = rng.standard_normal(d_model).astype(np.float32)
    a, b = (int(x) for x in rng.integers(vocab, size=2))
    target = [int(x) for x in rng.integers(vocab, size=3)]
    o = sf.objectives
    exact_vector = torch.from_numpy(vector)
    anywhere = [name for name in model.sites() if not name.endswith("pattern")]
    site = anywhere[int(rng.integers(len(anywhere)))]
    along = rng.standard_normal(model.site_width(site)).astype(np.float32)
    exact_along = torch.from_numpy(along)

    def logprob(logits: Any, _: Any) -> Any:
        rows = logits[n - 1 : n - 1 + len(target)].log_softmax(-1)
        return rows[torch.arange(len(target)), torch.tensor(target)].sum()

    return [
        ("neuron", o.neuron(post, i, position=position), lambda _, c: c[post][position, i], []),
        ("neuron-last", o.neuron(post, i), lambda _, c: c[post][-1, i], []),
        ("direction", o.direction(resid, vector), lambda _, c: c[resid][-1] @ exact_vector.to(c[resid].dtype), []),
        (
            "anywhere",
            o.direction(site, along, position=position),
            lambda _, c: c[site][position].reshape(-1) @ exact_along.to(c[site].dtype),
            [],
        ),
        ("logit_diff", o.logit_diff(a, b, position=position), lambda y, _: y[position, a] - y[position, b], []),
        ("logprob", o.logprob(target), logprob, target),
        (
            "sum",
            2 * o.logit_diff(a, b) - o.neuron(post, i, position=position),
            lambda y, c: 2 * (y[-1, a] - y[-1, b]) - c[post][position, i],
            [],
        ),
    ]


def compare(model: Any, theirs: Any, exact: Restated, sequences: list[list[int]], pool: Pool, seed: int = 0) -> None:
    """Adds logits, sites and gradients of these sequences to a pool."""
    rng = np.random.default_rng(seed)
    names = exact.sites()
    assert model.sites() == names
    outs, caches = model.run_with_cache(sequences)
    for s, ids in enumerate(sequences):
        seen = peer.Seen(theirs, ids, grad=True)
        logits, cache = exact.run(ids)
        pool.add("logits", logits, seen.logits.detach(), outs[s])
        for name in names:
            pool.add(name, cache[name], seen.value(name).detach(), caches[name][s])
        for label, mine, restated, target in objectives(model, exact, len(ids), rng):
            if len(ids) + len(target) > model.cfg.n_ctx:
                continue
            wrt = ["hook_embed", *(names[int(i)] for i in rng.integers(1, len(names), size=4))]
            longer = seen if not target else peer.Seen(theirs, ids + target, grad=True)

            def cached(longer: Any = longer) -> dict[str, Any]:
                return {name: longer.value(name) for name in names}

            value = restated(longer.logits, cached())
            peers = longer.gradient(value, wrt)
            exact_value, exact_grads = exact.gradient(ids + target, restated, wrt)
            mine_value, mine_grads = model.gradient(ids, mine, wrt=wrt)
            pool.add(f"value {label}", exact_value, value.detach(), mine_value)
            for name in wrt:
                rows = slice(0, len(ids))
                e, p = exact_grads[name], peers[name]
                if name.endswith("pattern"):
                    # A token has no weights for later tokens, so nor has it a gradient to them.
                    e, p = e[:, rows, rows].tril(), p[:, rows, rows].tril()
                else:
                    e, p = e[rows], p[rows]
                pool.add(f"gradient {label} {name}", e, p.detach(), np.asarray(mine_grads[name])[0])


def test_tiny_models_are_as_exact_as_transformers() -> None:
    ratios: dict[str, float] = {}

    @profile(40)
    @given(st.data())
    def collect(data: st.DataObject) -> None:
        config = data.draw(shapes.configs)
        seed = data.draw(st.integers(0, 99))
        with loaded(config, seed) as (model, theirs, exact):
            pool = Pool()
            compare(model, theirs, exact, data.draw(shapes.sequences(config.vocab_size)), pool, seed)
        found = pool.ratios()
        assert max(found.values()) <= 4, f"{config.model_type}: {worst(found)}"
        ratios.update({f"{len(ratios)} {name}": value for name, value in found.items()})

    collect()
    assert len(ratios) > 2000
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
