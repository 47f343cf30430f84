"""Checkpoints as transformers writes them, opened and compared with transformers' own weights; and the hub's cache."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from checkpoints import LLAMA3_ROTARY, assert_same, edit_config, expected, gpt2, llama
from signflip import _core, loading
from signflip.errors import ArgumentError, FileError


def assert_opens(folder: Path, model: transformers.PreTrainedModel) -> _core.Checkpoint:
    checkpoint = _core.Checkpoint.open(folder)
    assert_same(checkpoint.outer_weights(), expected(model, None))
    for layer in range(model.config.num_hidden_layers):
        assert_same(checkpoint.block_weights(layer), expected(model, layer))
    return checkpoint


@pytest.mark.parametrize(
    "make",
    [
        llama,
        lambda: llama(tie_word_embeddings=True),
        lambda: llama(num_key_value_heads=None, attention_bias=True),
        lambda: llama(num_key_value_heads=1, mlp_bias=True, head_dim=10),
        lambda: llama(cls="LlamaForSequenceClassification", num_labels=1, pad_token_id=7),
        lambda: llama(cls="LlamaForSequenceClassification", num_labels=3),
        lambda: llama(cls="LlamaModel", tie_word_embeddings=True),
        gpt2,
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
    LLAMA3_ROTARY,
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
    [
        ("gelu_new", "gelu_tanh"),
        ("gelu", "gelu"),
        ("gelu_pytorch_tanh", "gelu_tanh"),
        ("relu", "relu"),
        ("silu", "silu"),
    ],
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


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    llama().save_pretrained(folder)
    return folder


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
    with pytest.raises(FileError, match=r"someone/tiny.*'other'"):
        loading.load_parts("someone/tiny", revision="other")
    with pytest.raises(FileError, match=r"someone/else"):
        loading.load_parts("someone/else")


class _Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's protocol as a download needs."""

    folder: Path
    asked: ClassVar[list[str]] = []
    COMMIT = "0123456789abcdef0123456789abcdef01234567"

    def _answer(self, *, body: bool) -> None:
        self.asked.append(self.path)
        path = urllib.parse.urlsplit(self.path).path
        files = sorted(self.folder.iterdir())
        listing = re.fullmatch(r"/api/models/someone/tiny(/revision/main)?", path)
        # How the hub's client of today lists files; the one before took them from the listing above.
        tree = re.fullmatch(rf"/api/models/someone/tiny/tree/{self.COMMIT}", path)
        file = re.fullmatch(rf"/someone/tiny/resolve/(main|{self.COMMIT})/([^/]+)", path)
        data = b""
        if listing:
            names = [{"rfilename": one.name} for one in files]
            data = json.dumps({"id": "someone/tiny", "sha": self.COMMIT, "siblings": names}).encode()
        elif tree:
            entries = [{"type": "file", "path": one.name, "size": one.stat().st_size, "oid": "0" * 40} for one in files]
            data = json.dumps(entries).encode()
        elif file and (self.folder / file[2]).is_file():
            data = (self.folder / file[2]).read_bytes()
        self.send_response(200 if data else 404)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.COMMIT)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


def test_a_hub_id_is_fetched_once_and_opens_without_the_hub(good: Path, tmp_path: Path) -> None:
    shutil.copytree(good, tmp_path / "served")
    # Weights in another format, which may be large, stay where they are.
    (tmp_path / "served" / "pytorch_model.bin").write_bytes(b"x" * 100)
    handler = type("Hub", (_Hub,), {"folder": tmp_path / "served", "asked": []})
    code = "import signflip as sf; print(sf.load('someone/tiny').run([1, 2, 3]).shape)"
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        there = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}", "HF_HOME": str(tmp_path / "home")}
        environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")} | there

        def load(name: str = "someone/tiny", **more: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [sys.executable, "-c", code.replace("someone/tiny", name)],
                env=environment | more, capture_output=True, text=True, check=False,
            )  # fmt: skip

        first = load()
        assert first.stdout.startswith("(1, 3, "), first.stderr
        assert not any("pytorch_model.bin" in path for path in handler.asked)
        missing = load("someone/else")
        server.shutdown()
    assert "FileError: someone/else" in missing.stderr
    # What was fetched opens offline by setting, and with the hub gone.
    assert load(HF_HUB_OFFLINE="1").stdout == first.stdout
    assert load().stdout == first.stdout


def test_a_local_path_has_no_revision(good: Path) -> None:
    with pytest.raises(ArgumentError, match=r"revision"):
        loading.load_parts(good, revision="main")


def test_model_hash(good: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(good, tmp_path / "copy"))
    here, there = loading.load_parts(good), loading.load_parts(copy)
    assert {path.name for path in here.files} == {"config.json", "model.safetensors"}
    lines = "".join(
        f"{hashlib.sha256((good / n).read_bytes()).hexdigest()}  {n}\n" for n in ("config.json", "model.safetensors")
    )
    assert loading.model_hash(here.files) == hashlib.sha256(lines.encode()).hexdigest()
    assert loading.model_hash(here.files) == loading.model_hash(there.files)
    (copy / "config.json").write_text((copy / "config.json").read_text() + " ")
    assert loading.model_hash(here.files) != loading.model_hash(there.files)
    (copy / "config.json").unlink()
    with pytest.raises(FileError, match=r"config.json"):
        loading.model_hash(there.files)
