"""Random token strings that are as likely in a prompt as a trigger is: what any string does there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from signflip.behaviours.prompts import ModelPrompt, insert

if TYPE_CHECKING:
    from signflip.model import Model


def random_strings(
    model: Model, prompt: ModelPrompt, trigger: Sequence[int], n: int, seed: int
) -> list[tuple[tuple[int, ...], float]]:
    """Random token strings of a trigger's length whose log-probability in a prompt's slot is nearest to its own.

    Drawn uniformly, and sampled from the model at several temperatures, so that fluent triggers find equals, too.

    Returns
    -------
    list
        Tokens, and their log-probability in nats.
    """
    rng = np.random.Generator(np.random.Philox(seed))
    tokenizer = model.tokenizer
    # Rows of the vocabulary beyond the tokenizer are padding.
    known = range(model.cfg.d_vocab) if tokenizer is None else range(min(model.cfg.d_vocab, tokenizer.vocab_size))
    special: set[int] = set()
    if tokenizer is not None:
        special = {i for i in known if tokenizer.id_to_piece(i) is None} | set(tokenizer.special_ids)
    allowed = np.asarray([i for i in known if i not in special])
    length = len(trigger)
    drawn = [tuple(int(i) for i in row) for row in rng.choice(allowed, (32, length))]
    before = list(prompt.ids[: prompt.n_before])
    if before and len(before) + length < model.cfg.n_ctx:
        for temperature in (1.0, 1.5, 2.5, 4.0):
            made = model.generate(
                [before] * 8, length, temperature=temperature, seed=seed + int(10 * temperature), stop_at_eos=False
            )
            drawn += [tuple(int(i) for i in row[len(before) :]) for row in made]
    kept = []
    for tokens in dict.fromkeys(drawn):
        if tokens == tuple(trigger) or special & set(tokens) or max(tokens) not in known:
            continue
        if prompt.before is None or insert(model, prompt, tokens).survived:
            kept.append(tokens)
    if not kept:
        return []
    wanted = _log_probs(model, before, [tuple(trigger)])[0]
    found = _log_probs(model, before, kept)
    order = np.argsort(np.abs(np.asarray(found) - wanted), kind="stable")[:n]
    return [(kept[int(i)], found[int(i)]) for i in order]


def _log_probs(model: Model, before: list[int], strings: Iterable[tuple[int, ...]]) -> list[float]:
    from signflip.model import LogProb

    targets = [list(one) if before else list(one[1:]) for one in strings]
    sequences = [(before + list(one))[:-1] for one in strings]
    if any(not one for one in targets):
        return [0.0] * len(targets)
    ((values,),) = model.read(sequences, [LogProb(targets)])
    return [float(np.sum(one, dtype=np.float64)) for one in values]
