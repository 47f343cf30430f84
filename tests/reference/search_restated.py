"""EPO and GCG, slowly and plainly, on a torch model: every child is a whole forward, every gradient goes to a one-hot
matrix. Only the random draws are shared with signflip: Philox4x32-10, written down again here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Tensor = torch.Tensor
Context = tuple[list[int], list[int]]
Pick = Callable[[Any, Tensor], Any]
START, CHILD, RESTART, FRESH = 0, 1, 2, 3
MASK = 2**32 - 1


def philox(counter: Sequence[int], key: Sequence[int]) -> list[int]:
    a, b, c, d = counter
    k0, k1 = key
    for _ in range(10):
        p, q = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (q >> 32) ^ b ^ k0, q & MASK, (p >> 32) ^ d ^ k1, p & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return [a, b, c, d]


@dataclass
class Draws:
    seed: int

    def pair(self, step: int, child: int, stream: int, token: int, n: int, m: int = 1) -> tuple[int, int]:
        a, b, c, d = philox([step, child, stream, token], [self.seed & MASK, self.seed >> 32])
        return ((a << 32 | b) * n) >> 64, ((c << 32 | d) * m) >> 64

    def unit(self, step: int) -> float:
        a, b, _, _ = philox([step, 0, RESTART, 0], [self.seed & MASK, self.seed >> 32])
        return ((a << 32 | b) >> 11) / 2**53


class Measure:
    """Value and cross-entropy of free tokens, over contexts, as functions of their one-hot matrix."""

    def __init__(self, model: Any, pick: Pick | list[Pick], contexts: list[Context], worst: bool) -> None:
        self.model, self.contexts, self.worst = model, contexts, worst
        self.picks = pick if isinstance(pick, list) else [pick] * len(contexts)
        self.embed = model.get_input_embeddings().weight.detach()
        self.known: dict[Any, list[list[int]]] = {}

    def __call__(self, hot: Tensor) -> tuple[Tensor, Tensor]:
        """Of `[prompts, tokens, vocabulary]`, one of each a prompt."""
        values, entropies = [], []
        n = hot.shape[1]
        for pick, (before, after) in zip(self.picks, self.contexts, strict=True):
            around = [self.embed[ids].expand(len(hot), -1, -1) for ids in (before, after)]
            value, logits = pick(self.model, torch.cat([around[0], hot @ self.embed, around[1]], 1))
            values.append(value)
            first = max(len(before), 1)
            predicted = logits[:, first - 1 : len(before) + n - 1].log_softmax(-1)
            terms = -(predicted * hot[:, first - len(before) :]).sum(-1)
            entropies.append(terms.mean(-1))
        stacked = torch.stack(values)
        return stacked.amin(0) if self.worst else stacked.mean(0), torch.stack(entropies).mean(0)

    def hot(self, ids: Sequence[int]) -> Tensor:
        return torch.nn.functional.one_hot(torch.tensor(ids), len(self.embed)).to(self.embed.dtype)

    def of(self, prompts: Sequence[Sequence[int]]) -> list[tuple[float, float]]:
        with torch.no_grad():
            value, entropy = self(torch.stack([self.hot(ids) for ids in prompts]))
        return list(zip(value.tolist(), entropy.tolist(), strict=True))

    def ranks(self, ids: Sequence[int], penalty: float, topk: int) -> list[list[int]]:
        """Per position the tokens whose one-hot entry lowers `penalty * cross-entropy - value` most."""
        if (key := (tuple(ids), penalty)) in self.known:
            return self.known[key]
        hot = self.hot(ids).requires_grad_()
        value, entropy = (each[0] for each in self(hot[None]))
        (gradient,) = torch.autograd.grad(penalty * entropy - value, hot)
        ranks = [torch.sort(-row, descending=True, stable=True).indices[:topk].tolist() for row in gradient]
        self.known[key] = ranks
        return ranks


def penalties(variant: str, population: int) -> list[float]:
    def spaced(count: int) -> list[float]:
        step = (math.log(10.0) - math.log(0.1)) / (max(count, 2) - 1)
        return [math.exp(math.log(0.1) + step * i) for i in range(count)]

    return [0.0, *spaced(population - 1)] if variant == "default" else spaced(population)


def random_prompt(draws: Draws, first: int, second: int, stream: int, n: int, vocabulary: int) -> tuple[int, ...]:
    return tuple(draws.pair(first, second, stream, t, vocabulary)[0] for t in range(n))


def epo(
    measure: Measure, variant: str, n: int, steps: int, width: int, topk: int, population: int, seed: int, patience: int
) -> list[tuple[str, list[tuple[int, ...]]]]:
    """The members after each step."""
    draws, vocabulary = Draws(seed), len(measure.embed)
    slots = penalties(variant, population)
    met: set[tuple[int, ...]] = set()
    measured: dict[tuple[int, ...], tuple[float, float]] = {}

    def loss(ids: tuple[int, ...], penalty: float) -> float:
        value, entropy = measured[ids]
        return penalty * entropy - value

    members = [random_prompt(draws, 0, m, START, n, vocabulary) for m in range(population)]
    met.update(members)
    # Each member carries the proposals that were made for it.
    state = [(ids, measure.ranks(ids, penalty, topk)) for ids, penalty in zip(members, slots, strict=True)]
    trace = [("start", members)]
    unchanged = 0
    for i in range(steps):
        if len(met) >= vocabulary**n:
            break
        children = []
        for c in range(width):
            parent, ranks = state[c % population]
            position, _ = draws.pair(i, c, CHILD, 0, n)
            _, rank = draws.pair(i, c, CHILD, 0, n, len(ranks[position]))
            children.append((*parent[:position], ranks[position][rank], *parent[position + 1 :]))
        met.update(children)
        parents = [ids for ids, _ in state]
        pool = children if variant == "paper" else parents + children
        measured.update(zip(pool, measure.of(pool), strict=True))
        if variant == "code":
            restart = 2.0 if i % 50 == 0 else None
        else:
            every = 30 if variant == "paper" else 50
            restart = 2 / 3 + (6.0 - 2 / 3) * draws.unit(i) if (i + 1) % every == 0 else None
        chosen = []
        for penalty in slots:
            losses = [loss(ids, penalty if restart is None else restart) for ids in pool]
            chosen.append(losses.index(min(losses)))
        if variant == "code":
            survived = [state[j] for j in chosen if j < population]
            new = [pool[j] for j in chosen if j >= population]
            state = survived + [(ids, measure.ranks(ids, slots[k], topk)) for k, ids in enumerate(new)]
        else:
            state = [(pool[j], measure.ranks(pool[j], penalty, topk)) for j, penalty in zip(chosen, slots, strict=True)]
        members = [ids for ids, _ in state]
        trace.append(("step" if restart is None else "restart", members))
        unchanged = unchanged + 1 if members == parents else 0
        if variant == "default" and unchanged >= patience and i + 1 < steps and len(met) < vocabulary**n:
            members, unchanged = fresh(draws, i, population, n, vocabulary, met), 0
            state = [(ids, measure.ranks(ids, penalty, topk)) for ids, penalty in zip(members, slots, strict=True)]
            trace.append(("fresh", members))
    return trace


def fresh(draws: Draws, step: int, count: int, n: int, vocabulary: int, met: set[tuple[int, ...]]) -> list[Any]:
    """Random prompts not met before, if one of 1024 is not."""
    members = []
    for m in range(count):
        tries = (random_prompt(draws, step, m + 65536 * a, FRESH, n, vocabulary) for a in range(1024))
        first: tuple[int, ...] | None = None
        for ids in tries:
            first = ids if first is None else first
            if ids not in met:
                break
        else:
            assert first is not None
            ids = first
        met.add(ids)
        members.append(ids)
    return members


def gcg(
    measure: Measure, variant: str, n: int, steps: int, width: int, topk: int, seed: int, patience: int
) -> list[tuple[str, list[tuple[int, ...]]]]:
    """The prompt after each step."""
    draws, vocabulary = Draws(seed), len(measure.embed)
    current = random_prompt(draws, 0, 0, START, n, vocabulary)
    met = {current}
    trace = [("start", [current])]
    unchanged = 0
    for i in range(steps):
        if len(met) >= vocabulary**n:
            break
        ranks = measure.ranks(current, 0.0, topk)
        children = []
        for c in range(width):
            position, _ = draws.pair(i, c, CHILD, 0, n)
            if variant == "code":
                position = c * n // width
            _, rank = draws.pair(i, c, CHILD, 0, n, len(ranks[position]))
            children.append((*current[:position], ranks[position][rank], *current[position + 1 :]))
        met.update(children)
        pool = children if variant == "paper" else [ids for ids in children if ids != current]
        if variant == "default":
            pool = [current, *pool]
        values = [value for value, _ in measure.of(pool)] if pool else []
        chosen = pool[values.index(max(values))] if pool else current
        unchanged = unchanged + 1 if chosen == current else 0
        current = chosen
        trace.append(("step", [current]))
        if variant == "default" and unchanged >= patience and i + 1 < steps and len(met) < vocabulary**n:
            (current,), unchanged = fresh(draws, i, 1, n, vocabulary, met), 0
            trace.append(("fresh", [current]))
    return trace
