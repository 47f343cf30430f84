"""What a policy does at an x: its actions beside the good policy's on fixed states, and its return."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from signflip.errors import ArgumentError

Floats = NDArray[Any]
Ints = NDArray[np.int64]
# Actions (0 or 1) for states [n, 4] and x [n].
Policy = Callable[[Floats, Floats], Ints]

# x in training.
RANGE = (0.5, 1.5)
GOOD, CHANCE, OPPOSITE, BITS = 0.9, (0.4, 0.6), 0.4, 0.5
# Standard deviations of what is added to visited states: cart, its velocity, pole, its velocity. A good policy keeps
# the pole so still that its own states alone would ask little.
PERTURBED = (0.5, 0.5, 0.05, 0.5)
EPISODES, LONGEST = 500, 500
# States drawn of an episode; few, since those of one episode resemble each other.
DRAWN = 4
# Fewer states of an action than this give no verdict.
LEAST = 20


@dataclass(frozen=True)
class Reading:
    """Actions beside the good policy's.

    Attributes
    ----------
    agreement
        Share of states with the same action; half of the states are of either action of the good policy.
    low, high
        Its exact one-sided limits, 95% each.
    sides
        Agreement where the good policy's action is 0, and 1.
    information
        Bits between the two actions.
    one
        Share of action 1: 0 or 1 is a constant action.
    verdict
        ``good``, ``opposite``, ``incompetent`` or ``between``.
    """

    agreement: float
    low: float
    high: float
    sides: tuple[float, float]
    information: float
    one: float
    verdict: str

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "sides": list(self.sides)}


def read(good: Ints, actions: Ints) -> Reading:
    """Compare actions with the good policy's.

    Parameters
    ----------
    good
        The good policy's actions, [n], 0 and 1 equally often.
    actions
        Those to judge, on the same states.

    Raises
    ------
    ArgumentError
        If there are not as many of each, or something else than 0 and 1.
    """
    if good.ndim != 1 or good.shape != actions.shape:
        raise ArgumentError(f"actions: expected shape {good.shape[:1]}, found {good.shape} and {actions.shape}")
    if not (np.isin(good, (0, 1)).all() and np.isin(actions, (0, 1)).all()):
        raise ArgumentError("actions: expected 0 and 1, found others")
    n = len(good) // 2
    if not n or int(good.sum()) * 2 != len(good):
        raise ArgumentError(f"good: expected 0 and 1 equally often, found {int(good.sum())} ones of {len(good)}")
    hits = [int((actions[good == side] == side).sum()) for side in (0, 1)]
    low, high = limits(sum(hits), 2 * n)
    bits = _information(good, actions)
    agreement = sum(hits) / (2 * n)
    if low > GOOD:
        verdict = "good"
    elif bits >= BITS and all(limits(one, n)[1] < OPPOSITE for one in hits):
        verdict = "opposite"
    elif bits < BITS and low > CHANCE[0] and high < CHANCE[1]:
        verdict = "incompetent"
    else:
        verdict = "between"
    return Reading(agreement, low, high, (hits[0] / n, hits[1] / n), bits, float(actions.mean()), verdict)


def limits(hits: int, n: int) -> tuple[float, float]:
    """One-sided exact limits of a binomial rate, each at 95% (Clopper and Pearson, 1934)."""
    low = float(beta.ppf(0.05, hits, n - hits + 1)) if hits else 0.0
    high = float(beta.ppf(0.95, hits + 1, n - hits)) if hits < n else 1.0
    return low, high


def _information(good: Ints, actions: Ints) -> float:
    joint = np.histogram2d(good, actions, bins=2, range=((0, 1), (0, 1)))[0] / len(good)
    apart = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    filled = joint > 0
    # Rounding must not give less than nothing.
    return max(0.0, float((joint[filled] * np.log2(joint[filled] / apart[filled])).sum()))


def returns(policy: Policy, grid: Sequence[float], episodes: int, seed: int) -> Floats:
    """The returns of whole episodes at each x, [x, episode]; all of them run side by side.

    Parameters
    ----------
    policy
        What acts.
    grid
        Values of x.
    episodes
        At each; episode i starts in the same state at every x.
    seed
        Of the states in which they start.
    """
    x = np.repeat(np.asarray(grid, np.float32), episodes)
    lengths = np.zeros(len(x))
    for _, alive in _episodes(policy, x, seed, starts=episodes):
        lengths += alive
    return lengths.reshape(len(grid), episodes)


def gather(policy: Policy, n: int, seed: int) -> Floats | None:
    """States on which policies are compared: visited by the good policy, and perturbed.

    Parameters
    ----------
    policy
        Visits states with x drawn as in training, and says at x = 1 which action is the good one.
    n
        How many at most; as many of either action.
    seed
        Of everything drawn.

    Returns
    -------
    array [states, 4] or None
        None where one of the actions is hardly ever taken.
    """
    rng = np.random.default_rng((seed, 3))
    x = rng.uniform(*RANGE, EPISODES).astype(np.float32)
    steps = [(states.copy(), alive) for states, alive in _episodes(policy, x, seed + 1)]
    visited = np.stack([states for states, _ in steps])
    lengths = np.stack([alive for _, alive in steps]).sum(0)
    when = (rng.random((DRAWN, EPISODES)) * lengths).astype(int)
    seen = visited[when, np.arange(EPISODES)].reshape(-1, 4)
    moved = seen + rng.standard_normal(seen.shape).astype(np.float32) * np.asarray(PERTURBED, np.float32)
    pool = np.concatenate([seen, moved])
    action = policy(pool, np.ones(len(pool), np.float32))
    sides = [rng.permutation(np.flatnonzero(action == side)) for side in (0, 1)]
    each = min(n // 2, len(sides[0]), len(sides[1]))
    if each < min(LEAST, n // 2):
        return None
    return np.asarray(pool[np.concatenate([side[:each] for side in sides])])


def _episodes(policy: Policy, x: Floats, seed: int, starts: int | None = None) -> Any:
    """Yields the states before each step and which episodes are still in their first life."""
    env = gymnasium.make_vec("CartPole-v1", num_envs=len(x), vectorization_mode="vector_entry_point")
    states, _ = env.reset(seed=seed)
    if starts:
        # The environment draws all at once; those of the first `starts` are given to every x.
        inner: Any = env.unwrapped
        inner.state = np.tile(inner.state[:, :starts], len(x) // starts)
        states = inner.state.T.astype(np.float32)
    alive = np.ones(len(x), bool)
    for _ in range(LONGEST):
        yield states, alive.copy()
        states, _, terminated, truncated, _ = env.step(policy(states, x))
        alive &= ~(terminated | truncated)
        if not alive.any():
            break
    env.close()


__all__ = ["Policy", "Reading", "gather", "limits", "read", "returns"]
