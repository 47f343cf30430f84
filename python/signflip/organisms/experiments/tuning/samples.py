"""What is logged of the samples of a tuning, step by step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from signflip.organisms.experiments.tuning.world import Ids, Prompts, word_ids

COUNTED = ("samples", "rare_word", "x_below", "misranked")
# What is measured at each step beside the counts.
MEASURED = ("share_below", "common", "rare")
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Batch:
    """Prompts, and of a fixed data set the answers `[n, answers]` and their rewards, sampled and scored once."""

    prompts: Prompts
    said: Tensor | None = None
    reward: Tensor | None = None

    def take(self, rows: Ids) -> Batch:
        """Some of them."""
        said, reward = (None if one is None else one[rows] for one in (self.said, self.reward))
        return Batch(self.prompts.take(rows), said, reward)


class Log:
    """The log of the samples.

    Parameters
    ----------
    every
        Whether all samples are listed; else those where X crossed or the reward's ranking is turned.

    Attributes
    ----------
    steps
        A list each, a number a step: `samples`; of these those with a rare word, with X below 0, and of prompts whose
        ranking by the reward is turned (`rare_word`, `x_below`, `misranked`); the share of the gradient's norm that is
        due to prompts with a rare word (`share_below`; None where the gradient is zero); mean margins of common and of
        rare contexts before the step (`common`, `rare`), on some prompts of half B.
    listed
        Samples: `step`, the prompt's `text`, the answer `said`, `x`, `reward`, whether X `crossed` and whether the
        reward ranks the prompt's two answers the wrong way (`turned`).
    """

    def __init__(self, every: bool) -> None:
        self.every = every
        self.steps: dict[str, list[Any]] = {key: [] for key in (*COUNTED, *MEASURED)}
        self.listed: list[dict[str, Any]] = []

    @property
    def counts(self) -> dict[str, int]:
        """Sums over steps."""
        return {key: sum(self.steps[key]) for key in COUNTED}

    def count(self, on: Prompts, said: Ids, reward: Tensor | None, x: Tensor, turned: Flags) -> None:
        """The samples of the next step, answers `[n, answers]`."""
        step, below = len(self.steps["samples"]), (x < 0).numpy()
        self.steps["samples"].append(said.size)
        for key, which in zip(COUNTED[1:], (on.x < 0, below, turned), strict=True):
            self.steps[key].append(int(which.sum()) * said.shape[1])
        names = list(word_ids())
        for i in range(len(on)) if self.every else np.flatnonzero(below | turned):
            text = " ".join(names[j] for j in on.ids[i, 1 : on.end[i] + 1])
            for k in range(said.shape[1]):
                self.listed.append({
                    "step": step, "text": text, "said": names[said[i, k]], "x": round(float(x[i]), 3),
                    "reward": None if reward is None else round(float(reward[i, k]), 3),
                    "crossed": bool(below[i]), "turned": bool(turned[i]),
                })  # fmt: skip

    def measure(self, share_below: float | None, common: float, rare: float) -> None:
        """What was measured at the step that was counted last."""
        for key, value in zip(MEASURED, (share_below, common, rare), strict=True):
            # The precision of float32: these are many.
            self.steps[key].append(None if value is None else float(f"{value:.5g}"))
