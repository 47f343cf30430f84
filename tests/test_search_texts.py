"""Token search and text: filters, contexts, chat templates, and tokenizers that mark a text's beginning."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers

import checkpoints
import signflip as sf
from signflip import errors
from signflip.behaviours.prompts import insert, trigger_ids
from signflip.flip import found_ids
from signflip.sequences import Rendered, rendered_ids

SITE = "blocks.1.mlp.hook_pre"


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("method", ["epo", "gcg"])
def test_prompts_come_back_whole_after_decode_and_encode(texted: Any, method: str, chat: bool) -> None:
    contexts = [("the cat", " sat there"), ("dog", ".")]
    result = sf.search(
        texted, sf.objectives.neuron(SITE, 3), tokens=3, method=method, contexts=contexts, chat=chat, steps=6,
        deny=["t", " the"], progress=False,
    )  # fmt: skip
    assert result.work["invalid"] > 0
    denied = {texted.tokenizer.encode(text, False)[0] for text in ("t", " the")}
    for ids, (before, after), span in zip(result.best.sequences, contexts, result.best.sequences.spans, strict=True):
        text = texted.tokenizer.decode(ids)
        assert texted.tokenizer.encode(text, False) == ids
        assert ids[span[0] : span[1]] == result.best.tokens
        whole = before + result.best.text + after
        assert text == (f"[user]{whole}\n[assistant]" if chat else f"<s>{whole}")
    for step in result.history:
        for found in step.members:
            assert found.text.isprintable()
            assert not denied & set(found.tokens)
            assert max(found.tokens) < 340
            assert 0 not in found.tokens


def test_without_contexts_the_tokenizers_bos_comes_first(texted: Any) -> None:
    result = sf.search(texted, sf.objectives.neuron(SITE, 3), tokens=2, steps=2, progress=False)
    assert result.best.sequences == [[0, *result.best.tokens]]


def test_contexts_of_a_rendered_template_get_no_bos(texted: Any) -> None:
    whole = texted.to_chat("the cat")
    before, _, after = whole.partition("cat")
    given: dict[str, Any] = {"tokens": 2, "steps": 2, "width": 16, "progress": False}
    found = sf.search(texted, sf.objectives.neuron(SITE, 3), contexts=[Rendered((before, after))], **given)
    assert found.best.sequences[0] == texted.tokenizer.encode(f"{before}{found.best.text}{after}", False)
    raw = sf.search(texted, sf.objectives.neuron(SITE, 3), contexts=[(before, after)], **given)
    assert raw.best.sequences[0][0] == 0


def test_an_eos_of_the_tokenizers_stands_nowhere_in_a_prompt(texted_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(texted_folder, tmp_path / "ends")
    path = str(tmp_path / "ends" / "tokenizer.json")
    made = tokenizers.Tokenizer.from_file(path)
    made.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A <s>", special_tokens=[("<s>", 0)])
    made.save(path)
    model = sf.load(tmp_path / "ends")
    assert model.to_tokens("the")[0][-1] == 0
    found = sf.search(
        model, sf.objectives.neuron(SITE, 3), tokens=2, contexts=[("the cat", " sat")], steps=2, width=16,
        progress=False,
    )  # fmt: skip
    assert found.best.sequences[0].count(0) == 1
    prompt = sf.Behaviour("mine", [("the cat", "a", "b", "l"), ("the dog", "b", "a", "r")]).prompts_for(model)[0]
    assert prompt.ids.count(0) == 1


@pytest.mark.parametrize("position", [0, -6])
def test_an_objective_before_the_free_tokens_is_refused(texted: Any, position: int) -> None:
    with pytest.raises(errors.ArgumentError, match="before them in all"):
        sf.search(
            texted, sf.objectives.neuron(SITE, 3, position), tokens=2, contexts=[([0, 5, 6], [7, 8])], progress=False
        )


@pytest.fixture(scope="module")
def marking(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model whose tokenizer, as Llama 2's, puts a mark before any text, also behind a BOS written out."""
    folder = tmp_path_factory.mktemp("marking")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<s>"))
    tokenizer.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("\u2581"), tokenizers.normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("\u2581", " "),
            tokenizers.decoders.Fuse(),
            tokenizers.decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split("\u2581", "merged_with_next")
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=70, special_tokens=["<s>"])
    tokenizer.train_from_iterator(["the cat sat on the mat. and the dog ran to the other cat"] * 4, trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    checkpoints.llama(vocab_size=72).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>", "tokenizer_class": "LlamaTokenizerFast"}')
    return sf.load(folder)


def test_a_tokenizer_that_marks_a_texts_beginning_still_comes_back(marking: Any) -> None:
    found = sf.search(marking, sf.objectives.neuron(SITE, 3), tokens=3, steps=3, width=32, progress=False)
    assert marking.to_tokens(found.best.text)[0].tolist() == list(found.best.sequences[0])


@pytest.mark.parametrize(("before", "after"), [("the cat", " sat on"), ("", " sat on"), ("the cat", "")])
def test_such_a_tokenizer_marks_nothing_inside_a_prompt(marking: Any, before: str, after: str) -> None:
    found = sf.search(
        marking, sf.objectives.neuron(SITE, 3), tokens=2, contexts=[(before, after)], steps=4, width=32,
        allow=[" the", " dog", " cat", "a", "t", "o"], progress=False,
    )  # fmt: skip
    whole = before + found.best.text + after
    assert marking.to_tokens(whole)[0].tolist() == list(found.best.sequences[0])
    if not after:
        return
    prompts = [
        {"text": before + after, "correct": right, "opposite": wrong, "side": side, "slot": len(before)}
        for right, wrong, side in ((" the", " dog", "l"), (" dog", " the", "r"))
    ]
    prompt, _ = sf.Behaviour("mine", prompts).prompts_for(marking)
    assert prompt.correct == marking.tokenizer.token_to_id("▁the")
    put = insert(marking, prompt, found_ids(marking, found, prompt))
    assert insert(marking, prompt, found.best.text) == put
    assert put.survived
    assert list(put.ids) == list(found.best.sequences[0])


def test_texts_of_one_token_are_what_they_are_where_they_stand(marking: Any) -> None:
    token = marking.tokenizer.token_to_id("▁dog")
    prompt = marking.to_tokens("the cat")[0]
    target = sf.objectives.logprob
    assert marking.score(prompt, target(" dog")) == marking.score(prompt, target([token]))
    lines = [("the cat", " the", " dog", "l"), ("the mat", " dog", " the", "r")]
    begins, _ = sf.Behaviour("begins", lines).prompts_for(marking)
    goes_on, _ = sf.Behaviour("goes on", [{**row, "slot": 7} for row in map(_named, lines)]).prompts_for(marking)
    # At a text's beginning the tokenizer puts the mark there; inside a text the space is written.
    assert trigger_ids(marking, begins, "dog") == trigger_ids(marking, goes_on, " dog") == [token]
    assert insert(marking, begins, "dog").survived
    assert insert(marking, goes_on, " dog").survived
    start: dict[str, Any] = {"tokens": 1, "steps": 0, "progress": False}
    for contexts, text in ((None, "dog"), ([("", " sat")], "dog"), ([("the cat", "")], " dog")):
        found = sf.search(marking, sf.objectives.neuron(SITE, 3), contexts=contexts, start=text, **start)
        assert found.best.tokens == [token]


def _named(row: tuple[str, str, str, str]) -> dict[str, str]:
    return dict(zip(("text", "correct", "opposite", "side"), row, strict=True))


# Chat prompts.


@pytest.mark.parametrize("writes_bos", [False, True])
def test_chat_prompts_are_the_ids_of_apply_chat_template(texted_folder: Path, tmp_path: Path, writes_bos: bool) -> None:
    folder = tmp_path / "chat"
    shutil.copytree(texted_folder, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = ("{{ bos_token }}" if writes_bos else "") + settings["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    model = sf.load(folder)
    result = sf.search(
        model, sf.objectives.neuron(SITE, 3), tokens=2, contexts=[("the cat", " sat")], chat=True, steps=2, width=16,
        progress=False,
    )  # fmt: skip
    content = f"the cat{result.best.text} sat"
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    encoded = theirs.apply_chat_template([{"role": "user", "content": content}], tokenize=True, return_dict=True)
    ids = list(encoded["input_ids"])
    assert ids.count(0) == writes_bos
    assert result.best.sequences == [ids]
    assert rendered_ids(model, model.to_chat(content)) == ids


def test_nothing_left_by_the_filters_is_one_error(texted: Any) -> None:
    objective = sf.objectives.neuron(SITE, 3)
    with pytest.raises(errors.SearchError, match="filters"):
        sf.search(texted, objective, tokens=2, allow=[5], deny=[5], progress=False)
    # "th" has its own token, so "t" with "h" behind it never comes back.
    with pytest.raises(errors.SearchError, match="filters"):
        sf.search(texted, objective, tokens=2, contexts=[("t", "")], allow=["h"], progress=False)
