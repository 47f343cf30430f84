"""What a flip test found: its conditions, its table, its file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from signflip.behaviours.behaviour import Half
from signflip.dosing import Feature, Profile
from signflip.errors import ArgumentError
from signflip.files import write_json
from signflip.mediation import Mediation
from signflip.reflection import Reflection
from signflip.resample import to_plain
from signflip.score import Score
from signflip.verdict import Verdict


@dataclass(frozen=True, eq=False)
class ConditionRow:
    """One line of a flip test.

    Attributes
    ----------
    group
        `clean`, `dose`, `ablated`, `tokens`, `clamped`, `set to triggered`, `matched unit`, `random tokens`.
    name
        What it is, in words.
    score
        On the prompts of the test.
    verdict
        Where one is due.
    plausibility
        (t − mean)/sd of X where it acts, for doses.
    """

    group: str
    name: str
    score: Score
    verdict: Verdict | None = None
    plausibility: float | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {key: to_plain(getattr(self, key)) for key in self.__dataclass_fields__}


@dataclass(frozen=True, eq=False)
class Reached:
    """Whether the found tokens really take X across, in the prompts.

    Attributes
    ----------
    survived
        Share of prompts in which the text with the trigger came back as the same ids.
    positions
        For each prompt the positions that matter, counted from its end.
    values, clean
        X there in the triggered and in the clean run, averaged over them, `[prompts]`.
    flipped
        Whether X is on its other side at all of them, `[prompts]`.
    on_trigger
        Share of prompts in which X is on its other side somewhere on the trigger itself.
    """

    survived: float
    positions: tuple[tuple[int, ...], ...]
    values: NDArray[np.float64]
    clean: NDArray[np.float64]
    flipped: NDArray[np.bool_]
    on_trigger: float

    def __str__(self) -> str:
        return (
            f"X flipped in {self.flipped.mean():.0%} of prompts at the positions that matter (mean "
            f"{self.clean.mean():+.3g} -> {self.values.mean():+.3g}), in {self.on_trigger:.0%} on the trigger itself; "
            f"the trigger survives decoding and encoding in {self.survived:.0%}"
        )

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {key: to_plain(getattr(self, key)) for key in self.__dataclass_fields__}


@dataclass(frozen=True, eq=False)
class FlipTest:
    """What a flip test found.

    Attributes
    ----------
    feature, behaviour, half, trigger, trigger_text
        What was tested, and on which prompts.
    rows
        The conditions.
    reached
        Whether the tokens flip X in the prompts.
    mediation
        Whether X carries what the tokens do.
    control
        The reflection, or why it could not be run.
    verdict
        What the tokens do (tier T3, or T4 if X carries it), by the same rules as every verdict.
    edited
        The verdict of the strongest edit at a dose that was seen (tier T0 or T1).
    profile
        Clean statistics of X where it acts.
    meta
        What it rests on.
    """

    feature: Feature
    behaviour: str
    half: Half | None
    trigger: tuple[int, ...]
    trigger_text: str | None
    rows: tuple[ConditionRow, ...]
    reached: Reached
    mediation: Mediation
    control: Reflection | str
    verdict: Verdict
    edited: Verdict | None
    profile: Profile
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def role(self) -> str:
        """`carrier`, `bystander`, `partly` or `nothing to mediate`."""
        return self.mediation.role

    def row(self, group: str) -> ConditionRow:
        """The first row of a group.

        Raises
        ------
        ArgumentError
            If there is none.
        """
        for row in self.rows:
            if row.group == group:
                return row
        raise ArgumentError(f"group: expected one of {sorted({row.group for row in self.rows})}, found {group!r}")

    def table(self) -> str:
        """The conditions as text."""
        lines = [f"{'condition':44} {'S':>22} {'rank':>6} {'sides':>14} {'bits':>11} {'acc':>5} {'mass':>5} verdict"]
        for row in self.rows:
            score = row.score
            s = "refused" if score.refusal else f"{score.mean_ratio:+.2f}"
            sides = " ".join(f"{side.value:+.2f}" for side in score.sides.values())
            bits = f"{score.bits.value:.2f}/{score.clean_bits.value:.2f}"
            tail = f"{score.accuracy.value:>5.2f} {score.mass.value:>5.2f} {row.verdict or ''}"
            lines.append(f"{row.name:44.44} {s:>22} {score.rank.value:>+6.2f} {sides:>14} {bits:>11} {tail}")
        return "\n".join(lines)

    def __str__(self) -> str:
        said = f" {self.trigger_text!r}" if self.trigger_text is not None else f" {list(self.trigger)}"
        edited = f"edits at doses that were seen: {self.edited}" if self.edited is not None else ""
        return "\n".join(
            line
            for line in (
                f"{self.feature.name} on {self.behaviour}, trigger{said}",
                self.table(),
                str(self.reached),
                str(self.mediation),
                f"tokens: {self.verdict}",
                edited,
                f"positive control: {self.control}",
            )
            if line
        )

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {key: to_plain(getattr(self, key)) for key in self.__dataclass_fields__} | {"role": self.role}

    def save(self, path: str | Path) -> None:
        """Write the test as JSON.

        Raises
        ------
        FileError
            If the file can not be written.
        """
        write_json(path, self.to_json(), "the flip test")
