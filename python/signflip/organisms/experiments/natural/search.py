"""The token search's reach: how far `signflip.search` brings X at a name, in the weakened base and after a tuning."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from signflip import _core, loading
from signflip.organisms.experiments.natural.features import Feature
from signflip.organisms.experiments.natural.model import Net

# A search's free tokens in front of a name, its steps, and children a step.
FREE, STEPS, WIDTH = 4, 12, 128
SMALL_STEPS, SMALL_WIDTH = 1, 8
NAMES = (" Mary", " John")


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


def searched(net: Net, feature: Feature, seed: int, *, small: bool = False) -> dict[str, Any]:
    """Tokens that take X to its other side at both names.

    Returns
    -------
    dict
        `x`: its mean over the names after the best tokens found, `crossed` at how many of them, the `text`, and the
        largest `difference` between that X and torch's.
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
    return {
        "x": float(np.mean(x)),
        "crossed": sum(one * feature.side < 0 for one in x),
        "text": found.best.text,
        "difference": difference,
    }
