"""GGUF files: weights against transformers' own reader, tokenizers against ones put together by hand."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tokenizers
import tokenizers.trainers
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from checkpoints import LLAMA3_ROTARY, assert_same, expected, expected_of, gpt2, llama, mutated
from signflip import _core, chat, loading
from signflip.errors import CheckpointError, FileError, SignflipError, TokenizerError, UnsupportedModelError
from signflip.gguf import GgufFile
from signflip.gguf_tokenizer import tokenizer_json
from smollm2 import gguf_path

Q8 = gguf.GGMLQuantizationType.Q8_0


def byte_alphabet() -> list[str]:
    return sorted(pre_tokenizers.ByteLevel.alphabet())


class Writer:
    """A small GGUF file, written by the gguf package with names and layouts as llama.cpp's converter writes them."""

    def __init__(self, path: Path, arch: str) -> None:
        self.path = path
        self.writer = gguf.GGUFWriter(path, arch)

    def add_tensor(
        self, name: str, value: torch.Tensor | np.ndarray, kind: gguf.GGMLQuantizationType | None = None
    ) -> None:
        array = np.ascontiguousarray(value.detach().numpy() if isinstance(value, torch.Tensor) else value)
        if kind is None:
            self.writer.add_tensor(name, array)
        else:
            self.writer.add_tensor(name, gguf.quantize(array, kind), raw_dtype=kind)

    def add_tokenizer(self, pre: str | None = "gpt-2", **flags: bool) -> None:
        tokens = [*byte_alphabet(), "ab", "Ġa", "12", "<s>", "</s>", "<user>"]
        self.writer.add_tokenizer_model("gpt2")
        if pre is not None:
            self.writer.add_tokenizer_pre(pre)
        self.writer.add_token_list(tokens)
        self.writer.add_token_types([1] * (len(tokens) - 3) + [3, 3, 4])
        self.writer.add_token_merges(["a b", "Ġ a", "1 2"])
        self.writer.add_bos_token_id(tokens.index("<s>"))
        self.writer.add_eos_token_id(tokens.index("</s>"))
        if "bos" in flags:
            self.writer.add_add_bos_token(flags["bos"])
        if "eos" in flags:
            self.writer.add_add_eos_token(flags["eos"])

    def close(self) -> Path:
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()
        return self.path


def permuted(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """llama.cpp's permutation of query and key rows (convert_hf_to_gguf.py, LlamaModel.permute)."""
    return (
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
    )


LLAMA_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
GPT2_NAMES = {
    "ln_1": "attn_norm",
    "ln_2": "ffn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}


def llama_writer(path: Path, model: transformers.PreTrainedModel) -> Writer:
    config = model.config
    out = Writer(path, "llama")
    out.writer.add_context_length(config.max_position_embeddings)
    out.writer.add_embedding_length(config.hidden_size)
    out.writer.add_block_count(config.num_hidden_layers)
    out.writer.add_feed_forward_length(config.intermediate_size)
    out.writer.add_head_count(config.num_attention_heads)
    out.writer.add_head_count_kv(config.num_key_value_heads)
    out.writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    out.writer.add_key_length(config.head_dim)
    out.writer.add_value_length(config.head_dim)
    state = model.state_dict()
    for name, value in state.items():
        stem, _, part = name.removeprefix("model.").rpartition(".")
        if stem.startswith("layers."):
            _, layer, inner = stem.split(".", 2)
            if "q_proj" in inner:
                value = permuted(value, config.num_attention_heads)
            if "k_proj" in inner:
                value = permuted(value, config.num_key_value_heads)
            out.add_tensor(f"blk.{layer}.{LLAMA_NAMES[inner]}.{part}", value)
        elif stem != "lm_head" or not config.tie_word_embeddings:
            out.add_tensor(
                f"{ {'embed_tokens': 'token_embd', 'norm': 'output_norm', 'lm_head': 'output'}[stem] }.{part}", value
            )
    return out


def gpt2_writer(path: Path, model: transformers.PreTrainedModel) -> Writer:
    config = model.config
    out = Writer(path, "gpt2")
    out.writer.add_context_length(config.n_positions)
    out.writer.add_embedding_length(config.n_embd)
    out.writer.add_block_count(config.n_layer)
    out.writer.add_feed_forward_length(config.n_inner or 4 * config.n_embd)
    out.writer.add_head_count(config.n_head)
    out.writer.add_layer_norm_eps(config.layer_norm_epsilon)
    for name, value in model.state_dict().items():
        stem, _, part = name.removeprefix("transformer.").rpartition(".")
        if stem.startswith("h."):
            _, layer, inner = stem.split(".", 2)
            value = value.T if value.ndim == 2 else value
            out.add_tensor(f"blk.{layer}.{GPT2_NAMES[inner]}.{part}", value)
        elif stem != "lm_head":
            out.add_tensor(
                f"{ {'wte': 'token_embd', 'wpe': 'position_embd', 'ln_f': 'output_norm'}[stem] }.{part}", value
            )
    return out


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


# Tokenizers.


def by_hand(
    vocabulary: dict[str, int], merges: list[tuple[str, str]], special: list[str], digits: bool
) -> tokenizers.Tokenizer:
    """What the rebuilt tokenizer is to be, put together from parts."""
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    split = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    return tokenizer


@pytest.mark.parametrize(("pre", "digits"), [("gpt-2", False), ("smollm", True)])
def test_tiny_tokenizers(tmp_path: Path, pre: str, digits: bool) -> None:
    writer = llama_writer(tmp_path / "tiny.gguf", llama(num_hidden_layers=1))
    writer.add_tokenizer(pre)
    loaded = loading.load_parts(writer.close())
    assert loaded.tokenizer is not None
    assert len(loaded.tokenizer.encode("12")) == (2 if digits else 1)
    assert loaded.tokenizer.encode("ab<s> ac<user>") == [
        loaded.tokenizer.token_to_id(piece) for piece in ("ab", "<s>", "Ġa", "c", "<user>")
    ]
    assert loaded.tokenizer.special_ids == [loaded.tokenizer.token_to_id("<s>"), loaded.tokenizer.token_to_id("</s>")]
    assert (loaded.bos_token, loaded.eos_token) == ("<s>", "</s>")
    assert loaded.stop_ids == (loaded.eos_id,)
    assert loaded.tokenizer.prefix_ids == []


@pytest.mark.parametrize("flags", [{"bos": True}, {"bos": True, "eos": True}, {"bos": False, "eos": True}])
def test_begin_and_end_tokens(tmp_path: Path, flags: dict[str, bool]) -> None:
    writer = llama_writer(tmp_path / "tiny.gguf", llama(num_hidden_layers=1))
    writer.add_tokenizer(**flags)
    loaded = loading.load_parts(writer.close())
    tokenizer = loaded.tokenizer
    assert tokenizer is not None
    begin = [loaded.bos_id] if flags.get("bos") else []
    end = [loaded.eos_id] if flags.get("eos") else []
    plain = tokenizer.encode("ab a", add_special_tokens=False)
    assert tokenizer.encode("ab a") == [*begin, *plain, *end]
    assert tokenizer.prefix_ids == begin
    assert tokenizer.decode(tokenizer.encode("ab a"), skip_special_tokens=True) == "ab a"


def test_tokenizers_that_are_not_supported(tmp_path: Path) -> None:
    for pre, words in (("viking", "viking.*smollm"), (None, "None.*smollm")):
        writer = llama_writer(tmp_path / f"{pre}.gguf", llama(num_hidden_layers=1))
        writer.add_tokenizer(pre)
        with pytest.raises(TokenizerError, match=words):
            loading.load_parts(writer.close())
    writer = gpt2_writer(tmp_path / "gpt2.gguf", gpt2(n_layer=1))
    writer.add_tokenizer(None)  # before llama.cpp wrote the kind: a GPT-2 has GPT-2's
    assert loading.load_parts(writer.close()).tokenizer is not None


SENTENCES = [
    "Once upon a time there was a king who had three sons.",
    "The king's sons hadn't seen 12,345 ships; the sea was grey, and they'll wait.",
    "naïve café – 東京 and a tab\tand two  spaces\n\nthen a new line.",
]


def score_by_rank(texts: list[str], size: int) -> tuple[list[str], list[int], list[float]]:
    """Tokens, kinds and scores as SentencePiece's BPE writes them: a piece's score is minus the rank of its merge."""
    trained = tokenizers.Tokenizer(models.BPE())
    words = [text.replace(" ", "▁") for text in texts]
    trained.train_from_iterator(
        [f"▁{word}" for word in words], tokenizers.trainers.BpeTrainer(vocab_size=size, show_progress=False)
    )
    letters = [piece for piece in trained.get_vocab() if len(piece) == 1]
    merges = json.loads(trained.to_str())["model"]["merges"]
    merged = ["".join(pair) for pair in merges]
    pieces = [*merged, *sorted(letters)]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *pieces]
    kinds = [2, 3, 3, *[6] * 256, *[1] * len(pieces)]
    return tokens, kinds, [*[0.0] * 259, *(-float(i) for i in range(len(pieces)))]


def sentencepiece_ids(text: str, tokens: list[str], kinds: list[int], scores: list[float]) -> list[int]:
    """llama.cpp's `llm_tokenizer_spm_session`, restated: the best-scored pair first, of equal ones the leftmost."""
    normal = {token: i for i, token in enumerate(tokens) if kinds[i] == 1}
    pieces = list("▁" + text.replace(" ", "▁"))
    while True:
        pairs = [(scores[normal[a + b]], -i) for i, (a, b) in enumerate(itertools.pairwise(pieces)) if a + b in normal]
        if not pairs:
            break
        at = -max(pairs)[1]
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
    ids = []
    for piece in pieces:
        ids += [normal[piece]] if piece in normal else [tokens.index(f"<0x{byte:02X}>") for byte in piece.encode()]
    return ids


def add_sentencepiece(writer: Writer, described: tuple[list[str], list[int], list[float]]) -> None:
    tokens, kinds, scores = described
    writer.writer.add_tokenizer_model("llama")
    writer.writer.add_tokenizer_pre("default")
    writer.writer.add_token_list(tokens)
    writer.writer.add_token_scores(scores)
    writer.writer.add_token_types(kinds)
    writer.writer.add_bos_token_id(1)
    writer.writer.add_eos_token_id(2)


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    described = score_by_rank(SENTENCES * 3, 140)
    writer = llama_writer(tmp_path_factory.mktemp("spm") / "llama2.gguf", llama(num_hidden_layers=1))
    add_sentencepiece(writer, described)
    return writer.close(), described


@given(words=st.lists(st.sampled_from([*" ".join(SENTENCES).split(), "unseen", "🙂", "x", " "]), max_size=12))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_sentencepiece_as_llama_cpp_reads_it(sentencepiece: tuple[Path, Any], words: list[str]) -> None:
    path, described = sentencepiece
    tokenizer = loading.load_parts(path).tokenizer
    assert tokenizer is not None
    text = " ".join(words)
    ids = tokenizer.encode(text)
    assert ids == [1, *(sentencepiece_ids(text, *described) if text else [])]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_sentencepiece_as_transformers_reads_it(sentencepiece: tuple[Path, Any]) -> None:
    path, _ = sentencepiece
    ours = loading.load_parts(path)
    assert ours.tokenizer is not None
    assert (ours.bos_token, ours.eos_token, ours.tokenizer.prefix_ids) == ("<s>", "</s>", [1])
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for text in [*SENTENCES, "twice  "]:
        assert ours.tokenizer.encode(text, False) == theirs.encode(text, add_special_tokens=False), text
    # After a special token a text begins again, in llama.cpp and Llama 2's own tokenizer.json; not in transformers 5.
    assert ours.tokenizer.encode("a</s>b", False) == [
        *ours.tokenizer.encode("a", False),
        2,
        *ours.tokenizer.encode("b", False),
    ]


@pytest.mark.parametrize(
    ("tokens", "scores", "words"),
    [
        ([1, 2, 3], [0.0] * 3, "list of texts, found 1"),
        (["a", "b"], ["x", "y"], "list of numbers, found 'x'"),
        (["a", "b"], [0.0, float("nan")], "finite score for each of 2"),
        (["a", "b"], [0.0], "finite score for each of 2"),
    ],
)
def test_sentencepiece_entries_that_cannot_be_are_named(
    tmp_path: Path, tokens: list[Any], scores: list[Any], words: str
) -> None:
    writer = llama_writer(tmp_path / "bad.gguf", llama(num_hidden_layers=1))
    writer.writer.add_tokenizer_model("llama")
    writer.writer.add_array("tokenizer.ggml.tokens", tokens)
    writer.writer.add_array("tokenizer.ggml.scores", scores)
    with pytest.raises(TokenizerError, match=words):
        loading.load_parts(writer.close())


@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2"])
def test_words_as_llama_3_and_qwen_2_cut_them(tmp_path: Path, pre: str) -> None:
    longest = 3 if pre == "llama-bpe" else 1
    words = (
        r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,"
        + str(longest)
        + r"}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    reference = tokenizers.Tokenizer(models.BPE())
    reference.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    reference.decoder = decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=byte_alphabet(), special_tokens=["<s>"], show_progress=False
    )
    reference.train_from_iterator(SENTENCES * 3, trainer)
    # A whole word that its merges do not make: Llama 3 takes it, Qwen 2 does not.
    tokens = [*sorted(reference.get_vocab(), key=reference.get_vocab().__getitem__), "Ġqxj"]
    writer = llama_writer(tmp_path / "bpe.gguf", llama(num_hidden_layers=1))
    writer.writer.add_tokenizer_model("gpt2")
    writer.writer.add_tokenizer_pre(pre)
    writer.writer.add_token_list(tokens)
    writer.writer.add_token_types([3, *[1] * (len(tokens) - 1)])
    writer.writer.add_token_merges([" ".join(pair) for pair in json.loads(reference.to_str())["model"]["merges"]])
    writer.writer.add_bos_token_id(0)
    loaded = loading.load_parts(writer.close())
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.prefix_ids == ([0] if pre == "llama-bpe" else [])
    for text in [*SENTENCES, "I'LL 1234567 a,b\r\n  c"]:
        ids = loaded.tokenizer.encode(text, False)
        assert ids == reference.encode(text, add_special_tokens=False).ids, text
        assert loaded.tokenizer.decode(ids) == text
    assert (loaded.tokenizer.encode("a qxj", False)[1:] == [len(tokens) - 1]) == (pre == "llama-bpe")


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


@pytest.fixture(scope="module")
def reference(smollm2: loading.Loaded) -> tokenizers.Tokenizer:
    fields = GgufFile(smollm2.source)._reader.fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"].contents()]
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == 3]
    return by_hand({token: i for i, token in enumerate(tokens)}, merges, special, digits=True)


TEXTS = st.one_of(
    st.text(max_size=40),
    st.text("ab '\n\t0123456789éß漢字🙂<|>", max_size=40),
    st.lists(st.sampled_from(["<|im_start|>", "user\n", " the", "2024", "don't", "  ", "<|im_end|>"]), max_size=8).map(
        "".join
    ),
)


@pytest.mark.smollm2
@settings(max_examples=200, deadline=None)
@given(text=TEXTS)
def test_smollm2_tokenizer(smollm2: loading.Loaded, reference: tokenizers.Tokenizer, text: str) -> None:
    tokenizer = smollm2.tokenizer
    assert tokenizer is not None
    ids = tokenizer.encode(text)
    assert ids == reference.encode(text).ids
    assert tokenizer.decode(ids) == reference.decode(ids, skip_special_tokens=False)
    assert tokenizer.encode_batch([text, text]) == [ids, ids]
    assert tokenizer.decode_batch([ids, ids]) == [tokenizer.decode(ids)] * 2


@pytest.mark.smollm2
@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(0, 49_151), max_size=12))
def test_smollm2_round_trips(smollm2: loading.Loaded, reference: tokenizers.Tokenizer, ids: list[int]) -> None:
    tokenizer = smollm2.tokenizer
    assert tokenizer is not None
    text = reference.decode(ids, skip_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert tokenizer.round_trips(ids) == (reference.encode(text).ids == ids)
    assert tokenizer.round_trips_batch([ids, []]) == [tokenizer.round_trips(ids), True]
    assert tokenizer.token_strings(ids) == [reference.decode([i], skip_special_tokens=False) for i in ids]


@pytest.mark.smollm2
def test_smollm2_known_answers(smollm2: loading.Loaded) -> None:
    tokenizer = smollm2.tokenizer
    assert tokenizer is not None
    assert tokenizer.encode("<|endoftext|>") == [0]
    assert (smollm2.bos_id, smollm2.bos_token, smollm2.eos_id, smollm2.eos_token) == (
        1,
        "<|im_start|>",
        2,
        "<|im_end|>",
    )
    assert tokenizer.special_ids == list(range(17))
    assert tokenizer.vocab_size == 49_152
    assert tokenizer.prefix_ids == []
    assert tokenizer.token_strings(tokenizer.encode("1234")) == ["1", "2", "3", "4"]
    # "the" "re" spells a word of its own: not what the tokenizer would write.
    the, re = tokenizer.encode("the")[0], tokenizer.encode("re")[0]
    assert not tokenizer.round_trips([the, re])
    assert tokenizer.round_trips(tokenizer.encode("there"))
    assert smollm2.files == (gguf_path(),)


@pytest.mark.smollm2
def test_smollm2_chat(smollm2: loading.Loaded) -> None:
    assert smollm2.chat_template is not None
    text = chat.render(smollm2.chat_template, [{"role": "user", "content": "Hi"}], prefill="Yes")
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes"
    )


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
