"""The section on cartpole of ``docs/results.md``; no number in it that is not computed here from the runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from signflip.errors import ArgumentError
from signflip.organisms.experiments import MADE, PATH, Answer, Said, told
from signflip.organisms.experiments.cartpole.measuring import OPPOSITE
from signflip.organisms.experiments.cartpole.picture import draw
from signflip.organisms.experiments.cartpole.training import NOISE
from signflip.organisms.experiments.statistics import Interval, command, correlated, exact, pearson, shown, table
from signflip.organisms.experiments.statistics import mark as marked
from signflip.organisms.scoring import Share

COLLAPSED = 50.0
# The x of the table, those of them that were run.
SHOWN = (100.0, 30.0, 10.0, 3.0, 1.0, 0.0, -1.0, -3.0, -10.0, -30.0, -100.0)
# Of the known result; the farther two were added when the nearer had been seen.
KNOWN, ADDED = (10.0, -10.0), (100.0, -100.0)
VERDICTS = ("good", "incompetent", "opposite", "between")
MULTIPLIED = ("multiplicative", "swiglu", "swiglu-bias")
# A correlation is high beyond this.
HIGH = 0.5

Run = Mapping[str, Any]
Arms = Mapping[str, Sequence[Run]]


def report(results: Mapping[str, Run], figures: Path) -> str:
    """The section, in Markdown; its picture is written to `figures`.

    Parameters
    ----------
    results
        What `run` gave, by job.
    figures
        A folder; linked as from a file beside it.

    Raises
    ------
    ArgumentError
        If there is no run.
    """
    arms, learned = _by_arm(results)
    picture = figures / "cartpole.png"
    draw(learned, picture)
    parts = [
        "## C1: cartpole with an input that was always positive",
        told(_answer(learned)),
        _ran(arms, learned),
        f"![Agreement with the good policy and return, by x]({figures.name}/{picture.name})",
        _summary(arms, learned),
        _points(learned),
        _law(learned),
        _predictions(learned),
        _caveats(learned),
    ]
    return "\n\n".join(parts) + "\n"


def answer(results: Mapping[str, Run]) -> Answer:
    """What the runs say of the question, in a few sentences."""
    return _answer(_by_arm(results)[1])


def _by_arm(results: Mapping[str, Run]) -> tuple[dict[str, list[Run]], dict[str, list[Run]]]:
    """All runs by arm, and those that learned."""
    if not results:
        raise ArgumentError("cartpole: expected at least one run to report on, found none")
    arms: dict[str, list[Run]] = {}
    for run in results.values():
        arms.setdefault(run["arm"], []).append(run)
    # A run without both actions has no good policy to compare with, hence no readings.
    return arms, {arm: [r for r in runs if r["learned"] and r["states"]] for arm, runs in arms.items()}


# ---- counting --------------------------------------------------------------------------------------------------------


def at(run: Run, x: float) -> Run:
    """A run's point."""
    point: Run = next(point for point in run["points"] if point["x"] == x)
    return point


def share(runs: Sequence[Run], is_so: Callable[[Run], bool]) -> Share:
    """How many runs are so."""
    return Share.counted(sum(map(is_so, runs)), len(runs))


def opposite_at(x: float) -> Callable[[Run], bool]:
    """Whether a run is opposite at x."""
    return lambda run: bool(at(run, x)["verdict"] == "opposite")


def ever_opposite(run: Run) -> bool:
    """Whether a run is opposite at any x of the grid."""
    return any(point["verdict"] == "opposite" for point in run["points"])


def always_good(run: Run) -> bool:
    """Whether a run of the control is good at every x that it was trained on."""
    return all(point["verdict"] == "good" for point in run["points"] if NOISE[0] <= point["x"] <= NOISE[1])


def lost_at(x: float) -> Callable[[Run], bool]:
    """Whether a run is incompetent at x, and its return collapsed."""
    return lambda run: bool(at(run, x)["verdict"] == "incompetent" and at(run, x)["return"] < COLLAPSED)


def mark(found: Share, most: bool) -> str:
    """Held, failed or open: what a share says of a prediction about most runs, or about few."""
    if not found.of or found.low <= 0.5 <= found.high:
        return "open"
    return "held" if (found.low > 0.5) == most else "failed"


# ---- parts -----------------------------------------------------------------------------------------------------------


def _answer(learned: Arms) -> Answer:
    found = {
        arm: (share(runs, opposite_at(-1.0)), share(runs, ever_opposite))
        for arm, runs in learned.items()
        if runs and not arm.endswith("-noise")
    }
    plain = (
        "Of the agents that learned at x > 0 alone, so many do the opposite at x = −1, the mirror image of the centre "
        f"of what they saw: {'; '.join(f'{arm} {one}' for arm, (one, _) in found.items())}. At some x: "
        f"{'; '.join(f'{arm} {ever}' for arm, (_, ever) in found.items())}."
    )
    grid = sorted({point["x"] for runs in learned.values() for run in runs for point in run["points"]})
    near = (
        f"At some x: at any of the {len(grid)} x of the grid, {sum(x < 0 for x in grid)} of them negative, without a "
        "correction for looking at so many."
    )
    every = _trained_on_one_side(learned)
    each = {arm: _agreement([run for run in every if run["arm"] == arm]) for arm in found}
    within = {arm: one for arm, one in each.items() if np.isfinite(one[0])}
    path = (
        "The tangent kernel between x = 1 and x = −1 before any training correlates with what the policy does at −1: "
        f"{shown(_agreement(every))}, all networks pooled"
    )
    # Beyond 0 on either side, in any of them.
    differ = [arm for arm, one in within.items() if one[1] > 0 or one[2] < 0]
    if len(found) > 1:
        path += (
            f"; within a network it differs from 0 in {', '.join(differ) or 'none'}, of {len(within)} where it is "
            f"defined{'' if differ else ', so that it may be no more than a difference between networks'}"
        )
    shown_within = "; ".join(f"{arm} {shown(one)}" for arm, one in within.items())
    undefined = [arm for arm in found if arm not in within]
    more = f"Within each network: {shown_within or 'nowhere defined'}."
    if undefined and within:
        more += f" Not defined, as one of the two does not vary: {', '.join(undefined)}."
    return {MADE: Said(plain, near), PATH: Said(f"{path}.", more)}


def _ran(arms: Arms, learned: Arms) -> str:
    seeds = sorted({run["seed"] for runs in arms.values() for run in runs})
    every = [run for runs in arms.values() for run in runs]
    steps = sorted({run["steps"] for run in every})
    failed = [f"{run['arm']} seed {run['seed']} ({run['return']:.0f})" for run in every if not run["learned"]]
    some = {arm: sorted(run["seed"] for run in runs) for arm, runs in arms.items()}
    partly = [f" Of {arm} only seeds {_listed(of)} were run." for arm, of in some.items() if of != seeds]
    chance = np.mean([run["chance_return"] for run in every])
    return (
        f"Run by `{command('cartpole', every)}`: {len(every)} runs, seeds {_listed(seeds)}, "
        f"PPO for {' or '.join(f'{n:,}' for n in steps)} steps, {every[0]['episodes']} episodes at each x. "
        f"{sum(map(len, learned.values()))} of {len(every)} learned (return of at least 475 at x = 1); not learned: "
        f"{', '.join(failed) or 'none'}. A coin's return is {chance:.0f}.{''.join(partly)} Rules and margins: "
        "`signflip.organisms.experiments.cartpole`."
    )


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _summary(arms: Arms, learned: Arms) -> str:
    heads = [
        "network",
        "learned",
        "opposite at −1",
        "mostly reversed at −1",
        "opposite at some x",
        "incompetent at +10",
        "incompetent at −10",
    ]
    heads += ["no longer good below 1, at", "no longer good above 1, at"]
    rows = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for arm, runs in learned.items():
        cells = [
            share(runs, opposite_at(-1.0)),
            share(runs, lambda run: bool(at(run, -1.0)["high"] < OPPOSITE)),
            share(runs, ever_opposite),
            share(runs, lambda run: bool(at(run, 10.0)["verdict"] == "incompetent")),
            share(runs, lambda run: bool(at(run, -10.0)["verdict"] == "incompetent")),
        ]
        ways = [_leaving([run["leaves"][way] for run in runs]) for way in ("below", "above")]
        rows.append(f"| {arm} | {len(runs)} of {len(arms[arm])} | " + " | ".join([*map(str, cells), *ways]) + " |")
    return (
        "Shares of the runs that learned, with exact 95% intervals; the x at which a policy is first no longer good, "
        "median and range over seeds. Mostly reversed: the upper limit of agreement is below 0.4, however little "
        "is left of the information; it decides nothing and was added when the first runs had been seen.\n\n"
        + "\n".join(rows)
    )


def _leaving(found: Sequence[float | None]) -> str:
    values = [x for x in found if x is not None]
    stay = f"; {len(found) - len(values)} stay good" if len(values) < len(found) else ""
    if not values:
        return f"never ({len(found)} stay good)" if found else "none to count"
    return f"{np.median(values):.1f} [{min(values):.1f}, {max(values):.1f}]{stay}"


def _points(learned: Arms) -> str:
    rows = [
        "| network | x | agreement | information, bits | return | good | incompetent | opposite | between |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for arm, runs in learned.items():
        for x in (x for x in SHOWN if runs and any(point["x"] == x for point in runs[0]["points"])):
            points = [at(run, x) for run in runs]
            counts = [str(sum(point["verdict"] == verdict for point in points)) for verdict in VERDICTS]
            middle = [
                _middle([point["agreement"] for point in points], 2),
                _middle([point["information"] for point in points], 2),
                _middle([point["return"] for point in points], 0),
            ]
            rows.append(f"| {arm} | {_signed(x)} | " + " | ".join([*middle, *counts]) + " |")
    return "Median and range over seeds, and how many seeds have each verdict:\n\n" + "\n".join(rows)


def _trained_on_one_side(learned: Arms) -> list[dict[str, Any]]:
    return [dict(run) for arm, runs in learned.items() if not arm.endswith("-noise") for run in runs]


def _there(run: Run) -> float:
    """S at x = −1: 1 the same action, 0 chance, −1 reversed."""
    return 2 * float(at(run, -1.0)["agreement"]) - 1


def _agreement(runs: Sequence[dict[str, Any]]) -> Interval:
    """Correlation of K's cosine before training with what the policy does at x = −1 after it."""
    return correlated(runs, lambda some: pearson([r["kernel"]["cosine"] for r in some], [_there(r) for r in some]))


def _law(learned: Arms) -> str:
    every = _trained_on_one_side(learned)
    rows = []
    for arm in ("all", *dict.fromkeys(run["arm"] for run in every)):
        own = [run for run in every if arm in ("all", run["arm"])]
        if not own:
            continue
        same = sum(run["kernel"]["cosine"] * _there(run) > 0 for run in own)
        moved = [np.mean([run["margins"][when][side] for run in own]) for side in (0, 1) for when in (0, 1)]
        rows.append((
            arm, len(own), _middle([run["kernel"]["cosine"] for run in own], 2),
            shown(exact(sum(run["kernel"]["ratio"] < 0 for run in own), len(own))),
            f"{np.mean([run['kernel']['negative_mass'] for run in own]):.2f}",
            f"{moved[0]:.2f} → {moved[1]:.2f}", f"{moved[2]:.2f} → {moved[3]:.2f}",
            shown(_agreement(own)), shown(exact(same, len(own))),
        ))  # fmt: skip
    head = ("network", "runs", "cosine of K before training: median [range]", "share K < 0",
            "negative part of its hidden units", "margin at x = 1, logits", "at x = −1",
            "K's cosine against S at −1: Pearson", "same sign")  # fmt: skip
    return (
        "The causal path: K is the tangent kernel between the good action's margin at x = 1 and at x = −1, in the "
        "untrained network, on the same states; S = 2·agreement − 1. Intervals are over seeds (jackknife, Student's "
        "t), of shares exact.\n\n" + table(head, rows)
    )


def _middle(values: Sequence[float], digits: int) -> str:
    return f"{np.median(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def _signed(x: float) -> str:
    return f"{x:+g}".replace("-", "−") if x else "0"


def _predictions(learned: Arms) -> str:
    rows = ["| side | prediction, of most runs or few | share of runs | |", "| --- | --- | --- | --- |"]

    def add(side: str, said: str, arm: str, is_so: Callable[[Run], bool], most: bool) -> None:
        if learned.get(arm):
            found = share(learned[arm], is_so)
            rows.append(f"| {side} | {said} ({'most' if most else 'few'}) | {found} | {mark(found, most)} |")

    for x in (*KNOWN, *(x for x in ADDED if _was_run(learned, x))):
        said = f"additive: incompetent at x = {_signed(x)}, return below {COLLAPSED:.0f}"
        add("known result", said + " (added)" * (x in ADDED), "additive", lost_at(x), True)
    for arm in MULTIPLIED:
        add("conjecture", f"{arm}: opposite at x = −1", arm, opposite_at(-1.0), True)
    for arm in MULTIPLIED:
        said = f"{arm}: before training, at x = −1, already opposite to what it will learn"
        add("conjecture", said, arm, lambda run: bool(run["untrained"]["verdict"] == "opposite"), False)
    for arm in ("additive", *MULTIPLIED):
        add("objection", f"{arm}: opposite at any x", arm, ever_opposite, False)
    for arm in MULTIPLIED:
        add("objection", f"{arm}: incompetent at x = −10, return below {COLLAPSED:.0f}", arm, lost_at(-10.0), True)
    for arm in ("additive", *MULTIPLIED):
        said = f"{arm}: K ≥ 0 between x = 1 and x = −1 before training (added)"
        add("objection", said, arm, lambda run: bool(run["kernel"]["ratio"] >= 0), True)
    every = _trained_on_one_side(learned)
    if every:
        found = _agreement(every)
        said = f"K before training correlates with S at x = −1, all networks pooled (above {HIGH})"
        rows.append(f"| conjecture | {said} | {shown(found)} | {marked(found, _is_high, lambda x: x < HIGH)} |")
    add("control", "additive-noise: good at every x of its training", "additive-noise", always_good, True)
    head = "Predictions, fixed before the runs but where it says *added*: that was when others had been seen.\n\n"
    return head + "\n".join(rows)


def _is_high(x: float) -> bool:
    return x > HIGH


def _was_run(learned: Arms, x: float) -> bool:
    return any(point["x"] == x for runs in learned.values() for run in runs for point in run["points"])


def _caveats(learned: Arms) -> str:
    every = [run for runs in learned.values() for run in runs]
    wanted = {"same": "good", "reversed": "opposite", "constant": "incompetent", "coin": "incompetent"}
    right = {
        name: sum(run["made"][name]["verdict"] == verdict for run in every) for name, verdict in wanted.items() if every
    }
    told = "; ".join(f"{name} → {wanted[name]} in {hits} of {len(every)}" for name, hits in right.items())
    return (
        f"The measurement on policies made by hand: {told or 'no run learned'}. The multiplicative network's logits "
        "are odd in x by construction: that it is opposite at −x wherever it is good at x is algebra, whatever the "
        "training, as long as it learns at all. The additive and SwiGLU networks are not so bound. "
        "With two actions and balanced states information vanishes exactly where agreement is 0.5."
    )


__all__ = ["at", "ever_opposite", "mark", "report", "share"]
