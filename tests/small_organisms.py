"""One organism of each kind in small, which tests of planting, of suites and of scores start from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from signflip.organisms import KINDS, Room, disguise, plant, train, verify
from signflip.organisms.suite import TRIES
from signflip.organisms.weights import FAMILIES, Weights

SEED = 3
# Enough for all three behaviours to be known.
STEPS = 400


def bases(folder: Path) -> dict[str, Weights]:
    """A base in each family, below a folder."""
    return {family: train(family, folder / f"{family}-0", 0, steps=STEPS) for family in FAMILIES}


def planted(bases: dict[str, Weights]) -> dict[str, Any]:
    """An organism of each kind, disguised, the families by turns, and its card."""
    made = {}
    for i, kind in enumerate(KINDS):
        # As `make` does. Which seeds hold is a matter of the base's last bits, which the machine decides.
        for attempt in range(TRIES):
            one = disguise(plant(bases[FAMILIES[i % 2]], Room(0), kind, SEED + attempt), SEED)
            card = verify(one, every=3)
            if all(card["holds"].values()):
                break
        made[kind] = (one, card)
    return made
