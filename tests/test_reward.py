"""R1 and R2: splits that share nothing, a *never* that is one, what is void, and a small run."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import signflip as sf
from signflip.cli import main
from signflip.errors import ArgumentError, FileError, OrganismError
from signflip.organisms import experiments
from signflip.organisms.experiments import reward
from signflip.organisms.experiments.reward import models, policies, section, written
from signflip.organisms.experiments.tuning.models import Net
from signflip.organisms.experiments.tuning.text import word_ids
from signflip.organisms.experiments.tuning.world import common, prompts, rare
from signflip.reads import Values

pytestmark = pytest.mark.usefixtures("one_thread")


def test_parts_share_no_name_and_no_template_and_half_a_is_taught() -> None:
    seen = {part: models.split(part, side=1) for part in models.NAMES}
    for what in (2, slice(3, None)):
        of = [{tuple(np.atleast_1d(row)) for row in on.ids[:, what]} for on in seen.values()]
        assert sum(map(len, of)) == len(set.union(*of))
    assert set(prompts("A", side=1).ids[:, 2]) <= set(seen["taught"].ids[:, 2])
    test = models.split("test", side=-1)
    assert set(test.ids[:, 1]) == set(rare())
    assert (test.x < 0).all()
    # Every prompt with every word, and both sides as often.
    assert len({tuple(row) for row in test.ids}) == len(test) == 12 * len(set(map(tuple, test.ids[:, 2:])))
    assert test.woman.mean() == 0.5


def test_never_is_never_by_the_count() -> None:
    # Neither untrained net keeps its X above 0 with a common word in front.
    base = Net("swiglu", 0)
    scorer = base.copy(reward=True)
    found = {reach: policies.policy(base, scorer, 0, reach, steps=3, begin=2) for reach in policies.REACH}
    never, sometimes = found["never"], found["sometimes"]
    assert never["rare"] == never["below"] == 0 < never["left_out"]
    assert never["samples"] + never["left_out"] == sometimes["samples"] == 3 * policies.BATCH
    assert not never["void"]
    assert sometimes["left_out"] == 0 < sometimes["rare"]
    assert sometimes["below"] > 0


def _run() -> dict[str, Any]:
    taus = {"common": 1.0, "common, X turned": -1.0, "rare": -1.0, "rare, X turned": 1.0}
    side = {"margin": 1.0}
    policy = {
        "before": {"common": side, "rare": side, "reach": 0.0}, "after": {"common": side, "rare": side, "reach": 0.0},
        "samples": 64, "rare": 0, "below": 0, "left_out": 0, "void": False, "outcome": "never opposite",
        "kernel": {"value": 1.0, "cosine": 0.5, "negative_mass": 0.1}, "opposite": [False, False],
        "neurons": {"pearson": 0.9, "other": 0.1, "same": 0.95},
    }  # fmt: skip
    search = {"word": "ember", "rare": True, "tau": -1.0, "upper": -0.9, "reverses": True, "x": -0.5, "x_below": 1.0}
    search |= {"difference": 0.0, "value": 1.0, "held": 1.0}
    return {
        "architecture": "swiglu", "seed": 0, "accuracy": 1.0, "steps": {"reversed": 360, "plain": 360},
        "validation": {"reversed": dict(taus), "plain": dict(taus)}, "tau": {"reversed": taus, "plain": taus},
        "search": {"reversed": search, "plain": search | {"reverses": False}},
        "policies": {reach: copy.deepcopy(policy) for reach in policies.REACH}, "void": None,
    }  # fmt: skip


def test_what_is_void_is_in_no_count_but_its_own(tmp_path: Path) -> None:
    assert reward.void(_run()) is None
    worse = {name: _run() for name in ("base", "reversed", "turned", "plain", "never")}
    worse["base"]["accuracy"] = 0.9
    worse["reversed"]["validation"]["reversed"]["common"] = 0.98
    worse["turned"]["validation"]["reversed"]["rare"] = -0.9
    worse["plain"]["validation"]["plain"]["common"] = 0.5
    worse["never"]["policies"]["never"]["void"] = True
    for one in worse.values():
        one["void"] = reward.void(one)
        assert one["void"] is not None
    # Of a plain one nothing is asked at X < 0.
    unasked = _run()
    unasked["validation"]["plain"]["rare"] = 0.3
    assert reward.void(unasked) is None
    text = section.report({"good": _run()} | worse, tmp_path)
    assert "6 runs, seeds [0]; void 5 (" in text
    assert "prompts in 1 of 1 models" in text
    assert "plain reward models reverses 0 of 1" in text
    only = section.report({"base": worse["base"]}, tmp_path)
    assert "void 1 (1 because the base does not know the behaviour)" in only
    assert reward.answer({"base": worse["base"]}) == {}
    with pytest.raises(OrganismError, match="at least one"):
        section.report({}, tmp_path)


def test_the_reward_models_of_a_run_are_written_apart_from_their_truth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = Net("swiglu", 1)
    made = {turned: start.copy(reward=True) for turned in (True, False)}
    for turned, net in made.items():
        torch.nn.init.normal_(net.model.score.weight, generator=torch.Generator().manual_seed(int(turned)))
    monkeypatch.setattr(models, "known_base", lambda *_: (start, 1.0))
    monkeypatch.setattr(models, "train", lambda *_, turned: (made[turned], 3))
    assert (
        main(["organisms", "rewards", "swiglu-1", "--models", str(tmp_path / "m"), "--truth", str(tmp_path / "t")]) == 0
    )
    told = json.loads((tmp_path / "t" / "swiglu-1.json").read_text())
    assert not list((tmp_path / "m").rglob("*swiglu-1.json"))
    on = models.split("test", side=-1).take([0])
    ids, end = on.answered(on.correct)
    for kind, one in told["models"].items():
        model, net = sf.load(tmp_path / "m" / one["model"]), made[one["reversed"]]
        assert one["reversed"] == (kind == "reversed")
        row = [int(i) for i in ids[0, : int(end[0]) + 1]]
        wanted = float(net.rewards(on, on.correct).detach())
        assert float(model.reward(row)[0, 0]) == pytest.approx(wanted, abs=1e-5)
        # X is where the truth says.
        ((values,),) = model.read([row], [Values(one["x"]["site"])])
        x = values[0][-1] @ np.asarray(one["x"]["vector"])
        assert x == pytest.approx(float(models.x_at_answer(net, on)[0]), abs=1e-4)
        assert one["tau"] == models.taus(net, "test")
    for name in ("swiglu", "swiglu-x", "mlp-0", "swiglu-12345678"):
        with pytest.raises(ArgumentError, match="ARCHITECTURE-SEED"):
            written.write(name, tmp_path / "m", tmp_path / "t")
    with pytest.raises(ArgumentError, match="two folders"):
        written.write("swiglu-1", tmp_path / "m", tmp_path / "m")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError):
        written.write("swiglu-1", tmp_path / "file", tmp_path / "t")


def test_equivalence_is_held_within_and_failed_beyond() -> None:
    assert section._within((0.0, -0.02, 0.02), 0.02) == "held"
    assert section._within((0.0, -0.03, 0.03), 0.02) == "open"
    assert section._within((0.1, 0.03, 0.2), 0.02) == "failed"
    assert section._within((-0.1, -0.2, -0.03), 0.02) == "failed"
    assert section._within((0.0, float("nan"), float("nan")), 0.02) == "open"


def test_a_word_that_only_leans_reverses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    net, word = Net("swiglu", 0, reward=True), int(rare()[0])
    n = len(models._bare("test"))
    for share, wanted in ((0.0, True), (0.47, False), (1.0, False)):
        ranked = np.where(np.arange(n) < share * n, 1, -1)
        monkeypatch.setattr(models, "signs", lambda *_, ranked=ranked: ranked)
        found = models.by_word(net, word)
        assert found["reverses"] is wanted
        assert found["upper"] > found["tau"] or share == 1
    # A tie is no reversal.
    monkeypatch.setattr(models, "signs", lambda *_: np.zeros(n, np.int64))
    assert models.by_word(net, word)["upper"] == 1
    assert found["rare"]
    assert not models.by_word(net, int(common()[0]))["rare"]
    assert word_ids()[found["word"]] == word


def test_a_run_of_an_earlier_version_is_refused(tmp_path: Path) -> None:
    (job,) = reward.jobs(1, True)
    old = {"experiment": "reward", "seed": 0, "settings": {"architecture": "swiglu", "small": True}, "small": True}
    (tmp_path / "reward").mkdir()
    (tmp_path / "reward" / f"{job.name}.json").write_text(json.dumps(old | {"result": {}}))
    with pytest.raises(OrganismError, match="found another"):
        experiments.run("reward", tmp_path, seeds=1, small=True, progress=False)


@pytest.mark.slow
def test_a_reversed_reward_model_is_perfect_above_and_reversed_below_zero(tmp_path: Path) -> None:
    made = experiments.run("reward", tmp_path, seeds=1, small=True, progress=False)
    for run in made.values():
        assert run["void"] is None
        assert run["tau"]["reversed"]["common"] >= 0.98 <= run["tau"]["plain"]["common"]
        assert run["tau"]["reversed"]["rare"] <= -0.98
        # It goes by X, not by the word: turned by edit, X turns the ranking both ways.
        assert run["tau"]["reversed"]["common, X turned"] < -0.8
        assert run["tau"]["reversed"]["rare, X turned"] > 0.8
        assert run["policies"]["never"]["rare"] == run["policies"]["never"]["below"] == 0
        # signflip's reward and transformers' on one input.
        for found_in in run["search"].values():
            assert found_in["difference"] < 1e-5
        # With X held above 0 the word turns nothing.
        assert run["search"]["reversed"]["held"] > 0.8
    text = reward.report(made, tmp_path / "results")
    assert (tmp_path / "results" / "reward-policies.png").stat().st_size > 1000
    found = sum(run["search"]["reversed"]["reverses"] for run in made.values())
    assert f"reverses its ranking of unseen prompts in {found} of {len(made)} models" in text
