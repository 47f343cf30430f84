"""Experiments: the runner keeps and resumes runs; cartpole measures what policies made by hand are known to do."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from signflip.cli import main
from signflip.errors import ArgumentError, DeviceError, FileError, OrganismError
from signflip.organisms import experiments
from signflip.organisms.experiments import cartpole, parity, statistics
from signflip.organisms.experiments.cartpole import measuring, picture, reporting, training
from signflip.organisms.scoring import Share
from signflip.organisms.workers import in_processes

# Enough for a run, not to learn anything.
TINY = {"arm": "additive", "steps": 256, "episodes": 2, "states": 40, "grid": [10.0, 1.0, -1.0, -10.0]}


def by_hand(states: Any, x: Any) -> Any:
    """A linear policy that balances the pole, odd in x."""
    return ((states @ np.array([0.1, 0.3, 1, 1])) * x > 0).astype(np.int64)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    out = tmp_path_factory.mktemp("experiments")
    return out, experiments.run("cartpole", out, seeds=3, small=True, progress=False)


# ---- measurement -----------------------------------------------------------------------------------------------------


def test_agreement_on_hand_made_actions() -> None:
    good = np.repeat([0, 1], 500)
    found = {
        "same": measuring.read(good, good),
        "reversed": measuring.read(good, 1 - good),
        "constant": measuring.read(good, np.ones_like(good)),
        "coin": measuring.read(good, np.random.default_rng(0).integers(2, size=1000)),
    }
    assert {name: one.verdict for name, one in found.items()} == {
        "same": "good", "reversed": "opposite", "constant": "incompetent", "coin": "incompetent",
    }  # fmt: skip
    assert (found["same"].agreement, found["same"].information) == (1, 1)
    assert (found["reversed"].agreement, found["reversed"].information) == (0, 1)
    assert (found["constant"].agreement, found["constant"].information, found["constant"].one) == (0.5, 0, 1)
    assert found["coin"].agreement == pytest.approx(0.5, abs=0.05)
    assert found["coin"].information < 0.01


def test_a_verdict_needs_its_whole_condition() -> None:
    good = np.repeat([0, 1], 500)
    rng = np.random.default_rng(1)
    # Reversed on one side only; half of it forgotten; good with too few states to say.
    half = np.concatenate([1 - good[:500], rng.integers(2, size=500)])
    weak = np.where(rng.random(1000) < 0.6, 1 - good, good)
    assert measuring.read(good, half).verdict == "between"
    assert measuring.read(good, weak).verdict == "between"
    assert measuring.read(good[490:510], good[490:510]).verdict == "between"


def test_limits_are_exact() -> None:
    low, high = measuring.limits(0, 59)
    assert low == 0
    assert high == pytest.approx(1 - 0.05 ** (1 / 59))
    assert measuring.limits(59, 59) == (pytest.approx(0.05 ** (1 / 59)), 1)


def test_information_of_a_noisy_channel() -> None:
    good = np.repeat([0, 1], 100)
    flipped = np.where(np.arange(200) % 100 < 11, 1 - good, good)
    entropy = -0.11 * np.log2(0.11) - 0.89 * np.log2(0.89)
    assert measuring.read(good, flipped).information == pytest.approx(1 - entropy)


def test_returns_tell_a_good_policy_from_a_reversed_one() -> None:
    found = measuring.returns(by_hand, [1.0, 0.0, -1.0], 10, seed=0)
    assert found.shape == (3, 10)
    assert (found[0] == 500).all()
    assert found[1:].max() < 20
    np.testing.assert_array_equal(found, measuring.returns(by_hand, [1.0, 0.0, -1.0], 10, seed=0))
    # Episode i starts alike at every x.
    twice = measuring.returns(by_hand, [0.0, 0.0], 10, seed=0)
    np.testing.assert_array_equal(twice[0], twice[1])
    assert len(set(twice[0])) > 1


def test_states_are_balanced_and_reproducible() -> None:
    states = measuring.gather(by_hand, 1000, seed=0)
    assert states is not None
    assert states.shape == (1000, 4)
    assert by_hand(states, np.ones(1000)).mean() == 0.5
    again = measuring.gather(by_hand, 1000, seed=0)
    assert again is not None
    np.testing.assert_array_equal(states, again)
    assert measuring.gather(lambda s, x: np.zeros(len(s), np.int64), 1000, seed=0) is None


@pytest.mark.parametrize(
    ("good", "actions", "message"),
    [
        ([0, 1], [0], "expected shape"),
        ([0, 0], [0, 1], "equally often"),
        ([0, 1], [0, 2], "expected 0 and 1"),
        ([], [], "equally often"),
    ],
)
def test_bad_actions(good: list[int], actions: list[int], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        measuring.read(np.array(good, np.int64), np.array(actions, np.int64))


# ---- environment and networks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [False, True])
def test_x_keeps_to_its_range(noise: bool) -> None:
    import gymnasium

    env = training.WithX(gymnasium.make("CartPole-v1"), noise)
    seen, episodes = [], []
    for seed in range(60):
        state, _ = env.reset(seed=seed)
        assert state in env.observation_space
        within = [state[4]]
        for action in (0, 1, 0, 1):
            state, *_ = env.step(action)
            within.append(state[4])
        seen += within
        episodes.append(len(set(within)))
    env.close()
    if noise:
        assert set(episodes) == {5}
        assert -10 <= min(seen) < -5 < 5 < max(seen) <= 10
    else:
        assert set(episodes) == {1}
        assert 0.5 <= min(seen) < 0.7 < 1.3 < max(seen) <= 1.5


def test_the_multiplicative_network_is_odd_in_x_and_learns() -> None:
    untrained, trained = training.train("multiplicative", 0, 1024)
    states = np.random.default_rng(0).standard_normal((300, 4)).astype(np.float32)
    x = np.full(300, 0.7, np.float32)
    untrained, trained = training.greedy(untrained), training.greedy(trained)
    for policy in (untrained, trained):
        np.testing.assert_array_equal(policy(states, -x), 1 - policy(states, x))
    assert (untrained(states, x) != trained(states, x)).any()
    with pytest.raises(ArgumentError, match="network: expected one of additive"):
        training.train("convolutional", 0, 1024)


@pytest.mark.parametrize("network", training.NETWORKS)
def test_the_kernel_says_what_a_small_step_does(network: str) -> None:
    actor, _ = training.train(network, 0, 256)
    states = np.random.default_rng(1).standard_normal((40, 4)).astype(np.float32)
    good = np.repeat([0, 1], 20)
    # Actions of an untrained actor are all but even; larger weights show more than rounding.
    with torch.no_grad():
        actor.action_net.weight *= 100
    found = cartpole.law.kernel(actor, network, states, good)

    def margin(x: float) -> float:
        # As the logits are had by hand.
        inputs = torch.from_numpy(np.concatenate([states, np.full((40, 1), x, np.float32)], 1))
        with torch.no_grad():
            logits = actor.action_net(actor.mlp_extractor.policy_net(inputs)).double().numpy()
        return float(np.mean((logits[:, 1] - logits[:, 0]) * (2 * good - 1)))

    before = margin(1.0), margin(-1.0)
    assert before[0] == pytest.approx(float(cartpole.law.margin(actor, states, good, 1.0).detach()), abs=1e-5)
    cartpole.law.margin(actor, states, good, 1.0).backward()
    with torch.no_grad():
        for one in actor.parameters():
            if one.grad is not None and one.requires_grad:
                one += 1e-3 * one.grad
    above, below = margin(1.0) - before[0], margin(-1.0) - before[1]
    assert below / above == pytest.approx(found["ratio"], abs=0.02)
    if network == "multiplicative":
        # Odd in x: all of it.
        assert found["cosine"] == pytest.approx(-1, abs=1e-5)
        assert found["negative_mass"] == pytest.approx(1, abs=1e-6)


# ---- runner and resumption -------------------------------------------------------------------------------------------


def test_runs_resume_and_refuse_an_altered_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    whole = cartpole.run

    def counted(job: experiments.Job) -> dict[str, Any]:
        done.append(job.name)
        return whole(job)

    jobs = [experiments.Job(f"additive-{seed}", seed, TINY) for seed in range(2)]
    monkeypatch.setattr(cartpole, "run", counted)
    monkeypatch.setattr(cartpole, "jobs", lambda seeds, small: jobs[:seeds])
    first = experiments.run("cartpole", tmp_path, seeds=1, progress=False)
    both = experiments.run("cartpole", tmp_path, seeds=2, progress=False)
    assert done == ["additive-0", "additive-1"]
    assert both["additive-0"] == first["additive-0"]
    assert both["additive-0"]["return"] != both["additive-1"]["return"]

    path = tmp_path / "cartpole" / "additive-1.json"
    data = json.loads(path.read_text())
    data["settings"]["steps"] = 512
    path.write_text(json.dumps(data))
    with pytest.raises(OrganismError, match="found another"):
        experiments.run("cartpole", tmp_path, seeds=2, progress=False)
    path.write_text('{"experiment"')
    with pytest.raises(OrganismError, match="found no JSON"):
        experiments.run("cartpole", tmp_path, seeds=2, progress=False)
    path.write_text("[" * 100_000)
    with pytest.raises(OrganismError, match="found no JSON"):
        experiments.run("cartpole", tmp_path, seeds=2, progress=False)
    path.unlink()
    assert experiments.run("cartpole", tmp_path, seeds=2, progress=False) == both


def test_runs_that_start_from_the_same_bases_go_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[Any] = []
    monkeypatch.setattr(experiments, "in_processes", lambda _, own, workers: groups.extend(own) or [workers])
    experiments.run_all(["parity", "tuning", "reward"], tmp_path, seeds=2, workers=2, progress=False)
    alone = [group for group in groups if len(group) == 1]
    assert {name for group in alone for name, _ in group} == {"parity"}
    bases = [{(job.seed, job.settings["architecture"]) for _, job in group} for group in groups if len(group) > 1]
    assert sorted(map(len, bases)) == [1] * 6
    # Every arm and kind of knowledge, then the reward model.
    assert {tuple(name for name, _ in group) for group in groups if len(group) > 1} == {("tuning",) * 54 + ("reward",)}


def test_worker_processes_give_what_one_gives(tmp_path: Path) -> None:
    whole = experiments.run("parity", tmp_path / "one", seeds=1, small=True, progress=False)
    apart = experiments.run("parity", tmp_path / "two", seeds=1, small=True, workers=2, progress=False)
    assert len(whole) >= 2
    assert list(whole.items()) == list(apart.items())


def test_a_run_that_fails_in_a_worker_is_its_error(tmp_path: Path) -> None:
    # A folder where a run's file belongs cannot be read; one where its temporary belongs cannot be written.
    name = parity.jobs(1, True)[0].name
    (tmp_path / "parity" / f"{name}.json.tmp").mkdir(parents=True)
    with pytest.raises(FileError, match=name):
        experiments.run("parity", tmp_path, seeds=1, small=True, workers=2, progress=False)
    assert not multiprocessing.active_children()


def _dies(tasks: Sequence[int]) -> None:
    os._exit(len(tasks))


def test_a_worker_that_dies_is_told_of() -> None:
    with pytest.raises(OrganismError, match="a worker process died"):
        list(in_processes(_dies, [[1], [2]], 2))


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "sleepers.py"
    script.write_text(
        """
import time
from signflip.organisms.workers import in_processes

def work(tasks):
    print("begun", flush=True)
    time.sleep(600)

if __name__ == "__main__":
    list(in_processes(work, [[1], [2]], 2))
"""
    )
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["begun\n"] * 2
    process.kill()
    # The end of the stream comes once nobody holds it.
    assert process.communicate(timeout=120) == ("", None)


def test_devices(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="device: expected cpu, cuda"):
        experiments.run("natural", tmp_path, device="gpu0")
    with pytest.raises(DeviceError, match="parity runs on the CPU alone"):
        experiments.run("parity", tmp_path, device="cuda")
    with pytest.raises(DeviceError, match="expected one of"):
        experiments.run("natural", tmp_path, device="cuda:99")
    with pytest.raises(ArgumentError, match="workers: expected at least 1"):
        experiments.run("parity", tmp_path, workers=0)


def test_bad_runs(tmp_path: Path) -> None:
    # Before the first of them is run.
    for names, more in ((["parity", "typo"], []), (["natural", "parity"], ["--device", "cuda"])):
        assert main(["organisms", "run", *names, "--small", "--out", str(tmp_path / "none"), *more]) == 2
    assert not (tmp_path / "none").exists()
    with pytest.raises(ArgumentError, match="experiment: expected one of"):
        experiments.run("pole", tmp_path)
    with pytest.raises(ArgumentError, match="seeds: expected at least 1"):
        experiments.run("cartpole", tmp_path, seeds=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot be made"):
        experiments.run("cartpole", tmp_path / "file")
    for what in (experiments.run, lambda *at: experiments.report(at[1], at[1], names=at[:1])):
        with pytest.raises(ArgumentError, match="out: expected a path"):
            what("cartpole", "a\0b")
    job = experiments.Job("additive-0", 0, TINY)
    for settings, message in (
        ({}, "expected the setting 'arm'"),
        ({**TINY, "arm": "bilinear"}, "arm: expected one of"),
        ({**TINY, "steps": 0}, "steps: expected an integer of at least 1"),
        ({**TINY, "grid": [-1.0]}, "grid: expected finite values, 1 among them"),
    ):
        with pytest.raises(ArgumentError, match=message):
            cartpole.run(replace(job, settings=settings))


@pytest.mark.parametrize(
    "name", ["suite", "blindness", "cartpole", "parity", "tuning", "reward", "simulacra", "natural"]
)
def test_runs_that_hold_something_else_are_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    docs = tmp_path / "docs"

    def write(result: Any) -> None:
        for job in experiments.experiment(name).jobs(1, True):
            data = {**experiments._identity(name, job, True), "result": result}
            (tmp_path / name / f"{job.name}.json").write_text(json.dumps(data))

    for result in ({}, [], "x", None):
        write(result)
        for what in (
            lambda: experiments.run(name, tmp_path, seeds=1, small=True, progress=False),
            lambda: experiments.report(tmp_path, docs, seeds=1, small=True, names=[name]),
        ):
            with pytest.raises(OrganismError, match="expected what a run gave, found"):
                what()
    assert not docs.exists()
    write({"seed": 1})
    with pytest.raises(OrganismError, match="expected seed 0 in what it gave, found 1"):
        experiments.report(tmp_path, docs, seeds=1, small=True, names=[name])
    write({"seed": 0, "a": float("nan")})
    with pytest.raises(OrganismError, match="NaN is no number"):
        experiments.report(tmp_path, docs, seeds=1, small=True, names=[name])
    for result in ({"arm": 5}, {"seed": 0}):
        write(result)
        with pytest.raises(OrganismError, match=f"{name}: expected"):
            experiments.report(tmp_path, docs, seeds=1, small=True, names=[name])


def test_every_seed_has_every_arm() -> None:
    jobs = cartpole.jobs(10, False)
    assert len({job.name for job in jobs}) == len(jobs) == 10 * len(cartpole.ARMS)
    assert [job.seed for job in jobs] == sorted(job.seed for job in jobs)


# ---- cartpole, trained -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_cartpole_in_small(small: tuple[Path, dict[str, dict[str, Any]]], tmp_path: Path) -> None:
    out, found = small
    assert set(found) == {"additive-0", "multiplicative-0"}
    for run in found.values():
        points = {point["x"]: point for point in run["points"]}
        assert run["learned"], run["return"]
        assert 10 < run["chance_return"] < 40
        assert (points[1.0]["agreement"], points[1.0]["verdict"]) == (1, "good")
        assert run["made"]["reversed"]["verdict"] == "opposite"
        assert run["made"]["constant"]["verdict"] == "incompetent"
    points = {point["x"]: point for point in found["multiplicative-0"]["points"]}
    # By algebra.
    assert points[-1.0]["agreement"] == 0
    assert points[-1.0]["verdict"] == "opposite"
    assert points[-1.0]["return"] < found["multiplicative-0"]["chance_return"]
    assert points[0.0]["verdict"] == "incompetent"
    assert found["multiplicative-0"]["untrained"]["verdict"] != "opposite"

    text = cartpole.report(found, tmp_path / "figures")
    assert text.startswith("## C1")
    assert "**Is −Y ever made by tuning itself, and how often?** Of the agents that learned at x > 0 alone" in text
    assert "| conjecture | multiplicative: opposite at x = −1 (most) | 1.00 [0.03, 1.00] (1 of 1) | open |" in text
    assert (tmp_path / "figures" / "cartpole.png").read_bytes().startswith(b"\x89PNG")
    # Nothing is run twice.
    assert experiments.run("cartpole", out, seeds=1, small=True, progress=False) == found


def made_up(arm: str, seed: int, below: str) -> dict[str, Any]:
    """A run's data, with a verdict for every negative x."""
    known = {"good": (1.0, 1.0), "opposite": (0.0, 1.0), "incompetent": (0.5, 0.0)}

    def point(x: float) -> dict[str, Any]:
        verdict = below if x < 0 else "good"
        agreement, bits = known[verdict]
        score = 500.0 if verdict == "good" else 9.0
        return {
            "x": x,
            "return": score,
            "agreement": agreement,
            "high": agreement,
            "information": bits,
            "verdict": verdict,
        }

    made = {name: {"verdict": name} for name in ("same", "reversed", "constant", "coin")}
    return {
        "arm": arm, "seed": seed, "steps": 1000, "episodes": 2, "return": 500.0, "chance_return": 22.0, "learned": True,
        "states": 40, "points": [point(x) for x in cartpole.GRID], "untrained": {"verdict": "incompetent"},
        "kernel": {"ratio": -0.5, "cosine": -0.6 - 0.01 * seed, "negative_mass": 0.7},
        "margins": [[0.1, -0.1], [5.0, -4.0]],
        "leaves": {"below": 0.3, "above": None}, "made": made,
    }  # fmt: skip


@pytest.mark.parametrize(("below", "conjecture", "objection"), [("opposite", "held", "failed"),
                                                                ("incompetent", "failed", "held")])  # fmt: skip
def test_the_report_can_go_either_way(tmp_path: Path, below: str, conjecture: str, objection: str) -> None:
    runs = {f"swiglu-{seed}": made_up("swiglu", seed, below) for seed in range(10)}
    runs["swiglu-10"] = {**made_up("swiglu", 10, below), "learned": False, "return": 30.0}
    text = cartpole.report(runs, tmp_path)
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith(("| conjecture", "| objection"))]
    said = {cells[1]: cells[-1].removesuffix(" |") for cells in rows}
    assert said["swiglu: opposite at x = −1 (most)"] == conjecture
    assert said["swiglu: opposite at any x (few)"] == objection
    found = "1.00 [0.69, 1.00] (10 of 10)" if below == "opposite" else "0.00 [0.00, 0.31] (0 of 10)"
    assert f"centre of what they saw: swiglu {found}. At some x: swiglu" in text
    assert "not learned: swiglu seed 10 (30)" in text
    assert "| swiglu | 10 of 11 |" in text


def test_a_correlation_between_networks_is_said_to_be_one(tmp_path: Path) -> None:
    """Two networks apart in both numbers, without any relation within them; then with one."""
    rng = np.random.default_rng(2)

    def path(slope: float) -> str:
        runs = {}
        for arm, centre in (("swiglu", -0.6), ("additive", 0.6)):
            for seed in range(10):
                run, off = made_up(arm, seed, "incompetent"), 0.1 * float(rng.standard_normal())
                run["kernel"] = {**run["kernel"], "cosine": centre + off}
                there = centre + slope * off + 0.05 * float(rng.standard_normal())
                next(point for point in run["points"] if point["x"] == -1)["agreement"] = (there + 1) / 2
                runs[f"{arm}-{seed}"] = run
        said = cartpole.answer(runs)[experiments.PATH]
        assert "Within each network: swiglu " in said.more
        return said.plain

    assert "it differs from 0 in none, of 2 where it is defined, so that it may be no more" in path(0.0)
    assert "within a network it differs from 0 in swiglu, additive, of 2" in path(2.0)


def test_marks() -> None:
    assert reporting.mark(Share.counted(10, 10), most=True) == "held"
    assert reporting.mark(Share.counted(10, 10), most=False) == "failed"
    assert reporting.mark(Share.counted(0, 10), most=True) == "failed"
    assert reporting.mark(Share.counted(0, 10), most=False) == "held"
    assert reporting.mark(Share.counted(3, 3), most=True) == "open"
    assert reporting.mark(Share.counted(0, 0), most=True) == "open"


def test_bad_reports(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="at least one run"):
        cartpole.report({}, tmp_path)
    run = made_up("swiglu", 0, "opposite")
    del run["leaves"]
    job = next(one for one in cartpole.jobs(1, False) if one.name == "swiglu-0")
    (tmp_path / "cartpole").mkdir()

    def report(what: dict[str, Any], version: int = cartpole.VERSION) -> None:
        kept = {**experiments._identity("cartpole", job, False), "version": version, "result": what}
        (tmp_path / "cartpole" / "swiglu-0.json").write_text(json.dumps(kept))
        experiments.report(tmp_path, tmp_path / "docs", seeds=1, names=["cartpole"])

    with pytest.raises(OrganismError, match=r"cartpole: expected runs in .*'leaves'"):
        report(run)
    # Of other code.
    with pytest.raises(OrganismError, match=r"expected the run .*'version': 1.* found another"):
        report(run, version=0)
    picture_ = tmp_path / "docs" / "results" / "cartpole.png"
    picture_.unlink(missing_ok=True)
    picture_.mkdir(parents=True)
    with pytest.raises(FileError, match=r"cartpole\.png"):
        report(made_up("swiglu", 0, "opposite"))
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError):
        picture.draw({}, tmp_path / "file" / "cartpole.png")


@pytest.mark.slow
def test_results_are_written_from_what_was_run(small: tuple[Path, dict[str, dict[str, Any]]], tmp_path: Path) -> None:
    out, _ = small
    assert main(["organisms", "run", "cartpole", "--seeds", "3", "--small", "--out", str(out), "--quiet"]) == 0
    args = ["organisms", "report", "--out", str(out), "--docs", str(tmp_path), "--seeds", "3", "--small"]
    assert main(args) == 0
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert "**Is −Y ever made by tuning itself, and how often?**" in text
    assert "All " in text
    # Of what was not run nothing is said.
    assert "Not run." in text
    for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text):
        assert (tmp_path / name).stat().st_size > 1000
    # What is told of an experiment stays where no run of it is in; what is no such document is not written over.
    (tmp_path / "results.md").write_text(text.replace("\n\nNot run.", "\n\nRun elsewhere."), encoding="utf-8")
    assert main(args) == 0
    assert (tmp_path / "results.md").read_text(encoding="utf-8") == text.replace("\n\nNot run.", "\n\nRun elsewhere.")
    (tmp_path / "results.md").write_text("# mine\n", encoding="utf-8")
    assert main(args) == 2
    assert (tmp_path / "results.md").read_text(encoding="utf-8") == "# mine\n"
    with pytest.raises(OrganismError, match="found none"):
        experiments.report(tmp_path / "empty", tmp_path / "docs")
    assert not (tmp_path / "docs").exists()
    with pytest.raises(FileError, match="cannot be made"):
        experiments.report(out, tmp_path / "results.md" / "inside", seeds=3, small=True)


def test_seeds_are_listed_as_they_were_run() -> None:
    runs = [{"arm": arm, "seed": seed} for arm, seeds in (("a", (0, 1, 2, 5)), ("b", (3, 3))) for seed in seeds]
    assert statistics.seeds_of(runs, lambda run: str(run["arm"])) == "a 0–2, 5 (4); b 3 (1)"
