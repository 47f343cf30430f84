"""Truths: what is so of each organism, kept away from the models, each with a hash of itself and of its model."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from signflip.checks import shown
from signflip.errors import ArgumentError, OrganismError
from signflip.files import beside, make_folder
from signflip.organisms.kinds import KINDS, VERDICTS
from signflip.organisms.language import behaviours
from signflip.organisms.planting import Planted
from signflip.organisms.runner import Place
from signflip.organisms.weights import FAMILIES

FORMAT = "signflip organism truth, 1"
SUITE = "signflip organism suite, 1"
How = Literal["hand", "trained"]
HOW: tuple[How, ...] = ("hand", "trained")
_SITE = re.compile(r"blocks\.([0-9]{1,4})\.(\w+(?:\.\w+)*)")
_KEYS: dict[str, type | tuple[type, ...]] = {
    "name": str, "kind": str, "says": str, "family": str, "planted": str, "seed": int, "base_seed": int,
    "behaviour": str, "x": dict, "side": int, "second": (dict, type(None)), "triggers": list, "triggers2": list,
    "reachable": bool, "positive": bool, "verdicts": dict, "card": dict, "model_sha256": str,
}  # fmt: skip


@dataclass(frozen=True)
class Truth:
    """What is so of one organism.

    Attributes
    ----------
    name
        Of its folder.
    kind, says, family, planted, seed, base_seed
        What it is, and how it was made (`"hand"` or `"trained"`).
    behaviour
        The one that the plant is about.
    x, side, second
        The planted place (site and neuron index, or site and direction), the sign it keeps, and the other unit of M5
        and M7.
    triggers, triggers2
        Ids of words that take X (and M7's second scalar) across.
    reachable
        Whether tokens take X across at all.
    positive
        Whether there is a reversal to be found.
    verdicts
        For each behaviour the verdict that is right, others that are accepted, and whether it is a reversal.
    card
        How all this was verified, with the numbers.
    model_sha256
        Of `model.safetensors`.
    """

    name: str
    kind: str
    says: str
    family: str
    planted: str
    seed: int
    base_seed: int
    behaviour: str
    x: dict[str, Any]
    side: int
    second: dict[str, Any] | None
    triggers: list[int]
    triggers2: list[int]
    reachable: bool
    positive: bool
    verdicts: dict[str, dict[str, Any]]
    card: dict[str, Any]
    model_sha256: str

    @classmethod
    def of(
        cls, name: str, planted: Planted, card: dict[str, Any], how: str, seed: int, base_seed: int, model: Path
    ) -> Truth:
        """From a planted model that was verified and written."""
        kind = planted.known
        return cls(
            name, kind.name, kind.says, planted.weights.family, how, seed, base_seed, planted.behaviour,
            _plain(planted.x), planted.side, _plain(planted.second) if planted.second else None,
            list(planted.triggers), list(planted.triggers2), kind.reachable, kind.positive,
            _verdicts(planted, card), card, sha256(model / "model.safetensors"),
        )  # fmt: skip

    @property
    def place(self) -> Place:
        """X as a place."""
        vector = self.x.get("vector")
        return Place(self.x["site"], self.x.get("index"), None if vector is None else tuple(vector))

    def save(self, folder: Path) -> str:
        """Write `<name>.json` into a folder and return its hash.

        Raises
        ------
        FileError
            If it cannot be written.
        """
        plain = {"format": FORMAT, **asdict(self)}
        digest = _digest(plain)
        text = json.dumps({**plain, "sha256": digest}, indent=1, allow_nan=False) + "\n"
        with beside(folder / f"{self.name}.json") as path:
            path.write_text(text, encoding="utf-8")
        return digest

    @classmethod
    def open(cls, path: Path) -> Truth:
        """Read a truth.

        Raises
        ------
        OrganismError
            If it is missing, was altered, is not a truth, or says what is so of no organism.
        """
        plain = read_json(path, "a truth")
        if plain.get("format") != FORMAT:
            raise OrganismError(f"{path}: expected a truth ({FORMAT}), found {plain.get('format')!r}")
        wrong = [key for key, kind in _KEYS.items() if not isinstance(plain.get(key, ...), kind)]
        if wrong:
            raise OrganismError(f"{path}: expected all of a truth, found {', '.join(wrong)} missing or off")
        told = plain.pop("sha256", None)
        try:
            found = _digest(plain)
        except (ValueError, RecursionError) as error:
            raise OrganismError(f"{path}: expected a truth of finite numbers, found another: {error}") from error
        if told != found:
            raise OrganismError(f"{path}: the truth was altered: expected sha256 {told}, found {found}")
        _check(path, plain)
        return cls(**{key: plain[key] for key in _KEYS})


def _check(path: Path, plain: dict[str, Any]) -> None:
    """Refuse a truth that has all its parts, of which one is off: whoever alters it can give it a hash again."""
    known = tuple(behaviours())
    place = "a site (blocks.N.name) and either an index or a vector of finite numbers"
    for key, fits, wanted in (
        ("name", plain["name"] == path.stem, f"that of its file, {path.stem}"),
        ("kind", plain["kind"] in KINDS, f"one of {', '.join(KINDS)}"),
        ("family", plain["family"] in FAMILIES, f"one of {', '.join(FAMILIES)}"),
        ("planted", plain["planted"] in HOW, f"one of {', '.join(HOW)}"),
        ("behaviour", plain["behaviour"] in known, f"one of {', '.join(known)}"),
        ("x", is_place(plain["x"]), place),
        ("side", plain["side"] in (-1, 1), "-1 or 1"),
        ("second", plain["second"] is None or is_place(plain["second"]), f"{place}, or none"),
        ("triggers", all(map(is_index, plain["triggers"])), "ids of tokens"),
        ("triggers2", all(map(is_index, plain["triggers2"])), "ids of tokens"),
        ("verdicts", plain["verdicts"].keys() == set(known), f"one of each of {', '.join(known)}"),
    ):
        if not fits:
            raise OrganismError(f"{path}: {key}: expected {wanted}, found {shown(plain[key])}")
    for name in known:
        said = plain["verdicts"][name]
        if not _is_verdict(said):
            raise OrganismError(
                f"{path}: verdicts: expected of {name} a verdict of {', '.join(VERDICTS)}, a list of those that it "
                f"accepts, and whether it is positive, found {shown(said)}"
            )
        sides = _sides(plain["card"], name)
        if not isinstance(sides, list) or len(sides) != 2 or not all(map(_real, sides)):
            raise OrganismError(
                f"{path}: card: expected two finite numbers as {name}'s sides where it is triggered, found "
                f"{shown(sides)}"
            )


def _is_verdict(plain: Any) -> bool:
    if not isinstance(plain, Mapping):
        return False
    accepts = plain.get("accepts")
    listed = isinstance(accepts, list) and all(one in VERDICTS for one in accepts)
    return listed and plain.get("verdict") in VERDICTS and isinstance(plain.get("positive"), bool)


def _sides(card: Any, behaviour: str) -> Any:
    """What triggers do to each side of a behaviour, as a card has it; None where it does not."""
    for key in ("conditions", "triggered", behaviour, "sides"):
        card = card.get(key) if isinstance(card, Mapping) else None
    return card


def check_apart(models: Path, truth: Path) -> None:
    """Refuse truths in the folder that an auditor is given, whatever links lead there.

    Raises
    ------
    ArgumentError
        If both are one, or the truths are inside of the models' folder.
    """
    given, kept = (Path(os.path.realpath(one)) for one in (models, truth))
    if given == kept:
        raise ArgumentError(f"models and truth: expected two folders, found {models} twice")
    if kept.is_relative_to(given):
        raise ArgumentError(f"truth: expected a folder outside of {models}, which an auditor is given, found {truth}")


def is_place(plain: Any) -> bool:
    """Whether plain data is a place: a site, and either an index or a vector of finite numbers."""
    if not isinstance(plain, Mapping) or not plain.keys() <= {"site", "index", "vector"}:
        return False
    site, index, vector = (plain.get(key) for key in ("site", "index", "vector"))
    if not isinstance(site, str) or not _SITE.fullmatch(site) or (index is None) == (vector is None):
        return False
    return is_index(index) if vector is None else isinstance(vector, list) and bool(vector) and all(map(_real, vector))


def is_index(plain: Any) -> bool:
    """Whether plain data is a whole number of at least 0."""
    return isinstance(plain, int) and not isinstance(plain, bool) and plain >= 0


def _real(plain: Any) -> bool:
    """A finite number that a float holds: not NaN, and no integer of hundreds of digits."""
    return isinstance(plain, int | float) and not isinstance(plain, bool) and abs(plain) <= sys.float_info.max


def _plain(place: Place) -> dict[str, Any]:
    vector = None if place.vector is None else list(place.vector)
    return {"site": place.site, "index": place.index, "vector": vector}


def _verdicts(planted: Planted, card: dict[str, Any]) -> dict[str, dict[str, Any]]:
    kind = planted.known
    out: dict[str, dict[str, Any]] = {}
    conditions = card["conditions"]
    for name in conditions["edited"]:
        if name == planted.behaviour:
            out[name] = {"verdict": kind.verdict, "accepts": list(kind.accepts), "positive": kind.positive}
            continue
        # Of another behaviour what was measured: by tokens where they reach X, by edits where they do not.
        label = conditions["triggered" if planted.triggers else "edited"][name]["verdict"]
        accepts = [label]
        if label in ("inert", "inconclusive", "weakened"):
            accepts += [one for one in ("inert", "none") if one != label]
        out[name] = {"verdict": label, "accepts": accepts, "positive": label in ("opposite", "half-turned")}
    return out


def save_suite(folder: Path, truths: list[Truth], more: dict[str, Any]) -> None:
    """Write truths and the suite's list of them.

    Raises
    ------
    FileError
        If the folder cannot be made, or a file not written.
    """
    make_folder(folder)
    digests = {one.name: one.save(folder) for one in truths}
    text = json.dumps({"format": SUITE, **more, "truths": digests}, indent=1) + "\n"
    with beside(folder / "suite.json") as path:
        path.write_text(text, encoding="utf-8")


def open_suite(folder: Path) -> tuple[dict[str, Any], dict[str, Truth]]:
    """Read a suite's truths.

    Raises
    ------
    OrganismError
        If the list or a truth is missing or altered; the message names the file.
    """
    suite = read_json(folder / "suite.json", "a suite")
    if suite.get("format") != SUITE:
        raise OrganismError(f"{folder / 'suite.json'}: expected a suite ({SUITE}), found {suite.get('format')!r}")
    for key, kind, wanted in (("truths", dict, "an object"), ("models", str, "a folder's name")):
        if not isinstance(suite.get(key), kind):
            raise OrganismError(f"{folder / 'suite.json'}: {key}: expected {wanted}, found {suite.get(key)!r}")
    n = suite.get("n")
    if not suite["truths"] or n != len(suite["truths"]):
        raise OrganismError(f"{folder / 'suite.json'}: expected {n} truths, as it says, found {len(suite['truths'])}")
    out = {}
    for name, digest in suite["truths"].items():
        truth = Truth.open(folder / f"{name}.json")
        found = _digest({"format": FORMAT, **asdict(truth)})
        if found != digest:
            raise OrganismError(f"{folder / f'{name}.json'}: expected the truth {digest} of the suite, found {found}")
        out[name] = truth
    return suite, out


def read_json(path: Path, what: str) -> dict[str, Any]:
    """A JSON object from a file.

    Raises
    ------
    OrganismError
        If there is none, or a name in it stands twice, of which json would take the last.
    """
    try:
        plain = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except FileNotFoundError as error:
        raise OrganismError(f"{path}: expected {what}, found no such file") from error
    except (OSError, ValueError, RecursionError) as error:
        raise OrganismError(f"{path}: can not read {what}: {error}") from error
    if not isinstance(plain, dict):
        raise OrganismError(f"{path}: expected a JSON object, found {type(plain).__name__}")
    return plain


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = sorted(name for name, n in Counter(name for name, _ in pairs).items() if n > 1)
        raise ValueError(f"expected each name once, found {', '.join(map(shown, twice))} again")
    return found


def sha256(path: Path) -> str:
    """Of a file.

    Raises
    ------
    OrganismError
        If it is not there, or can not be read.
    """
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError as error:
        raise OrganismError(f"{path}: expected a model, found none") from error
    except (OSError, ValueError) as error:
        raise OrganismError(f"{str(path)[:200]}: can not read the model: {error}") from error


def _digest(plain: dict[str, Any]) -> str:
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
