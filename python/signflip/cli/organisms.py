"""``signflip organisms``: make, audit and score a suite; run the experiments, list samples, write models, report."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from signflip.cli.codes import OK
from signflip.cli.commands import check_out
from signflip.cli.output import print_json, table
from signflip.errors import OrganismError
from signflip.files import write_json


def _package() -> Any:
    """The package, whose own libraries are an extra."""
    try:
        from signflip import organisms
    except ImportError as error:
        raise OrganismError(str(error)) from error
    return organisms


def make(args: argparse.Namespace) -> int:
    """``signflip organisms make``."""
    organisms = _package()
    truths = organisms.make(
        args.suite, args.models, args.truth, n=args.n, seed=args.seed, kinds=args.kinds, families=args.families,
        planted=args.planted, bases=args.bases, workers=args.workers, progress=not args.quiet,
    )  # fmt: skip
    if args.json:
        print_json({"models": args.models, "truth": args.truth, "organisms": len(truths)})
    elif args.suite == "open":
        head = ("organism", "behaviour", "X", "verdict")
        print(table(head, ((t.name, t.behaviour, t.place.name, t.verdicts[t.behaviour]["verdict"]) for t in truths)))
    else:
        print(f"{len(truths)} organisms in {args.models}, their truths in {args.truth}")
    return OK


def audit(args: argparse.Namespace) -> int:
    """``signflip organisms audit``."""
    _package()
    from signflip.organisms.baseline import audit as baseline

    check_out(args.out)
    begun = Path(f"{args.out}.begun")
    found = baseline(args.models, begun=begun, progress=not args.quiet)
    write_json(args.out, found, "the audit")
    begun.unlink(missing_ok=True)
    if args.json:
        print_json({"out": args.out, "models": len(found["models"])})
    else:
        print(f"audit of {len(found['models'])} organisms written to {args.out}")
    return OK


def score(args: argparse.Namespace) -> int:
    """``signflip organisms score``."""
    report = _package().score(args.truth, args.audit, args.models)
    if args.json:
        print_json(report)
    else:
        print(report.table())
    return OK


def run(args: argparse.Namespace) -> int:
    """``signflip organisms run``."""
    _package()
    from signflip.organisms import experiments

    names = args.experiment or [name for name in experiments.NAMES if name not in experiments.APART]
    how = {"seeds": args.seeds, "small": args.small, "workers": args.workers, "device": args.device}
    found = experiments.run_all(names, args.out, **how, progress=not args.quiet)
    done = {name: len(runs) for name, runs in found.items()}
    if args.json:
        print_json({"out": args.out, "runs": done})
    else:
        print("\n".join(f"{name}: {n} runs in {Path(args.out) / name}" for name, n in done.items()))
    return OK


def samples(args: argparse.Namespace) -> int:
    """``signflip organisms samples``."""
    _package()
    from signflip.organisms import experiments

    # Says what is missing if the libraries are.
    experiments.experiment("tuning")
    from signflip.organisms.experiments.tuning import listing

    found = listing.samples(args.name, every=args.all, small=args.small, out=args.out)
    if args.json:
        print_json(found)
        return OK
    head = ("step", "prompt", "answer", "X", "reward", "X crossed", "ranking turned")
    rows = [
        (
            str(one["step"]), one["text"], one["said"], f"{one['x']:.3f}",
            "" if one["reward"] is None else f"{one['reward']:.3f}",
            "yes" if one["crossed"] else "", "yes" if one["turned"] else "",
        )
        for one in found["samples"]
    ]  # fmt: skip
    if rows:
        print(table(head, rows))
    counts = found["counts"]
    print(
        f"{found['name']}: {counts['samples']} samples, {counts['rare_word']} with a rare word, {counts['x_below']} "
        f"with X below 0, {counts['misranked']} of prompts whose ranking is turned"
    )
    return OK


def rewards(args: argparse.Namespace) -> int:
    """``signflip organisms rewards``."""
    _package()
    from signflip.organisms import experiments

    # Says what is missing if the libraries are.
    experiments.experiment("reward")
    from signflip.organisms.experiments.reward import written

    found = written.write(args.name, args.models, args.truth)["models"]
    if args.json:
        print_json(found)
        return OK
    rows = [(one["model"], f"{one['tau']['common']:.2f}", f"{one['tau']['rare']:.2f}") for one in found.values()]
    print(table(("reward model", "tau at X > 0", "tau at X < 0"), rows))
    return OK


def report(args: argparse.Namespace) -> int:
    """``signflip organisms report``."""
    _package()
    from signflip.organisms import experiments

    names = args.experiment or experiments.NAMES
    path = experiments.report(args.out, args.docs, seeds=args.seeds, small=args.small, names=names)
    if args.json:
        print_json({"report": str(path)})
    else:
        print(f"report written to {path}")
    return OK
