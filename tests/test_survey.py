"""Surveys against torch hooks and a float64 recomputation; kills, merges and files; bad input."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from scipy.stats import binomtest

import signflip as sf
from signflip.errors import (
    ArgumentError,
    FileError,
    SiteError,
    SurveyError,
    TokenError,
    TokenizerError,
)
from signflip.one_sided import rate_bound
from survey_models import DOCS, make, peer
from survey_run import documents


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, sf.Model, Path]:
    """transformers' model, signflip's, and the folder."""
    folder = tmp_path_factory.mktemp(request.param)
    return make(request.param, folder)


def _hooked(peer: Any, ids: list[int]) -> dict[str, np.ndarray]:
    """Every MLP site and residual of one sequence, by torch hooks."""
    seen: dict[str, np.ndarray] = {}

    def keep(name: str, which: str) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            value = args[0] if which == "in" else output
            seen[name] = value[0].detach().double().numpy()

        return hook

    handles = []
    llama = hasattr(peer, "model")
    for i, block in enumerate(peer.model.layers if llama else peer.transformer.h):
        name = f"blocks.{i}."
        places = {"hook_resid_pre": (block, "in")}
        if llama:
            places["mlp.hook_pre"] = (block.mlp.gate_proj, "out")
            places["mlp.hook_pre_linear"] = (block.mlp.up_proj, "out")
            places["mlp.hook_post"] = (block.mlp.down_proj, "in")
        else:
            places["mlp.hook_pre"] = (block.mlp.c_fc, "out")
            places["mlp.hook_post"] = (block.mlp.c_proj, "in")
        handles += [module.register_forward_hook(keep(name + key, which)) for key, (module, which) in places.items()]
    with torch.no_grad():
        peer(torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return seen


def _cached(model: sf.Model, ids: list[int]) -> dict[str, np.ndarray]:
    """The same by the engine itself, one sequence at a time."""
    _, cache = model.run_with_cache(ids)
    return {name: np.asarray(cache[name], np.float64)[0] for name in cache if ".mlp." in name or "resid_pre" in name}


def _recompute(values_of: Any, docs: list[list[int]], context: int, prefix: list[int]) -> dict[str, dict[str, Any]]:
    """Counted rows of every site as the docstring of `survey` states them, plainly."""
    out: dict[str, dict[str, Any]] = {}
    piece = context - len(prefix)
    unit = -1
    for doc in docs:
        for start in range(0, len(doc), piece):
            unit += 1
            part = doc[start : start + piece]
            values = values_of(prefix + part)
            for site, rows in values.items():
                if ".mlp." not in site:
                    continue
                norms = np.linalg.norm(values[f"{site.split('mlp')[0]}hook_resid_pre"][len(prefix) :], axis=1)
                counted = norms <= 10 * np.median(norms)
                at = out.setdefault(site, {"rows": [], "units": [], "places": [], "n_sink": 0})
                at["rows"].append(rows[len(prefix) :][counted])
                at["units"] += [unit] * int(counted.sum())
                at["places"] += [(sf._core.document_hash(doc), start + int(i)) for i in np.flatnonzero(counted)]
                at["n_sink"] += int((~counted).sum())
    for at in out.values():
        at["rows"] = np.concatenate(at["rows"])
        at["units"] = np.array(at["units"])
    return out


def _units(at: dict[str, Any], holds: np.ndarray) -> np.ndarray:
    return sum(holds[at["units"] == unit].any(0) for unit in np.unique(at["units"]))


@pytest.fixture(scope="module")
def surveyed(pair: tuple[Any, sf.Model, Path]) -> sf.Survey:
    return sf.survey(pair[1], DOCS, context=24, prefix=[1, 2], histogram_every=1, top=4)


def test_numbers_equal_a_float64_recomputation_from_the_engines_own_values(
    pair: tuple[Any, sf.Model, Path], surveyed: sf.Survey
) -> None:
    expected = _recompute(lambda ids: _cached(pair[1], ids), DOCS, 24, [1, 2])
    assert set(surveyed) == set(expected)
    assert sum(at["n_sink"] for at in expected.values()) > 0
    for site, at in expected.items():
        got, rows = surveyed[site], at["rows"]
        assert got.n_tokens == len(rows)
        assert got.n_sink == at["n_sink"]
        assert got.n_prefix == 2 * surveyed.n_units
        assert got.n_bos == 0
        np.testing.assert_array_equal(got.count, len(rows))
        np.testing.assert_array_equal(got.min, rows.min(0))
        np.testing.assert_array_equal(got.max, rows.max(0))
        np.testing.assert_array_equal(got.positive, (rows > 0).sum(0))
        np.testing.assert_array_equal(got.negative, (rows < 0).sum(0))
        np.testing.assert_array_equal(got.units_positive, _units(at, rows > 0))
        np.testing.assert_array_equal(got.units_negative, _units(at, rows < 0))
        if got.acting_min is not None and got.acting_max is not None:
            shut = expected[site.removesuffix("_linear")]["rows"] <= 0
            np.testing.assert_array_equal(got.acting_min, np.where(shut, np.inf, rows).min(0))
            np.testing.assert_array_equal(got.acting_max, np.where(shut, -np.inf, rows).max(0))
        assert (got.acting_min is not None) == site.endswith("pre_linear")
        # float64 sums of a few hundred float32 values: 1e-13 of the largest.
        scale = np.abs(rows).max(0)
        np.testing.assert_array_less(np.abs(got.mean - rows.mean(0)), 1e-13 * scale)
        np.testing.assert_array_less(np.abs(got.var - rows.var(0)), 1e-13 * scale**2)
        np.testing.assert_array_equal(got.top().value, -np.sort(-rows, axis=0)[:4].T)
        np.testing.assert_array_equal(got.bottom(2).value, np.sort(rows, axis=0)[:2].T)
        ids = {place: i for i, place in enumerate(at["places"])}
        for occurrences in (got.top(), got.bottom()):
            for feature in range(got.width):
                places = zip(occurrences.document[feature], occurrences.position[feature], strict=True)
                where = [ids[(str(document), int(position))] for document, position in places]
                np.testing.assert_array_equal(rows[where, feature], occurrences.value[feature])
        for q in (0.0, 0.05, 0.5, 1.0):
            exact = np.sort(rows, axis=0)[round(q * (len(rows) - 1))]
            assert np.all(np.abs(got.quantile(q) - exact) <= np.abs(exact) / 17 * (1 + 1e-9))
        edges, counts = got.histogram(3)
        assert counts.sum() == len(rows)
        assert np.all(np.diff(edges) > 0)


def test_numbers_equal_those_of_torch_hooks(pair: tuple[Any, sf.Model, Path], surveyed: sf.Survey) -> None:
    expected = _recompute(lambda ids: _hooked(pair[0], ids), DOCS, 24, [1, 2])
    for site, at in expected.items():
        got, rows = surveyed[site], at["rows"]
        assert (got.n_tokens, got.n_sink) == (len(rows), at["n_sink"])
        # Both are float32 forwards: values agree to some 1e-5 of a feature's scale, signs beyond that.
        near = 2e-5 * np.abs(rows).max(0)
        for mine, theirs in ((got.min, rows.min(0)), (got.max, rows.max(0)), (got.mean, rows.mean(0))):
            assert np.all(np.abs(mine - theirs) <= near)
        assert np.all(np.abs(np.sqrt(got.var) - rows.std(0)) <= near)
        for mine, sign in ((got.positive, 1), (got.negative, -1)):
            assert np.all(((sign * rows) > near).sum(0) <= mine)
            assert np.all(mine <= ((sign * rows) > -near).sum(0))
        for mine, sign in ((got.units_positive, 1), (got.units_negative, -1)):
            assert np.all(_units(at, sign * rows > near) <= mine)
            assert np.all(mine <= _units(at, sign * rows > -near))


def test_batches_threads_and_merging_give_the_same_bytes(
    pair: tuple[Any, sf.Model, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, model, _ = pair

    def written(name: str, survey: sf.Survey) -> bytes:
        survey.save(tmp_path / name)
        return (tmp_path / name).read_bytes()

    whole = written("whole", sf.survey(model, DOCS, context=24, out=tmp_path / "out"))
    assert (tmp_path / "out").read_bytes() == whole
    assert not (tmp_path / "out.partial").exists()
    assert written("again", sf.Survey.open(tmp_path / "out")) == whole
    parts = [sf.survey(model, DOCS[i::3], context=24) for i in range(3)]
    for order in itertools.permutations(parts):
        assert written("merged", sf.merge(order)) == whole
        assert written("nested", sf.merge([order[0], sf.merge(order[1:])])) == whole
    monkeypatch.setattr(sys.modules["signflip.survey"], "_BATCH", 1)
    threads = sf._core.num_threads()
    try:
        for n in (1, 3):
            sf.set_num_threads(n)
            assert written("threads", sf.survey(model, reversed(DOCS), context=24)) == whole
    finally:
        sf.set_num_threads(threads)


def _in_order(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert [key for key, _ in pairs] == sorted(key for key, _ in pairs)
    return dict(pairs)


def test_the_file_is_safetensors_with_one_json_text(pair: tuple[Any, sf.Model, Path], tmp_path: Path) -> None:
    found = sf.survey(pair[1], DOCS, sites="mlp.hook_post", context=24, out=tmp_path / "x", prefix=[4])
    tensors = load_file(tmp_path / "x")
    np.testing.assert_array_equal(tensors["blocks.1.mlp.hook_post/min"], found["blocks.1.mlp.hook_post"].min)
    with (tmp_path / "x").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    ((_, text),) = header["__metadata__"].items()
    meta = json.loads(text, object_pairs_hook=_in_order)
    assert ": " not in text
    assert ", " not in text
    assert meta["settings"]["model_hash"] == pair[1].hash
    assert meta["settings"]["prefix"] == [4]
    assert meta["settings"]["bos"] == "prefix"
    assert meta["settings"]["dtype"] == "float32"
    assert meta["corpus"]["n_documents"] == len(DOCS)
    assert meta["corpus"]["n_tokens"] == sum(map(len, DOCS))
    total = sum(int.from_bytes(bytes.fromhex(sf._core.document_hash(doc)), "little") for doc in DOCS) % 2**128
    assert meta["corpus"]["hash"] == total.to_bytes(16, "little").hex()


@pytest.mark.parametrize("kills", [[signal.SIGKILL, signal.SIGKILL], [signal.SIGINT]])
def test_killed_and_resumed_it_writes_the_same_bytes(tmp_path: Path, kills: list[signal.Signals]) -> None:
    folder = tmp_path / "model"
    peer("llama").save_pretrained(folder)
    whole, out = tmp_path / "whole", tmp_path / "killed"
    sf.survey(sf.load(folder), documents(), context=32, prefix=[1], out=whole, histogram_every=2)
    partial = tmp_path / "killed.partial"
    run = [sys.executable, str(Path(__file__).with_name("survey_run.py")), str(folder), str(out)]
    before = b""
    for stop in kills:
        # At 10 ms a document there is time to find it between two requests, or within one.
        with subprocess.Popen([*run, "0.01"], stdout=subprocess.PIPE, text=True, env=os.environ.copy()) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            deadline = time.monotonic() + 60
            while not (partial.exists() and partial.read_bytes() != before):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.005)
            process.send_signal(stop)
            if stop == signal.SIGINT:
                start = time.monotonic()
                assert process.stdout.readline() == "interrupted\n"
                assert time.monotonic() - start < 1
            process.wait()
        assert process.returncode == (-signal.SIGKILL if stop == signal.SIGKILL else 130)
        assert not out.exists()
        before = partial.read_bytes()
    subprocess.run([*run, "0"], check=True, stdout=subprocess.PIPE)
    assert out.read_bytes() == whole.read_bytes()
    assert not partial.exists()


def test_unfinished_state_of_another_survey_is_refused(pair: tuple[Any, sf.Model, Path], tmp_path: Path) -> None:
    _, model, _ = pair
    out = tmp_path / "x"

    def breaks() -> Iterator[list[int]]:
        yield from DOCS
        raise ZeroDivisionError("the corpus's own error")

    module = sys.modules["signflip.survey"]
    settings = {"_CHECKPOINT": 0.0, "_BATCH": 16}
    saved = {key: vars(module)[key] for key in settings}
    vars(module).update(settings)
    try:
        with pytest.raises(ZeroDivisionError, match="the corpus's own error"):
            sf.survey(model, breaks(), context=24, out=out)
    finally:
        vars(module).update(saved)
    with pytest.raises(SurveyError, match=r"context \(24 and 20\)"):
        sf.survey(model, DOCS, context=20, out=out)
    with pytest.raises(SurveyError, match="not those of this corpus"):
        sf.survey(model, [[9], *DOCS], context=24, out=out)
    with pytest.raises(SurveyError, match="max_tokens"):
        sf.survey(model, DOCS, context=24, out=out, max_tokens=400)
    with pytest.raises(SurveyError, match="unfinished"):
        sf.Survey.open(tmp_path / "x.partial")
    resumed = sf.survey(model, DOCS, context=24, out=out)
    assert resumed.n_documents == len(DOCS)


def test_text_is_tokenised_as_the_model_does_and_its_bos_counted_apart(
    pair: tuple[Any, sf.Model, Path], tmp_path: Path
) -> None:
    _, model, _ = pair
    texts = ["hello world", "a", "the quick brown fox jumps over the lazy dog"]
    ids = [model.to_tokens(text)[0].tolist() for text in texts]
    assert all(one[0] == 0 for one in ids)
    found = sf.survey(model, texts, context=20)
    site = found.sites[0]
    assert found[site].n_bos == len(texts)
    assert found.metadata["settings"]["bos"] == "tokenizer"
    assert found.n_tokens == sum(map(len, ids))
    assert found[site].n_tokens + found[site].n_sink == found.n_tokens - len(texts)
    # A BOS that is given as an id is a token as any other.
    given = sf.survey(model, ids, context=20)
    assert given[site].n_bos == 0
    assert given[site].n_tokens + given[site].n_sink == found.n_tokens
    # The same documents from files.
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"meta": {"body": text}}) + "\n\n" for text in texts))
    for i, text in enumerate(texts):
        (tmp_path / f"{i}.txt").write_text(text)
    lines = sf.survey(model, tmp_path / "a.jsonl", context=20, field="meta.body")
    files = sf.survey(model, [tmp_path / f"{i}.txt" for i in range(3)], context=20)
    for other in (lines, files, sf.survey(model, iter(texts), context=20)):
        assert other.metadata == found.metadata
        np.testing.assert_array_equal(other[site].mean, found[site].mean)
    prefixed = sf.survey(model, texts, context=20, prefix="so")
    assert prefixed.metadata["settings"]["prefix"] == model.to_tokens("so")[0].tolist()
    assert prefixed[site].n_bos == 0
    assert prefixed.n_tokens == found.n_tokens - len(texts)


def test_max_tokens_cuts_the_last_document(pair: tuple[Any, sf.Model, Path]) -> None:
    cut = sf.survey(pair[1], DOCS, context=24, max_tokens=10)
    same = sf.survey(pair[1], [DOCS[0], DOCS[1][:7]], context=24)
    assert cut.n_tokens == 10
    assert cut.metadata == same.metadata


def test_bad_input_names_what_is_wrong(pair: tuple[Any, sf.Model, Path], tmp_path: Path) -> None:
    _, model, folder = pair
    (tmp_path / "latin.txt").write_bytes(b"fine\ncaf\xe9\n")
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"body": "b"}\n')
    (tmp_path / "broken.jsonl").write_text('{"text": "a"}\n{"text": \n')
    (tmp_path / "number.jsonl").write_text('{"text": 3}\n')
    (tmp_path / "digits.jsonl").write_text('{"text": "a"}\n{"text": "b", "n": ' + "9" * 5000 + "}\n")
    (tmp_path / "half.jsonl").write_text('{"text": "a"}\n{"text": "b\\ud800"}\n')
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "not.survey").write_bytes(b"x" * 100)
    (folder.parent / "plain").mkdir(exist_ok=True)
    cases: list[tuple[type[Exception], str, Any]] = [
        (ArgumentError, r"document 1 of the corpus: .*\(\\ud800\)", lambda: sf.survey(model, ["a", "b\ud800"])),
        (FileError, "absent.txt: no such file", lambda: sf.survey(model, "absent.txt")),
        (FileError, "absent.txt: no such file", lambda: sf.survey(model, [tmp_path / "absent.txt"])),
        (FileError, "found a folder", lambda: sf.survey(model, tmp_path)),
        (
            SurveyError,
            r"latin.txt line 2: not UTF-8 \(byte 0xe9 at column 3\)",
            lambda: sf.survey(model, tmp_path / "latin.txt"),
        ),
        (
            SurveyError,
            "bad.jsonl line 2: no field 'text'; its fields are 'body'",
            lambda: sf.survey(model, tmp_path / "bad.jsonl"),
        ),
        (SurveyError, "broken.jsonl line 2: not JSON", lambda: sf.survey(model, tmp_path / "broken.jsonl")),
        (SurveyError, "number.jsonl line 1: expected text", lambda: sf.survey(model, tmp_path / "number.jsonl")),
        (SurveyError, "digits.jsonl line 2: not JSON", lambda: sf.survey(model, tmp_path / "digits.jsonl")),
        (
            SurveyError,
            r"half.jsonl line 2: .*half a surrogate pair \(\\ud800\) at character 1",
            lambda: sf.survey(model, tmp_path / "half.jsonl"),
        ),
        (SurveyError, "corpus is empty", lambda: sf.survey(model, [])),
        (SurveyError, "corpus is empty", lambda: sf.survey(model, tmp_path / "empty.txt")),
        (SurveyError, "corpus is empty", lambda: sf.survey(model, [[], []])),
        (SiteError, "blocks.0.mlp.hook_pre", lambda: sf.survey(model, DOCS, sites=["blocks.9.mlp.hook_pre"])),
        (SiteError, "nearest", lambda: sf.survey(model, DOCS, sites="mlp.hook_poste")),
        (ArgumentError, "sites", lambda: sf.survey(model, DOCS, sites=[])),
        (FileError, "x.survey", lambda: sf.survey(model, DOCS, out=tmp_path / "none" / "x.survey")),
        (FileError, tmp_path.name, lambda: sf.survey(model, DOCS, out=tmp_path)),
        (TokenError, "id 60 in document 1 of the corpus", lambda: sf.survey(model, [[1], [60]])),
        (TokenError, "id -1", lambda: sf.survey(model, [[-1]])),
        (ArgumentError, "found int", lambda: sf.survey(model, [1, 2])),
        (ArgumentError, "found int", lambda: sf.survey(model, 3)),
        (ArgumentError, "context", lambda: sf.survey(model, DOCS, context=0)),
        (ArgumentError, "prefix's 3", lambda: sf.survey(model, DOCS, context=3, prefix=[1, 2, 3])),
        (ArgumentError, "max_tokens", lambda: sf.survey(model, DOCS, max_tokens=0)),
        (
            ArgumentError,
            "top: expected an integer 0 to 10000, found 10001",
            lambda: sf.survey(model, DOCS, top=10**4 + 1),
        ),
        (FileError, "absent", lambda: sf.Survey.open(tmp_path / "absent")),
        (SurveyError, "not a survey file", lambda: sf.Survey.open(tmp_path / "not.survey")),
        (SurveyError, "not a survey file", lambda: sf.Survey.open(folder / "model.safetensors")),
        (ArgumentError, "surveys", lambda: sf.merge([])),
    ]
    for kind, message, call in cases:
        with pytest.raises(kind, match=message):
            call()
    a, b = sf.survey(model, DOCS, context=24), sf.survey(model, DOCS, context=25)
    with pytest.raises(SurveyError, match=r"cannot merge surveys that differ in context \(24 and 25\)"):
        sf.merge([a, b])
    with pytest.raises(SiteError, match="nearest are"):
        a["blocks.0.mlp.hook_pree"]
    for bad in (lambda: a.one_sided(max_rate=1), lambda: a.one_sided(confidence=1), lambda: a[a.sites[0]].top(11)):
        with pytest.raises(ArgumentError):
            bad()
    # Without a tokenizer, text is refused.
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(TokenizerError, match="bare has none"):
        sf.survey(sf.load(bare), ["text"])
    with pytest.raises(TokenizerError, match="bare has none"):
        sf.survey(sf.load(bare), DOCS, prefix="text")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("context", bad) for bad in ("x", 1.5, float("nan"), True)),
        *((name, bad) for name in ("max_tokens", "top", "histogram_every") for bad in (1.5, 2**70, "x")),
        ("sites", 5),
        ("sites", [5]),
        ("prefix", 5),
        ("prefix", {"a": 1}),
        ("prefix", ["ab", "cd"]),
        ("prefix", [[1], [2]]),
        ("field", 5),
        ("corpus", {"text": "a"}),
        ("corpus", np.array(3)),
        ("out", 5),
        ("out", "a\0b"),
    ],
)
def test_arguments_of_the_wrong_kind_are_named(pair: tuple[Any, sf.Model, Path], name: str, value: Any) -> None:
    with pytest.raises(ArgumentError, match=f"^{name}: expected"):
        sf.survey(pair[1], **{"corpus": [[1]], "progress": False, name: value})


def test_one_sequence_is_a_prefix_in_every_form(pair: tuple[Any, sf.Model, Path]) -> None:
    for prefix in ([1, 2], (1, 2), [[1, 2]], np.array([1, 2]), np.array([[1, 2]]), torch.tensor([1, 2])):
        found = sf.survey(pair[1], [[1, 3]], prefix=prefix, progress=False)  # type: ignore[arg-type]
        assert found.metadata["settings"]["prefix"] == [1, 2]
    for none in (None, "", [], np.array([])):
        found = sf.survey(pair[1], [[1, 3]], prefix=none, progress=False)  # type: ignore[arg-type]
        assert found.metadata["settings"]["prefix"] == []


def test_questions_of_the_wrong_kind_are_named(surveyed: sf.Survey) -> None:
    survey: Any = surveyed
    site: Any = survey[survey.sites[0]]
    cases: list[tuple[type[Exception], str, Any]] = [
        (ArgumentError, "max_rate: .* found 'x'", lambda: survey.one_sided("x")),
        (ArgumentError, "max_rate: .* found nan", lambda: survey.one_sided(float("nan"))),
        (ArgumentError, "confidence: .* found None", lambda: survey.one_sided(confidence=None)),
        (ArgumentError, "confidence: .* found 0", lambda: survey.one_sided(confidence=0)),
        (SiteError, "site 5: expected the name", lambda: survey[5]),
        (SiteError, r"site \[5\]", lambda: survey[[5]]),
        *(
            (ArgumentError, "^q: expected", lambda q=q: site.quantile(q))
            for q in ("x", [], [[0.5]], None, [[1], [0, 1]])
        ),
        (ArgumentError, "^k: .* found 'x'", lambda: site.top("x")),
        (ArgumentError, "^k: .* found 1.5", lambda: site.bottom(1.5)),
        (ArgumentError, "^index: .* found 'x'", lambda: site.histogram("x")),
        (ArgumentError, "^surveys: .* found int", lambda: sf.merge(5)),  # type: ignore[arg-type]
        (ArgumentError, "^surveys: .* found int", lambda: sf.merge([5])),  # type: ignore[list-item]
        (ArgumentError, "^surveys: .* found Survey", lambda: sf.merge(survey)),
        (ArgumentError, "^path: .* found 5", lambda: sf.Survey.open(5)),  # type: ignore[arg-type]
        (ArgumentError, "^path: .* found 5", lambda: survey.save(5)),
    ]
    for kind, message, call in cases:
        with pytest.raises(kind, match=message):
            call()


def test_the_rate_bound_is_clopper_and_pearsons() -> None:
    for n, hits, alpha in ((1, 0, 0.05), (10, 10, 0.01), (300, 0, 0.05 / 138_240), (50, 3, 1e-6), (4000, 7, 1e-7)):
        exact = binomtest(hits, n, alternative="less").proportion_ci(1 - alpha, "exact").high
        assert rate_bound(np.array([hits]), n, alpha)[0] == pytest.approx(exact, rel=1e-6)
    # The numbers that the design states for SmolLM2's 138,240 features.
    assert rate_bound(np.array([0]), 300, 0.05 / 138_240)[0] == pytest.approx(0.048, abs=5e-4)
    assert rate_bound(np.array([0]), 4000, 0.05 / 138_240)[0] == pytest.approx(0.0037, abs=5e-5)


def test_one_sided_features_are_those_that_kept_one_sign(pair: tuple[Any, sf.Model, Path], surveyed: sf.Survey) -> None:
    n_features = sum(surveyed[site].width for site in surveyed)
    for max_rate in (0.0, 0.3):
        found = surveyed.one_sided(max_rate=max_rate, confidence=0.9)
        expected = set()
        for site in surveyed:
            at = surveyed[site]
            for i in range(at.width):
                rate = min(at.positive[i], at.negative[i]) / at.n_tokens
                if rate <= max_rate and (at.min[i], at.max[i]) != (0, 0):
                    expected.add((site, i))
        assert {(one.site, one.index) for one in found} == expected
        assert [one.rate for one in found] == sorted(one.rate for one in found)
        for one in found:
            at = surveyed[one.site]
            hits = int((at.units_negative if one.side > 0 else at.units_positive)[one.index])
            exact = binomtest(hits, at.n_units, alternative="less").proportion_ci(1 - 0.1 / n_features, "exact").high
            assert one.rate_bound == pytest.approx(exact, rel=1e-6)
            assert one.margin == (one.min if one.side > 0 else -one.max)
            assert (one.margin >= 0) == (one.rate == 0)
            low, high = (at.min, at.max) if at.acting_min is None else (at.acting_min, at.acting_max)
            furthest = float((low if one.side > 0 else high)[one.index])
            assert one.seen == (furthest if furthest * one.side < 0 and np.isfinite(furthest) else None)
            assert not one.certified or one.rate == 0
    assert len(found) > 2
    assert len(found.table(2).splitlines()) == 4
    assert json.loads(found.to_json())[0]["site"] == found[0].site
    frame = found.to_dataframe()
    assert list(frame.columns) == list(sf.OneSided.__dataclass_fields__)
    assert frame.site.tolist() == [one.site for one in found]
