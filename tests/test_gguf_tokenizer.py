"""Tokenizers of GGUF files, against ones put together by hand, the published algorithm, and transformers."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import tokenizers.trainers
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from checkpoints import gpt2, llama
from gguf_files import Writer, by_hand, byte_alphabet, gpt2_writer, llama_writer
from signflip import chat, loading
from signflip.errors import TokenizerError
from signflip.gguf import GgufFile
from smollm2 import gguf_path


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
