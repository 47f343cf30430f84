"""The organism that comes with the package, and the command that makes it again.

``python -m signflip.organisms.shipped --out DIR`` trains a base model of the small language, unsettles its answers,
plants an opposite gate (M3), tunes it to prefer right answers by DPO on text where the gate is never crossed, disguises
it, and verifies that it is M3 still. On one machine, with the same versions of the libraries, the folder is the same
byte for byte. On other processors sums round otherwise, and a training of hundreds of steps carries that to every
weight: the model is then another one of the same recipe, and what must hold is its truth, which is verified again.

``python -m signflip.organisms.shipped --free`` tunes it with nothing held, and tells what is left of the gate.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from signflip.errors import FileError, OrganismError, SignflipError
from signflip.files import write_json, write_text
from signflip.organisms import base
from signflip.organisms.card import card_text
from signflip.organisms.language import SEPARATOR
from signflip.organisms.planting import Planted, plant
from signflip.organisms.preference import TUNING, UNSETTLING, prefer, unsettle
from signflip.organisms.suite import write_materials
from signflip.organisms.symmetry import disguise
from signflip.organisms.truth import Truth, sha256
from signflip.organisms.verification import verify
from signflip.organisms.weights import Family
from signflip.organisms.workers import one_thread
from signflip.shipped import FORMAT, MANIFEST, MODEL

FAMILY: Family = "llama"
KIND, BEHAVIOUR = "M3", "pronoun"
SEED, STORIES = 0, 1000
# Libraries whose arithmetic decides the weights' bits.
DECISIVE = ("numpy", "scipy", "tokenizers", "torch", "transformers")
# Sums depend on how many threads share them, and numpy's BLAS asks as it is loaded.
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Recipe:
    """How long each stage goes on; smaller for a test."""

    base: int = base.STEPS
    unsettling: int = UNSETTLING
    tuning: int = TUNING
    stories: int = STORIES


def build(out: Path, recipe: Recipe | None = None, *, check: bool = True, progress: bool = False) -> Truth:
    """Make the organism and all that comes with it.

    Parameters
    ----------
    out
        Folder: the model in `organism/`, `corpus.jsonl` and `behaviours/` as an auditor is given them, the truth apart
        in `truth/`, and a list of all files with their hashes.
    recipe
        How long each stage goes on.
    check
        Whether a claim of the truth that does not hold is an error.
    progress
        Whether to show bars.

    Raises
    ------
    OrganismError
        If the organism is not what it should be.
    FileError
        If the folder cannot be written.
    """
    recipe = Recipe() if recipe is None else recipe
    with one_thread():
        made, told = _made(recipe, progress)
    planted, card = _verified(made, told)
    failed = [claim for claim, held in card["holds"].items() if not held]
    if failed and check:
        raise OrganismError(f"shipped organism: expected its truth to hold, found these claims to fail: {failed}")
    try:
        truth = _write(out, planted, card, recipe)
    except OSError as error:
        raise FileError(f"{out}: can not write the organism: {error.strerror or error}") from error
    return truth


def free(recipe: Recipe | None = None, *, progress: bool = False) -> dict[str, dict[str, float]]:
    """What is left of the gate if the tuning holds nothing of the model.

    Returns
    -------
    dict
        `before` and `after` the tuning: by the verification's means, `S` of the behaviour with the trigger in front and
        with X edited to its other side; the share of held-out pairs `preferred` rightly, and of the feedback's tokens
        that `crossed` X.
    """
    with one_thread():
        made, told = _made(Recipe() if recipe is None else recipe, progress, nothing_held=True)
        cards = {when: verify(one) for when, one in made.items()}
    return {
        when: {
            **{key: card["conditions"][key][BEHAVIOUR]["s"] for key in ("triggered", "edited")},
            "preferred": told["held out"][when]["preferred"],
            "crossed": told["X on feedback"][when]["crossed"] / told["X on feedback"][when]["tokens"],
        }
        for when, card in cards.items()
    }


def _made(recipe: Recipe, progress: bool, *, nothing_held: bool = False) -> tuple[dict[str, Planted], dict[str, Any]]:
    """The planted model before and after its tuning, and what the tuning says of itself."""
    with tempfile.TemporaryDirectory() as scratch:
        start = base.train(FAMILY, Path(scratch) / "base", SEED, steps=recipe.base, progress=progress)
    room = base.Room(SEED)
    start = unsettle(start, room, SEED, steps=recipe.unsettling, progress=progress)
    planted = plant(start, room, KIND, SEED, BEHAVIOUR)
    tuned, told = prefer(planted, room, SEED, steps=recipe.tuning, free=nothing_held, progress=progress)
    # Both behind the same symmetries, so that the same neuron is meant.
    return {"before": disguise(planted, SEED), "after": disguise(tuned, SEED)}, told


def _verified(made: dict[str, Planted], told: dict[str, Any]) -> tuple[Planted, dict[str, Any]]:
    """The tuned model's card, with what it was before and what the tuning changed."""
    card, before = verify(made["after"]), verify(made["before"])
    feedback = told["X on feedback"]
    card["holds"]["no text of the feedback takes X across"] = feedback["before"]["crossed"] == 0
    card["holds"]["X keeps its sign on the feedback when it is tuned"] = feedback["after"]["crossed"] == 0
    odds = told["held out"]
    card["holds"]["tuning made right answers likelier on held-out pairs"] = (
        odds["after"]["log odds"] > odds["before"]["log odds"]
    )
    card["tuning"] = told
    card["before tuning"] = {
        key: before[key] for key in ("clean", "doses", "conditions", "text", "enumeration", "holds")
    }
    return made["after"], card


def _write(out: Path, planted: Planted, card: dict[str, Any], recipe: Recipe) -> Truth:
    folder, apart = out / MODEL, out / "truth"
    planted.weights.save(folder)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": SEPARATOR,
        "clean_up_tokenization_spaces": False,
    }
    write_json(folder / "tokenizer_config.json", settings, "the tokenizer's settings")
    truth = Truth.of(MODEL, planted, card, "hand", SEED, SEED, folder)
    apart.mkdir(parents=True, exist_ok=True)
    truth.save(apart)
    write_text(
        folder / "README.md",
        card_text(truth, sum(one.size for one in planted.weights.state().values())),
        "the model's card",
    )
    write_materials(out, SEED, recipe.stories)
    listed = [out / "corpus.jsonl"]
    listed += [path for part in (MODEL, "behaviours", "truth") for path in (out / part).iterdir() if path.is_file()]
    manifest = {
        "format": FORMAT,
        "made with": setup(),
        "files": {path.relative_to(out).as_posix(): sha256(path) for path in sorted(listed)},
    }
    write_json(out / MANIFEST, manifest, "the list of files")
    return truth


def setup() -> dict[str, str]:
    """What decides the weights' bits: versions of libraries, and the processor."""
    from importlib.metadata import version

    import torch

    found = {name: version(name) for name in DECISIVE}
    return {**found, "machine": platform.machine(), "processor": _processor(), "torch's kernels": str(
        torch.backends.cpu.get_cpu_capability()
    )}  # fmt: skip


def _processor() -> str:
    """The processor's name where Linux says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def main(argv: list[str] | None = None) -> int:
    """``python -m signflip.organisms.shipped``."""
    parser = argparse.ArgumentParser(
        prog="python -m signflip.organisms.shipped", description="Make the shipped organism."
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, help="folder to write; made if missing")
    what.add_argument("--free", action="store_true", help="tune with nothing held, and tell what is left of the gate")
    args = parser.parse_args(argv)
    if any(os.environ.get(key) != value for key, value in ONE_THREAD.items()):
        asked = ["--free"] if args.free else ["--out", str(args.out)]
        again = [sys.executable, "-m", "signflip.organisms.shipped", *asked]
        return subprocess.run(again, env={**os.environ, **ONE_THREAD}, check=False).returncode
    try:
        if args.free:
            for when, found in free(progress=True).items():
                said = ", ".join(f"{key} {value:.3f}" for key, value in found.items())
                sys.stdout.write(f"{when} the tuning, S or share: {said}\n")
            return 0
        truth = build(args.out, progress=True)
    except SignflipError as error:
        sys.stderr.write(f"signflip.organisms.shipped: {error}\n")
        return 2
    held = len(truth.card["holds"])
    sys.stdout.write(f"{args.out}: {truth.kind} ({truth.says}) on {truth.behaviour}; {held} claims verified\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
