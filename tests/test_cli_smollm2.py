"""The commands one after another on a real model, each on the file that the one before it wrote."""

import functools
import json

import pytest

import signflip as sf
from signflip.cli import main
from smollm2 import gguf_path

SITE = "blocks.0.mlp.hook_pre_linear"


@pytest.fixture(scope="module")
def path():
    return str(gguf_path())


@pytest.fixture
def cli(path, monkeypatch, capsys):
    """Run a command with ``--json`` and give its exit code and document; the model is loaded once."""
    monkeypatch.setattr(sf, "load", _load)

    def call(*argv):
        code = main([*argv, "--json", "--quiet"])
        out, err = capsys.readouterr()
        assert err == ""
        return code, json.loads(out)

    return call


_load = functools.cache(sf.load)


@pytest.fixture(scope="module")
def survey(path, tmp_path_factory):
    """A small survey by the command itself."""
    folder = tmp_path_factory.mktemp("cli")
    corpus = folder / "corpus.jsonl"
    lines = ["Mary went home early because she was tired.", "The keys to the cabinet are on the table.", "Two and two."]
    corpus.write_text("".join(json.dumps({"body": line}) + "\n" for line in lines), encoding="utf-8")
    out = folder / "small.survey"
    argv = ["survey", path, str(corpus), "--field", "body", "--sites", SITE, "--prefix", "<|endoftext|>"]
    assert main([*argv, "--out", str(out), "--quiet"]) == 0
    return out


def test_one_sided_lists_what_the_library_does(cli, survey):
    code, found = cli("one-sided", str(survey), "--max-rate", "0.1")
    assert code == 0
    expected = sf.Survey.open(survey).one_sided(max_rate=0.1)
    assert [(f["site"], f["index"], f["rate"]) for f in found] == [(f.site, f.index, f.rate) for f in expected]


def test_an_unknown_site_names_the_nearest(survey, capsys):
    assert main(["one-sided", str(survey), "--site", "blocks.0.mlp.hook_pre"]) == 2
    assert SITE in capsys.readouterr().err


def test_search_brings_a_feature_across_and_its_file_opens(cli, path, survey, tmp_path):
    feature = sf.Survey.open(survey).one_sided()[-1]
    out = tmp_path / "x.search"
    name = f"{feature.site}[{feature.index}]"
    common = ("--tokens", "4", "--width", "32", "--context", "<|endoftext|>", "", "--stop-at", "0.001")
    what = ("search", path, "--survey", str(survey), "--feature", name, *common)
    code, found = cli(*what, "--steps", "40", "--out", str(out))
    result = sf.SearchResult.open(out)
    assert found["best"]["value"] == result.best.value
    assert found["best"]["tokens"] == list(result.best.tokens)
    assert code == (0 if found["reached"] else 1)
    assert found["reached"] == (result.best.value >= 0.001)
    # The layer's features have both signs within reach of four tokens; this is the command's own check, too.
    assert found["reached"]


def test_run_shows_tokens_and_what_comes_next(cli, path):
    code, clean = cli("run", path, "<|endoftext|>The capital of France is", "--top", "3", "--max-new-tokens", "2")
    assert code == 0
    assert clean["tokens"][:2] == ["<|endoftext|>", "The"]
    assert clean["next"][0]["token"] == " Paris"
    assert clean["generated"].startswith(" Paris")
    assert all(one["logprob"] <= 0 for one in clean["next"])
    code, edited = cli(
        "run", path, "<|endoftext|>The capital of France is", "--edit", "blocks.29.hook_resid_post::zero"
    )
    assert code == 0
    # Nothing is left of the prompt: all logits are equal, and ties go to the lowest ids.
    assert [one["id"] for one in edited["next"]] == list(range(10))


def test_a_wrong_edit_is_one_sentence(path, capsys, monkeypatch):
    monkeypatch.setattr(sf, "load", _load)
    assert main(["run", path, "Hello", "--edit", "blocks.30.hook_resid_post::zero"]) == 2
    said = capsys.readouterr().err
    assert said.startswith('signflip: site "blocks.30.hook_resid_post"')
    assert said.count("\n") == 1


@pytest.fixture(scope="module")
def behaviour(tmp_path_factory):
    """Agreement as a user would write it: two halves, each of nouns and adverbs of its own."""
    nouns = {"A": ["key", "dog", "car"], "B": ["boat", "cat", "tree", "door", "friend", "song"]}
    openings = {"A": ["The ", "All day the "], "B": ["Today the ", "Here the ", "Now the "]}
    lines = [
        {"text": f"{opening}{noun}{ending}", "correct": right, "opposite": wrong, "side": side, "half": half}
        | {"item": noun, "template": opening}
        for half in "AB"
        for opening in openings[half]
        for noun in nouns[half]
        for side, ending, right, wrong in (("one", "", " is", " are"), ("many", "s", " are", " is"))
    ]
    path = tmp_path_factory.mktemp("behaviour") / "agreement.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


def test_scan_and_flip_run_on_a_users_behaviour(cli, path, survey, behaviour, tmp_path):
    feature = sf.Survey.open(survey).one_sided()[-1]
    name = f"{feature.site}[{feature.index}]"
    out = tmp_path / "scan.json"
    code, found = cli("scan", path, str(survey), "--feature", name, "--behaviour", behaviour, "--out", str(out))
    opened = sf.Scan.open(out)
    assert code == (0 if opened.reversed() else 1)
    assert opened.to_json() == found
    assert found["meta"]["behaviours"] == {"agreement": 12}
    # A trigger given as a search's file; whatever it does, its table holds every condition.
    trigger = tmp_path / "x.search"
    common = ("--tokens", "2", "--width", "16", "--context", "<|endoftext|>", "", "--steps", "2")
    cli("search", path, "--survey", str(survey), "--feature", name, *common, "--out", str(trigger))
    saved = tmp_path / "flip.json"
    what = ("flip", path, str(survey), str(trigger), "--feature", name, "--behaviour", behaviour, "--out", str(saved))
    code, test = cli(*what)
    assert code == 0
    assert json.loads(saved.read_text("utf-8")) == test
    groups = {row["group"] for row in test["rows"]}
    assert {"clean", "dose", "tokens", "clamped", "set to triggered", "matched unit", "random tokens"} <= groups
    clean = test["rows"][0]["score"]
    assert clean["accuracy"]["value"] == clean["mean_ratio"]["value"] == 1
    assert test["verdict"]["label"] in sf.verdict.Label.__args__
