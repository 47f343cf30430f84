"""The tokenizer's border: typed errors, files of the usual kinds, mutated files; and chat templates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from checkpoints import llama, mutated
from signflip import _core, chat, loading
from signflip.errors import ArgumentError, CheckpointError, SignflipError, TokenError, TokenizerError


def byte_level() -> tokenizers.Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: i for i, piece in enumerate([*alphabet, "th", "the", "Ġthe"])}
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the")]
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


def pieces() -> tokenizers.Tokenizer:
    """Like Llama 2's: spaces as ▁, one in front, bytes as a last resort, a BOS added."""
    vocabulary = {
        piece: i for i, piece in enumerate(["<unk>", "<s>", "▁", "a", "b", "▁a", *(f"<0x{i:02X}>" for i in range(256))])
    }
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary, merges=[("▁", "a")], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>"])
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=20) | st.text("a b<s>the", max_size=20), make=st.sampled_from([byte_level, pieces]))
def test_encodes_and_decodes_as_the_library_does(text: str, make: Any) -> None:
    reference = make()
    tokenizer = _core.Tokenizer.from_json(reference.to_str())
    ids = reference.encode(text).ids
    assert tokenizer.encode(text) == ids
    assert tokenizer.encode(text, add_special_tokens=False) == reference.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == reference.decode(ids, skip_special_tokens=False)
    assert tokenizer.decode(ids, skip_special_tokens=True) == reference.decode(ids, skip_special_tokens=True)


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=30))
def test_byte_level_text_comes_back_exactly(text: str) -> None:
    tokenizer = _core.Tokenizer.from_json(byte_level().to_str())
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.round_trips(ids)


def test_prefix() -> None:
    assert _core.Tokenizer.from_json(pieces().to_str()).prefix_ids == [1]
    assert _core.Tokenizer.from_json(byte_level().to_str()).prefix_ids == []


def test_truncation_and_padding_of_the_file_are_ignored(tmp_path: Path) -> None:
    reference = byte_level()
    wanted = reference.encode("the the the").ids
    reference.enable_truncation(2)
    reference.enable_padding(length=9)
    reference.save(str(tmp_path / "tokenizer.json"))
    assert _core.Tokenizer.from_file(tmp_path / "tokenizer.json").encode("the the the") == wanted


def test_bad_ids_and_texts() -> None:
    tokenizer = _core.Tokenizer.from_json(byte_level().to_str())
    last = tokenizer.vocab_size - 1
    assert tokenizer.decode([last]) == "</s>"
    assert tokenizer.decode(np.array([last])) == tokenizer.decode((np.int32(last),)) == "</s>"
    for ids in ([last + 1], [-1], [2**40], ["a"], [1.5], [None]):
        with pytest.raises(TokenError, match=r"found"):
            tokenizer.decode(ids)
        with pytest.raises(TokenError, match=r"found"):
            tokenizer.round_trips_batch([[0], ids])
    with pytest.raises(TokenizerError, match=r"UTF-8"):
        tokenizer.encode("\ud800")
    with pytest.raises(TokenizerError, match=r"UTF-8"):
        tokenizer.encode_batch(["a", "\ud800"])
    assert tokenizer.id_to_piece(last + 1) is None
    assert tokenizer.id_to_piece(-1) is None
    assert tokenizer.token_to_id("nothing") is None


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_mutated_files_give_typed_errors_only(data: st.DataObject) -> None:
    json_bytes = mutated(byte_level().to_str().encode(), data.draw)
    try:
        tokenizer = _core.Tokenizer.from_json(json_bytes.decode("utf-8", errors="replace"))
        tokenizer.decode(tokenizer.encode("the <s> cat"))
    except SignflipError:
        pass


def test_ids_far_apart_are_refused() -> None:
    spec = json.loads(byte_level().to_str())
    spec["model"]["vocab"]["far"] = 2**32 - 1
    with pytest.raises(TokenizerError, match=r"4294967295.*far"):
        _core.Tokenizer.from_json(json.dumps(spec))


def test_folder_with_tokenizer(tmp_path: Path) -> None:
    reference = byte_level()
    model = llama(vocab_size=reference.get_vocab_size())
    model.save_pretrained(tmp_path)
    reference.save(str(tmp_path / "tokenizer.json"))
    template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    config = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "chat_template": template}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 258]}')
    loaded = loading.load_parts(tmp_path)
    assert loaded.tokenizer is not None
    assert (loaded.bos_token, loaded.eos_token) == ("<s>", "</s>")
    assert (loaded.bos_id, loaded.eos_id) == (reference.token_to_id("<s>"), reference.token_to_id("</s>"))
    assert loaded.stop_ids == (reference.token_to_id("</s>"), 5, 258)
    assert loaded.chat_template == template
    assert {p.name for p in loaded.files} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    # A file of its own wins; of several named templates, the default.
    (tmp_path / "chat_template.jinja").write_text("own")
    assert loading.load_parts(tmp_path).chat_template == "own"
    assert "chat_template.jinja" in {path.name for path in loading.load_parts(tmp_path).files}
    (tmp_path / "chat_template.jinja").unlink()
    config["chat_template"] = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert loading.load_parts(tmp_path).chat_template == "d"
    config["chat_template"] = 7
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"chat_template"):
        loading.load_parts(tmp_path)


# Chat templates, against transformers' own rendering.

MESSAGES = [
    {"role": "system", "content": 'Be <brief> & "kind".'},
    {"role": "user", "content": "  Hé?\n"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "And?"},
]
TEMPLATES = [
    """{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}""",
    """{{ bos_token }}
{%- for m in messages %}
    {%- if m.role == 'system' %}
[{{ m.content | trim }}]
    {%- endif %}
{%- endfor %}{{ messages | tojson }}{{ eos_token }}""",
    """{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}
{% generation %}{{ m.content }}{% endgeneration %}
{% endfor %}""",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}{{ tools }}",
    "  {% if true %}\n  x\n  {% endif %}\n",
]


@pytest.mark.parametrize("template", TEMPLATES)
def test_renders_as_transformers_does(template: str) -> None:
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=byte_level(), bos_token="<s>", eos_token="</s>")
    wanted = tokenizer.apply_chat_template(MESSAGES, chat_template=template, tokenize=False, add_generation_prompt=True)
    found = chat.render(template, MESSAGES, bos_token="<s>", eos_token="</s>")
    assert found == wanted
    assert chat.render(template, MESSAGES, "No, ", bos_token="<s>", eos_token="</s>") == wanted + "No, "


@pytest.mark.parametrize(
    ("template", "names"),
    [
        ("{% for %}", "chat template"),
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{{ ''.__class__.__mro__ }}", "chat template"),
        ("{{ messages.append(1) }}", "chat template"),
        ("{{ 1 / 0 }}", "division"),
        ("{{ messages[0]['content'] + 1 }}", "chat template"),
        ("{% generation %}", "chat template"),
    ],
)
def test_bad_templates(template: str, names: str) -> None:
    with pytest.raises(TokenizerError, match=names):
        chat.render(template, MESSAGES)


def test_bad_messages() -> None:
    for messages in ([], [{"content": "x"}], ["x"], [{"role": 1, "content": ""}]):
        with pytest.raises(ArgumentError, match=r"messages"):
            chat.render(TEMPLATES[0], messages)  # type: ignore[arg-type]


def test_the_clock_is_there_for_templates_that_read_it() -> None:
    assert chat.render("{{ strftime_now('%Y') | length }}", MESSAGES) == "4"
