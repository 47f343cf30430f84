"""Token search against a plain restatement, brute force, and itself under every change that must not show."""

from __future__ import annotations

import itertools
import json
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
import torch
import transformers

import signflip as sf
from reference import peer
from reference.search_restated import Measure, epo, gcg
from signflip import errors, search_result
from signflip.objectives import Objective
from signflip.sequences import Rendered

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


def pick_logits(a: int, b: int) -> Any:
    """The difference of two logits at the last token, and all logits, of input embeddings."""

    def pick(theirs: Any, embeds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = theirs(inputs_embeds=embeds).logits
        return logits[:, -1, a] - logits[:, -1, b], logits

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


@pytest.mark.parametrize("aggregate", ["mean", "worst"])
@pytest.mark.parametrize("method", ["epo", "gcg"])
def test_an_objective_a_context_is_raised_as_the_restatement_does(pair: Any, method: str, aggregate: str) -> None:
    model, theirs, _ = pair
    o = sf.objectives
    objectives = [o.logit_diff(1, 2), o.logit_diff(2, 1), o.neuron(SITE, 3)]
    measure = Measure(theirs, [pick_logits(1, 2), pick_logits(2, 1), pick_neuron(3)], CONTEXTS, aggregate == "worst")
    budget = {"steps": 20, "width": 20, "topk": 7, "seed": 5, "patience": 2}
    if method == "epo":
        budget["population"] = 4
        plain = epo(measure, "default", 4, **budget)
    else:
        plain = gcg(measure, "default", 4, **budget)
    mine = sf.search(
        model, objectives, tokens=4, method=method, contexts=CONTEXTS, aggregate=aggregate, progress=False, **budget
    )  # fmt: skip
    assert members(mine) == plain
    for found in mine.history[-1].members:
        ((value, entropy),) = measure.of([found.tokens])
        np.testing.assert_allclose([found.value, found.cross_entropy], [value, entropy], rtol=1e-4, atol=1e-4)
    values = model.score(mine.best.sequences, objectives)
    assert np.float32(values.astype(np.float64).mean() if aggregate == "mean" else values.min()) == mine.best.value


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


@pytest.mark.parametrize("method", ["epo", "gcg"])
def test_every_candidates_score_is_that_of_exhaustive_evaluation(pair: Any, method: str) -> None:
    """The published steps go on with the best child, be it worse: with one child a step every candidate is seen."""
    model, _, _ = pair
    objective = sf.objectives.neuron(SITE, 7) - 0.5 * sf.objectives.logit_diff(1, 2)
    every = [list(ids) for ids in itertools.product(range(24), repeat=2)]
    exact = dict(zip(map(tuple, every), model.score(every, objective), strict=True))
    result = sf.search(
        model, objective, tokens=2, method=method, variant="paper", width=1, population=1, steps=400, progress=False
    )
    seen = {tuple(found.tokens): found.value for step in result.history for found in step.members}
    assert len(seen) == result.work["values"] > 200
    assert all(np.float32(value) == exact[tokens] for tokens, value in seen.items())


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
          steps=60, width=64, method=sys.argv[3], out=sys.argv[2], progress=slowly)
"""


@pytest.mark.parametrize("method", ["epo", "gcg"])
def test_killed_and_taken_up_again_it_writes_the_same_bytes(tmp_path: Path, method: str) -> None:
    with made("llama", 24) as (_, _, folder):
        command = [sys.executable, "-c", _CHILD, str(folder)]
        whole, broken = tmp_path / "whole.json", tmp_path / "broken.json"
        subprocess.run([*command, str(whole), method], check=True, capture_output=True)
        kills = 0
        for stop in (9, 30):
            with subprocess.Popen([*command, str(broken), method], stdout=subprocess.PIPE, text=True) as child:
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
        refused = subprocess.run([*command, str(broken), method], check=False, capture_output=True, text=True)
        assert "SearchError" in refused.stderr
        assert "changed after it was written" in refused.stderr
        partial.write_bytes(kept)
        subprocess.run([*command, str(broken), method], check=True, capture_output=True)
        assert broken.read_bytes() == whole.read_bytes()
        assert not list(tmp_path.glob("*.partial"))


def test_ctrl_c_ends_it_within_a_second() -> None:
    code = _CHILD.replace("steps=60, width=64, method=sys.argv[3], out=sys.argv[2]", "steps=10**6, width=4096").replace(
        "0.02", "0"
    )
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


def test_a_result_of_an_objective_a_context_is_saved_and_found_again(model: Any, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    o = sf.objectives
    objectives = [o.neuron(SITE, 3), -o.neuron(SITE, 3), o.neuron(SITE, 3)]

    def call(raised: Any) -> Any:
        return sf.search(model, raised, tokens=3, contexts=CONTEXTS, steps=3, out=out, progress=False)

    result = call(objectives)
    assert sf.SearchResult.open(out) == result
    assert result.objective == tuple(objectives)
    assert f"raised: neuron('{SITE}', 3) in 2 contexts; -neuron('{SITE}', 3) in 1 context" in str(result)
    assert call(tuple(objectives)) == result
    for other in ([objectives[1], *objectives[:2]], objectives[0]):
        with pytest.raises(errors.SearchError, match="objective"):
            call(other)
    for some in ([], [objectives[0].to_dict()] * 2):
        (tmp_path / "short").write_text(json.dumps({**result.to_dict(), "objective": some}))
        with pytest.raises(errors.SearchError, match="expected a result that signflip wrote"):
            sf.SearchResult.open(tmp_path / "short")


def test_the_same_objective_in_each_context_is_one(model: Any, tmp_path: Path) -> None:
    objective, out = sf.objectives.neuron(SITE, 3), tmp_path / "result.json"
    first, again = (
        sf.search(model, one, tokens=3, contexts=CONTEXTS, steps=3, out=out, progress=False)
        for one in (objective, [objective] * 3)
    )
    assert first == again
    assert sf.search(model, [objective] * 3, tokens=3, contexts=CONTEXTS, steps=3, progress=False) == first


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


# ---------------------------------------------------------------------- bad input

((_, neuron_term),) = sf.objectives.neuron(SITE, 0).terms


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
        ({"objective": []}, errors.ArgumentError, "one each of 1 contexts, found 0"),
        ({"objective": "neuron"}, errors.ArgumentError, "objective"),
        ({"objective": {"a": 1}}, errors.ArgumentError, "objective"),
        ({"objective": [sf.objectives.neuron(SITE, 0)] * 2}, errors.ArgumentError, "one each of 1 contexts, found 2"),
        (
            {"objective": (one for one in [sf.objectives.neuron(SITE, 0)])},
            errors.ArgumentError,
            "or a list of one each",
        ),
        ({"objective": Objective(((float("nan"), neuron_term),))}, errors.ArgumentError, "finite weights"),
        ({"contexts": [Rendered(("a", "b"))], "chat": True}, errors.ArgumentError, "that it has rendered"),
        ({"objective": [3]}, errors.ArgumentError, "objective: .* found 3"),
        ({"objective": [sf.objectives.neuron(SITE, 50)]}, errors.SiteError, "50"),
        (
            {"objective": [sf.objectives.neuron(SITE, 0, position=0)] * 2, "contexts": [([1], []), ([2], [])]},
            errors.ArgumentError,
            "nothing there can change",
        ),
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
