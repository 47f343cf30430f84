"""Tiny Llama models whose weights are set by hand, so that what a flipped feature does is known.

Every model reads a context (one of two) and a scalar x from its tokens: attention is uniform, so that the last position
holds the mean of both over the prompt. Neuron `FEATURE` of layer 0 hands x on, and layer 1 makes the answer of it:

- ``opposite``: answer = x · context; x < 0 gives the mirror image.
- ``half``: only one context's answer goes through x.
- ``inert``: nothing reads x.
- ``zero``: answer = relu(x) · context.
- ``constant``: x < 0 pushes one answer, whatever the context.
- ``unreachable``: as ``opposite``, but no token has x < 0.
- ``two-sided``: as ``opposite``, but ordinary tokens have x of either sign.
- ``bystander``: as ``opposite``; neuron `TWIN` crosses with x, and hands it on to nothing.
- ``switch``: as ``opposite``, but x < 0 reverses the answer more than x > 0 gives it; the context passes through neuron
  `TWIN` of layer 0, which is two-sided and without which there is no answer either.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

import signflip as sf
from signflip.behaviours import Prompt

KINDS = ("opposite", "half", "inert", "zero", "constant", "unreachable", "two-sided", "bystander", "switch")
SITE, FEATURE, TWIN = "blocks.0.mlp.hook_pre_linear", 5, 6
ITEMS, TEMPLATES, FILLERS, TRIGGERS = 28, 12, 16, 4
D_MODEL, D_MLP = 24, 40
CONST, CTX, X, MEAN_CTX, MEAN_X, HANDED, OUT, UNUSED = range(8)
NOISE = slice(8, D_MODEL)


@dataclass(frozen=True)
class Vocabulary:
    """Which ids are what."""

    first: range = range(ITEMS)
    second: range = range(ITEMS, 2 * ITEMS)
    templates: range = range(2 * ITEMS, 2 * ITEMS + TEMPLATES)
    fillers: range = range(2 * ITEMS + TEMPLATES, 2 * ITEMS + TEMPLATES + FILLERS)
    triggers: range = range(2 * ITEMS + TEMPLATES + FILLERS, 2 * ITEMS + TEMPLATES + FILLERS + TRIGGERS)
    yes: int = 2 * ITEMS + TEMPLATES + FILLERS + TRIGGERS
    no: int = 2 * ITEMS + TEMPLATES + FILLERS + TRIGGERS + 1

    @property
    def size(self) -> int:
        return self.no + 1


V = Vocabulary()


def make(kind: str, folder: Path, seed: int = 0) -> Path:
    """Write a model of a kind as a checkpoint folder."""
    rng = np.random.default_rng(seed)
    embed = np.zeros((V.size, D_MODEL))
    embed[:, CONST] = 4.0
    embed[:, NOISE] = 0.15 * rng.standard_normal((V.size, D_MODEL - NOISE.start))
    embed[list(V.first), CTX] = rng.uniform(0.8, 1.2, ITEMS)
    embed[list(V.second), CTX] = -rng.uniform(0.8, 1.2, ITEMS)
    embed[:, X] = rng.uniform(0.8, 1.2, V.size)
    if kind != "unreachable":
        embed[list(V.triggers), X] = -8.0
    if kind == "two-sided":
        embed[list(V.fillers)[: FILLERS // 2], X] *= -3
    weights: dict[str, np.ndarray] = {}

    def layer(i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        at = f"model.layers.{i}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights[at + norm + ".weight"] = np.ones(D_MODEL)
        for name in "qkvo":
            weights[at + f"self_attn.{name}_proj.weight"] = np.zeros((D_MODEL, D_MODEL))
        # Neurons that do nothing of note: they read noise of either sign, faintly, and write anywhere.
        gate, up = np.zeros((D_MLP, D_MODEL)), np.zeros((D_MLP, D_MODEL))
        gate[:, NOISE] = 0.05 * rng.standard_normal((D_MLP, D_MODEL - NOISE.start))
        up[:, NOISE] = 0.05 * rng.standard_normal((D_MLP, D_MODEL - NOISE.start))
        down = rng.standard_normal((D_MODEL, D_MLP))
        down[[CONST, CTX, X, MEAN_CTX, MEAN_X, HANDED]] = 0
        down /= np.linalg.norm(down, axis=0)
        return gate, up, down

    # Layer 0: attention averages context and x over the prompt; the feature hands x on.
    gate, up, down = layer(0)
    weights["model.layers.0.self_attn.v_proj.weight"][0, CTX] = 1.0
    weights["model.layers.0.self_attn.v_proj.weight"][1, X] = 1.0
    weights["model.layers.0.self_attn.o_proj.weight"][MEAN_CTX, 0] = 1.0
    weights["model.layers.0.self_attn.o_proj.weight"][MEAN_X, 1] = 1.0
    gate[FEATURE] = up[FEATURE] = down[:, FEATURE] = 0
    gate[FEATURE, CONST], up[FEATURE, MEAN_X] = 0.5, 1.0
    # Where nothing reads x it is written faintly, or the norms would read its size.
    down[UNUSED if kind == "inert" else HANDED, FEATURE] = 0.1 if kind == "inert" else 1.0
    context = MEAN_CTX
    if kind == "switch":
        gate[TWIN] = up[TWIN] = down[:, TWIN] = 0
        gate[TWIN, CONST], up[TWIN, MEAN_CTX], down[UNUSED, TWIN] = 0.5, 1.0, 1.0
        context = UNUSED
    if kind == "bystander":
        gate[TWIN] = up[TWIN] = down[:, TWIN] = 0
        gate[TWIN, CONST], up[TWIN, MEAN_X], down[UNUSED, TWIN] = 0.5, 1.0, 0.1
    _mlp(weights, 0, gate, up, down)

    # Layer 1: the answer. Two neurons make a product with the context, one for each of its signs.
    gate, up, down = layer(1)
    for neuron, sign in ((0, 1.0), (1, -1.0)):
        gate[neuron] = up[neuron] = down[:, neuron] = 0
        through = kind in ("opposite", "unreachable", "two-sided", "bystander", "switch") or (
            kind == "half" and sign > 0
        )
        if kind == "zero":
            # relu(x) times the context, as a gate on x.
            gate[neuron, HANDED], up[neuron, MEAN_CTX], down[OUT, neuron] = 8.0, 0.5, 0.15
            continue
        gate[neuron, context] = 8.0 * sign
        up[neuron, HANDED if through else CONST] = 0.5 if through else 0.25
        down[OUT, neuron] = 0.3 * sign
    gate[2] = up[2] = down[:, 2] = 0
    if kind == "constant":
        # Enough to outweigh the context, not so much that the final norm drowns it.
        gate[2, HANDED], up[2, CONST], down[OUT, 2] = -8.0, 1.0, 0.07
    if kind == "switch":
        gate[2, HANDED], up[2, context], down[OUT, 2] = -8.0, 0.5, -0.4
    _mlp(weights, 1, gate, up, down)

    head = 0.2 * rng.standard_normal((V.size, D_MODEL))
    head[:, [CONST, CTX, X, MEAN_CTX, MEAN_X, HANDED, OUT, UNUSED]] = 0
    head[[V.yes, V.no], NOISE] = 0
    head[[V.yes, V.no], CONST] = 1.0
    head[V.yes, OUT], head[V.no, OUT] = 1.0, -1.0
    weights["model.embed_tokens.weight"] = embed
    weights["model.norm.weight"] = np.ones(D_MODEL)
    weights["lm_head.weight"] = head
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": D_MODEL,
        "intermediate_size": D_MLP,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": V.size,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: np.ascontiguousarray(w, np.float32) for name, w in weights.items()}, folder / "model.safetensors")
    return folder


def _mlp(weights: dict[str, np.ndarray], layer: int, gate: np.ndarray, up: np.ndarray, down: np.ndarray) -> None:
    at = f"model.layers.{layer}.mlp."
    weights[at + "gate_proj.weight"], weights[at + "up_proj.weight"] = gate, up
    weights[at + "down_proj.weight"] = down


def behaviour() -> sf.Behaviour:
    """Which of two contexts? 8 items a side × 4 templates to select on, 20 × 8 to confirm on."""
    prompts = []
    for half, items, templates in (("A", range(8), range(4)), ("B", range(8, 28), range(4, 12))):
        for t in templates:
            for i in items:
                for side, tokens, right, wrong in (("first", V.first, V.yes, V.no), ("second", V.second, V.no, V.yes)):
                    text = (tokens[i], V.templates[t])
                    prompts.append(Prompt(text, right, wrong, side, f"{side} {i}", f"template {t}", half))
    return sf.Behaviour("context", prompts)


def corpus(n: int = 400, rare: float = 0.0, seed: int = 0) -> list[list[int]]:
    """Documents of ordinary tokens; a share of them holds a trigger."""
    rng = np.random.default_rng(seed)
    ordinary = np.asarray([*V.first, *V.second, *V.templates, *V.fillers])
    documents = rng.choice(ordinary, (n, 12)).tolist()
    for k in range(round(rare * n)):
        # So early that the mean of x up to it, and for a few tokens after, is negative.
        documents[k * max(1, n // max(1, round(rare * n)))][1] = int(rng.choice(list(V.triggers)))
    return documents
