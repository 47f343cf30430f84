"""Tiny checkpoints, made by transformers, and their weights by the engine's names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from hypothesis import strategies as st

Weights = dict[str, np.ndarray]

LLAMA3_ROTARY = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}


def llama(seed: int = 0, cls: str = "LlamaForCausalLM", **options: Any) -> transformers.PreTrainedModel:
    config = {
        "vocab_size": 53,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "pad_token_id": None,
    } | options
    return randomised(getattr(transformers, cls)(transformers.LlamaConfig(**config)), seed)


def gpt2(seed: int = 0, cls: str = "GPT2LMHeadModel", **options: Any) -> transformers.PreTrainedModel:
    config = {
        "vocab_size": 53,
        "n_positions": 32,
        "n_embd": 24,
        "n_layer": 2,
        "n_head": 3,
        "bos_token_id": 1,
        "eos_token_id": 1,
    } | options
    return randomised(getattr(transformers, cls)(transformers.GPT2Config(**config)), seed)


def randomised(model: transformers.PreTrainedModel, seed: int) -> transformers.PreTrainedModel:
    """Every parameter random, so that no bias is zero and no gain is one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def expected(model: transformers.PreTrainedModel, layer: int | None) -> Weights:
    """The weights of a block, or those outside (None), from the state dict, by the engine's names."""
    return expected_of(model.state_dict(), model.config.model_type, layer)


def expected_of(tensors: dict[str, torch.Tensor], family: str, layer: int | None) -> Weights:
    state = {name: tensor.float().numpy() for name, tensor in tensors.items()}
    base = {"llama": "model.", "gpt2": "transformer."}[family]
    if not any(name.startswith(base) for name in state):
        base = ""
    out: Weights = {}

    def put(name: str, stem: str, matrix: bool = False, transposed: bool = False) -> None:
        if f"{stem}.weight" in state:
            weight = state[f"{stem}.weight"]
            out[f"{name}.weight" if matrix else f"{name}.gain"] = weight.T if transposed else weight
        if f"{stem}.bias" in state:
            out[f"{name}.bias"] = state[f"{stem}.bias"]

    if layer is None:
        words = {"llama": ("embed_tokens", "norm"), "gpt2": ("wte", "ln_f")}[family]
        out["embed"] = state[f"{base}{words[0]}.weight"]
        put("final_norm", f"{base}{words[1]}")
        if family == "gpt2":
            out["pos_embed"] = state[f"{base}wpe.weight"]
        if "score.weight" in state:
            put("head", "score", matrix=True)
        elif "lm_head.weight" in state and not np.array_equal(state["lm_head.weight"], out["embed"]):
            put("head", "lm_head", matrix=True)
        return out
    if family == "llama":
        at = f"{base}layers.{layer}"
        put("attn_norm", f"{at}.input_layernorm")
        put("mlp_norm", f"{at}.post_attention_layernorm")
        for name in "qkvo":
            put(name, f"{at}.self_attn.{name}_proj", matrix=True)
        for name, word in (("input", "gate"), ("linear", "up"), ("out", "down")):
            put(name, f"{at}.mlp.{word}_proj", matrix=True)
        return out
    at = f"{base}h.{layer}"
    put("attn_norm", f"{at}.ln_1")
    put("mlp_norm", f"{at}.ln_2")
    put("o", f"{at}.attn.c_proj", matrix=True, transposed=True)
    put("input", f"{at}.mlp.c_fc", matrix=True, transposed=True)
    put("out", f"{at}.mlp.c_proj", matrix=True, transposed=True)
    weights = np.split(state[f"{at}.attn.c_attn.weight"], 3, axis=1)
    biases = np.split(state[f"{at}.attn.c_attn.bias"], 3)
    for name, weight, bias in zip("qkv", weights, biases, strict=True):
        out[f"{name}.weight"], out[f"{name}.bias"] = weight.T, bias
    return out


def assert_same(found: Weights, wanted: Weights) -> None:
    assert sorted(found) == sorted(wanted)
    for name, weight in wanted.items():
        assert found[name].shape == weight.shape, name
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], weight, err_msg=name)


def edit_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def mutated(data: bytes, draw: Callable[..., Any]) -> bytes:
    """Some bytes changed, near the beginning more often; perhaps cut or grown."""
    out = bytearray(data)
    for _ in range(draw(st.integers(0, 4))):
        end = draw(st.sampled_from([8, 200, 3000, len(out)]))
        out[draw(st.integers(0, min(end, len(out)) - 1))] = draw(st.integers(0, 255))
    cut = draw(st.sampled_from([None, None, "cut", "grow"]))
    if cut == "cut":
        del out[draw(st.integers(0, len(out))) :]
    elif cut == "grow":
        out += draw(st.binary(max_size=16))
    return bytes(out)
