"""Bad checkpoints: each gives one typed error that names the thing; whatever bytes a file holds, nothing panics."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from checkpoints import Weights, assert_same, edit_config, gpt2, llama, mutated
from signflip import _core, loading
from signflip.errors import (
    ArgumentError,
    CheckpointError,
    FileError,
    SignflipError,
    TokenError,
    TokenizerError,
    UnsupportedModelError,
)
from test_tokenizer import byte_level

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
    with pytest.raises(UnsupportedModelError, match=r"add_cross_attention"):
        loading.load_parts(tmp_path)
    gpt2().save_pretrained(tmp_path / "heads")
    edit_config(tmp_path / "heads", lambda config: config.update(n_head=5))
    with pytest.raises(CheckpointError, match=r"n_embd.*n_head = 5.*24"):
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
    with pytest.raises(CheckpointError, match=r"finite"):
        _core.Checkpoint.open(folder).block_weights(1)


@pytest.mark.parametrize("shard", ["../outside.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "", "a\\b", 3])
def test_shards_must_lie_in_the_folder(folder: Path, shard: object) -> None:
    shutil.copy(folder / "model.safetensors", folder.parent / "outside.safetensors")
    (folder / "sub").mkdir()
    shutil.move(folder / "model.safetensors", folder / "sub" / "x.safetensors")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"model.safetensors.index.json"):
        loading.load_parts(folder)


@pytest.mark.parametrize("index", ["", "{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"x": "y"', "\xff\xfe"])
def test_bad_indices(folder: Path, index: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_bytes(index.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"model.safetensors.index.json"):
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
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin.*pickled weights are refused"):
        loading.load_parts(folder)


def test_missing_files(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model.safetensors.*neither"):
        loading.load_parts(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileError, match=r"config.json"):
        loading.load_parts(folder)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UnsupportedModelError, match=r"adapter"):
        loading.load_parts(folder)
    for name in (tmp_path / "nowhere", "./nowhere", "no/such/model", "nowhere.gguf", ""):
        with pytest.raises(FileError):
            loading.load_parts(name)
    other = tmp_path / "weights.bin"
    other.write_bytes(b"")
    with pytest.raises(FileError, match=r"weights.bin"):
        loading.load_parts(other)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"vocab_size": NaN}', "[" * 100_000, "\xff"])
def test_malformed_config(folder: Path, text: str) -> None:
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"config.json"):
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
        with pytest.raises(TokenizerError, match=r"tokenizer"):
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

    with pytest.raises(ZeroDivisionError, match=r"embed_tokens"):
        _core.Checkpoint.from_tensors(config, fails, shapes).outer_weights()
    with pytest.raises(CheckpointError, match=r"config.json"):
        _core.Checkpoint.from_tensors("{", fails, shapes)
    with pytest.raises(ArgumentError, match=r"layer.*0 to 1.*2"):
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
    with pytest.raises(CheckpointError, match=r"model.safetensors"):
        _core.Checkpoint.open(folder)


@pytest.mark.parametrize("path", [5, None, b"x", ["x"]])
def test_paths_that_are_none(path: Any) -> None:
    with pytest.raises(ArgumentError, match="path_or_hub_id"):
        loading.load(path)


@pytest.mark.parametrize("path", ["~nouser/x", "a" * 5000, "a/" * 5000, "a\0b"])
def test_paths_that_cannot_be(path: str) -> None:
    with pytest.raises(FileError, match=r"~nouser|aaa|a/a|a.b"):
        loading.load(path)


@pytest.mark.parametrize("which", ["device", "dtype"])
@pytest.mark.parametrize("value", [5, None, b"cpu"])
def test_devices_and_dtypes_that_are_no_text(good: Path, which: str, value: Any) -> None:
    with pytest.raises(ArgumentError, match=f"{which}: expected"):
        loading.load(good, **{which: value})


@pytest.mark.parametrize("key", ["bos_token_id", "eos_token_id"])
@pytest.mark.parametrize("value", [2**64, 2**32, [1, 2**70]])
def test_special_ids_that_no_vocabulary_has(folder: Path, key: str, value: Any) -> None:
    byte_level().save(str(folder / "tokenizer.json"))
    edit_config(folder, lambda config: config.update({key: value}))
    (folder / "generation_config.json").unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match=rf"config.json, {key}.*{2**32 - 1}"):
        loading.load(folder)


def test_texts_and_messages_that_are_none(folder: Path) -> None:
    byte_level().save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    model = loading.load(folder)
    wrong: list[Any] = [5, None, [1, 2], ["the", 5], b"the", {"the": 1}]
    for text in wrong:
        with pytest.raises(TokenError, match="text"):
            model.to_tokens(text)
    for messages in (5, None, {"role": "user", "content": "the"}, b"the", [5]):
        with pytest.raises(ArgumentError, match="messages"):
            model.to_chat(messages)  # type: ignore[arg-type]
    for prefill in (5, None):
        with pytest.raises(ArgumentError, match="prefill"):
            model.to_chat("the", prefill=prefill)  # type: ignore[arg-type]
    assert model.to_chat("the", prefill="n") == "then"
