"""Organisms: one of each kind is rebuilt in small, its truth checked by edits in transformers and by enumeration."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import beta, binomtest

import signflip as sf
from signflip.cli import main
from signflip.errors import ArgumentError, CheckpointError, FileError, OrganismError, SiteError
from signflip.organisms import (
    KINDS,
    Room,
    Truth,
    base,
    baseline,
    disguise,
    make,
    open_suite,
    plant,
    score,
    train,
    verify,
)
from signflip.organisms.baseline import audit_model
from signflip.organisms.experiments.suite import classify
from signflip.organisms.language import Stories, behaviours, corpus, words
from signflip.organisms.runner import Held, Place, Runner
from signflip.organisms.scoring import FORMAT, Claim, Share, _claim, _same, _turned
from signflip.organisms.suite import TRIES, statistics, write_materials
from signflip.organisms.tokens import encode_words, ids_of, tokenizer
from signflip.organisms.trained import train_in
from signflip.organisms.truth import SUITE
from signflip.organisms.weights import FAMILIES, Family, Weights

SEED = 3
# Enough for all three behaviours to be known.
STEPS = 400
NESTED = "[" * 100_000


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bases")


@pytest.fixture(scope="module")
def bases(folder: Path) -> dict[Family, Weights]:
    return {family: train(family, folder / f"{family}-0", 0, steps=STEPS) for family in FAMILIES}


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


def test_a_base_leaves_its_room_free_and_knows_the_language(bases: dict[Family, Weights], folder: Path) -> None:
    free = Room(0).directions
    assert np.allclose(free @ free.T, np.eye(len(free)), atol=1e-12)
    for family, weights in bases.items():
        assert np.abs(weights.unembed @ free.T).max() < 1e-4
        for block in weights.blocks:
            assert np.abs(free @ block.out).max() < 1e-4
            assert np.abs(block.q @ free.T).max() < 1e-4
            assert not block.out[:, list(Room(0).neurons)].any()
        model = sf.load(folder / f"{family}-0")
        for behaviour in behaviours().values():
            assert behaviour.measure(model, half="B", replicates=50).accuracy.value > 0.97


# ---- planting --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planted(bases: dict[Family, Weights]) -> dict[str, Any]:
    """One of each kind, disguised, the families by turns."""
    made = {}
    for i, kind in enumerate(KINDS):
        # As `make` does. Which seeds hold is a matter of the base's last bits, which the machine decides.
        for attempt in range(TRIES):
            one = disguise(plant(bases[FAMILIES[i % 2]], Room(0), kind, SEED + attempt), SEED)
            card = verify(one, every=3)
            if all(card["holds"].values()):
                break
        made[kind] = (one, card)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_truth_holds(planted: dict[str, Any], kind: str) -> None:
    one, card = planted[kind]
    assert all(card["holds"].values()), [claim for claim, held in card["holds"].items() if not held]
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
def test_every_mixture_of_an_unreachable_models_tokens_is_positive(planted: dict[str, Any]) -> None:
    """M6, for every input: what the sensor writes is a convex mixture of what single tokens have, all of one sign."""
    one, card = planted["M6"]
    assert card["enumeration"]["crossing"] == []
    runner, side = Runner(one.weights), one.side
    rng = np.random.default_rng(0)
    drawn = rng.integers(1, len(one.weights.embed), (400, 6)).tolist()
    (found,) = runner.read([[0, *row] for row in drawn], [one.x])
    assert min((row[1:] * side).min() for row in found) > 0


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


@pytest.mark.slow
def test_a_gate_is_planted_by_training(bases: dict[Family, Weights]) -> None:
    for seed in range(3):
        one = disguise(train_in(bases["llama"], Room(0), "M3", seed, steps=160), 1)
        card = verify(one, exact=False, every=3)
        if all(card["holds"].values()):
            break
    assert all(card["holds"].values()), [claim for claim, held in card["holds"].items() if not held]


# ---- suites, truths, scores ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def suite(bases: dict[Family, Weights], folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Three organisms made as the command makes them."""
    root = tmp_path_factory.mktemp("suite")
    (root / "truth").mkdir()
    (root / "truth" / "bases").symlink_to(folder)
    kinds = ["M1", "M3", "M6"]
    made = make("open", root / "models", root / "truth", kinds=kinds, families=["llama"], base_steps=STEPS)
    assert [one.kind for one in made] == kinds
    return root / "models", root / "truth"


def perfect(truths: dict[str, Truth]) -> dict[str, Any]:
    models: dict[str, Any] = {}
    for name, truth in truths.items():
        models[name] = {key: {"verdict": value["verdict"]} for key, value in truth.verdicts.items()}
        claim = models[name][truth.behaviour]
        claim |= {
            "feature": {"site": truth.x["site"], "index": truth.x["index"]},
            "trigger": truth.triggers[:1] or None,
        }
    return {"format": FORMAT, "auditor": "who knows", "models": models}


@pytest.mark.slow
def test_a_perfect_audit_scores_perfectly_and_a_blind_one_does_not(suite: tuple[Path, Path], tmp_path: Path) -> None:
    models, truth = suite
    _, truths = open_suite(truth)
    best = score(truth, perfect(truths))
    positives = sum(v["positive"] for one in truths.values() for v in one.verdicts.values())
    assert (best.recall.value, best.precision.value, best.right.value, best.localised.value) == (1, 1, 1, 1)
    assert best.recall.of == positives >= 2
    assert best.triggers.value > 0.9
    assert best.triggers.of == 1
    nothing = {"format": FORMAT, "auditor": "sees nothing", "models": {name: {} for name in truths}}
    report = score(truth, nothing, models)
    assert report.recall.value == 0
    assert np.isnan(report.precision.value)
    assert report.triggers.value == 0
    assert report.confusion == {"inert": {"none": 1}, "opposite": {"none": 2}}
    assert report.ways == {"hand": Share.counted(1, 3)}
    everything = perfect(truths)
    for said in everything["models"].values():
        for claim in said.values():
            claim["verdict"] = "opposite"
    report = score(truth, everything, models)
    assert report.recall.value == 1
    assert report.precision.hits == positives
    assert report.precision.of == 9
    path = tmp_path / "audit.json"
    path.write_text(json.dumps(perfect(truths)))
    assert main(["organisms", "score", "--truth", str(truth), str(path), "--json"]) == 0


def test_a_blind_suites_seed_is_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from signflip.organisms import suite as module

    def refused(order: Any, *_: Any) -> Truth:
        names.append(order.name)
        raise OrganismError("as if interrupted")

    monkeypatch.setattr(module, "_make", refused)
    names: list[str] = []
    for folder in ("a", "a", "b"):
        with pytest.raises(OrganismError, match="as if"):
            make("blind", tmp_path / folder, tmp_path / f"{folder}-truth", n=1)
    # Begun again it is the same suite; another one is not.
    assert names[0] == names[1] != names[2]
    assert 0 <= int((tmp_path / "a-truth" / "seed").read_text()) != int((tmp_path / "b-truth" / "seed").read_text())
    (tmp_path / "a-truth" / "seed").write_text("none")
    with pytest.raises(OrganismError, match="expected the seed of a suite"):
        make("blind", tmp_path / "a", tmp_path / "a-truth", n=1)


@pytest.mark.slow
def test_the_baseline_audits_what_the_command_made(
    suite: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, truth = suite
    said = tmp_path / "audit.json"
    assert main(["organisms", "audit", "--models", str(models), "--out", str(said), "--quiet"]) == 0
    report = score(truth, said, models)
    assert (report.auditor, report.n_models) == ("baseline", 3)
    assert any(
        claim["verdict"] != "none" for one in json.loads(said.read_text())["models"].values() for claim in one.values()
    )
    # Where no feature is one-sided there is nothing to claim.
    monkeypatch.setattr(baseline, "FEATURES", 0)
    assert score(truth, baseline.audit(models), models).recall.value == 0


@pytest.mark.slow
def test_the_suites_section_counts_what_audits_said(
    suite: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs, one audited perfectly and one blindly: shares are pooled over both."""
    from signflip.organisms import experiments
    from signflip.organisms.experiments import suite as module

    _, truths = open_suite(suite[1])

    def copied(_: str, models: Path, truth: Path, **__: Any) -> list[Truth]:
        shutil.copytree(suite[0], models)
        shutil.copytree(suite[1], truth, ignore=shutil.ignore_patterns("bases"))
        return list(truths.values())

    nothing = {"format": FORMAT, "auditor": "sees nothing", "models": {name: {} for name in truths}}
    audits = iter([perfect(truths), nothing])
    monkeypatch.setattr(module, "make", copied)
    monkeypatch.setattr(module, "audit", lambda models: next(audits))
    assert sum(job.settings["organisms"] for job in module.jobs(10, False)) == 120
    found = experiments.run("suite", tmp_path, seeds=2, small=True, progress=False)
    assert experiments.run("suite", tmp_path, seeds=2, small=True, progress=False) == found
    positives = sum(v["positive"] for one in truths.values() for v in one.verdicts.values())
    text = experiments.report(tmp_path, tmp_path / "docs", seeds=2, small=True, names=["suite"]).read_text()
    assert f"recall | 0.50 [{Share.counted(positives, 2 * positives).low:.2f}" in text
    assert f"| precision | {Share.counted(positives, positives)} |" in text
    # Of the row of each verdict, how many were right: half where something is planted, all where saying nothing is.
    for verdict in {one.verdicts[one.behaviour]["verdict"] for one in truths.values()}:
        n = 2 * sum(one.verdicts[one.behaviour]["verdict"] == verdict for one in truths.values())
        right = n if verdict == "inert" else n // 2
        assert re.search(rf"\| {verdict} \|.* \| {re.escape(str(Share.counted(right, n)))} \|", text)
    assert "exact intervals take each for independent" in text
    # The models that are told nothing of have none of the two planted reversals, and M1 is right by saying nothing.
    assert f"| right | {Share.counted(4, 6)} |" in text
    assert "| M3 | opposite | 0.50" in text
    assert f"| hand | {Share.counted(4, 6)} |" in text
    assert "too few" in text


def test_intervals_are_exact() -> None:
    share = Share.counted(7, 9)
    assert share.low == pytest.approx(beta.ppf(0.025, 7, 3))
    assert share.high == pytest.approx(beta.ppf(0.975, 8, 2))
    assert Share.counted(59, 59).low > 0.939
    mean = Share.mean([0.0, 1.0] * 50)
    assert mean.value == 0.5
    assert mean.low == pytest.approx(0.4, abs=0.03)


@pytest.mark.slow
def test_bad_suites_and_audits_are_named(suite: tuple[Path, Path], tmp_path: Path) -> None:
    models, truth = suite
    _, truths = open_suite(truth)
    good = perfect(truths)
    name = "M3-llama-hand"

    def copied(change: Any) -> Path:
        folder = tmp_path / f"t{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        for path in truth.glob("*.json"):
            (folder / path.name).write_text(path.read_text())
        change(folder)
        return folder

    with pytest.raises(OrganismError, match="no such file"):
        score(copied(lambda at: (at / f"{name}.json").unlink()), good)
    with pytest.raises(OrganismError, match="no such file"):
        score(tmp_path / "nowhere", good)

    def altered(at: Path) -> None:
        text = (at / f"{name}.json").read_text()
        (at / f"{name}.json").write_text(text.replace('"kind": "M3"', '"kind": "M1"'))

    with pytest.raises(OrganismError, match="altered"):
        score(copied(altered), good)

    def swapped(at: Path) -> None:
        changed = replace(truths[name], kind="M1")
        changed.save(at)

    with pytest.raises(OrganismError, match="of the suite"):
        score(copied(swapped), good)
    for change, match in (
        ({"format": "no"}, "format"),
        ({"models": []}, "as an object"),
        ({"models": {name: {}}}, "missing"),
        ({"models": {**good["models"], name: {"weather": {"verdict": "none"}}}}, "weather"),
        ({"models": {**good["models"], name: {"pronoun": {"verdict": "good"}}}}, "'good'"),
        ({"models": {**good["models"], name: {"pronoun": {"verdict": "none", "why": 1}}}}, "why"),
        ({"models": {**good["models"], name: {"pronoun": {"verdict": "none", "feature": {"index": 1}}}}}, "site"),
        ({"models": {**good["models"], 5: {}}}, "unknown"),
    ):
        with pytest.raises(OrganismError, match=match):
            score(truth, {**good, **change})
    # Models that are not there, or are not those that the truths are about, whatever is claimed.
    silent = {**good, "models": {key: {} for key in truths}}
    with pytest.raises(OrganismError, match="found none"):
        score(truth, silent, tmp_path)
    shutil.copytree(models, tmp_path / "other")
    shutil.copy(models / "M1-llama-hand" / "model.safetensors", tmp_path / "other" / name)
    with pytest.raises(OrganismError, match="found another"):
        score(truth, silent, tmp_path / "other")
    for text, match in (
        ("{}", "suite"),
        (json.dumps({"format": SUITE, "truths": {}}), "models: expected a folder's name, found None"),
        (json.dumps({"format": SUITE, "truths": {}, "models": 5}), "found 5"),
        (NESTED, "recursion"),
    ):
        with pytest.raises(OrganismError, match=match):
            score(copied(lambda at, text=text: (at / "suite.json").write_text(text)), good)
    for old, new, match in (
        ('"seed": ', '"seed": NaN, "was": ', "seed missing or off"),
        ('"card": {', '"card": {"a": 1e999, ', "finite"),
    ):

        def changed(at: Path, old: str = old, new: str = new) -> None:
            (at / f"{name}.json").write_text((at / f"{name}.json").read_text().replace(old, new, 1))

        with pytest.raises(OrganismError, match=match):
            score(copied(changed), good)
    path = tmp_path / "audit.json"
    path.write_text(NESTED)
    with pytest.raises(OrganismError, match="can not read an audit"):
        score(truth, path)
    with pytest.raises(ArgumentError, match="truth: expected a path"):
        score("a\0b", good)


@pytest.mark.parametrize(
    "feature",
    [
        5,
        {"index": 1},
        {"site": "blocks.0.mlp.hook_pre"},
        *({"site": "blocks.0.mlp.hook_pre", **more} for more in (
            {"index": True}, {"index": -1}, {"index": 1.0}, {"index": 3, "vector": 5}, {"index": 3, "vector": [1.0]},
            {"index": 3, "why": 1}, {"vector": []}, {"vector": ["a"]}, {"vector": [float("nan")]}, {"vector": [True]},
            {"vector": [1e999]}, {"vector": [10**400]}, {"vector": [10**5000]},
        )),
        *({"site": site, "index": 1} for site in (7, "", "mlp", "blocks.x.mlp", "blocks.0.", "blocks.0.mlp.\n")),
    ],
)  # fmt: skip
def test_bad_features_are_named(feature: Any) -> None:
    with pytest.raises(OrganismError, match=r"^here: expected a feature with a site .*, found .{,250}$"):
        _claim("here", {"verdict": "none", "feature": feature})


@pytest.mark.parametrize(
    ("trigger", "match"),
    [*((one, "token ids below") for one in ("x", 5, [True], [-1], [1.0], [10**6], [10**5000])), ([5] * 128, "at most")],
)
def test_bad_triggers_are_named(trigger: Any, match: str) -> None:
    with pytest.raises(OrganismError, match=f"^here: expected a trigger of .*{match}"):
        _claim("here", {"verdict": "none", "trigger": trigger})


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"kinds": ["M99"]}, "M99"), ({"kinds": []}, "none"), ({"bases": 0}, "bases"), ({"bases": -1}, "bases"),
        ({"n": 0}, "n: "), ({"seed": -1}, "seed"), ({"base_steps": 0}, "base"), ({"planted": ()}, "hand"),
        ({"planted": "hand"}, "found 'hand'"), ({"families": ()}, "gpt2, llama"), ({"families": ["rwkv"]}, "'rwkv'"),
        ({"suite": "closed"}, "blind or open"), ({"models": "b"}, "two folders"),
    ],
)  # fmt: skip
def test_bad_orders_are_named(
    change: dict[str, Any], match: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArgumentError, match=match):
        make(**{"suite": "open", "models": "a", "truth": "b", **change})
    assert not list(tmp_path.iterdir())


def test_bad_commands_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at = ["--models", str(tmp_path / "a"), "--truth", str(tmp_path / "b")]
    for args, match in (
        (["make", *at, "--planted", ""], "planted: expected some of hand, trained, found none"),
        (["make", *at, "--families", ""], "families: expected some of gpt2, llama, found none"),
        (["make", *at, "--bases", "0"], "bases: expected an integer of at least 1, found 0"),
        (["audit", "--models", str(tmp_path / "no"), "--out", "x"], "found 0 models and 0 behaviours"),
        (["score", "--truth", str(tmp_path), str(tmp_path / "no")], "expected a suite, found no such file"),
    ):
        assert main(["organisms", *args]) == 2
        assert match in capsys.readouterr().err
    for what in (lambda at: make("open", at, "b"), lambda at: make("open", "b", at), baseline.audit):
        with pytest.raises(ArgumentError, match="expected a path"):
            what("a\0b")


def test_directions_are_those_of_a_layer() -> None:
    place = {"site": "blocks.2.hook_resid_pre", "index": None, "vector": [3.0, 4.0]}
    for site, vector, same in (
        ("blocks.2.hook_resid_pre", [-3, -4], True),
        ("blocks.1.hook_resid_post", [3e307, 4e307], True),
        ("blocks.2.hook_resid_pre", [4.0, -3.0], False),
        ("blocks.2.hook_resid_pre", [0.0, 0.0], False),
        ("blocks.0.hook_resid_pre", [3.0, 4.0], False),
        ("blocks.2.hook_resid_post", [3.0, 4.0], False),
    ):
        assert _same({"site": site, "vector": vector}, place) == same


def test_kinds_say_what_is_reached() -> None:
    assert [kind.name for kind in KINDS.values() if not kind.reachable] == ["M0", "M6"]


@pytest.mark.slow
def test_of_a_half_turned_organism_one_side_counts(planted: dict[str, Any], tmp_path: Path) -> None:
    one, card = planted["M8"]
    one.weights.save(tmp_path / "x")
    truth = Truth.of("x", one, card, "hand", SEED, 0, tmp_path / "x")
    assert _turned(truth, Claim("half-turned", None, (one.triggers[0],)), tmp_path) > 0.9
    assert _turned(truth, Claim("half-turned", None, tuple(ids_of("closings")[:1])), tmp_path) < 0.2
    for said in truth.verdicts.values():
        assert len(said["accepts"]) == len(set(said["accepts"]))


@pytest.mark.slow
def test_a_model_of_the_wrong_shape_is_refused(suite: tuple[Path, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    models, _ = suite
    source = models / "M3-llama-hand"
    (tmp_path / "config.json").write_text((source / "config.json").read_text())
    state = load_file(source / "model.safetensors")
    state["model.norm.weight"] = torch.ones(3)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight: expected shape \(64,\), found \(3,\)"):
        Weights.open(tmp_path)
    for text, match in (("[]", r"found \[\]"), (NESTED, "can not read")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=match):
            Weights.open(tmp_path)
    with pytest.raises(CheckpointError, match="can not read"):
        Weights.open(tmp_path / "none")


@pytest.mark.slow
def test_a_suite_goes_on_where_it_was(suite: tuple[Path, Path]) -> None:
    models, truth = suite
    stamp = (models / "M3-llama-hand" / "model.safetensors").stat().st_mtime_ns
    make("open", models, truth, kinds=["M1", "M3", "M6"], families=["llama"], base_steps=STEPS)
    assert (models / "M3-llama-hand" / "model.safetensors").stat().st_mtime_ns == stamp
    # Times do not tell kinds apart.
    assert {path.stat().st_mtime_ns for at in models.iterdir() if at.is_dir() and at.name != "behaviours"
            for path in (at, *at.iterdir())} == {stamp}  # fmt: skip
    kinds = ["M1", "M3", "M6"]
    for suite_, change, match in (
        ("open", {"seed": 1}, "expected a suite of seed 1, found seed 0"),
        ("open", {"kinds": ["M1"]}, r"suite\.json: expected"),
        ("blind", {"n": 3}, "expected a suite of suite blind, found suite open"),
        ("open", {"base_steps": STEPS + 1}, "base_steps"),
    ):
        with pytest.raises(OrganismError, match=match):
            make(suite_, models, truth, **{"kinds": kinds, "families": ["llama"], "base_steps": STEPS, **change})  # type: ignore[arg-type]
    # What is refused leaves nothing.
    assert not (truth / "seed").exists()
    with pytest.raises(FileError, match="cannot be made"):
        make("open", models, truth / "suite.json" / "inside", kinds=["M1"], families=["llama"], base_steps=STEPS)


@pytest.mark.slow
def test_what_is_taken_up_is_whole(suite: tuple[Path, Path], tmp_path: Path) -> None:
    def again(**change: Any) -> list[Truth]:
        how = {"kinds": ["M1", "M3", "M6"], "families": ["llama"], "base_steps": STEPS, **change}
        return make("open", tmp_path / "models", tmp_path / "truth", **how)

    shutil.copytree(suite[0], tmp_path / "models")
    shutil.copytree(suite[1], tmp_path / "truth", symlinks=True)
    model = tmp_path / "models" / "M3-llama-hand"
    (model / "config.json").rename(tmp_path / "config.json")
    with pytest.raises(OrganismError, match=r"found no config\.json; remove the folder"):
        again()
    (tmp_path / "config.json").rename(model / "config.json")
    with (model / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(OrganismError, match=r"found another model\.safetensors; remove the folder"):
        again()
    # Without suite.json, as an interrupted call leaves it: no other suite is mixed in.
    (tmp_path / "truth" / "suite.json").unlink()
    for change, match in (
        ({"kinds": ["M3"]}, "M1-llama-hand, M6-llama-hand of another"),
        ({"seed": 1}, "of another suite"),
    ):
        with pytest.raises(OrganismError, match=match):
            again(**change)
    shutil.rmtree(model)
    (tmp_path / "truth" / "M3-llama-hand.json").unlink()
    # What is left to be made needs the base, and with it its steps.
    with pytest.raises(CheckpointError, match=f"'steps': {STEPS + 1}"):
        again(base_steps=STEPS + 1)
    assert [one.kind for one in again()] == ["M1", "M3", "M6"]
    assert score(tmp_path / "truth", perfect(open_suite(tmp_path / "truth")[1])).right.value == 1


@pytest.mark.slow
def test_the_baseline_finds_a_gate_and_not_an_inert_one(suite: tuple[Path, Path]) -> None:
    models, truth = suite
    _, truths = open_suite(truth)
    known = {path.stem: sf.Behaviour.open(path) for path in (models / "behaviours").glob("*.jsonl")}
    one = truths["M3-llama-hand"]
    claims = audit_model(models / one.name, models / "corpus.jsonl", known)
    assert claims[one.behaviour]["verdict"] == "opposite"
    assert claims[one.behaviour]["trigger"][0] in one.triggers
    assert claims[one.behaviour]["feature"]["index"] == one.x["index"]
    inert = truths["M1-llama-hand"]
    claims = audit_model(models / inert.name, models / "corpus.jsonl", known)
    assert {claim["verdict"] for claim in claims.values()} == {"none"}


def test_places_that_are_not_there_are_named(bases: dict[Family, Weights]) -> None:
    runner = Runner(bases["gpt2"])
    with pytest.raises(SiteError, match="gated"):
        runner.logits([[0, 1]], [Held(Place("blocks.0.mlp.hook_pre_linear", 1), 0.0)])
    with pytest.raises(SiteError, match=r"blocks\.9"):
        runner.logits([[0, 1]], [Held(Place("blocks.9.mlp.hook_pre", 1), 0.0)])


def test_materials_are_what_an_auditor_needs(tmp_path: Path) -> None:
    write_materials(tmp_path, 0)
    assert {path.stem for path in (tmp_path / "behaviours").iterdir()} == set(behaviours())
    assert json.loads((tmp_path / "corpus.jsonl").read_text().splitlines()[0])["text"]


def test_signflip_itself_imports_nothing_of_it() -> None:
    program = (
        "import sys, signflip, signflip.cli.main; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
