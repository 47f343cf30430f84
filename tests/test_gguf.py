"""GGUF files: config and weights, against transformers' own reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from checkpoints import LLAMA3_ROTARY, assert_same, expected, expected_of, gpt2, llama, mutated
from gguf_files import gpt2_writer, llama_writer
from signflip import _core, loading
from signflip.errors import CheckpointError, FileError, SignflipError, UnsupportedModelError
from signflip.gguf import GgufFile
from signflip.gguf_tokenizer import tokenizer_json
from smollm2 import gguf_path

Q8 = gguf.GGMLQuantizationType.Q8_0


def assert_opens(path: Path, model: transformers.PreTrainedModel) -> loading.Loaded:
    loaded = loading.load_parts(path)
    assert_same(loaded.checkpoint.outer_weights(), expected(model, None))
    for layer in range(model.config.num_hidden_layers):
        assert_same(loaded.checkpoint.block_weights(layer), expected(model, layer))
    return loaded


@pytest.mark.parametrize(
    "options", [{}, {"tie_word_embeddings": True}, {"attention_bias": True, "mlp_bias": True}, {"head_dim": 10}]
)
def test_llama(tmp_path: Path, options: dict[str, Any]) -> None:
    model = llama(**options)
    loaded = assert_opens(llama_writer(tmp_path / "tiny.gguf", model).close(), model)
    assert (loaded.name, loaded.tokenizer, loaded.chat_template) == ("tiny", None, None)
    model.save_pretrained(tmp_path / "folder")
    assert loaded.checkpoint.spec() == _core.Checkpoint.open(tmp_path / "folder").spec()


def test_gpt2(tmp_path: Path) -> None:
    model = gpt2()
    loaded = assert_opens(gpt2_writer(tmp_path / "tiny.gguf", model).close(), model)
    model.save_pretrained(tmp_path / "folder")
    assert loaded.checkpoint.spec() == _core.Checkpoint.open(tmp_path / "folder").spec()


def test_half_precision_and_quantised_tensors(tmp_path: Path) -> None:
    model = llama(hidden_size=32, intermediate_size=64)
    state = model.state_dict()
    writer = llama_writer(tmp_path / "tiny.gguf", model)
    tensors = writer.writer.tensors[0]
    up, down = "blk.0.ffn_up.weight", "blk.0.ffn_down.weight"
    tensors.pop(up), tensors.pop(down)
    writer.add_tensor(up, state["model.layers.0.mlp.up_proj.weight"].half())
    writer.add_tensor(down, state["model.layers.0.mlp.down_proj.weight"], Q8)
    found = loading.load_parts(writer.close()).checkpoint.block_weights(0)
    np.testing.assert_array_equal(found["linear.weight"], state["model.layers.0.mlp.up_proj.weight"].half().float())
    # Q8_0 restated: blocks of 32, the scale a half-precision maximum over 127.
    blocks = state["model.layers.0.mlp.down_proj.weight"].numpy().reshape(-1, 32)
    exact = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    scaled = blocks / exact
    wanted = np.sign(scaled) * np.floor(np.abs(scaled) + np.float32(0.5)) * exact.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(found["out.weight"], wanted.reshape(32, 64))


def test_llama3_frequencies_are_stored_as_divisors(tmp_path: Path) -> None:
    model = llama(rope_parameters=dict(LLAMA3_ROTARY), head_dim=32)
    plain = 500_000.0 ** -(np.arange(0, 32, 2) / 32)
    writer = llama_writer(tmp_path / "tiny.gguf", model)
    writer.add_tensor("rope_freqs.weight", (plain / model.model.rotary_emb.inv_freq.numpy()).astype(np.float32))
    found = loading.load_parts(writer.close()).checkpoint.spec()["positions"]["rotary"]["inverse_frequencies"]
    np.testing.assert_allclose(found, model.model.rotary_emb.inv_freq.numpy(), rtol=1e-6)


def test_linear_scaling(tmp_path: Path) -> None:
    model = llama(rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0})
    writer = llama_writer(tmp_path / "tiny.gguf", model)
    writer.writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.writer.add_rope_scaling_factor(4.0)
    found = loading.load_parts(writer.close()).checkpoint.spec()["positions"]["rotary"]["inverse_frequencies"]
    np.testing.assert_allclose(found, model.model.rotary_emb.inv_freq.numpy(), rtol=1e-6)


@pytest.mark.parametrize(
    ("key", "value", "error", "names"),
    [
        ("llama.expert_count", 8, UnsupportedModelError, "expert_count = 8"),
        ("llama.attention.sliding_window", 128, UnsupportedModelError, "sliding_window"),
        ("llama.rope.dimension_count", 4, UnsupportedModelError, "dimension_count = 4"),
        ("llama.attention.head_count", "x", CheckpointError, "head_count.*int.*'x'"),
        ("llama.attention.head_count", 0, CheckpointError, "num_attention_heads"),
        ("llama.block_count", 3, CheckpointError, r"layers\.2"),
        ("llama.embedding_length", 25, CheckpointError, "25"),
        ("general.architecture", "mamba", UnsupportedModelError, "mamba.*llama"),
        ("llama.rope.scaling.type", "yarn", UnsupportedModelError, "yarn"),
    ],
)
def test_bad_metadata(tmp_path: Path, key: str, value: object, error: type[SignflipError], names: str) -> None:
    writer = llama_writer(tmp_path / "tiny.gguf", llama())
    kind = gguf.GGUFValueType.STRING if isinstance(value, str) else gguf.GGUFValueType.UINT32
    writer.writer.kv_data[0][key] = gguf.gguf_writer.GGUFValue(value, kind)
    with pytest.raises(error, match=names):
        loading.load_parts(writer.close())


def test_bad_tensors(tmp_path: Path) -> None:
    def written(name: str, change: str) -> Path:
        writer = llama_writer(tmp_path / f"{change}.gguf", llama())
        if change == "missing":
            writer.writer.tensors[0].pop(name)
        else:
            writer.add_tensor(name, np.ones((2, 3), np.float32))
        return writer.close()

    with pytest.raises(CheckpointError, match=r"up_proj.*none"):
        loading.load_parts(written("blk.1.ffn_up.weight", "missing"))
    with pytest.raises(CheckpointError, match=r"token_embd"):
        loading.load_parts(written("token_embd.weight", "missing"))
    with pytest.raises(UnsupportedModelError, match=r"ffn_gate_exps"):
        loading.load_parts(written("blk.1.ffn_gate_exps.weight", "more"))
    with pytest.raises(CheckpointError, match=r"layers\.7"):
        loading.load_parts(written("blk.7.ffn_up.weight", "other"))


def test_files_that_are_no_gguf(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    for content in (b"", b"GGUF", b"GGUF" + b"\xff" * 100, b"hello there" * 100):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"x.gguf"):
            loading.load_parts(path)
    with pytest.raises(FileError, match=r"none.gguf"):
        loading.load_parts(tmp_path / "none.gguf")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    writer = llama_writer(tmp_path_factory.mktemp("gguf") / "small.gguf", llama(num_hidden_layers=1))
    writer.add_tokenizer()
    return writer.close()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_mutated_files_give_typed_errors_only(small: Path, tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "mutated.gguf"
    path.unlink(missing_ok=True)
    path.write_bytes(mutated(small.read_bytes(), data.draw))
    try:
        checkpoint = loading.load_parts(path).checkpoint
        checkpoint.outer_weights()
        checkpoint.block_weights(0)
    except SignflipError:
        pass


# SmolLM2-135M-Instruct.


@pytest.fixture(scope="module")
def smollm2() -> loading.Loaded:
    return loading.load_parts(gguf_path())


@pytest.mark.slow
@pytest.mark.smollm2
def test_smollm2_weights_equal_those_of_transformers(smollm2: loading.Loaded) -> None:
    config = transformers.LlamaConfig(
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    tensors = load_gguf_checkpoint(str(gguf_path()), return_tensors=True, model_to_load=model)["tensors"]
    assert len(tensors) == 272
    spec = smollm2.checkpoint.spec()
    assert (spec["n_layers"], spec["d_model"], spec["n_heads"], spec["n_kv_heads"]) == (30, 576, 9, 3)
    assert_same(smollm2.checkpoint.outer_weights(), expected_of(tensors, "llama", None))
    for layer in range(30):
        of_layer = {name: tensor for name, tensor in tensors.items() if f".{layer}." in name}
        assert_same(smollm2.checkpoint.block_weights(layer), expected_of(of_layer, "llama", layer))
    assert np.float32(spec["norm_eps"]) == np.float32(1e-5)
    assert spec["n_ctx"] == 8192
    frequencies = spec["positions"]["rotary"]["inverse_frequencies"]
    np.testing.assert_allclose(frequencies, 100_000.0 ** -(np.arange(0, 64, 2) / 64), rtol=1e-12)


def test_opening_is_lazy(small: Path) -> None:
    """A tensor is dequantised when it is read, and not before."""
    file = GgufFile(small)
    read: list[str] = []
    original = file._dequantise
    file._dequantise = lambda name: read.append(name) or original(name)  # type: ignore[method-assign, func-returns-value]
    checkpoint = file.checkpoint()
    assert read == []
    checkpoint.block_weights(0)
    assert len(read) == 9
    assert all(name.startswith("blk.0.") for name in read)
    assert json.loads(tokenizer_json(file) or "null")["model"]["type"] == "BPE"
