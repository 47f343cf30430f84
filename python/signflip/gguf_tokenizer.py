"""The ``tokenizer.json`` of a GGUF file, rebuilt from its metadata.

Which splits, defaults and flags go with a ``tokenizer.ggml.pre`` is what llama.cpp says in ``llama-vocab.cpp``; what a
``tokenizer.json`` of that kind looks like, the checkpoints of the models themselves.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from signflip.errors import TokenizerError

if TYPE_CHECKING:
    from signflip.gguf import GgufFile

# tokenizer.ggml.token_type
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_BYTES_ONLY = _BYTE_LEVEL | {"use_regex": False}
_DIGITS = {"type": "Digits", "individual_digits": True}


def _split(digits: str) -> dict[str, Any]:
    words = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    isolated = {"type": "Split", "pattern": {"Regex": words}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [isolated, _BYTES_ONLY]}


_SMOLLM = {"type": "Sequence", "pretokenizers": [_DIGITS, _BYTE_LEVEL]}
_LLAMA_3, _QWEN_2 = _split("{1,3}"), _split("")
# By tokenizer.ggml.pre.
_PRE_TOKENIZERS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("gpt-2", "olmo", "trillion"), _BYTE_LEVEL),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "minerva-7b"), _SMOLLM),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "smaug-bpe"), _LLAMA_3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), _QWEN_2),
}
# A word that is a token is that token, whatever the merges; a BOS unless the file says otherwise.
_WHOLE_WORDS = ("llama-bpe", "llama3", "llama-v3", "falcon3")


def tokenizer_json(file: GgufFile) -> str | None:
    """The ``tokenizer.json`` rebuilt from the metadata, None where the file holds no tokenizer.

    Parameters
    ----------
    file
        The file. ``tokenizer.ggml.model`` is ``gpt2`` (byte-level BPE) with one of the known kinds of
        ``tokenizer.ggml.pre``, or ``llama`` (the BPE of SentencePiece, as Llama 2 and Mistral have it).

    Raises
    ------
    CheckpointError
        If an entry is missing or of the wrong kind.
    TokenizerError
        If the tokenizer is of a kind that is not supported, or its entries do not fit together.
    """
    model = file.value("tokenizer.ggml.model", str)
    if model in (None, "no_vocab", "none"):
        return None
    before = file.value("tokenizer.ggml.pre", str, "gpt-2" if file.architecture == "gpt2" else None)
    if not (model == "llama" or (model == "gpt2" and before in _PRE_TOKENIZERS)):
        raise TokenizerError(
            f"tokenizer: GGUF tokenizer.ggml.model {model!r} with tokenizer.ggml.pre {before!r}; supported: model "
            f"'llama', and model 'gpt2' with pre {', '.join(_PRE_TOKENIZERS)}"
        )
    tokens = _listed(file, "tokenizer.ggml.tokens", str, "texts")
    kinds = file.value("tokenizer.ggml.token_type", list, [_NORMAL] * len(tokens))
    vocabulary = {token: i for i, token in enumerate(tokens)}
    if len(kinds) != len(tokens) or len(vocabulary) != len(tokens):
        raise TokenizerError(
            f"tokenizer: expected as many types as tokens and no token twice, found {len(kinds)} types, "
            f"{len(tokens)} tokens, {len(vocabulary)} of them different"
        )
    parts = _sentencepiece(file, tokens, kinds) if model == "llama" else _byte_level(file, str(before))
    parts["model"]["vocab"] = vocabulary
    added = [
        {
            "id": i,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind != _USER_DEFINED,
        }
        for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
    ]
    default_bos = model == "llama" or before in _WHOLE_WORDS
    ends = _post_processor(file, tokens, default_bos) or (_BYTE_LEVEL if model == "gpt2" else None)
    common = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "post_processor": ends,
    }
    return json.dumps(common | parts, ensure_ascii=False)


def _listed(file: GgufFile, key: str, kind: type | tuple[type, ...], wanted: str) -> list[Any]:
    found: list[Any] = file.required(key, list)
    wrong = next((one for one in found if not isinstance(one, kind) or isinstance(one, bool)), None)
    if wrong is not None:
        raise TokenizerError(f"tokenizer: expected {key} as a list of {wanted}, found {wrong!r} in it")
    return found


def _bpe(merges: Sequence[Sequence[str]], **more: Any) -> dict[str, Any]:
    plain = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "merges": merges,
    }
    return plain | more


def _byte_level(file: GgufFile, before: str) -> dict[str, Any]:
    pairs = [str(merge).split(" ") for merge in file.required("tokenizer.ggml.merges", list)]
    if any(len(pair) != 2 for pair in pairs):
        raise TokenizerError("tokenizer: expected merges of two tokens, found others")
    return {
        "normalizer": None,
        "pre_tokenizer": _PRE_TOKENIZERS[before],
        "decoder": _BYTE_LEVEL,
        "model": _bpe(pairs, ignore_merges=before in _WHOLE_WORDS),
    }


def _sentencepiece(file: GgufFile, tokens: list[str], kinds: list[int]) -> dict[str, Any]:
    """Llama 2's: no words, spaces as ``▁``, one in front of a text, bytes where there is no token."""
    scores = _listed(file, "tokenizer.ggml.scores", (int, float), "numbers")
    if len(scores) != len(tokens) or not all(map(math.isfinite, scores)):
        raise TokenizerError(
            f"tokenizer: expected a finite score for each of {len(tokens)} tokens, found {len(scores)}, "
            f"{sum(map(math.isfinite, scores))} of them finite"
        )
    # SentencePiece merges whichever two neighbours make the token of the highest score: every way to cut a token is a
    # merge. Among those of one token the order is that of the converter in transformers.
    known = {token for token, kind in zip(tokens, kinds, strict=True) if kind == _NORMAL}
    lengths = sorted({len(token) for token in known})
    merges = [
        (score, at, len(token) - at, token)
        for token, score, kind in zip(tokens, scores, kinds, strict=True)
        if kind == _NORMAL
        for at in lengths
        if 0 < at < len(token) and token[:at] in known and token[at:] in known
    ]
    merges.sort(key=lambda one: one[:3], reverse=True)
    in_front = file.value("tokenizer.ggml.add_space_prefix", bool, True)
    to_space = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    from_space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    unknown = next((token for token, kind in zip(tokens, kinds, strict=True) if kind == _UNKNOWN), None)
    prepend: list[dict[str, Any]] = [{"type": "Prepend", "prepend": "▁"}] if in_front else []
    strip: list[dict[str, Any]] = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if in_front else []
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*prepend, from_space]},
        "pre_tokenizer": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [to_space, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip],
        },
        "model": _bpe(
            [(token[:at], token[at:]) for _, at, _, token in merges],
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        ),
    }


def _post_processor(file: GgufFile, tokens: list[str], default_bos: bool) -> dict[str, Any] | None:
    """Adds the begin and end tokens that the metadata asks for, None where it asks for none."""
    ids = {
        which: file.special(which)
        for which, default in (("bos", default_bos), ("eos", False))
        if file.value(f"tokenizer.ggml.add_{which}_token", bool, default)
    }
    if not ids:
        return None
    known = {which: (i, tokens[i]) for which, i in ids.items() if i is not None}
    if len(known) != len(ids):
        raise TokenizerError("tokenizer: expected the id of a token that is to be added, found none")

    def pieces(which: str) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": known[which][1], "type_id": 0}}] if which in known else []

    single = [*pieces("bos"), {"Sequence": {"id": "A", "type_id": 0}}, *pieces("eos")]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {token: {"id": token, "ids": [i], "tokens": [token]} for i, token in known.values()},
    }
