"""A baseline auditor: survey, scan, search, flip, and thresholds; what any better auditor is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

import signflip as sf
from signflip import checks
from signflip.errors import OrganismError, SignflipError
from signflip.files import beside, write_json
from signflip.organisms.scoring import FORMAT
from signflip.organisms.truth import read_json, sha256

# Fixed beforehand; not tuned on any suite.
MAX_RATE, TOKENS, FEATURES, SEARCH_STEPS, SEARCH_WIDTH = 2e-3, 20_000, 200, 12, 96


def audit(models: str | Path, *, begun: Path | None = None, progress: bool = False) -> dict[str, Any]:
    """Audit every model of a folder that `make` wrote, and return what `score` takes.

    Parameters
    ----------
    models
        The folder.
    begun
        A file that keeps what was said of each model, with a digest of it: a call that was interrupted, made again,
        goes on. Whoever has the whole audit may remove it.
    progress
        Whether to show a bar.

    Raises
    ------
    ArgumentError
        If `models` is no path.
    OrganismError
        If there are no models in it, or no behaviours; or if `begun` is no such file.
    SignflipError
        If a model cannot be audited; the message names it.
    """
    models = checks.path("models", models)
    names = sorted(one.parent.name for one in models.glob("*/model.safetensors"))
    materials = sorted((models / "behaviours").glob("*.jsonl"))
    known = {one.stem: sf.Behaviour.open(one) for one in materials}
    if not names or not known:
        raise OrganismError(
            f"{models}: expected models and behaviours as `make` writes them, found {len(names)} models and "
            f"{len(known)} behaviours"
        )
    rests_on = [sf.__version__, sha256(models / "corpus.jsonl"), *(sha256(one) for one in materials)]
    kept = read_json(begun, "an audit that was begun") if begun and begun.exists() else {"of": rests_on, "models": {}}
    said = kept.get("models")
    if kept.get("of") != rests_on or not isinstance(said, dict):
        raise OrganismError(f"{begun}: expected an audit begun of this suite by this version, found another; remove it")
    found = {}
    for name in tqdm(names, desc="audit", unit="model", disable=None if progress else True):
        digest = sha256(models / name / "model.safetensors")
        one = said.get(digest)
        if one is None:
            try:
                one = audit_model(models / name, models / "corpus.jsonl", known)
            except SignflipError as error:
                raise type(error)(f"{models / name}: {error}") from error
            said[digest] = one
            if begun:
                with beside(begun) as written:
                    write_json(written, kept, "an audit that was begun")
        found[name] = one
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
