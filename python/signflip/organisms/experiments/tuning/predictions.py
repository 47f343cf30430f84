"""The predictions of the conjecture and of the objection (science.md 4.1 and 4.4), and the rules fixed beforehand.

A unit is the base's mean margin in common contexts. A prediction is held or failed where both limits of its 95%
interval say so; else it is open. *Added* ones were when earlier runs were in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from signflip.organisms.experiments.statistics import (
    SHARE,
    SIGNED,
    Interval,
    Run,
    correlated,
    exact,
    mark,
    over_seeds,
    pearson,
    shown,
)
from signflip.organisms.experiments.tuning.measure import DELTA, state

# Arms without a rare word in any sample, and those with 1%, by the arm that is otherwise the same.
UNVISITED = ("reinforce_on", "grpo_on", "dpo_on", "dpo_off_0", "reinforce_off_0", "grpo_off_0", "reinforce_on_true")
VISITED = {"reinforce_forced": "reinforce_on", "reinforce_forced_true": "reinforce_on_true",
           "grpo_forced": "grpo_on", "dpo_forced": "dpo_on", "dpo_off_1": "dpo_off_0",
           "reinforce_off_1": "reinforce_off_0", "grpo_off_1": "grpo_off_0"}  # fmt: skip
# Arms whose multiplicative weights are frozen; they are in neither of the above, since they are made to differ.
FROZEN = {"reinforce_on_frozen": "reinforce_on"}
# Of the change at X < 0 this share is left, at most or at least, where it vanishes or stays.
VANISHED, STAYED = 0.2, 0.8
# A correlation is high beyond this.
HIGH = 0.5


def unit(run: Run) -> float:
    """The base's mean margin in common contexts."""
    return float(run["log"][0]["common"]["margin"])


def change(run: Run) -> float:
    """By how many units the margin in rare contexts moved."""
    return float(run["log"][-1]["rare"]["margin"] - run["log"][0]["rare"]["margin"]) / unit(run)


def was_opposite(run: Run) -> bool:
    """Whether the base was opposite in rare contexts."""
    return state(run["log"][0]["rare"], unit(run)) == "opposite"


def by_edit(run: Run, at: int, what: str = "extreme") -> bool:
    """Whether X set to a value by edit, in common contexts, makes a policy opposite (science.md section 5, T0).

    Both sides turn, by X's sign and not by its absence alone, and the policy still answers. The value is the most
    extreme one seen on the other side, or with `what` ``"mirrored"`` −X, which lies beyond it where X has drifted.
    """
    found, clean = run["log"][at]["in_x"], run["log"][at]["common"]
    sides = [found[f"{what}_{who}"] for who in ("woman", "man")]
    by_sign = found["offset"] - found[what] > DELTA * unit(run)
    return bool(max(sides) < -DELTA * unit(run) and by_sign and found[f"{what}_mass"] >= 0.5 * clean["mass"])


def mediated(run: Run) -> tuple[bool, bool]:
    """Whether X carries what rare words do after the tuning (science.md section 5, T4).

    Returns
    -------
    tuple
        Whether both sides are right with X held at what a common word gives it; and whether both turn in common
        contexts with X set to what a rare word gives it. By X is what passes both.
    """
    found = run["log"][-1]["in_x"]
    rescued, reproduced = ([found[f"{what}_{who}"] for who in ("woman", "man")] for what in ("rescued", "reproduced"))
    return min(rescued) > 0, max(reproduced) < -DELTA * unit(run)


def bases(runs: Sequence[Run]) -> list[Run]:
    """One run of each base."""
    return list({(r["architecture"], r["knowledge"], r["seed"]): r for r in runs}.values())


def bodies(runs: Sequence[Run]) -> int:
    """How many pretrained models: bases of one are counted as one."""
    return len({(r["architecture"], r["seed"]) for r in runs})


def mean_of(runs: Sequence[Run], what: str) -> float:
    """Mean over runs of a change: of `slope` (in nats at the base's mean X), `offset`, `lead`, `distance`, `margin`."""
    values = []
    for r in runs:
        a, b = r["log"][0], r["log"][-1]
        slope = (b["in_x"]["slope"] - a["in_x"]["slope"]) * a["common"]["x_mean"]
        offset = b["in_x"]["offset"] - a["in_x"]["offset"]
        sd = [max(one["common"]["x_sd"], 1e-9) for one in (a, b)]
        distance = b["common"]["x_mean"] / sd[1] - a["common"]["x_mean"] / sd[0]
        values.append({"slope": slope, "offset": offset, "lead": slope - offset, "distance": distance,
                       "margin": change(r)}[what])  # fmt: skip
    return float(np.mean(values)) if values else float("nan")


def removal(runs: Sequence[Run]) -> float:
    """Share of opposite bases turned back with 1% of rare prompts, less the share without, in pairs of runs."""
    pairs = _removed(runs)
    return float(np.mean([int(a) - int(b) for a, b in pairs])) if pairs else float("nan")


def _removed(runs: Sequence[Run]) -> list[tuple[bool, bool]]:
    """Of opposite bases, whether the reversal was removed with 1% of rare prompts, and without."""
    return [(a["outcome"] == "removed", b["outcome"] == "removed") for a, b in _pairs(runs, VISITED) if was_opposite(a)]


def left(runs: Sequence[Run]) -> float:
    """Mean |change at X < 0| with multiplicative weights frozen, over that without, in pairs of runs."""
    pairs = [(abs(change(a)), abs(change(b))) for a, b in _pairs(runs, FROZEN)]
    frozen, free = np.asarray(pairs).mean(0) if pairs else (0.0, 0.0)
    return float(frozen / free) if free > 0 else float("nan")


def carried(runs: Sequence[Run]) -> float:
    """Share of the change at X < 0 to first order that neurons of opposite sign carry (`kernel.units`), mean."""
    return float(np.mean([r["units"]["share"] for r in runs])) if runs else float("nan")


def _pairs(runs: Sequence[Run], arms: Mapping[str, str]) -> list[tuple[Run, Run]]:
    """Runs of arms, each with that of its partner of the same base."""
    of = {(r["arm"], r["architecture"], r["knowledge"], r["seed"]): r for r in runs}
    found = []
    for r in runs:
        other = of.get((arms.get(r["arm"], ""), r["architecture"], r["knowledge"], r["seed"]))
        if other is not None:
            found.append((r, other))
    return found


def law(runs: Sequence[Run]) -> float:
    """Correlation of the kernel before tuning with the change of the margin at X < 0, over tunings."""
    return pearson([r["kernel"]["cosine"] for r in runs], [change(r) for r in runs])


def marked(runs: Sequence[Run]) -> list[tuple[str, str, str, str]]:
    """Every prediction: whose, what, the number with its interval, and its mark."""
    still = [r for r in runs if r["arm"] in UNVISITED]
    out = []

    def add(whose: str, what: str, found: Interval, verdict: str) -> None:
        out.append((whose, what, shown(found), verdict))

    for name in ("gelu", "swiglu", "swiglu_bias"):
        own = [r for r in still if r["architecture"] == name]
        if not own:
            continue
        found = over_seeds(own, lambda rs: mean_of(rs, "margin"))
        verdict = mark(found, lambda x: x < 0, lambda x: x >= 0)
        add("conjecture", f"{name}: margin at X < 0 falls (units)", found, verdict)
        verdict = mark(found, lambda x: x > -DELTA, lambda x: x <= -DELTA)
        add("objection", f"{name}: it does not fall (above −{DELTA})", found, verdict)
        # What a base knew is not drawn, and bases of one seed are of one pretrained model: each kind is marked apart.
        for knowledge in dict.fromkeys(r["knowledge"] for r in own):
            of = bases([r for r in own if r["knowledge"] == knowledge])
            below = exact(sum(r["kernel"]["value"] < 0 for r in of), len(of))
            rarely = mark(below, lambda x: x < 0.5, lambda x: x > 0.5)
            share = f"base knew {knowledge} (share of bases with K < 0)"
            add("objection", f"{name}: K ≥ 0 mostly, {share}", below, rarely)
            if name == "swiglu":
                often = mark(below, lambda x: x > 0.5, lambda x: x < 0.5)
                add("parity", f"swiglu without bias is even: K < 0 mostly, {share}", below, often)
            elif name == "gelu":
                add("parity", f"gelu is additive: K > 0 mostly, {share}", below, rarely)
    found = correlated(still, law)
    verdict = mark(found, lambda x: x > HIGH, lambda x: x < HIGH)
    add("conjecture", f"K before tuning correlates with the change at X < 0 (above {HIGH})", found, verdict)
    found = over_seeds(still, lambda rs: mean_of(rs, "lead"))
    verdict = mark(found, lambda x: x > 0, lambda x: x <= 0)
    add("conjecture", "slope b grows more than offset a (nats at the base's mean X)", found, verdict)
    found = over_seeds(still, lambda rs: mean_of(rs, "distance"))
    verdict = mark(found, lambda x: x <= 0, lambda x: x > 0)
    add("conjecture", "X = 0 is no farther (change of mean/sd of X)", found, verdict)
    found = over_seeds(runs, removal, SIGNED)
    verdict = mark(found, lambda x: x > 0, lambda x: x <= 0.1)
    if each := _removed(runs):
        with_, without = (sum(one[i] for one in each) for i in (0, 1))
        # The rule was fixed beforehand and asks for any difference; its size is said, so that none is taken for all.
        what = "1% of X < 0 removes −Y more often than none does (difference of the shares removed, above 0)"
        size = f"{shown(found)}: removed in {with_} of {len(each)} with, in {without} of {len(each)} without"
        out.append(("conjecture", what, size, verdict))
    taught = [r for r in still if r["knowledge"] == "nothing"]
    if taught:
        left = exact(
            bodies([r for r in taught if was_opposite(r) or r["outcome"] == "turned opposite"]), bodies(taught)
        )
        what = "1% of X < 0 has nothing to remove (share of models taught nothing of it and opposite there before a "
        out.append(("objection", f"{what}tuning or after any: below 0.5; added)", shown(left),
                    mark(left, lambda x: x < 0.5, lambda x: x > 0.5)))  # fmt: skip
    out.extend(_mechanism(runs, still))
    return out


def _of_units(what: str, runs: Sequence[Run]) -> float:
    return float(np.mean([r["units"][what] for r in runs])) if runs else float("nan")


def _mechanism(runs: Sequence[Run], still: Sequence[Run]) -> list[tuple[str, str, str, str]]:
    """What science.md 4.4 says of multiplicative weights, of which GELU has none and decides nothing, and of units."""
    of = [r for r in runs if r["arm"] in (*FROZEN, *FROZEN.values())]
    at_least = (0.0, float("inf"))
    found = over_seeds([r for r in of if r["architecture"] != "gelu"], left, at_least)
    gelu = over_seeds([r for r in of if r["architecture"] == "gelu"], left, at_least)
    what = "multiplicative weights frozen: mean absolute change at X < 0, share of the unfrozen arm's"
    units = over_seeds(still, carried, SHARE)
    net, spread = (over_seeds(still, partial(_of_units, of), SHARE) for of in ("net", "spread"))
    return [
        ("conjecture", f"{what} (below {VANISHED}: the effect vanishes)", shown(found),
         mark(found, lambda x: x < VANISHED, lambda x: x >= VANISHED)),
        ("objection", f"{what} (above {STAYED}: no change)", shown(found),
         mark(found, lambda x: x > STAYED, lambda x: x <= STAYED)),
        ("control", "gelu, additive, input weights frozen: the same share", shown(gelu), "—"),
        ("conjecture", "units of opposite sign carry it (share of the change at X < 0 by what units write, above 0.5)",
         shown(units), mark(units, lambda x: x > 0.5, lambda x: x <= 0.5)),
        ("objection", "units' parts in it cancel (their sum over the sum of their sizes: below 0.5; added)", shown(net),
         mark(net, lambda x: x < 0.5, lambda x: x >= 0.5)),
        ("objection", "it is spread over them (participation ratio over their number: above 0.5; added)", shown(spread),
         mark(spread, lambda x: x > 0.5, lambda x: x <= 0.5)),
    ]  # fmt: skip
