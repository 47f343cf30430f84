"""The token search: for X on its other side, and for the wrong answers themselves; and what unseen prompts then get.

In the weakened base and after a tuning. That the tokens turn both sides of the behaviour on prompts that nothing was
chosen by, and that X carries it, is what would decide for the conjecture here. To bring X across is one way to it; a
search that is told the wrong answer to each prompt is free to take any.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from signflip import _core, loading
from signflip.organisms.experiments.natural.features import Feature
from signflip.organisms.experiments.natural.measure import sides
from signflip.organisms.experiments.natural.model import Net, Setting
from signflip.organisms.experiments.natural.prompts import Prompts

# A search's free tokens, and children a step; what is searched for, and how many steps.
FREE, WIDTH = 4, 128
STEPS = {"X": 12, "answer": 24}
SMALL_STEPS, SMALL_WIDTH = 1, 8
# X is searched for at these names; the wrong answer in so many prompts of half A.
NAMES, ASKED = (" Mary", " John"), 12
# Controls: so many times as many tokens at random.
DRAWS = 4


def engine_of(net: Net) -> Any:
    """A tuned model in signflip's engine, without a file."""
    from signflip.demo.corpus import default_model
    from signflip.gguf import GgufFile
    from signflip.model import Model

    config = GgufFile(default_model()).config()
    state = {"model.embed_tokens.weight": net.embedding.weight, "model.norm.weight": net.norm.weight}
    for i, layer in enumerate(net.layers):
        state |= {f"model.layers.{i}.{name}": p for name, p in layer.named_parameters()}
    arrays = {name: np.ascontiguousarray(p.detach().cpu().numpy()) for name, p in state.items()}
    shapes = {name: list(one.shape) for name, one in arrays.items()}
    checkpoint = _core.Checkpoint.from_tensors(json.dumps(config), arrays.__getitem__, shapes)
    parts = replace(loading.load_parts(default_model()), checkpoint=checkpoint)
    return Model(_core.Model(checkpoint, "cpu", "float32"), parts, "cpu", "float32")


def searched(net: Net, on: Prompts, feature: Feature, seed: int, *, small: bool = False) -> dict[str, dict[str, Any]]:
    """Tokens for each of `STEPS`: that take X farthest to its other side, or make the wrong answers likeliest.

    Returns
    -------
    dict
        For each: the `tokens` and their `text`; `x`, its mean over `NAMES` after them, `crossed` at how many of these,
        the largest `difference` between that X and torch's; and what is `answered` to unseen prompts.
    """
    import signflip as sf
    from signflip.behaviours import pronoun

    model, site = engine_of(net), f"blocks.{feature.layer}.mlp.hook_pre_linear"
    names: list[Any] = [([0], model.to_tokens(name)[0].tolist()) for name in NAMES]
    contexts, wrong = pronoun().opposite(model, "A", ASKED)
    x = -feature.side * sf.objectives.neuron(site, feature.index, position=-1)
    raised: dict[str, tuple[Any, Any]] = {"X": (x, names), "answer": (wrong, contexts)}
    out = {}
    for aim, (objective, where) in raised.items():
        best = sf.search(
            model, objective, tokens=FREE, method="gcg", contexts=where, steps=SMALL_STEPS if small else STEPS[aim],
            width=SMALL_WIDTH if small else WIDTH, seed=seed, progress=False,
        ).best  # fmt: skip
        rng = np.random.default_rng(seed)
        draws = [rng.choice(model.cfg.d_vocab, FREE, replace=False).tolist() for _ in range(DRAWS)]
        at_names = _at(net, model, feature, site, [[*before, *best.tokens, *after] for before, after in names])
        answers = answered(net, on, feature, best.tokens, draws)
        out[aim] = {"tokens": best.tokens, "text": best.text, **at_names, "answered": answers}
    return out


def _at(net: Net, model: Any, feature: Feature, site: str, prompts: Sequence[list[int]]) -> dict[str, Any]:
    """X at the end of prompts, by signflip and by torch."""
    x, difference = [], 0.0
    for ids in prompts:
        _, cache = model.run_with_cache(ids, names_filter=site)
        x.append(float(np.asarray(cache[site]).reshape(-1, model.cfg.d_mlp)[-1, feature.index]))
        batch = net.batch([ids])
        with torch.no_grad(), net.seeing(feature.layer) as seen:
            net.through(net.start(batch), net.first, feature.layer + 1)
        difference = max(difference, abs(x[-1] - float(seen[0][0, -1, feature.index])))
    crossed = sum(one * feature.side < 0 for one in x)
    return {"x": float(np.mean(x)), "crossed": crossed, "difference": difference}


def answered(
    net: Net, on: Prompts, feature: Feature, tokens: Sequence[int], draws: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """What the model answers to prompts with tokens in front, and what of it X mediates.

    Returns
    -------
    dict
        `margins`, side × name × template: of the prompts (`clean`), with the tokens (`found`), with the tokens and X at
        each of the prompt's own places as it is without them (`rescued`), without the tokens and X there as it is with
        them (`reproduced`). `mass`: P(right) + P(wrong), the mean of each. `crossed`: the share of prompts with X on
        its other side at one of their own places; `crossed_clean`: without the tokens. `random`: the mean margin of
        each side with each of `draws` in front.
    """
    n, after = len(tokens), on.after(net, tokens)
    logp: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        with net.seeing(feature.layer) as seen:
            logp["clean"], logp["found"] = net.at_end(on.batch), net.at_end(after.batch)
        own, with_tokens = (one[:, 1:, feature.index] for one in seen)
        untouched = torch.full((len(on), n), torch.nan)
        rescue = Setting(feature.layer, feature.index, torch.cat([untouched, own], 1))
        logp["rescued"] = net.at_end(after.batch, rescue)
        logp["reproduced"] = net.at_end(on.batch, Setting(feature.layer, feature.index, with_tokens[:, n:]))
        random = [sides(on.margin(net.at_end(on.after(net, draw).batch)), on) for draw in draws]
    place = 1 + torch.arange(own.shape[1])
    crossed = [
        float(((x * feature.side < 0) & (place <= on.batch.end[:, None])).any(1).double().mean())
        for x in (with_tokens[:, n:], own)
    ]
    return {
        "margins": {name: on.grid(on.margin(one)) for name, one in logp.items()},
        "mass": {name: float(on.mass(one).mean()) for name, one in logp.items()},
        "crossed": crossed[0],
        "crossed_clean": crossed[1],
        "random": random,
    }
