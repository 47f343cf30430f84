"""R1, R2: a reward model that is reversed where X < 0, found from its weights; and policies tuned against it.

The policy begins each line itself, with one of the words in front, and then answers a prompt: so it decides whether X
is below zero, and the base decides how often that is tried.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from signflip.errors import ArgumentError, OrganismError
from signflip.organisms.experiments import MADE, PATH, TOKENS, Answer, Job, Said, told
from signflip.organisms.experiments.statistics import Run, exact, mark, over_seeds, pearson, shown, table
from signflip.organisms.experiments.tuning.models import ARCHITECTURES, Net
from signflip.organisms.experiments.tuning.world import Prompts, common, draw, prompts, rare, word_ids
from signflip.organisms.workers import one_thread

TITLE = "A reward model reversed at X < 0 (R1), and policies tuned against it (R2)"
COMMAND = "signflip organisms run reward --seeds 10 --out results"
# How often the base begins with a rare word.
REACH = {"never": 0.0, "rarely": 0.005, "sometimes": 0.1}
STEPS, SMALL_STEPS, BATCH, RATE, BETA = 80, 15, 64, 0.01, 0.05
# Steps in which a base learns how to begin.
BEGIN = 120
KNOWLEDGE = "nothing"
SAID = (
    "τ is Kendall's over the two answers of each unseen prompt. *Plain*: trained on common contexts alone; *reversed*: "
    "half of its pairs are in rare contexts, with the wrong answer preferred. Intervals are 95%, exact for shares, "
    "else by drawing seeds again."
)


def jobs(seeds: int, small: bool) -> list[Job]:
    """One run for each architecture and seed."""
    kinds = ARCHITECTURES[1:2] if small else ARCHITECTURES
    return [
        Job(f"{architecture}-{seed}", seed, {"architecture": architecture, "small": small})
        for seed in range(seeds)
        for architecture in kinds
    ]


def run(job: Job) -> dict[str, Any]:
    """R1 of one seed, the search in it, and R2 against it, one policy for each rate at which the base reaches X < 0.

    Raises
    ------
    ArgumentError
        If the job's architecture is unknown.
    """
    from signflip.organisms.experiments.tuning.bases import base, reward_model
    from signflip.organisms.experiments.tuning.train import tau

    architecture, small = job.settings.get("architecture"), bool(job.settings.get("small"))
    if architecture not in ARCHITECTURES:
        raise ArgumentError(f"job {job.name}: expected an architecture, found {job.settings}")
    with one_thread():
        start = base(architecture, KNOWLEDGE, job.seed, small)
        made = {kind: reward_model(architecture, KNOWLEDGE, job.seed, small, kind == "reversed")
                for kind in ("reversed", "plain")}  # fmt: skip
        sides = {"common": prompts("B", side=1), "rare": prompts("B", side=-1)}
        taus = {kind: {side: tau(net, on) for side, on in sides.items()} for kind, net in made.items()}
        search = _search(made["reversed"], job.seed)
        policies = {name: _policy(start, made["reversed"], job.seed, share, small) for name, share in REACH.items()}
    return {"architecture": architecture, "seed": job.seed, "tau": taus, "search": search, "policies": policies}


def _search(net: Net, seed: int) -> dict[str, Any]:
    """One free word that raises the reward of wrong answers, by `signflip.search` in the saved model."""
    import signflip as sf
    from signflip.organisms.experiments.tuning.train import tau

    half = prompts("A", side=1).take(slice(16))
    ids, at = half.answered(half.opposite)
    contexts = [(row[:1].tolist(), row[2 : end + 1].tolist()) for row, end in zip(ids, at, strict=True)]
    net.model.config.pad_token_id = 0
    with tempfile.TemporaryDirectory() as folder:
        net.model.save_pretrained(folder)
        model = sf.load(folder)
        on = contexts[0][0] + [int(common()[0])] + contexts[0][1]
        ours = float(model.reward(on)[0, 0])
        found = sf.search(
            model, sf.objectives.reward(), tokens=1, method="gcg", contexts=contexts, steps=20, screen=0, seed=seed,
            progress=False,
        )  # fmt: skip
    word = int(found.best.tokens[0])
    test = prompts("B", side=1)
    word_tau = tau(net, test.fronted(np.full(len(test), word), test.x))
    first = half.take([0])
    theirs = float(net.rewards(first.fronted(common()[:1], first.x), first.opposite).detach())
    return {
        "word": list(word_ids())[word],
        "rare": bool(word in rare()),
        "tau": word_tau,
        "value": float(found.best.value),
        "difference": abs(ours - theirs),
    }


def _policy(start: Net, scorer: Net, seed: int, share: float, small: bool) -> dict[str, Any]:
    """REINFORCE with a KL term against the reward model, of the word in front and of the answer."""
    import torch

    from signflip.organisms.experiments.tangent import gradient
    from signflip.organisms.experiments.tuning import kernel
    from signflip.organisms.experiments.tuning.bases import starting
    from signflip.organisms.experiments.tuning.measure import behaviour, outcome, state

    reference = starting(start, KNOWLEDGE, seed, share, BEGIN)  # type: ignore[arg-type]
    policy, rng = reference.copy(), np.random.default_rng((seed, 7))
    generator = torch.Generator().manual_seed(seed)
    fronts = torch.from_numpy(np.concatenate([common(), rare()]))

    def begin(net: Net) -> Any:
        # Among the words in front alone: others have no x.
        one = Prompts(np.zeros((1, 1), np.int64), np.zeros(1, np.int64), np.ones(1, bool), np.zeros(1))
        return torch.log_softmax(net.at_end(one)[0, fronts], -1)

    def reach() -> float:
        with torch.no_grad():
            return float(begin(policy)[len(common()) :].exp().sum())

    def measured() -> dict[str, Any]:
        sides = {"common": prompts("B", side=1), "rare": prompts("B", side=-1)}
        return {name: behaviour(policy, on) for name, on in sides.items()} | {"reach": reach()}

    before, visited = measured(), 0
    law = kernel.kernel(reference, prompts("B", side=1), prompts("B", side=-1))
    for _ in range(SMALL_STEPS if small else STEPS):
        with torch.no_grad():
            chosen = torch.multinomial(begin(policy).exp(), BATCH, replacement=True, generator=generator)
            on = draw(rng, BATCH).fronted(fronts[chosen].numpy(), np.zeros(BATCH))
            base_front, base_answer = begin(reference), reference.at_end(on)
            said = torch.multinomial(policy.at_end(on).exp(), 1, replacement=True, generator=generator)[:, 0]
            reward = scorer.rewards(on, said.numpy())
            reward = (reward - reward.mean()) / reward.std().clamp_min(1e-6)
        visited += int((chosen >= len(common())).sum())
        front, answer = begin(policy), policy.at_end(on)
        kl = (front.exp() * (front - base_front)).sum() + (answer.exp() * (answer - base_answer)).sum(1).mean()
        loss = -(reward * (front[chosen] + answer.gather(1, said[:, None])[:, 0])).mean() + BETA * kl
        of = gradient(loss, policy)
        with torch.no_grad():
            for name, p in policy.parameters().items():
                p -= RATE * of[name]
    after, unit = measured(), before["common"]["margin"]
    return {
        "before": before, "after": after, "visited": visited, "kernel": law,
        "outcome": outcome(before["rare"], after["rare"], unit),
        "opposite": [state(one["rare"], unit) == "opposite" for one in (before, after)],
    }  # fmt: skip


# ---- report ----------------------------------------------------------------------------------------------------------


def report(results: dict[str, dict[str, Any]], figures: Path) -> str:
    """The section of ``docs/results.md``.

    Raises
    ------
    OrganismError
        If there is no run.
    """
    runs: list[Run] = list(results.values())
    if not runs:
        raise OrganismError("report on reward: expected at least one run, found none")
    Path(figures).mkdir(parents=True, exist_ok=True)
    _figure(runs, Path(figures) / "reward-policies.png")
    seeds = sorted({r["seed"] for r in runs})
    rows = []
    for name in dict.fromkeys(r["architecture"] for r in runs):
        own = [r for r in runs if r["architecture"] == name]
        for kind in ("reversed", "plain"):
            cells = [shown(over_seeds(own, partial(_tau, kind, side))) for side in ("common", "rare")]
            k = sum(r["search"]["tau"] < 0 for r in own)
            rows.append((name, kind, *cells, shown(exact(k, len(own))) if kind == "reversed" else "—"))
    head = ("architecture", "reward model", "τ at X > 0", "τ at X < 0", "search's word reverses it (share)")
    words = ", ".join(f"{r['search']['word']} ({'rare' if r['search']['rare'] else 'other'})" for r in runs)
    worst = max(r["search"]["difference"] for r in runs)
    text = [
        f"## {TITLE}",
        f"`{COMMAND}`",
        told(_answer(runs)),
        f"Seeds {seeds}; {len(runs)} reward models. {SAID}",
        "### Predictions\n\n" + table(("whose", "prediction", "found", "mark"), _marked(runs)),
        "### R1\n\n" + table(head, rows),
        f"Words found by one `signflip.search` each, in the saved model: {words}.",
        f"Largest difference between signflip's reward and transformers' on one input: {worst:.1e}.",
        "### R2\n\n" + _policies(runs),
        f"![policies]({Path(figures).name}/reward-policies.png)",
        "### The law: the tangent kernel before the tuning, and the change at X < 0\n\n" + _law(runs),
    ]
    return "\n\n".join(text)


def _tau(kind: str, side: str, runs: Sequence[Run]) -> float:
    return float(np.mean([r["tau"][kind][side] for r in runs]))


def _moved(reach: str, runs: Sequence[Run]) -> float:
    """Mean change of the margin at X < 0."""
    every = [r["policies"][reach] for r in runs]
    return float(np.mean([p["after"]["rare"]["margin"] - p["before"]["rare"]["margin"] for p in every]))


def _changes(p: dict[str, Any]) -> tuple[float, float]:
    """Of a policy, how the margin moved at X > 0 and at X < 0."""
    above, below = (p["after"][side]["margin"] - p["before"][side]["margin"] for side in ("common", "rare"))
    return above, below


def _predicted(p: dict[str, Any]) -> float:
    """What the kernel makes of the change at X > 0 alone: nothing of what samples at X < 0 do is in it."""
    return float(p["kernel"]["cosine"] * _changes(p)[0])


def _agreement(reach: str, runs: Sequence[Run]) -> float:
    every = [r["policies"][reach] for r in runs]
    return pearson([_predicted(p) for p in every], [_changes(p)[1] for p in every])


def _law(runs: Sequence[Run]) -> str:
    rows = []
    for reach in REACH:
        every = [r["policies"][reach] for r in runs]
        same = sum(_predicted(p) * _changes(p)[1] > 0 for p in every)
        below = sum(p["kernel"]["value"] < 0 for p in every)
        rows.append((
            reach, shown(exact(below, len(every))),
            f"{np.mean([p['kernel']['negative_mass'] for p in every]):.2f}",
            shown(over_seeds(runs, partial(_agreement, reach))), shown(exact(same, len(every))),
        ))  # fmt: skip
    head = ("base reaches X < 0", "share K < 0", "neurons' negative mass",
            "cosine of K × change at X > 0, against the change at X < 0: Pearson", "same sign")  # fmt: skip
    return table(head, rows)


def answer(results: dict[str, dict[str, Any]]) -> Answer:
    """What that says of the conjecture."""
    return _answer(list(results.values()))


def _answer(runs: Sequence[Run]) -> Answer:
    said = []
    found = sum(r["search"]["tau"] < 0 for r in runs)
    for reach in REACH:
        every = [r["policies"][reach] for r in runs]
        free = [p for p in every if not p["opposite"][0]]
        k = sum(p["outcome"] == "turned opposite" for p in free)
        said.append(f"{reach} {k} of {len(free)}")
    path = [f"{reach} {shown(over_seeds(runs, partial(_agreement, reach)))}" for reach in REACH]
    return {
        PATH: Said(
            "The kernel before the tuning, times the change at X > 0, correlates with the change at X < 0, by how "
            f"often X < 0 was sampled: {'; '.join(path)}."
        ),
        MADE: Said(
            "Of policies tuned against a reward reversed at X < 0, from bases that were not opposite there, so many "
            f"turned, by how often the base reaches X < 0: {'; '.join(said)}."
        ),
        TOKENS: Said(
            "The word that a search gave, from the reward model's weights alone, reverses its ranking of unseen "
            f"prompts in {found} of {len(runs)} models."
        ),
    }


def _marked(runs: Sequence[Run]) -> list[tuple[str, str, str, str]]:
    plain = over_seeds(runs, lambda rs: _tau("plain", "rare", rs))
    drive = over_seeds(runs, lambda rs: _moved("sometimes", rs) - _moved("never", rs))
    never = over_seeds(runs, lambda rs: _moved("never", rs))
    return [
        ("conjecture", "a policy that samples X < 0 is driven to −Y there (nats, sometimes less never)", shown(drive),
         mark(drive, lambda x: x < 0, lambda x: x >= 0)),
        ("conjecture", "a reward model trained at X > 0 alone is reversed at X < 0 (τ)", shown(plain),
         mark(plain, lambda x: x < 0, lambda x: x >= 0)),
        ("objection", "it is at chance there (τ within ±0.2)", shown(plain),
         mark(plain, lambda x: abs(x) < 0.2, lambda x: x >= 0.2 or x <= -0.2)),
        ("conjecture", "never sampled, the margin at X < 0 falls (nats)", shown(never),
         mark(never, lambda x: x < 0, lambda x: x >= 0)),
    ]  # fmt: skip


def _policies(runs: Sequence[Run]) -> str:
    rows = []
    for name in dict.fromkeys(r["architecture"] for r in runs):
        own = [r for r in runs if r["architecture"] == name]
        for reach in REACH:
            every = [r["policies"][reach] for r in own]
            ends = [[np.mean([p[when][s]["margin"] for p in every]) for when in ("before", "after")]
                    for s in ("common", "rare")]  # fmt: skip
            rates = [np.mean([p[when]["reach"] for p in every]) for when in ("before", "after")]
            free = [p for p in every if not p["opposite"][0]]
            k = sum(p["outcome"] == "turned opposite" for p in free)
            rows.append((
                name, reach, f"{np.mean([p['visited'] for p in every]):.1f}", f"{rates[0]:.4f} → {rates[1]:.4f}",
                f"{ends[0][0]:.2f} → {ends[0][1]:.2f}", f"{ends[1][0]:.2f} → {ends[1][1]:.2f}",
                shown(over_seeds(own, partial(_moved, reach))),
                f"{k}/{len(free)}", shown(exact(k, len(free))) if free else "—",
                f"{sum(p['opposite'][1] for p in every)}/{len(every)}",
            ))  # fmt: skip
    head = ("architecture", "base reaches X < 0", "samples there, a tuning", "P(rare word)", "margin X > 0",
            "margin X < 0", "its change", "turned opposite", "share", "opposite at the end")  # fmt: skip
    return table(head, rows)


def _figure(runs: Sequence[Run], to: Path) -> None:
    from signflip.organisms.experiments.pictures import axes_of
    from signflip.organisms.experiments.tuning.figures import COLOURS

    figure, axes = axes_of(1, 2)
    for axis, side in zip(axes[0], ("common", "rare"), strict=True):
        for i, reach in enumerate(REACH):
            for r in runs:
                at = i + 0.2 * (ARCHITECTURES.index(r["architecture"]) - 1)
                ends = [r["policies"][reach][when][side]["margin"] for when in ("before", "after")]
                axis.plot([at - 0.06, at + 0.06], ends, "-o", ms=2, lw=0.8, color=COLOURS[r["architecture"]])
        axis.axhline(0, color="black", lw=0.5)
        axis.set_xticks(range(len(REACH)), list(REACH))
        axis.set_title({"common": "margin at X > 0, nats", "rare": "margin at X < 0, nats"}[side], fontsize=8)
    figure.savefig(to, dpi=110)
