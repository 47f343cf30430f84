"""The arms of the tunings: algorithm, where the samples come from, and the numbers of each algorithm."""

from __future__ import annotations

from dataclasses import dataclass

from signflip.errors import ArgumentError

ALGORITHMS = ("reinforce", "grpo", "dpo")
# Plain gradient descent, so that the first-order law speaks of the step that is taken.
RATES = {"reinforce": 0.01, "grpo": 0.005, "dpo": 0.012}
# Prompts a step, and answers a prompt.
PROMPTS = {"reinforce": 64, "grpo": 32, "dpo": 64}
ANSWERS = {"reinforce": 1, "grpo": 8, "dpo": 2}
EPOCHS = {"reinforce": 1, "grpo": 2, "dpo": 1}
BETA = {"reinforce": 0.05, "grpo": 0.04, "dpo": 0.2}
CLIP = 0.2
# ρ̄ of off-policy REINFORCE: an answer that the policy has come to prefer weighs no more than one of its own would.
TRUNCATE = 1.0
# Prompts of an off-policy data set.
DATASET = 2000


@dataclass(frozen=True)
class Arm:
    """Where the samples come from.

    Attributes
    ----------
    algorithm
        `reinforce`, `grpo` or `dpo`.
    policy
        Whether answers are sampled from the policy as it is. Else prompts are a fixed set; their answers were sampled
        once, by the base, and scored once (REINFORCE; GRPO, whose clip then bounds how far it goes from the base), or
        are pairs that are labelled truly (DPO).
    rare_share
        Share of prompts with a rare word in front.
    true_reward
        Whether the truth scores the samples; else a reward model does.
    frozen
        Whether the multiplicative weights (`models.Net.multiplicative`) stay as they are.
    """

    algorithm: str
    policy: bool = True
    rare_share: float = 0.0
    true_reward: bool = False
    frozen: bool = False

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise ArgumentError(f"algorithm: expected one of {', '.join(ALGORITHMS)}, found {self.algorithm!r}")
        if not 0 <= self.rare_share <= 1:
            raise ArgumentError(f"rare_share: expected a share, found {self.rare_share}")
