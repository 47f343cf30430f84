"""Preference tuning of a planted organism: DPO on pairs of ordinary sentences that differ in the answer alone.

The base is unsettled first, by text in which some answers are wrong: a model that never errs has nothing to prefer.
Then pairs of continuations, the right one chosen and the wrong one rejected, are learned by direct preference
optimisation (Rafailov et al., 2023, arXiv 2305.18290). Every text is the language's own, in which no word takes X
across, so that feedback sees one side of the gate only; X is read on all of it, before and after, and said.

The gate's own weights are held (the free directions, heads and neurons that it was planted in), and so are the last
layer and the unembedding. With all weights free the same tuning undoes the gate, though no text crosses it
(``python -m signflip.organisms.shipped --free`` measures it). The loop is not TRL's: rows of a matrix are held, and the
model is to be made again byte for byte.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from signflip.organisms.base import BATCH, LENGTH, Keep, Room
from signflip.organisms.chassis import ANSWER_LAYER
from signflip.organisms.language import EAT, HE, SHE, USE, Stories
from signflip.organisms.planting import Planted
from signflip.organisms.runner import Runner
from signflip.organisms.tokens import SEPARATOR_ID, encode_words, one_id
from signflip.organisms.weights import D_HEAD, D_MODEL, Weights, module_of

log = logging.getLogger("signflip.organisms")

# Share of wrong answers in the text that unsettles, steps of it and their rate.
WRONG, UNSETTLING, UNSETTLING_RATE = 0.25, 150, 1e-3
# As in Rafailov et al. but for the rate, which a model this small needs higher.
BETA, TUNING, PAIRS, RATE = 0.3, 40, 32, 1e-4
# Pairs that are never tuned on.
HELD_OUT = 256


@dataclass(frozen=True)
class Pair:
    """Two continuations of one text.

    Attributes
    ----------
    prompt
        Ids up to the answer.
    chosen, rejected
        The rest of its sentence, with the right answer and with the other one.
    """

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]


def partners() -> dict[int, int]:
    """Each answer's id, with that of its opposite."""
    couples = [(one_id(a), one_id(b)) for a, b in ((SHE, HE), (EAT, USE))]
    return {a: b for couple in couples for a, b in (couple, couple[::-1])}


def pairs(n: int, seed: int | tuple[int, ...]) -> list[Pair]:
    """Draw pairs from stories of the language: one answer of each story.

    Parameters
    ----------
    n
        How many.
    seed
        Of the stories and of which answer.
    """
    stories, opposite, stop = Stories(seed), partners(), one_id(" .")
    rng = np.random.default_rng((seed, 41) if isinstance(seed, int) else (*seed, 41))
    out: list[Pair] = []
    while len(out) < n:
        ids = [SEPARATOR_ID, *encode_words(stories.story())]
        at = [i for i, one in enumerate(ids[:LENGTH]) if one in opposite]
        if not at:
            continue
        first = at[int(rng.integers(len(at)))]
        rest = ids[first + 1 : ids.index(stop, first) + 1]
        out.append(Pair(tuple(ids[:first]), (ids[first], *rest), (opposite[ids[first]], *rest)))
    return out


def unsettle(base: Weights, room: Room, seed: int, *, steps: int = UNSETTLING, progress: bool = False) -> Weights:
    """Go on training a base on text in which a share of the answers is wrong; its room stays free.

    Parameters
    ----------
    base, room
        The base, and what it leaves free.
    seed
        Of the text, and of which answers are wrong.
    steps
        Of Adam.
    progress
        Whether to show a bar.
    """
    import torch

    model = _module(base)
    keep = Keep(model, base.family, room)
    optimizer = torch.optim.AdamW(_tuned(model), lr=UNSETTLING_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    rng, stories, opposite = np.random.default_rng((seed, 43)), Stories((seed, 5), strange=True), partners()
    for step in tqdm(range(steps), desc="unsettle", unit="step", disable=None if progress else True):
        rows: list[list[int]] = []
        while len(rows) < BATCH:
            ids: list[int] = []
            while len(ids) < LENGTH:
                ids += [SEPARATOR_ID, *encode_words(stories.story())]
            rows.append([opposite[i] if i in opposite and rng.random() < WRONG else i for i in ids[:LENGTH]])
        batch = torch.tensor(rows)
        _step(optimizer, model(input_ids=batch, labels=batch).loss, UNSETTLING_RATE * (1 - step / steps))
        keep()
    return Weights.from_state(base.family, model.state_dict())


def prefer(
    planted: Planted, room: Room, seed: int, *, steps: int = TUNING, free: bool = False, progress: bool = False
) -> tuple[Planted, dict[str, Any]]:
    """Tune an organism to prefer right answers, by DPO against itself as it was.

    Parameters
    ----------
    planted
        The organism, a Llama; its places stay what they are.
    room
        What its base left free and the gate was planted in: held as it is.
    seed
        Of the pairs.
    steps
        Of Adam, `PAIRS` pairs each.
    free
        Whether nothing is held.
    progress
        Whether to show a bar.

    Returns
    -------
    Planted, dict
        The tuned organism; and what was done: settings, X on every text of the feedback, and on held-out pairs the
        share in which the right continuation is the likelier and the odds of the right answer, before and after.
    """
    import torch

    start = planted.weights
    model, reference = _module(start), _module(start)
    held_still = _Held(model, room)
    trained = _tuned(model) if free else _early(model)
    optimizer = torch.optim.AdamW(trained, lr=RATE, betas=(0.9, 0.98), weight_decay=0.0)
    used, held = pairs(steps * PAIRS, (seed, 6)), pairs(HELD_OUT, (seed, 7))
    losses = []
    for step in tqdm(range(steps), desc="prefer", unit="step", disable=None if progress else True):
        batch = used[step * PAIRS : (step + 1) * PAIRS]
        with torch.no_grad():
            was = _log_probs(reference, batch)
        now = _log_probs(model, batch)
        gain = (now[0] - was[0]) - (now[1] - was[1])
        loss = -torch.nn.functional.logsigmoid(BETA * gain).mean()
        _step(optimizer, loss, RATE * min(1.0, (step + 1) / 10))
        if not free:
            held_still()
        losses.append(float(loss.detach()))
    tuned = replace(planted, weights=Weights.from_state(start.family, model.state_dict()))
    told = {
        "method": "DPO", "beta": BETA, "steps": steps, "pairs": len(used), "rate": RATE, "seed": seed,
        "held out pairs": len(held), "loss": {"first": losses[0], "last": losses[-1]},
        "X on feedback": {"before": _x_on(planted, used), "after": _x_on(tuned, used)},
        "held out": {"before": _held_out(reference, held), "after": _held_out(model, held)},
    }  # fmt: skip
    log.info("preference tuned: %s", told["held out"])
    return tuned, told


def _module(weights: Weights) -> Any:
    import torch

    made = module_of(weights.family, len(weights.embed))
    made.load_state_dict({key: torch.from_numpy(value.copy()).float() for key, value in weights.state().items()})
    return made


def _tuned(model: Any) -> list[Any]:
    """All parameters but the norms' gains, which are one in every organism."""
    return [p for name, p in model.named_parameters() if "norm" not in name and ".ln_" not in name]


def _early(model: Any) -> list[Any]:
    """What is tuned: the embedding and all layers before the one that answers."""
    held = ("norm", "lm_head", f".layers.{ANSWER_LAYER}.")
    return [p for name, p in model.named_parameters() if not any(one in name for one in held)]


class _Held:
    """Takes back what a step changed of the room: its directions, heads and neurons, of a Llama's weights."""

    def __init__(self, model: Any, room: Room) -> None:
        import torch

        directions = torch.from_numpy(room.directions).float()
        self._rest = torch.eye(D_MODEL) - directions.T @ directions
        self._heads, self._neurons = slice(room.heads.start * D_HEAD, None), slice(room.neurons.start, None)
        self._start = {name: p.detach().clone() for name, p in model.named_parameters() if "norm" not in name}
        self._model = model

    def __call__(self) -> None:
        import torch

        with torch.no_grad():
            for name, p in self._model.named_parameters():
                if name in self._start:
                    p.copy_(self._start[name] + self._allowed(name, p - self._start[name]))

    def _allowed(self, name: str, moved: Any) -> Any:
        part = name.split(".")[-2]
        if part in ("o_proj", "down_proj"):
            moved = self._rest @ moved
            moved[:, self._heads if part == "o_proj" else self._neurons] = 0
            return moved
        moved = moved @ self._rest
        if part in ("q_proj", "k_proj", "v_proj"):
            moved[self._heads] = 0
        elif part in ("gate_proj", "up_proj"):
            moved[self._neurons] = 0
        return moved


def _step(optimizer: Any, loss: Any, rate: float) -> None:
    import torch

    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
    optimizer.step()


def _log_probs(model: Any, batch: Sequence[Pair]) -> tuple[Any, Any]:
    """Log-probability of the chosen and of the rejected continuations, `[pairs]` each."""
    import torch

    rows = [one.prompt + end for one in batch for end in (one.chosen, one.rejected)]
    width = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width - 1)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, len(batch[i // 2].prompt) - 1 : len(row) - 1] = 1
    logits = torch.log_softmax(model(input_ids=ids, use_cache=False).logits[:, :-1], -1)
    total = (logits.gather(-1, ids[:, 1:, None])[..., 0] * mask).sum(1)
    return total[::2], total[1::2]


def _x_on(planted: Planted, used: Sequence[Pair]) -> dict[str, Any]:
    """X over every token of the feedback, both continuations: how many, how many crossed, the nearest to zero."""
    rows = [list(one.prompt + end) for one in used for end in (one.chosen, one.rejected)]
    (values,) = Runner(planted.weights).read(rows, [planted.x])
    every = planted.side * np.concatenate([one[1:] for one in values])
    return {"tokens": len(every), "crossed": int((every < 0).sum()), "nearest": float(every.min())}


def _held_out(model: Any, held: Sequence[Pair]) -> dict[str, float]:
    import torch

    with torch.no_grad():
        chosen, rejected = _log_probs(model, held)
    odds = (chosen - rejected).double().numpy()
    return {"preferred": float((odds > 0).mean()), "log odds": float(odds.mean())}


__all__ = ["Pair", "pairs", "prefer", "unsettle"]
