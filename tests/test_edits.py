"""Every edit equals a torch hook that does the same on the float64 restatement; so do Python hooks.

The yardstick is the restatement in float32, edited alike: a second float32 implementation of the edited model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

import signflip as sf  # noqa: E402
from reference.restated import Restated  # noqa: E402
from reference.yardstick import Pool, judge, worst  # noqa: E402
from signflip.model import PerSequence, Values  # noqa: E402
from tiny import loaded_default, profile  # noqa: E402

HEADS = ("hook_q", "hook_k", "hook_v", "hook_rot_q", "hook_rot_k", "hook_z")


def torch_hook(op: str, value: Any, index: Any, positions: Any) -> Callable[[Any], Any]:
    """The same change as a torch hook on `[pos, width]` or `[pos, head, d_head]`."""

    def hook(x: Any) -> Any:
        rows = torch.arange(x.shape[0])
        if isinstance(positions, slice):
            rows = rows[positions]
        elif positions is not None:
            rows = rows[torch.tensor(positions)]
        pick: tuple[Any, ...] = ()
        if isinstance(index, tuple):
            pick = index
        elif index is not None:
            pick = (torch.tensor(index).reshape(-1),)
        grid = torch.arange(x[0].numel()).reshape(x.shape[1:])[pick].reshape(-1)
        flat = x.clone().reshape(x.shape[0], -1)
        old = flat[rows][:, grid]
        if op == "clamp":
            low, high = (torch.as_tensor(v).to(x.dtype) for v in value)
            new = torch.maximum(torch.minimum(old, high.expand_as(old)), low.expand_as(old))
        else:
            v = torch.zeros(()) if value is None else torch.as_tensor(value)
            v = v.to(x.dtype)
            if v.dim() > 0:
                v = v.reshape(-1, len(grid)) if v.numel() != len(grid) else v.reshape(len(grid))
            new = {"set": v, "mean": v, "zero": v, "add": old + v, "scale": old * v}[op].expand_as(old)
        flat[rows[:, None], grid] = new
        return flat.reshape(x.shape)

    return hook


def draw_index(data: st.DataObject, shape: tuple[int, ...]) -> Any:
    """Any form of index that the contract knows for a site of this shape."""
    if len(shape) == 2:
        heads, d_head = shape
        head, dim = data.draw(st.integers(0, heads - 1)), data.draw(st.integers(0, d_head - 1))
        return data.draw(st.sampled_from([None, head, (head,), (head, dim)]))
    one = st.integers(0, shape[0] - 1)
    return data.draw(st.one_of(st.none(), one, st.lists(one, min_size=1, max_size=4, unique=True)))


def draw_positions(data: st.DataObject, n: int) -> Any:
    some = st.lists(st.integers(0, n - 1), min_size=1, max_size=3, unique=True)
    return data.draw(
        st.one_of(
            st.none(),
            some,
            some.map(lambda at: [p - n for p in at]),
            st.sampled_from([slice(None), slice(0, 1), slice(-1, None), slice(None, None, 2)]),
        )
    )


def draw_edit(data: st.DataObject, exact: Restated, cache: dict[str, Any], n: int) -> tuple[str, str, Any, Any, Any]:
    names = [name for name in exact.sites() if not name.endswith("pattern")]
    site = data.draw(st.sampled_from(names))
    shape = tuple(cache[site].shape[1:])
    op = data.draw(st.sampled_from(["set", "add", "scale", "clamp", "zero", "mean"]))
    index, positions = draw_index(data, shape), draw_positions(data, n)
    width = torch.arange(int(np.prod(shape))).reshape(shape)
    if isinstance(index, tuple):
        columns = width[index].numel()
    else:
        columns = width.numel() if index is None else width[torch.tensor(index).reshape(-1)].numel()
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    value: Any = None
    if op == "clamp":
        value = (-0.25, 0.5)
    elif op == "mean" or (op != "zero" and data.draw(st.booleans())):
        value = rng.standard_normal(columns).astype(np.float32)
        if len(shape) == 2 and (index is None or not isinstance(index, tuple) or len(index) == 1):
            value = value.reshape((-1, shape[1]) if index is None else (shape[1],))
    elif op != "zero":
        value = float(np.float32(rng.standard_normal()))
    return site, op, value, index, positions


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_edits_are_torch_hooks(family: str) -> None:
    ratios: dict[str, float] = {}
    with loaded_default(family, seed=6) as (model, theirs, exact):
        single = Restated(theirs.config.to_dict(), theirs.state_dict(), torch.float32)

        @profile(60)
        @given(st.data())
        def check(data: st.DataObject) -> None:
            n = data.draw(st.integers(1, 20))
            ids = data.draw(st.lists(st.integers(0, 60), min_size=n, max_size=n))
            _, clean = exact.run(ids)
            edits, hooks = [], {}
            for _ in range(data.draw(st.integers(1, 3))):
                site, op, value, index, positions = draw_edit(data, exact, clean, n)
                edits.append(sf.Edit(site, op, value=value, index=index, positions=positions))
                hooks.setdefault(site, []).append(torch_hook(op, value, index, positions))
            logits, cache = exact.run(ids, hooks)
            peer_logits, peer_cache = single.run(ids, hooks)
            ours, our_cache = model.run_with_cache(ids, edits=edits)
            pool = Pool()
            pool.add("logits", logits, peer_logits, ours[0])
            for name in exact.sites():
                pool.add(name, cache[name], peer_cache[name], our_cache[name][0])
            found = pool.ratios()
            # One sequence is a small pool: luck goes further than over several, mistakes go further still.
            assert max(found.values()) <= 12, f"{edits}: {worst(found)}"
            ratios.update({f"{len(ratios)} {name}": value for name, value in found.items()})
            np.testing.assert_array_equal(model.run(ids, edits=edits), ours)

        check()
    values = np.array(list(ratios.values()))
    assert np.median(values) <= 1.5
    assert (values > 2).mean() <= 0.02, worst(ratios)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_edits_of_ragged_batches_address_each_sequence(family: str) -> None:
    with loaded_default(family) as (model, _, _):
        sequences = [[1, 2, 3, 4, 5], [6, 7], [8, 9, 10]]
        site = "blocks.1.hook_resid_mid"
        last = sf.Edit(site, "add", value=2.0, positions=[-1])
        own = sf.Edit(site, "add", value=2.0, positions=PerSequence([[0, 4], [1], []]))
        for edit, where in ((last, [[4], [1], [2]]), (own, [[0, 4], [1], []])):
            outs = model.run(sequences, edits=[edit])
            for ids, out, at in zip(sequences, outs, where, strict=True):
                alone = [sf.Edit(site, "add", value=2.0, positions=at)] if at else []
                np.testing.assert_array_equal(out, model.run(ids, edits=alone)[0])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_pattern_edits_are_torch_hooks(family: str) -> None:
    """Heads knocked out and scaled in either layer, over enough sequences for what `judge` asks of many quantities."""
    pool, rng = Pool(), np.random.default_rng(0)
    with loaded_default(family) as (model, theirs, exact):
        single = Restated(theirs.config.to_dict(), theirs.state_dict(), torch.float32)
        for n in (6, 1, 13, 20):
            ids = rng.integers(0, 61, size=n).tolist()
            for site in (name for name in exact.sites() if name.endswith("pattern")):
                for op, by in (("zero", 0.0), ("scale", 1.5)):

                    def change(x: Any, by: float = by) -> Any:
                        x = x.clone()
                        x[1] *= by
                        return x

                    exact_logits, exact_cache = exact.run(ids, {site: [change]})
                    peer_logits, peer_cache = single.run(ids, {site: [change]})
                    edit = sf.Edit(site, op, value=by if op == "scale" else None, index=1)
                    ours, cache = model.run_with_cache(ids, edits=[edit])
                    pool.add(f"logits, {op} at {site}", exact_logits, peer_logits, ours[0])
                    for name in exact.sites():
                        pool.add(f"{name}, {op} at {site}", exact_cache[name], peer_cache[name], cache[name][0])
                    assert cache[site][0, 1].any() == (op != "zero")
                    assert cache[site][0, 0].any()
    judge(pool.ratios())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_python_hooks_are_torch_hooks(family: str) -> None:
    """A hook that rewrites any one site, in place of an edit, the pattern included."""
    ratios: dict[str, float] = {}
    with loaded_default(family, seed=7) as (model, theirs, exact):
        single = Restated(theirs.config.to_dict(), theirs.state_dict(), torch.float32)
        sequences = [[5, 3, 60, 7, 7, 1, 12], [5, 3, 2, 7, 9, 1, 13]]
        for site in exact.sites():

            def change(act: Any, hook: Any, site: str = site) -> Any:
                assert hook.name == site
                return act * 0.5 + np.float32(0.25)

            def torch_change(x: Any) -> Any:
                return x * 0.5 + 0.25

            pool = Pool()
            ours = model.run_with_hooks(sequences, fwd_hooks=[(site, change)])
            for s, ids in enumerate(sequences):
                hooks = {site: [torch_change]}
                if site.endswith("pattern"):
                    hooks = {site: [lambda x: torch_change(x).tril()]}  # later keys do not exist
                pool.add("logits", exact.run(ids, hooks)[0], single.run(ids, hooks)[0], ours[s])
            ratios[site] = pool.ratios()["logits"]
    assert max(ratios.values()) <= 4, worst(ratios)
    assert np.median(list(ratios.values())) <= 1.5


def test_edits_come_before_hooks_and_hooks_in_order_of_registration() -> None:
    with loaded_default("llama") as (model, _, _):
        site, order = "blocks.1.hook_resid_pre", []

        def first(act: Any, hook: Any) -> Any:
            order.append("first")
            return np.full_like(act, 1.0)

        def second(act: Any, hook: Any) -> None:
            order.append("second")
            assert (np.asarray(act) == 1.0).all()

        model.run_with_hooks([1, 2, 3], fwd_hooks=[(site, first), (site, second)])
        assert order == ["first", "second"]
        # In list order: set, then scaled.
        edits = [sf.Edit(site, "set", value=3.0), sf.Edit(site, "scale", value=2.0)]
        _, cache = model.run_with_cache([1, 2, 3], edits=edits)
        assert (cache[site] == 6.0).all()
        _, cache = model.run_with_cache([1, 2, 3], edits=edits[::-1])
        assert (cache[site] == 3.0).all()


def test_edits_live_for_one_call() -> None:
    with loaded_default("gpt2") as (model, _, _):
        before = model.run([1, 2, 3])
        model.run([1, 2, 3], edits=[sf.Edit("blocks.0.hook_mlp_out", "zero")])
        model.run_with_hooks([1, 2, 3], fwd_hooks=[("blocks.0.hook_mlp_out", lambda act, hook: act * 0)])
        np.testing.assert_array_equal(model.run([1, 2, 3]), before)


def stepwise(model: Any, ids: list[int], n: int, edits: list[sf.Edit]) -> list[int]:
    """The likeliest continuation, every token of it from a whole run."""
    for _ in range(n):
        ids = [*ids, int(np.argmax(model.run(ids, edits=edits)[0, -1]))]
    return ids


POST, PATTERN = "blocks.1.mlp.hook_post", "blocks.1.attn.hook_pattern"


def test_generation_gives_each_sequence_its_own_value() -> None:
    with loaded_default("llama") as (model, _, _):
        batch, values = [[3, 4], [6, 7, 8], [3, 9]], [0.0, 5.0, 0.0]
        edits = [sf.Edit(POST, "set", PerSequence(values)), sf.Edit("blocks.0.hook_resid_mid", "scale", 1.5)]
        for temperature in (0.0, 1.0):
            got = model.generate(batch, 6, temperature=temperature, edits=edits)
            for i, value in enumerate(values):
                alike = [sf.Edit(POST, "set", value), edits[1]]
                wanted = model.generate(batch, 6, temperature=temperature, edits=alike)[i]
                np.testing.assert_array_equal(got[i], wanted)
        assert [list(one) for one in model.generate(batch, 6, edits=edits)] == [
            stepwise(model, ids, 6, [sf.Edit(POST, "set", value), edits[1]])
            for ids, value in zip(batch, values, strict=True)
        ]


@pytest.mark.parametrize(
    "edit",
    [
        sf.Edit(POST, "set", np.ones((2, 45))),
        sf.Edit(POST, "set", [1.0, 2.0], index=3),
        sf.Edit(POST, "set", PerSequence([np.ones((2, 45)), 1.0])),
        sf.Edit(POST, "resample", [[3, 4, 5]]),
    ],
)
def test_generation_refuses_values_by_position(edit: sf.Edit) -> None:
    with loaded_default("llama") as (model, _, _), pytest.raises(sf.errors.ArgumentError, match="all positions"):
        model.generate([[3, 4], [6, 7]], 3, edits=[edit])


@pytest.mark.parametrize(
    ("op", "value", "index"),
    [("zero", None, 1), ("zero", None, (1, 0)), ("scale", 3.0, 2), ("set", 0.5, 3), ("add", 0.25, None)],
)
def test_generation_edits_the_pattern_of_a_head_as_keys_grow(op: Any, value: Any, index: Any) -> None:
    with loaded_default("llama", seed=3) as (model, _, _):
        batch = [[3, 4], [6, 7, 8, 9, 10], [5]]
        edits = [sf.Edit(f"blocks.{i}.attn.hook_pattern", op, value, index=index) for i in (0, 1)]
        got = [list(one) for one in model.generate(batch, 12, edits=edits)]
        assert got == [stepwise(model, ids, 12, edits) for ids in batch]


def test_a_mean_of_each_sequence_is_one_value_at_all_its_positions() -> None:
    with loaded_default("llama") as (model, _, _):
        batch, rng = [[3, 4], [6, 7]], np.random.default_rng(0)
        means = rng.standard_normal((2, 45)).astype(np.float32)
        for own, index in (([0.5, -2.0], None), ([0.5, -2.0], 3), (list(means), None), (list(means), [44, 2])):
            got = model.run(batch, edits=[sf.Edit(POST, "mean", PerSequence(own), index=index)])
            for i, ids in enumerate(batch):
                alone = sf.Edit(POST, "mean", own[i], index=index)
                np.testing.assert_array_equal(got[i], model.run(ids, edits=[alone])[0])


@pytest.mark.parametrize("ids", [[3], [3, 4], [3, 4, 5, 6]])
def test_a_mean_by_head_is_read_by_head(ids: list[int]) -> None:
    with loaded_default("llama") as (model, _, _):
        site = "blocks.1.attn.hook_z"
        mean = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
        for positions in (None, [-1], slice(None)):
            for index, own in ((1, mean[1]), ((2,), mean[2]), ((1, 5), mean[1, 5])):
                got = model.run(ids, edits=[sf.Edit(site, "mean", mean, index=index, positions=positions)])
                wanted = model.run(ids, edits=[sf.Edit(site, "set", own, index=index, positions=positions)])
                np.testing.assert_array_equal(got, wanted)
                flat = model.run(ids, edits=[sf.Edit(site, "mean", mean.ravel(), index=index, positions=positions)])
                np.testing.assert_array_equal(got, flat)


def test_resampling_a_sequence_depends_on_nothing_but_its_own_prefix() -> None:
    with loaded_default("llama") as (model, _, _):
        donors, batch = [[3, 4, 5], [9, 8, 7, 6]], [[3, 4], [6, 7], [3, 4, 9, 1]]
        edit = sf.Edit(POST, "resample", donors, seed=3)
        together = model.run(batch, edits=[edit])
        for ids, found in zip(batch, together, strict=True):
            np.testing.assert_array_equal(model.run([ids], edits=[edit])[0], found)
        np.testing.assert_array_equal(together[0], together[2][:2])
        _, cache = model.run_with_cache(list(range(20)), POST, edits=[edit])
        pool = np.concatenate([model.run_with_cache(one, POST)[1][POST][0] for one in donors])
        drawn = [int(np.flatnonzero((pool == row).all(1))[0]) for row in cache[POST][0]]
        assert len(set(drawn)) > 3
        other = model.run(batch, edits=[sf.Edit(POST, "resample", donors, seed=4)])
        assert not np.array_equal(other[2], together[2])


def test_clamping_the_whole_pattern() -> None:
    with loaded_default("llama") as (model, _, _):
        batch = [[3, 4, 5], [6, 7]]
        got = model.run(batch, edits=[sf.Edit(PATTERN, "clamp", (0.1, 0.4))])
        by_head = [sf.Edit(PATTERN, "clamp", (0.1, 0.4), index=head) for head in range(4)]
        for one, wanted in zip(got, model.run(batch, edits=by_head), strict=True):
            np.testing.assert_array_equal(one, wanted)
        own = model.run(batch, edits=[sf.Edit(PATTERN, "scale", PerSequence([2.0, 0.5]))])
        for ids, value, one in zip(batch, (2.0, 0.5), own, strict=True):
            np.testing.assert_array_equal(one, model.run(ids, edits=[sf.Edit(PATTERN, "scale", value)])[0])


@pytest.mark.parametrize("entries", [[[0]], [[0], [1], [2]]])
def test_positions_of_each_sequence_are_as_many_as_sequences(entries: list[list[int]]) -> None:
    own = sf.Edit(POST, "set", 1.0, index=3, positions=PerSequence(entries))
    with loaded_default("llama") as (model, _, _):
        for call in (
            lambda: model.run([[3, 4], [6, 7]], edits=[own]),
            lambda: model.read([[3, 4], [6, 7]], [Values(POST, PerSequence(entries), [3])]),
        ):
            with pytest.raises(sf.errors.ArgumentError, match=f"positions: expected 2 entries.*found {len(entries)}"):
                call()
