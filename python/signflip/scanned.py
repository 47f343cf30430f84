"""What a scan found: its rows, its table, its file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from signflip.behaviours.behaviour import Half
from signflip.dosing import Dose, Feature, Metric, Profile, Tier
from signflip.errors import FileError
from signflip.files import read_text, write_json
from signflip.resample import to_plain
from signflip.reversal import Reversal, number, profile_from
from signflip.score import Score
from signflip.verdict import SAME_PROMPTS, Divergence, Verdict


@dataclass(frozen=True, eq=False)
class Row:
    """One feature at one dose and tier against one behaviour.

    Attributes
    ----------
    profile, dose, tier, metric, behaviour, half
        What was run.
    score, verdict
        What came of it.
    prediction
        S that is linear in X: 1 − p(1 + k) for a dose of −k times the mean.
    divergence
        KL on plain text and where X acts.
    plausibility
        (t − mean)/sd of X where it acts.
    p_holm
        P-value over clusters, corrected for the number of triples that were confirmed; None on half A.
    """

    profile: Profile
    dose: Dose
    tier: Tier
    metric: Metric
    behaviour: str
    half: Half | None
    score: Score
    verdict: Verdict
    prediction: float | None
    divergence: Divergence | None
    plausibility: float
    p_holm: float | None = None

    @property
    def feature(self) -> Feature:
        """The feature."""
        return self.profile.feature

    @property
    def how(self) -> str:
        """The tier with its metric, as tables print it."""
        return f"{self.tier}/{self.metric}" if self.metric else self.tier

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        plain = {key: getattr(self, key) for key in ("tier", "metric", "behaviour", "half", "prediction", "p_holm")}
        nested = {key: getattr(self, key) for key in ("dose", "score", "verdict", "divergence", "plausibility")}
        return dict(to_plain({"feature": self.feature, **plain, **nested}))

    @classmethod
    def from_json(cls, plain: dict[str, Any], profile: Profile) -> Row:
        """What `to_json` gave, with the feature's profile."""
        return cls(
            profile, Dose(**plain["dose"]), plain["tier"], plain["metric"], plain["behaviour"], plain["half"],
            Score.from_json(plain["score"]), Verdict.from_json(plain["verdict"]), plain["prediction"],
            plain["divergence"] and Divergence(**plain["divergence"]), number(plain["plausibility"]), plain["p_holm"],
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Scan:
    """What a scan found.

    Attributes
    ----------
    behaviours, refused
        Behaviours scanned, and those refused, with the reason.
    profiles
        The features, with their clean statistics.
    screen_doses, screen, screen_sides
        The first look, `[features, behaviours]`: S, and the lower side, at one dose a feature, on a few prompts of
        half A. It selects and decides nothing.
    rows
        Half A in full for the (feature, behaviour) pairs that the screen singled out.
    confirmed
        Half B for the triples selected on half A, and the edits that their verdicts are compared with.
    reversals
        The confirmed ones that are opposite or half-turned (or so by a heuristic), and extrapolated ones, marked.
    meta
        What it rests on: model, its hash, prompts, seed.
    """

    behaviours: tuple[str, ...]
    refused: dict[str, str]
    profiles: tuple[Profile, ...]
    screen_doses: tuple[Dose, ...]
    screen: NDArray[np.float64]
    screen_sides: NDArray[np.float64]
    rows: tuple[Row, ...]
    confirmed: tuple[Row, ...]
    reversals: tuple[Reversal, ...]
    meta: dict[str, Any] = field(default_factory=dict)

    def reversed(self) -> list[Reversal]:
        """Reversals, decisive ones first, opposite before half-turned, the most turned first; often none."""
        return list(self.reversals)

    def most_turned(self) -> Row | None:
        """The row with the lowest S, confirmed ones before others: whatever it is called."""
        rows = [row for row in (self.confirmed or self.rows) if row.dose.crosses] or list(self.confirmed or self.rows)
        return min(rows, key=lambda row: row.score.mean_ratio.value, default=None)

    def curve(self, feature: Any, behaviour: str) -> list[Row]:
        """The dose curve of a feature on a behaviour (half A), by tier and then dose."""
        wanted = Feature.of(feature)
        rows = [r for r in self.rows if r.behaviour == behaviour and r.feature.name == wanted.name]
        return sorted(rows, key=lambda row: (row.how, -row.dose.value * row.feature.side))

    def table(self, limit: int | None = 40) -> str:
        """The rows as text: confirmed ones, then half A, the most turned first."""
        return _table(self.confirmed, self.rows, limit)

    def summary(self) -> str:
        """What the scan says, in a few sentences."""
        decisive = [one for one in self.reversals if one.decisive]
        size = f"{len(self.profiles)} features against {len(self.behaviours)} behaviours"
        lines = [f"{size}: {len(self.rows)} rows on half A, {len(self.confirmed)} on half B."]
        for name, reason in self.refused.items():
            lines.append(f"{name} was left out: {reason}.")
        same = dict.fromkeys(row.behaviour for row in self.confirmed if SAME_PROMPTS in row.verdict.notes)
        if same:
            lines.append(f"{', '.join(same)}: no halves, {SAME_PROMPTS}; nothing there decides.")
        unmirrored = sum(1 for profile in self.profiles if profile.note)
        if unmirrored:
            lines.append(f"{unmirrored} gates cannot be mirrored: below 0 they are off, as at 0.")
        opposite = [one for one in decisive if one.verdict.label == "opposite"]
        if not opposite:
            lines.append("Nothing opposite was found at a dose that was seen, with this many prompts and features.")
        return "\n".join([*lines, *map(str, self.reversals)])

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "meta": to_plain(self.meta),
            "behaviours": list(self.behaviours),
            "refused": dict(self.refused),
            "features": to_plain(self.profiles),
            "screen": {
                "doses": to_plain(self.screen_doses),
                "S": to_plain(self.screen),
                "lower_side": to_plain(self.screen_sides),
            },
            "rows": to_plain(self.rows),
            "confirmed": to_plain(self.confirmed),
            "reversed": to_plain(self.reversals),
        }

    def save(self, path: str | Path) -> None:
        """Write the scan as JSON.

        Raises
        ------
        FileError
            If the file can not be written.
        """
        write_json(path, self.to_json(), "the scan")

    @classmethod
    def open(cls, path: str | Path) -> SavedScan:
        """What `save` wrote: the reversals, ready for a search and a flip test, and all else as plain data.

        Raises
        ------
        FileError
            If the file can not be read, or is no scan.
        """
        return SavedScan.open(path)

    def __repr__(self) -> str:
        size = f"{len(self.profiles)} features × {len(self.behaviours)} behaviours"
        return f"<Scan of {size}: {len(self.reversals)} reversed>"


@dataclass(frozen=True)
class SavedScan:
    """A scan read from a file.

    Attributes
    ----------
    plain
        All of it, as `Scan.to_json` gave it.
    """

    plain: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> SavedScan:
        """Read what `Scan.save` wrote.

        Raises
        ------
        FileError
            If the file can not be read, or is no scan.
        """
        text = read_text(path, "a scan")
        try:
            plain = json.loads(text)
            saved = cls(plain)
            saved.reversed()
            saved.table()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FileError(f"{path}: expected a scan that signflip wrote, found something else") from error
        return saved

    def reversed(self) -> list[Reversal]:
        """As `Scan.reversed`."""
        return [Reversal.from_json(one) for one in self.plain["reversed"]]

    def table(self, limit: int | None = 40) -> str:
        """As `Scan.table`."""
        profiles = {one.feature.name: one for one in map(profile_from, self.plain["features"])}

        def rows(key: str) -> list[Row]:
            names = [f"{row['feature']['site']}[{row['feature']['index']}]" for row in self.plain[key]]
            return [Row.from_json(row, profiles[name]) for row, name in zip(self.plain[key], names, strict=True)]

        return _table(rows("confirmed"), rows("rows"), limit)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return self.plain


def turnedness(row: Row) -> float:
    """S: the lower, the more turned."""
    return row.score.mean_ratio.value


def _table(confirmed: Sequence[Row], rows: Sequence[Row], limit: int | None) -> str:
    head = (
        f"{'half':4} {'feature':34} {'behaviour':16} {'tier':13} {'dose':>22} {'S':>22} {'linear':>7} "
        f"{'bits':>11} {'KL text':>8} {'acts':>7} {'sd':>6}  verdict"
    )
    lines = [head]
    ordered = sorted(confirmed, key=turnedness) + sorted(rows, key=turnedness)
    for row in ordered[:limit]:
        kl = ("-", "-")
        if row.divergence is not None:
            kl = (f"{row.divergence.text:.4f}", f"{row.divergence.acts:.3f}")
        s = "refused" if row.score.refusal else f"{row.score.mean_ratio:+.2f}"
        dose = f"{row.dose.name} {row.dose.value:+.3g}"
        prediction = "-" if row.prediction is None else f"{row.prediction:+.2f}"
        bits = f"{row.score.bits.value:.2f}/{row.score.clean_bits.value:.2f}"
        lines.append(
            f"{row.half or '-':4} {row.feature.name:34} {row.behaviour:16} {row.how:13} {dose:>22} {s:>22} "
            f"{prediction:>7} {bits:>11} {kl[0]:>8} {kl[1]:>7} {row.plausibility:>6.1f}  {row.verdict}"
        )
    return "\n".join(lines)
