"""Token search against a plain restatement, brute force, and itself under every change that must not show."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers

import checkpoints
import signflip as sf
from reference import peer
from reference.search_restated import Measure, epo, gcg
from signflip import errors, search_result
from signflip.objectives import Objective
from signflip.search_result import Step
from signflip.sequences import Rendered, rendered_ids

torch.set_num_threads(1)
SITE = "blocks.1.mlp.hook_pre"
CONTEXTS = [([5, 1], [3]), ([2], [0, 7]), ([], [6])]


def config(family: str, vocabulary: int) -> Any:
    ids: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    if family == "llama":
        return transformers.LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=16,
            intermediate_size=50,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            **ids,
        )
    return transformers.GPT2Config(
        vocab_size=vocabulary, n_positions=64, n_embd=15, n_layer=2, n_head=3, n_inner=50, **ids
    )


@contextmanager
def made(family: str, vocabulary: int, seed: int = 0) -> Iterator[tuple[Any, Any, Path]]:
    theirs = peer.make(config(family, vocabulary), seed)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        yield sf.load(folder), theirs, Path(folder)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def pair(request: Any) -> Iterator[tuple[Any, Any, Path]]:
    with made(request.param, 24) as found:
        yield found


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    with made("llama", 24) as (found, _, _):
        yield found


def members(result: Any) -> list[tuple[str, list[tuple[int, ...]]]]:
    return [(step.event, [tuple(found.tokens) for found in step.members]) for step in result.history]


def pick_neuron(index: int) -> Any:
    """The neuron's pre-activation at the last token, and the logits, of input embeddings."""

    def pick(theirs: Any, embeds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        llama = theirs.config.model_type == "llama"
        layer = theirs.model.layers[1].mlp.gate_proj if llama else theirs.transformer.h[1].mlp.c_fc
        seen = []
        handle = layer.register_forward_hook(lambda _, __, out: seen.append(out))
        logits = theirs(inputs_embeds=embeds).logits
        handle.remove()
        return seen[0][:, -1, index], logits

    return pick


# ---------------------------------------------------------------------- the published steps, and the default ones


@pytest.mark.parametrize("variant", ["code", "paper", "default"])
@pytest.mark.parametrize("contexts", [None, CONTEXTS], ids=["alone", "contexts"])
def test_epo_is_its_restatement_step_by_step(pair: Any, variant: str, contexts: Any) -> None:
    model, theirs, _ = pair
    budget: dict[str, int] = {"steps": 54 if contexts is None else 20, "width": 20, "topk": 7, "population": 4}
    for neuron, aggregate in ((3, "mean"), (17, "worst")):
        measure = Measure(theirs, pick_neuron(neuron), contexts or [([], [])], aggregate == "worst")
        plain = epo(measure, variant, 4, **budget, seed=neuron, patience=2)
        mine = sf.search(
            model,
            sf.objectives.neuron(SITE, neuron),
            tokens=4,
            contexts=contexts,
            variant=variant,
            aggregate=aggregate,
            seed=neuron,
            patience=2,
            progress=False,
            **budget,
        )
        for i, (here, there) in enumerate(zip(members(mine), plain, strict=True)):
            assert here == there, i
        if contexts is None:
            assert any(event == "restart" for event, _ in plain)
        for found in mine.history[-1].members:
            ((value, entropy),) = measure.of([found.tokens])
            np.testing.assert_allclose([found.value, found.cross_entropy], [value, entropy], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", ["code", "paper", "default"])
@pytest.mark.parametrize("contexts", [None, CONTEXTS], ids=["alone", "contexts"])
def test_gcg_is_its_restatement_step_by_step(pair: Any, variant: str, contexts: Any) -> None:
    model, theirs, _ = pair
    for neuron, aggregate in ((4, "mean"), (9, "worst")):
        measure = Measure(theirs, pick_neuron(neuron), contexts or [([], [])], aggregate == "worst")
        plain = gcg(measure, variant, 4, steps=16, width=18, topk=7, seed=2**40 + neuron, patience=1)
        mine = sf.search(
            model,
            sf.objectives.neuron(SITE, neuron),
            tokens=4,
            method="gcg",
            contexts=contexts,
            variant=variant,
            aggregate=aggregate,
            steps=16,
            width=18,
            topk=7,
            seed=2**40 + neuron,
            patience=1,
            progress=False,
        )
        assert members(mine) == plain
        if variant == "default":
            assert any(event == "fresh" for event, _ in plain)


# ---------------------------------------------------------------------- brute force


def test_scores_of_what_was_chosen_are_those_of_exhaustive_evaluation(pair: Any) -> None:
    model, _, _ = pair
    objective = (
        sf.objectives.neuron(SITE, 7) - 0.5 * sf.objectives.logit_diff(1, 2) + 0.2 * sf.objectives.logprob([3, 4])
    )
    every = [list(ids) for ids in itertools.product(range(24), repeat=2)]
    exact = dict(zip(map(tuple, every), model.score(every, objective), strict=True))
    for method, variant in itertools.product(("epo", "gcg"), ("default", "code", "paper")):
        steps = None if variant == "default" else 30
        result = sf.search(model, objective, tokens=2, method=method, variant=variant, steps=steps, progress=False)
        for step in result.history:
            for found in step.members:
                assert np.float32(found.value) == exact[tuple(found.tokens)]
        assert model.score(result.best.sequences, objective)[0] == np.float32(result.best.value)
        assert result.work["values"] <= 24**2
        if variant == "default":
            assert result.ended == "exhausted"
            assert result.best.value == max(exact.values())
            assert result.work["values"] == 24**2
    lowest = sf.search(model, -objective, tokens=2, progress=False)
    assert lowest.best.value == -min(exact.values())


def test_the_default_search_finds_the_true_maximum() -> None:
    with made("llama", 20, seed=1) as (model, _, _):
        every = np.array(list(itertools.product(range(20), repeat=3)))
        rng = np.random.default_rng(0)
        sites = ("blocks.0.mlp.hook_post", SITE, "blocks.1.mlp.hook_pre_linear", "blocks.1.mlp.hook_post")
        reads = [(site, int(neuron)) for site in sites for neuron in rng.choice(50, 25, replace=False)]
        found = {"epo": 0, "gcg": 0}
        for i, (site, neuron) in enumerate(reads):
            objective = sf.objectives.neuron(site, neuron)
            highest = model.score(every, objective).max()
            for method in found:
                # Only cuts short what has been found already.
                result = sf.search(
                    model, objective, tokens=3, method=method, seed=i, stop_at=float(highest), progress=False
                )
                found[method] += result.best.value == highest
        assert found["epo"] >= 95
        assert found["gcg"] >= 95


# ---------------------------------------------------------------------- what must not show


def trace(result: Any) -> str:
    data = result.to_dict()
    for name in ("prune",):
        data["settings"].pop(name)
    data.pop("work")
    return json.dumps(data, sort_keys=True)


@pytest.mark.parametrize("variant", ["default", "code", "paper"])
def test_pruning_does_not_show(model: Any, variant: str) -> None:
    objective = 4 * sf.objectives.neuron("blocks.0.mlp.hook_pre", 11)
    pruned = 0
    for contexts in (None, CONTEXTS):
        runs = [
            sf.search(
                model, objective, tokens=6, contexts=contexts, steps=40, variant=variant, prune=prune, progress=False
            )
            for prune in (True, False)
        ]
        assert trace(runs[0]) == trace(runs[1])
        assert runs[1].work["pruned"] == 0
        assert runs[0].work["cross_entropies"] < runs[1].work["cross_entropies"]
        pruned += runs[0].work["pruned"]
    assert pruned > 0


def test_threads_do_not_show(model: Any) -> None:
    from signflip import _core

    before = _core.num_threads()
    objective = sf.objectives.neuron(SITE, 11) + sf.objectives.logprob([1, 2, 3])
    texts = []
    try:
        for threads in (1, 2, 3):
            sf.set_num_threads(threads)
            result = sf.search(model, objective, tokens=5, contexts=CONTEXTS * 2, steps=12, width=64, progress=False)
            texts.append(json.dumps(result.to_dict(), sort_keys=True))
    finally:
        sf.set_num_threads(before)
    assert len(set(texts)) == 1


def test_shared_work_is_counted(model: Any) -> None:
    objective = sf.objectives.neuron(SITE, 11)
    result = sf.search(model, objective, tokens=8, contexts=[([1] * 20, [2])], steps=10, progress=False)
    work = result.work
    assert work["children"] == 10 * 256
    assert work["tokens_full"] == 10 * 256 * 29
    assert work["context_tokens"] == 19
    assert work["tokens"] < work["tokens_full"] / 3


_CHILD = """
import importlib, sys
import signflip as sf
importlib.import_module("signflip.search").CHECKPOINT_SECONDS = 0.0
import time
model = sf.load(sys.argv[1])
def slowly(step, best):
    print(step, flush=True)
    time.sleep(0.02)
sf.search(model, sf.objectives.neuron("blocks.1.mlp.hook_pre", 5), tokens=6, contexts=[([1], [2]), ([], [3])] * 3,
          steps=60, width=64, out=sys.argv[2], progress=slowly)
"""


def test_killed_and_taken_up_again_it_writes_the_same_bytes(tmp_path: Path) -> None:
    with made("llama", 24) as (_, _, folder):
        command = [sys.executable, "-c", _CHILD, str(folder)]
        whole, broken = tmp_path / "whole.json", tmp_path / "broken.json"
        subprocess.run([*command, str(whole)], check=True, capture_output=True)
        kills = 0
        for stop in (9, 30):
            with subprocess.Popen([*command, str(broken)], stdout=subprocess.PIPE, text=True) as child:
                assert child.stdout is not None
                first = None
                for line in child.stdout:
                    first = int(line) if first is None else first
                    if int(line) >= stop:
                        child.send_signal(signal.SIGKILL)
                        break
                child.stdout.read()
            assert not broken.exists()
            assert first == 0 if kills == 0 else first > 0
            kills += child.returncode == -signal.SIGKILL
        assert kills == 2
        (partial,) = tmp_path.glob("*.partial")
        kept = partial.read_bytes()
        digit = kept.index(b"1", kept.index(b'"values"'))
        partial.write_bytes(kept[:digit] + b"2" + kept[digit + 1 :])
        refused = subprocess.run([*command, str(broken)], check=False, capture_output=True, text=True)
        assert "SearchError" in refused.stderr
        assert "changed after it was written" in refused.stderr
        partial.write_bytes(kept)
        subprocess.run([*command, str(broken)], check=True, capture_output=True)
        assert broken.read_bytes() == whole.read_bytes()
        assert not list(tmp_path.glob("*.partial"))


def test_ctrl_c_ends_it_within_a_second() -> None:
    code = _CHILD.replace("steps=60, width=64, out=sys.argv[2]", "steps=10**6, width=4096").replace("0.02", "0")
    # Which a background job is started without.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n" + code
    with made("llama", 24) as (_, _, folder):
        with subprocess.Popen(
            [sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout is not None
            for line in child.stdout:
                if int(line) >= 3:
                    break
            child.send_signal(signal.SIGINT)
            at = time.monotonic()
            _, err = child.communicate(timeout=20)
            assert time.monotonic() - at < 5  # a busy machine; the check itself comes every 50 ms
        assert "KeyboardInterrupt" in err


# ---------------------------------------------------------------------- results


def test_a_result_is_saved_opened_printed_and_found_again(model: Any, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    objective = -sf.objectives.neuron(SITE, 3, position="after") + 0.25
    seen = []

    def call(**changes: Any) -> Any:
        return sf.search(
            model, objective, tokens=4, contexts=CONTEXTS, steps=5, **{"seed": 1, **changes}, out=out,
            progress=lambda step, best: seen.append((step, best)),
        )  # fmt: skip

    result = call()
    assert [step for step, _ in seen] == [0, 1, 2, 3, 4, 5]
    assert seen[-1][1] == np.float32(result.best.value)
    again = sf.SearchResult.open(out)
    assert again == result
    assert again.best.sequences.spans == [(2, 6), (1, 5), (0, 4)]
    copy = tmp_path / "copy.json"
    again.save(copy)
    assert copy.read_bytes() == out.read_bytes()
    assert call() == result
    assert len(seen) == 6
    with pytest.raises(errors.SearchError, match="seed"):
        call(seed=2)
    text = str(result)
    assert "epo" in text
    assert f"{result.best.value:.4g}" in text
    values = model.score(again.best.sequences, objective)
    assert values.shape == (3,)
    assert np.float32(values.astype(np.float64).mean()) == np.float32(result.best.value)


def test_front_rises_in_value_and_in_cross_entropy(model: Any) -> None:
    result = sf.search(model, sf.objectives.neuron(SITE, 3), tokens=6, steps=30, progress=False)
    front = [(found.cross_entropy, found.value) for found in result.front]
    assert len(front) > 2
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in itertools.pairwise(front))
    assert front[-1][1] == result.best.value


def test_stops_when_the_value_is_reached(model: Any) -> None:
    objective = sf.objectives.neuron(SITE, 3)
    whole = sf.search(model, objective, tokens=6, steps=30, progress=False)
    goal = (whole.history[0].members[0].value + whole.best.value) / 2
    result = sf.search(model, objective, tokens=6, steps=30, stop_at=goal, progress=False)
    assert result.ended == "reached"
    assert goal <= result.best.value <= whole.best.value
    assert result.work["steps"] < 30


def test_screened_contexts_end_with_values_over_all(model: Any) -> None:
    contexts = [([i, i + 1], [23 - i]) for i in range(12)]
    objective = sf.objectives.neuron(SITE, 3)
    result = sf.search(model, objective, tokens=5, contexts=contexts, steps=15, progress=False)
    assert result.settings["screen"] == 4
    values = model.score(result.best.sequences, objective)
    assert np.float32(values.astype(np.float64).mean()) == np.float32(result.best.value)
    everywhere = sf.search(model, objective, tokens=5, contexts=contexts, steps=15, screen=0, progress=False)
    assert result.work["values"] < everywhere.work["values"] / 2
    assert result.best.value > max(found.value for found in result.history[0].members)


def test_a_reward_is_raised_by_gcg() -> None:
    theirs = peer.make(config("llama", 24), 3, reward=True)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        model = sf.load(folder)
        result = sf.search(model, sf.objectives.reward(), tokens=2, method="gcg", progress=False)
        every = [list(ids) for ids in itertools.product(range(24), repeat=2)]
        assert result.best.value == model.score(every, sf.objectives.reward()).max()
        assert result.best.cross_entropy is None
        with pytest.raises(errors.ArgumentError, match="gcg"):
            sf.search(model, sf.objectives.reward(), tokens=2, progress=False)


# ---------------------------------------------------------------------- filters


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


def test_a_tokenizer_that_marks_a_texts_beginning_still_comes_back(tmp_path: Path) -> None:
    """As Llama 2's: a mark is put before the text, also behind a BOS written out."""
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
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=60, special_tokens=["<s>"])
    tokenizer.train_from_iterator(["the cat sat on the mat and the dog ran to the other cat"] * 4, trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    checkpoints.llama(vocab_size=64).save_pretrained(tmp_path)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>", "tokenizer_class": "LlamaTokenizerFast"}')
    model = sf.load(tmp_path)
    found = sf.search(model, sf.objectives.neuron(SITE, 3), tokens=3, steps=3, width=32, progress=False)
    assert model.to_tokens(found.best.text)[0].tolist() == list(found.best.sequences[0])


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


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("changes", "error", "word"),
    [
        ({"tokens": 0}, errors.ArgumentError, "tokens"),
        ({"tokens": 65}, errors.ContextLengthError, "65"),
        ({"tokens": 2.0}, errors.ArgumentError, "tokens"),
        ({"method": "beam"}, errors.ArgumentError, "beam"),
        ({"variant": "mine"}, errors.ArgumentError, "mine"),
        ({"aggregate": "best"}, errors.ArgumentError, "aggregate"),
        ({"contexts": []}, errors.ArgumentError, "contexts"),
        ({"contexts": ["text"]}, errors.ArgumentError, "contexts"),
        ({"contexts": [("text", "")]}, errors.TokenizerError, "tokenizer"),
        ({"contexts": [([99], [])]}, errors.TokenError, "99"),
        ({"contexts": [([1] * 60, [])]}, errors.ContextLengthError, "64"),
        ({"chat": True}, errors.TokenizerError, "template"),
        ({"steps": -1}, errors.ArgumentError, "steps"),
        ({"tokens": 2**32 - 1}, errors.ContextLengthError, "4294967295"),
        ({"width": 2**20 + 1}, errors.ArgumentError, "width: expected an integer 1 to 1048576, found 1048577"),
        ({"population": 2**16 + 1}, errors.ArgumentError, "population: .* 65536, found 65537"),
        ({"width": 0}, errors.ArgumentError, "width"),
        ({"seed": -1}, errors.ArgumentError, "seed"),
        ({"topk": 0}, errors.ArgumentError, "topk"),
        ({"stop_at": float("nan")}, errors.ArgumentError, "stop_at"),
        ({"stop_at": "x"}, errors.ArgumentError, "stop_at: .* found 'x'"),
        ({"stop_at": 1e39}, errors.ArgumentError, "stop_at: .* found 1e\\+39"),
        ({"stop_at": True}, errors.ArgumentError, "stop_at"),
        ({"stop_at": 10**5000}, errors.ArgumentError, "stop_at"),
        ({"tokens": 10**5000}, errors.ArgumentError, "tokens: .* bits"),
        ({"contexts": 5}, errors.ArgumentError, "contexts: .* found 5"),
        ({"contexts": {1: 2}}, errors.ArgumentError, "contexts"),
        ({"contexts": [(np.zeros((1, 1), int), [])]}, errors.TokenError, "ids"),
        ({"allow": 5}, errors.ArgumentError, "allow: .* found 5"),
        ({"deny": 5}, errors.ArgumentError, "deny: .* found 5"),
        ({"deny": b"ab"}, errors.ArgumentError, "deny"),
        ({"deny": np.array(3)}, errors.ArgumentError, "deny"),
        ({"method": ["epo"]}, errors.ArgumentError, "method: .* found \\['epo'\\]"),
        ({"variant": ["paper"]}, errors.ArgumentError, "variant"),
        ({"aggregate": np.array(["mean", "worst"])}, errors.ArgumentError, "aggregate"),
        ({"out": 5}, errors.ArgumentError, "out: expected a path, found 5"),
        ({"out": b"x"}, errors.ArgumentError, "out"),
        ({"out": "a\0b"}, errors.ArgumentError, "out"),
        ({"start": [1, 2]}, errors.ArgumentError, "start"),
        ({"start": [1, 2, 3, 4, 99]}, errors.TokenError, "99"),
        ({"allow": []}, errors.SearchError, "filters"),
        ({"deny": range(24)}, errors.SearchError, "filters"),
        ({"allow": ["a"]}, errors.TokenizerError, "tokenizer"),
        ({"screen": 3}, errors.ArgumentError, "screen"),
        ({"retokenize": True}, errors.TokenizerError, "tokenizer"),
        ({"out": "/nowhere/at/all"}, errors.FileError, "nowhere"),
        ({"objective": sf.objectives.neuron("blocks.1.mlp.hook_per", 0)}, errors.SiteError, "hook_pre"),
        ({"objective": sf.objectives.neuron(SITE, 50)}, errors.SiteError, "50"),
        ({"objective": sf.objectives.neuron(SITE, 0, position="after")}, errors.ArgumentError, "after"),
        ({"objective": 3}, errors.ArgumentError, "objective"),
    ],
)
def test_bad_input_is_one_typed_error_that_names_it(model: Any, changes: Any, error: Any, word: str) -> None:
    arguments = {"objective": sf.objectives.neuron(SITE, 0), "tokens": 5, "progress": False, **changes}
    with pytest.raises(error, match=word):
        sf.search(model, **arguments)


def test_files_that_are_no_results_are_refused(model: Any, tmp_path: Path) -> None:
    with pytest.raises(errors.FileError):
        sf.SearchResult.open(tmp_path / "none")
    for content in ("", "{", "[]", '{"format": "signflip search 1"}', '{"format": 3}', "\x00"):
        (tmp_path / "bad").write_text(content)
        with pytest.raises(errors.SearchError):
            sf.SearchResult.open(tmp_path / "bad")
    with pytest.raises(errors.ArgumentError, match="path: expected a path, found 5"):
        sf.SearchResult.open(5)  # type: ignore[arg-type]
    result = sf.search(model, sf.objectives.neuron(SITE, 0), tokens=3, steps=2, width=8, progress=False)
    with pytest.raises(errors.ArgumentError, match="path"):
        result.save(5)  # type: ignore[arg-type]
    whole = json.loads(json.dumps(result.to_dict()))
    assert set(whole["settings"]) == set(search_result._SETTINGS)
    changed = [{**whole, part: None} for part in ("settings", "work", "version", "ended", "history")]
    changed.append({**whole, "prompts": [{**one, "text": 5} for one in whole["prompts"]]})
    for part in ("settings", "work"):
        for key in ("method", "tokens", "model") if part == "settings" else search_result._WORK:
            rest = {name: value for name, value in whole[part].items() if name != key}
            changed += [{**whole, part: rest}, {**whole, part: {**rest, key: [1]}}]
    for data in changed:
        (tmp_path / "bad").write_text(json.dumps(data))
        with pytest.raises(errors.SearchError, match="expected a result that signflip wrote"):
            sf.SearchResult.open(tmp_path / "bad")
    (tmp_path / "x.partial").write_text("{}")
    with pytest.raises(errors.SearchError, match=r"x\.partial"):
        sf.search(model, sf.objectives.neuron(SITE, 0), tokens=3, out=tmp_path / "x", progress=False)


# ---------------------------------------------------------------------- objectives


def test_objectives_are_values() -> None:
    o = sf.objectives
    made = [
        -o.neuron(SITE, 3) + 0.5 * o.logit_diff(1, " b", position=2),
        2 * o.direction("blocks.0.hook_resid_post", np.arange(3.0), position="best") - 1.5,
        o.logprob("yes") - o.logprob([1, 2]) / 4,
        o.reward(),
    ]
    for objective in made:
        assert Objective.from_dict(json.loads(json.dumps(objective.to_dict()))) == objective
        assert hash(Objective.from_dict(objective.to_dict())) == hash(objective)
    assert len(set(made)) == 4
    assert repr(made[0]) == f"-neuron('{SITE}', 3) + 0.5 * logit_diff(1, ' b', position=2)"
    assert repr(made[1]) == "2 * direction('blocks.0.hook_resid_post', <3 values>, position='best') - 1.5"
    negative = -made[0]
    assert -negative == made[0]
    with pytest.raises(errors.ArgumentError):
        Objective.from_dict({"terms": [[1.0, {"kind": "neuron"}]]})


@pytest.mark.parametrize(
    "make",
    [
        lambda n: 1e300 * n,
        lambda n: n + 1e39,
        lambda n: (n + 1e38) * 10,
        lambda n: (n + 3e38) + (n + 3e38),
        lambda n: 3e38 * n * 2,
        lambda n: n / 1e-39,
        lambda n: n / 10**400,
        lambda n: 10**400 * n,
        lambda n: n + 10**400,
        lambda n: n + float("nan"),
        lambda n: n - np.float64("inf"),
        lambda n: n / float("nan"),
        lambda n: Objective.from_dict({**n.to_dict(), "offset": 10**400}),
        lambda n: Objective.from_dict({"terms": [[1e39, n.to_dict()["terms"][0][1]]]}),
    ],
)
def test_weights_and_offsets_beyond_float32_are_refused(make: Any) -> None:
    with pytest.raises(errors.ArgumentError, match="objective: expected"):
        make(sf.objectives.neuron(SITE, 0))


def test_values_that_overflow_are_one_typed_error(model: Any, tmp_path: Path) -> None:
    objective = 3e38 * sf.objectives.direction("blocks.0.hook_resid_post", np.full(16, 1e6), position=0)
    for out in (None, tmp_path / "x"):
        with pytest.raises(errors.SearchError, match="finite value"):
            sf.search(model, objective, tokens=2, steps=2, width=8, out=out, progress=False)
    # Some of them: these are written and read as missing.
    result = sf.search(model, sf.objectives.neuron(SITE, 0), tokens=2, steps=2, width=8, progress=False)
    step = Step("step", [dataclasses.replace(result.front[0], tokens=[0, 0], value=float("nan"))])
    dataclasses.replace(result, history=[*result.history, step]).save(tmp_path / "y")
    assert np.isnan(sf.SearchResult.open(tmp_path / "y").history[-1].members[0].value)


def test_sums_of_objectives_are_sums_of_scores(pair: Any) -> None:
    model, _, _ = pair
    o = sf.objectives
    parts = [
        (2.0, o.neuron(SITE, 3, position="best")),
        (-0.5, o.direction("blocks.0.hook_resid_post", np.linspace(-1, 1, model.cfg.d_model), position=0)),
        (1.5, o.logit_diff(3, 4)),
        (0.25, o.logprob([7, 7, 1])),
    ]
    whole = sum((w * p for w, p in parts[1:]), parts[0][0] * parts[0][1]) + 0.125
    prompts = [[1, 2, 3], [1, 2, 4, 5], [9]]
    expected = 0.125 + sum(w * model.score(prompts, p).astype(np.float64) for w, p in parts)
    np.testing.assert_allclose(model.score(prompts, whole), expected, rtol=1e-6)
    value, gradients = model.gradient(prompts[1], whole, wrt=("hook_embed", SITE))
    assert value == model.score(prompts, whole)[1]
    for name, array in gradients.items():
        each = [w * model.gradient(prompts[1], p, wrt=name)[1][name].astype(np.float64) for w, p in parts]
        np.testing.assert_allclose(array, sum(each), rtol=1e-4, atol=1e-5)


def test_gradients_of_ragged_prompts_are_lists(model: Any) -> None:
    values, gradients = model.gradient([[1, 2], [3, 4, 5]], sf.objectives.logprob([1, 2]))
    assert values.shape == (2,)
    assert [array.shape for array in gradients["hook_embed"]] == [(2, 16), (3, 16)]
    one, alone = model.gradient([3, 4, 5], sf.objectives.logprob([1, 2]))
    assert one == values[1]
    np.testing.assert_array_equal(alone["hook_embed"][0], gradients["hook_embed"][1])


def test_search_module_is_where_the_function_says() -> None:
    assert importlib.import_module("signflip.search").search is sf.search
