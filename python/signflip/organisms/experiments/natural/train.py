"""The base is weakened, then tuned: DPO, or GRPO with a KL term, by plain gradient descent; arms differ in one thing.

Plain descent, not Adam, so that the first-order law of science.md 4.1 speaks of the very update that is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from signflip.organisms.experiments.natural.features import Feature
from signflip.organisms.experiments.natural.model import Batch, Net, Setting
from signflip.organisms.experiments.natural.prompts import Prompts
from signflip.organisms.experiments.tangent import Grads, gradient, norm
from signflip.organisms.experiments.tuning import losses

Algorithm = Literal["dpo", "grpo"]
# The base learns that the pronoun is right three times in four, until on half A it is so at most this often.
RIGHT, ENOUGH = 0.75, 0.77
WEAKEN_RATE, WEAKEN_STEPS = 0.01, 80
BATCH = 24
STEPS, SMALL_STEPS = 20, 2
RATE: dict[Algorithm, float] = {"dpo": 0.003, "grpo": 0.003}
BETA: dict[Algorithm, float] = {"dpo": 0.3, "grpo": 0.05}
GROUP, CLIP = 8, 0.2
# No step is longer than this times the rate.
LONGEST = 5.0
# A whole model's gradient is some three times as long: its rates are so much lower, and it is cut so much later.
SLOWER, LATER = 10.0, 3.0


@dataclass(frozen=True)
class Arm:
    """What is tuned.

    Attributes
    ----------
    flipped
        Share of the prompts in which X is set, by an edit, to three times the most extreme value seen.
    frozen
        Whether the known unit's weights stay as they are.
    unrelated
        Whether another preference is tuned, on prompts without a name.
    against
        Whether the wrong pronoun is preferred.
    """

    flipped: float = 0.0
    frozen: bool = False
    unrelated: bool = False
    against: bool = False


def right(net: Net, on: Prompts) -> float:
    """Of the two answers' probability, the part of the right one: how often the model is right where it answers."""
    with torch.no_grad():
        return float(torch.sigmoid(on.margin(net.at_end(on.batch))).mean())


def weaken(net: Net, on: Prompts, half_a: Prompts, seed: int) -> tuple[Net, list[float]]:
    """A copy that was taught, on other names, that the pronoun is right three times in four.

    Returns
    -------
    tuple
        The copy, and how often it was right on half A at each check.
    """
    made, rng = net.copy(), np.random.default_rng((seed, 21))
    log = [right(made, half_a)]
    for step in range(WEAKEN_STEPS):
        if log[-1] <= ENOUGH:
            break
        some = on.take(rng.integers(len(on), size=BATCH))
        margin = some.margin(made.at_end(some.batch))
        loss = -(RIGHT * logsigmoid(margin) + (1 - RIGHT) * logsigmoid(-margin)).mean()
        descend(made, gradient(loss, made), WEAKEN_RATE)
        if step % 2:
            log.append(right(made, half_a))
    return made, log


def pace(net: Net, rate: float) -> float:
    """The rate at which a model is tuned: lower where that is all of it."""
    return rate / SLOWER if net.first == 0 else rate


def descend(net: Net, of: Grads, rate: float) -> None:
    """θ ← θ − `pace` · gradient, the gradient cut to `LONGEST`."""
    longest = LONGEST * (LATER if net.first == 0 else 1)
    rate = pace(net, rate) * min(1.0, longest / max(norm(of), 1e-12))
    with torch.no_grad():
        for name, p in net.parameters().items():
            p -= rate * of[name]


class Tuning:
    """A tuning of a copy of a base. Arms of one seed see the same prompts in the same order.

    Parameters
    ----------
    base
        The weakened model: where the policy starts, and what the KL term and DPO refer to.
    on
        What is tuned on.
    known
        The unit whose linear part is X.
    algorithm, arm
        How.
    seed
        Of the prompts' order and of the samples.
    """

    def __init__(self, base: Net, on: Prompts, known: Feature, algorithm: Algorithm, arm: Arm, seed: int) -> None:
        self.policy, self.base, self.on, self.known = base.copy(), base, on, known
        self.algorithm, self.arm = algorithm, arm
        self._order, self._flips = np.random.default_rng((seed, 22)), np.random.default_rng((seed, 23))
        # On the CPU, so that a seed means the same draws on any device.
        self._sampler = torch.Generator("cpu").manual_seed(seed)
        with torch.no_grad():
            self._reference = [self.base.at_end(on.batch)]
            if arm.flipped:
                dose = Setting(known.layer, known.index, known.doses()[-1])
                self._reference.append(self.base.at_end(on.batch, dose))
        self.log: list[dict[str, float]] = []

    def step(self) -> None:
        """One descent on one batch."""
        rows = torch.as_tensor(self._order.integers(len(self.on), size=BATCH))
        flipped = torch.as_tensor(self._flips.random(BATCH) < self.arm.flipped)
        loss, told = self.loss(rows, flipped)
        of = self.masked(gradient(loss, self.policy))
        self.log.append(told | {"norm": norm(of), "flipped": float(flipped.double().mean())})
        descend(self.policy, of, RATE[self.algorithm])

    def masked(self, of: Grads) -> Grads:
        """The gradient; where the unit is frozen, without its part."""
        if self.arm.frozen:
            for name, at in self.policy.own(self.known.layer, self.known.index).items():
                of[name][at] = 0
        return of

    def loss(self, rows: Tensor, flipped: Tensor) -> tuple[Tensor, dict[str, float]]:
        """The loss on some prompts, and what was sampled."""
        some, setting = self.on.take(rows), None
        reference = self._reference[0][rows]
        if flipped.any():
            value = torch.where(flipped, self.known.doses()[-1], torch.nan)
            setting = Setting(self.known.layer, self.known.index, value)
            reference = torch.where(flipped[:, None], self._reference[1][rows], reference)
        logp = self.policy.at_end(some.batch, setting)
        good, bad = (some.wrong, some.right) if self.arm.against else (some.right, some.wrong)
        told = {"right": float(torch.sigmoid(some.margin(logp)).mean().detach())}
        if self.algorithm == "dpo":
            return losses.dpo(logp, reference, good, bad, BETA["dpo"]).mean(), told
        old = logp.detach()
        said = torch.multinomial(old.exp().cpu(), GROUP, replacement=True, generator=self._sampler).to(old.device)
        reward = (said == good[:, None]).float() - (said == bad[:, None]).float()
        told["live"] = float((reward.std(1, correction=0) > 0).double().mean())
        told["reward"] = float(reward.mean())
        return losses.grpo(logp, old, reference, said, reward, BETA["grpo"], CLIP).mean(), told

    def whole(self, times: int) -> Grads:
        """The gradient over every prompt, as the arm flips them: the mean over a number of samples."""
        total: Grads = {}
        for _ in range(times):
            for rows in torch.split(torch.arange(len(self.on)), BATCH):
                flipped = torch.as_tensor(self._flips.random(len(rows)) < self.arm.flipped)
                of = gradient(self.loss(rows, flipped)[0] * len(rows) / len(self.on) / times, self.policy)
                total = {name: of[name] + total[name] for name in of} if total else of
        return self.masked(total)


def fluency(net: Net, base: Net, texts: Batch) -> float:
    """Mean KL(base ‖ net) of the next token over the places of plain texts."""
    place = torch.arange(texts.ids.shape[1])
    kept = (place > 0) & (place <= texts.end[:, None])
    with torch.no_grad():
        for_each: Iterator[Tensor] = (one.logp(one.through(one.start(texts), one.first)[kept]) for one in (base, net))
        old, new = for_each
        return float((old.exp() * (old - new)).sum(-1).mean())


def summary(log: list[dict[str, float]]) -> dict[str, Any]:
    """Of a tuning's log: the first and last steps, and the share of groups with an advantage that is not zero."""
    found: dict[str, Any] = {"first": log[0], "last": log[-1], "right": [round(one["right"], 4) for one in log]}
    if "live" in log[0]:
        found["live"] = float(np.mean([one["live"] for one in log]))
    return found
