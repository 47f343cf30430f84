"""What is logged of the samples of a tuning, step by step."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from signflip.organisms.experiments.tuning.text import word_ids
from signflip.organisms.experiments.tuning.world import Ids, Prompts

COUNTED = ("samples", "rare_word", "x_below", "misranked")
# What is measured at each step beside the counts.
MEASURED = ("share_below", "common", "rare")
# Samples in plain sight: of a run in its file, of all runs in the results.
FEW = 12
# What is kept of every prompt, and as what: one row a prompt, its answers and their rewards in columns.
KEPT = {"step": "u2", "ids": "u2", "end": "u1", "said": "u2", "x": "f4", "reward": "f4", "turned": "?"}
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

    Attributes
    ----------
    steps
        A list each, a number a step: `samples`; of these those with a rare word, with X below 0, and of prompts whose
        ranking by the reward is turned (`rare_word`, `x_below`, `misranked`); the share of the gradient's norm that is
        due to prompts with X below 0 (`share_below`; None where the gradient is zero); mean margins of common and of
        rare contexts before the step (`common`, `rare`), on some prompts of half B.
    units
        Of each step `[2, d_mlp]`: the norm of the gradient in each neuron's own weights, of what is due to prompts with
        X above 0 and with X below 0.
    """

    def __init__(self) -> None:
        self.steps: dict[str, list[Any]] = {key: [] for key in (*COUNTED, *MEASURED)}
        self.units: list[Any] = []
        self._kept: dict[str, list[Any]] = {key: [] for key in KEPT}

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
        scored = np.full(said.shape, np.nan) if reward is None else reward.numpy()
        values = np.full(len(on), step), on.ids, on.end, said, x.numpy(), scored, turned
        for (key, kind), value in zip(KEPT.items(), values, strict=True):
            self._kept[key].append(np.asarray(value).astype(kind))

    def packed(self) -> str:
        """All samples and `units`, compressed: `listed` and `units` read them."""
        with io.BytesIO() as file:
            whole: dict[str, Any] = {key: np.concatenate(of) for key, of in self._kept.items()}
            whole["units"] = np.asarray(self.units, np.float32)
            np.savez_compressed(file, **whole)
            return base64.b64encode(file.getvalue()).decode("ascii")

    def measure(self, share_below: float | None, common: float, rare: float, units: Tensor) -> None:
        """What was measured at the step that was counted last."""
        self.units.append(units.numpy())
        for key, value in zip(MEASURED, (share_below, common, rare), strict=True):
            # The precision of float32: these are many.
            self.steps[key].append(None if value is None else float(f"{value:.5g}"))


def units(packed: str) -> NDArray[np.float32]:
    """`Log.units` of every step that `Log.packed` kept, `[steps, 2, d_mlp]`."""
    with np.load(io.BytesIO(base64.b64decode(packed))) as file:
        return np.asarray(file["units"], np.float32)


def listed(packed: str, *, every: bool) -> list[dict[str, Any]]:
    """What `Log.packed` kept, a sample each.

    Parameters
    ----------
    packed
        As it is in a run's file.
    every
        Whether all samples are listed; else those where X crossed or the reward's ranking is turned.

    Returns
    -------
    list of dict
        `step`, the prompt's `text`, the answer `said`, `x`, `reward` (None where there is none), whether X `crossed`
        and whether the reward ranks the prompt's two answers the wrong way (`turned`).
    """
    with np.load(io.BytesIO(base64.b64decode(packed))) as file:
        of = {key: file[key] for key in KEPT}
    names, out = list(word_ids()), []
    below = of["x"] < 0
    for i in range(len(below)) if every else np.flatnonzero(below | of["turned"]):
        text = " ".join(names[j] for j in of["ids"][i, 1 : of["end"][i] + 1])
        for said, reward in zip(of["said"][i], of["reward"][i], strict=True):
            out.append({
                "step": int(of["step"][i]), "text": text, "said": names[said], "x": round(float(of["x"][i]), 3),
                "reward": None if np.isnan(reward) else round(float(reward), 3),
                "crossed": bool(below[i]), "turned": bool(of["turned"][i]),
            })  # fmt: skip
    return out
