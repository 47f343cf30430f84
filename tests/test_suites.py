"""Suites of organisms: made, gone on with, audited, scored; and what is off schema or altered is named."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import beta

import signflip as sf
from signflip.cli import main
from signflip.errors import ArgumentError, CheckpointError, FileError, OrganismError
from signflip.organisms import (
    Truth,
    baseline,
    make,
    open_suite,
    score,
)
from signflip.organisms.baseline import audit_model
from signflip.organisms.language import behaviours
from signflip.organisms.scoring import FORMAT, Claim, Share, _claim, _same, _turned
from signflip.organisms.suite import MOST, write_materials
from signflip.organisms.tokens import ids_of
from signflip.organisms.truth import SUITE
from signflip.organisms.weights import Family, Weights
from small_organisms import SEED, STEPS

NESTED = "[" * 100_000


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def suite(
    bases: dict[Family, Weights], bases_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Three organisms made as the command makes them."""
    root = tmp_path_factory.mktemp("suite")
    (root / "truth").mkdir()
    (root / "truth" / "bases").symlink_to(bases_folder)
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
    assert not list(tmp_path.glob("*.begun"))
    # Where no feature is one-sided there is nothing to claim.
    monkeypatch.setattr(baseline, "FEATURES", 0)
    assert score(truth, baseline.audit(models), models).recall.value == 0


def test_an_audit_goes_on_where_it_was(
    suite: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, begun, seen = suite[0], tmp_path / "audit.json.begun", []

    def said(folder: Path, *_: Any) -> dict[str, Any]:
        seen.append(folder.name)
        if len(seen) == 2:
            raise CheckpointError("as if broken")
        return {"pronoun": {"verdict": "none"}}

    monkeypatch.setattr(baseline, "audit_model", said)
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(models / 'M3-llama-hand'))}: as if broken$"):
        baseline.audit(models, begun=begun)
    found = baseline.audit(models, begun=begun)
    assert list(found["models"]) == ["M1-llama-hand", "M3-llama-hand", "M6-llama-hand"]
    assert seen == ["M1-llama-hand", "M3-llama-hand", "M3-llama-hand", "M6-llama-hand"]
    begun.write_text(begun.read_text().replace('"of": [', '"of": ["another", '))
    with pytest.raises(OrganismError, match="expected an audit begun of this suite by this version, found another"):
        baseline.audit(models, begun=begun)


@pytest.mark.slow
def test_blindness_is_counted_of_each_way_of_planting(tmp_path: Path) -> None:
    from signflip.organisms import experiments
    from signflip.organisms.experiments import blindness

    found = experiments.run("blindness", tmp_path, seeds=2, small=True, progress=False)
    assert [run["family"] for run in found.values()] == ["gpt2", "llama"]
    assert all(sorted(one["positive"] for one in run["organisms"]) == [False, True] for run in found.values())
    assert "Too few organisms" in blindness.report(found, tmp_path)
    # Told by one statistic or by none: 60 organisms of one family, made up.
    rng = np.random.default_rng(0)
    y = np.arange(60) % 2 == 0
    for shift, rightly in ((0.0, (12, 48)), (8.0, (54, 60))):
        x = rng.normal(size=(60, 30))
        x[:, 7] += shift * y
        every = [
            {"planted": "trained", "positive": bool(a), "statistics": b.tolist()} for a, b in zip(y, x, strict=True)
        ]
        runs = {f"base-{k}": {"seed": k, "family": "llama", "organisms": every[12 * k : 12 * k + 12]} for k in range(5)}
        cell = blindness._cells(runs)["llama", "trained"]
        area, p = blindness.best_single(cell, 200)
        pairs = np.sign(x[y][:, None] - x[~y][None]).mean((0, 1)) / 2 + 0.5
        assert area == pytest.approx(np.maximum(pairs, 1 - pairs).max())
        assert (p < 0.01) == (shift > 0)
        right = blindness.classify(x, y)
        assert rightly[0] <= right <= rightly[1]
        text = blindness.report(runs, tmp_path)
        mean = np.mean([blindness.classify(x, y, seed=s) for s in range(blindness.FOLDINGS)]) / 60
        assert f"| llama | trained | {mean:.2f} (of 60; shuffled 0." in text
        assert f"planted by training, {mean:.2f} (of 60; shuffled 0." in text
        assert (tmp_path / "blindness.png").stat().st_size > 1000
        mixed = cell.shuffled(rng)
        assert all(mixed[cell.runs == k].sum() == 6 for k in range(5))


def test_a_regression_on_nothing_is_right_in_half(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over many draws of organisms that nothing tells apart: the mean is chance, and p is not small too often."""
    from signflip.organisms.experiments import blindness

    rng = np.random.default_rng(1)
    y = np.arange(40) % 2 == 0
    right = [blindness.classify(rng.normal(size=(40, 60)), y) / 40 for _ in range(400)]
    assert abs(np.mean(right) - 0.5) < 0.03
    monkeypatch.setattr(blindness, "RIDGES", 19)
    cells = [blindness.Cell(rng.normal(size=(40, 60)), y, np.arange(40) // 10) for _ in range(60)]
    p = [float(blindness.told_apart([cell]).split("; p ")[1][:-1]) for cell in cells]
    assert np.mean(np.asarray(p) <= 0.05) < 0.15


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
        ({"auditor": "\ud800"}, "printable"),
        ({"auditor": 5}, "printable"),
        ({"verdicts": {}}, "expected format, auditor and models, found 'verdicts'"),
    ):
        with pytest.raises(OrganismError, match=match):
            score(truth, {**good, **change})
    # Models that are not there, or are not those that the truths are about, whatever is claimed.
    silent = {**good, "models": {key: {} for key in truths}}
    with pytest.raises(OrganismError, match="found none"):
        score(truth, silent, tmp_path)
    with pytest.raises(OrganismError, match="can not read the model"):
        score(truth, silent, tmp_path / ("a" * 5000))
    shutil.copytree(models, tmp_path / "config")
    config = json.loads((models / name / "config.json").read_text())
    for key, value in (("num_attention_heads", 1), ("hidden_size", 8), ("rms_norm_eps", 0.1), ("model_type", "bert")):
        (tmp_path / "config" / name / "config.json").write_text(json.dumps({**config, key: value}))
        with pytest.raises(CheckpointError, match=key if key != "model_type" else "bert"):
            score(truth, silent, tmp_path / "config")
    shutil.copytree(models, tmp_path / "other")
    shutil.copy(models / "M1-llama-hand" / "model.safetensors", tmp_path / "other" / name)
    with pytest.raises(OrganismError, match="found another"):
        score(truth, silent, tmp_path / "other")
    for text, match in (
        ("{}", "suite"),
        (json.dumps({"format": SUITE, "truths": {}, "models": "m", "n": 0}), "expected 0 truths"),
        (json.dumps({"format": SUITE, "truths": {}}), "models: expected a folder's name, found None"),
        (json.dumps({"format": SUITE, "truths": {}, "models": 5}), "found 5"),
        (NESTED, "recursion"),
    ):
        with pytest.raises(OrganismError, match=match):
            score(copied(lambda at, text=text: (at / "suite.json").write_text(text)), good)

    def shorter(at: Path, n: int = len(truths)) -> None:
        suite_file = json.loads((at / "suite.json").read_text())
        del suite_file["truths"][name]
        (at / "suite.json").write_text(json.dumps({**suite_file, "n": n}))

    with pytest.raises(OrganismError, match=f"expected {len(truths)} truths, as it says, found {len(truths) - 1}"):
        score(copied(shorter), good)
    fewer = {**good, "models": {key: said for key, said in good["models"].items() if key != name}}
    with pytest.raises(OrganismError, match=f"expected models of the suite alone, found {name} without a truth"):
        score(copied(lambda at: shorter(at, len(truths) - 1)), fewer)
    for old, new, match in (
        ('"seed": ', '"seed": NaN, "was": ', "seed missing or off"),
        ('"card": {', '"card": {"a": 1e999, ', "finite"),
    ):

        def changed(at: Path, old: str = old, new: str = new) -> None:
            (at / f"{name}.json").write_text((at / f"{name}.json").read_text().replace(old, new, 1))

        with pytest.raises(OrganismError, match=match):
            score(copied(changed), good)
    path = tmp_path / "audit.json"
    for text, match in ((NESTED, "recursion"), ('{"models": {"a": {}, "a": {}}}', "each name once, found 'a' again")):
        path.write_text(text)
        with pytest.raises(OrganismError, match=f"can not read an audit.*{match}"):
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
        {"site": "blocks." + "9" * 5000 + ".hook_resid_pre", "vector": [1.0]},
    ],
)  # fmt: skip
def test_bad_features_are_named(feature: Any) -> None:
    with pytest.raises(OrganismError, match=r"^here: expected a feature with a site .*, found .{,250}$"):
        _claim("here", {"verdict": "none", "feature": feature})


@pytest.mark.parametrize(("layer", "index"), [(3, 0), (9999, 0), (0, 160), (0, 10**30)])
def test_features_of_no_organism_are_named(layer: int, index: int) -> None:
    with pytest.raises(OrganismError, match=r"^here: expected a feature of 3 layers, index below 160, found"):
        _claim("here", {"verdict": "none", "feature": {"site": f"blocks.{layer}.mlp.hook_pre", "index": index}})


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
        ({"n": 0}, "n: "), ({"workers": 0}, "workers"), ({"seed": -1}, "seed"), ({"base_steps": 0}, "base"),
        ({"planted": ()}, "hand"), ({"planted": "hand"}, "found 'hand'"), ({"families": ()}, "gpt2, llama"),
        ({"families": ["rwkv"]}, "'rwkv'"),
        ({"suite": "closed"}, "blind or open"), ({"models": "b"}, "two folders"), ({"n": 5}, "none for an open suite"),
        *(({what: n}, f"{what}: expected an integer 1 to {most}, found {n}$")
          for what, most in MOST.items() for n in (most + 1, 10**12, 10**30)),
        *(({"truth": one}, f"truth: expected a folder outside of a, .*found {one}$") for one in ("a/b", "a/b/../c")),
    ],
)  # fmt: skip
def test_bad_orders_are_named(
    change: dict[str, Any], match: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArgumentError, match=match):
        make(**{"suite": "open", "models": "a", "truth": "b", **change})
    assert not list(tmp_path.iterdir())


def test_models_and_truths_of_two_suites_are_not_mixed(tmp_path: Path) -> None:
    (tmp_path / "truth").mkdir()
    (tmp_path / "truth" / "suite.json").write_text("{}")
    (tmp_path / "models").mkdir()
    write_materials(tmp_path / "models", 0, 1)
    for models, truth in (("truth", "new"), ("new", "models")):
        with pytest.raises(OrganismError, match="expected models and truths in folders of their own"):
            make("open", tmp_path / models, tmp_path / truth)


def test_bad_commands_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at = ["--models", str(tmp_path / "a"), "--truth", str(tmp_path / "b")]
    for args, match in (
        (["make", *at, "--planted", ""], "planted: expected some of hand, trained, found none"),
        (["make", *at, "--families", ""], "families: expected some of gpt2, llama, found none"),
        (["make", *at, "--bases", "0"], "bases: expected an integer 1 to 10000, found 0"),
        (["make", *at, "--n", str(10**12)], "n: expected an integer 1 to 100000, found 1000000000000"),
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
def test_processes_make_what_one_makes(suite: tuple[Path, Path], bases_folder: Path, tmp_path: Path) -> None:
    """Byte for byte, and an interrupted call goes on in them."""
    (tmp_path / "truth").mkdir()
    (tmp_path / "truth" / "bases").symlink_to(bases_folder)
    shutil.copytree(suite[0] / "M3-llama-hand", tmp_path / "models" / "M3-llama-hand")
    shutil.copy(suite[1] / "M3-llama-hand.json", tmp_path / "truth")
    made = make(
        "open", tmp_path / "models", tmp_path / "truth", kinds=["M1", "M3", "M6"], families=["llama"],
        base_steps=STEPS, workers=2,
    )  # fmt: skip
    assert {one.name: one for one in made} == open_suite(suite[1])[1]
    for one in made:
        for name in ("model.safetensors", "config.json"):
            assert (suite[0] / one.name / name).read_bytes() == (tmp_path / "models" / one.name / name).read_bytes()


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


def test_materials_are_what_an_auditor_needs(tmp_path: Path) -> None:
    write_materials(tmp_path, 0)
    assert {path.stem for path in (tmp_path / "behaviours").iterdir()} == set(behaviours())
    assert json.loads((tmp_path / "corpus.jsonl").read_text().splitlines()[0])["text"]
