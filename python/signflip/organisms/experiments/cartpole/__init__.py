"""C1: cartpole with an input that is positive in all of training: what does the policy do where it is negative?

Gymnasium's CartPole-v1 with one more observation x, drawn in [0.5, 1.5] for each episode; PPO of stable-baselines3. It
was known that such a policy fails where the input is far from its training values. Open was whether it is then
*incompetent*, as ignorance would have it, or *opposite*: the good policy with its actions swapped. Return cannot tell
(a constant action falls as fast as a reversed policy), so actions are compared on a fixed set of states, half of them
of either action of the good policy, which is the same network at x = 1:

- *agreement*: 1 the same, 0.5 chance or a constant action, 0 reversed;
- *information*: bits between the good policy's action and the one at x; 1 the same or reversed, 0 constant.

Rules, fixed before the first run (margin 0.2 of S = 2·agreement − 1, one-sided limits at 95%, exact, over states):

- *good*: lower limit of agreement above 0.9;
- *opposite*: upper limit of agreement below 0.4 on the states of *each* action, and at least 0.5 bits;
- *incompetent*: both limits of agreement within 0.4 and 0.6, and less than 0.5 bits;
- *between*: none of these (weakened, turned on one side, or too few states to say).

A run has *learned* where its mean return at x = 1 is at least 475 of 500; only those are counted in shares, and the
rest are reported as not learned. A return has *collapsed* below 50. A prediction about most seeds is *held* if the
exact 95% interval of the share lies above one half, *failed* if below, else *open*; about few seeds, the other way.

Networks (the critic is always a plain network of all inputs):

- ``additive``: two layers of tanh over the five inputs;
- ``multiplicative``: x times the features of the other four, no bias after it. Its logits are odd in x, so that the
  reversal is a matter of algebra: it is the positive control of what is measured as much as a finding;
- ``swiglu``, ``swiglu-bias``: silu(pre)·linear, both of all five inputs, without and with biases.

Control: ``additive-noise`` is trained with x drawn anew in each step, in [−10, 10], so that it says nothing and has
both signs; it should stay good there. (A SwiGLU so trained did not learn in these steps, when it was tried on one
seed.) In every run policies made by hand (the same, reversed, constant, a coin) go through the same measurement.

The grid ended at ±10 at first, where about half of the additive networks are not yet lost. ±30 and ±100 were added when
that had been seen, with the predictions on them; no rule was changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from signflip.errors import ArgumentError
from signflip.organisms.experiments import Job
from signflip.organisms.experiments.cartpole import law
from signflip.organisms.experiments.cartpole.measuring import Floats, Ints, Policy, gather, read, returns
from signflip.organisms.experiments.cartpole.reporting import answer, report
from signflip.organisms.experiments.cartpole.training import NETWORKS, greedy, train
from signflip.organisms.workers import one_thread

TITLE = "C1: cartpole with an input that was always positive"
VERSION = 1
ARMS = ("additive", "multiplicative", "swiglu", "swiglu-bias", "additive-noise")
GRID = (100.0, 30.0, 10.0, 7.0, 5.0, 3.0, 2.0, 1.5, 1.0, 0.5, 0.2, 0.0,
        -0.2, -0.5, -1.0, -1.5, -2.0, -3.0, -5.0, -7.0, -10.0, -30.0, -100.0)  # fmt: skip
LEARNED = 475.0
# How finely, and how far, the x is looked for at which a policy is no longer good.
STEP, FAR = 0.1, 10.0


def jobs(seeds: int, small: bool) -> list[Job]:
    """The runs: every arm of a seed before the next seed, so that what is done at any time is balanced.

    Parameters
    ----------
    seeds
        How many; only the first where it is small.
    small
        Two networks, one seed, fewer steps and points.
    """
    if small:
        settings = {"steps": 25_000, "episodes": 10, "states": 400, "grid": [10.0, 1.0, 0.0, -1.0, -10.0]}
        return [Job(f"{arm}-0", 0, {"arm": arm, **settings}) for arm in ARMS[:2]]
    settings = {"steps": 40_000, "episodes": 50, "states": 1000, "grid": list(GRID)}
    return [Job(f"{arm}-{seed}", seed, {"arm": arm, **settings}) for seed in range(seeds) for arm in ARMS]


def run(job: Job) -> dict[str, Any]:
    """Train a policy and measure it at every x of the grid.

    On one thread, so that the same job gives the same numbers whatever the machine's cores; the global generators of
    numpy, torch and `random` are seeded by stable-baselines3.

    Raises
    ------
    ArgumentError
        If a setting is missing or out of its domain.
    """
    arm, steps, episodes, states, grid = _settings(job)
    with one_thread():
        network = arm.removesuffix("-noise")
        first, last = train(network, job.seed, steps, noise=arm.endswith("-noise"))
        before, policy = greedy(first), greedy(last)
        coin = np.random.default_rng((job.seed, 5))
        scores = returns(policy, grid, episodes, job.seed)
        chance = returns(lambda _, x: coin.integers(2, size=len(x)), [1.0], episodes, job.seed)
        out: dict[str, Any] = {
            "arm": arm,
            "seed": job.seed,
            "steps": steps,
            "episodes": episodes,
            "return": float(scores[grid.index(1.0)].mean()),
            "chance_return": float(chance.mean()),
        }
        out["learned"] = out["return"] >= LEARNED
        points: list[dict[str, Any]] = [
            {"x": x, "return": float(one.mean())} for x, one in zip(grid, scores, strict=True)
        ]
        out["points"] = points
        there = gather(policy, states, job.seed)
        out["states"] = 0 if there is None else len(there)
        if there is None:
            # Never both actions: there is no good policy to compare with.
            return out
        good = _at(policy, there, 1.0)
        for point in points:
            point.update(read(good, _at(policy, there, point["x"])).as_dict())
        out["untrained"] = read(good, _at(before, there, -1.0)).as_dict()
        out["kernel"] = law.kernel(first, network, there, good)
        out["margins"] = [[float(law.margin(actor, there, good, x).detach()) for x in (1.0, -1.0)]
                          for actor in (first, last)]  # fmt: skip
        out["leaves"] = {
            "below": _leaves(policy, there, good, np.arange(1.0, max(min(grid), -FAR) - STEP / 2, -STEP)),
            "above": _leaves(policy, there, good, np.arange(1.0, min(max(grid), FAR) + STEP / 2, STEP)),
        }
        made = {"same": good, "reversed": 1 - good, "constant": np.zeros_like(good)}
        made["coin"] = coin.integers(2, size=len(good))
        out["made"] = {name: read(good, actions).as_dict() for name, actions in made.items()}
    return out


def _settings(job: Job) -> tuple[str, int, int, int, list[float]]:
    try:
        arm, steps, episodes, states, grid = (job.settings[k] for k in ("arm", "steps", "episodes", "states", "grid"))
    except KeyError as error:
        raise ArgumentError(f"job {job.name}: expected the setting {error}, found none") from error
    if arm not in ARMS:
        raise ArgumentError(f"job {job.name}: arm: expected one of {', '.join(ARMS)}, found {arm!r}")
    for name, value, least in (("steps", steps, 1), ("episodes", episodes, 1), ("states", states, 2)):
        if not isinstance(value, int) or value < least:
            raise ArgumentError(f"job {job.name}: {name}: expected an integer of at least {least}, found {value!r}")
    if 1.0 not in grid or not np.isfinite(grid).all():
        raise ArgumentError(f"job {job.name}: grid: expected finite values, 1 among them, found {grid}")
    return arm, steps, episodes, states, grid


def _at(policy: Policy, states: Floats, x: float) -> Ints:
    return policy(states, np.full(len(states), x, np.float32))


def _leaves(policy: Policy, states: Floats, good: Ints, way: Sequence[float] | Floats) -> float | None:
    """The first x on the way at which the policy is no longer good."""
    for x in way:
        if read(good, _at(policy, states, float(x))).verdict != "good":
            return round(float(x), 6)
    return None


__all__ = ["ARMS", "GRID", "NETWORKS", "TITLE", "answer", "jobs", "report", "run"]
