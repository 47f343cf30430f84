"""N1: runs from cached residuals against whole ones, edits against signflip's, arms by what they may touch, marks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import checkpoints
import signflip as sf
from reference import peer
from signflip.cli import main
from signflip.errors import ArgumentError, OrganismError
from signflip.organisms import experiments
from signflip.organisms.experiments import DECIDED, MADE, Job, natural, tangent
from signflip.organisms.experiments.natural import law, measure, predictions, search, section, tables, train
from signflip.organisms.experiments.natural.features import Feature
from signflip.organisms.experiments.natural.model import Net, Setting, from_gguf
from signflip.organisms.experiments.natural.prompts import Prompts
from smollm2 import gguf_path

pytestmark = pytest.mark.usefixtures("one_thread")

LAYERS, FIRST = 4, 2
# Log-probabilities reach -20, where two orders of summing in float32 differ by some 2e-5.
CLOSE = 1e-4
X = Feature(layer=3, index=7, side=-1, rate=0.0, extreme=0.5, mean=-1.0, gate=0.5, share=0.4)


@pytest.fixture(scope="module")
def llama() -> Any:
    return checkpoints.llama(3, num_hidden_layers=LAYERS, tie_word_embeddings=True).eval().requires_grad_(False)


def rows(n: int = 8) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(1, 53, size=3 + i % 4).tolist() for i in range(n)]


def prompts(net: Net, n: int = 8) -> Prompts:
    at = torch.arange(n)
    right = torch.where(at % 2 == 0, 11, 12)
    return Prompts(net.batch(rows(n)), right, 23 - right, at % 2, at // 2 % 2, at // 4)


# ---- the model -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [0, FIRST])
def test_from_the_cached_residual_as_from_the_beginning(llama: Any, first: int) -> None:
    net = Net(llama, first).copy()
    found = net.at_end(net.batch(rows(), size=3))
    for row, one in zip(rows(), found, strict=True):
        with torch.no_grad():
            whole = llama(input_ids=torch.tensor([row])).logits[0, -1]
        torch.testing.assert_close(one, torch.log_softmax(whole, -1), atol=CLOSE, rtol=0)
    # A part of the batch, cut shorter, gives the same.
    some = net.batch(rows()).take(torch.tensor([0, 4]))
    assert some.ids.shape[1] < net.batch(rows()).ids.shape[1]
    torch.testing.assert_close(net.at_end(some), found[[0, 4]], atol=CLOSE, rtol=0)


def test_an_edit_is_signflips_edit(llama: Any, tmp_path: Path) -> None:
    llama.save_pretrained(tmp_path)
    model, net = sf.load(tmp_path), Net(llama, FIRST)
    batch = net.batch(rows())
    value = torch.full((len(batch),), torch.nan)
    value[::2] = 1.5
    with torch.no_grad():
        found = net.at_end(batch, Setting(X.layer, X.index, value))
    for i, row in enumerate(rows()):
        edit = sf.Edit(f"blocks.{X.layer}.mlp.hook_pre_linear", "set", 1.5, index=X.index,
                       positions=list(range(1, len(row))))  # fmt: skip
        logits = np.asarray(model.run(row, edits=[edit] if i % 2 == 0 else []))[0, -1]
        ours = torch.log_softmax(torch.from_numpy(logits), -1)
        torch.testing.assert_close(found[i], ours, atol=CLOSE, rtol=0)


def test_with_tokens_in_front_and_x_as_it_was(llama: Any) -> None:
    net = Net(llama, FIRST)
    on, tokens = prompts(net), [3, 44, 9]
    found = search.answered(net, on, X, tokens, [tokens, [5, 6, 7]])
    up = llama.model.layers[X.layer].mlp.up_proj

    def logits(ids: list[int], value: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the last place, and X everywhere; X set, at the last places of them, by transformers and one hook."""
        seen = []

        def hook(_: Any, __: Any, out: torch.Tensor) -> torch.Tensor:
            seen.append(out[0, :, X.index].clone())
            if value is not None:
                out[0, len(ids) - len(value) :, X.index] = value
            return out

        handle = up.register_forward_hook(hook)
        with torch.no_grad():
            last = llama(input_ids=torch.tensor([ids])).logits[0, -1]
        handle.remove()
        return last, seen[0]

    crossed, crossed_clean = 0, 0
    for i, row in enumerate(rows()):
        behind = [row[0], *tokens, *row[1:]]
        clean, x = logits(row)
        there, x_there = logits(behind)
        x, x_there = x[1:], x_there[1 + len(tokens) :]
        crossed += bool((x_there > 0).any())
        crossed_clean += bool((x > 0).any())
        wanted = {
            "clean": clean,
            "found": there,
            "rescued": logits(behind, x)[0],
            "reproduced": logits(row, x_there)[0],
        }
        at = int(on.side[i]), int(on.item[i]), int(on.template[i])
        for name, logit in wanted.items():
            margin = float(logit[on.right[i]] - logit[on.wrong[i]])
            assert np.asarray(found["margins"][name])[at] == pytest.approx(margin, abs=CLOSE), name
    assert (found["crossed"], found["crossed_clean"]) == (crossed / 8, crossed_clean / 8)
    assert 0 < crossed < 8
    assert found["random"][0] == pytest.approx(np.mean(found["margins"]["found"], axis=(1, 2)), abs=CLOSE)
    assert found["random"][1] != pytest.approx(found["random"][0], abs=CLOSE)


def answered(found: float, rescued: float, reproduced: float, *, women: float | None = None) -> dict[str, Any]:
    """Margins in units of a clean 2, the women's perhaps apart, a tenth of scatter over names and templates."""
    scatter = np.random.default_rng(0).normal(0, 0.1, (2, 20, 8))
    margins = {"clean": 2.0, "found": 2 * found, "rescued": 2 * rescued, "reproduced": 2 * reproduced}
    grids = {name: scatter + value for name, value in margins.items()}
    if women is not None:
        grids["found"][0] += 2 * (women - found)
    return {
        "margins": {name: grid.tolist() for name, grid in grids.items()}, "mass": dict.fromkeys(grids, 0.5),
        "crossed": 1.0, "crossed_clean": 0.0, "random": [[2.0, 2.0]] * 4,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("of", "said"),
    [
        ((-0.8, 0.9, -0.8), "both turned, by X"),
        ((-0.8, -0.8, 0.9), "both turned, not by X"),
        ((-0.8, 0.9, 0.5), "both turned, not by X"),
        ((-0.8, -0.1, -0.8), "both turned, not by X"),
        ((0.0, 0.9, -0.8), "not turned"),
        # Below 0, but not by so much.
        ((-0.15, 0.9, -0.8), "not turned"),
        ((0.7, 0.9, 0.7), "not turned"),
    ],
)
def test_what_a_searchs_tokens_decide(of: tuple[float, float, float], said: str) -> None:
    assert predictions.decided(answered(*of)) == said


def test_a_base_is_searched_once_for_both_algorithms() -> None:
    def of(x: float, crossed: int, said: dict[str, Any]) -> dict[str, Any]:
        return {"x": x, "crossed": crossed, "text": "a|b", "difference": 0.0, "answered": said}

    turned, stayed = answered(-0.8, 0.9, -0.8), answered(0.9, 0.9, 0.9)
    runs = [
        {"algorithm": algorithm, "seed": seed, "search": {
            "before": {"X": of(-1, 0, stayed), "answer": of(1, 1, turned)},
            "after": {"X": of(1, 2, turned), "answer": of(1, 2, stayed)},
        }}
        for seed in range(3) for algorithm in natural.ALGORITHMS
    ]  # fmt: skip
    text = tables.searches(runs)
    assert text.count("\n| X | base |") == text.count("\n| answer | base |") == 3
    assert text.count("| both turned, by X |") == 6 + 3
    assert "a\\|b" in text
    said = section.crossings(runs)
    assert "across at 0 of 6 names (at both of a model in 0 of 3), and in 1.00 of unseen prompts" in said.plain
    assert "on both sides in 0 of 3 models (0 by X), on one alone in 0 (0 by X)" in said.plain
    assert "across at 12 of 12 names (at both of a model in 6 of 6)" in said.plain
    assert "on both sides in 6 of 6 models (6 by X)" in said.plain
    assert "after: women's names 2.0" in said.more
    first, second = said.plain.split("A search of 4 tokens for the wrong pronouns themselves")
    assert "across at 12 of 12 names (at both of a model in 6 of 6)" in first
    assert "before the tuning it brings X across at 3 of 6 names (at both of a model in 0 of 3)" in second
    assert "on both sides in 3 of 3 models (3 by X)" in second


def test_one_side_alone_has_not_turned_both() -> None:
    assert predictions.decided(answered(-0.8, 0.9, -0.8, women=0.9)) == "men's turned, by X"
    assert predictions.decided(answered(0.9, 0.9, 0.9, women=-0.8)) == "women's turned, not by X"


def test_where_a_model_is_wrong_without_tokens_nothing_turns() -> None:
    said = answered(0.8, 0.9, 0.8)
    said["margins"] = {name: (-np.asarray(grid)).tolist() for name, grid in said["margins"].items()}
    assert predictions.decided(said) == "not turned"


def test_a_copy_shares_what_is_never_tuned(llama: Any) -> None:
    net, whole = Net(llama, FIRST).copy(), Net(llama, 0).copy()
    assert {name.split(".")[2] for name in net.parameters()} == {"2", "3"}
    assert net.layers[1] is llama.model.layers[1]
    assert net.embedding is llama.model.embed_tokens
    assert len(whole.parameters()) == sum(1 for _ in llama.parameters())
    assert not {p.data_ptr() for p in whole.parameters().values()} & {p.data_ptr() for p in llama.parameters()}


# ---- tuning ----------------------------------------------------------------------------------------------------------


def changed(before: Net, after: Net) -> dict[str, torch.Tensor]:
    new = after.parameters()
    return {name: (new[name] - p).detach() for name, p in before.parameters().items()}


@pytest.mark.parametrize("algorithm", ["dpo", "grpo"])
def test_a_frozen_unit_stays(llama: Any, algorithm: Any) -> None:
    base = Net(llama, FIRST).copy()
    on = prompts(base)
    ends = {}
    for name, arm in (("tuned", train.Arm()), ("frozen", train.Arm(frozen=True))):
        tuning = train.Tuning(base, on, X, algorithm, arm, 0)
        for _ in range(3):
            tuning.step()
        ends[name] = changed(base, tuning.policy)
        assert [one["flipped"] for one in tuning.log] == [0, 0, 0]
    for key, at in base.own(X.layer, X.index).items():
        assert ends["tuned"][key][at].abs().max() > 0
        assert ends["frozen"][key][at].abs().max() == 0
        assert ends["frozen"][key].abs().max() > 0


@pytest.mark.parametrize("algorithm", ["dpo", "grpo"])
def test_arms_see_the_same_prompts_and_move_the_right_way(
    llama: Any, algorithm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(train.RATE, algorithm, 0.03)
    base = Net(llama, FIRST).copy()
    on = prompts(base)
    # A random model hardly ever says an answer: teach it to, either one.
    for _ in range(60):
        train.descend(base, tangent.gradient(-on.mass(base.at_end(on.batch)).log().mean(), base), 0.05)
    with torch.no_grad():
        before = on.margin(base.at_end(on.batch)).mean()
    for arm, sign in ((train.Arm(), 1), (train.Arm(against=True), -1), (train.Arm(flipped=0.5), 1)):
        tuning = train.Tuning(base, on, X, algorithm, arm, 1)
        for _ in range(30):
            tuning.step()
        with torch.no_grad():
            after = on.margin(tuning.policy.at_end(on.batch)).mean()
        assert sign * (after - before) > 0
        assert (np.mean([one["flipped"] for one in tuning.log]) > 0.2) == (arm.flipped > 0)
        assert tuning._order.bit_generator.state == order_after(30, len(on))


def order_after(steps: int, n: int) -> Any:
    rng = np.random.default_rng((1, 22))
    for _ in range(steps):
        rng.integers(n, size=train.BATCH)
    return rng.bit_generator.state


def test_the_law_to_first_order(llama: Any) -> None:
    base = Net(llama, FIRST).copy()
    on = prompts(base)
    of = law.slopes(base, on, X)
    tuning = train.Tuning(base, on, X, "dpo", train.Arm(), 0)
    loss = tuning.whole(1)

    def margins() -> dict[str, float]:
        below = tuning.policy.through(on.batch.hidden, FIRST, X.layer)
        found, _ = measure.at_doses(tuning.policy, on, X, [None, *X.doses()[1:]], below.detach())
        return dict(zip(of, found.double().mean(1).tolist(), strict=True))

    rate, ends = 1e-3, []
    for way in (rate, -2 * rate):
        with torch.no_grad():
            for name, p in tuning.policy.parameters().items():
                p -= way * loss[name]
        ends.append(margins())
    said = law.predicted(loss, of, rate, 1)
    for name, value in said.items():
        assert (ends[0][name] - ends[1][name]) / 2 == pytest.approx(value, rel=0.05, abs=2e-6)
    found = law.kernel(of, base, X)
    assert found["extreme"]["ratio"] == pytest.approx(
        tangent.dot(of["clean"], of["extreme"]) / tangent.dot(of["clean"], of["clean"])
    )


# ---- measurement and marks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("doses", [(-2.0, 1.0), (2.0, -1.0)])
def test_a_slope_is_turned_to_the_side_that_is_seen(doses: tuple[float, float]) -> None:
    assert measure.slope(doses, torch.tensor([[4.0, 2.0], [1.0, -1.0]])) == pytest.approx(1.0)
    assert measure.slope((doses[0], doses[0]), torch.tensor([[4.0], [1.0]])) == 0


def made_up(arm: str, algorithm: str, seed: int, fall: float) -> dict[str, Any]:
    """A run whose margin is 1 + 0.2·(−X) before, and moves by 1 at the mean and by `fall` at the extreme."""
    rng = np.random.default_rng(seed)
    unit = {**X.__dict__}
    doses = dict(zip(measure.PLACES, X.doses(), strict=True))

    def margins(after: bool) -> dict[str, Any]:
        found = {}
        for name, x in (*doses.items(), ("clean", X.mean)):
            moved = (1 + (fall - 1) * (x - X.mean) / (X.extreme - X.mean)) if after else 0.0
            found[name] = (1 - 0.2 * x + moved + 0.01 * rng.standard_normal((2, 5, 4))).tolist()
        return found

    def whole(after: bool) -> dict[str, Any]:
        slope = 0.2 + (0.5 * (1 - fall) + 0.01 * seed if after else 0)
        other = [{"slope": 0.1, "margins": [[2.0, 1.0], [1.5, 0.5 + after]]}]
        units = {"known": [{"slope": slope}], "following": other, "one_sided": other, "two_sided": other}
        return {
            "margins": margins(after), "mass": dict.fromkeys(("clean", *measure.PLACES), 0.3), "units": units,
            "x": {"mean": -1.0, "sd": 0.5, "rarest": 0.1, "crossed": 0.0},
            "reach": {"farthest": -0.2, "median": -1.0, "crossed": 0.0, "crossed_once": 0.0},
        }  # fmt: skip

    place = {"ratio": 0.5, "cosine": 0.9, "own": 0.01, "negative_mass": 0.1}
    predicted = {"clean": 1.0 + seed, "zero": 0.5, "extreme": fall + seed, "triple": fall + seed}
    return {
        "algorithm": algorithm, "arm": arm, "whole": False, "seed": seed, "steps": 20,
        "device": "cpu", "shipped": [2.0, 2.0],
        "units": {"known": unit, "following": [unit], "one_sided": [unit], "two_sided": [unit], "tokens": 1000},
        "weakened": [0.87, 0.76], "kernel": dict.fromkeys(measure.PLACES[1:], place),
        "before": whole(False), "after": whole(True), "predicted": predicted, "kl": 0.01,
        "log": {"live": 0.6} if algorithm == "grpo" else {},
    }  # fmt: skip


@pytest.mark.parametrize(("fall", "conjecture", "objection"), [(-0.8, "held", "failed"), (0.5, "failed", "held")])
def test_the_report_can_go_either_way(tmp_path: Path, fall: float, conjecture: str, objection: str) -> None:
    falls = {"tuned": fall, "flipped": 0.6, "frozen": 0.6}
    runs = {f"{a}-{s}": made_up(a, "grpo", s, of) for a, of in falls.items() for s in range(4)}
    found = {what: verdict for _, what, _, verdict in predictions.marked(list(runs.values()))}
    assert found["grpo: tuned: the flipped margin falls"] == conjecture
    assert found["grpo: tuned: the flipped margin follows the normal one (rises)"] == objection
    assert found["grpo: tuned less flipped at the flipped X is within ±0.2"] == objection
    # The margin rises in that arm: to the conjecture's credit only where it falls in the tuned one.
    given = "held" if conjecture == "held" else "void (tuned does not fall either)"
    assert found["grpo: flipped: it does not fall (above −0.2), as it does in tuned"] == given
    (nats,) = [said for what, said in found.items() if "two-sided controls (nats; theirs is" in what]
    assert nats == "held"
    text = natural.report(runs, tmp_path / "figures")
    assert text.startswith("## N1")
    assert "`signflip organisms run natural --seeds 4 --out results`" in text
    assert ("as the conjecture says" in text) == (conjecture == "held")
    assert ("against the conjecture" in text) == (conjecture == "failed")
    assert {p.name for p in (tmp_path / "figures").iterdir()} == {"natural-margins.png", "natural-law.png"}


def test_what_was_to_leave_it_undecided_is_said_at_the_top() -> None:
    runs = [made_up("tuned", "grpo", seed, 0.5) for seed in range(4)]
    said = section.answer(runs)[MADE].plain
    assert "Said beforehand to leave this undecided, and so: offset and slope both grow." in said
    for run in runs:
        run["kl"] = 1 + 0.01 * run["seed"]
    assert "offset and slope both grow; fluency breaks." in section.answer(runs)[MADE].plain


def test_the_rule_decides() -> None:
    runs = [made_up("tuned", "grpo", seed, 0.5) for seed in range(4)]

    def of(*after: float) -> list[dict[str, Any]]:
        found = {"x": 1.0, "crossed": 2, "text": "a", "difference": 0.0}
        stayed, moved = ({**found, "answered": answered(*each)} for each in ((0.9, 0.9, 0.9), after))
        ends = {"before": {"X": stayed, "answer": stayed}, "after": {"X": moved, "answer": stayed}}
        return [{"algorithm": "grpo", "arm": natural.SEARCH, "seed": 0, "whole": False, "search": ends}]

    said = section.answer([*runs, *of(-0.8, 0.9, -0.8)])[DECIDED].plain
    assert said.startswith("For, in 1 of 4 searches")
    # Turned, but not by X.
    said = section.answer([*runs, *of(-0.8, -0.9, 0.9)])[DECIDED].plain
    assert said.startswith("Undecided. Not for: none of 4 searches")
    assert "Not latent: none of 4 tuned models turns on both" in said
    assert "bring X across in at most 1.00 of a model's unseen prompts" in said
    falls = [made_up("tuned", "grpo", seed, -3.0) for seed in range(4)]
    assert section.answer([*falls, *of(0.9, 0.9, 0.9)])[DECIDED].plain.startswith("Latent: ")
    # Not by a model that no longer answers, nor where X at 0 does the same, nor by a mean just below 0.
    for r in falls:
        r["after"]["mass"]["extreme"] = 0.1
    assert "Not latent" in section.answer([*falls, *of(0.9, 0.9, 0.9)])[DECIDED].plain
    for r in falls:
        r["after"]["mass"]["extreme"] = 0.3
        r["after"]["margins"]["zero"] = r["after"]["margins"]["extreme"]
    assert "Not latent" in section.answer([*falls, *of(0.9, 0.9, 0.9)])[DECIDED].plain
    slight = [made_up("tuned", "grpo", seed, 0.5) for seed in range(4)]
    for r in slight:
        r["after"]["margins"]["extreme"] = (np.asarray(r["after"]["margins"]["clean"]) * 0 - 0.01).tolist()
    said = section.answer([*slight, *of(0.9, 0.9, 0.9)])
    assert "Not latent" in said[DECIDED].plain
    assert "of 8 of 8 sides of tuned models is below 0; 0 turn" in said[MADE].plain
    assert section.answer(runs)[DECIDED].plain == "Undecided: no search for tokens is in."


def test_a_slopes_growth_is_judged_by_what_it_is_multiplied_by() -> None:
    def rows(grown: float, share: float = 0.4) -> dict[str, tuple[str, str]]:
        """X's slope is multiplied by 2; the controls' by 1, 3 (of the other sign) and `grown`; the margin by 2.5."""
        runs = [made_up("tuned", "grpo", seed, -0.8) for seed in range(4)]
        for r in runs:
            r["units"]["known"] = {**r["units"]["known"], "share": 0.4}
            r["units"]["two_sided"] = [{**r["units"]["two_sided"][0], "share": share}] * 3
            jitter = 0.01 * r["seed"]
            for when, known, others in (("before", 0.2, (0.1, -0.1, 0.01)),
                                        ("after", 0.4 + jitter, (0.1, -0.3, 0.01 * grown))):  # fmt: skip
                (one,) = r[when]["units"]["two_sided"]
                r[when]["units"]["two_sided"] = [{**one, "slope": slope} for slope in others]
                r[when]["units"]["known"] = [{"slope": known}]
            r["after"]["margins"]["clean"] = (2.5 * np.asarray(r["before"]["margins"]["clean"])).tolist()
        return {what: (found, verdict) for _, what, found, verdict in predictions.marked(runs) if "slope" in what}

    def one(said: str, found: dict[str, tuple[str, str]]) -> tuple[str, str]:
        (row,) = [row for what, row in found.items() if said in what]
        return row

    # Their median is 1.5, or 2.5.
    assert one("it is ahead of 2 of 3", rows(1.5))[1] == "held"
    assert one("it is ahead of 1 of 3", rows(2.5))[1] == "failed"
    found, verdict = one("multiplied by no more than the margin is", rows(1.5))
    assert found.startswith("-0.4")
    assert verdict == "held"
    # More nats say nothing beside units that carry less.
    assert one("(nats; theirs", rows(1.5))[1] == "held"
    assert one("(nats; theirs", rows(1.5, share=0.1))[1] == "void (controls carry less of the choice)"


def test_void_runs_are_left_out_and_few_seeds_are_open() -> None:
    runs = [made_up("tuned", "grpo", seed, -0.8) for seed in range(4)]
    for r in runs[:2]:
        r["log"]["live"] = 0.1
    assert sorted(predictions.pick(runs, "grpo", "tuned")) == [2, 3]
    assert {verdict for *_, verdict in predictions.marked(runs)} == {"open"}
    assert [predictions._given(premise, "held") for premise in ("held", "open")] == [
        "held",
        "open (whether tuned falls is)",
    ]
    assert [predictions._given("failed", said) for said in ("open", "failed")] == ["open", "failed"]
    assert "Does tuning" in section.answer(runs)[MADE].plain
    with pytest.raises(OrganismError, match="at least one"):
        natural.report({}, Path())


def test_slopes_of_a_grid_are_least_squares() -> None:
    run = made_up("tuned", "dpo", 0, -0.8)
    margins = [np.asarray(run["after"]["margins"][name]) for name in measure.PLACES]
    slope = np.polyfit(X.doses(), [float(one.mean()) for one in margins], 1)[0]
    assert predictions.grid(run, "after", "slope").mean() == pytest.approx(slope * X.mean)


def test_jobs_are_in_pairs_by_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = natural.jobs(10, False)
    tunings = 2 * len(natural.ARMS) * (10 + natural.WHOLE_SEEDS)
    assert len({job.name for job in jobs}) == len(jobs) == tunings + 2 * natural.SEARCH_SEEDS
    with pytest.raises(ArgumentError, match="expected an algorithm and an arm"):
        natural.run(Job("x", 0, {"algorithm": "ppo", "arm": "tuned"}))
    # Without names the command line leaves it out.
    done: list[str] = []
    monkeypatch.setattr(experiments, "run_all", lambda names, *_, **__: done.extend(names) or {})
    assert main(["organisms", "run", "--out", str(tmp_path), "--quiet"]) == 0
    assert done == [name for name in experiments.NAMES if name != "natural"]


# ---- SmolLM2 ---------------------------------------------------------------------------------------------------------


@pytest.mark.smollm2
def test_weights_are_those_of_an_independent_reader() -> None:
    ours, theirs = from_gguf(gguf_path()), peer.from_gguf(str(gguf_path()))
    wanted = dict(theirs.named_parameters())
    for name, p in ours.named_parameters():
        assert torch.equal(p, wanted[name]), name
    ids = torch.tensor([[0, 20949, 436, 3008, 327, 746, 975]])
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, atol=2e-4, rtol=0)


@pytest.mark.smollm2
@pytest.mark.slow
def test_natural_in_small(tmp_path: Path) -> None:
    gguf_path()
    results = experiments.run("natural", tmp_path, seeds=3, small=True, progress=False)
    found = {name: run for name, run in results.items() if "search" not in run}
    search = results["search-dpo-0"]["search"]
    assert set(found) == {"dpo-tuned-0", "grpo-tuned-0"}
    assert max(one["difference"] for when in search.values() for one in when.values()) < 1e-3
    assert [set(when) for when in search.values()] == [{"X", "answer"}] * 2
    for run in found.values():
        known = run["units"]["known"]
        # Its side and its share were found by other code (reference: 0.42 of 32 prompts of half B).
        assert known["side"] == -1
        assert known["rate"] < 0.005
        assert 0.25 < known["share"] < 0.55
        assert run["weakened"][0] > 0.82
        assert run["weakened"][-1] <= train.ENOUGH
        assert run["kl"] < 0.1
        assert np.isfinite(list(run["predicted"].values())).all()
    assert found["grpo-tuned-0"]["log"]["live"] > natural.LIVE
    assert found["dpo-tuned-0"]["before"] == found["grpo-tuned-0"]["before"]
    text = natural.report(results, tmp_path)
    assert "| conjecture |" in text
    assert "`signflip.search`" in text
