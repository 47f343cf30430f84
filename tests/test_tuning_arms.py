"""Off-policy and frozen tunings, what is logged of each step, and the listing of a run's samples."""

from __future__ import annotations

import base64
import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from signflip.cli import main
from signflip.errors import ArgumentError, OrganismError
from signflip.organisms import experiments
from signflip.organisms.experiments import tangent, tuning
from signflip.organisms.experiments.tuning import (
    arms,
    bases,
    kernel,
    listing,
    losses,
    predictions,
    samples,
    section,
    world,
)
from signflip.organisms.experiments.tuning.arms import Arm
from signflip.organisms.experiments.tuning.models import ARCHITECTURES, Net
from signflip.organisms.experiments.tuning.samples import Batch
from signflip.organisms.experiments.tuning.text import digest
from signflip.organisms.experiments.tuning.train import Tuning

pytestmark = pytest.mark.usefixtures("one_thread")

NAME = "reinforce_forced-swiglu-random-7"


@pytest.fixture
def barely_trained(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Bases of a few steps; no other test may find them."""
    monkeypatch.setattr(bases, "STEPS", dict.fromkeys(ARCHITECTURES, 6))
    monkeypatch.setattr(bases, "FURTHER", 6)
    monkeypatch.setattr(bases, "REWARD_STEPS", 3)
    made = (bases.base, bases._shared, bases.reward_model)
    for one in made:
        one.cache_clear()
    yield
    for one in made:
        one.cache_clear()


def _logits(seed: int, n: int, v: int = 6) -> torch.Tensor:
    return torch.randn(n, v, generator=torch.Generator().manual_seed(seed)).double()


def _tuning(arm: Arm, architecture: str = "swiglu") -> Tuning:
    net = Net(architecture, 1)  # type: ignore[arg-type]
    scorer = net.copy(reward=True)
    torch.nn.init.normal_(scorer.model.score.weight)
    return Tuning(net, scorer, arm, 3)


def test_off_policy_reinforce_is_its_formula() -> None:
    """Value and gradient, restated in numpy: −min(ρ̄, π/μ)(r − b)(1_a − π) + β π (log π/base − KL)."""
    z, mu, base = _logits(0, 5), torch.log_softmax(_logits(1, 5), -1), torch.log_softmax(_logits(2, 5), -1)
    said, reward = torch.tensor([0, 1, 2, 3, 4]), torch.tensor([1.0, -0.5, 0.3, 2.0, 0.1]).double()
    free = z.clone().requires_grad_()
    rows = losses.reinforce_off(torch.log_softmax(free, -1), mu, base, said, reward, 0.2, 0.07, 1.0)
    (found,) = torch.autograd.grad(rows.sum(), free)
    p = np.exp(z.numpy()) / np.exp(z.numpy()).sum(1, keepdims=True)
    cut = 0
    for i in range(5):
        a, q, b = int(said[i]), np.exp(mu[i].numpy()), np.exp(base[i].numpy())
        ratio = p[i, a] / q[a]
        cut += ratio > 1
        weight = min(1.0, ratio) * (float(reward[i]) - 0.2)
        kl = float((p[i] * np.log(p[i] / b)).sum())
        assert float(rows[i].detach()) == pytest.approx(-weight * np.log(p[i, a]) + 0.07 * kl, rel=1e-9)
        expected = -weight * (np.eye(6)[a] - p[i]) + 0.07 * p[i] * (np.log(p[i] / b) - kl)
        np.testing.assert_allclose(found[i].numpy(), expected, rtol=1e-9, atol=1e-12)
    # Both sides of the cut are among them.
    assert 0 < cut < 5


def test_off_policy_grpo_is_its_formula() -> None:
    """Gradient, restated: an answer beyond the clip, in the direction of its advantage, gives only the KL's part."""
    z, base = _logits(0, 4), torch.log_softmax(_logits(1, 4), -1)
    rng = np.random.default_rng(0)
    said, reward = rng.integers(6, size=(4, 8)), rng.standard_normal((4, 8))
    free = z.clone().requires_grad_()
    logp = torch.log_softmax(free, -1)
    rows = losses.grpo(logp, base, base, torch.from_numpy(said), torch.from_numpy(reward), 0.04, 0.2)
    (found,) = torch.autograd.grad(rows.sum(), free)
    p, clipped = np.exp(logp.detach().numpy()), 0
    for i in range(4):
        expected = np.zeros(6)
        for g in range(8):
            a, b = said[i, g], np.exp(base[i].numpy())
            ratio, worth = p[i, a] / b[a], (reward[i, g] - reward[i].mean()) / (reward[i].std() + 1e-4)
            still = (worth > 0 and ratio > 1.2) or (worth < 0 and ratio < 0.8)
            clipped += still
            along = np.eye(6)[a] - p[i]
            expected -= ((0.0 if still else ratio * worth) - 0.04 * (1 - 1 / ratio)) * along / 8
        np.testing.assert_allclose(found[i].numpy(), expected, rtol=1e-8, atol=1e-12)
    assert 0 < clipped < 32


@pytest.mark.parametrize("algorithm", ["reinforce", "grpo"])
def test_off_policy_with_ratio_1_is_on_policy(algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the policy is the base, the same samples give the same gradient."""
    monkeypatch.setattr(arms, "DATASET", 64)
    off, on = _tuning(Arm(algorithm, policy=False, rare_share=0.25)), _tuning(Arm(algorithm, rare_share=0.25))
    # All of the data: its mean reward is the batch's.
    batch = off._data
    assert batch is not None
    assert batch.said is not None
    monkeypatch.setattr(on, "_say", lambda *_: batch.said)
    a = tangent.gradient(off.rows(batch, log=False)().mean(), off.policy)
    b = tangent.gradient(on.rows(Batch(batch.prompts), log=False)().mean(), on.policy)
    assert tangent.norm(a) > 1e-3
    assert tangent.norm({name: a[name] - b[name] for name in a}) < 1e-5 * tangent.norm(a)


def test_off_policy_data_is_the_bases_and_scored_once() -> None:
    made = _tuning(Arm("grpo", policy=False, rare_share=0.01))
    data = made._data
    assert data is not None
    assert data.said is not None
    assert data.reward is not None
    assert len(data.prompts) == 2000
    assert int((data.prompts.x < 0).sum()) == 20
    assert data.said.shape == data.reward.shape == (2000, 8)
    # How likely the base's answers are to it: as likely as those that it gives.
    with torch.no_grad():
        logp = made.base.at_end(data.prompts)
    found, wanted = float(logp.gather(1, data.said).mean()), float((logp.exp() * logp).sum(1).mean())
    assert found == pytest.approx(wanted, abs=0.05)
    before = data.reward.clone()
    for _ in range(3):
        made.step()
    assert torch.equal(data.reward, before)
    batch = made.batch(50)
    assert batch.said is not None
    of = {tuple(row[1:]): set() for row in batch.prompts.ids}
    for row, said in zip(data.prompts.ids, data.said.tolist(), strict=True):
        of.get(tuple(row[1:]), set()).add(tuple(said))
    assert all(tuple(b.tolist()) in of[tuple(a[1:])] for a, b in zip(batch.prompts.ids, batch.said, strict=True))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_frozen_weights_stay_and_others_move(architecture: str) -> None:
    made = _tuning(Arm("reinforce", frozen=True), architecture)
    names = set(made.policy.multiplicative)
    wanted = {"gelu": 2, "swiglu": 2, "swiglu_bias": 4}[architecture]
    assert len(names) == wanted
    assert not any("c_proj" in name or "down_proj" in name for name in names)
    made.step()
    before, after = made.base.parameters(), made.policy.parameters()
    still = {name for name in before if torch.equal(before[name], after[name])}
    assert names <= still
    assert any("lm_head" in name for name in set(before) - still)
    assert any("mlp" in name for name in set(before) - still)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_units_add_up_to_the_margins_change(architecture: str) -> None:
    """Where what neurons write is all that changed, their contributions are the change, to first order."""
    net = Net(architecture, 2)  # type: ignore[arg-type]
    moved = net.copy()
    weight = kernel._writer(moved).weight
    with torch.no_grad():
        # Seed 0 moves the margin of one architecture by so little that its second order is 3% of the first.
        weight += 1e-3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    common, rare = world.prompts("B", side=1), world.prompts("B", side=-1)
    found = kernel.units(net, moved, common, rare)
    with torch.no_grad():
        change = float((kernel.margins(moved, rare) - kernel.margins(net, rare)).double().mean())
    assert abs(change) > 1e-5
    assert found["opposite"] + found["same"] == pytest.approx(change, rel=0.02)
    assert 0 <= found["share"] <= 1
    assert 0 < found["neurons"] < 1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_step_up_the_margin_is_the_law_of_every_neuron(architecture: str) -> None:
    """A step along the gradient at X > 0 changes what a neuron does at X < 0 as the kernel says; one against it not."""
    net = Net(architecture, 2)  # type: ignore[arg-type]
    common, rare = (
        tangent.gradient(kernel.margins(net, world.prompts("B", side=side)).mean(), net) for side in (1, -1)
    )
    for step, wanted in ((1e-3, 1.0), (-1e-3, -1.0)):
        moved = net.copy()
        with torch.no_grad():
            for name, p in moved.parameters().items():
                p += step * common[name]
        found = kernel.neurons(net, moved, common, rare)
        assert found["pearson"] == pytest.approx(wanted, abs=1e-3)
        assert found["same"] == pytest.approx(max(wanted, 0.0), abs=0.01)
        # Not because the gradient at X < 0 is in both: with that of other neurons at X > 0 little is left.
        assert abs(found["other"]) < 0.7
    assert kernel.neurons(net, net.copy(), common, rare) == {"pearson": None, "other": None, "same": None}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_next_neurons_weights_are_all_of_them_and_no_others(architecture: str) -> None:
    net = Net(architecture, 3)  # type: ignore[arg-type]
    of = {name: torch.randn_like(p) for name, p in net.parameters().items()}
    moved = tangent.next_neuron(of, net)
    assert set(moved) == {name for name in of if "mlp" in name}
    each, other = (tangent.by_neuron(one, one, net) for one in (of, moved))
    assert torch.allclose(other, each.roll(-1))
    # What no neuron has stays: the bias of what is written.
    assert all(torch.equal(moved[name], of[name]) for name in moved if name.endswith("c_proj.bias"))


def test_each_step_is_logged() -> None:
    made = _tuning(Arm("grpo", rare_share=0.2))
    for _ in range(3):
        made.step()
    steps = made.log.steps
    assert {len(values) for values in steps.values()} == {3}
    assert steps["samples"] == [32 * 8] * 3
    assert all((share > 0) == (n > 0) for share, n in zip(steps["share_below"], steps["x_below"], strict=True))
    # Every answer of a prompt that crossed or is misranked, and no other.
    listed = samples.listed(made.log.packed(), every=False)
    assert sum(one["crossed"] for one in listed) == sum(steps["x_below"])
    assert sum(one["turned"] for one in listed) == sum(steps["misranked"]) > 0
    assert all(one["crossed"] or one["turned"] for one in listed)
    assert {one["step"] for one in listed} == {0, 1, 2}


@pytest.mark.usefixtures("barely_trained")
def test_a_listing_has_the_counts_of_its_run() -> None:
    run = tuning.run(listing.job_named(NAME, small=True))
    found = listing.samples(NAME, every=True, small=True)
    assert found["counts"] == run["counts"]
    assert found["steps"] == run["steps"]
    assert len(found["samples"]) == run["counts"]["samples"]
    for flag, count in (("crossed", "x_below"), ("turned", "misranked")):
        assert sum(one[flag] for one in found["samples"]) == run["counts"][count]
    told = [one for one in found["samples"] if one["crossed"] or one["turned"]]
    assert told[: len(run["few"])] == run["few"]
    assert len(told) == run["told"] >= len(run["few"]) > 0


@pytest.mark.usefixtures("barely_trained")
def test_a_kept_run_is_listed_from_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = listing.job_named(NAME, small=True)
    monkeypatch.setattr(tuning, "jobs", lambda *_: [job])
    experiments.run("tuning", tmp_path, seeds=1, small=True, progress=False)
    again = listing.samples(NAME, every=True, small=True)

    def never(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(tuning, "run", never)
    assert listing.samples(NAME, every=True, small=True, out=tmp_path) == again
    path = tmp_path / "tuning" / f"{NAME}.json"
    data = json.loads(path.read_text())
    for packed in ("", "AAAA", 5, None, data["result"]["samples"][:-400]):
        path.write_text(json.dumps({**data, "result": {**data["result"], "samples": packed}}))
        with pytest.raises(OrganismError, match="can not read the samples"):
            listing.samples(NAME, small=True, out=tmp_path)


def _packed() -> bytes:
    """Samples of two prompts, as a log packs them; X crossed in both."""
    shapes = {"step": (2,), "ids": (2, 5), "end": (2,), "said": (2, 1), "x": (2,), "reward": (2, 1), "turned": (2,)}
    whole: dict[str, Any] = {key: np.zeros(shape, samples.KEPT[key]) for key, shape in shapes.items()}
    whole["x"] -= 1
    with io.BytesIO() as file:
        np.savez_compressed(file, **whole, units=np.zeros((1, 2, 3), np.float32))
        return file.getvalue()


def _keep(folder: Path, packed: bytes, without: str = "", **change: Any) -> None:
    """Keep a run that is made up, of which something is missing or otherwise."""
    result: dict[str, Any] = {
        "text": {"words": digest()}, "samples": base64.b64encode(packed).decode(),
        "counts": dict.fromkeys(samples.COUNTED, 2),
        "steps": {key: [2] for key in (*samples.COUNTED, *samples.MEASURED)},
    } | change  # fmt: skip
    result.pop(without, None)
    (folder / "tuning").mkdir(exist_ok=True)
    job = listing.job_named(NAME)
    kept = {**experiments._identity("tuning", job, False), "result": result}
    (folder / "tuning" / f"{NAME}.json").write_text(json.dumps(kept))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        *(({"without": key}, f"found {key} missing or off") for key in ("text", "samples", "counts", "steps")),
        *(({"counts": one}, "found counts missing or off") for one in ([], None, 5)),
        ({"counts": {}}, "found samples, rare_word, x_below, misranked off"),
        *(({"counts": {**dict.fromkeys(samples.COUNTED, 2), "x_below": one}}, "found x_below off")
          for one in ("2", 2.0, True, None, [])),
        ({"steps": []}, "found steps missing or off"),
        ({"steps": {}}, "a list of steps of samples, .*found samples, .*, rare off"),
        ({"text": {}}, "the vocabulary .*, found None"),
    ],
)  # fmt: skip
def test_a_kept_run_that_lacks_something_is_named(
    change: dict[str, Any], match: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["organisms", "samples", NAME, "--out", str(tmp_path)]
    _keep(tmp_path, _packed())
    assert main(command) == 0
    assert "2 samples, 2 with a rare word" in capsys.readouterr().out
    _keep(tmp_path, _packed(), **change)
    with pytest.raises(OrganismError, match=rf"^run {NAME}: can not read the samples .*\(expected .*{match}\)$"):
        listing.samples(NAME, out=tmp_path)
    # Nothing is printed of what is refused.
    assert main(command) == 2
    assert capsys.readouterr().out == ""


def test_damaged_samples_are_named(tmp_path: Path) -> None:
    """Every fifth byte, one at a time: it is named, or what is listed is what was kept."""
    packed, causes, told = _packed(), set(), []
    _keep(tmp_path, packed)
    whole = listing.samples(NAME, every=True, out=tmp_path)
    for at in range(0, len(packed), 5):
        damaged = bytearray(packed)
        damaged[at] ^= 0x55
        _keep(tmp_path, bytes(damaged))
        try:
            assert listing.samples(NAME, every=True, out=tmp_path) == whole
        except OrganismError as error:
            causes.add(type(error.__cause__))
            told.append(str(error))
    assert {zipfile.BadZipFile, zlib.error} <= causes
    sentence = re.compile(rf"run {NAME}: can not read the samples that are kept of it \(.+\)")
    assert all(map(sentence.fullmatch, told))


@pytest.mark.usefixtures("barely_trained")
def test_a_listing_is_the_same_twice_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    found = listing.samples(NAME, small=True)
    bases.base.cache_clear()
    assert main(["organisms", "samples", NAME, "--small", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found
    assert main(["organisms", "samples", NAME, "--small", "--all"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= found["counts"]["samples"]
    assert f"{found['counts']['samples']} samples" in lines[-1]


@pytest.mark.parametrize(
    "name", ["", "reinforce_on", "none-gelu-nothing-0", "reinforce_on-gelu-nothing-٣", "reinforce_on-gelu-nothing-01",
             "reinforce_on-gelu-nothing-0.json", "reinforce_on-gelu-nothing-1000000"]
)  # fmt: skip
def test_no_run_of_that_name(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ArgumentError, match="ARM-ARCHITECTURE-KNOWLEDGE-SEED"):
        listing.samples(name)
    assert main(["organisms", "samples", name]) == 2
    assert "expected ARM" in capsys.readouterr().err


def test_every_algorithm_has_every_source() -> None:
    for algorithm in arms.ALGORITHMS:
        of = {(a.policy, a.rare_share) for a in tuning.ARMS.values() if a.algorithm == algorithm and not a.true_reward}
        assert of == {(True, 0.0), (True, 0.01), (False, 0.0), (False, 0.001), (False, 0.01)}
    for name in (*predictions.UNVISITED, *predictions.VISITED.values()):
        assert tuning.ARMS[name].rare_share == 0
        assert not tuning.ARMS[name].frozen
    assert {tuning.ARMS[name].rare_share for name in predictions.VISITED} == {0.01}


def _run(arm: str, seed: int, moved: float, listed: int = 0) -> predictions.Run:
    log = [{"common": {"margin": 2.0}, "rare": {"margin": x}} for x in (0.5, 0.5 + moved)]
    samples = [
        {"step": i, "text": f"{arm} {seed}", "said": "she", "x": -1.0, "reward": None, "crossed": True, "turned": False}
        for i in range(listed)
    ]
    return {"arm": arm, "architecture": "swiglu", "knowledge": "nothing", "seed": seed, "log": log, "few": samples,
            "told": listed}  # fmt: skip


def test_what_freezing_leaves_is_of_pairs() -> None:
    on, frozen = "reinforce_on", "reinforce_on_frozen"
    runs = [_run(on, 0, 1.0), _run(frozen, 0, -0.2), _run(on, 1, -3.0), _run(frozen, 1, 0.2), _run(frozen, 2, 9.0)]
    assert predictions.left(runs) == pytest.approx(0.1)
    # A seed drawn twice counts twice.
    assert predictions.left(runs + runs[:2]) == pytest.approx(0.6 / 5)
    assert np.isnan(predictions.left(runs[4:]))


def test_samples_shown_are_of_all_arms() -> None:
    runs = [_run("reinforce_forced", seed, 0.0, 40) for seed in range(3)] + [_run("grpo_forced", 0, 0.0, 2)]
    text = section._listing(runs)
    rows = [line for line in text.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == 12
    assert sum("| grpo_forced" in row for row in rows) == 2
    assert {f"reinforce_forced {seed}" in text for seed in range(3)} == {True}
    assert "12 of 122" in text
    assert "signflip organisms samples" in text
