"""The losses of the tunings, a row a prompt: their mean is what is descended.

REINFORCE (Williams 1992) with the batch's mean as baseline and the exact KL to the base at the answer; off-policy with
the truncated importance ratio of IMPALA's policy gradient (Espeholt et al. 2018, arXiv 1802.01561), which
for an answer of one token is min(ρ̄, π/μ) (r − baseline) ∇log π; GRPO (Shao et al. 2024, arXiv 2402.03300, equations 3
and 4) with outcome rewards and answers of one token; DPO (Rafailov et al. 2023, arXiv 2305.18290, equation 7).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def reinforce(logp: Tensor, reference: Tensor, answer: Tensor, reward: Tensor, beta: float) -> Tensor:
    """REINFORCE with a KL term, rows.

    Parameters
    ----------
    logp, reference
        Log-probabilities `[n, vocabulary]` of policy and base.
    answer
        `[n]`, sampled from the policy.
    reward
        `[n]`.
    beta
        Weight of KL(policy ‖ base).
    """
    said = logp.gather(1, answer[:, None])[:, 0]
    return -(reward - reward.mean()) * said + beta * _kl(logp, reference)


def reinforce_off(
    logp: Tensor,
    sampler: Tensor,
    reference: Tensor,
    answer: Tensor,
    reward: Tensor,
    baseline: float,
    beta: float,
    truncate: float,
) -> Tensor:
    """REINFORCE with a KL term on another's samples, rows.

    Parameters
    ----------
    logp, sampler, reference
        Log-probabilities `[n, vocabulary]` of the policy, of what sampled, and of the base.
    answer, reward
        `[n]`.
    baseline
        Taken from each reward: the data's mean, so that a batch's draw does not shift it.
    beta
        Weight of KL(policy ‖ base).
    truncate
        The ratio of policy to sampler is cut here. It is a weight: no gradient flows through it.
    """
    said, then = (one.gather(1, answer[:, None])[:, 0] for one in (logp, sampler))
    ratio = (said - then).exp().clamp_max(truncate).detach()
    return -ratio * (reward - baseline) * said + beta * _kl(logp, reference)


def _kl(logp: Tensor, reference: Tensor) -> Tensor:
    return (logp.exp() * (logp - reference)).sum(1)


def advantages(reward: Tensor) -> Tensor:
    """GRPO's: a group's rewards `[n, group]` less their mean, over their standard deviation; 0 where all are equal."""
    centred = reward - reward.mean(1, keepdim=True)
    return centred / (reward.std(1, keepdim=True, correction=0) + 1e-4)


def grpo(
    logp: Tensor, old: Tensor, reference: Tensor, answer: Tensor, reward: Tensor, beta: float, clip: float
) -> Tensor:
    """GRPO, rows: the mean over a prompt's group.

    Parameters
    ----------
    logp, old, reference
        Log-probabilities `[n, vocabulary]` of the policy, of the policy that sampled, and of the base.
    answer, reward
        `[n, group]`.
    beta
        Weight of the estimated KL, r − log r − 1 with r the base's probability over the policy's.
    clip
        ε.
    """
    new, then, base = (one.gather(1, answer) for one in (logp, old.detach(), reference.detach()))
    ratio, a = (new - then).exp(), advantages(reward)
    gain = torch.minimum(ratio * a, ratio.clamp(1 - clip, 1 + clip) * a)
    kl = (base - new).exp() - (base - new) - 1
    return -(gain - beta * kl).mean(1)


def dpo(logp: Tensor, reference: Tensor, chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """DPO, rows.

    Parameters
    ----------
    logp, reference
        Log-probabilities `[n, vocabulary]` of policy and base.
    chosen, rejected
        `[n]`.
    beta
        Its temperature.
    """

    def gain(answer: Tensor) -> Tensor:
        return (logp - reference).gather(1, answer[:, None])[:, 0]

    return -logsigmoid(beta * (gain(chosen) - gain(rejected)))
