"""Row purity: a value at a token is a function, to the bit, of its prefix, its position and its edits, and of nothing
else: not of the batch, the threads, the forest, where the pass stops or what else is read."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from hypothesis import given
from hypothesis import strategies as st

import signflip as sf
from signflip.model import Logits, LogProb, PerSequence, Project, Values
from tiny import config_of, loaded, profile

VOCAB = 61
FAMILIES = ["llama", "gpt2"]
# Wide enough that products are split over threads and panels, with remainders everywhere.
WIDE: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 72, "intermediate_size": 203, "head_dim": 34, "vocab_size": 523},
    "gpt2": {"n_embd": 69, "n_inner": 203, "vocab_size": 523},
}


@functools.cache
def model_of(family: str, wide: bool = False) -> Any:
    """One model a family, kept for the file."""
    with loaded(config_of(family, **(WIDE[family] if wide else {})), seed=4) as (model, _, _):
        return model


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    yield
    sf.set_num_threads(os.cpu_count() or 1)


def bits(a: Any) -> Any:
    """An array's bits: equal where == is not (NaN), unequal where == is (signed zeros)."""
    return np.ascontiguousarray(a, dtype=np.float32).view(np.uint32)


def same(a: Any, b: Any, what: str = "") -> None:
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape, (what, a.shape, b.shape)
    np.testing.assert_array_equal(bits(a), bits(b), err_msg=what)


@st.composite
def trees(draw: st.DrawFn, vocab: int = VOCAB, longest: int = 90) -> list[list[int]]:
    """Sequences that continue each other's prefixes, as the children of a search do; some equal, some nested."""
    ids = st.integers(0, vocab - 1)
    out = [draw(st.lists(ids, min_size=1, max_size=longest))]
    for _ in range(draw(st.integers(1, 6))):
        stem = draw(st.sampled_from(out))
        keep = draw(st.integers(0, len(stem)))
        tail = draw(st.lists(ids, min_size=0 if keep else 1, max_size=longest - keep if longest > keep else 0))
        out.append(stem[:keep] + tail)
    return out


def drawn_sites(data: st.DataObject, model: Any, n: int = 4) -> list[str]:
    return data.draw(st.lists(st.sampled_from(model.sites()), min_size=1, max_size=n, unique=True))


def edits_for(data: st.DataObject, model: Any, longest: int) -> list[Any]:
    """A few edits at any residual, neuron or head site."""
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    kinds = (
        "resid_pre",
        "resid_mid",
        "resid_post",
        "attn_out",
        "mlp_out",
        "hook_pre",
        "hook_post",
        "hook_z",
        "hook_embed",
    )
    kinds += ("hook_q", "hook_k", "hook_v")
    sites = [s for s in model.sites() if s.endswith(kinds)]
    edits = []
    for _ in range(data.draw(st.integers(1, 3))):
        site = data.draw(st.sampled_from(sites))
        op = data.draw(st.sampled_from(["set", "add", "scale", "zero"]))
        value = None if op == "zero" else float(np.float32(rng.standard_normal()))
        index = data.draw(st.sampled_from([None, 0, 1]))
        positions = data.draw(st.sampled_from([None, [0], [-1], slice(0, 1), slice(None, None, 2)]))
        edits.append(sf.Edit(site, op, value=value, index=index, positions=positions))
    return edits


@pytest.mark.parametrize("family", FAMILIES)
def test_forest_is_flat(family: str) -> None:
    model = model_of(family)

    @profile(25)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        sequences = data.draw(trees())
        sites = drawn_sites(data, model)
        reads = [Values(site, slice(None)) for site in sites if not site.endswith("pattern")]
        (outs,) = model.read(sequences, [*reads, Logits(slice(None))])
        for s, ids in enumerate(sequences):
            logits, cache = model.run_with_cache(ids)
            same(outs[-1][s], logits[0], "logits")
            for read, out in zip(reads, outs, strict=False):
                same(out[s], cache[read.site][0].reshape(len(ids), -1), read.site)

    check()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_its_splits_and_its_order_do_not_matter(family: str) -> None:
    model = model_of(family)

    @profile(15)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        sequences = data.draw(trees())
        site = data.draw(st.sampled_from(model.sites()))
        logits, cache = model.run_with_cache(sequences)
        order = data.draw(st.permutations(range(len(sequences))))
        cut = data.draw(st.integers(1, len(sequences)))
        for part in (order[:cut], order[cut:]):
            if part:
                again, again_cache = model.run_with_cache([sequences[i] for i in part], names_filter=site)
                for at, i in enumerate(part):
                    same(again[at], logits[i])
                    same(again_cache[site][at], cache[site][i], site)

    check()


@pytest.mark.parametrize("family", FAMILIES)
def test_later_tokens_do_not_matter(family: str) -> None:
    model = model_of(family)

    @profile(15)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        ids = data.draw(st.lists(st.integers(0, VOCAB - 1), min_size=2, max_size=90))
        keep = data.draw(st.integers(1, len(ids) - 1))
        whole, cache = model.run_with_cache(ids)
        part, part_cache = model.run_with_cache(ids[:keep])
        same(part[0], whole[0, :keep])
        for site in model.sites():
            if site.endswith("pattern"):
                same(part_cache[site][0], cache[site][0, :, :keep, :keep], site)
            else:
                same(part_cache[site][0], cache[site][0, :keep], site)

    check()


@pytest.mark.parametrize("family", FAMILIES)
def test_stopping_early_does_not_matter(family: str) -> None:
    model = model_of(family)

    @profile(10)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        sequences = data.draw(trees())
        stop = data.draw(st.integers(0, model.cfg.n_layers))
        _, full = model.run_with_cache(sequences)
        resid, early = model.run_with_cache(sequences, stop_at_layer=stop)
        name = f"blocks.{stop}.hook_resid_pre" if stop < model.cfg.n_layers else f"blocks.{stop - 1}.hook_resid_post"
        for s in range(len(sequences)):
            same(resid[s], full[name][s], "residual")
            for site in early:
                same(early[site][s], full[site][s], site)
        for site in model.sites():
            inside = site.startswith("hook_") or (site.startswith("blocks.") and int(site.split(".")[1]) < stop)
            assert (site in early) == inside, site

    check()


@pytest.mark.parametrize("family", FAMILIES)
def test_subsets_of_positions_neurons_and_columns_are_the_same_numbers(family: str) -> None:
    model = model_of(family)

    @profile(25)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        sequences = data.draw(trees())
        site = data.draw(st.sampled_from([s for s in model.sites() if not s.endswith("pattern")]))
        logits, cache = model.run_with_cache(sequences)
        width = int(np.prod(cache[site][0].shape[1:]))
        columns = data.draw(st.lists(st.integers(0, width - 1), min_size=1, max_size=5))
        vocabulary = data.draw(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=5))
        positions = [
            data.draw(st.lists(st.integers(-len(ids), len(ids) - 1), min_size=1, max_size=3)) for ids in sequences
        ]
        vector = np.random.default_rng(0).standard_normal(width).astype(np.float32)
        targets = [[data.draw(st.integers(0, VOCAB - 1)) for _ in p] for p in positions]
        # Read one at a time, so that each one's plan computes as little as it can, and then all together.
        reads = [
            Values(site, PerSequence(positions), columns),
            Values(site, PerSequence(positions)),
            Project(site, PerSequence(positions), vector),
            Logits(PerSequence(positions), vocabulary),
            Logits(-1),
        ]
        alone = [model.read(sequences, [read])[0][0] for read in reads]
        together = model.read(sequences, reads)[0]
        for s in range(len(sequences)):
            at = np.asarray(positions[s])
            flat = np.asarray(cache[site][s]).reshape(len(sequences[s]), -1)
            same(alone[0][s], flat[at][:, columns], site)
            same(alone[1][s], flat[at], site)
            same(alone[3][s], logits[s][at][:, vocabulary], "logits")
            same(alone[4][s].reshape(-1), logits[s][-1], "last logits")
            for a, b in zip(alone, together, strict=True):
                same(a[s], b[s])
        assert len(targets) == len(positions)

    check()


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_do_not_depend_on_company(family: str) -> None:
    model = model_of(family)

    @profile(10)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        sequences = [ids for ids in data.draw(trees()) if len(ids) > 1]
        if not sequences:
            return
        read = [LogProb([[*ids[1:], 0] for ids in sequences])]  # the tokens that follow the last positions
        together = model.read(sequences, read)[0][0]
        for s, ids in enumerate(sequences):
            alone = model.read([ids], [LogProb([[*ids[1:], 0]])])[0][0][0]
            same(alone, together[s])
            logits = model.run(ids)[0].astype(np.float64)
            exact = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
            exact = (exact - logits.max(-1, keepdims=True))[np.arange(len(ids)), [*ids[1:], 0]]
            np.testing.assert_allclose(alone, exact, rtol=2e-6, atol=2e-6)

    check()


@pytest.mark.parametrize("family", FAMILIES)
def test_variants_are_edited_runs(family: str) -> None:
    model = model_of(family)

    @profile(25)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        sequences = data.draw(trees(longest=40))
        variants = [edits_for(data, model, 40) for _ in range(data.draw(st.integers(1, 4)))]
        variants.insert(data.draw(st.integers(0, len(variants))), [])
        sites = [s for s in drawn_sites(data, model) if not s.endswith("pattern")]
        reads = [*(Values(s, slice(None)) for s in sites), Logits(slice(None))]
        outs = model.read(sequences, reads, variants=variants)
        assert len(outs) == len(variants)
        for edits, out in zip(variants, outs, strict=True):
            for s, ids in enumerate(sequences):
                logits, cache = model.run_with_cache(ids, edits=edits)
                same(out[-1][s], logits[0], f"logits under {edits}")
                for r, site in enumerate(sites):
                    same(out[r][s], cache[site][0].reshape(len(ids), -1), f"{site} under {edits}")

    check()


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_the_values_of_whole_runs(family: str) -> None:
    model = model_of(family)

    @profile(20)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        sequences = data.draw(trees())
        layer = data.draw(st.integers(0, model.cfg.n_layers - 1))
        neuron = data.draw(st.integers(0, model.cfg.d_mlp - 1))
        site = f"blocks.{layer}.mlp.hook_pre"
        o = sf.objectives
        objectives = [
            o.neuron(site, neuron),
            o.neuron(site, neuron, position=0),
            o.logit_diff(3, 5),
            o.logprob([1, 2]),
            -o.neuron(site, neuron) + 0.5 * o.logit_diff(1, 2, position=0),
        ]
        if max(map(len, sequences)) + 2 > model.cfg.n_ctx:
            objectives.pop(3)
        for objective in objectives:
            together = model.score(sequences, objective)
            assert together.shape == (len(sequences),)
            for s, ids in enumerate(sequences):
                same(model.score([ids], objective)[0], together[s])
        _, cache = model.run_with_cache(sequences, names_filter=site)
        same(model.score(sequences, objectives[0]), np.array([c[-1, neuron] for c in cache[site]]))

    check()


@pytest.mark.parametrize("family", FAMILIES)
def test_thread_counts_do_not_matter(family: str) -> None:
    model = model_of(family, wide=True)
    rng = np.random.default_rng(1)
    sequences = [rng.integers(0, 523, size=n).tolist() for n in (95, 1, 40, 77, 13)]
    edits = [sf.Edit("blocks.1.mlp.hook_post", "scale", value=-1.5, positions=[-1])]
    objective = sf.objectives.logit_diff(1, 400) + sf.objectives.neuron("blocks.2.mlp.hook_pre", 202, position=5)

    def everything() -> list[Any]:
        logits, cache = model.run_with_cache(sequences)
        out = [*logits, *(a for site in model.sites() for a in cache[site])]
        out += [*model.run(sequences, edits=edits)]
        value, grads = model.gradient(sequences[0], objective, wrt=("hook_embed", "blocks.1.hook_resid_mid"))
        out += [np.float32(value), *(grads[name] for name in sorted(grads))]
        out += [model.score(sequences, sf.objectives.logprob([5, 9][: 96 - 95]))]
        return out

    sf.set_num_threads(1)
    first = everything()
    for threads in (2, 3, 7):
        sf.set_num_threads(threads)
        for a, b in zip(first, everything(), strict=True):
            same(a, b, f"{threads} threads")


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_continues_its_own_cache_as_a_whole_run_would(family: str) -> None:
    model = model_of(family)

    @profile(10)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        ids = data.draw(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=80))
        out = np.asarray(model.generate(ids, max_new_tokens=8)).reshape(-1).tolist()
        assert out[: len(ids)] == ids or len(out) == 8
        grown = ids + out[-8:]
        logits = model.run(grown)[0]
        assert grown[len(ids) :] == logits[len(ids) - 1 : -1].argmax(-1).tolist()

    check()


@pytest.mark.parametrize("family", FAMILIES)
def test_hooks_that_change_nothing_change_nothing(family: str) -> None:
    model = model_of(family)
    sequences = [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]
    seen: dict[str, Any] = {}

    def look(act: Any, hook: Any) -> None:
        seen[hook.name] = np.array(act)

    logits, cache = model.run_with_cache(sequences)
    hooked = model.run_with_hooks(sequences, fwd_hooks=[(name, look) for name in model.sites()])
    same(hooked, logits)
    assert list(seen) == model.sites()
    for name, value in seen.items():
        same(value, cache[name], name)
