"""One tuning, in plain torch: samples, rewards, a step, and what is logged on the way."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from signflip.errors import ArgumentError
from signflip.organisms.experiments import tangent
from signflip.organisms.experiments.tangent import Grads, gradient
from signflip.organisms.experiments.tuning import kernel, losses
from signflip.organisms.experiments.tuning.kernel import margins
from signflip.organisms.experiments.tuning.measure import both
from signflip.organisms.experiments.tuning.models import Net
from signflip.organisms.experiments.tuning.world import Ids, Prompts, draw, prompts, word_ids

ALGORITHMS = ("reinforce", "grpo", "dpo")
# Plain gradient descent, so that the first-order law speaks of the step that is taken.
RATES = {"reinforce": 0.01, "grpo": 0.005, "dpo": 0.012}
# Prompts a step, and answers a prompt.
PROMPTS = {"reinforce": 64, "grpo": 32, "dpo": 64}
GROUP = 8
EPOCHS = {"reinforce": 1, "grpo": 2, "dpo": 1}
BETA = {"reinforce": 0.05, "grpo": 0.04, "dpo": 0.2}
CLIP = 0.2
STEPS, SMALL_STEPS = 60, 20
LOGGED = (0, 5, 20, 40, 60)
# Pairs of an off-policy data set; prompts of the batch on which a gradient is logged.
DATASET, LARGE = 2000, 256
# Samples that are listed, at most.
LISTED = 4


@dataclass(frozen=True)
class Arm:
    """Where the samples come from.

    Attributes
    ----------
    algorithm
        `reinforce`, `grpo` or `dpo`.
    policy
        Whether answers are sampled from the policy as it is; else pairs are a fixed set, labelled truly (DPO only).
    rare_share
        Share of prompts with a rare word in front.
    true_reward
        Whether the truth scores the samples; else a reward model does.
    """

    algorithm: str
    policy: bool = True
    rare_share: float = 0.0
    true_reward: bool = False

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise ArgumentError(f"algorithm: expected one of {', '.join(ALGORITHMS)}, found {self.algorithm!r}")
        if not self.policy and self.algorithm != "dpo":
            raise ArgumentError(f"algorithm {self.algorithm}: has no off-policy form here")


class Tuning:
    """A policy, its base, what scores its samples, and the arm.

    Parameters
    ----------
    base
        Left as it is; a copy is tuned.
    scorer
        The reward model.
    arm
        Algorithm and data.
    seed
        Of every draw.
    """

    def __init__(self, base: Net, scorer: Net, arm: Arm, seed: int) -> None:
        self.base, self.policy, self.scorer, self.arm = base, base.copy(), scorer, arm
        self._rng, self._torch = np.random.default_rng((seed, 5)), torch.Generator().manual_seed(seed)
        self.rate, self.epochs = RATES[arm.algorithm], EPOCHS[arm.algorithm]
        self.counts = {"samples": 0, "rare_word": 0, "x_below": 0, "misranked": 0}
        self.listed: list[dict[str, Any]] = []
        # Rewards are laid on mean 0 and sd 1 over the base's own samples in common contexts.
        self._shift, self._scale = 0.0, 1.0
        drawn = draw(self._rng, 256)
        with torch.no_grad():
            said = self._say(base.at_end(drawn), 1)[:, 0]
        reward = self._reward(drawn, said.numpy())
        self._shift, self._scale = float(reward.mean()), max(float(reward.std()), 1e-6)
        self._data = self._dataset() if not arm.policy else None

    # ---- samples -----------------------------------------------------------------------------------------------------

    def _say(self, logp: Tensor, n: int) -> Tensor:
        return torch.multinomial(logp.exp(), n, replacement=True, generator=self._torch)

    def _reward(self, on: Prompts, said: Ids) -> Tensor:
        if self.arm.true_reward:
            raw = torch.from_numpy((said == on.correct).astype(np.float32))
        else:
            with torch.no_grad():
                raw = self.scorer.rewards(on, said)
        return (raw - self._shift) / self._scale

    def _dataset(self) -> Prompts:
        """Off-policy prompts: exactly the share of rare ones that the arm says."""
        rare = round(self.arm.rare_share * DATASET)
        some, others = draw(self._rng, rare, rare_share=1.0), draw(self._rng, DATASET - rare)
        joined = [np.concatenate([getattr(one, key) for one in (some, others)]) for key in ("ids", "end", "woman", "x")]
        return Prompts(*joined)

    def batch(self, n: int) -> Prompts:
        """Prompts of one step."""
        if self._data is not None:
            return self._data.take(self._rng.integers(len(self._data), size=n))
        return draw(self._rng, n, rare_share=self.arm.rare_share)

    # ---- losses ------------------------------------------------------------------------------------------------------

    def rows(self, on: Prompts, log: bool) -> Any:
        """Sample for prompts, and return the loss as a function to be called once an epoch: rows `[n]`."""
        algorithm, beta = self.arm.algorithm, BETA[self.arm.algorithm]
        with torch.no_grad():
            old, reference = self.policy.at_end(on), self.base.at_end(on)
        if self._data is not None:
            pair = torch.from_numpy(on.correct), torch.from_numpy(on.opposite)
            if log:
                self._count(on, on.correct[:, None])
            return lambda: losses.dpo(self.policy.at_end(on), reference, *pair, beta)
        said = self._say(old, {"reinforce": 1, "grpo": GROUP, "dpo": 2}[algorithm])
        every = on.take(np.repeat(np.arange(len(on)), said.shape[1]))
        reward = self._reward(every, said.flatten().numpy()).reshape(said.shape)
        if log:
            self._count(on, said.numpy(), reward)
        if algorithm == "reinforce":
            return lambda: losses.reinforce(self.policy.at_end(on), reference, said[:, 0], reward[:, 0], beta)
        if algorithm == "grpo":
            return lambda: losses.grpo(self.policy.at_end(on), old, reference, said, reward, beta, CLIP)
        first = reward[:, 0] >= reward[:, 1]
        pair = torch.where(first, said[:, 0], said[:, 1]), torch.where(first, said[:, 1], said[:, 0])
        # A prompt whose two answers are the same prefers nothing: its loss is constant.
        return lambda: losses.dpo(self.policy.at_end(on), reference, *pair, beta)

    def _count(self, on: Prompts, said: Ids, reward: Tensor | None = None) -> None:
        """Count, and list, the samples where X crossed or the reward's ranking is not the true one."""
        x = self.policy.x(on).numpy()
        below, wrong = x < 0, np.zeros(len(on), bool)
        if not self.arm.true_reward:
            wrong = (self._reward(on, on.correct) < self._reward(on, on.opposite)).numpy()
        self.counts["samples"] += said.size
        for key, which in (("rare_word", on.x < 0), ("x_below", below), ("misranked", wrong)):
            self.counts[key] += int(which.sum()) * said.shape[1]
        names = list(word_ids())
        for i in np.flatnonzero(below | wrong)[: max(0, LISTED - len(self.listed))]:
            text = " ".join(names[j] for j in on.ids[i, 1 : on.end[i] + 1])
            value = None if reward is None else round(float(reward[i, 0]), 3)
            self.listed.append({"text": text, "said": names[said[i, 0]], "x": round(float(x[i]), 3), "reward": value})

    # ---- steps -------------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """One step: as many descents as the algorithm makes of one batch."""
        loss = self.rows(self.batch(PROMPTS[self.arm.algorithm]), log=True)
        for _ in range(self.epochs):
            self.descend(gradient(loss().mean(), self.policy), self.rate)

    def descend(self, of: Grads, rate: float) -> None:
        """θ ← θ − rate · gradient."""
        with torch.no_grad():
            for name, p in self.policy.parameters().items():
                p -= rate * of[name]

    def measure(self) -> dict[str, Any]:
        """Behaviour, X, and the loss's gradient: how it splits, and what it does to rare contexts to first order."""
        net = self.policy
        common, rare = prompts("B", side=1), prompts("B", side=-1)
        on = self.batch(LARGE)
        rows = self.rows(on, log=False)()
        seen = torch.from_numpy(on.x > 0)
        above = gradient(torch.where(seen, rows, 0.0).sum() / len(on), net, keep=True)
        below = gradient(torch.where(seen, 0.0, rows).sum() / len(on), net)
        total = {name: above[name] + below[name] for name in above}
        m_common = gradient(margins(net, common).mean(), net)
        m_rare = gradient(margins(net, rare).mean(), net)
        open_ = kernel.openness(net, common, rare)
        each = tangent.by_neuron(total, total, net)
        a, b = tangent.norm(above), tangent.norm(below)
        speed = -self.rate * self.epochs
        return both(net) | {
            "gradient": {
                "share_below": b / (a + b) if a + b > 0 else None,
                "cosine": tangent.cosine(above, below),
                # What the truth would ask of rare contexts is to raise their margin.
                "cosine_would": tangent.cosine({k: -v for k, v in total.items()}, m_rare),
                "share_rare_neurons": float(each[open_ > 0.5].sum() / each.sum().clamp_min(1e-30)),
                "share_open": float((each * open_).sum() / each.sum().clamp_min(1e-30)),
                "rare_neurons": float((open_ > 0.5).double().mean()),
            },
            "speed": {"common": speed * tangent.dot(total, m_common), "rare": speed * tangent.dot(total, m_rare)},
            "kernel_cosine": tangent.cosine(m_common, m_rare),
        }


def tau(scorer: Net, on: Prompts) -> float:
    """Kendall's τ between a reward model and the truth, over each prompt's two answers: chance is 0, reversed -1."""
    with torch.no_grad():
        difference = scorer.rewards(on, on.correct) - scorer.rewards(on, on.opposite)
    return float(difference.sign().double().mean())


def tune(base: Net, scorer: Net, arm: Arm, seed: int, small: bool) -> dict[str, Any]:
    """Tune a copy of a base, and tell what happened.

    Returns
    -------
    dict
        `log` (a measurement at each logged step), `counts` and `listed` of the samples, `predicted` changes of the
        margins (`first`: by the gradient at step 0 alone; `summed`: by those at every logged step), `kernel` before.
    """
    tuning = Tuning(base, scorer, arm, seed)
    steps = SMALL_STEPS if small else STEPS
    sides = {"common": prompts("B", side=1), "rare": prompts("B", side=-1)}
    found = {"kernel": kernel.kernel(base, sides["common"], sides["rare"])}
    found["reward_tau"] = {side: tau(scorer, on) for side, on in sides.items()}
    log: list[dict[str, Any]] = []
    for step in range(steps + 1):
        if step in LOGGED or step == steps:
            log.append({"step": step} | tuning.measure())
        if step < steps:
            tuning.step()
    predicted = {}
    for side in ("common", "rare"):
        summed = sum(b["speed"][side] * (c["step"] - b["step"]) for b, c in pairwise(log))
        predicted[side] = {"first": log[0]["speed"][side] * steps, "summed": summed}
    return found | {"log": log, "counts": tuning.counts, "listed": tuning.listed, "predicted": predicted}
