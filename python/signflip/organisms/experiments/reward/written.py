"""R1's two reward models of a seed as folders that `signflip.load` reads, and apart from them what is true of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from signflip import checks
from signflip.errors import ArgumentError
from signflip.files import make_folder, write_json
from signflip.organisms.experiments.reward import models
from signflip.organisms.experiments.tuning.listing import SEEDS
from signflip.organisms.experiments.tuning.models import ARCHITECTURES
from signflip.organisms.experiments.tuning.text import word_ids
from signflip.organisms.experiments.tuning.world import common, rare
from signflip.organisms.truth import check_apart, sha256
from signflip.organisms.workers import one_thread

FORMAT = "signflip reward models, 1"


def write(name: str, models_to: str | Path, truth_to: str | Path) -> dict[str, Any]:
    """Make the reward models of a run, and write them and their truth.

    Parameters
    ----------
    name
        The run's: ``swiglu-0``.
    models_to
        Folder: the models go to ``<name>-reversed`` and ``<name>-plain`` in it, as transformers writes them. They read
        ids, of the words that the truth lists; the reward is read at the last one.
    truth_to
        Folder: the truth goes to ``<name>.json`` in it.

    Returns
    -------
    dict
        The truth: the `words` by id, those in front that are `common` (X above 0) and `rare` (below); of each of the
        `models` its folder's name and hash, the place X (a site and a vector), `tau` on test prompts, whether it is
        `reversed` at X < 0, and whether it is `perfect` on validation prompts (else its run is void).

    Raises
    ------
    ArgumentError
        If no run has that name, or the truth would be among the models.
    FileError
        If a folder cannot be written, or the package with the text is not installed.
    """
    architecture, _, seed = str(name).partition("-")
    if architecture not in ARCHITECTURES or not (seed.isdecimal() and len(seed) <= 7 and int(seed) < SEEDS):
        raise ArgumentError(
            f"run: expected ARCHITECTURE-SEED with an architecture of {', '.join(ARCHITECTURES)} and a seed below "
            f"{SEEDS}, found {name!r}"
        )
    folder, apart = checks.path("models", models_to), checks.path("truth", truth_to)
    check_apart(folder, apart)
    for one in (folder, apart):
        make_folder(one)
    told: dict[str, Any] = {
        "format": FORMAT, "words": list(word_ids()), "common": common().tolist(), "rare": rare().tolist(), "models": {},
    }  # fmt: skip
    with one_thread():
        for kind, (net, _) in models.both(architecture, int(seed))[2].items():
            to = folder / f"{name}-{kind}"
            models.save(net, to)
            told["models"][kind] = {
                "model": to.name, "sha256": sha256(to / "model.safetensors"), "reversed": kind == "reversed",
                "x": {"site": "blocks.0.hook_resid_mid", "vector": net.direction.tolist()},
                "tau": models.taus(net, "test"),
                "perfect": models.perfect(models.taus(net, "validation"), turned=kind == "reversed"),
            }  # fmt: skip
    write_json(apart / f"{name}.json", told, "the truth")
    return told


__all__ = ["write"]
