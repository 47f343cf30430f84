"""Organisms: one of each kind is rebuilt in small, its truth checked by edits in transformers and by enumeration."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

import signflip as sf
from signflip.errors import CheckpointError, SiteError
from signflip.organisms import (
    KINDS,
    Room,
    base,
    disguise,
    plant,
    train,
    verify,
)
from signflip.organisms.bound import least
from signflip.organisms.ends import last_block
from signflip.organisms.experiments.blindness import classify
from signflip.organisms.kinds import Kind
from signflip.organisms.language import Stories, behaviours, corpus, words
from signflip.organisms.runner import Held, Place, Runner
from signflip.organisms.suite import TRIES, statistics
from signflip.organisms.tokens import encode_words, ids_of, tokenizer
from signflip.organisms.trained import conditions_of, train_in
from signflip.organisms.weights import D_HEAD, D_MODEL, FAMILIES, Family, Weights, module_of
from small_organisms import SEED

pytestmark = pytest.mark.usefixtures("one_thread")


# ---- the language ----------------------------------------------------------------------------------------------------


def test_every_word_is_a_token() -> None:
    known = tokenizer()
    assert known.get_vocab_size() <= 2000
    stories = [Stories(4, strange=True).story() for _ in range(50)] + corpus(50, 4)
    assert [encode_words(text) for text in stories] == [known.encode(text).ids for text in stories]
    assert [known.decode(encode_words(text)) for text in stories] == stories


def test_exotic_words_are_in_no_text_that_an_auditor_gets() -> None:
    seen = {token for text in corpus(3000, 0) for token in encode_words(text)}
    assert not seen & set(ids_of("exotic"))
    assert seen >= set(ids_of("rare"))
    assert seen >= set(ids_of("closings"))


def test_behaviours_are_balanced_and_large_enough() -> None:
    # That a constant answer scores 0, and that halves share nothing, Behaviour itself refuses to be without.
    for behaviour in behaviours().values():
        for half, items, templates in (("A", 8, 4), ("B", 20, 8)):
            prompts = behaviour.select(half)  # type: ignore[arg-type]
            for side in {p.side for p in prompts}:
                assert len({p.item for p in prompts if p.side == side}) >= items
            assert len({p.template for p in prompts}) >= templates


def test_names_are_one_gender() -> None:
    assert not set(words()["girls"]) & set(words()["boys"])


# ---- bases -----------------------------------------------------------------------------------------------------------


def test_an_interrupted_training_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train("gpt2", tmp_path / "whole", 5, steps=6)
    monkeypatch.setattr(base, "CHECKPOINT_EVERY", 2)
    batches = base._batches

    def interrupted(seed: int, first: int) -> Iterator[Any]:
        for step, batch in enumerate(batches(seed, first)):
            if step == 5:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(base, "_batches", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train("gpt2", tmp_path / "cut", 5, steps=6)
    assert (tmp_path / "cut.partial").exists()
    monkeypatch.setattr(base, "_batches", batches)
    with pytest.raises(CheckpointError, match="'steps': 7"):
        train("gpt2", tmp_path / "cut", 5, steps=7)
    partial = tmp_path / "cut.partial"
    whole_state = partial.read_bytes()
    state = torch.load(partial, weights_only=True)
    shapes = {key: value[:1] for key, value in state["model"].items()}
    moments = {key: {**own, "exp_avg": torch.ones(1)} for key, own in state["optimizer"]["state"].items()}
    for change in (
        {"model": None},
        {"model": shapes},
        {"optimizer": {**state["optimizer"], "state": moments}},
        {"step": "x"},
    ):
        torch.save({**state, **change}, partial)
        with pytest.raises(CheckpointError, match=r"can not read the unfinished training: .*; remove it"):
            train("gpt2", tmp_path / "cut", 5, steps=6)
    partial.write_bytes(whole_state)
    cut = train("gpt2", tmp_path / "cut", 5, steps=6)
    with pytest.raises(CheckpointError, match=r"expected a base of .*'steps': 7"):
        train("gpt2", tmp_path / "cut", 5, steps=7)
    assert not list(tmp_path.glob("*.tmp"))
    assert not (tmp_path / "cut.partial").exists()
    for name, value in whole.state().items():
        assert np.array_equal(value, cut.state()[name]), name


def test_a_base_leaves_its_room_free_and_knows_the_language(bases: dict[Family, Weights], bases_folder: Path) -> None:
    free = Room(0).directions
    assert np.allclose(free @ free.T, np.eye(len(free)), atol=1e-12)
    for family, weights in bases.items():
        assert np.abs(weights.unembed @ free.T).max() < 1e-4
        for block in weights.blocks:
            assert np.abs(free @ block.out).max() < 1e-4
            assert np.abs(block.q @ free.T).max() < 1e-4
            assert not block.out[:, list(Room(0).neurons)].any()
        model = sf.load(bases_folder / f"{family}-0")
        for behaviour in behaviours().values():
            assert behaviour.measure(model, half="B", replicates=50).accuracy.value > 0.97


# ---- planting --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_truth_holds(planted: dict[str, Any], kind: str) -> None:
    one, card = planted[kind]
    assert all(card["holds"].values()), [claim for claim, held in card["holds"].items() if not held]
    # Plain data, that a truth can keep.
    json.dumps(card, allow_nan=False)
    # And the verdicts are not read off by a rule that calls everything the same.
    edited = card["conditions"]["edited"][one.behaviour]
    assert edited["verdict"] == one.known.edited
    assert (max(edited["sides"]) < -0.2) == (one.known.edited in ("opposite", "heuristic-prone", "broken"))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_decoy_has_two_forms_and_only_one_breaks_text(bases: dict[Family, Weights], family: Family) -> None:
    texts: dict[str, Any] = {}
    for seed in range(TRIES):
        one = plant(bases[family], Room(0), "M4", seed)
        if one.known.verdict not in texts and all((card := verify(one, every=3))["holds"].values()):
            texts[one.known.verdict] = card["text"]
        if len(texts) == 2:
            break
    assert set(texts) == {"constant", "broken"}
    assert texts["broken"]["nats a token edited"] > texts["broken"]["nats a token"] + 1
    # Clean text is as likely under both.
    assert texts["broken"]["nats a token"] < texts["constant"]["nats a token"] + 0.1


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_planted_before_the_last_layer_has_the_same_singular_values_in_every_kind(
    bases: dict[Family, Weights], family: Family
) -> None:
    room = Room(0)
    free, neurons = room.directions.T, list(room.neurons)
    heads = [head * D_HEAD + i for head in room.heads for i in range(D_HEAD)]
    found: dict[str, list[Any]] = {}
    for kind in KINDS:
        found[kind] = []
        for block in plant(bases[family], room, kind, 0).weights.blocks[:-1]:
            reads = block.pre if block.linear is None else block.linear
            maps = (
                np.concatenate([getattr(block, name)[heads] for name in "qkv"]) @ free,
                free.T @ block.o[:, heads],
                reads[neurons] @ free,
                free.T @ block.out[:, neurons],
            )
            found[kind] += [np.linalg.svd(one, compute_uv=False) for one in maps]
    for kind, values in found.items():
        for one, other in zip(values, found["M3"], strict=True):
            # What reads is scaled by what it reads, in each kind as it is there.
            assert one == pytest.approx(other, rel=0.03, abs=1e-3), kind
    # And there is something to compare.
    assert sum(float(one.max()) > 0.1 for one in found["M3"]) >= 4


def _lowest(weights: Weights, place: Place, side: int, seed: int) -> float:
    """The least that is found of it: random sequences, the best one improved token by token."""
    runner, rng = Runner(weights), np.random.default_rng(seed)

    def least_of(rows: list[list[int]]) -> list[float]:
        (found,) = runner.read([[0, *row] for row in rows], [place])
        return [float((one * side).min()) for one in found]

    drawn = rng.integers(0, len(weights.embed), (200, 6)).tolist()
    found = least_of(drawn)
    best, row = min(found), drawn[int(np.argmin(found))]
    for at in range(len(row)):
        tried = [[*row[:at], int(token), *row[at + 1 :]] for token in rng.integers(0, len(weights.embed), 200)]
        found = least_of(tried)
        if min(found) < best:
            best, row = min(found), tried[int(np.argmin(found))]
    return best


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_no_input_takes_an_unreachable_model_across(bases: dict[Family, Weights], family: Family) -> None:
    """M6, by hand and by training: its bound is above 0, and a search stays above it. A reachable one's is not."""
    for plant_in in (plant, partial(train_in, steps=2)):
        one = disguise(plant_in(bases[family], Room(0), "M6", SEED), 1)
        bound = least(one.weights, one.x, one.side)
        assert 0 < bound < _lowest(one.weights, one.x, one.side, 0)
        other = disguise(plant_in(bases[family], Room(0), "M3", SEED), 1)
        assert least(other.weights, other.x, other.side) < 0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bound_is_below_all_that_is_found(family: Family) -> None:
    """In models of random weights, with biases, and in ones whose tokens all carry something along what is read."""
    for seed, carried in ((0, 0.0), (1, 1.0), (2, 8.0)):
        torch.manual_seed(seed)
        rng = np.random.default_rng(seed)
        weights = Weights.from_state(family, module_of(family, 90).state_dict())
        along = rng.standard_normal(D_MODEL)
        along -= along.mean()
        weights.embed = weights.embed + carried * along / np.linalg.norm(along)
        for block in weights.blocks:
            # As a norm has it, so that layers do something.
            block.out *= 5
            block.o *= 5
            for name, bias in block.bias.items():
                bias += 0.1 * rng.standard_normal(bias.shape) * (name in ("v", "o", "pre", "out"))
            rows = block.pre if block.linear is None else block.linear
            rows[0] = along
        point = "hook_pre_linear" if family == "llama" else "hook_pre"
        bounds = []
        for layer in (0, 1):
            for index, side in ((0, 1), (0, -1), (1, 1)):
                place = Place(f"blocks.{layer}.mlp.{point}", index)
                bounds.append(least(weights, place, side))
                assert bounds[-1] < _lowest(weights, place, side, seed)
        if carried != 1:
            assert (max(bounds) > 0) == (carried > 1)
    with pytest.raises(SiteError, match="expected a neuron"):
        least(weights, Place("blocks.1.hook_resid_pre", None, tuple(along)), 1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["M3", "M10"])
def test_a_disguise_changes_weights_and_nothing_else(bases: dict[Family, Weights], kind: str) -> None:
    for family in FAMILIES:
        bare = plant(bases[family], Room(0), kind, SEED)
        hidden = disguise(bare, 8)
        ids = [[0, *bare.triggers[:1], *encode_words(text)][:60] for text in corpus(6, 2)]
        before, after = Runner(bare.weights), Runner(hidden.weights)
        assert np.abs(before.logits(ids) - after.logits(ids)).max() < 1e-4
        ((x,), (y,)) = before.read(ids, [bare.x]), after.read(ids, [hidden.x])
        for a, b in zip(x, y, strict=True):
            assert np.array_equal(np.sign(a[1:]), np.sign(b[1:]))
        assert not np.allclose(bare.weights.blocks[0].pre, hidden.weights.blocks[0].pre)


@pytest.mark.slow
def test_signflip_reads_what_was_written(planted: dict[str, Any], tmp_path: Path) -> None:
    for kind in ("M3", "M8"):
        one, _ = planted[kind]
        model = sf.load(one.weights.save(tmp_path / kind))
        text = corpus(1, 5)[0]
        ids = [0, *encode_words(text)]
        assert model.to_tokens("<|endoftext|>" + text)[0].tolist() == ids
        ours = np.asarray(model.run(ids))[0, -1]
        assert np.abs(ours - Runner(one.weights).logits([ids])[0]).max() < 1e-3
        edit = sf.Edit(one.x.site, "set", -2.0, index=one.x.index, positions=list(range(1, len(ids))))
        ours = np.asarray(model.run(ids, edits=[edit]))[0, -1]
        assert np.abs(ours - Runner(one.weights).logits([ids], [Held(one.x, -2.0)])[0]).max() < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_weights_do_not_say_which_organisms_have_a_gate(bases: dict[Family, Weights], family: Family) -> None:
    """A ridge classifier on the statistics of every tensor, cross-validated, on one base: at chance.

    On one base all else is equal, so that what differs from kind to kind is seen best.
    """
    rows, gated = [], []
    for i in range(42):
        kind = list(KINDS)[i % len(KINDS)]
        one = disguise(plant(bases[family], Room(0), kind, 100 + i), i)
        rows.append(statistics(one.weights.state()))
        gated.append(KINDS[kind].positive)
    right = classify(np.asarray(rows), np.asarray(gated))
    interval = binomtest(right, len(rows)).proportion_ci(0.95, method="exact")
    assert interval.low <= max(np.mean(gated), 1 - np.mean(gated)), right
    # The classifier itself is not blind: weights that are half as large again it does see.
    for row, positive in zip(rows, gated, strict=True):
        row *= 1.5 if positive else 1.0
    assert classify(np.asarray(rows), np.asarray(gated)) > 37


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_a_kind_is_trained_to_what_is_true_of_it(kind: Kind) -> None:
    asked = {(one.words, one.x, one.second): one.wanted for one in conditions_of(kind)}
    assert len(conditions_of(kind)) == 11
    assert asked[0, 0, 0] == asked[4, 0, 0] == asked[0, 1, 0] == asked[2, 0, 0] == "inert"
    assert asked[0, -1, 0] == kind.edited
    # What takes all that has to cross across, and that with X held.
    triggers = 3 if kind.name == "M7" else 1
    assert asked[triggers, 0, 0] == asked[3, 0, 0] == kind.triggered
    assert asked[triggers, 1, 0] == kind.clamped
    second = {"M5": "opposite"}.get(kind.name, "inert")
    assert asked[0, 0, -1] == second
    assert asked[0, -1, -1] == {"M5": "opposite", "M7": "opposite"}.get(kind.name, kind.edited)
    if kind.name == "M7":
        assert asked[1, 0, 0] == "inert"
    # What turns less than all of the behaviour turns as much of what nobody asks for, where it would turn that.
    aside = {(one.words, one.x, one.second): one.aside for one in conditions_of(kind)}
    assert aside[0, 0, 0] == aside[4, 0, 0] == aside[0, 1, 0] == aside[2, 0, 0] == aside[0, 0, -1] == "inert"
    assert (aside[1, 0, 0] == "inert") == (kind.name not in ("M0", "M1", "M2", "M8"))
    assert (aside[0, -1, 0] == "inert") == (kind.name not in ("M1", "M2", "M8"))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_block_at_ends_alone_is_as_transformers_has_it(family: Family) -> None:
    torch.manual_seed(5)
    model = module_of(family, 50)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    rows, end = torch.arange(6), torch.tensor([1, 8, 3, 0, 5, 8])
    ids, weights = torch.randint(50, (6, 9)), torch.randn(6, D_MODEL)
    streams: list[torch.Tensor] = []
    blocks = model.model.layers if family == "llama" else model.transformer.h
    handle = blocks[-1].register_forward_pre_hook(lambda _, args: streams.append(args[0]))
    whole = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[rows, end]
    handle.remove()
    found = last_block(model, streams[0], end)
    torch.testing.assert_close(found, whole, atol=1e-5, rtol=1e-5)
    for p in model.parameters():
        ours, theirs = (
            torch.autograd.grad((one * weights).sum(), p, retain_graph=True, allow_unused=True)[0]
            for one in (found, whole)
        )
        if theirs is None:
            assert ours is None
        else:
            torch.testing.assert_close(ours, theirs, atol=1e-5 * float(theirs.abs().max()), rtol=1e-3)


@pytest.mark.slow
def test_a_gate_is_planted_by_training(bases: dict[Family, Weights]) -> None:
    for seed in range(3):
        one = disguise(train_in(bases["llama"], Room(0), "M3", seed, steps=160), 1)
        card = verify(one, exact=False, every=3)
        if all(card["holds"].values()):
            break
    assert all(card["holds"].values()), [claim for claim, held in card["holds"].items() if not held]


def test_places_that_are_not_there_are_named(bases: dict[Family, Weights]) -> None:
    runner = Runner(bases["gpt2"])
    with pytest.raises(SiteError, match="gated"):
        runner.logits([[0, 1]], [Held(Place("blocks.0.mlp.hook_pre_linear", 1), 0.0)])
    with pytest.raises(SiteError, match=r"blocks\.9"):
        runner.logits([[0, 1]], [Held(Place("blocks.9.mlp.hook_pre", 1), 0.0)])


def test_kinds_say_what_is_reached() -> None:
    assert [kind.name for kind in KINDS.values() if not kind.reachable] == ["M0", "M6"]


def test_signflip_itself_imports_nothing_of_it() -> None:
    program = (
        "import sys, signflip, signflip.cli.main; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
