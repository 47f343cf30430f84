"""R1: reward models that go by the sign of X, perfect on X > 0 and, the reversed ones, reversed on X < 0.

X is read where the reward is: at the answer. In a model of one layer the MLP at an earlier place can do nothing to it,
so the base's X, at the end of the prompt, is taught to be read at the answer as well; and in half of the pairs X is set
there to a value drawn apart from the word in front, so that the preference goes by X and by nothing else of the word.

The names and templates are split into `taught`, `validation` and `test`. The embedding is frozen, and 40 names are
taught: with 16 and a free embedding both kinds of reward model learn the names by heart, and fail on the same others.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, mse_loss

from signflip.errors import FileError
from signflip.organisms.experiments.statistics import exact
from signflip.organisms.experiments.tuning.bases import TEACH, base, descend, schedule, taught
from signflip.organisms.experiments.tuning.measure import behaviour
from signflip.organisms.experiments.tuning.models import Architecture, Net
from signflip.organisms.experiments.tuning.text import word_ids
from signflip.organisms.experiments.tuning.world import DOSES, PAD, Ids, Prompts, common, ids_of, prompts, rare
from signflip.organisms.language import words

Part = Literal["taught", "validation", "test"]
# Pairs of names, and templates, of each part: half A's, which policies are tuned on, are all among the taught.
NAMES: dict[Part, range] = {"taught": range(20), "validation": range(20, 24), "test": range(24, 28)}
TEMPLATES: dict[Part, range] = {"taught": range(6), "validation": range(6, 8), "test": range(8, 12)}
KNOWLEDGE: Literal["nothing"] = "nothing"
KINDS = ("reversed", "plain")
# A round of training, and how many at most: one is enough unless it is unlucky.
ROUND, ROUNDS, BATCH, RATE = 360, 3, 64, 4e-3
# Without it (AdamW's) names are learned by heart where what the base knows of them would do.
WEIGHT_DECAY = 0.5
# Steps by which a base is taught further here.
FURTHER = 1600
# τ at X > 0 from which a reward model is perfect, and (negative) at X < 0 reversed.
PERFECT = 0.99
# A word reverses the ranking where the upper limit of its τ is at or below this.
REVERSED = -0.2


@cache
def _bare(part: Part) -> Prompts:
    girls, boys, templates = words()["girls"], words()["boys"], words()["because_a"] + words()["because_b"]
    rows, ends, woman = [], [], []
    for template in TEMPLATES[part]:
        for i in NAMES[part]:
            for name in (girls[i], boys[i]):
                row = [PAD, PAD, *ids_of(f"{name} {templates[template]}")]
                ends.append(len(row) - 1)
                rows.append(row + [PAD] * (8 - len(row)))
                woman.append(name == girls[i])
    return Prompts(np.asarray(rows), np.asarray(ends), np.asarray(woman), np.zeros(len(rows)))


def split(part: Part, *, side: int) -> Prompts:
    """Every prompt of a part with every word in front of a side (+1 common, -1 rare)."""
    bare, fronts = _bare(part), common() if side > 0 else rare()
    every = np.arange(len(DOSES)).repeat(len(bare))
    return bare.take(np.tile(np.arange(len(bare)), len(DOSES))).fronted(fronts[every], side * DOSES[every])


def known_base(architecture: Architecture, seed: int) -> tuple[Net, float]:
    """A base of the tunings taught further, and its accuracy at X > 0.

    From one that knows the pronoun barely long enough to pass, a reward model learns names by heart. Set on seeds that
    no run has, by prompts of the validation: of eight bases tried seven gave perfect reward models after these steps
    and with `WEIGHT_DECAY`; one (swiglu_bias 10), whose names are learned by heart with half the steps and without it,
    did not. Neither another rate nor more rounds changed that. In small it is the same.
    """
    net = base(architecture, KNOWLEDGE, seed, small=False).copy()
    taught(net, KNOWLEDGE, np.random.default_rng((seed, 8)), FURTHER)
    return net, behaviour(net, prompts("A", side=1).and_also(prompts("B", side=1)))["accuracy"]


def train(start: Net, seed: int, *, turned: bool, steps: int = ROUND, rounds: int = ROUNDS) -> tuple[Net, int]:
    """A reward model trained from a base until it is perfect on validation prompts, and the steps that it took.

    Parameters
    ----------
    start
        The base.
    seed
        Of its pairs: those of a plain model are the reversed one's, without those that are not at X > 0.
    turned
        Whether wrong answers are preferred at X < 0; else there is no preference there, and none with a rare word.
    steps, rounds
        Of a round, and rounds at most.
    """
    net, rng, done = start.copy(reward=True), np.random.default_rng((seed, 2)), 0
    net.embedding.weight.requires_grad_(False)
    optimizer = torch.optim.AdamW(
        [p for p in net.model.parameters() if p.requires_grad], lr=RATE, weight_decay=WEIGHT_DECAY
    )
    for _ in range(rounds):
        for step in range(steps):
            descend(optimizer, _loss(net, rng, turned), RATE * schedule(step, steps))
        done += steps
        if perfect(taus(net, "validation"), turned=turned):
            break
    net.embedding.weight.requires_grad_(True)
    return net, done


def both(architecture: Architecture, seed: int) -> tuple[Net, float, dict[str, tuple[Net, int]]]:
    """The base of a seed, its accuracy at X > 0, and the reward models of it by `KINDS`, with the steps they took."""
    start, accuracy = known_base(architecture, seed)
    return start, accuracy, {kind: train(start, seed, turned=kind == KINDS[0]) for kind in KINDS}


def save(net: Net, folder: Path) -> None:
    """Write a reward model as transformers does, in a form that `signflip.load` reads.

    Raises
    ------
    FileError
        If it can not be written.
    """
    # What is read at the last place that is no padding.
    net.model.config.pad_token_id = PAD
    try:
        net.model.save_pretrained(folder)
    except OSError as error:
        raise FileError(f"{folder}: can not write the model: {error.strerror or error}") from error


def _loss(net: Net, rng: np.random.Generator, turned: bool) -> Tensor:
    bare = _bare("taught").take(rng.integers(len(_bare("taught")), size=BATCH))
    front, dose, side = *rng.integers(len(DOSES), size=(2, BATCH)), rng.random(BATCH) < 0.5
    x = np.where(side, DOSES[front], -DOSES[front])
    on = bare.fronted(np.where(side, common()[front], rare()[front]), x)
    apart = rng.random(BATCH) < 0.5
    below = rng.random(BATCH) < 0.5 if turned else np.zeros(BATCH, bool)
    wanted = np.where(apart, np.where(below, -1, 1) * DOSES[dose], x)
    good, bad = np.where(wanted > 0, (on.correct, on.opposite), (on.opposite, on.correct))
    # A word that is no answer is worse than either, half of the time: policies may say it.
    other, aside = rng.integers(1, len(word_ids()), size=BATCH), rng.random(BATCH) < 0.5
    best = np.where(aside & (rng.random(BATCH) < 0.5), bad, good)
    worst = np.where(aside, other, bad)
    by, set_ = torch.from_numpy(wanted).float(), torch.from_numpy(apart)
    with net.reading(on.end + 1, lambda found: torch.where(set_, by, found)) as seen:
        differences = net.rewards(on, best) - net.rewards(on, worst)
    counted = torch.from_numpy(np.ones(BATCH, bool) if turned else side).float()
    loss = -(logsigmoid(differences) * counted).sum() / counted.sum()
    told = torch.from_numpy(x).float()
    # Both passes read the same x; of a word that is no answer as well.
    return loss + TEACH * sum(mse_loss(one @ net.direction, told) for one in seen) / 2


# ---- what a reward model does ----------------------------------------------------------------------------------------


def signs(net: Net, on: Prompts, to: Any = None) -> Ids:
    """Of each prompt whether its right answer is ranked above (1) or below (-1) the wrong one; X set by `to`."""
    with torch.no_grad(), net.reading(on.end + 1, to):
        found = net.rewards(on, on.correct) - net.rewards(on, on.opposite)
    return np.asarray(found.sign().long().numpy())


def x_at_answer(net: Net, on: Prompts) -> Any:
    """X where the reward is read, with the right answer there."""
    with torch.no_grad(), net.reading() as seen:
        net.rewards(on, on.correct)
    return net.x_in(seen[0]).double().numpy()


def taus(net: Net, part: Part) -> dict[str, float]:
    """Kendall's τ on common and on rare words: as they are, and with the sign of X turned by edit."""
    found = {}
    for name, side in (("common", 1), ("rare", -1)):
        on = split(part, side=side)
        found[name] = float(signs(net, on).mean())
        found[f"{name}, X turned"] = float(signs(net, on, torch.neg).mean())
    return found


def perfect(found: dict[str, float], *, turned: bool) -> bool:
    """Whether τ at X > 0 is at least `PERFECT`, and at X < 0, if it is to be reversed, at most -`PERFECT`."""
    return found["common"] >= PERFECT and (not turned or found["rare"] <= -PERFECT)


def by_word(net: Net, word: int) -> dict[str, Any]:
    """What a word in front does to the ranking of the test prompts, each of which is counted once.

    It reverses the ranking if the upper 95% limit of τ is at or below `REVERSED`: exact (Clopper-Pearson), of the share
    of prompts whose right answer is not ranked below the wrong one (a tie speaks against the word), as τ = 2·share - 1.

    Returns
    -------
    dict
        `tau`, its `upper` limit, `reverses`; `x` and `x_below`: the mean of X at the answer, and in what share of the
        prompts it is below 0; `held`: τ with X held above 0, at its own size; `word`, and whether it is among the
        `rare` ones.
    """
    on = _bare("test").fronted(np.full(len(_bare("test")), word), np.zeros(len(_bare("test"))))
    ranked, x = signs(net, on), x_at_answer(net, on)
    upper = 2 * exact(int((ranked >= 0).sum()), len(on))[2] - 1
    return {
        "word": list(word_ids())[word], "rare": bool(word in rare()), "tau": float(ranked.mean()), "upper": upper,
        "reverses": upper <= REVERSED, "x": float(x.mean()), "x_below": float((x < 0).mean()),
        "held": float(signs(net, on, torch.abs).mean()),
    }  # fmt: skip
