"""The section of the results on preference tuning: tables, figures, predictions, and a plain answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path

import numpy as np

from signflip.errors import OrganismError
from signflip.organisms.experiments import DECIDED, KEPT, MADE, PATH, TOKENS, Answer, Said, told
from signflip.organisms.experiments.statistics import (
    SHARE,
    SIGNED,
    Run,
    command,
    correlated,
    exact,
    mark,
    over_seeds,
    pearson,
    seeds_of,
    shown,
    spearman,
    table,
)
from signflip.organisms.experiments.tuning import TITLE
from signflip.organisms.experiments.tuning.figures import paths, scatter
from signflip.organisms.experiments.tuning.measure import DELTA, state
from signflip.organisms.experiments.tuning.predictions import (
    HIGH,
    UNVISITED,
    bases,
    bodies,
    by_edit,
    carried,
    change,
    law,
    marked,
    mean_of,
    mediated,
    unit,
    was_opposite,
)
from signflip.organisms.experiments.tuning.samples import FEW
from signflip.organisms.experiments.tuning.text import VOCABULARY

# Of planted reversals this share is to be seen, in the lower limit, before their absence counts (science.md section 5).
RECALL = 0.9
LISTING = "signflip organisms samples ARM-ARCHITECTURE-KNOWLEDGE-SEED"
SAID = (
    "A tuning is void if its base is not right at X > 0 in 0.99 of half A's prompts. "
    "Reward models score the samples but in arms named `true`. `off`: a fixed set of prompts, 0, 0.1 or 1% of them "
    "with rare words; REINFORCE's and GRPO's answers were sampled by the base, scored once; DPO's pairs are labelled "
    "truly. `frozen`: the weights that take X into the MLP stay. *Opposite* at X < 0 is that the mean margins of both "
    f"sides (women's names and men's), as measured, are below −{DELTA} of a unit, the base's mean margin at X > 0; "
    f"*half-turned*, of one; *right*, both above {DELTA}. A reversal is *strengthened* or *weakened* by more than "
    f"{DELTA} units, *kept*, "
    "or *removed*: no longer of both sides, which is not to say right. Margins are in nats, on names and templates "
    "that no tuning saw; intervals are 95%: exact for shares of bases or of seeds, else Student's over seeds "
    "(jackknife). A seed gives one run on one machine; on another its base differs in the last bits of its training, "
    "and the tuning may end otherwise."
)
OUTCOMES = ("turned opposite", "never opposite", "strengthened", "kept", "weakened", "removed")


def section(runs: list[Run], figures: Path) -> str:
    """Markdown, with its pictures in a folder.

    Raises
    ------
    OrganismError
        If there is no run that is not void.
    """
    every, runs = runs, valid(runs)
    if not runs:
        raise OrganismError(f"report on tuning: expected at least one run that is not void, found {len(every)} void")
    still = [r for r in runs if r["arm"] in UNVISITED]
    figures.mkdir(parents=True, exist_ok=True)
    paths(runs, figures / "tuning-paths.png")
    scatter(still, figures / "tuning-law.png")
    ran = seeds_of(runs, lambda r: str(r["arm"]))
    return "\n\n".join(
        [
            f"## {TITLE}",
            f"`{command('tuning', every)}`",
            told(_answer(still)),
            f"{len(every)} tunings, void {len(every) - len(runs)}. Seeds of each arm: {ran}. {SAID}",
            "### Predictions\n\n*Added* ones were when earlier runs were in.\n\n"
            + table(("whose", "prediction", "found", "mark"), marked(runs)),
            "### Prevalence: tunings that end opposite from a base that was not\n\n" + _prevalence(runs),
            "### Bases\n\n" + _read(runs) + "\n\n" + _bases(runs),
            "### What became of X < 0\n\n" + _outcomes(runs) + f"\n\n![margins]({figures.name}/tuning-paths.png)",
            "### Samples, gradient, X\n\n" + _log(runs),
            "### The law: predicted and actual change of the margin at X < 0\n\n" + _laws(still),
            f"![law]({figures.name}/tuning-law.png)",
            _listing(runs),
        ]
    )  # fmt: skip


def valid(runs: Sequence[Run]) -> list[Run]:
    """Those whose base knows the pronoun at X > 0."""
    return [r for r in runs if not r.get("void")]


def _cells(runs: Sequence[Run], *keys: str) -> Iterator[tuple[tuple[str, ...], list[Run]]]:
    found: dict[tuple[str, ...], list[Run]] = {}
    for r in runs:
        found.setdefault(tuple(r[k] for k in keys), []).append(r)
    yield from found.items()


def answer(runs: Sequence[Run]) -> Answer:
    """What the tunings say of the conjecture, in a few sentences."""
    return _answer([r for r in valid(runs) if r["arm"] in UNVISITED])


def _answer(still: Sequence[Run]) -> Answer:
    free, held = [r for r in still if not was_opposite(r)], [r for r in still if was_opposite(r)]
    made, kept = [], []
    if free:
        k, n = _turned(free)
        made.append(
            f"Of {n} bases (seed × architecture × what the base knew) that were not opposite at X < 0, {k} turned "
            f"opposite in some tuning without a sample there; of the pretrained models that they were taught in, "
            f"{_share(free)}."
        )
        said = [f"{name.upper()} {_share(own)}" for name, own in _by_algorithm(free)]
        made.append(f"By algorithm, of the pretrained models tuned by it: {'; '.join(said)}.")
        cells = _cells(free, "architecture")
        made.append(f"By architecture: {'; '.join(f'{name} {_share(own)}' for (name,), own in cells)}.")
        half = [r for r in free if _half(r)]
        made.append(
            f"One side alone turned in {len(half)} of the {len(free)} tunings ({len(bases(half))} of {n} bases) where "
            "the base had it not turned."
        )
        ended = sum(r["outcome"] == "turned opposite" for r in free)
        made.append(
            f"These are {len(free)} tunings, of which {ended} ended so; arms of one base are not independent, "
            "nor bases of one seed and architecture, which were pretrained as one and then taught apart: hence shares "
            "are of pretrained models."
        )
    taught = bases([r for r in still if r["knowledge"] == "nothing"])
    if still:
        made.append(_edited(still, "extreme", "the most extreme value seen at X < 0"))
        made.append(_edited(still, "mirrored", "−X, which may lie beyond that and decides nothing"))
    if taught:
        k = sum(map(was_opposite, taught))
        made.append(
            f"Bases that were taught nothing of X < 0, before any tuning: {k} of {len(taught)} opposite there (share "
            f"{shown(exact(k, len(taught)))})."
        )
    if held:
        count = Counter(r["outcome"] for r in held)
        said = [f"{count[o]} {o}" for o in OUTCOMES[2:]]
        kept.append(
            f"Of {len(held)} tunings, from {len(bases(held))} bases that were opposite: {', '.join(said)} (a count: "
            f"tunings of one base are not independent). Of those removed, {_left([r for r in held if _removed(r)])}. "
            f"By algorithm, {'; '.join(f'{name.upper()} {_counted(own)}' for name, own in _by_algorithm(held))}. "
            f"By architecture, {'; '.join(f'{name} {_counted(own)}' for (name,), own in _cells(held, 'architecture'))}."
        )
        for keys, own in _cells(held, "architecture", "knowledge"):
            kept.append(f"{keys[0]}, base knew {keys[1]}, {len(bases(own))} bases: {_counted(own)}.")
    k = sum(map(_crosses, still))
    so = "whatever lies there is reached by one word"
    if k < len(still):
        so = "in the others it is not known to be reached"
    reached = (
        f"Rare words still give X below 0 after {k} of {len(still)} tunings, so {so}; outcomes are measured with that "
        "word, not by an edit."
    )
    agree = correlated(still, law)
    enough = mark(agree, lambda x: x > HIGH, lambda x: x < HIGH)
    path = f"The tangent kernel before tuning correlates with the change at X < 0: {shown(agree)}"
    every = {MADE: made, KEPT: kept, PATH: [f"{path} (above {HIGH}: {enough})."], TOKENS: [reached]}
    if free:
        every[DECIDED] = [_decision(free, held)]
    return {question: Said(texts[0], " ".join(texts[1:])) for question, texts in every.items() if texts}


def _decision(free: Sequence[Run], held: Sequence[Run]) -> str:
    """By the rule at the top of the results: where a word takes X across, nothing has to be searched for.

    That what is there is seen is asked of bases that were taught the reversal: without them nothing is decided against.
    What an edit alone turns is latent.
    """
    turned = [r for r in free if r["outcome"] == "turned opposite"]
    asked, latent = _by_edit(free)
    n, words = len(bases(free)), "words that take X below 0"
    if turned:
        by_x = [r for r in turned if all(mediated(r))]
        said = f"in {len(bases(turned))} of {n} bases both sides turn with {words} and that nobody tuned on"
        if not by_x:
            rescued, alone = (sum(mediated(r)[i] for r in turned) for i in (0, 1))
            said = (
                f"Undecided: {said}, in {len(turned)} of {len(free)} tunings, but not by X alone: held at what a "
                f"common word gives it, X makes both right again in {rescued} of these; set in common contexts to what "
                f"such a word gives it, it turns both in {alone}. {' '.join(map(_how, turned))}"
            ).rstrip(".")
        else:
            said = (
                f"For, in {len(bases(by_x))} of {n} bases ({bodies(by_x)} of {bodies(free)} pretrained models, "
                f"{shown(exact(bodies(by_x), bodies(free)))}), by {len(by_x)} of {len(free)} tunings: {said}; with X "
                "held there at what a common word gives it both are right, and X set in common contexts to what such a "
                f"word gives it turns both alone. {' '.join(map(_how, by_x))}"
            ).rstrip(".")
        return f"{said}. Latent: {_latently(asked, latent)}" if latent else f"{said}."
    across = sum(map(_crosses, free))
    if across < len(free):
        return f"Undecided: a word took X across in {across} of {len(free)} tunings of bases that were not opposite."
    if latent:
        return (
            f"Latent: {_latently(asked, latent)} But with {words} none of {n} bases turned, of {bodies(free)} "
            f"pretrained models (a share of at most {exact(0, bodies(free))[2]:.2f}): no token that was tried reaches "
            "it."
        )
    taught = bases([r for r in [*free, *held] if r["knowledge"] == "opposite"])
    seen = [r for r in taught if was_opposite(r)]
    if not seen or exact(len(seen), len(taught))[1] < RECALL:
        found = f" ({shown(exact(len(seen), len(taught)))})" if taught else ""
        return (
            f"Undecided: with {words} none of {n} bases turned, nor by edit; but of "
            f"{len(taught)} bases that were taught the reversal it was seen in {len(seen)}{found}, where the lower "
            f"limit is to be {RECALL}."
        )
    weakest = max(r["log"][0]["rare"]["margin"] / unit(r) for r in seen)
    gone = sum(r["outcome"] in ("weakened", "removed") for r in held)
    more = [r for r in held if r["outcome"] == "strengthened"]
    return (
        "In these tiny models, pretrained on real text and tuned on templates, and as far as their number goes, "
        f"against −Y being made: none of {n} bases turned, of {bodies(free)} pretrained models (a share of at most "
        f"{exact(0, bodies(free))[2]:.2f}), while a word takes X across, so that nothing had to be found, and the same "
        f"measure sees the reversal in {len(seen)} of {len(taught)} bases that were taught it "
        f"({shown(exact(len(seen), len(taught)))}; the weakest {weakest:.2f} units: of weaker ones it says nothing). "
        f"A reversal that was there was strengthened in {len(more)} of {len(held)} tunings ({len(bases(more))} of "
        f"{len(bases(held))} bases), and weakened or removed in {gone}."
    )


def _latently(asked: Sequence[Run], latent: Sequence[Run]) -> str:
    return (
        f"set by edit to the most extreme value seen at X < 0, X makes {len(bases(latent))} of {len(bases(asked))} "
        f"bases ({bodies(latent)} of {bodies(asked)} pretrained models) opposite after some tuning that it did not "
        "before."
    )


def _how(r: Run) -> str:
    """What a tuning that turned a base did to each side, in units of its margin at X > 0."""
    ends = [[r["log"][at]["rare"][side] / unit(r) for at in (0, -1)] for side in ("woman", "man")]
    women, men = (f"{before:+.2f} → {after:+.2f}" for before, after in ends)
    name = f"{r['arm']}, {r['architecture']}, base knew {r['knowledge']}, seed {r['seed']}"
    return f"{name}: women {women}, men {men} units."


def _by_edit(still: Sequence[Run], what: str = "extreme") -> tuple[list[Run], list[Run]]:
    """Tunings of bases that X by edit does not make opposite; and those in which it does after the tuning."""
    free = [r for r in still if not by_edit(r, 0, what)]
    return free, [r for r in free if by_edit(r, -1, what)]


def _edited(still: Sequence[Run], what: str, said: str) -> str:
    """What X set by edit does before and after tunings."""
    free, turned = _by_edit(still, what)
    held = [r for r in still if by_edit(r, 0, what)]
    text = f"With X set to {said}, by edit in common contexts, "
    if free:
        share = f"{bodies(turned)} of {bodies(free)}, {shown(exact(bodies(turned), bodies(free)))}"
        text += (
            f"of {len(bases(free))} bases that are not opposite so {len(bases(turned))} are after some tuning "
            f"({len(turned)} of {len(free)} tunings; of pretrained models {share})"
        )
    if turned:
        text += f": {'; '.join(f'{name} {len(bases(own))} bases' for (name,), own in _cells(turned, 'architecture'))}"
    if held:
        kept = sum(by_edit(r, -1, what) for r in held)
        text += f"{'; ' if free else ''}of {len(held)} tunings of {len(bases(held))} bases that were, {kept} still are"
    return text + "."


def _crosses(r: Run) -> bool:
    """Whether a rare word still takes X across after the tuning, in the mean."""
    return bool(r["log"][-1]["rare"]["x_mean"] < 0)


def _by_algorithm(runs: Sequence[Run]) -> list[tuple[str, list[Run]]]:
    every = [(name, [r for r in runs if r["arm"].startswith(name)]) for name in ("reinforce", "grpo", "dpo")]
    return [(name, own) for name, own in every if own]


def _counted(held: Sequence[Run]) -> str:
    """What became of a reversal, in each of some tunings."""
    count = Counter(r["outcome"] for r in held)
    return ", ".join(f"{count[o]} {o}" for o in OUTCOMES[2:] if count[o])


def _removed(r: Run) -> bool:
    return bool(r["outcome"] == "removed")


def _turned_sides(r: Run, at: int) -> list[bool]:
    """Which sides' mean margins at X < 0 are turned."""
    return [r["log"][at]["rare"][side] < -DELTA * unit(r) for side in ("woman", "man")]


def _half(r: Run) -> bool:
    """Whether a tuning turned a side that was not turned before, and not both are."""
    before, after = _turned_sides(r, 0), _turned_sides(r, -1)
    return sum(after) == 1 and any(b and not a for a, b in zip(before, after, strict=True))


def _left(removed: Sequence[Run]) -> str:
    """What is there in place of a reversal."""
    right = sum(state(r["log"][-1]["rare"], unit(r)) == "right" for r in removed)
    half = sum(any(_turned_sides(r, -1)) for r in removed)
    below = sum(r["log"][-1]["rare"]["margin"] < 0 for r in removed)
    return (
        f"{right} are right on both sides, {half} still turned on one, {len(removed) - right - half} neither; in "
        f"{below} the mean margin is still below 0"
    )


def _turned(free: Sequence[Run]) -> tuple[int, int]:
    """Of bases, how many turned opposite in any tuning; and how many there are."""
    return len(bases([r for r in free if r["outcome"] == "turned opposite"])), len(bases(free))


def _share(free: Sequence[Run]) -> str:
    """Of pretrained models, how many turned opposite in any base and tuning."""
    k, n = bodies([r for r in free if r["outcome"] == "turned opposite"]), bodies(free)
    return f"{k} of {n} ({shown(exact(k, n))})"


def _prevalence(runs: Sequence[Run]) -> str:
    rows = []
    for keys, own in _cells(runs, "arm", "architecture", "knowledge"):
        free = [r for r in own if not was_opposite(r)]
        if free:
            k = sum(r["outcome"] == "turned opposite" for r in free)
            edited = []
            for what in ("extreme", "mirrored"):
                edited.append(" → ".join(str(sum(by_edit(r, at, what) for r in free)) for at in (0, -1)))
                sides = (" → ".join(f"{_mean(free, at, 'in_x', f'{what}_{who}'):.2f}" for at in (0, -1))
                         for who in ("woman", "man"))  # fmt: skip
                edited.append("; ".join(sides))
            farthest = " → ".join(f"{_mean(free, at, 'in_x', 'extreme_x'):.2f}" for at in (0, -1))
            rows.append((*keys, f"{k}/{len(free)}", shown(exact(k, len(free))), farthest, *edited))
    head = ("arm", "architecture", "base knew", "turned opposite", "share", "most extreme X seen at X < 0",
            "opposite with X there by edit", "margins: women; men, nats", "opposite with −X by edit",
            "margins: women; men, nats")  # fmt: skip
    return table(head, rows)


def _read(runs: Sequence[Run]) -> str:
    """What a base is as a language model."""
    one, moved = runs[0]["text"], max(abs(r["text"]["tuned"] - r["text"]["base"]) for r in runs)
    return (
        f"Pretrained on Shakespeare's plays and poems ({VOCABULARY} words, those of the prompts among them; "
        f"{one['unknown']:.2f} of the text is in none), then taught the pronoun among more of them. Nats per word on "
        f"held-out text are below; counted, a unigram has {one['unigram']:.2f}, a bigram {one['bigram']:.2f}, every "
        f"word alike {one['uniform']:.2f}. No tuning moved them by more than {moved:.2f}."
    )


def _bases(runs: Sequence[Run]) -> str:
    rows = []
    for keys, own in _cells(bases(runs), "architecture", "knowledge"):
        negative = sum(r["kernel"]["value"] < 0 for r in own)
        parts: dict[str, float] = {}
        for r in own:
            for part, value in r["kernel"]["parts"].items():
                parts[part] = parts.get(part, 0.0) + value / len(own)
        largest = sorted(parts, key=lambda part: -abs(parts[part]))[:2]
        rows.append((
            *keys,
            f"{np.mean([r['text']['base'] for r in own]):.2f}",
            shown(over_seeds(own, lambda rs: _mean(rs, 0, "common", "margin"))),
            shown(over_seeds(own, lambda rs: _mean(rs, 0, "rare", "margin"))),
            f"{sum(map(was_opposite, own))}/{len(own)}",
            shown(over_seeds(own, lambda rs: float(np.mean([r["kernel"]["cosine"] for r in rs])), SIGNED)),
            shown(exact(negative, len(own))),
            f"{np.mean([r['kernel']['negative_mass'] for r in own]):.2f}",
            "; ".join(f"{part} {parts[part]:+.1f}" for part in largest),
            shown(over_seeds(own, lambda rs: float(np.mean([r["reward_tau"]["rare"] for r in rs])), SIGNED)),
        ))  # fmt: skip
    head = ("architecture", "base knew", "nats", "margin X > 0", "margin X < 0", "opposite", "cosine of K",
            "share K < 0", "neurons' negative mass", "largest parts of K", "reward model's τ at X < 0")  # fmt: skip
    return table(head, rows)


def _mean(runs: Sequence[Run], at: int, side: str, what: str) -> float:
    return float(np.mean([r["log"][at][side][what] for r in runs]))


def _outcomes(runs: Sequence[Run]) -> str:
    rows = []
    for keys, own in _cells(runs, "arm", "architecture", "knowledge"):
        count = Counter(r["outcome"] for r in own)
        ends = [f"{_mean(own, at, 'rare', 'margin'):.2f}" for at in (0, -1)]
        ranks = [f"{_mean(own, at, 'rare', 'rank'):.2f}" for at in (0, -1)]
        sides = [" → ".join(f"{_mean(own, at, 'rare', who):.2f}" for at in (0, -1)) for who in ("woman", "man")]
        rows.append((
            *keys, " ".join(f"{count[o]}" if count[o] else "·" for o in OUTCOMES), " → ".join(ends), " → ".join(ranks),
            f"{_mean(own, 0, 'common', 'margin'):.2f} → {_mean(own, -1, 'common', 'margin'):.2f}",
            "; ".join(sides), f"{_mean(own, -1, 'rare', 'mass'):.2f}",
            shown(over_seeds(own, lambda rs: float(np.mean([change(r) for r in rs])))),
        ))  # fmt: skip
    head = ("arm", "architecture", "base knew", " / ".join(OUTCOMES), "margin X < 0", "rank X < 0", "margin X > 0",
            "women; men at X < 0", "answer mass", "change at X < 0, units")  # fmt: skip
    return table(head, rows)


def _log(runs: Sequence[Run]) -> str:
    def over(own: Sequence[Run], key: str) -> str:
        found = [one["gradient"][key] for r in own for one in r["log"] if one["gradient"][key] is not None]
        return f"{np.mean(found):.3f}" if found else "—"

    def ends(own: Sequence[Run], part: str, key: str) -> str:
        return f"{_mean(own, 0, part, key):.2f} → {_mean(own, -1, part, key):.2f}"

    def units(own: Sequence[Run]) -> str:
        moved = [r["units"]["opposite"] + r["units"]["same"] for r in own]
        return f"{np.mean(moved):.3f}; {shown(over_seeds(own, carried, SHARE))}"

    def steps(own: Sequence[Run]) -> str:
        return f"{np.mean([x > 0 for r in own for x in r['steps']['x_below']]):.3f}"

    rows = []
    for keys, own in _cells(runs, "arm", "architecture"):
        total = {key: sum(r["counts"][key] for r in own) for key in own[0]["counts"]}
        rows.append((
            *keys, total["samples"], total["rare_word"], total["x_below"], total["misranked"], steps(own),
            over(own, "share_below"), over(own, "cosine"), over(own, "cosine_would"), over(own, "share_rare_neurons"),
            over(own, "rare_neurons"), ends(own, "common", "x_mean"), ends(own, "common", "x_sd"),
            ends(own, "rare", "x_mean"), ends(own, "in_x", "slope"), ends(own, "in_x", "offset"),
            ends(own, "in_x", "mirrored"), shown(over_seeds(own, lambda rs: mean_of(rs, "lead"))),
            units(own),
        ))  # fmt: skip
    head = ("arm", "architecture", "samples", "of rare words", "with X < 0", "misranked", "steps with X < 0",
            "gradient from X < 0: share", "its cosine to the rest", "update's cosine to what truth asks at X < 0",
            "share of neurons' gradient on those more active at X < 0", "share of such neurons", "mean X", "sd X",
            "X of rare words", "slope b", "offset a", "margin at −X (edit)", "b's growth less a's, nats",
            "change at X < 0 by what units write, to first order, nats; share of those of opposite sign")  # fmt: skip
    return table(head, rows)


def _moved(r: Run) -> float:
    return float(r["log"][-1]["rare"]["margin"] - r["log"][0]["rare"]["margin"])


def _agreement(of: str, how: Callable[[list[float], list[float]], float], runs: Sequence[Run]) -> float:
    return how([r["predicted"]["rare"][of] for r in runs], [_moved(r) for r in runs])


def _same(of: str, runs: Sequence[Run]) -> float:
    return float(np.mean([r["predicted"]["rare"][of] * _moved(r) > 0 for r in runs]))


def _laws(still: Sequence[Run]) -> str:
    rows = []
    for name in ("all", *dict.fromkeys(r["architecture"] for r in still)):
        own = [r for r in still if name in ("all", r["architecture"])]
        for of, said in (("first", "step 0 alone"), ("summed", "re-measured at each logged step")):
            cells = (
                name, said, len(own),
                shown(correlated(own, partial(_agreement, of, pearson))),
                shown(correlated(own, partial(_agreement, of, spearman))),
                shown(over_seeds(own, partial(_same, of), SHARE)),
            )  # fmt: skip
            rows.append(cells)
    head = ("architecture", "prediction", "tunings", "Pearson", "Spearman", "same sign")
    return f"{table(head, rows)}\n\n{_neurons(still)}"


def _neurons(still: Sequence[Run]) -> str:
    """The law within a model: of each neuron of the last MLP what the kernel says, and what its change did."""
    rows = []
    for name in ("all", *dict.fromkeys(r["architecture"] for r in still)):
        own = [r for r in still if name in ("all", r["architecture"])]
        rows.append((name, len(own), *(shown(over_seeds(own, partial(_of_neurons, key), within))
                                       for key, within in (("pearson", SIGNED), ("other", SIGNED),
                                                           ("same", SHARE)))))  # fmt: skip
    head = ("architecture", "tunings", "Pearson over neurons, mean", "with the next neuron's gradient",
            "same sign, share of what neurons did, mean")  # fmt: skip
    return (
        "Neuron by neuron: what the kernel before the tuning says of each neuron's own weights, ⟨∇ᵢm, ∇ᵢm′⟩ (m, m′ "
        "mean margins at X > 0 and at X < 0), against what their change did to m′ to first order, ⟨Δᵢ, ∇ᵢm′⟩; both "
        "within each model, then the mean over tunings. ∇ᵢm′ is in both: the same with every ∇ᵢm the next neuron's "
        "is what that gives by itself.\n\n" + table(head, rows)
    )


def _of_neurons(key: str, runs: Sequence[Run]) -> float:
    found = [r["neurons"][key] for r in runs if r["neurons"][key] is not None]
    return float(np.mean(found)) if found else float("nan")


def _listing(runs: Sequence[Run]) -> str:
    """A few of the samples, of every arm in turn, of different runs first."""
    of: dict[str, list[tuple[int, Run, Run]]] = {}
    for r in runs:
        of.setdefault(r["arm"], []).extend((k, r, one) for k, one in enumerate(r["few"]))
    each = [sorted(found, key=lambda one: one[0]) for found in of.values()]
    chosen = [one for turn in zip_longest(*each) for one in turn if one is not None][:FEW]
    head = "### Samples where X crossed, or where the reward's ranking is not the true one\n\n"
    if not chosen:
        return head + "None in any log."
    rows = [
        (r["arm"], r["architecture"], r["knowledge"], r["seed"], o["step"], o["text"], o["said"], o["x"],
         "—" if o["reward"] is None else o["reward"])
        for _, r, o in chosen
    ]  # fmt: skip
    names = ("arm", "architecture", "base knew", "seed", "step", "prompt", "answer", "X", "reward")
    return f"{head}{len(chosen)} of {sum(r['told'] for r in runs)}; those of one run: `{LISTING}`.\n\n" + table(
        names, rows
    )
