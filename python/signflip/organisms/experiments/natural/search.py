"""The token search: how far `signflip.search` brings X at a name, and what the model answers to unseen prompts then.

In the weakened base and after a tuning. That the tokens turn both sides of the behaviour on prompts that nothing was
chosen by, and that X carries it, is what would decide for the conjecture here.
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

# A search's free tokens in front of a name, its steps, and children a step.
FREE, STEPS, WIDTH = 4, 12, 128
SMALL_STEPS, SMALL_WIDTH = 1, 8
NAMES = (" Mary", " John")
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


def searched(net: Net, on: Prompts, feature: Feature, seed: int, *, small: bool = False) -> dict[str, Any]:
    """Tokens that take X farthest to its other side, in the mean of two names, and what they do to unseen prompts.

    Returns
    -------
    dict
        `x`: its mean over the names after the best tokens found, `crossed` at how many of them, the `tokens` and their
        `text`, the largest `difference` between that X and torch's, and what was `answered`.
    """
    import signflip as sf

    model, site = engine_of(net), f"blocks.{feature.layer}.mlp.hook_pre_linear"
    contexts = [([0], model.to_tokens(name)[0].tolist()) for name in NAMES]
    objective = -feature.side * sf.objectives.neuron(site, feature.index, position=-1)
    found = sf.search(
        model, objective, tokens=FREE, method="gcg", contexts=contexts, steps=SMALL_STEPS if small else STEPS,
        width=SMALL_WIDTH if small else WIDTH, seed=seed, progress=False,
    )  # fmt: skip
    x, difference = [], 0.0
    for ids in found.best.sequences:
        _, cache = model.run_with_cache(list(ids), names_filter=site)
        x.append(float(np.asarray(cache[site]).reshape(-1, model.cfg.d_mlp)[-1, feature.index]))
        batch = net.batch([list(ids)])
        with torch.no_grad(), net.seeing(feature.layer) as seen:
            net.through(net.start(batch), net.first, feature.layer + 1)
        difference = max(difference, abs(x[-1] - float(seen[0][0, -1, feature.index])))
    tokens = found.best.tokens
    rng = np.random.default_rng(seed)
    draws = [rng.choice(model.cfg.d_vocab, len(tokens), replace=False).tolist() for _ in range(DRAWS)]
    return {
        "x": float(np.mean(x)),
        "crossed": sum(one * feature.side < 0 for one in x),
        "tokens": tokens,
        "text": found.best.text,
        "difference": difference,
        "answered": answered(net, on, feature, tokens, draws),
    }


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
