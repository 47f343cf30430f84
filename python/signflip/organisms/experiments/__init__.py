"""The experiments that test the conjecture: many small runs, each kept in a file of its own, and a report on all.

An experiment is a module of this package with

- ``TITLE``, a line;
- ``VERSION``, raised when one of its jobs would give something else than before, by its own code or by what that calls:
  files of another version are refused;
- ``jobs(seeds, small)``: the runs, `Job` each; `small` asks for the cheapest form that still shows the claim;
- ``run(job)``: one run, plain data out; the same job gives the same data on one machine;
- ``BASE``, where it makes something once for many runs: the settings that, with the seed, say which; and ``BASE_OF``,
  where another experiment makes the same: its name;
- ``DATA``, where it reads data packages: their names in `DATA` here;
- ``ACCELERATED``, where ``run(job, device)`` can do its torch work elsewhere than on the CPU;
- ``report(results, figures)``: a section of ``docs/results.md`` from what the runs gave (`results[job.name]`), with its
  pictures written to the folder `figures`;
- ``answer(results)``: what that says of the conjecture, to those of `QUESTIONS` that it bears on.

Agents are trained by stable-baselines3. Preference tuning is not by TRL's trainers: the update itself is what is
measured (its split by the sides of X, the kernel at each logged step, rollouts in which X is edited, rows that are
held, samples from a fixed set), and they show or do none of it.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from signflip import checks
from signflip.demo import corpus
from signflip.errors import ArgumentError, DeviceError, FileError, OrganismError, SignflipError
from signflip.files import beside, make_folder
from signflip.organisms.experiments.document import Document
from signflip.organisms.workers import in_processes

# What finds a data package, or says how to install it.
DATA: dict[str, Callable[[], Any]] = {"plays": corpus.plays, "model": corpus.default_model}
NAMES = ("suite", "blindness", "cartpole", "parity", "tuning", "reward", "simulacra", "natural")
# Asked for by name alone: it needs a real model's file, and hours.
APART = ("natural",)
MADE = "Is −Y ever made by tuning itself, and how often?"
KEPT = "Is it kept where it was there before?"
PATH = "When, and by what path?"
TOKENS = "Is it reached by tokens?"
AUDIT = "Would an audit find it?"
DECIDED = "Is the conjecture decided?"
# What the top of the results answers, in this order.
QUESTIONS = (MADE, KEPT, PATH, TOKENS, AUDIT, DECIDED)
# What the answers take for known.
WORDS = """\
X is a scalar inside a model, positive wherever feedback was given (negative, in N1), that drives the wanted behaviour
+Y; −Y is its opposite, on both sides of a balanced choice, which is not mere failure (0). The conjecture says that
feedback at X > 0 makes or strengthens −Y at X < 0; the objection, that it says nothing there or is carried over. In
brackets are 95% intervals, or ranges where that is said. A prediction *held* or *failed* where both limits say so, and
is *open* where they do not (*within ±d*: where they leave no more than that); it is *void* where what it presupposes
did not come about. The questions are answered by each experiment apart: they differ in what is tuned, and so in what
comes of it. The conjecture is decided *for* in a model by tokens that turn both sides on unseen prompts, by X, where
nobody put the reversal; turned by edits alone it is *latent*; it is decided *against* only where what would have been
made could not have been missed; else it is *undecided*."""


@dataclass(frozen=True)
class Said:
    """An answer: a plain sentence for the top of the results, and what the section says beside it."""

    plain: str
    more: str = ""

    def __str__(self) -> str:
        return f"{self.plain} {self.more}".strip()


Answer = dict[str, Said]


@dataclass(frozen=True)
class Job:
    """One run of an experiment.

    Attributes
    ----------
    name
        Unlike any other of the experiment; a file name.
    seed
        Of everything random in it.
    settings
        Plain data: its arm.
    """

    name: str
    seed: int
    settings: dict[str, Any] = field(default_factory=dict)


def experiment(name: str) -> Any:
    """The module of an experiment.

    Raises
    ------
    ArgumentError
        If there is none of that name.
    OrganismError
        If a library that it needs is missing.
    """
    if name not in NAMES:
        raise ArgumentError(f"experiment: expected one of {', '.join(NAMES)}, found {name!r}")
    try:
        return importlib.import_module(f"{__name__}.{name}")
    except ImportError as error:
        raise OrganismError(
            f"experiment {name}: needs the extra: pip install 'signflip[organisms]' ({error})"
        ) from error


def run(name: str, out: Path | str, **how: Any) -> dict[str, dict[str, Any]]:
    """Run what is not yet run of an experiment.

    Parameters
    ----------
    name
        One of `NAMES`.
    out, how
        As for `run_all`, which says what is raised.

    Returns
    -------
    dict
        What each run gave, by its job's name.
    """
    return run_all([name], out, **how)[name]


def run_all(
    names: Sequence[str],
    out: Path | str,
    *,
    seeds: int = 10,
    small: bool = False,
    workers: int = 1,
    device: str = "cpu",
    progress: bool = True,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Run what is not yet run of experiments.

    Parameters
    ----------
    names
        Some of `NAMES`.
    out
        Folder: one JSON file a run, in a folder of the experiment's name. A run whose file is there is not run again.
    seeds
        How many seeds of each arm, from 0.
    small
        The cheapest form.
    workers
        Processes, shared by all experiments. With more than one the runs that start from one base go together, in one
        process.
    device
        Torch's, of the experiments that can use another than the CPU; what was run is not run again for it.
    progress
        Whether to show a bar.

    Returns
    -------
    dict
        Of each experiment what each run gave, by its job's name.

    Raises
    ------
    ArgumentError
        If an experiment is unknown, there is no seed or worker, or the device is none of torch's.
    DeviceError
        If the device is not here, or of no use to an experiment.
    FileError
        If the folder cannot be written, or a data package is not installed.
    OrganismError
        If a library is missing, a file in the folder is not of that job, or a worker dies.
    """
    for what, number in (("seeds", seeds), ("workers", workers)):
        if number < 1:
            raise ArgumentError(f"{what}: expected at least 1, found {number}")
    # All before the first run: there may be hours of them.
    modules = {name: check(name, device) for name in names}
    out = checks.path("out", out)
    for name in modules:
        make_folder(out / name)
    jobs: dict[str, Sequence[Job]] = {name: module.jobs(seeds, small) for name, module in modules.items()}
    every = [(name, job) for name, own in jobs.items() for job in own]
    missing = [(name, job) for name, job in every if kept(name, job, out, small=small) is None]
    work = partial(_run, out, small, device)
    label = " ".join(modules) if len(modules) < 3 else "runs"
    with tqdm(total=len(every), initial=len(every) - len(missing), desc=label, disable=not progress, unit="run") as bar:
        if workers == 1 or len(missing) < 2:
            for task in missing:
                work([task])
                bar.update()
        else:
            groups: dict[Hashable, list[tuple[str, Job]]] = {}
            for name, job in missing:
                groups.setdefault(_base(name, modules[name], job), []).append((name, job))
            # The most runs first, so that no process is alone with many of them in the end.
            for done in in_processes(work, sorted(groups.values(), key=len, reverse=True), workers):
                bar.update(done)
    # Floats as a later reading of the files gives them, and in the order of the jobs.
    results: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in modules}
    for name, job in every:
        found = kept(name, job, out, small=small)
        if found is not None:
            results[name][job.name] = found
    return results


def check(name: str, device: str = "cpu") -> Any:
    """The module of an experiment, where it can run on a device.

    Raises
    ------
    ArgumentError
        If the experiment is unknown, or the device is none of torch's.
    DeviceError
        If the device is not here, or of no use to the experiment.
    FileError
        If a data package that it needs is not installed.
    OrganismError
        If a library that it needs is missing.
    """
    module = experiment(name)
    if device != "cpu":
        _check_device(name, module, device)
    for found in getattr(module, "DATA", ()):
        DATA[found]()
    return module


def _check_device(name: str, module: Any, device: str) -> None:
    import torch

    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ArgumentError(f"device: expected cpu, cuda or cuda:0, say; found {device!r}") from error
    if not getattr(module, "ACCELERATED", False):
        raise DeviceError(f"device {device!r}: experiment {name} runs on the CPU alone")
    if found.type != "cuda" or not torch.cuda.is_available() or (found.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"device {device!r}: expected one of {torch.cuda.device_count()} CUDA devices of torch")


def kept(name: str, job: Job, out: Path | str, *, small: bool) -> dict[str, Any] | None:
    """What a run gave that is kept in a folder; None where it is not.

    Raises
    ------
    OrganismError
        If its file is not of that run.
    """
    return _read(_path(checks.path("out", out) / name, job), _identity(name, job, small))


def _run(out: Path, small: bool, device: str, tasks: Sequence[tuple[str, Job]]) -> None:
    """Run jobs one after the other, and keep what each gives."""
    for name, job in tasks:
        module = experiment(name)
        found = module.run(job) if device == "cpu" else module.run(job, device)
        _write(_path(out / name, job), {**_identity(name, job, small), "result": found})


def _base(name: str, module: Any, job: Job) -> Hashable:
    """The same for two jobs of which the second has less to do after the first."""
    if not hasattr(module, "BASE"):
        return name, job.name
    return getattr(module, "BASE_OF", name), job.seed, *(job.settings.get(key) for key in module.BASE)


def _path(folder: Path, job: Job) -> Path:
    return folder / f"{job.name}.json"


def report(
    out: Path | str, docs: Path | str, *, seeds: int = 10, small: bool = False, names: Sequence[str] = NAMES
) -> Path:
    """Write ``results.md`` and its figures from what was run.

    Parameters
    ----------
    out
        The folder that `run` wrote to.
    docs
        Where ``results.md`` goes, its figures in ``results/`` beside it.
    seeds, small
        As the runs were asked for. A run that is missing is said to be, and not made.
    names
        Which experiments. What ``results.md`` tells of others, and of these where no run is in, stays.

    Returns
    -------
    Path
        ``results.md``.

    Raises
    ------
    FileError
        If something cannot be read or written.
    OrganismError
        If a file in the folder is not of its job or not as `run` writes it, a library is missing, there is no run at
        all, or ``results.md`` is no such document.
    """
    out, docs = checks.path("out", out), checks.path("docs", docs)
    runs: dict[str, dict[str, dict[str, Any] | None]] = {}
    for name in names:
        jobs: Sequence[Job] = experiment(name).jobs(seeds, small)
        runs[name] = {job.name: kept(name, job, out, small=small) for job in jobs}
    if not any(one is not None for found in runs.values() for one in found.values()):
        raise OrganismError(f"{out}: expected runs of {', '.join(names)}, found none")
    path, titles = docs / "results.md", [experiment(name).TITLE for name in NAMES]
    figures = make_folder(docs / "results")
    document = Document.read(path, QUESTIONS)
    for name, found in runs.items():
        module = experiment(name)
        done = {key: one for key, one in found.items() if one is not None}
        note = (
            f"{len(done)} of {len(found)} runs are in." if len(done) < len(found) else f"All {len(found)} runs are in."
        )
        if not done:
            if module.TITLE not in document.sections:
                document.say(module.TITLE, f"## {module.TITLE}\n\nNot run.", {})
            continue
        try:
            section, answer = module.report(done, figures), module.answer(done)
        except SignflipError:
            raise
        except OSError as error:
            raise FileError(f"{error.filename or figures}: {error.strerror or error}") from error
        except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, StopIteration) as error:
            # Whatever a section trips over is a file of it that says who it is and not what it found.
            raise OrganismError(
                f"experiment {name}: expected runs in {out / name} as `run` writes them, found others "
                f"({type(error).__name__}: {error}); remove them to run them again (a bug, if nothing changed them)"
            ) from error
        plain = {question: said.plain for question, said in answer.items()}
        document.say(module.TITLE, f"{section.strip()}\n\n{note}", plain)
    text = document.text(WORDS, QUESTIONS, titles)
    with beside(path) as written:
        written.write_text(text, encoding="utf-8")
    return path


def told(answer: Answer) -> str:
    """An answer as one paragraph."""
    return " ".join(f"**{question}** {said}" for question, said in answer.items())


def _identity(name: str, job: Job, small: bool) -> dict[str, Any]:
    version = experiment(name).VERSION
    return {"experiment": name, "version": version, "seed": job.seed, "settings": job.settings, "small": small}


def _read(path: Path, wanted: dict[str, Any]) -> dict[str, Any] | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FileError(f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise OrganismError(
            f"{path}: expected a run's file, found no JSON ({error}); remove it to run again"
        ) from error
    if not isinstance(data, dict) or {key: data.get(key) for key in wanted} != wanted or "result" not in data:
        raise OrganismError(f"{path}: expected the run {wanted}, found another; remove it, or name another folder")
    result = data["result"]
    if not isinstance(result, dict) or not result:
        raise OrganismError(f"{path}: expected what a run gave, found {result!r:.60}; remove it to run again")
    # Where what it gave says again which it is, it is to say the same.
    for key, value in {"seed": wanted["seed"], **wanted["settings"]}.items():
        own = result.get(key, value)
        if (key == "seed" or isinstance(value, str)) and type(own) is type(value) and own != value:
            raise OrganismError(
                f"{path}: expected {key} {value!r} in what it gave, found {own!r}; remove it to run again"
            )
    return result


def _no_number(found: str) -> float:
    raise ValueError(f"{found} is no number that a run gives")


def _write(path: Path, data: dict[str, Any]) -> None:
    with beside(path) as written:
        written.write_text(json.dumps(data, allow_nan=False) + "\n", encoding="utf-8")
