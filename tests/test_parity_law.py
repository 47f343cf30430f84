"""The law by architecture: against a real step, against parity where it is exact; its report can go either way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from signflip.errors import FileError, OrganismError
from signflip.organisms import experiments
from signflip.organisms.experiments import Job, parity
from signflip.organisms.experiments.document import Document

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", parity.ARCHITECTURES)
@pytest.mark.parametrize("base", ["none", "opposite"])
def test_the_law_is_what_a_small_step_does(name: str, base: str) -> None:
    torch.manual_seed(1)
    net, s = parity.ARCHITECTURES[name]().double(), parity.states(1)
    parity._learn(net, s, base, 1)
    expected = parity.law(net, s)["change"]
    before = parity._seen(net, s)["below"]["margin"]
    step = 1e-6
    gradients = torch.autograd.grad(parity.reward(net, s), list(net.parameters()), allow_unused=True)
    with torch.no_grad():
        for weights, gradient in zip(net.parameters(), gradients, strict=True):
            if gradient is not None:
                weights += step * gradient
    assert (parity._seen(net, s)["below"]["margin"] - before) / step == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_the_reward_is_that_of_drawn_actions() -> None:
    torch.manual_seed(2)
    net, s = parity.ARCHITECTURES["GELU"]().double(), parity.states(2)
    with torch.no_grad():
        says_first = torch.sigmoid(net(s)).numpy()
        expected = float(parity.reward(net, s))
    actions = np.random.default_rng(0).random((20_000, len(s))) < says_first
    assert np.mean(actions == (s[:, 0] > 0).numpy()) == pytest.approx(expected, abs=0.002)


@pytest.mark.parametrize(("name", "odd"), [("additive", 1.0), ("product", 0.0)])
def test_parity_decides_where_it_is_exact(name: str, odd: float) -> None:
    found = parity.run(Job("x", 3, {"architecture": name, "steps": 100}))
    for base in found["bases"].values():
        assert base["law"]["odd"] == pytest.approx(odd, abs=1e-12)
        assert (base["law"]["cosine"] > 0) == (name == "additive")
        # What is right at X > 0 is right, or opposite, at X < 0; whatever the base was taught there.
        if base["after"]["above"]["right"] == 1:
            assert base["after"]["below"]["right"] == odd


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_section_can_go_either_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sign: float) -> None:
    def made(job: Job) -> dict[str, Any]:
        side = {"above": {"margin": 1.0, "right": 1.0}, "below": {"margin": 0.0, "right": 0.5}}
        after = {"above": {"margin": 2.0, "right": 1.0}, "below": {"margin": sign, "right": 0.5 + sign / 2}}
        one = {"law": {"change": sign, "cosine": sign / 2, "odd": 0.5}, "before": side, "after": after}
        return {
            "seed": job.seed,
            "architecture": job.settings["architecture"],
            "bases": dict.fromkeys(parity.BASES, one),
        }

    monkeypatch.setattr(parity, "run", made)
    experiments.run("parity", tmp_path, seeds=10, progress=False)
    text = experiments.report(tmp_path, tmp_path / "docs", names=["parity"]).read_text()
    up, down = ("held", "failed") if sign > 0 else ("failed", "held")
    share = "0.00 [0.00, 0.31]" if sign > 0 else "1.00 [0.69, 1.00]"
    assert f"| parity | additive, normal base: K > 0 mostly (share K < 0: below 0.5) | {share} | {up} |" in text
    assert f"| parity | product, normal base: K < 0 mostly (share K < 0: above 0.5) | {share} | {down} |" in text
    assert "| conjecture | K's sign before tuning is the way that X < 0 then takes (share above 0.75) | 1.00" in text
    made_opposite = "0 of 40 (0.00 [0.00, 0.09])" if sign > 0 else "40 of 40 (1.00 [0.91, 1.00])"
    assert f"after reward at X > 0 alone: additive {made_opposite}; " in text
    picture = tmp_path / "docs" / "results" / "parity.png"
    assert picture.stat().st_size > 1000
    picture.unlink()
    picture.mkdir()
    with pytest.raises(FileError, match=r"parity\.png"):
        experiments.report(tmp_path, tmp_path / "docs", names=["parity"])


def test_a_network_whose_name_says_as_much_is_told_of() -> None:
    def one(seed: int, name: str, cosine: float, moved: float, right: float) -> dict[str, Any]:
        before, after = {"below": {"margin": 0.0, "right": 0.5}}, {"below": {"margin": moved, "right": right}}
        bases = {key: {"law": {"cosine": cosine}, "before": before, "after": after} for key in parity.BASES}
        return {"seed": seed, "architecture": name, "bases": bases}

    n = len(parity.BASES)
    runs = [one(seed, "additive", 0.5, 1.0, 0.3) for seed in range(4)]
    runs += [
        one(seed, "SwiGLU, biases", -0.5 if seed < 2 else 0.5, -1.0 if seed == 0 else 1.0, 0.9) for seed in range(4)
    ]
    said = parity._by_name(runs)
    assert f"no more than the network's name tells: its commonest direction is right in {7 * n} of {8 * n}." in said
    # Where the kernel knows of each tuning what the name does not.
    told = [one(seed, "SwiGLU, biases", cosine, cosine, 0.9) for seed, cosine in enumerate((-0.5, 0.5))]
    assert f"name tells less: its commonest direction is right in {n} of {2 * n}." in parity._by_name(told)
    assert f"Within SwiGLU, biases, where K has both signs: K < 0 and the margin fell in {n} of {2 * n}" in said
    assert f"K > 0 and it rose in {2 * n} of {2 * n}." in said
    assert "Within additive" not in said
    # Right in 3 of 4 by the kernel, and in 3 of 4 by the name.
    assert parity._gain(runs)[0] == 0
    assert "additive in 4 of 4." in parity._apart(runs)
    assert "SwiGLU" not in parity._apart(runs)


def test_a_report_of_one_experiment_leaves_what_is_told_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = [experiments.experiment(name).TITLE for name in ("cartpole", "simulacra")]
    told = Document()
    for title in (*reversed(others), parity.TITLE):
        told.say(
            title, f"## {title}\n\nOld.\n\nMore.", {experiments.MADE: f"*{title}*: never.", experiments.PATH: "None."}
        )
    docs = tmp_path / "docs"
    docs.mkdir()
    titles = [experiments.experiment(name).TITLE for name in experiments.NAMES]
    (docs / "results.md").write_text(told.text("Words.", experiments.QUESTIONS, titles), encoding="utf-8")

    read = Document.read(docs / "results.md", experiments.QUESTIONS)
    assert read == told
    monkeypatch.setattr(parity, "run", lambda job: {"seed": job.seed, "bases": {}})
    monkeypatch.setattr(parity, "report", lambda done, to: f"## {parity.TITLE}\n\nNew.")
    monkeypatch.setattr(parity, "answer", lambda done: {experiments.MADE: experiments.Said("Once.")})
    experiments.run("parity", tmp_path, seeds=1, progress=False)
    for _ in range(2):
        text = experiments.report(tmp_path, docs, seeds=1, names=["parity"]).read_text(encoding="utf-8")
        found = Document.read(docs / "results.md", experiments.QUESTIONS)
        assert {title: found.sections[title] for title in others} == {title: told.sections[title] for title in others}
        assert "New." in found.sections[parity.TITLE]
        assert found.answers[experiments.MADE] == told.answers[experiments.MADE] | {parity.TITLE: "Once."}
        assert parity.TITLE not in found.answers[experiments.PATH]
        # In the order of the experiments, by what this version says of them.
        assert [text.index(f"## {title}") for title in titles if title in found.sections] == sorted(
            text.index(f"## {title}") for title in found.sections
        )
        assert experiments.WORDS in text
        assert "Words." not in text
    (docs / "results.md").write_text("# Notes\n", encoding="utf-8")
    with pytest.raises(OrganismError, match=r"results.md: expected results as `report` writes them, found another"):
        experiments.report(tmp_path, docs, seeds=1, names=["parity"])
