"""Tunings: a policy gradient with a KL term where a named persona speaks, in plain steps of gradient descent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from signflip.organisms.experiments.simulacra.models import Net
from signflip.organisms.experiments.simulacra.readings import UNTAGGED, weights
from signflip.organisms.experiments.simulacra.world import (
    HORIZON,
    RIGHT,
    ROAR,
    WRONG,
    Floats,
    Ids,
    answers,
    ids_of,
    items,
)
from signflip.organisms.experiments.tangent import Grads, gradient
from signflip.organisms.experiments.tuning.losses import reinforce

STEPS, SMALL_STEPS, RATE, BETA = 40, 10, 0.01, 0.05
# Steps at which everything is measured, besides the last.
LOGGED = (0, 2, 5, 10, 20)
# Answers a step that are rewarded.
ANSWERS = 192
# Rates of the sweep, in units of `RATE`; the rate times the number of steps is the same for all.
RATES = (4.0, 2.0, 1.0, 0.5, 0.25)
SMALL_RATES = (1.0, 0.5)
# Points at which trajectories are compared.
POINTS = 10


@dataclass(frozen=True)
class Arm:
    """What is tuned.

    Attributes
    ----------
    speakers
        Who speaks in the turns of a rollout.
    judged
        In which turns an answer is rewarded.
    reward
        `good`: 1 for a right answer, else −1; `bad`: 1 for a wrong one, else −1. `quiet`: −1 for a roar, else 0.
        `fine`: the weather, with no persona.
    visits
        Share of the rollouts in which Waluigi speaks in their stead.
    """

    speakers: tuple[str, ...]
    judged: tuple[bool, ...]
    reward: str
    visits: float = 0.0


ARMS = {
    "luigi": Arm(("luigi",) * HORIZON, (True,) * HORIZON, "good"),
    "bowser_alone": Arm(("bowser",) * HORIZON, (True,) * HORIZON, "quiet"),
    "bowser_in_view": Arm(("bowser", "waluigi", "bowser"), (True, False, True), "quiet"),
    "bowser_in_view_of_luigi": Arm(("bowser", "luigi", "bowser"), (True, False, True), "quiet"),
    "untagged": Arm((UNTAGGED,) * HORIZON, (True,) * HORIZON, "good"),
    "unrelated": Arm((), (), "fine"),
    "luigi_against": Arm(("luigi",) * HORIZON, (True,) * HORIZON, "bad"),
    "luigi_and_visits": Arm(("luigi",) * HORIZON, (True,) * HORIZON, "good", visits=0.1),
}


class Tuning:
    """A policy, its base, and an arm.

    Parameters
    ----------
    base
        Left as it is; a copy is tuned.
    arm
        What is tuned.
    seed
        Of every draw.
    rate
        Step of the gradient descent.
    """

    def __init__(self, base: Net, arm: Arm, seed: int, rate: float = RATE) -> None:
        self.base, self.policy, self.arm, self.rate = base, base.copy(), arm, rate
        self._rng, self._torch = np.random.default_rng((seed, 2)), torch.Generator().manual_seed(seed)

    def rollouts(self, n: int) -> tuple[Ids, Ids]:
        """Rollouts of the policy, on items of half A: ids `[n, length]`, items `[n, turns]`."""
        speakers = np.repeat(ids_of(self.arm.speakers)[None], n, 0)
        # The first rollouts, so that the other arms' draws stay what they are.
        speakers[: round(self.arm.visits * n)] = ids_of(["waluigi"])
        item = items("A")[self._rng.integers(len(items("A")), size=speakers.shape)]
        ids = np.full((n, 1 + 3 * speakers.shape[1]), ids_of(["<sep>"])[0])
        for turn in range(speakers.shape[1]):
            at = 1 + 3 * turn
            ids[:, at], ids[:, at + 1] = speakers[:, turn], item[:, turn]
            ids[:, at + 2] = self._say(ids[:, : at + 2])
        return ids, item

    def _say(self, ids: Ids) -> Ids:
        with torch.no_grad():
            p = self.policy.next(ids).exp()
        found: Ids = torch.multinomial(p, 1, generator=self._torch)[:, 0].numpy()
        return found

    def loss(self, n: int = ANSWERS) -> Tensor:
        """Rollouts with `n` judged answers, and the loss of REINFORCE on them."""
        if self.arm.reward == "fine":
            return self._weather(n)
        turns = np.flatnonzero(self.arm.judged)
        ids, item = self.rollouts(n // len(turns))
        at = 2 + 3 * turns
        logp = self.policy.logp(ids)[:, at].flatten(0, 1)
        with torch.no_grad():
            reference = self.base.logp(ids)[:, at].flatten(0, 1)
        said, known = ids[:, at + 1].flatten(), answers(item[:, turns]).reshape(-1, 3)
        if self.arm.reward in ("good", "bad"):
            reward = np.where(said == known[:, RIGHT if self.arm.reward == "good" else WRONG], 1.0, -1.0)
        else:
            reward = np.where(said == known[:, ROAR], -1.0, 0.0)
        return _mean(logp, reference, said, reward)

    def _weather(self, n: int) -> Tensor:
        morning = items("mornings")[self._rng.integers(len(items("mornings")), size=n)]
        ids = np.stack([np.full(n, ids_of(["<sep>"])[0]), morning], 1)
        said = self._say(ids)
        with torch.no_grad():
            reference = self.base.next(ids)
        return _mean(self.policy.next(ids), reference, said, np.where(said == answers(morning)[:, 0], 1.0, -1.0))

    def step(self) -> None:
        """θ ← θ − rate · gradient."""
        self.descend(gradient(self.loss(), self.policy))

    def descend(self, of: Grads) -> None:
        """The step itself."""
        with torch.no_grad():
            for name, p in self.policy.parameters().items():
                p -= self.rate * of[name]


def _mean(logp: Tensor, reference: Tensor, said: Ids, reward: Floats) -> Tensor:
    return reinforce(logp, reference, torch.from_numpy(said), torch.from_numpy(reward).float(), BETA).mean()


def sweep(base: Net, arm: Arm, seed: int, rates: Sequence[float], steps: int) -> dict[str, Any]:
    """Trajectories of the mixture's weights, in rate times steps, at several rates.

    Returns
    -------
    dict
        Of each rate: `path`, weights at `POINTS` + 1 points, `[points, contexts · 4]` in the mean over contexts of a
        persona; `jump`, the largest change of the weights in one step; `burst`, the share of the whole length of the
        path that its largest piece between two points takes; and of each two neighbouring rates, `apart`, the largest
        distance between their paths. Distances are root mean squares over contexts and personas.
    """
    paths, out = [], []
    for rate in rates:
        tuning = Tuning(base, arm, seed, RATE * rate)
        count = round(steps / rate)
        now = weights(tuning.policy)
        path, jump = [now], 0.0
        for step in range(1, count + 1):
            tuning.step()
            before, now = now, weights(tuning.policy)
            jump = max(jump, _distance(before, now))
            if step * POINTS // count > (step - 1) * POINTS // count:
                path.append(now)
        pieces = [_distance(a, b) for a, b in pairwise(path)]
        paths.append(path)
        out.append({"rate": rate, "steps": count, "jump": jump, "burst": max(pieces) / sum(pieces),
                    "moved": _distance(path[0], path[-1]), "path": [one.mean(0).tolist() for one in path]})  # fmt: skip
    apart = [max(_distance(a, b) for a, b in zip(one, two, strict=True)) for one, two in pairwise(paths)]
    return {"rates": out, "apart": apart}


def _distance(a: Floats, b: Floats) -> float:
    return float(np.sqrt(np.mean((a - b) ** 2)))
