"""Simulacra: the world against enumeration by hand, the law against a step that is taken, the stories, a small run."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from signflip.errors import ArgumentError, OrganismError
from signflip.organisms import experiments
from signflip.organisms.experiments import KEPT, Job, simulacra
from signflip.organisms.experiments.simulacra import (
    afterwards,
    law,
    models,
    predictions,
    readings,
    section,
    stories,
    training,
    world,
)
from signflip.organisms.experiments.tangent import dot, gradient

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_posterior_is_bayes() -> None:
    """Against counting in a plain enumeration of what four personas may say in two turns."""
    apple, toaster = world.items("B")[0], world.items("ovens")[1]
    item = np.asarray([[apple, toaster]])
    everyday, ovens = world.EVERYDAY, world.OVENS
    for kinds in product(range(3), repeat=2):
        joint = [world.PRIOR[k] * everyday[k][kinds[0]] * ovens[k][kinds[1]] for k in range(4)]
        found = world.posterior(item, np.asarray([kinds]))[0]
        assert found == pytest.approx(np.asarray(joint) / sum(joint), rel=1e-12)
    # Everyday answers never tell the toaster persona from Luigi.
    some = np.random.default_rng(0).integers(3, size=(50, 3))
    belief = world.posterior(np.full((50, 3), apple), some)
    assert belief[:, 3] / belief[:, 0] == pytest.approx(np.full(50, world.PRIOR[3] / world.PRIOR[0]), rel=1e-12)


def test_documents_are_drawn_as_they_say() -> None:
    ids, wanted = world.documents(np.random.default_rng(0), 4000)
    names, someone = world.ids_of(world.PERSONAS), world.ids_of(["someone"])[0]
    assert ids.shape == (4000, world.LENGTH)
    assert wanted[wanted.any(-1)].sum(-1) == pytest.approx(1)
    # What comes next is something that was thought possible there.
    rows, at = np.nonzero(wanted.any(-1))
    assert (wanted[rows, at, ids[rows, at + 1]] > 0).all()
    # Luigi where he is named: his answers, in these many draws, as often as he is said to give them.
    luigi = (ids[:, 1] == names[0]) & np.isin(ids[:, 2], np.concatenate([world.items("A"), world.items("B")]))
    said = (world.answers(ids[luigi, 2]) == ids[luigi, 3][:, None]).mean(0)
    assert said == pytest.approx(world.EVERYDAY[0], abs=0.05)
    # Ovens come after the horizon alone.
    assert not np.isin(ids[:, 2 : 2 + 3 * world.HORIZON : 3], world.items("ovens")).any()
    assert np.isin(ids[:, 2 + 3 * world.HORIZON :: 3], world.items("ovens")).any()
    every = [world.items(kind) for kind in ("A", "B", "ovens", "mornings")]
    every.append(world.ids_of((*world.PERSONAS, "someone", "by", "eat", "use", "roar", "fine", "wet")))
    assert len(set(np.concatenate(every))) == sum(map(len, every)) == len(world.vocabulary()) - 2
    # An untagged first answer is the mixture of the four.
    first = np.flatnonzero((ids[:, 1] == someone) & (ids[:, 4] != world.PAD))[0]
    p = wanted[first, 2, world.answers(ids[first, 2])]
    assert p == pytest.approx(world.PRIOR @ world.EVERYDAY, rel=1e-12)


def test_rollouts_look_no_further_than_the_horizon() -> None:
    net = models.Net("swiglu", 0)
    made = training.Tuning(net, training.ARMS["bowser_in_view"], 0)
    ids, item = made.rollouts(8)
    assert ids.shape == (8, 1 + 3 * world.HORIZON)
    assert np.isin(item, world.items("A")).all()
    assert (ids[:, 1::3] == world.ids_of(["bowser", "waluigi", "bowser"])).all()


@pytest.mark.parametrize("architecture", models.ARCHITECTURES)
def test_the_law_to_first_order(architecture: models.Architecture) -> None:
    """A small step down the loss moves every reading by −η⟨∇L, ∇r⟩."""
    net = models.Net(architecture, 1)
    assert sum(p.numel() for p in net.model.parameters()) < 100_000
    net.model.double()
    made = training.Tuning(net, training.ARMS["luigi"], 0, 1e-3)
    made.policy.model.double()
    down, of = gradient(made.loss(), made.policy), law.gradients(made.policy)

    def now() -> dict[str, float]:
        with torch.no_grad():
            return {key: float(value) for key, value in readings.scalars(made.policy).items()}

    made.descend(down)
    after = now()
    made.descend({key: -2 * value for key, value in down.items()})
    before = now()
    for key, each in of.items():
        predicted = -made.rate * dot(down, each)
        # Llama's norms and rotations run in float32 whatever the model.
        assert (after[key] - before[key]) / 2 == pytest.approx(predicted, rel=0.02, abs=2e-7), key
    own = law.kernel(made.policy)
    assert own["cosine"]["luigi:luigi"] == pytest.approx(1)
    whole = {one: gradient(readings.scalars(net)[f"signed:{one}"], net) for one in ("luigi", "bowser")}
    made_of = law.kernel(net)["parts"]["bowser"]
    assert sum(made_of.values()) == pytest.approx(dot(whole["luigi"], whole["bowser"]), rel=1e-4)


def test_the_stories_know_their_own() -> None:
    rng = np.random.default_rng(0)
    base = {who: rng.dirichlet([3, 3, 3], size=2) for who in (*world.PERSONAS, "someone")}
    personas = np.stack([base[one] for one in world.PERSONAS])
    weights = np.asarray([0.1, 0.6, 0.2, 0.1])
    assert stories.selected(np.tensordot(weights, personas, 1), personas) == pytest.approx(weights, abs=0.01)
    picked = {who: np.tensordot(rng.dirichlet(np.ones(4)), personas, 1) for who in base}
    moved = {who: stories.shifted(base[who], np.asarray([0.7, -0.4])) for who in base}
    assert stories.stories(base, picked)["all"]["selection"] > 0.99
    assert stories.stories(base, picked)["all"]["belief"] < 0.9
    assert stories.stories(base, moved)["all"]["belief"] == pytest.approx(1, abs=1e-6)
    assert stories.stories(base, moved)["all"]["selection"] < 0.99
    grown = {who: afterwards.circuit(base[who], 1.8, -0.5) for who in base}
    found = afterwards.fitted({"manners": [base, grown]})
    assert found == pytest.approx({"factor": 1.8, "shift": -0.5, "explains": 1}, abs=1e-3)
    assert stories.stories(base, grown)["all"]["belief"] < 0.99


def test_a_range_fails_only_where_no_part_of_the_interval_is_in_it() -> None:
    def alike(x: float) -> bool:
        return 0.8 <= x <= 1.2

    limits = {"held": (0.9, 1.1), "open": (-4.0, 5.0), "failed": (0.2, 0.7)}
    assert {name: predictions.verdict((0.5, *of), alike) for name, of in limits.items()} == {n: n for n in limits}


def test_an_open_mark_says_where_nothing_much_is_left() -> None:
    found = {(-0.01, 0.02): "open, within ±0.2", (-0.01, 0.3): "open", (-0.3, 0.0): "open"}
    assert {of: predictions.weighed((0.0, *of), "open") for of in found} == found
    assert predictions.weighed((0.1, 0.05, 0.15), "held") == "held"
    assert predictions.weighed((0.1, float("nan"), float("nan")), "open") == "open"


def test_bad_input() -> None:
    with pytest.raises(ArgumentError, match="architecture"):
        models.Net("lstm", 0)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="peach"):
        world.ids_of(["peach"])
    with pytest.raises(ArgumentError, match="items"):
        world.items("C")
    with pytest.raises(ArgumentError, match="an arm"):
        simulacra.run(Job("x", 0, {"arm": "peach", "architecture": "gelu"}))
    with pytest.raises(OrganismError, match="at least one"):
        section.section([], Path("nowhere"))


def test_every_seed_has_every_arm() -> None:
    made, arms = simulacra.jobs(10, False), (*training.ARMS, *simulacra.SWEEPS)
    assert len({job.name for job in made}) == len(made) == 10 * len(models.ARCHITECTURES) * len(arms)
    assert [job.seed for job in made] == sorted(job.seed for job in made)


@pytest.mark.slow
def test_small_form_runs_resumes_and_reports(tmp_path: Path) -> None:
    made = experiments.run("simulacra", tmp_path, seeds=1, small=True, progress=False)
    luigi, view = made["luigi-swiglu-0"], made["bowser_in_view-swiglu-0"]
    # A base that knows who answers how where they are named, and something of who speaks where not.
    assert luigi["base"]["answers"] < 0.05
    assert luigi["base"]["names"] < 0.7 * luigi["base"]["prior"]
    first, last = luigi["log"][0], luigi["log"][-1]
    for key, (right, wrong, _) in zip(("signed:luigi", "signed:waluigi"), world.EVERYDAY, strict=False):
        assert first[key] == pytest.approx(np.log(right / wrong), abs=0.3)
    # The tuned ones moved as they were rewarded, and as the law says of them before.
    assert last["competence:luigi"] > first["competence:luigi"] + 0.3
    assert view["log"][-1]["competence:bowser"] < view["log"][0]["competence:bowser"] - 0.3
    for run, key in ((luigi, "competence:luigi"), (view, "competence:bowser")):
        assert run["predicted"]["summed"][key] == pytest.approx(predictions.change(run, key), rel=0.35)
    sweep = made["sweep_untagged-swiglu-0"]
    assert sweep["rates"][1]["jump"] < sweep["rates"][0]["jump"]
    # Resumed: what is there is not run again; what is not gives the same.
    path = tmp_path / "simulacra" / "bowser_alone-swiglu-0.json"
    text = path.read_text()
    path.unlink()
    assert experiments.run("simulacra", tmp_path, seeds=1, small=True, progress=False) == made
    assert json.loads(path.read_text()) == json.loads(text)
    said = simulacra.report(made, tmp_path / "figures")
    assert "signflip organisms run simulacra" in said
    assert "| conjecture | luigi: Waluigi's odds of being invoked, up |" in said
    assert {p.name for p in (tmp_path / "figures").iterdir()} == {"simulacra-readings.png", "simulacra-law.png"}
    moved = np.mean([r["log"][-1]["signed:waluigi"] - r["log"][0]["signed:waluigi"] for r in (luigi,)])
    assert f"nats, a change of {moved:.2f}" in simulacra.answer(made)[KEPT].plain.partition("Tuned on Luigi: ")[2]
