"""One tuning, in plain torch: samples, rewards, a step, and what is logged on the way."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from signflip.organisms.experiments import tangent
from signflip.organisms.experiments.tangent import Grads
from signflip.organisms.experiments.tuning import arms, kernel, losses, text
from signflip.organisms.experiments.tuning.arms import Arm
from signflip.organisms.experiments.tuning.kernel import margins
from signflip.organisms.experiments.tuning.measure import behaviour, both, nats
from signflip.organisms.experiments.tuning.models import Net
from signflip.organisms.experiments.tuning.samples import FEW, Batch, Log, listed
from signflip.organisms.experiments.tuning.world import Prompts, draw, prompts

STEPS, SMALL_STEPS = 60, 20
LOGGED = (0, 5, 20, 40, 60)
# Prompts of the batch on which a gradient is logged.
LARGE = 256
# Of half B's pairs of prompts one in so many is measured on at every step: 12 words in front are all among them.
WATCHED = 7


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
        self.rate, self.epochs = arms.RATES[arm.algorithm], arms.EPOCHS[arm.algorithm]
        self.log = Log()
        self._frozen = frozenset(self.policy.multiplicative if arm.frozen else ())
        self._watched = [_some(prompts("B", side=side)) for side in (1, -1)]
        # Rewards are laid on mean 0 and sd 1 over the base's own samples in common contexts.
        self._shift, self._scale = 0.0, 1.0
        # Of the prompts that `rows` was last given, those with X below 0.
        self._below = torch.zeros(0, dtype=torch.bool)
        drawn = draw(self._rng, 256)
        with torch.no_grad():
            said = self._say(base.at_end(drawn), 1)
        reward = self._reward(drawn, said)
        self._shift, self._scale = float(reward.mean()), max(float(reward.std()), 1e-6)
        self._data = self._dataset() if not arm.policy else None

    # ---- samples -----------------------------------------------------------------------------------------------------

    def _say(self, logp: Tensor, n: int) -> Tensor:
        return torch.multinomial(logp.exp(), n, replacement=True, generator=self._torch)

    def _reward(self, on: Prompts, said: Tensor) -> Tensor:
        """Of answers `[n, answers]`."""
        every = on.take(np.repeat(np.arange(len(on)), said.shape[1]))
        answers = said.flatten().numpy()
        if self.arm.true_reward:
            raw = torch.from_numpy((answers == every.correct).astype(np.float32))
        else:
            with torch.no_grad():
                raw = self.scorer.rewards(every, answers)
        return (raw - self._shift).div(self._scale).reshape(said.shape)

    def _dataset(self) -> Batch:
        """Off-policy data: exactly the share of rare prompts that the arm says; what the base answers to them."""
        rare = round(self.arm.rare_share * arms.DATASET)
        some, others = draw(self._rng, rare, rare_share=1.0), draw(self._rng, arms.DATASET - rare)
        on = some.and_also(others)
        if self.arm.algorithm == "dpo":
            return Batch(on)
        with torch.no_grad():
            said = self._say(self.base.at_end(on), arms.ANSWERS[self.arm.algorithm])
        return Batch(on, said, self._reward(on, said))

    def batch(self, n: int) -> Batch:
        """Prompts of one step; of a fixed data set with their answers."""
        if self._data is not None:
            return self._data.take(self._rng.integers(len(self._data.prompts), size=n))
        return Batch(draw(self._rng, n, rare_share=self.arm.rare_share))

    # ---- losses ------------------------------------------------------------------------------------------------------

    def rows(self, batch: Batch, log: bool) -> Callable[[], Tensor]:
        """Sample for prompts, and return the loss as a function to be called once an epoch: rows `[n]`."""
        on, algorithm, beta = batch.prompts, self.arm.algorithm, arms.BETA[self.arm.algorithm]
        with torch.no_grad(), self.policy.reading() as seen:
            old = self.policy.at_end(on)
        with torch.no_grad():
            reference = self.base.at_end(on)
        x = self.policy.x_in(seen[0])
        self._below = x < 0
        said, reward, pair = self._answered(batch, old)
        if log:
            shown = said[:, :1] if reward is None else said
            self.log.count(on, shown.numpy(), reward, x, self._turned(on))
        if pair is not None:
            return lambda: losses.dpo(self.policy.at_end(on), reference, *pair, beta)
        assert reward is not None
        # Fixed answers are the base's.
        fixed = self._data
        sampler = reference if fixed is not None else old
        if algorithm == "grpo":
            return lambda: losses.grpo(self.policy.at_end(on), sampler, reference, said, reward, beta, arms.CLIP)
        one, worth = said[:, 0], reward[:, 0]
        if fixed is None:
            return lambda: losses.reinforce(self.policy.at_end(on), reference, one, worth, beta)
        assert fixed.reward is not None
        mean = float(fixed.reward.mean())
        return lambda: losses.reinforce_off(
            self.policy.at_end(on), sampler, reference, one, worth, mean, beta, arms.TRUNCATE
        )

    def _answered(self, batch: Batch, old: Tensor) -> tuple[Tensor, Tensor | None, tuple[Tensor, Tensor] | None]:
        """Answers `[n, answers]`, their rewards (None for pairs that are labelled truly), and DPO's pair."""
        on = batch.prompts
        if batch.said is not None:
            return batch.said, batch.reward, None
        if self._data is not None:
            pair = torch.from_numpy(on.correct), torch.from_numpy(on.opposite)
            return torch.stack(pair, 1), None, pair
        said = self._say(old, arms.ANSWERS[self.arm.algorithm])
        reward = self._reward(on, said)
        if self.arm.algorithm != "dpo":
            return said, reward, None
        # A prompt whose two answers are the same prefers nothing: its loss is constant.
        first = reward[:, 0] >= reward[:, 1]
        pair = torch.where(first, said[:, 0], said[:, 1]), torch.where(first, said[:, 1], said[:, 0])
        return said, reward, pair

    def _turned(self, on: Prompts) -> Any:
        """Of which prompts what scores ranks the two answers the wrong way."""
        if self.arm.true_reward:
            return np.zeros(len(on), bool)
        right, wrong = self._reward(on, torch.from_numpy(np.column_stack([on.correct, on.opposite]))).T
        return (right < wrong).numpy()

    # ---- steps -------------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """One step: as many descents as the algorithm makes of one batch."""
        batch = self.batch(arms.PROMPTS[self.arm.algorithm])
        loss = self.rows(batch, log=True)
        for epoch in range(self.epochs):
            rows = loss()
            # A second pass backwards is made only where X is below 0 in a sample.
            below = self._below
            split = epoch == 0 and bool(below.any())
            of = self.gradient(rows.mean(), keep=split)
            if epoch == 0:
                part = self.gradient(torch.where(below, rows, 0.0).sum() / len(rows)) if split else None
                self._watch(of, part)
            self.descend(of, self.rate)

    def _watch(self, of: Grads, part: Grads | None) -> None:
        """Log behaviour before the step, and how its gradient splits between samples with X above and below 0."""
        rest = of if part is None else {name: of[name] - part[name] for name in of}
        a, b = tangent.norm(rest), 0.0 if part is None else tangent.norm(part)
        above = tangent.by_neuron(rest, rest, self.policy).clamp_min(0).sqrt()
        below = torch.zeros_like(above)
        if part is not None:
            below = tangent.by_neuron(part, part, self.policy).clamp_min(0).sqrt()
        with torch.no_grad():
            found = margins(self.policy, self._watched[0].and_also(self._watched[1]))
        common, rare = found[: len(self._watched[0])], found[len(self._watched[0]) :]
        share = b / (a + b) if a + b > 0 else None
        self.log.measure(share, float(common.mean()), float(rare.mean()), torch.stack([above, below]))

    def gradient(self, value: Tensor, *, keep: bool = False) -> Grads:
        """Of a scalar in the policy's weights; zero in those that are frozen."""
        found = tangent.gradient(value, self.policy, keep=keep)
        return {name: torch.zeros_like(g) if name in self._frozen else g for name, g in found.items()}

    def descend(self, of: Grads, rate: float) -> None:
        """θ ← θ − rate · gradient."""
        with torch.no_grad():
            for name, p in self.policy.parameters().items():
                p -= rate * of[name]

    def measure(self, *, first: bool = False) -> dict[str, Any]:
        """Behaviour, X, and the loss's gradient: how it splits, and what it does to rare contexts to first order.

        Parameters
        ----------
        first
            Whether the policy is still the base, of which much is known already.
        """
        net = self.policy
        found, m_common, m_rare, open_ = _known_standing(self.base) if first else _standing(net)
        batch = self.batch(LARGE)
        rows = self.rows(batch, log=False)()
        seen = ~self._below
        above = self.gradient(torch.where(seen, rows, 0.0).sum() / len(rows), keep=True)
        below = self.gradient(torch.where(seen, 0.0, rows).sum() / len(rows))
        total = {name: above[name] + below[name] for name in above}
        each = tangent.by_neuron(total, total, net)
        a, b = tangent.norm(above), tangent.norm(below)
        speed = -self.rate * self.epochs
        return deepcopy(found) | {
            "gradient": {
                "share_below": b / (a + b) if a + b > 0 else None,
                "cosine": tangent.cosine(above, below),
                # What the truth would ask of rare contexts is to raise their margin.
                "cosine_would": tangent.cosine({k: -v for k, v in total.items()}, m_rare),
                "share_rare_neurons": float(each[open_ > 0.5].sum() / each.sum().clamp_min(1e-30)),
                "rare_neurons": float((open_ > 0.5).double().mean()),
            },
            "speed": {"common": speed * tangent.dot(total, m_common), "rare": speed * tangent.dot(total, m_rare)},
        }


def _some(on: Prompts) -> Prompts:
    """Every so many-th pair of a girl and a boy."""
    return on.take(np.arange(len(on)) // 2 % WATCHED == 0)


def tau(scorer: Net, on: Prompts) -> float:
    """Kendall's τ between a reward model and the truth, over each prompt's two answers: chance is 0, reversed -1."""
    with torch.no_grad():
        difference = scorer.rewards(on, on.correct) - scorer.rewards(on, on.opposite)
    return float(difference.sign().double().mean())


def _sides() -> dict[str, Prompts]:
    return {"common": prompts("B", side=1), "rare": prompts("B", side=-1)}


def _standing(net: Net) -> tuple[dict[str, Any], Grads, Grads, Tensor]:
    """What a policy does, the gradients of its mean margins in common and rare contexts, how open neurons are."""
    common, rare = _sides().values()
    m_common, m_rare = (tangent.gradient(margins(net, on).mean(), net) for on in (common, rare))
    return both(net), m_common, m_rare, kernel.openness(net, common, rare)


@lru_cache(maxsize=4)
def _known_standing(base: Net) -> tuple[dict[str, Any], Grads, Grads, Tensor]:
    return _standing(base)


@lru_cache(maxsize=4)
def _before(base: Net, scorer: Net) -> dict[str, Any]:
    """What all arms that start from a base say of it, and of what scores their samples; both stay as they are."""
    sides = _sides()
    return {
        "text": {"words": text.digest(), **text.counted(), "base": nats(base)},
        "accuracy": behaviour(base, prompts("A", side=1))["accuracy"],
        "kernel": kernel.kernel(base, sides["common"], sides["rare"]),
        "reward_tau": {side: tau(scorer, on) for side, on in sides.items()},
    }


def tune(base: Net, scorer: Net, arm: Arm, seed: int, small: bool) -> dict[str, Any]:
    """Tune a copy of a base, and tell what happened.

    Returns
    -------
    dict
        `accuracy` of the base at X > 0 on half A; `text` (nats per word of held-out real text: of the base, of the
        `tuned` policy, and what is `text.counted`; the `words`: a digest of the vocabulary); `log` (a measurement at
        each logged step), `steps` and `counts` of the samples (`samples.Log`), all of them (`samples`, packed), how
        many there are where X crossed or the reward's ranking is turned (`told`) and a `few` of these; `predicted`
        changes of the margins (`first`: by the gradient at step 0 alone; `summed`: by those at every logged step),
        `kernel` before, `units` of the change, and the law by `neurons`.
    """
    tuning = Tuning(base, scorer, arm, seed)
    steps = SMALL_STEPS if small else STEPS
    sides = _sides()
    found = deepcopy(_before(base, scorer))
    log: list[dict[str, Any]] = []
    for step in range(steps + 1):
        if step in LOGGED or step == steps:
            log.append({"step": step} | tuning.measure(first=step == 0))
        if step < steps:
            tuning.step()
    predicted = {}
    for side in ("common", "rare"):
        summed = sum(b["speed"][side] * (c["step"] - b["step"]) for b, c in pairwise(log))
        predicted[side] = {"first": log[0]["speed"][side] * steps, "summed": summed}
    found["text"]["tuned"] = nats(tuning.policy)
    of = tuning.log
    found |= {"log": log, "steps": of.steps, "counts": of.counts, "samples": of.packed(), "predicted": predicted}
    told = listed(found["samples"], every=False)
    found |= {"told": len(told), "few": told[:FEW]}
    m_common, m_rare = _known_standing(base)[1:3]
    return found | {
        "units": kernel.units(base, tuning.policy, sides["common"], sides["rare"]),
        "neurons": kernel.neurons(base, tuning.policy, m_common, m_rare),
    }
