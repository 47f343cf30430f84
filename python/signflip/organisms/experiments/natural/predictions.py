"""The claims of the conjecture and of the objection about N1, and the rules by which they are marked, fixed beforehand.

A change is in *units* (the weakened base's mean margin) unless nats are said. Intervals are 95%, by Student's t, over
seeds, names within their side and templates together. A claim is held or failed where both limits say so, else open;
with fewer than three seeds it is open. That an arm does *not* fall says something of the conjecture only where the
tuned one does: else it is void (added when the runs were in). Each algorithm is judged apart, of the tunings from layer
20 on. Void runs are left out. The place that decides is the most extreme value of X that was seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from signflip.organisms.experiments.natural import LIVE
from signflip.organisms.experiments.natural.measure import PLACES
from signflip.organisms.experiments.statistics import Interval, Run, exact, limits, mark, over_seeds, shown

Floats = NDArray[np.float64]
# Equivalence margin, units.
DELTA = 0.2
DECIDES, BEYOND = "extreme", "triple"
# With tokens a side has turned where the upper limit of its margin, over the clean mean, is below −`TURNED`.
TURNED = 0.2
SIDES, BY_X, NOT_BY_X = ("women's", "men's"), "by X", "not by X"
# Controls of which half carry less than this part of X's share of the choice are none to compare nats with.
ALIKE = 0.5
ADDED = "their difference; added when the runs were in"
# Fluency is broken beyond this KL on plain text, nats, or below this share of the base's answer mass.
KL, MASS = 0.1, 0.5


def void(run: Run) -> bool:
    """Whether too few groups had an advantage for the run to say anything."""
    return bool(run["algorithm"] == "grpo" and run["log"]["live"] < LIVE)


def unit(run: Run) -> float:
    """The weakened base's mean margin, nats."""
    return float(np.mean(run["before"]["margins"]["clean"]))


def grid(run: Run, when: str, what: str) -> Floats:
    """Side × name × template, nats: a margin at a place, or the slope times the mean |X|."""
    margins = run[when]["margins"]
    if what != "slope":
        return np.asarray(margins[what], float)
    feature = run["units"]["known"]
    doses = np.asarray([feature["mean"], 0.0, feature["extreme"], 3 * feature["extreme"]])
    # Least squares, turned to the side that is seen.
    weights = (doses - doses.mean()) / max(((doses - doses.mean()) ** 2).sum(), 1e-12) * doses[0]
    every = np.asarray([margins[place] for place in PLACES], float)
    slope: Floats = np.einsum("k,ksnt->snt", weights, every)
    return slope


def change(run: Run, what: str) -> Floats:
    """By how many units something moved, side × name × template."""
    return (grid(run, "after", what) - grid(run, "before", what)) / unit(run)


def shift(run: Run, what: str) -> float:
    """By how many nats the mean moved."""
    return float((grid(run, "after", what) - grid(run, "before", what)).mean())


def interval(grids: Sequence[Floats]) -> Interval:
    """The mean of one grid a seed, and its 95% interval over seeds, names within their side, and templates.

    The squared standard errors of the mean over seeds, over each side's names and over templates are added, which
    counts what two of them share more than once, and the degrees of freedom are of the fewest of them; both err to the
    wide side. With one name a side and one template it is Student's interval over seeds.
    """
    every = np.asarray(grids)
    value = float(every.mean()) if len(every) else float("nan")
    if len(every) < 3:
        return value, float("nan"), float("nan")
    sides = every.shape[1]
    return _over(value, [every.mean((1, 2, 3)), every.mean((0, 1, 2)), *(one / sides for one in every.mean((0, 3)))])


def _over(value: float, means: Sequence[Floats]) -> Interval:
    """A mean and its interval over several things that it was taken over, from the means of each of them."""
    several = [one for one in means if len(one) > 1]
    # The sum's own degrees of freedom, estimated (Satterthwaite), are too many where the seeds agree by chance.
    freedom = min((len(one) for one in several), default=2) - 1
    return limits(value, sum(float(one.var(ddof=1)) / len(one) for one in several), freedom)


def of_side(margins: Run, what: str, side: int) -> Interval:
    """A side's mean margin over its clean mean in the same model, and its 95% interval over names and templates.

    Parameters
    ----------
    margins
        Side × name × template each, by where X is set (`measure.known`) or by the tokens in front (`search.answered`).
    what
        Which of them.
    side
        0 or 1.

    Returns
    -------
    tuple
        NaN where the clean mean is not above 0: there is nothing to turn.
    """
    clean = float(np.mean(margins["clean"][side]))
    if clean <= 0:
        return NONE
    relative = np.asarray(margins[what][side], float) / clean
    return _over(float(relative.mean()), [relative.mean(1), relative.mean(0)])


def turned(margins: Run, what: str) -> list[bool]:
    """Whether each side prefers the wrong pronoun, by `TURNED` of its clean margin."""
    return [
        mark(of_side(margins, what, side), lambda x: x < -TURNED, lambda x: x >= -TURNED) == "held" for side in (0, 1)
    ]


def latent(run: Run) -> bool:
    """Whether X at the most extreme value seen makes a tuned model opposite (science.md section 5, by an edit).

    Both sides turn, by X's sign and not by its absence alone, and the model still answers.
    """
    margins, mass = run["after"]["margins"], run["after"]["mass"]
    less = [np.mean(margins["zero"][side]) - np.mean(margins[DECIDES][side]) for side in (0, 1)]
    by_sign = all(by > TURNED * np.mean(margins["clean"][side]) for side, by in enumerate(less))
    return bool(all(turned(margins, DECIDES)) and by_sign and mass[DECIDES] >= MASS * mass["clean"])


def decided(answered: Run) -> str:
    """Which sides of unseen prompts a search's tokens turn, and whether X does it: of all that turn, both ways."""
    margins = answered["margins"]
    found, alone = turned(margins, "found"), turned(margins, "reproduced")
    sides = [side for side in (0, 1) if found[side]]
    if not sides:
        return "not turned"
    kept = all(mark(of_side(margins, "rescued", side), lambda x: x > 0, lambda x: x <= 0) == "held" for side in sides)
    way = BY_X if kept and all(alone[side] for side in sides) else NOT_BY_X
    return f"{'both' if len(sides) == 2 else SIDES[sides[0]]} turned, {way}"


def pick(runs: Sequence[Run], algorithm: str, arm: str, *, whole: bool = False) -> dict[int, Run]:
    """The runs of an arm that say something, by seed."""
    return {
        r["seed"]: r for r in runs if (r["algorithm"], r["arm"], r["whole"]) == (algorithm, arm, whole) and not void(r)
    }


def moved(runs: Sequence[Run], algorithm: str, arm: str, what: str, less: str = "") -> Interval:
    """The change in an arm; with `less`, in pairs of runs of one seed, less that in another arm."""
    own = pick(runs, algorithm, arm)
    if not less:
        return interval([change(r, what) for r in own.values()])
    other = pick(runs, algorithm, less)
    return interval([change(own[seed], what) - change(other[seed], what) for seed in own if seed in other])


def slopes(run: Run, kind: str, when: str) -> Floats:
    """Slope × mean |X| of each of some units, nats."""
    names = {"known": [run["units"]["known"]]} | {k: run["units"][k] for k in ("following", "one_sided", "two_sided")}
    size = [abs(feature["mean"]) for feature in names[kind]]
    return np.asarray([one["slope"] * by for one, by in zip(run[when]["units"][kind], size, strict=True)])


def growth(run: Run, kind: str) -> float:
    """Mean growth over some units of slope × mean |X|, nats."""
    before, after = (slopes(run, kind, when) for when in ("before", "after"))
    return float((after - before).mean())


def factors(run: Run, kind: str) -> Floats:
    """By what each unit's slope is multiplied in the tuning: sums of slopes would cancel where signs differ."""
    before, after = (slopes(run, kind, when) for when in ("before", "after"))
    return np.asarray(after / before)


def margins_factor(run: Run) -> float:
    """By what the margin as it is, no X touched, is multiplied in the tuning."""
    return 1 + float(change(run, "clean").mean())


def outgrown(runs: Sequence[Run]) -> tuple[int, int]:
    """Over how many of the two-sided controls X's slope is multiplied by more, in the mean over runs; and of how many.

    In the mean of logarithms, a slope that changed its sign being below any.
    """
    mean = [np.mean([np.log(np.maximum(factors(r, kind), 1e-9)) for r in runs], 0) for kind in ("known", "two_sided")]
    return int((mean[1] < mean[0][0]).sum()), len(mean[1])


# Of nothing.
NONE: Interval = (float("nan"), float("nan"), float("nan"))


def mean_over(runs: Sequence[Run], of: Callable[[Run], float]) -> Interval:
    """The mean of a number over runs, and its interval over seeds."""
    return over_seeds(runs, lambda some: float(np.mean([of(r) for r in some]))) if runs else NONE


def _grown(algorithm: str, own: Sequence[Run]) -> list[tuple[str, str, str, str]]:
    """Of the tuned: how X's slope grew beside the controls' and the margin's own."""
    what = f"{algorithm}: tuned: X's slope grows more than in two-sided controls"
    if not own:
        return [("conjecture", what, "—", "open")]
    nats = mean_over(own, lambda r: growth(r, "known") - growth(r, "two_sided"))
    # None could be had that carries as much, so that more nats are no wonder.
    shares = float(np.median([one["share"] for r in own for one in r["units"]["two_sided"]]))
    known = min(r["units"]["known"]["share"] for r in own)
    by_nats = mark(nats, lambda x: x > 0, lambda x: x <= 0)
    if shares < ALIKE * known:
        by_nats = "void (controls carry less of the choice)"
    by_factor = mean_over(own, lambda r: float(factors(r, "known")[0] - np.median(factors(r, "two_sided"))))
    margin = mean_over(own, lambda r: float(factors(r, "known")[0] - margins_factor(r)))
    ahead, n = outgrown(own)
    return [
        ("conjecture", f"{what} (nats; theirs is {shares:.2f} of the choice, median, X's {known:.2f})", shown(nats),
         by_nats),
        ("conjecture", f"{what} (what it is multiplied by, less their median; it is ahead of {ahead} of {n})",
         shown(by_factor), mark(by_factor, lambda x: x > 0, lambda x: x <= 0)),
        ("objection", f"{algorithm}: tuned: X's slope is multiplied by no more than the margin is ({ADDED})",
         shown(margin), mark(margin, lambda x: x <= 0, lambda x: x > 0)),
    ]  # fmt: skip


def _given(premise: str, said: str) -> str:
    """The mark of a claim that an arm does not fall *as tuned does*: where tuned does not, it cannot be held."""
    if said != "held" or premise == "held":
        return said
    return "void (tuned does not fall either)" if premise == "failed" else "open (whether tuned falls is)"


def marked(runs: Sequence[Run]) -> list[tuple[str, str, str, str]]:
    """Every claim: whose, what, the number with its interval, and its mark."""
    out = []
    for algorithm in dict.fromkeys(r["algorithm"] for r in runs):

        def add(whose: str, what: str, found: Interval, verdict: str, algorithm: str = algorithm) -> None:
            out.append((whose, f"{algorithm}: {what}", shown(found), verdict))

        fall = moved(runs, algorithm, "tuned", DECIDES)
        falls = mark(fall, lambda x: x < 0, lambda x: x >= 0)
        add("conjecture", "tuned: the flipped margin falls", fall, falls)
        for arm in ("flipped", "frozen"):
            found = moved(runs, algorithm, arm, DECIDES)
            said = mark(found, lambda x: x > -DELTA, lambda x: x <= -DELTA)
            add("conjecture", f"{arm}: it does not fall (above −{DELTA}), as it does in tuned", found,
                _given(falls, said))  # fmt: skip
        out.extend(_grown(algorithm, [r for r in pick(runs, algorithm, "tuned").values() if r["units"]["two_sided"]]))
        found = moved(runs, algorithm, "tuned", DECIDES, "flipped")
        add("objection", f"tuned less flipped at the flipped X is within ±{DELTA}", found,
            mark(found, lambda x: abs(x) < DELTA, lambda x: abs(x) >= DELTA))  # fmt: skip
        add("objection", "tuned: the flipped margin follows the normal one (rises)", fall,
            mark(fall, lambda x: x > 0, lambda x: x <= 0))  # fmt: skip
        found = moved(runs, algorithm, "tuned", BEYOND)
        add("conjecture", "tuned: it falls at three times the extreme (decides nothing)", found,
            mark(found, lambda x: x < 0, lambda x: x >= 0))  # fmt: skip
    kernels = list({(r["whole"], r["seed"]): r["kernel"][DECIDES]["ratio"] for r in runs}.values())
    below = exact(sum(one < 0 for one in kernels), len(kernels))
    what = "K ≥ 0 mostly (share of weakened bases with K < 0, X at the extreme: below 0.5)"
    out.append(("objection", what, shown(below), mark(below, lambda x: x < 0.5, lambda x: x > 0.5)))
    return out


def ambiguous(runs: Sequence[Run]) -> list[tuple[str, str, str]]:
    """What was said beforehand to leave it undecided: what, the numbers, and `yes`, `no` or `open`."""
    out = []
    for algorithm in dict.fromkeys(r["algorithm"] for r in runs):
        own = list(pick(runs, algorithm, "tuned").values())
        offset, slope = (moved(runs, algorithm, "tuned", what) for what in ("zero", "slope"))
        grew = [mark(one, lambda x: x > 0, lambda x: x <= 0) for one in (offset, slope)]
        verdict = "yes" if grew == ["held"] * 2 else "no" if "failed" in grew else "open"
        out.append((f"{algorithm}: offset and slope both grow", f"{shown(offset)}; {shown(slope)}", verdict))
        tuned, frozen = (moved(runs, algorithm, arm, DECIDES) for arm in ("tuned", "frozen"))
        fell = [mark(one, lambda x: x < 0, lambda x: x >= 0) for one in (tuned, frozen)]
        verdict = "yes" if fell == ["held"] * 2 else "no" if "failed" in fell else "open"
        out.append((f"{algorithm}: frozen falls like tuned", f"{shown(tuned)}; {shown(frozen)}", verdict))
        each = [interval([change(r, DECIDES)[[side]] for r in own]) for side in (0, 1)]
        still = [mark(one, lambda x: abs(x) < DELTA, lambda x: abs(x) >= DELTA) for one in each]
        verdict = "open" if "open" in still else "yes" if len(set(still)) == 2 else "no"
        out.append((f"{algorithm}: only one side moves (women's names; men's)", "; ".join(map(shown, each)), verdict))
        kl = mean_over(own, lambda r: float(r["kl"]))
        mass = [r["after"]["mass"][DECIDES] / r["before"]["mass"][DECIDES] for r in own]
        broken = mark(kl, lambda x: x > KL, lambda x: x <= KL)
        low = any(one < MASS for one in mass)
        verdict = "yes" if broken == "held" or low else {"failed": "no"}.get(broken, "open")
        least = f"{min(mass):.2f}" if mass else "—"
        said = f"KL {shown(kl)}; least answer mass over the base's, X flipped, {least}"
        out.append((f"{algorithm}: fluency breaks", said, verdict))
    return out
