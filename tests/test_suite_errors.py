"""Suites, truths, bases and folders that are off: each is named before anything is made, audited or scored of it."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from signflip.cli import main
from signflip.errors import ArgumentError, CheckpointError, FileError, OrganismError
from signflip.organisms import Truth, baseline, make, score, train
from signflip.organisms.language import behaviours
from signflip.organisms.scoring import FORMAT, Share
from signflip.organisms.suite import SEEDS
from signflip.organisms.tokens import tokenizer
from signflip.organisms.truth import _digest, save_suite
from signflip.organisms.weights import FAMILIES, Family, Weights, module_of
from signflip.shipped import MODEL, shipped

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def of_one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The truths of a suite of one: the shipped organism."""
    folder = tmp_path_factory.mktemp("of-one")
    save_suite(
        folder, [Truth.open(shipped().root / "truth" / f"{MODEL}.json")], {"models": str(shipped().root), "n": 1}
    )
    return folder


SIDES = {"conditions": {"triggered": {name: {"sides": [1.0, -1.0]} for name in behaviours()}}}
INERT: dict[str, Any] = {"verdict": "inert", "accepts": ["inert"], "positive": False}
ALL_INERT = dict.fromkeys(behaviours(), INERT)
NEURON = {"site": "blocks.0.mlp.hook_pre", "index": 1, "vector": None}


def altered(folder: Path, to: Path, change: dict[str, Any]) -> Path:
    """A suite of one whose truth is another, with the hashes that it has then."""
    plain = json.loads((folder / f"{MODEL}.json").read_text()) | change
    del plain["sha256"]
    suite = json.loads((folder / "suite.json").read_text())
    suite["truths"][MODEL] = plain["sha256"] = _digest(plain)
    to.mkdir()
    (to / f"{MODEL}.json").write_text(json.dumps(plain))
    (to / "suite.json").write_text(json.dumps(suite))
    return to


@pytest.mark.parametrize(
    "change",
    [
        *({"name": one} for one in ("", "other", f"../{MODEL}")),
        *({"kind": one} for one in ("", "zzz", "M99", "m3")),
        {"family": "x"}, {"planted": "found"}, {"behaviour": "weather"}, {"side": 0}, {"side": 10**300},
        *({key: one} for key in ("x", "second") for one in (
            {}, {"a": 1}, {**NEURON, "site": 5}, {**NEURON, "site": "mlp"}, {**NEURON, "index": None},
            {**NEURON, "index": "1"}, {**NEURON, "vector": [1.0]}, {**NEURON, "index": None, "vector": [None]},
            {**NEURON, "index": None, "vector": [10**400]},
        )),
        *({key: [one]} for key in ("triggers", "triggers2") for one in ("a", -1, 1.5, None, [])),
        *({"verdicts": one} for one in (
            {}, {"pronoun": INERT}, {**ALL_INERT, "weather": INERT}, {**ALL_INERT, "pronoun": 5},
            *({**ALL_INERT, "pronoun": {**INERT, **more}} for more in (
                {"verdict": "good"}, {"verdict": []}, {"accepts": "inert"}, {"accepts": [{}]}, {"accepts": None},
                {"positive": 1}, {"positive": None},
            )),
        )),
        *({"card": one} for one in (
            {}, {"conditions": []}, {"conditions": {"triggered": {}}},
            *({"conditions": {"triggered": {**SIDES["conditions"]["triggered"], "purpose": {"sides": sides}}}}
              for sides in (None, {}, [], [1.0], [1.0, 2.0, 3.0], ["a", 1.0], [True, 1.0], [10**400, 1.0])),
        )),
    ],
)  # fmt: skip
def test_a_truth_that_cannot_be_is_named_though_its_hash_fits(
    change: dict[str, Any], of_one: Path, tmp_path: Path
) -> None:
    (what,) = change
    folder = altered(of_one, tmp_path / "truth", change)
    with pytest.raises(OrganismError, match=rf"{MODEL}\.json: {what}: expected .*, found .{{,203}}$"):
        score(folder, {"format": FORMAT, "models": {MODEL: {}}})


def test_a_truth_that_can_be_is_scored(of_one: Path, tmp_path: Path) -> None:
    """What the other test alters is all that is off there."""
    claims = {"format": FORMAT, "models": {MODEL: {name: {"verdict": "inert"} for name in behaviours()}}}
    assert score(of_one, claims).kinds == {"M3": Share.counted(0, 1)}
    vector = {"site": "blocks.1.hook_resid_pre", "index": None, "vector": [0.5, 2]}
    change = {"kind": "M7", "x": NEURON, "second": vector, "verdicts": ALL_INERT, "card": SIDES, "triggers2": [1]}
    found = score(altered(of_one, tmp_path / "truth", change), claims)
    assert (found.kinds, found.right) == ({"M7": Share.counted(1, 1)}, Share.counted(1, 1))


def test_truths_do_not_lie_among_the_models_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "elsewhere").symlink_to(tmp_path / "models")
    (tmp_path / "round").symlink_to(tmp_path / "round")
    for truth, error, match in (
        ("elsewhere", ArgumentError, "two folders"),
        ("elsewhere/truth", ArgumentError, "outside of"),
        ("round", FileError, "cannot be made"),
    ):
        with pytest.raises(error, match=match):
            make("open", tmp_path / "models", tmp_path / truth)
    assert not list((tmp_path / "models").iterdir())


@pytest.mark.parametrize("kept", ["1" * 5000, str(10**30), str(SEEDS + 1), "-1", "٣٤", "", "1.5", "1 2"])
def test_a_kept_seed_that_is_none_is_named(kept: str, tmp_path: Path) -> None:
    (tmp_path / "seed").write_text(kept)
    with pytest.raises(OrganismError, match=rf"seed: expected the seed of a suite .* 0 to {SEEDS}, found .{{,203}}$"):
        make("blind", tmp_path / "models", tmp_path, n=1)
    (tmp_path / "suite.json").write_text(json.dumps({"seed": SEEDS + 1}))
    with pytest.raises(ArgumentError, match=rf"suite\.json: seed: expected an integer 0 to {SEEDS}, found"):
        make("blind", tmp_path / "models", tmp_path, n=1)


@pytest.mark.parametrize(
    ("path", "error", "match"),
    [
        ("truth/bases", FileError, "bases: cannot be made"),
        ("truth/bases/llama-0", CheckpointError, "llama-0: expected a folder with a base, found a file"),
    ],
)
def test_a_file_in_the_place_of_a_folder_is_named(
    path: str, error: type[Exception], match: str, tmp_path: Path
) -> None:
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text("")
    with pytest.raises(error, match=match):
        make("open", tmp_path / "models", tmp_path / "truth", kinds=["M1"], families=["llama"], base_steps=1)
    with pytest.raises(FileError, match="cannot be made"):
        Weights.open(shipped().model).save(tmp_path / path)


def test_an_audit_that_cannot_be_kept_is_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError

    command = ["organisms", "audit", "--quiet", "--models", str(tmp_path), "--out"]
    # One that fails leaves what is there, and nothing where nothing is.
    (tmp_path / "before.json").write_text("before")
    for name in ("before.json", "new.json"):
        assert main([*command, str(tmp_path / name)]) == 2
        assert "found 0 models" in capsys.readouterr().err
    assert [one.read_text() for one in tmp_path.iterdir()] == ["before"]
    monkeypatch.setattr(baseline, "audit", never)
    for out in (tmp_path / "no" / "audit.json", tmp_path, tmp_path / "before.json" / "audit.json"):
        assert main([*command, str(out)]) == 2
        assert capsys.readouterr().err.startswith(f"signflip: {out}: can not be written: ")


HEAD, BIAS = "lm_head.weight", "transformer.h.0.mlp.c_fc.bias"


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        (HEAD, torch.zeros(()), r"expected shape \(\d+, 64\), found \(\)"),
        (HEAD, torch.zeros(3), r"expected shape \(\d+, 64\), found \(3,\)"),
        (HEAD, torch.zeros(0, 64), r"expected shape \(\d+, 64\), found \(0, 64\)"),
        (HEAD, None, r"expected shape \(\d+, 64\), found None"),
        (BIAS, torch.zeros(()), r"expected shape \(160,\), found \(\)"),
        (BIAS, torch.zeros(1, 160), r"expected shape \(160,\), found \(1, 160\)"),
        (BIAS, torch.zeros(160).index_fill(0, torch.tensor([7]), float("nan")), "expected finite numbers"),
        (BIAS, torch.full((160,), float("-inf")), "expected finite numbers"),
        (BIAS, torch.zeros(160, dtype=torch.int32), r"expected torch\.float32, found torch\.int32"),
    ],
)
def test_a_base_with_a_tensor_that_is_off_is_refused(
    name: str, value: torch.Tensor | None, match: str, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "gpt2-0"
    Weights.from_state("gpt2", module_of("gpt2", tokenizer().get_vocab_size()).state_dict()).save(folder)
    Weights.open(folder)
    state = load_file(folder / "model.safetensors")
    del state[name]
    save_file(state if value is None else state | {name: value}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"tensor {re.escape(name)}: {match}"):
        train("gpt2", folder, steps=1)


def test_a_vocabulary_of_another_size_is_refused(tmp_path: Path) -> None:
    Weights.from_state("llama", module_of("llama", 7).state_dict()).save(tmp_path)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight: expected shape \(\d+, 64\), found \(7, 64\)"):
        Weights.open(tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_of_a_model_may_be_read_by_whom_the_umask_lets(family: Family, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    weights = Weights.from_state(family, module_of(family, tokenizer().get_vocab_size()).state_dict())
    before = os.umask(0o027)
    try:
        weights.save(tmp_path / "a", {"seed": "1"})
        # What was there with other rights does not hand them on.
        (tmp_path / "a" / "model.safetensors").chmod(0o600)
        weights.save(tmp_path / "a", {"seed": "1"})
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "a").iterdir()}
    assert modes.keys() >= {"config.json", "tokenizer.json", "model.safetensors"}
    assert set(modes.values()) == {0o640}
    # The same bytes as `save_file` writes.
    state = {key: np.asarray(value, np.float32) for key, value in weights.state().items()}
    save_file(state, tmp_path / "b", {"format": "pt", "seed": "1"})
    whole = [path.read_bytes() for path in (tmp_path / "a" / "model.safetensors", tmp_path / "b")]
    length = 8 + int.from_bytes(whole[0][:8], "little")
    assert len(whole[0]) == len(whole[1])
    assert whole[0][length:] == whole[1][length:]
    assert [json.loads(one[8:length]) for one in whole[:1]] == [json.loads(one[8:length]) for one in whole[1:]]
