"""The command line: words and defaults of the Python functions, exit codes, errors in one line."""

import argparse
import inspect
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import handset
import signflip
from signflip.cli import commands, main
from signflip.cli.output import plain, table
from signflip.cli.parser import build_parser
from signflip.errors import ArgumentError, FileError, InternalError, SiteError
from signflip.one_sided import OneSided, OneSidedList

FEATURE = OneSided(
    site="blocks.0.mlp.hook_pre",
    index=3,
    side=1,
    n_tokens=100,
    n_units=7,
    rate=0.0,
    rate_bound=0.4,
    min=0.5,
    max=2.0,
    margin=0.5,
    reach=None,
    certified=False,
    mean=1.0,
    std=float("nan"),
)


class FakeSurvey:
    """A survey of one or no one-sided feature that remembers what it was asked."""

    def __init__(self, features):
        self.features, self.asked = features, []
        self.metadata = {"settings": {"model_hash": "h"}}

    def one_sided(self, max_rate=0.0, confidence=0.95):
        self.asked.append((max_rate, confidence))
        return self.features

    def __getitem__(self, site):
        if site not in {f.site for f in self.features}:
            raise SiteError(f"site {site!r}: unknown")


@pytest.fixture
def fake(monkeypatch):
    """The library's part replaced by what a test puts there."""
    library = SimpleNamespace(
        objectives=signflip.objectives,
        Survey=SimpleNamespace(open=lambda path: library.survey),
        survey=FakeSurvey(OneSidedList([FEATURE])),
    )
    monkeypatch.setattr(commands, "sf", library)
    return library


def test_one_sided_prints_a_table_or_json(fake, capsys):
    assert main(["one-sided", "x.survey", "--max-rate", "0.001"]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["site", "index", "side"]
    assert row.split()[:4] == ["blocks.0.mlp.hook_pre", "3", "+", "100"]
    assert fake.survey.asked == [(0.001, 0.95)]

    assert main(["one-sided", "x.survey", "--json"]) == 0
    (feature,) = json.loads(capsys.readouterr().out)
    assert feature["index"] == 3
    assert feature["std"] is None  # JSON has no nan


def test_nothing_found_is_exit_code_1(fake, capsys):
    fake.survey.features = OneSidedList()
    assert main(["one-sided", "x.survey", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (FileError("x.survey: No such file"), 2, "signflip: x.survey: No such file\n"),
        (SiteError("site 'a':\n  nearest b"), 2, "signflip: site 'a': nearest b\n"),
        (PermissionError(13, "Permission denied", "x"), 2, "signflip: [Errno 13] Permission denied: 'x'\n"),
        (KeyboardInterrupt(), 130, "signflip: interrupted\n"),
        (InternalError("internal error (please report it): x"), 70, "signflip: internal error (please report it): x\n"),
    ],
)
def test_an_error_is_one_line_and_a_code(fake, capsys, raised, code, said):
    def fail(path):
        raise raised

    fake.Survey.open = fail
    assert main(["one-sided", "x.survey"]) == code
    assert capsys.readouterr() == ("", said)
    with pytest.raises(type(raised)):
        main(["one-sided", "x.survey", "--debug"])


def test_an_unforeseen_error_is_called_a_bug(fake, capsys):
    fake.Survey.open = lambda path: 1 / 0
    assert main(["one-sided", "x.survey"]) == 70
    assert "ZeroDivisionError" in (err := capsys.readouterr().err)
    assert "--debug" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["search", "m"], "expected one of --survey, --scan, --neuron, --logprob, --behaviour, found none"),
        (["search", "m", "--neuron", "a:1", "--logprob", "x"], "found --neuron and --logprob"),
        (["search", "m", "--neuron", "mlp.hook_post"], "expected SITE:INDEX, found 'mlp.hook_post'"),
        (
            ["search", "m", "--survey", "s", "--feature", "blocks.0.mlp.hook_pre:4"],
            "blocks.0.mlp.hook_pre:4: not among",
        ),
        (["search", "m", "--neuron", "a:1", "--feature", "a:2"], "expected no --feature beside --neuron, found a:2"),
        (["search", "m", "--logprob", "x", "--position", "-1"], "expected no --position beside --logprob, found -1"),
        (
            ["search", "m", "--behaviour", "say", "--position", "-1"],
            "expected no --position beside --behaviour, found -1",
        ),
        (["search", "m", "--logprob", "x", "--position", "0"], "expected no --position beside --logprob, found 0"),
        (["search", "m", "--behaviour", "say", "--context", "a", "b"], "expected no --context beside --behaviour"),
        (["search", "m", "--behaviour", "say", "--chat"], "expected no --chat beside --behaviour, found True"),
    ],
)
def test_arguments_that_do_not_go_together(fake, capsys, argv, said):
    fake.load = lambda *args, **kwargs: SimpleNamespace(name="m", hash="h")
    assert main(argv) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("argv", [[], ["nonsense"], ["survey", "m"], ["search", "m", "--tokens", "many"]])
def test_bad_usage_is_exit_code_2(argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "function", "renamed"),
    [
        ("survey", signflip.survey, {}),
        ("one-sided", signflip.Survey.one_sided, {}),
        ("scan", signflip.scan, {}),
        ("search", signflip.search, {"contexts": "context"}),
        ("flip", signflip.flip, {}),
        ("survey", signflip.load, {}),
    ],
)
def test_defaults_are_those_of_the_functions(command, function, renamed):
    (commands_of_parser,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    options = {action.dest: action for action in commands_of_parser.choices[command]._actions}
    compared = 0
    for name, parameter in inspect.signature(function).parameters.items():
        action = options.get(renamed.get(name, name))
        if action is None or parameter.default is inspect.Parameter.empty or action.required:
            continue
        assert action.default == parameter.default, name
        compared += 1
    assert compared >= 1


def test_a_closed_pipe_ends_quietly():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "signflip", "doctor"], stdout=writer, stderr=subprocess.PIPE, check=False, timeout=60
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_plain_holds_what_json_can():
    value = {"a": np.float32(0.5), 2: [np.arange(2), float("nan")], "f": FEATURE, "none": None}
    assert json.loads(json.dumps(plain(value), allow_nan=False))["2"] == [[0, 1], None]
    assert plain(value)["a"] == 0.5
    assert plain(value)["f"]["site"] == "blocks.0.mlp.hook_pre"


def test_table_aligns_words_left_and_numbers_right():
    assert table(("name", "n"), [("a", 5), ("long", 10.25)]).splitlines() == [
        "name      n",
        "a         5",
        "long  10.25",
    ]


@pytest.mark.parametrize(
    "argv",
    [
        ["survey", "m", "c", "--out", "s", "--max-tokens", "1" * 23],
        ["survey", "m", "c", "--out", "s", "--max-tokens", "0"],
        ["one-sided", "s", "--limit", "-1"],
        ["scan", "m", "s", "--seed", "-1"],
        ["scan", "m", "s", "--doses", "1,1e39"],
        ["search", "m", "--neuron", "a:1", "--stop-at", "1e39"],
        ["search", "m", "--neuron", "a:1", "--seed", str(2**64)],
        ["run", "m", "x", "--top", "-58"],
    ],
)
def test_numbers_out_of_range_are_bad_usage(argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2
    assert "expected" in capsys.readouterr().err


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two models without a tokenizer, a survey of the first, its behaviour."""
    root = tmp_path_factory.mktemp("cli")
    models = {kind: signflip.load(handset.make(kind, root / kind)) for kind in ("opposite", "half")}
    signflip.survey(models["opposite"], handset.corpus(40), out=root / "s.survey")
    handset.behaviour().save(root / "b.jsonl")
    return root, models


X = f"{handset.SITE}:{handset.FEATURE}"


def test_a_survey_of_another_model_is_refused(world, capsys):
    root, models = world
    survey, other = str(root / "s.survey"), str(root / "half")
    wanted = f"hash {models['half'].hash}), found one of hash {models['opposite'].hash}"
    for argv in (
        ["scan", other, survey, "--behaviour", str(root / "b.jsonl")],
        ["search", other, "--survey", survey, "--feature", X],
        ["flip", other, survey, "r.json", "--feature", X, "--behaviour", str(root / "b.jsonl")],
    ):
        assert main(argv) == 2
        assert wanted in capsys.readouterr().err


def test_a_search_of_another_model_is_refused(world, tmp_path):
    _, models = world
    objective = -signflip.objectives.neuron(handset.SITE, handset.FEATURE)
    found = signflip.search(models["half"], objective, tokens=1, steps=1, width=4, contexts=[([], [1, 60])])
    with pytest.raises(ArgumentError, match=f"{models['opposite'].hash}.*{models['half'].hash}"):
        signflip.flip(models["opposite"], (handset.SITE, handset.FEATURE), found, handset.behaviour())


def test_what_cannot_be_written_is_found_first(world, capsys):
    root, _ = world
    nowhere = str(root / "no" / "out.json")
    for argv in (
        ["scan", "no such model", "no such survey", "--out", nowhere],
        ["flip", "no such model", "s", "r", "--feature", X, "--behaviour", "say", "--out", nowhere],
    ):
        assert main(argv) == 2
        assert nowhere in capsys.readouterr().err
    assert main(["scan", str(root / "none"), "s", "--out", str(root / "new.json")]) == 2
    assert not (root / "new.json").exists()


def test_a_position_is_handed_on(world):
    root, models = world
    args = build_parser().parse_args(
        ["search", "m", "--survey", str(root / "s.survey"), "--feature", X, "--position", "after"]
    )
    objective, _ = commands._objective(args, models["opposite"])
    assert objective == -signflip.objectives.neuron(handset.SITE, handset.FEATURE, "after")


def test_run_shows_ids_that_the_tokenizer_has_not(tmp_path, capsys):
    """A vocabulary that is padded beyond the tokenizer's."""
    folder = handset.make("opposite", tmp_path / "m")
    (folder / "tokenizer.json").write_text(
        json.dumps({"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
                    "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
                    "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "c": 2}, "unk_token": "c"}})
    )  # fmt: skip
    argv = ["run", str(folder), "a b", "--top", str(handset.V.size), "--max-new-tokens", "3"]
    assert main([*argv, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    texts = {one["id"]: one["token"] for one in found["next"]}
    assert (texts[0], texts[handset.V.yes]) == ("a", None)
    assert main(argv) == 0
    assert "\n-  " in capsys.readouterr().out


def test_the_words_of_a_flip_test_reach_the_function(fake, capsys):
    asked = {}
    fake.load = lambda *args, **kwargs: SimpleNamespace(name="m", hash="h")
    fake.SearchResult = SimpleNamespace(open=lambda path: path)
    fake.behaviours = signflip.behaviours
    fake.flip = lambda *args, **words: asked.update(words) or {"found": 1}
    words = [
        "--doses=-1.5,mirror",
        "--half",
        "all",
        "--positions=-1,-2",
        "--units",
        "2",
        "--strings",
        "3",
        "--seed",
        "9",
    ]
    what = ["flip", "m", "s", "r", "--feature", "blocks.0.mlp.hook_pre:3", "--behaviour", "capital", "--json"]
    assert main([*what, *words]) == 0
    assert json.loads(capsys.readouterr().out) == {"found": 1}
    assert asked == {
        "doses": [-1.5, "mirror"],
        "half": None,
        "positions": [-1, -2],
        "units": 2,
        "strings": 3,
        "seed": 9,
    }


@pytest.mark.parametrize(("opens", "wanted"), [(signflip.SearchResult, "a search's result"), (signflip.Scan, "a scan")])
def test_a_survey_in_place_of_another_file_is_named_as_what_it_is_not(tmp_path, opens, wanted):
    path = tmp_path / "x.survey"
    path.write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{}\xff\xfe\x80")
    with pytest.raises(FileError, match=f"x.survey: expected {wanted}, found a file that is no text"):
        opens.open(path)
