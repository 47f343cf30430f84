"""Checkpoints as transformers writes them, opened and compared with transformers' own weights; and bad ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from signflip import _core, loading
from signflip.errors import (
    ArgumentError,
    CheckpointError,
    FileError,
    SignflipError,
    TokenizerError,
    UnsupportedModelError,
)

Weights = dict[str, np.ndarray]


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
    state = {name: tensor.float().numpy() for name, tensor in model.state_dict().items()}
    family = model.config.model_type
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


def assert_opens(folder: Path, model: transformers.PreTrainedModel) -> _core.Checkpoint:
    checkpoint = _core.Checkpoint.open(folder)
    assert_same(checkpoint.outer_weights(), expected(model, None))
    for layer in range(model.config.num_hidden_layers):
        assert_same(checkpoint.block_weights(layer), expected(model, layer))
    return checkpoint


def edit_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    "make",
    [
        lambda: llama(),
        lambda: llama(tie_word_embeddings=True),
        lambda: llama(num_key_value_heads=None, attention_bias=True),
        lambda: llama(num_key_value_heads=1, mlp_bias=True, head_dim=10),
        lambda: llama(cls="LlamaForSequenceClassification", num_labels=1, pad_token_id=7),
        lambda: llama(cls="LlamaForSequenceClassification", num_labels=3),
        lambda: llama(cls="LlamaModel", tie_word_embeddings=True),
        lambda: gpt2(),
        lambda: gpt2(tie_word_embeddings=False, n_inner=50),
        lambda: gpt2(cls="GPT2ForSequenceClassification", num_labels=1, pad_token_id=1),
        lambda: gpt2(cls="GPT2Model"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_are_those_of_transformers(
    tmp_path: Path, make: Callable[[], transformers.PreTrainedModel], dtype: torch.dtype
) -> None:
    model = make().to(dtype)
    model.save_pretrained(tmp_path)
    assert_opens(tmp_path, model)


@pytest.mark.parametrize("make", [llama, gpt2])
def test_shards(tmp_path: Path, make: Callable[[], transformers.PreTrainedModel]) -> None:
    model = make()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert_opens(tmp_path, model)
    loaded = loading.load_parts(tmp_path)
    assert set(loaded.files) == {path for path in tmp_path.iterdir() if path.name != "generation_config.json"}


def test_float64_and_buffers_are_read_and_ignored(tmp_path: Path) -> None:
    model = gpt2()
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    tensors["transformer.h.0.attn.bias"] = np.zeros((1, 1, 32, 32))
    tensors["transformer.h.0.attn.masked_bias"] = np.array(-1e4)
    save_file(tensors, tmp_path / "model.safetensors")
    assert_opens(tmp_path, model)


def test_a_tied_file_may_hold_either_tensor_or_both(tmp_path: Path) -> None:
    model = llama(tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    assert "lm_head.weight" not in tensors
    embed = tensors["model.embed_tokens.weight"]
    save_file(tensors | {"lm_head.weight": embed}, path)
    assert_opens(tmp_path, model)
    save_file({n: t for n, t in tensors.items() if n != "model.embed_tokens.weight"} | {"lm_head.weight": embed}, path)
    assert_opens(tmp_path, model)
    # Both, with different values: not tied after all, as transformers decides too.
    save_file(tensors | {"lm_head.weight": embed + 1}, path)
    assert_opens(tmp_path, transformers.LlamaForCausalLM.from_pretrained(tmp_path))
    assert "head.weight" in _core.Checkpoint.open(tmp_path).outer_weights()


ROTARY: list[dict[str, Any]] = [
    {"rope_theta": 10_000.0},
    {"rope_theta": 123_456.0},
    {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 3.0},
    {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512,
    },
]


@pytest.mark.parametrize("rotary", ROTARY)
@pytest.mark.parametrize("form", ["rope_parameters", "rope_type", "type"])
def test_rotary_frequencies(tmp_path: Path, rotary: dict[str, Any], form: str) -> None:
    model = llama(rope_parameters=dict(rotary), head_dim=32, max_position_embeddings=1024)
    model.save_pretrained(tmp_path)
    if form != "rope_parameters":

        def older(config: dict[str, Any]) -> None:
            parameters = config.pop("rope_parameters")
            config["rope_theta"] = parameters.pop("rope_theta")
            kind = parameters.pop("rope_type")
            config["rope_scaling"] = None if kind == "default" else {form: kind} | parameters

        edit_config(tmp_path, older)
    spec = _core.Checkpoint.open(tmp_path).spec()
    found = spec["positions"]["rotary"]["inverse_frequencies"]
    # transformers computes them in float32.
    np.testing.assert_allclose(found, model.model.rotary_emb.inv_freq.numpy(), rtol=1e-6)


def test_llama_spec(tmp_path: Path) -> None:
    model = llama(rms_norm_eps=1e-5, hidden_act="gelu_pytorch_tanh", head_dim=10)
    model.save_pretrained(tmp_path)
    spec = _core.Checkpoint.open(tmp_path).spec()
    frequencies = spec.pop("positions")["rotary"]["inverse_frequencies"]
    assert len(frequencies) == 5
    np.testing.assert_allclose(spec.pop("attn_scale"), [10**-0.5] * 2, rtol=1e-7)
    assert np.float32(spec.pop("norm_eps")) == np.float32(1e-5)
    assert spec == {
        "family": "llama",
        "n_layers": 2,
        "d_model": 24,
        "d_mlp": 40,
        "n_heads": 4,
        "n_kv_heads": 2,
        "d_head": 10,
        "d_vocab": 53,
        "n_ctx": 64,
        "act_fn": "gelu_pytorch_tanh",
        "activation": "gelu_tanh",
        "gated": True,
        "norm": "rms",
        "head": "unembed",
    }


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("by_layer", [True, False])
def test_gpt2_attention_scale(tmp_path: Path, weights: bool, by_layer: bool) -> None:
    model = gpt2(scale_attn_weights=weights, scale_attn_by_inverse_layer_idx=by_layer, n_layer=3)
    model.save_pretrained(tmp_path)
    found = _core.Checkpoint.open(tmp_path).spec()["attn_scale"]
    wanted = [np.float32(block.attn.scaling) for block in model.transformer.h]
    np.testing.assert_array_equal(np.float32(found), wanted)


@pytest.mark.parametrize(
    ("word", "kind"),
    [("gelu_new", "gelu_tanh"), ("gelu", "gelu"), ("gelu_pytorch_tanh", "gelu_tanh"), ("relu", "relu"), ("silu", "silu")],
)
def test_activations(tmp_path: Path, word: str, kind: str) -> None:
    gpt2(activation_function=word).save_pretrained(tmp_path)
    spec = _core.Checkpoint.open(tmp_path).spec()
    assert (spec["act_fn"], spec["activation"]) == (word, kind)


@pytest.mark.parametrize(("pad", "wanted"), [(7, 7), (None, None), (-1, None)])
def test_reward_heads(tmp_path: Path, pad: int | None, wanted: int | None) -> None:
    llama(cls="LlamaForSequenceClassification", num_labels=3).save_pretrained(tmp_path)
    edit_config(tmp_path, lambda config: config.update(pad_token_id=pad))
    assert _core.Checkpoint.open(tmp_path).spec()["head"] == {"reward": {"labels": 3, "pad": wanted}}


# Bad inputs: what is done to a good folder, the error, and what its message must name.


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    llama().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "model"))


@pytest.mark.parametrize(
    ("change", "error", "names"),
    [
        ({"model_type": "mamba", "architectures": ["MambaForCausalLM"]}, UnsupportedModelError, "mamba.*llama"),
        ({"architectures": ["LlamaForQuestionAnswering"]}, UnsupportedModelError, "QuestionAnswering.*LlamaForCausal"),
        ({"architectures": 3}, CheckpointError, "architectures"),
        ({"model_type": None, "architectures": None}, CheckpointError, "model_type"),
        ({"model_type": 5}, CheckpointError, "model_type.*5"),
        ({"sliding_window": 8}, UnsupportedModelError, "sliding_window = 8"),
        ({"num_local_experts": 4}, UnsupportedModelError, "num_local_experts"),
        ({"quantization_config": {"bits": 4}}, UnsupportedModelError, "quantization_config"),
        ({"hidden_act": "quick_gelu"}, UnsupportedModelError, "quick_gelu.*silu"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, UnsupportedModelError, "yarn.*llama3"),
        ({"rope_parameters": {"rope_type": "linear"}}, CheckpointError, "factor"),
        ({"rope_parameters": {"rope_theta": -1.0}}, CheckpointError, "rope_theta.*-1"),
        ({"rope_parameters": [1]}, CheckpointError, "rope_parameters"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, UnsupportedModelError, "partial_rotary_factor"),
        ({"vocab_size": 54}, CheckpointError, r"embed_tokens.*\[54, 24\].*\[53, 24\]"),
        ({"vocab_size": None}, CheckpointError, "vocab_size.*nothing"),
        ({"vocab_size": "53"}, CheckpointError, "vocab_size"),
        ({"hidden_size": 0}, CheckpointError, "hidden_size.*0"),
        ({"hidden_size": -24}, CheckpointError, "hidden_size.*-24"),
        ({"hidden_size": 1 << 70}, CheckpointError, "hidden_size"),
        ({"hidden_size": 26, "head_dim": None}, CheckpointError, "multiple of num_attention_heads = 4"),
        ({"head_dim": 7}, CheckpointError, "head_dim.*even"),
        ({"num_key_value_heads": 3}, CheckpointError, "num_key_value_heads.*divisor of 4.*3"),
        ({"num_hidden_layers": 3}, CheckpointError, r"layers\.2"),
        ({"num_hidden_layers": 2147483647}, CheckpointError, r"layers\.2"),
        ({"num_hidden_layers": 1}, CheckpointError, r"layers\.1"),
        ({"rms_norm_eps": -1.0}, CheckpointError, "rms_norm_eps.*-1"),
        ({"attention_bias": True}, CheckpointError, "q_proj.bias"),
        ({"attention_bias": "no"}, CheckpointError, "attention_bias"),
        ({"architectures": ["LlamaForSequenceClassification"]}, CheckpointError, "score.weight"),
    ],
)
def test_bad_configs(folder: Path, change: dict[str, Any], error: type[SignflipError], names: str) -> None:
    edit_config(folder, lambda config: config.update(change))
    with pytest.raises(error, match=names):
        loading.load_parts(folder)


def test_gpt2_refuses_what_it_does_not_build(tmp_path: Path) -> None:
    gpt2(add_cross_attention=True).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="add_cross_attention"):
        loading.load_parts(tmp_path)
    gpt2().save_pretrained(tmp_path / "heads")
    edit_config(tmp_path / "heads", lambda config: config.update(n_head=5))
    with pytest.raises(CheckpointError, match="n_embd.*n_head = 5.*24"):
        loading.load_parts(tmp_path / "heads")


NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda t: t.pop(NAME), f"{NAME}.*none"),
        (lambda t: t.update({NAME: t[NAME].T.copy()}), rf"{NAME}.*\[40, 24\].*\[24, 40\]"),
        (lambda t: t.update({NAME: t[NAME].astype(np.int32)}), f"{NAME}.*F32.*I32"),
        (lambda t: t.update({"model.layers.1.self_attn.q_norm.weight": np.ones(6, np.float32)}), "q_norm"),
        (lambda t: t.update({"model.layers.2.mlp.up_proj.weight": t[NAME]}), r"layers\.2"),
        (lambda t: t.pop("lm_head.weight"), "lm_head.weight.*none"),
        (lambda t: t.clear(), "embed_tokens"),
    ],
)
def test_bad_tensors(folder: Path, change: Callable[[Weights], object], names: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=names):
        loading.load_parts(folder)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_weights_that_are_not_finite(folder: Path, dtype: type, value: float) -> None:
    tensors = load_file(folder / "model.safetensors")
    bad = tensors[NAME].astype(dtype)
    bad[7, 5] = value
    save_file(tensors | {NAME: bad}, folder / "model.safetensors")
    checkpoint = _core.Checkpoint.open(folder)
    checkpoint.block_weights(0)
    with pytest.raises(CheckpointError, match=rf"{NAME}.*finite.*element {7 * 24 + 5}"):
        checkpoint.block_weights(1)


def test_float64_that_float32_cannot_hold(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {NAME: np.full((40, 24), 1e39)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="finite"):
        _core.Checkpoint.open(folder).block_weights(1)


@pytest.mark.parametrize("shard", ["../outside.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "", "a\\b", 3])
def test_shards_must_lie_in_the_folder(folder: Path, shard: object) -> None:
    shutil.copy(folder / "model.safetensors", folder.parent / "outside.safetensors")
    (folder / "sub").mkdir()
    shutil.move(folder / "model.safetensors", folder / "sub" / "x.safetensors")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="model.safetensors.index.json"):
        loading.load_parts(folder)


@pytest.mark.parametrize("index", ["", "{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"x": "y"', "\xff\xfe"])
def test_bad_indices(folder: Path, index: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_bytes(index.encode("latin-1"))
    with pytest.raises(CheckpointError, match="model.safetensors.index.json"):
        loading.load_parts(folder)


def test_missing_shard_and_lying_index(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path, max_shard_size="20KB")
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    shards = sorted(set(index["weight_map"].values()))
    good = index["weight_map"][NAME]
    index["weight_map"][NAME] = next(shard for shard in shards if shard != good)
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=NAME):
        loading.load_parts(tmp_path)
    (tmp_path / shards[-1]).unlink()
    with pytest.raises(FileError, match=shards[-1]):
        loading.load_parts(tmp_path)


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pytorch_model.bin.*pickled weights are refused"):
        loading.load_parts(folder)


def test_missing_files(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model.safetensors.*neither"):
        loading.load_parts(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileError, match="config.json"):
        loading.load_parts(folder)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UnsupportedModelError, match="adapter"):
        loading.load_parts(folder)
    for name in (tmp_path / "nowhere", "./nowhere", "no/such/model", "nowhere.gguf", ""):
        with pytest.raises(FileError):
            loading.load_parts(name)
    other = tmp_path / "weights.bin"
    other.write_bytes(b"")
    with pytest.raises(FileError, match="weights.bin"):
        loading.load_parts(other)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"vocab_size": NaN}', "[" * 100_000, "\xff"])
def test_malformed_config(folder: Path, text: str) -> None:
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match="config.json"):
        loading.load_parts(folder)


@pytest.mark.parametrize("file", ["tokenizer_config.json", "generation_config.json"])
def test_malformed_side_files(folder: Path, file: str) -> None:
    for text in ("{", "[]", "[" * 100_000):
        (folder / file).write_text(text)
        with pytest.raises(CheckpointError, match=file):
            loading.load_parts(folder)


def test_malformed_tokenizer(folder: Path) -> None:
    for text in (b"", b"{}", b"\xff", b'{"model": {"type": "BPE", "vocab": {}, "merges": []}}'):
        (folder / "tokenizer.json").write_bytes(text)
        with pytest.raises(TokenizerError, match="tokenizer"):
            loading.load_parts(folder)


def test_tensors_from_python_are_checked(good: Path) -> None:
    config = (good / "config.json").read_text()
    tensors = load_file(good / "model.safetensors")
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    checkpoint = _core.Checkpoint.from_tensors(config, tensors.__getitem__, shapes)
    wanted = _core.Checkpoint.open(good)
    assert checkpoint.spec() == wanted.spec()
    assert_same(checkpoint.outer_weights(), wanted.outer_weights())
    assert_same(checkpoint.block_weights(1), wanted.block_weights(1))

    def opened(value: object) -> _core.Checkpoint:
        return _core.Checkpoint.from_tensors(config, lambda n: value if n == NAME else tensors[n], shapes)

    for value, names in [
        (np.asfortranarray(tensors[NAME]), "contiguous"),
        (tensors[NAME].astype(np.float64), "float32"),
        (tensors[NAME][:-1], "960 elements, found 936"),
        ([1.0], "float32"),
        (np.full_like(tensors[NAME], np.nan), "finite"),
    ]:
        with pytest.raises(CheckpointError, match=f"{NAME}.*{names}"):
            opened(value).block_weights(1)

    def fails(name: str) -> np.ndarray:
        raise ZeroDivisionError(name)

    with pytest.raises(ZeroDivisionError, match="embed_tokens"):
        _core.Checkpoint.from_tensors(config, fails, shapes).outer_weights()
    with pytest.raises(CheckpointError, match="config.json"):
        _core.Checkpoint.from_tensors("{", fails, shapes)
    with pytest.raises(ArgumentError, match="layer.*0 to 1.*2"):
        wanted.block_weights(2)


def read_all(folder: Path) -> None:
    """Opens and reads everything; a typed error is an answer, anything else is not."""
    try:
        checkpoint = loading.load_parts(folder).checkpoint
        checkpoint.outer_weights()
        for layer in range(checkpoint.spec()["n_layers"]):
            checkpoint.block_weights(layer)
    except SignflipError:
        pass


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


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_mutated_files_give_typed_errors_only(good: Path, tmp_path: Path, data: st.DataObject) -> None:
    file = data.draw(st.sampled_from(["model.safetensors", "config.json"]))
    target = tmp_path / "mutated"
    shutil.copytree(good, target, dirs_exist_ok=True)
    (target / file).unlink()  # mapped by earlier examples: replaced, never written over
    (target / file).write_bytes(mutated((good / file).read_bytes(), data.draw))
    read_all(target)


def test_mutations_are_not_all_refused_or_all_accepted(good: Path, tmp_path: Path) -> None:
    """The test above would pass on a reader that refuses everything."""
    data = (good / "model.safetensors").read_bytes()
    folder = Path(shutil.copytree(good, tmp_path / "m"))
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").write_bytes(data[:-4] + b"\0\0\0\0")
    _core.Checkpoint.open(folder).outer_weights()
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").write_bytes(data[:-1])
    with pytest.raises(CheckpointError, match="model.safetensors"):
        _core.Checkpoint.open(folder)


# The hub: a cache laid out as huggingface_hub lays it out, and no network.


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "cache"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(root))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return root


def test_hub_ids_come_from_the_cache_when_offline(good: Path, cache: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = cache / "models--someone--tiny"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    blobs = repository / "blobs"
    blobs.mkdir()
    for path in good.iterdir():
        shutil.copy(path, blobs / path.name)
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    for revision in (None, "main", commit):
        loaded = loading.load_parts("someone/tiny", revision=revision)
        assert loaded.source == snapshot
        assert loaded.name == "someone/tiny"
    assert_same(loaded.checkpoint.outer_weights(), _core.Checkpoint.open(good).outer_weights())
    with pytest.raises(FileError, match="someone/tiny.*'other'"):
        loading.load_parts("someone/tiny", revision="other")
    with pytest.raises(FileError, match="someone/else"):
        loading.load_parts("someone/else")


def test_a_local_path_has_no_revision(good: Path) -> None:
    with pytest.raises(ArgumentError, match="revision"):
        loading.load_parts(good, revision="main")


def test_model_hash(good: Path, tmp_path: Path) -> None:
    import hashlib

    copy = Path(shutil.copytree(good, tmp_path / "copy"))
    here, there = loading.load_parts(good), loading.load_parts(copy)
    assert {path.name for path in here.files} == {"config.json", "model.safetensors"}
    lines = "".join(f"{hashlib.sha256((good / n).read_bytes()).hexdigest()}  {n}\n" for n in ("config.json", "model.safetensors"))
    assert loading.model_hash(here.files) == hashlib.sha256(lines.encode()).hexdigest()
    assert loading.model_hash(here.files) == loading.model_hash(there.files)
    (copy / "config.json").write_text((copy / "config.json").read_text() + " ")
    assert loading.model_hash(here.files) != loading.model_hash(there.files)
    (copy / "config.json").unlink()
    with pytest.raises(FileError, match="config.json"):
        loading.model_hash(there.files)
