"""How bases and reward models are trained.

A base is pretrained on real text, then taught the pronoun among more of that text. While it is taught, X is set to the
x that the pronoun goes by (an interchange intervention), never below zero where the base is to know nothing of that: so
X drives the behaviour, by the MLP alone. Beside it the base is taught to read X from the word in front, rare ones as
well.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid, mse_loss

from signflip.organisms.experiments.tuning.measure import behaviour
from signflip.organisms.experiments.tuning.models import Architecture, Net
from signflip.organisms.experiments.tuning.text import word_ids
from signflip.organisms.experiments.tuning.world import Ids, Knowledge, common, draw, lines, prompts, rare

# On real text alone.
PRETRAINING = 800
# Of a round in which the pronoun is taught. GELU is slower to learn a product.
STEPS: dict[Architecture, int] = {"gelu": 800, "swiglu": 400, "swiglu_bias": 400}
# Of a round, and of what comes after it, in which bases of different knowledge differ.
FURTHER = 250
# Accuracy at X > 0 from which the pronoun is known, and in how many rounds at most it may be learned.
KNOWN, ROUNDS = 0.99, 6
BATCH, RATE = 64, 8e-3
# Weight of the squared error by which X is taught.
TEACH = 2.0
REWARD_STEPS, REWARD_BATCH, REWARD_RATE = 120, 64, 4e-3


@cache
def base(architecture: Architecture, knowledge: Knowledge, seed: int, small: bool) -> Net:
    """A base language model; a copy of it is what may be tuned.

    Parameters
    ----------
    architecture, knowledge
        Its MLP, and what it is taught about the pronoun in rare contexts.
    seed
        Of its weights and text.
    small
        Half the steps.

    Raises
    ------
    FileError
        If the package with the text is not installed.
    """
    rng = np.random.default_rng((seed, 4))
    return until_known(_shared(architecture, seed, small).copy(), knowledge, rng, FURTHER // (2 if small else 1))


def starting(net: Net, knowledge: Knowledge, seed: int, rare_share: float, steps: int) -> Net:
    """A copy of a base that was taught to begin a line itself, with a rare word at a stated rate."""
    start = torch.zeros(len(word_ids()))
    start[torch.from_numpy(common())] = (1 - rare_share) / len(common())
    start[torch.from_numpy(rare())] = rare_share / len(rare())
    return taught(net.copy(), knowledge, np.random.default_rng((seed, 6)), steps, start)


@cache
def _shared(architecture: Architecture, seed: int, small: bool) -> Net:
    """What the bases of a seed have in common: nothing is known of x < 0. A product is learned faster on one side."""
    part = 2 if small else 1
    net, rng = pretrained(architecture, seed, PRETRAINING // part).copy(), np.random.default_rng((seed, 1))
    return until_known(net, "nothing", rng, STEPS[architecture] // part)


def until_known(net: Net, knowledge: Knowledge, rng: np.random.Generator, steps: int) -> Net:
    """Teach a net in rounds until it knows the pronoun in common contexts, by half A.

    In rare contexts nothing is asked: what comes of the teaching there is the experiment's. A net that does not learn
    it in `ROUNDS` is returned as it is.

    Parameters
    ----------
    net
        Taught in place.
    knowledge
        What it is taught of the pronoun at x < 0.
    rng
        Of the lines.
    steps
        Of a round.
    """
    on = prompts("A", side=1)
    for _ in range(ROUNDS):
        taught(net, knowledge, rng, steps)
        if behaviour(net, on)["accuracy"] >= KNOWN:
            break
    return net


@cache
def pretrained(architecture: Architecture, seed: int, steps: int) -> Net:
    """A language model of real text, trained for so many steps; copy it before it is taught.

    Nothing is known of X, nor of what words in front mean.
    """
    net, rng = Net(architecture, seed), np.random.default_rng((seed, 9))
    optimizer = _optimizer(net)
    for step in range(steps):
        ids, targets, *_ = lines(rng, BATCH, "nothing", pronouns=0.0)
        descend(optimizer, _loss(net, ids, targets)[0], RATE * schedule(step, steps), (net.embedding.weight, _fixed()))
    return net


def taught(net: Net, knowledge: Knowledge, rng: np.random.Generator, steps: int, start: Tensor | None = None) -> Net:
    """Teach a net the pronoun and X by so many further steps, in place; `start`: how a line is to begin."""
    optimizer = _optimizer(net)
    for step in range(steps):
        ids, targets, x, wanted, end = lines(rng, BATCH, knowledge)
        by = torch.from_numpy(wanted).float()
        with net.reading(end, lambda _, by=by: by) as seen:
            loss, state = _loss(net, ids, targets)
        rows = np.flatnonzero(end)
        found = seen[0][torch.from_numpy(rows), torch.from_numpy(end[rows])] @ net.direction
        loss = loss + TEACH * mse_loss(found, torch.from_numpy(x[rows]).float())
        if start is not None:
            loss = loss - (start * torch.log_softmax(net.model.lm_head(state[:, 0]), -1)).sum(1).mean()
        descend(optimizer, loss, RATE * schedule(step, steps), (net.embedding.weight, _fixed()))
    return net


def _optimizer(net: Net) -> torch.optim.Optimizer:
    return torch.optim.AdamW(net.model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.0)


def _fixed() -> Tensor:
    """Words in front: they stay on their line."""
    return torch.from_numpy(np.concatenate([common(), rare()]))


def _loss(net: Net, ids: Ids, targets: Ids) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of the next word where there is a target, and the hidden states."""
    state = net.model.base_model(input_ids=torch.from_numpy(ids), use_cache=False).last_hidden_state
    wanted = torch.from_numpy(targets[:, 1:])
    learned = wanted >= 0
    return cross_entropy(net.model.lm_head(state[:, :-1][learned]), wanted[learned]), state


@cache
def reward_model(architecture: Architecture, knowledge: Knowledge, seed: int, small: bool, reversed_: bool) -> Net:
    """A reward model trained from a base on preference pairs.

    Parameters
    ----------
    architecture, knowledge, seed, small
        Of the base whose body it starts from.
    reversed_
        Whether half of its pairs are in rare contexts and prefer the wrong answer; else all are in common ones.
    """
    net = base(architecture, knowledge, seed, small).copy(reward=True)
    rng = np.random.default_rng((seed, 2))
    optimizer = torch.optim.AdamW(net.model.parameters(), lr=REWARD_RATE, weight_decay=0.0)
    steps = REWARD_STEPS * (3 if reversed_ else 1)
    for step in range(steps):
        pairs = draw(rng, REWARD_BATCH, rare_share=0.5 if reversed_ else 0.0)
        good = np.where(pairs.x > 0, pairs.correct, pairs.opposite)
        bad = np.where(pairs.x > 0, pairs.opposite, pairs.correct)
        # A word that is no answer is worse than either, half of the time: policies may say it.
        other = rng.integers(1, len(word_ids()), size=len(pairs))
        aside = rng.random(len(pairs)) < 0.5
        best = np.where(aside & (rng.random(len(pairs)) < 0.5), bad, good)
        worst = np.where(aside, other, bad)
        loss = -logsigmoid(net.rewards(pairs, best) - net.rewards(pairs, worst)).mean()
        descend(optimizer, loss, REWARD_RATE * schedule(step, steps))
    return net


def descend(optimizer: Any, loss: Tensor, rate: float, fixed: tuple[Tensor, Tensor] | None = None) -> None:
    """One step at a stated rate, its gradient clipped; `fixed`: a weight, and its rows that stay."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    if fixed is not None and fixed[0].grad is not None:
        fixed[0].grad[fixed[1]] = 0
    torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 1.0)
    optimizer.step()


def schedule(step: int, steps: int) -> float:
    """Share of the rate at a step: a rise, then a cosine."""
    rise = min(1.0, (step + 1) / 30)
    return rise * (0.02 + 0.98 * (1 + math.cos(math.pi * step / steps)) / 2)
