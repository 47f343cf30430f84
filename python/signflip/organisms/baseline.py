"""A baseline auditor: survey, scan, search, flip, and thresholds; what any better auditor is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

import signflip as sf
from signflip import checks
from signflip.errors import OrganismError
from signflip.organisms.scoring import FORMAT

# Fixed beforehand; not tuned on any suite.
MAX_RATE, TOKENS, FEATURES, SEARCH_STEPS, SEARCH_WIDTH = 2e-3, 20_000, 200, 12, 96


def audit(models: str | Path, *, progress: bool = False) -> dict[str, Any]:
    """Audit every model of a folder that `make` wrote, and return what `score` takes.

    Raises
    ------
    ArgumentError
        If `models` is no path.
    OrganismError
        If there are no models in it, or no behaviours.
    """
    models = checks.path("models", models)
    names = sorted(one.parent.name for one in models.glob("*/model.safetensors"))
    known = {one.stem: sf.Behaviour.open(one) for one in sorted((models / "behaviours").glob("*.jsonl"))}
    if not names or not known:
        raise OrganismError(
            f"{models}: expected models and behaviours as `make` writes them, found {len(names)} models and "
            f"{len(known)} behaviours"
        )
    found = {}
    for name in tqdm(names, desc="audit", unit="model", disable=None if progress else True):
        found[name] = audit_model(models / name, models / "corpus.jsonl", known)
    return {"format": FORMAT, "auditor": "baseline", "models": found}


def audit_model(folder: Path, corpus: Path, behaviours: Mapping[str, sf.Behaviour]) -> dict[str, Any]:
    """What the baseline says of one model: for each behaviour its verdict, the feature, and a trigger."""
    model = sf.load(folder)
    listed = sf.survey(model, corpus, prefix="<|endoftext|>", max_tokens=TOKENS, progress=False)
    features = listed.one_sided(max_rate=MAX_RATE)[:FEATURES]
    if not features:
        return {name: {"verdict": "none"} for name in behaviours}
    scan = sf.scan(model, features, list(behaviours.values()), replicates=400)
    claims: dict[str, Any] = {}
    for name, behaviour in behaviours.items():
        turned = [one for one in scan.reversed() if one.behaviour == name]
        if not turned:
            off = any(row.behaviour == name and row.verdict.label == "incompetent" for row in scan.confirmed)
            claims[name] = {"verdict": "incompetent" if off else "none"}
            continue
        x = min(turned, key=lambda one: max(side.value for side in one.score.sides.values()))
        feature = {"site": x.feature.site, "index": x.feature.index}
        result = sf.search(
            model, x.flip(), tokens=1, contexts=x.contexts, steps=SEARCH_STEPS, width=SEARCH_WIDTH, progress=False
        )
        if result.best.value <= 0:
            claims[name] = {"verdict": _word(x.verdict), "feature": feature}
            continue
        test = sf.flip(model, x, result, behaviour, replicates=400, units=2)
        said = "bystander" if test.role == "bystander" else _word(test.verdict)
        claims[name] = {"verdict": said, "feature": feature, "trigger": [int(i) for i in result.best.tokens]}
    return claims


def _word(verdict: Any) -> str:
    """A verdict in the words of an audit. Of opposite's conditions the divergence on other tokens is not asked for."""
    failed = {condition.name for condition in verdict.failed}
    if verdict.constant:
        return "constant"
    if verdict.label == "inconclusive" and not failed - {"KL on other tokens is that of matched units"}:
        return "opposite"
    turned = not any("is turned" in name for name in failed)
    return "broken" if turned and "answer mass is kept" in failed else str(verdict.label)
