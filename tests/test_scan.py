"""Models set by hand: what their flipped feature does is found from the survey, reached by tokens, told apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import handset
import signflip as sf
from signflip.dosing import Feature, Moves, Tiers, profiles
from signflip.errors import ArgumentError, FileError, SiteError, TokenError
from signflip.sweep import RowEdit, Sweep
from torch_model import TorchModel

V = handset.V
PLACE = (handset.SITE, handset.FEATURE)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, sf.Model]:
    root = tmp_path_factory.mktemp("handset")
    return {kind: sf.load(handset.make(kind, root / kind)) for kind in handset.KINDS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return handset.make("opposite", tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def scans(models: dict[str, sf.Model]) -> dict[str, tuple[list[Any], sf.Scan]]:
    """What the survey lists, and the scan of it."""
    out = {}
    for kind, model in models.items():
        listed = sf.survey(model, handset.corpus()).one_sided()
        out[kind] = (listed, sf.scan(model, listed, [handset.behaviour()], screen=8, keep=50, replicates=300))
    return out


LABELS = {
    "opposite": "opposite",
    "half": "half-turned",
    "inert": None,
    "zero": None,
    "constant": "half-turned",
    "unreachable": "opposite",
}


@pytest.mark.parametrize("kind", LABELS)
def test_the_survey_lists_the_feature(scans: dict[str, tuple[list[Any], sf.Scan]], kind: str) -> None:
    assert PLACE in [(one.site, one.index) for one in scans[kind][0]]


def test_a_two_sided_feature_is_not_listed(scans: dict[str, tuple[list[Any], sf.Scan]]) -> None:
    assert PLACE not in [(one.site, one.index) for one in scans["two-sided"][0]]


@pytest.mark.parametrize("kind", LABELS)
def test_the_scan_tells_them_apart(scans: dict[str, tuple[list[Any], sf.Scan]], kind: str) -> None:
    found = [one for one in scans[kind][1].reversed() if (one.feature.site, one.feature.index) == PLACE]
    assert {one.verdict.label for one in found} == ({LABELS[kind]} if LABELS[kind] else set())
    for one in found:
        # Never seen on the other side, so no such dose decides.
        assert not one.decisive
        assert one.positions == (-1,)
        assert one.verdict.constant == (kind == "constant")


def _s(plain: TorchModel, site: str, index: int, value: float | None) -> float:
    """S on half A with a column set everywhere, in plain torch."""
    import torch

    def moved(at: str, x: torch.Tensor) -> torch.Tensor:
        if at == site and value is not None:
            x = x.clone()
            x[:, index] = value
        return x

    margins: dict[str, list[float]] = {}
    for one in handset.behaviour().select("A"):
        logits = (plain.forward(list(one.text), moved) @ plain.unembed.T)[-1]
        margins.setdefault(one.side, []).append(float(logits[one.correct] - logits[one.opposite]))
    return sum(float(np.mean(side)) for side in margins.values())


@pytest.mark.parametrize("kind", ["opposite", "switch"])
def test_more_than_arithmetic(tmp_path: Path, models: dict[str, sf.Model], kind: str) -> None:
    """The linear prediction and the two-sided twins, in plain torch; only the switch exceeds both."""
    import torch

    plain = TorchModel.from_folder(handset.make(kind, tmp_path), dtype=torch.float64)
    found = sf.scan(models[kind], [PLACE], [handset.behaviour()], doses=["mirror"], tiers=("T0",), replicates=300)
    (reversal,) = found.reversed()
    clean = _s(plain, *PLACE, None)
    share = 1 - _s(plain, *PLACE, 0.0) / clean
    k = -reversal.dose.value / reversal.profile.mean
    # What it is on half A, where twins are looked for; the prediction is half B's.
    assert reversal.prediction == pytest.approx(1 - share * (1 + k), abs=0.05)
    assert reversal.switch == (kind == "switch")
    twins = reversal.twins
    assert twins is not None
    if kind == "opposite":
        assert twins.neurons == ()
        return
    assert handset.TWIN in twins.neurons
    at = twins.neurons.index(handset.TWIN)
    assert twins.shares[at] == pytest.approx(1 - _s(plain, handset.SITE, handset.TWIN, 0.0) / clean, abs=1e-4)
    linear: list[float] = []

    def seen(site: str, x: torch.Tensor) -> torch.Tensor:
        # Its gate is open everywhere.
        if site == handset.SITE:
            linear.extend(x[:, handset.TWIN].tolist())
        return x

    for one in handset.behaviour().select("A"):
        plain.forward(list(one.text), seen)
    expected = _s(plain, handset.SITE, handset.TWIN, -k * float(np.mean(linear))) / clean
    assert twins.s[at] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("kind", "label"), [("inert", "inert"), ("zero", "incompetent")])
def test_what_turns_nothing_is_told_apart_by_its_rows(
    scans: dict[str, tuple[list[Any], sf.Scan]], models: dict[str, sf.Model], kind: str, label: str
) -> None:
    chosen = [one for one in scans[kind][0] if (one.site, one.index) == PLACE]
    full = sf.scan(models[kind], chosen, [handset.behaviour()], screen=0, tiers=("T0",), confirm=0, replicates=300)
    rows = [row for row in full.rows if row.dose.crosses]
    assert rows
    assert {row.verdict.label for row in rows} == {label}


def test_a_rarely_crossing_feature_has_a_dose_that_decides(models: dict[str, sf.Model]) -> None:
    model = models["opposite"]
    listed = sf.survey(model, handset.corpus(rare=0.02)).one_sided(max_rate=0.01)
    chosen = [one for one in listed if (one.site, one.index) == PLACE]
    found = sf.scan(model, chosen, [handset.behaviour()], replicates=300).reversed()
    assert found[0].decisive
    assert found[0].verdict.label == "opposite"
    assert "seen" in {one.dose.name for one in found if one.decisive}
    assert found[0].p_holm is not None
    assert found[0].p_holm < 0.01


@pytest.mark.parametrize(
    ("kind", "label", "role"),
    [
        ("opposite", "opposite", "carrier"),
        ("half", "half-turned", "carrier"),
        # One more token dilutes the context, which is not X's doing.
        ("inert", "weakened", "bystander"),
        ("zero", "incompetent", "carrier"),
        ("two-sided", "opposite", "carrier"),
    ],
)
def test_tokens_flip_it(models: dict[str, sf.Model], kind: str, label: str, role: str) -> None:
    model, behaviour = models[kind], handset.behaviour()
    feature = Feature(*PLACE, side=1)
    contexts = [([], list(one.ids)) for one in behaviour.prompts_for(model, "A")[:6]]
    objective = -sf.objectives.neuron(*PLACE, position=-1)
    result = sf.search(model, objective, tokens=1, contexts=contexts, steps=8, width=64)
    assert result.best.tokens[0] in V.triggers
    assert result.best.value > 0
    test = sf.flip(model, feature, result, behaviour, replicates=300, units=2, strings=4)
    assert test.reached.flipped.all()
    assert test.reached.survived == 1.0
    assert test.role == role
    assert test.verdict.label == label, str(test)
    assert test.row("clean").score.s.value == 1.0
    if role == "carrier":
        assert test.verdict.tier == "T4"
        clamped, alone = test.row("clamped").score, test.row("set to triggered").score
        assert clamped.s.value > 0.6
        assert abs(alone.s.value - test.row("tokens").score.s.value) < 0.3


def test_tokens_push_a_constant_answer(models: dict[str, sf.Model]) -> None:
    test = sf.flip(models["constant"], Feature(*PLACE, side=1), [V.triggers[0]], handset.behaviour(), replicates=300)
    assert test.verdict.label == "half-turned"
    assert test.verdict.constant
    # The context is still read: its two margins lie apart as they did, on one side of zero.
    assert test.row("tokens").score.s.value > 0.3


def test_unreachable_by_any_token(models: dict[str, sf.Model]) -> None:
    """Every one-token trigger, in every prompt: X stays positive."""
    model = models["unreachable"]
    prompts = handset.behaviour().prompts_for(model, "A")[:4]
    sequences = [[token, *one.ids] for token in range(V.size) for one in prompts]
    ((x,),) = model.read(sequences, [sf.model.Values(handset.SITE, -1, [handset.FEATURE])])
    assert np.concatenate(x).min() > 0
    result = sf.search(
        model,
        -sf.objectives.neuron(*PLACE, position=-1),
        tokens=1,
        contexts=[([], list(prompts[0].ids))],
        steps=4,
        width=64,
    )
    assert result.best.value < 0


def test_bystander(models: dict[str, sf.Model]) -> None:
    """Tokens reverse the answer while another neuron crosses in every prompt: clamping that one rescues nothing."""
    bystander = (handset.SITE, handset.TWIN)
    listed = sf.survey(models["bystander"], handset.corpus()).one_sided()
    (x,) = [one for one in listed if (one.site, one.index) == bystander]
    test = sf.flip(models["bystander"], x, [V.triggers[0]], handset.behaviour(), replicates=300, units=2, strings=4)
    assert test.reached.flipped.all()
    assert test.row("tokens").score.s.upper < -0.2
    assert test.role == "bystander"
    assert test.verdict.tier == "T3"
    assert "a bystander" in str(test.verdict)
    assert "all prompts are here" not in str(test.verdict)


def test_what_a_verdict_can_be_the_most_goes_first(models: dict[str, sf.Model]) -> None:
    """Of what half A turned: a seen dose on a symmetric behaviour, though others are turned further."""
    model = models["opposite"]
    listed = sf.survey(model, handset.corpus(rare=0.02)).one_sided(max_rate=0.01)
    chosen = [one for one in listed if (one.site, one.index) == PLACE]
    prone = sf.Behaviour("prone", handset.behaviour().prompts, kind="heuristic-prone")
    found = sf.scan(model, chosen, [prone, handset.behaviour()], confirm=1, screen=0, replicates=300)
    (tested,) = [row for row in found.confirmed if row.p_holm is not None]
    assert (tested.behaviour, tested.dose.extrapolated) == ("context", False)
    turned = [row.score.mean_ratio.value for row in found.rows if row.dose.extrapolated]
    assert min(turned) < tested.score.mean_ratio.value


@pytest.mark.parametrize("place", [("blocks.0.mlp.hook_pre", 5), ("blocks.0.hook_resid_mid", 0)])
def test_what_tokens_do_is_not_laid_to_a_feature_that_they_do_not_take_across(
    models: dict[str, sf.Model], place: tuple[str, int]
) -> None:
    """The trigger reverses the behaviour, and this scalar stays positive in every prompt."""
    test = sf.flip(models["opposite"], place, [V.triggers[0]], handset.behaviour(), replicates=300, units=2, strings=4)
    assert test.row("tokens").score.s.value < -0.5
    assert not test.reached.flipped.any()
    assert test.verdict.label == "inconclusive"
    assert "the tokens take X across" in {one.name for one in test.verdict.failed}


def test_half_a_confirms_nothing_that_it_may_have_selected(models: dict[str, sf.Model]) -> None:
    test = sf.flip(
        models["opposite"], PLACE, [V.triggers[0]], handset.behaviour(), half="A", replicates=50, units=0, strings=0
    )
    assert "may have selected the feature" in str(test.verdict)


def test_a_trigger_at_a_prompts_end(models: dict[str, sf.Model]) -> None:
    """Nothing follows it: X can be held on the trigger alone."""
    prompts = [replace(p, slot=len(p.text)) for p in handset.behaviour().prompts]
    behaviour = sf.Behaviour("context", prompts)
    test = sf.flip(models["opposite"], PLACE, [V.triggers[0]], behaviour, replicates=50, units=2, strings=4)
    assert test.row("set to triggered").score.s.value == pytest.approx(test.row("clean").score.s.value)
    assert test.verdict.label != "opposite"


def test_another_unit_is_moved_as_far_as_the_trigger_moves_xs(models: dict[str, sf.Model]) -> None:
    """Against reading the output vectors' norms and the neuron's own values back."""
    from signflip.behaviours.prompts import insert
    from signflip.matched import Layer
    from signflip.sweep import Sweep

    model = models["opposite"]
    prompts = handset.behaviour().prompts_for(model, "A")[:3]
    layer = Layer(model, Sweep(model, [one.ids for one in prompts], [one.n_leading for one in prompts]), 0)
    put = [insert(model, one, [V.triggers[1]]) for one in prompts]
    moved = [np.linspace(-1, 1, one.n_after).astype(np.float32) for one in put]
    post, neuron = layer.sites["post"], 3
    edit = layer.carry(Feature(*PLACE, side=1), moved, put, neuron)
    ids = [list(one.ids) for one in put]
    ((before,), (after,)) = model.read(ids, [sf.model.Values(post, None, [neuron])], [[], [edit]])
    out = np.asarray(model._core.weight_matrix("out", 0))
    ratio = np.linalg.norm(out[PLACE[1]]) / max(np.linalg.norm(out[neuron]), 1e-30)
    for a, b, one, wanted in zip(before, after, put, moved, strict=True):
        shift = (b - a)[:, 0]
        assert (shift[: len(shift) - one.n_after] == 0).all()
        np.testing.assert_allclose(shift[len(shift) - one.n_after :], wanted * ratio, rtol=1e-4, atol=1e-5)


def test_a_behaviour_that_does_not_fit_is_left_out_beside_others(models: dict[str, sf.Model]) -> None:
    """Its answers are no tokens of the model."""
    prompts = [
        replace(p, correct=p.correct + V.size, opposite=p.opposite + V.size) for p in handset.behaviour().prompts
    ]
    misfit = sf.Behaviour("misfit", prompts)
    with pytest.raises(TokenError):
        sf.scan(models["opposite"], [PLACE], [misfit], replicates=50)
    found = sf.scan(models["opposite"], [PLACE], [misfit, handset.behaviour()], replicates=50)
    assert found.behaviours == ("context",)
    assert "misfit" in found.summary()


def test_reflection_is_opposite(models: dict[str, sf.Model]) -> None:
    from signflip.reflection import reflect

    found = reflect(models["opposite"], handset.behaviour(), replicates=300)
    assert not isinstance(found, str)
    assert found.score.s.value == pytest.approx(-1, abs=0.1)
    assert found.verdict.label == "opposite", found.verdict.failed
    assert abs(found.projected.s.value) < 0.1


def test_tiers_bring_x_to_its_dose(folder: Path, models: dict[str, sf.Model]) -> None:
    """T1, written as edits of every neuron, is the move of the normalised input that it stands for (plain torch)."""
    import torch

    model, plain = models["opposite"], TorchModel.from_folder(folder, dtype=torch.float64)
    ids = [[3, 60], [40, 70, 61]]
    sweep = Sweep(model, ids, [0, 0])
    feature = Feature(*PLACE)
    (profile,) = profiles(model, [feature], [sweep])
    target = -profile.mean
    w = plain.weights["model.layers.0.mlp.up_proj.weight"][handset.FEATURE]
    for metric in ("norm", "covariance"):
        moves = Moves(model, [sweep])
        edits = Tiers(moves, sweep).edits(feature, target, "T1", metric)  # type: ignore[arg-type]
        logits, _ = sweep.ends([list(range(V.size))] * 2, [edits])
        if metric == "norm":
            u = w / (w @ w)
        else:
            h = torch.as_tensor(np.asarray(moves._input(0), np.float64))
            centred = h - h.mean(0)
            sigma = centred.T @ centred / (len(h) - 1)
            u = sigma @ w / (w @ sigma @ w)
        for s, sequence in enumerate(ids):
            expected = _moved(plain, sequence, u, w, target)
            assert logits[0, s] == pytest.approx(expected.numpy(), abs=2e-4)


def _moved(plain: TorchModel, ids: list[int], u: Any, w: Any, target: float) -> Any:
    """Layer 0's normalised input moved so that X is at the target, by running the rest on a patched norm."""
    import torch

    norm = plain._norm
    calls = {"n": 0}

    def patched(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        h = norm(x, gain)
        calls["n"] += 1
        # The second norm of a pass is the one in front of layer 0's MLP.
        return h + ((target - h @ w)[:, None] * u if calls["n"] == 2 else 0)

    plain._norm = patched  # type: ignore[method-assign]
    try:
        hidden = plain.forward(ids, lambda site, x: x)
    finally:
        plain._norm = norm  # type: ignore[method-assign]
    return (hidden @ plain.unembed.T)[-1]


def test_positions_one_at_a_time(models: dict[str, sf.Model]) -> None:
    """A sweep that shares nothing edits one position of each sequence, and equals the general read."""
    model = models["opposite"]
    ids = [[3, 60], [3, 61, 62], [40, 60]]
    sweep = Sweep(model, ids, [0, 0, 0], share=False)
    edit = RowEdit(handset.SITE, "set", (handset.FEATURE,), -2.0, lambda c: sweep.chunks[c].from_end == -2)
    logits, _ = sweep.ends([[V.yes, V.no]] * 3, [[edit], []])
    from signflip.model import Logits

    wanted = model.read(
        ids, [Logits(-1, [V.yes, V.no])], [[sf.Edit(handset.SITE, "set", -2.0, handset.FEATURE, -2)], []]
    )
    for v in (0, 1):
        assert np.array_equal(logits[v], np.concatenate(wanted[v][0]).reshape(3, 2))


def test_a_scan_survives_its_file(scans: dict[str, tuple[list[Any], sf.Scan]], tmp_path: Path) -> None:
    made = scans["half"][1]
    made.save(tmp_path / "scan.json")
    again = sf.Scan.open(tmp_path / "scan.json").reversed()
    assert [str(one) for one in again] == [str(one) for one in made.reversed()]
    assert again[0].flip() == made.reversed()[0].flip()
    assert again[0].contexts == made.reversed()[0].contexts
    assert again[0].contexts
    assert again[0].contexts[0] == ([], list(handset.behaviour().select("A")[0].text))
    assert sf.Scan.open(tmp_path / "scan.json").table() == made.table()
    assert "half-turned" in made.table()
    assert made.most_turned() is not None
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(FileError, match="expected a scan"):
        sf.Scan.open(tmp_path / "other.json")
    with pytest.raises(FileError, match="write"):
        made.save(tmp_path / "no" / "scan.json")


def test_bad_arguments_are_named(models: dict[str, sf.Model]) -> None:
    model, behaviour = models["opposite"], handset.behaviour()
    with pytest.raises(ArgumentError, match="features"):
        sf.scan(model, [], [behaviour])
    with pytest.raises(ArgumentError, match="behaviours"):
        sf.scan(model, [PLACE], [])
    with pytest.raises(SiteError, match="hook_pre"):
        sf.scan(model, [("blocks.0.mlp.hook_prelinear", 0)], [behaviour])
    with pytest.raises(SiteError, match="index"):
        sf.scan(model, [(handset.SITE, 10**6)], [behaviour])
    with pytest.raises(ArgumentError, match="mirror"):
        sf.scan(model, [PLACE], [behaviour], doses=["no such dose"])
    with pytest.raises(ArgumentError, match="trigger"):
        sf.flip(model, PLACE, [], behaviour)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"tiers": ("T9",)}, "tiers: expected some of 'T0' and 'T1', found .*T9"),
        ({"tiers": []}, "tiers"),
        ({"tiers": 5}, "tiers"),
        ({"keep": -1}, "keep"),
        ({"screen": 1.5}, "screen"),
        ({"replicates": 0}, "replicates"),
        ({"seed": -1}, "seed"),
        ({"confirm": None}, "confirm"),
        ({"look_below": float("nan")}, "look_below"),
        ({"look_below": "x"}, "look_below"),
        ({"look_below": 10**400}, "look_below"),
        ({"doses": [1e39]}, "doses.*1e[+]39"),
        ({"doses": 5}, "doses"),
        ({"doses": [None]}, "doses"),
        ({"doses": "seen"}, "doses"),
        ({"doses": [True]}, "doses"),
        ({"behaviours": "context"}, "behaviours"),
        ({"behaviours": [5]}, "behaviours"),
        ({"behaviours": [handset.behaviour(), handset.behaviour()]}, "'context' twice"),
        ({"features": 5}, "features"),
        ({"features": [(handset.SITE, 1), (handset.SITE, 1)]}, "features: .*twice"),
        ({"features": [(handset.SITE, "x")]}, "index.*'x'"),
        ({"features": [(handset.SITE, 1.7)]}, "index.*1.7"),
    ],
)
def test_misspelt_arguments_of_a_scan_are_refused(models: dict[str, sf.Model], changed: Any, said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        sf.scan(models["opposite"], **{"features": [PLACE], "behaviours": [handset.behaviour()], **changed})


def test_one_tier_and_one_feature_are_taken_as_they_are(models: dict[str, sf.Model]) -> None:
    found = sf.scan(models["opposite"], Feature(*PLACE), [handset.behaviour()], tiers="T1", replicates=50)  # type: ignore[arg-type]
    assert found.rows
    assert {row.tier for row in found.rows} == {"T1"}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"doses": [1e39]}, "doses"),
        ({"doses": 5}, "doses"),
        ({"search_result": None}, "search_result"),
        ({"search_result": 5}, "search_result"),
        ({"search_result": ["x"]}, "search_result"),
        ({"behaviour": 5}, "behaviour"),
        ({"positions": 5}, "positions"),
        ({"positions": []}, "positions"),
        ({"positions": [5]}, "positions.*found 5"),
        ({"positions": [-99]}, "positions.*found -99"),
        ({"positions": [-3]}, "positions.*found -3"),
        ({"units": -1}, "units"),
        ({"strings": -1}, "strings"),
        ({"replicates": 0}, "replicates"),
        ({"seed": -1}, "seed"),
        ({"feature": (handset.SITE, 1.7)}, "index.*1.7"),
    ],
)
def test_misspelt_arguments_of_a_flip_are_refused(models: dict[str, sf.Model], changed: Any, said: str) -> None:
    given = {"feature": PLACE, "search_result": [V.triggers[0]], "behaviour": handset.behaviour(), "replicates": 50}
    with pytest.raises(ArgumentError, match=said):
        sf.flip(models["opposite"], **{**given, **changed})


@pytest.mark.parametrize("site", ["blocks.0.attn.hook_z", "blocks.0.attn.hook_v"])
def test_a_column_of_a_site_with_heads_is_flipped(models: dict[str, sf.Model], site: str) -> None:
    """The mean context is dimension 0 of head 0, the mean of x dimension 1; a column of head 1 does nothing."""
    model, behaviour = models["opposite"], handset.behaviour()
    given: dict[str, Any] = {"replicates": 50, "units": 0, "strings": 0}
    x = sf.flip(model, (site, 1), [V.triggers[0]], behaviour, **given)
    y = sf.flip(model, (site, 13), [V.triggers[0]], behaviour, **given)
    if site.endswith("hook_z"):
        assert x.row("clamped").score.s.value > 0.6
    assert y.row("clamped").score.s.value == pytest.approx(y.row("tokens").score.s.value, abs=1e-4)
    assert sf.scan(model, [(site, 1), (site, 13)], [behaviour], replicates=50, screen=0).rows


def test_attention_patterns_are_no_features(models: dict[str, sf.Model]) -> None:
    model, behaviour = models["opposite"], handset.behaviour()
    with pytest.raises(SiteError, match="hook_pattern"):
        sf.scan(model, [("blocks.0.attn.hook_pattern", 1)], [behaviour])
    with pytest.raises(SiteError, match="hook_pattern"):
        sf.flip(model, ("blocks.0.attn.hook_pattern", 1), [V.triggers[0]], behaviour)


def test_too_few_items_are_inconclusive(models: dict[str, sf.Model]) -> None:
    prompts = [p for p in handset.behaviour().prompts if p.template == "template 4" and p.item.endswith(" 8")]
    assert len(prompts) == 2
    two = sf.Behaviour("two", [replace(p, half="") for p in prompts])
    test = sf.flip(models["opposite"], PLACE, [V.triggers[0]], two, replicates=50, units=2, strings=4)
    assert test.verdict.label == "inconclusive"
    assert "2 items are too few" in str(test.verdict)
    assert "all prompts are here" in str(test.verdict)
    assert test.edited is None or test.edited.label == "inconclusive"
    assert not sf.scan(models["opposite"], [PLACE], [two], replicates=50).reversed()


def test_prompts_that_selected_do_not_confirm(models: dict[str, sf.Model]) -> None:
    model = models["opposite"]
    listed = sf.survey(model, handset.corpus(rare=0.02)).one_sided(max_rate=0.01)
    chosen = [one for one in listed if (one.site, one.index) == PLACE]
    unsplit = sf.Behaviour("unsplit", [replace(p, half="") for p in handset.behaviour().prompts if p.half == "B"])
    scan = sf.scan(model, chosen, [unsplit], replicates=300)
    (seen,) = [one for one in scan.reversed() if one.dose.name == "seen" and one.tier == "T0"]
    assert not seen.decisive
    assert "(not decisive); " in str(seen)
    assert "the same prompts selected and confirmed" in str(seen)
    assert "unsplit: no halves" in scan.summary()
