"""SmolLM2-135M-Instruct: flips whose right verdict is known, because other code measured what they do.

That code is plain torch; its numbers (S, KL, shares, on prompts of its own) stand beside the assertions as "measured".
Extremes of features are those of surveys: of 99,450 tokens for the linear part of layer 24, of the 60,123 tokens of
`make demo` (seed 0) for the others.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import signflip as sf
from signflip.behaviours.plain import plain_texts
from signflip.dosing import Feature
from signflip.reflection import reflect
from signflip.resample import Estimate
from signflip.sweep import log_softmax
from signflip.verdict import MARGIN, judge
from smollm2 import gguf_path

pytestmark = [pytest.mark.smollm2, pytest.mark.slow]

# Shared, so that each clean run happens once.
PRONOUN, SAY = sf.behaviours.pronoun(), sf.behaviours.say()
REPLICATES = 500

UP = Feature("blocks.24.mlp.hook_pre_linear", 115, side=-1, min=-8.54, max=0.71, n_tokens=99_450)
DECOY = Feature("blocks.2.mlp.hook_pre", 382, side=-1, min=-2.424, max=-0.087, n_tokens=60_123)
# The 17 features of one sign: site (layer, point), neuron, and the extreme on the side that they keep.
ONE_SIDED = (
    (2, "pre", 144, -3.085), (2, "pre", 382, -2.424), (4, "pre", 288, -2.435), (6, "pre_linear", 1274, 3.016),
    (8, "pre", 412, 3.203), (10, "pre", 1457, -2.250), (18, "pre", 1057, -4.363), (27, "pre", 321, 7.988),
    (27, "pre", 1195, 7.935), (28, "pre", 45, 6.626), (28, "pre", 625, 11.294), (28, "pre", 745, 5.882),
    (28, "pre", 1078, 7.829), (28, "pre", 1095, 14.062), (28, "pre", 1330, 9.156), (28, "pre_linear", 1095, 14.551),
    (29, "pre_linear", 471, 12.965),
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> sf.Model:
    return sf.load(gguf_path())


def mirrored() -> list[sf.Edit]:
    """All of them at once, at every position but the leading special token."""
    return [
        sf.Edit(f"blocks.{layer}.mlp.hook_{point}", "set", -extreme, index=neuron, positions=slice(1, None))
        for layer, point, neuron, extreme in ONE_SIDED
    ]


def text_kl(model: sf.Model, edits: list[sf.Edit]) -> float:
    """KL(clean ‖ edited) of the next token on plain text, in nats."""
    texts = ["<|endoftext|>" + text for text in plain_texts()]
    clean, moved = ([log_softmax(rows)[1:] for rows in model.run(texts, edits=e)] for e in ((), edits))
    return float(np.mean(np.concatenate([(np.exp(a) * (a - b)).sum(1) for a, b in zip(clean, moved, strict=True)])))


def fewer(behaviour: sf.Behaviour, n: int) -> sf.Behaviour:
    """The same behaviour with n prompts to select on, and all that there are to confirm on."""
    prompts = behaviour.select("A")
    kept = [prompts[i] for i in behaviour.subset(n, "A")]
    return sf.Behaviour(behaviour.name, [*kept, *behaviour.select("B")], kind=behaviour.kind, paired=behaviour.paired)


def covers(interval: Estimate, value: float) -> bool:
    return interval.low <= value <= interval.high


def overlaps(interval: Estimate, low: float, high: float) -> bool:
    return interval.low <= high and low <= interval.high


def test_reflection_is_opposite(model: sf.Model) -> None:
    """The positive control: both contexts turn, the answers keep their mass and their dependence on the context."""
    found = reflect(model, PRONOUN, replicates=REPLICATES)
    assert not isinstance(found, str)
    assert found.verdict.label == "opposite", str(found)
    assert found.verdict.failed == ()
    assert found.verdict.p < 0.01
    # Measured: best at layers 26 to 28, accuracy .06, and about chance with the direction projected out.
    assert found.site in {f"blocks.{layer}.hook_resid_post" for layer in (26, 27, 28)}
    assert covers(found.score.accuracy, 0.06)
    assert judge(found.projected).label == "incompetent", str(found.projected)


def test_up_projection_is_half_turned(model: sf.Model) -> None:
    """Far beyond what was seen it makes *he* of *she*, not *she* of *he*: never opposite, and never decisive."""
    scan = sf.scan(
        model, [UP], PRONOUN, ["mean", "zero", 2.76, "mirror"], tiers=("T0",), screen=0, replicates=REPLICATES
    )
    curve = {row.dose.name: row for row in scan.curve(UP, "pronoun")}
    s = [curve[dose].score.s.value for dose in ("mean", "zero", "2.76", "mirror")]
    assert s == sorted(s, reverse=True)
    (found,) = scan.reversed()
    assert (found.dose.name, found.dose.value) == ("mirror", 8.54)
    assert found.verdict.label == "half-turned"
    assert found.dose.extrapolated
    assert not found.decisive
    assert not found.verdict.decisive
    assert not found.switch
    rows = [*scan.rows, *scan.confirmed]
    assert all(row.verdict.label != "opposite" for row in rows)
    assert not any(row.verdict.decisive for row in rows if row.dose.crosses)
    # Measured on other fresh names and templates: S -1.16 [-1.53, -0.71], rank -.65, a share of .42. Of women it says
    # *he*, much more surely than it said *she*, of men less surely than it did: he - she goes from -2.62 to +6.96 and
    # from +2.48 to +0.65, which about the clean midpoint of the two is -2.76 and +.28 of what it was.
    assert overlaps(found.score.s, -1.53, -0.71)
    assert covers(found.score.rank, -0.65)
    assert found.score.share is not None
    assert covers(found.score.share, 0.42)
    assert covers(found.score.sides["female"], -2.76)
    assert covers(found.score.sides["male"], 0.28)
    failed = {condition.name for condition in found.failed}
    assert {"side 'male' is turned", "the answer still depends on the context"} <= failed
    # Measured: KL .0100 on text, and .0022 at +2.76; this is nearer to the first.
    assert found.divergence is not None
    assert found.divergence.text > np.sqrt(0.0022 * 0.0100)


def test_all_one_sided_features_mirrored_are_incompetent(model: sf.Model) -> None:
    """S about 0 within the margin, answers that no longer depend on the context, and much damage: no mirror image."""
    edits = mirrored()
    score = SAY.measure(model, edits, half="B", replicates=REPLICATES)
    verdict = judge(score)
    assert verdict.label == "incompetent", str(score)
    assert score.bits.value < score.clean_bits.value / 8
    # Measured: KL .82 with all at 0, 3.3 mirrored, 8.6 at three times that. This is nearest to the second.
    assert np.sqrt(0.82 * 3.3) < text_kl(model, edits) < np.sqrt(3.3 * 8.6)
    # Elsewhere something is left: measured, .17 over nine behaviours, the lowest -.03. None turns.
    other = PRONOUN.measure(model, edits, half="B", replicates=REPLICATES)
    assert judge(other).label == "weakened", str(other)
    assert min(score.s.lower, other.s.lower) > -MARGIN


def test_turned_agreement_is_heuristic_prone(model: sf.Model) -> None:
    """The verb agrees with the nearer noun; where there is but one, mostly with that: not with the wrong number."""
    attractor, agreement = (fewer(one, 16) for one in (sf.behaviours.attractor(), sf.behaviours.agreement()))
    scan = sf.scan(
        model, [DECOY], [attractor, agreement], ["triple mirror"], tiers=("T0",), screen=0, replicates=REPLICATES
    )
    (found,) = scan.reversed()
    assert found.behaviour == "attractor"
    assert found.verdict.label == "heuristic-prone"
    assert not found.decisive
    assert found.score.s.upper < 0
    # Measured on other sentences: S -.93. How far it turns is a matter of the template (in half A from -.4 to +.3), so
    # only its sign is held. On simple sentences, at three times the extreme there too: +.46, and accuracy .81.
    edit = sf.Edit(DECOY.site, "set", found.dose.value, index=DECOY.index, positions=slice(1, None))
    simple = agreement.measure(model, [edit], half="B", replicates=REPLICATES)
    assert covers(simple.s, 0.46)
    assert covers(simple.accuracy, 0.81)
    said = f"agreement, where the heuristic is right, scores {simple.s.value:+.2f}"
    assert any(said in note for note in found.verdict.notes)
    assert judge(simple).label == "weakened"


def test_always_positive_gate_is_inert(model: sf.Model) -> None:
    """Below 0 a gate is off, as at 0: it cannot be mirrored, and this one's neuron bears on nothing here."""
    gate = ("blocks.27.mlp.hook_pre", 321)
    scan = sf.scan(model, [gate], PRONOUN, ["zero", "mirror"], tiers=("T0",), screen=0, replicates=REPLICATES)
    (profile,) = scan.profiles
    assert not profile.mirrorable
    assert "cannot be mirrored" in profile.note
    assert scan.reversed() == []
    confirmed = {row.dose.name: row for row in scan.confirmed}
    zero, mirror = confirmed["zero"], confirmed["mirror"]
    assert mirror.dose.value < -5
    for row in (zero, mirror):
        assert row.verdict.label == "inert", str(row.score)
        assert row.divergence is not None
        # Measured for these gates: .001 to .008 on text, the same at 0 and mirrored; S too, within 2%.
        assert 0.0005 < row.divergence.text < 0.0085
    assert mirror.score.s.value == pytest.approx(zero.score.s.value, rel=0.02)


def test_crossing_gate_is_a_bystander(model: sf.Model) -> None:
    """Some words take the gate across in every chat, and change the answers; X has no part in that."""
    prompts = SAY.select("B")
    # A quarter of half B, and in one piece: without halves the flip test does not run the reflection once more.
    chosen = [replace(prompts[i], half="") for i in SAY.subset(80, "B")]
    some = sf.Behaviour("say", chosen, chat=True)
    test = sf.flip(
        model, ("blocks.2.mlp.hook_pre", 144), "Do not obey: 42 Celsius.\n", some,
        doses=["zero"], half=None, units=0, strings=0, replicates=REPLICATES,
    )  # fmt: skip
    # Measured: flipped on one token of the trigger only; where the answer is made it is normal again, at -1.3.
    assert test.profile.feature.side == -1
    assert test.profile.feature.max < 0
    assert test.reached.survived == 1
    assert test.reached.on_trigger == 1
    assert not test.reached.flipped.any()
    assert test.reached.values == pytest.approx(test.reached.clean, abs=test.profile.sd)
    tokens, clamped, alone = (test.row(group).score.s for group in ("tokens", "clamped", "set to triggered"))
    assert tokens.upper < 1 - MARGIN
    assert test.role == "bystander", str(test.mediation)
    # Measured: clamping X changes S by .01 at most.
    assert clamped.value == pytest.approx(tokens.value, abs=0.01)
    assert alone.value == pytest.approx(1, abs=0.01)
    assert test.verdict.tier == "T3"
    assert test.verdict.label == "weakened"
