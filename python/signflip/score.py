"""Scores: what a model answers over a behaviour's prompts, against what the clean model answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from signflip.design import Answers, Design, leans, side_means, statistics
from signflip.edits import Edit, PerSequence
from signflip.errors import BehaviourError
from signflip.resample import Estimate, to_plain

if TYPE_CHECKING:
    from signflip.behaviours.prompts import ModelPrompt
    from signflip.model import Model


def answers(
    model: Model,
    prompts: Sequence[ModelPrompt],
    edits: Sequence[Edit] = (),
    sequences: Sequence[Sequence[int]] | None = None,
) -> Answers:
    """Run prompts, or sequences made of them, and read their answers.

    Raises
    ------
    ContextLengthError
        If a sequence is longer than the model's context.
    """
    from signflip.model import Logits, LogProb, Read

    ids = [list(prompt.ids) for prompt in prompts] if sequences is None else [list(one) for one in sequences]
    pairs = PerSequence([[prompt.correct, prompt.opposite] for prompt in prompts])
    reads: list[Read] = [Logits(-1, pairs), LogProb([[prompt.correct] for prompt in prompts])]
    logits, log_probs = model.read(ids, reads, [list(edits)])[0]
    return from_reads(np.concatenate(logits), np.concatenate(log_probs))


def answer_tokens(prompts: Sequence[ModelPrompt]) -> list[int]:
    """Every token that is an answer to some prompt."""
    return sorted({one.correct for one in prompts} | {one.opposite for one in prompts})


def from_reads(logits: NDArray[Any], log_prob: NDArray[Any] | None) -> Answers:
    """Answers from the two logits `[prompts, 2]` and the log-probability of the correct answer `[prompts]`."""
    both = np.asarray(logits, np.float64).reshape(-1, 2)
    correct, opposite = both[:, 0], both[:, 1]
    if log_prob is None:
        return Answers(correct, opposite, np.full(len(correct), np.nan))
    mass = np.exp(np.minimum(np.asarray(log_prob, np.float64), 0.0)) * (1 + np.exp(opposite - correct))
    return Answers(correct, opposite, np.minimum(mass, 1.0))


@dataclass(frozen=True, eq=False)
class Detail:
    """What a score was computed from: needed to compare it with others, not kept in files.

    Attributes
    ----------
    design, clean, run
        The prompts' structure, and both runs' answers.
    replicated
        Bootstrap replicates of the numbers that verdicts compare, `[replicates]` each.
    """

    design: Design
    clean: Answers
    run: Answers
    replicated: dict[str, NDArray[np.float64]]


@dataclass(frozen=True, eq=False)
class Score:
    """What a run scored on a behaviour. Intervals resample items and templates jointly; S is 1 for the clean model.

    Attributes
    ----------
    behaviour, half, n_prompts, n_items, n_templates
        What it rests on.
    refusal
        Why S is refused (the clean model is at chance), or None.
    rank
        2·AUC − 1 within groups that share an answer pair, in [−1, 1]; blind to a constant lean.
    sides
        For each side, mean margin about the clean decision point, over its clean value.
    margins, clean_margins
        For each side, the mean raw margin, in logits, of this run and of the clean one.
    bits, clean_bits
        Information of the context in the answer.
    accuracy
        Share of prompts whose correct answer has the larger logit.
    mass, clean_mass
        Probability of the two answers together.
    spoken
        For each side, how often the pair's first answer is given (where all prompts share one pair).
    share
        p = 1 − S(X = 0), where that was asked for.
    detail
        What it was computed from; None for a score read from a file.
    """

    behaviour: str
    half: str | None
    n_prompts: int
    n_items: int
    n_templates: int
    n_clusters: int
    refusal: str | None
    mean_ratio: Estimate
    rank: Estimate
    clean_rank: Estimate
    sides: dict[str, Estimate]
    margins: dict[str, Estimate]
    clean_margins: dict[str, Estimate]
    bits: Estimate
    clean_bits: Estimate
    accuracy: Estimate
    mass: Estimate
    clean_mass: Estimate
    spoken: dict[str, Estimate]
    answers: tuple[str, str] | None
    share: Estimate | None
    detail: Detail | None = field(repr=False)

    @property
    def s(self) -> Estimate:
        """S by mean margin: +1 the clean model, 0 chance, −1 its mirror image.

        Raises
        ------
        BehaviourError
            If it is refused; the message says why.
        """
        if self.refusal is not None:
            raise BehaviourError(f"behaviour {self.behaviour!r}: S is refused: {self.refusal}")
        return self.mean_ratio

    @property
    def lowest_side(self) -> float:
        """The smaller of the two sides' relative margins."""
        return min(side.value for side in self.sides.values())

    @property
    def known(self) -> Detail:
        """What it was computed from.

        Raises
        ------
        BehaviourError
            If it was read from a file, which does not hold that.
        """
        if self.detail is None:
            raise BehaviourError(f"behaviour {self.behaviour!r}: a score from a file can not be compared with others")
        return self.detail

    def with_share(self, zero: Score) -> Score:
        """The same score with p = 1 − S(X = 0) of another on the same prompts."""
        value = 1 - zero.mean_ratio.value
        return replace(self, share=Estimate.of(value, 1 - zero.known.replicated["s"]))

    def difference(self, other: Score) -> Estimate:
        """The difference of S to another's, on the same prompts and resamples."""
        draws = self.known.replicated["s"] - other.known.replicated["s"]
        return Estimate.of(self.mean_ratio.value - other.mean_ratio.value, draws)

    def __str__(self) -> str:
        where = f", half {self.half}" if self.half else ""
        head = f"{self.behaviour}{where} ({self.n_prompts} prompts, {self.n_items} items, {self.n_templates} templates)"
        s = f"S refused: {self.refusal}" if self.refusal else f"S {self.mean_ratio:+.2f}"
        sides = ", ".join(f"{name} {value:+.2f}" for name, value in self.sides.items())
        return (
            f"{head}: {s}; rank {self.rank:+.2f}; sides {sides}; bits {self.bits:.2f} (clean "
            f"{self.clean_bits.value:.2f}); accuracy {self.accuracy:.2f}; mass {self.mass:.2f}"
        )

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "S": to_plain(self.mean_ratio) if self.refusal is None else None,
            **{key: to_plain(getattr(self, key)) for key in self.__dataclass_fields__ if key != "detail"},
        }

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Score:
        """What `to_json` gave; it cannot be compared with other scores any more."""
        fields = {key: _estimates(plain[key]) for key in cls.__dataclass_fields__ if key != "detail"}
        fields["answers"] = tuple(plain["answers"]) if plain["answers"] is not None else None
        return cls(**fields, detail=None)


def summarise(
    design: Design,
    clean: Answers,
    run: Answers,
    *,
    zero: Answers | None = None,
    replicates: int = 2000,
    seed: int = 0,
) -> Score:
    """Score a run against the clean one.

    Parameters
    ----------
    design
        The prompts' structure.
    clean, run
        Answers of the clean model, and of the run.
    zero
        Answers with X at 0: then the score has its share p.
    replicates, seed
        Of the bootstrap.
    """
    ones = np.ones((1, len(design)))
    point = {key: float(value[0]) for key, value in statistics(ones, design, clean, run).items()}
    draws = statistics(design.weights(replicates, seed), design, clean, run)
    estimates = {key: Estimate.of(point[key], draws[key]) for key in point}
    a, b = design.sides
    one_pair = len(design.pairs) == 1

    def by_side(key: str) -> dict[str, Estimate]:
        return {a: estimates[f"{key}0"], b: estimates[f"{key}1"]}

    score = Score(
        behaviour=design.name,
        half=design.half,
        n_prompts=len(design),
        n_items=len(set(design.items)),
        n_templates=len(set(design.templates)),
        n_clusters=design.n_clusters,
        refusal=_refusal(estimates["clean_margin"], estimates["clean_rank"]),
        mean_ratio=estimates["s"],
        rank=estimates["rank"],
        clean_rank=estimates["clean_rank"],
        sides=by_side("side"),
        margins=by_side("raw"),
        clean_margins=by_side("clean_raw"),
        bits=estimates["bits"],
        clean_bits=estimates["clean_bits"],
        accuracy=estimates["accuracy"],
        mass=estimates["mass"],
        clean_mass=estimates["clean_mass"],
        spoken=by_side("first") if one_pair else {},
        answers=design.pairs[0] if one_pair else None,
        share=None,
        detail=Detail(
            design, clean, run, {key: draws[key] for key in ("s", "bits", "clean_bits", "mass", "clean_mass")}
        ),
    )
    if zero is None:
        return score
    return score.with_share(summarise(design, clean, zero, replicates=replicates, seed=seed))


def _refusal(margin: Estimate, rank: Estimate) -> str | None:
    if not margin.lower > 0:
        return f"the clean model is at chance: mean margin {margin:.2f} logits is not above 0"
    if not rank.lower > 0:
        return f"the clean model is at chance: 2 AUC - 1 = {rank:.2f} is not above 0"
    # A ratio whose denominator may be near 0 explodes: its interval must stay away from 0.
    if margin.lower < margin.value / 4:
        return f"the clean mean margin {margin:.2f} logits is too uncertain to divide by"
    return None


def _estimates(plain: Any) -> Any:
    """Plain data with its estimates made whole again."""
    if isinstance(plain, dict):
        if set(plain) == set(Estimate.__dataclass_fields__):
            return Estimate.from_json(plain)
        return {key: _estimates(value) for key, value in plain.items()}
    return plain


__all__ = [
    "Answers",
    "Design",
    "Detail",
    "Score",
    "answer_tokens",
    "answers",
    "from_reads",
    "leans",
    "side_means",
    "summarise",
]
