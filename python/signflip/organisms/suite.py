"""Suites: many organisms at once, their truths apart."""

from __future__ import annotations

import json
import logging
import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from tqdm.auto import tqdm

from signflip import checks
from signflip.checks import integer, listed, shown
from signflip.errors import ArgumentError, OrganismError
from signflip.files import make_folder, read_text, write_text
from signflip.organisms import base
from signflip.organisms.kinds import KINDS
from signflip.organisms.language import behaviours, corpus
from signflip.organisms.planting import plant
from signflip.organisms.symmetry import disguise
from signflip.organisms.truth import HOW, How, Truth, check_apart, read_json, save_suite, sha256
from signflip.organisms.verification import verify
from signflip.organisms.weights import FAMILIES, FILES, Family
from signflip.organisms.workers import in_processes, one_thread

log = logging.getLogger("signflip.organisms")

T = TypeVar("T")
STORIES = 4000
# A thousand times the seed is still one of torch's.
SEEDS = 2**50
# As many as anyone has use for, of what `make` is asked for by number.
MOST = {"n": 100_000, "bases": 10_000, "base_steps": 10**7, "workers": 1024}
# A plant whose verification fails is drawn again, with another seed, so often: in some bases one in four holds.
TRIES = 30


@dataclass(frozen=True)
class Order:
    """One organism to be made."""

    name: str
    kind: str
    family: Family
    planted: How
    seed: int
    base_seed: int


def make(
    suite: Literal["blind", "open"],
    models: str | Path,
    truth: str | Path,
    *,
    n: int | None = None,
    seed: int | None = None,
    kinds: Sequence[str] | None = None,
    families: Sequence[Family] = FAMILIES,
    planted: Sequence[How] = ("hand",),
    bases: int = 1,
    base_steps: int = base.STEPS,
    workers: int = 1,
    progress: bool = False,
) -> list[Truth]:
    """Make a suite of organisms: models in one folder, truths in another.

    Parameters
    ----------
    suite
        `"blind"`: kinds, families and places drawn at random, half of the organisms with a reversal to be found, names
        without meaning. `"open"`: one of each kind, family and way of planting, named so.
    models
        Where the models go, with the corpus and the behaviours that an auditor works on.
    truth
        Where the truths go, and the base models: not inside of `models`, which an auditor is given.
    n
        How many, for a blind suite (120), at most 100,000; an open one has as many as were chosen.
    seed
        Of everything drawn (open: 0). Whoever knows it can make the suite again, so that a blind suite is blind only
        where it cannot be guessed: if not given, one is drawn and kept with the truths.
    kinds, families, planted
        Which to make.
    bases
        How many base models of each family to plant in, at most 10,000.
    base_steps
        Steps of their training.
    workers
        Processes; torch has one thread in each, so that a seed gives the same however many there are.
    progress
        Whether to show bars.

    Returns
    -------
    list of Truth
        An interrupted call, made again, goes on: organisms that are there are not made again.

    Raises
    ------
    ArgumentError
        If a kind, family, way of planting or number makes no sense, or the truths would be among the models.
    FileError
        If a folder cannot be made.
    OrganismError
        If an organism could not be made so that its truth holds, or the folders hold those of another suite, or an
        organism that is not as it was made; or if a worker dies.
    CheckpointError
        If a base model that is there is another one, or its unfinished training can not be read.
    """
    models, truth = checks.path("models", models), checks.path("truth", truth)
    chosen = _some("kinds", list(KINDS) if kinds is None else kinds, tuple(KINDS))
    families, planted = _some("families", families, FAMILIES), _some("planted", planted, HOW)
    if suite not in ("blind", "open"):
        raise ArgumentError(f"suite: expected blind or open, found {shown(suite)}")
    integer("seed", 0 if seed is None else seed, 0, SEEDS)
    counts = {"n": 120 if n is None else n, "bases": bases, "base_steps": base_steps, "workers": workers}
    for what, number in counts.items():
        integer(what, number, 1, MOST[what])
    if suite == "open" and n is not None:
        raise ArgumentError(f"n: expected none for an open suite, which has one of each kind, found {n}")
    check_apart(models, truth)
    for folder in (models, truth):
        make_folder(folder)
    if seed is None:
        seed = 0 if suite == "open" else _secret(truth)
    if suite == "open":
        orders = list(_open(chosen, families, planted, seed, bases))
    else:
        orders = list(blind_orders(chosen, families, planted, seed, bases, 120 if n is None else n))
    asked = {
        "suite": suite, "seed": seed, "n": len(orders), "kinds": chosen, "families": families, "planted": planted,
        "bases": bases, "base_steps": base_steps,
    }  # fmt: skip
    _check_folders(models, truth, asked, {order.name for order in orders})
    missing = [order for order in orders if not _there(order, models, truth)]
    work = partial(_make_all, models, truth, base_steps, progress and workers == 1)
    with tqdm(
        total=len(orders), initial=len(orders) - len(missing), desc="organisms", unit="model",
        disable=None if progress else True,
    ) as bar:  # fmt: skip
        if workers == 1:
            for order in missing:
                work([order])
                bar.update()
        else:
            # Bases first, by those who plant in them: two processes that wait for one base would train it twice.
            firsts = list({(order.family, order.base_seed): order for order in reversed(missing)}.values())
            for some in (firsts, [order for order in missing if order not in firsts]):
                for done in in_processes(work, [[order] for order in some], workers):
                    bar.update(done)
    made = [Truth.open(truth / f"{order.name}.json") for order in orders]
    # The same for all blind suites: it is no clue to their seed.
    write_materials(models, seed if suite == "open" else 0)
    save_suite(truth, made, {**asked, "models": str(models.resolve())})
    _same_time([models / order.name for order in orders])
    return made


def _secret(truth: Path) -> int:
    """The seed of a blind suite that is given none: of the suite that is there, of one begun there, or a new one."""
    made, kept = truth / "suite.json", truth / "seed"
    if made.exists():
        return integer(f"{made}: seed", read_json(made, "a suite").get("seed"), 0, SEEDS)
    if not kept.exists():
        write_text(kept, f"{secrets.randbits(48)}\n", "the seed of a suite")
    found = read_text(kept, "the seed of a suite").strip()
    # Their length first: Python reads no number of thousands of digits.
    if not (found.isascii() and found.isdecimal() and len(found) <= len(str(SEEDS)) and int(found) <= SEEDS):
        raise OrganismError(
            f"{kept}: expected the seed of a suite that was begun here, an integer 0 to {SEEDS}, found {shown(found)}"
        )
    return int(found)


def _some(what: str, chosen: Sequence[T], known: Sequence[T]) -> list[T]:
    wanted = f"some of {', '.join(map(str, known))}"
    found = listed(what, chosen, wanted)
    unknown = [one for one in found if one not in known]
    if unknown or not found:
        raise ArgumentError(f"{what}: expected {wanted}, found {', '.join(map(shown, unknown)) or 'none'}")
    return found


def _check_folders(models: Path, truth: Path, asked: dict[str, Any], names: set[str]) -> None:
    """Refuse folders that hold another suite, whole or begun."""
    if (truth / "suite.json").exists():
        there = read_json(truth / "suite.json", "a suite")
        other = {key: there.get(key) for key, value in asked.items() if there.get(key) != value}
        if other:
            raise OrganismError(
                f"{truth / 'suite.json'}: expected a suite of {', '.join(f'{key} {asked[key]}' for key in other)}, "
                f"found {', '.join(f'{key} {value}' for key, value in other.items())}; name other folders"
            )
    mixed = [models / name for name in ("suite.json", "seed", "bases") if (models / name).exists()]
    mixed += [truth / name for name in ("corpus.jsonl", "behaviours") if (truth / name).exists()]
    if mixed:
        raise OrganismError(f"{mixed[0]}: expected models and truths in folders of their own, found one of the others")
    others = sorted({path.parent.name for path in models.glob("*/model.safetensors")} - names)
    if others:
        raise OrganismError(
            f"{models}: expected organisms of this suite alone, found {', '.join(others[:3])} of another; name another "
            "folder"
        )


def _same_time(folders: Sequence[Path]) -> None:
    """Give all models the time of the last: kinds take longer or shorter to make, and times would tell."""
    paths = [path for folder in folders for path in (*(folder / name for name in FILES), folder)]
    last = max(path.stat().st_mtime_ns for path in paths)
    for path in paths:
        os.utime(path, ns=(last, last))


def write_materials(models: Path, seed: int, stories: int = STORIES) -> None:
    """What an auditor works on: `corpus.jsonl`, and `behaviours/*.jsonl`."""
    lines = (json.dumps({"text": text}) + "\n" for text in corpus(stories, seed))
    write_text(models / "corpus.jsonl", "".join(lines), "the suite's corpus")
    make_folder(models / "behaviours")
    for name, behaviour in behaviours().items():
        behaviour.save(models / "behaviours" / f"{name}.jsonl")


def _there(order: Order, models: Path, truth: Path) -> bool:
    """Whether an earlier call made an organism."""
    path = truth / f"{order.name}.json"
    if path.exists() and (models / order.name / "model.safetensors").exists():
        _taken_up(path, order, models / order.name)
        return True
    # The truth of a model that is gone: what is made in its place has one of its own.
    path.unlink(missing_ok=True)
    return False


def _make_all(models: Path, truth: Path, steps: int, progress: bool, orders: Sequence[Order]) -> None:
    with one_thread():
        for order in orders:
            _make(order, models / order.name, truth / "bases", steps, progress).save(truth)


def _make(order: Order, folder: Path, bases: Path, steps: int, progress: bool) -> Truth:
    make_folder(bases)
    start = base.train(
        order.family, bases / f"{order.family}-{order.base_seed}", order.base_seed, steps=steps, progress=progress
    )
    room = base.Room(order.base_seed)
    failed: list[str] = []
    for attempt in range(TRIES):
        seed = order.seed + attempt
        if order.planted == "hand":
            made = plant(start, room, order.kind, seed)
        else:
            from signflip.organisms.trained import train_in

            made = train_in(start, room, order.kind, seed)
        made = disguise(made, seed)
        made.weights.save(folder)
        card = verify(made, exact=order.planted == "hand")
        failed = [claim for claim, held in card["holds"].items() if not held]
        if not failed:
            card["attempts"] = attempt + 1
            return Truth.of(order.name, made, card, order.planted, seed, order.base_seed, folder)
        log.info("%s (%s, %s, seed %d) is drawn again: %s", order.kind, order.family, order.planted, seed, failed)
    raise OrganismError(
        f"organism {order.kind} ({order.family}, {order.planted}): expected its truth to hold in one of {TRIES} seeds "
        f"from {order.seed}, found these claims to fail in the last: {'; '.join(failed)}"
    )


def _taken_up(path: Path, order: Order, model: Path) -> None:
    """Refuse an organism that an earlier call made, if it is not the one that is asked for, and whole."""
    one = Truth.open(path)
    found = (one.kind, one.family, one.planted, one.base_seed)
    wanted = (order.kind, order.family, order.planted, order.base_seed)
    if found != wanted or not 0 <= one.seed - order.seed < TRIES:
        raise OrganismError(
            f"{path}: expected {' '.join(map(str, wanted))} of seed {order.seed}, found {' '.join(map(str, found))} of "
            f"seed {one.seed}, of another suite; name other folders"
        )
    missing = [name for name in FILES if not (model / name).is_file()]
    if missing or sha256(model / "model.safetensors") != one.model_sha256:
        there = f"no {missing[0]}" if missing else "another model.safetensors"
        raise OrganismError(f"{model}: expected the model of {path}, found {there}; remove the folder to make it again")


def _open(
    kinds: Sequence[str], families: Sequence[Family], planted: Sequence[How], seed: int, bases: int
) -> Iterator[Order]:
    for how in planted:
        for family in families:
            for i, kind in enumerate(kinds):
                own = 1000 * seed + 10 * i
                yield Order(f"{kind}-{family}-{how}", kind, family, how, own, seed + i % bases)


def blind_orders(
    kinds: Sequence[str], families: Sequence[Family], planted: Sequence[How], seed: int, bases: int, n: int
) -> Iterator[Order]:
    """What a blind suite consists of: half of it with a reversal, all else drawn; arguments as for `make`."""
    if n < 1:
        raise ArgumentError(f"n: expected at least 1, found {n}")
    rng = np.random.default_rng((seed, 31))
    sides: list[list[str]] = [[k for k in kinds if KINDS[k].positive], [k for k in kinds if not KINDS[k].positive]]
    sides = [side for side in sides if side]
    # Exactly half and half, in random order.
    for which in rng.permutation(np.arange(n) % len(sides)):
        kind = str(rng.choice(sides[which]))
        family = families[int(rng.integers(len(families)))]
        how = planted[int(rng.integers(len(planted)))]
        name = rng.bytes(6).hex()
        yield Order(name, kind, family, how, int(rng.integers(2**31)), seed + int(rng.integers(bases)))


def statistics(weights: dict[str, Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """What a glance at weights sees: of each tensor moments and extremes; row and column norms, singular values.

    Vectors, such as biases, have quantiles in place of norms.
    """
    out: list[float] = []
    for name in sorted(weights):
        w = np.asarray(weights[name], np.float64)
        if w.ndim not in (1, 2) or w.size == 0:
            continue
        flat = w.ravel()
        z = (flat - flat.mean()) / (flat.std() or 1)
        out += [flat.mean(), flat.std(), np.abs(flat).max(), float((z**3).mean()), float((z**4).mean())]
        if w.ndim == 1:
            out += np.quantile(w, (0.0, 0.05, 0.5, 0.95, 1.0)).tolist()
            continue
        rows, columns = np.linalg.norm(w, axis=1), np.linalg.norm(w, axis=0)
        out += [*np.quantile(rows, (0.0, 0.5, 0.95, 1.0)), *np.quantile(columns, (0.0, 0.5, 0.95, 1.0))]
        out += np.linalg.svd(w, compute_uv=False)[:8].tolist()
    return np.asarray(out)


__all__ = ["HOW", "How", "blind_orders", "make", "statistics", "write_materials"]
