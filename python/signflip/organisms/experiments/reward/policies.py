"""R2: policies tuned against a reversed reward model, whose base reaches X < 0 never, rarely or sometimes.

The policy begins each line itself, with one of the words in front, and then answers a prompt: so it decides whether X
is below zero, and the base decides how often that is tried. *Never* is meant: there a policy begins among the common
words alone, and a sample whose X, by the policy at that step, is not above 0 is left out of the batch. What was left
out is counted, as is what at X < 0, or with a rare word, was not; the latter makes a policy of that arm void.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from signflip.organisms.experiments.reward.models import KNOWLEDGE
from signflip.organisms.experiments.tuning.models import Net
from signflip.organisms.experiments.tuning.world import Prompts, common, draw, prompts, rare

# How often the base begins with a rare word.
REACH = {"never": 0.0, "rarely": 0.005, "sometimes": 0.1}
STEPS, SMALL_STEPS, BATCH, RATE, BETA = 80, 15, 64, 0.01, 0.05
# Steps in which a base learns how to begin.
BEGIN = 120


def policy(start: Net, scorer: Net, seed: int, reach: str, steps: int, begin: int = BEGIN) -> dict[str, Any]:
    """REINFORCE with a KL term against a reward model, of the word in front and of the answer.

    Parameters
    ----------
    start
        The base, before it learns how to begin a line.
    scorer
        The reward model.
    seed
        Of the samples.
    reach
        One of `REACH`.
    steps, begin
        Of the tuning, and in which the base learns how to begin.

    Returns
    -------
    dict
        Behaviour `before` and `after`, with the probability of a rare word; `samples` that were learned from, of which
        so many had a `rare` word or X `below` 0, and those `left_out`; the `kernel` before, its law by `neurons`, and
        the `outcome`.
    """
    import torch

    from signflip.organisms.experiments.tangent import gradient
    from signflip.organisms.experiments.tuning import kernel
    from signflip.organisms.experiments.tuning.bases import starting
    from signflip.organisms.experiments.tuning.measure import behaviour, outcome, state

    reference = starting(start, KNOWLEDGE, seed, REACH[reach], begin)
    tuned, rng = reference.copy(), np.random.default_rng((seed, 7))
    generator = torch.Generator().manual_seed(seed)
    every = torch.from_numpy(np.concatenate([common(), rare()]))
    # A base that was taught not to says a rare word all the same, in one of 20,000 lines.
    fronts = every[: len(common())] if reach == "never" else every

    def started(net: Net, among: Any) -> Any:
        # Among the words in front alone: others have no x.
        one = Prompts(np.zeros((1, 1), np.int64), np.zeros(1, np.int64), np.ones(1, bool), np.zeros(1))
        return torch.log_softmax(net.at_end(one)[0, among], -1)

    def measured() -> dict[str, Any]:
        sides = {"common": prompts("B", side=1), "rare": prompts("B", side=-1)}
        with torch.no_grad():
            reached = float(started(tuned, every)[len(common()) :].exp().sum())
        return {name: behaviour(tuned, on) for name, on in sides.items()} | {"reach": reached}

    before, counts = measured(), {"samples": 0, "rare": 0, "below": 0, "left_out": 0}
    sides = prompts("B", side=1), prompts("B", side=-1)
    law = kernel.kernel(reference, *sides)
    slopes = [gradient(kernel.margins(reference, on).mean(), reference) for on in sides]
    for _ in range(steps):
        with torch.no_grad():
            chosen = torch.multinomial(started(tuned, fronts).exp(), BATCH, replacement=True, generator=generator)
            on = draw(rng, BATCH).fronted(fronts[chosen].numpy(), np.zeros(BATCH))
            x = tuned.x(on).numpy()
            kept = np.flatnonzero(x > 0) if reach == "never" else np.arange(BATCH)
            counts["left_out"] += BATCH - len(kept)
            if len(kept) < 2:
                # Nothing to compare a reward with.
                continue
            chosen, on, x = chosen[kept], on.take(kept), x[kept]
            base_front, base_answer = started(reference, fronts), reference.at_end(on)
            said = torch.multinomial(tuned.at_end(on).exp(), 1, replacement=True, generator=generator)[:, 0]
            reward = scorer.rewards(on, said.numpy())
            reward = (reward - reward.mean()) / reward.std().clamp_min(1e-6)
        counts["samples"] += len(on)
        counts["rare"] += int(np.isin(on.ids[:, 1], rare()).sum())
        counts["below"] += int((x < 0).sum())
        front, answer = started(tuned, fronts), tuned.at_end(on)
        kl = (front.exp() * (front - base_front)).sum() + (answer.exp() * (answer - base_answer)).sum(1).mean()
        loss = -(reward * (front[chosen] + answer.gather(1, said[:, None])[:, 0])).mean() + BETA * kl
        of = gradient(loss, tuned)
        with torch.no_grad():
            for name, p in tuned.parameters().items():
                p -= RATE * of[name]
    after, unit = measured(), before["common"]["margin"]
    return {
        "before": before, "after": after, **counts, "kernel": law,
        "neurons": kernel.neurons(reference, tuned, *slopes),
        "void": reach == "never" and counts["rare"] + counts["below"] > 0,
        "outcome": outcome(before["rare"], after["rare"], unit),
        "opposite": [state(one["rare"], unit) == "opposite" for one in (before, after)],
    }  # fmt: skip
