"""What each command does: open its inputs, call the public function of the same name, print what came back."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import signflip as sf
from signflip.cli.codes import NOTHING_FOUND, OK
from signflip.cli.output import print_json, table
from signflip.errors import ArgumentError, FileError, TokenError
from signflip.sequences import rendered_ids

# Stands for ids without a text in what a model wrote.
UNKNOWN = "\ufffd"
FEATURE = re.compile(r"(.+?)(?::(\d+)|\[(\d+)\])")


def survey(args: argparse.Namespace) -> int:
    """``signflip survey``."""
    model = _load(args)
    corpus: Any = args.corpus[0] if len(args.corpus) == 1 else [Path(path) for path in args.corpus]
    result = sf.survey(
        model,
        corpus,
        sites=args.sites,
        context=args.context,
        prefix=args.prefix,
        out=args.out,
        max_tokens=args.max_tokens,
        field=args.field,
        progress=not args.quiet,
    )
    if args.json:
        print_json({"out": args.out, "metadata": result.metadata})
    else:
        print(result)
        print(f"written to {args.out}")
    return OK


def one_sided(args: argparse.Namespace) -> int:
    """``signflip one-sided``."""
    opened = sf.Survey.open(args.survey)
    found = opened.one_sided(max_rate=args.max_rate, confidence=args.confidence)
    if args.site is not None:
        opened[args.site]  # an unknown site is an error that names the nearest, not an empty table
        found = type(found)(feature for feature in found if feature.site == args.site)
    if args.json:
        print_json(found)
    else:
        print(found.table(args.limit))
    return OK if found else NOTHING_FOUND


def scan(args: argparse.Namespace) -> int:
    """``signflip scan``."""
    check_out(args.out)
    model = _load(args)
    opened = sf.Survey.open(args.survey)
    _check_model(model, f"survey {args.survey}", opened.metadata["settings"]["model_hash"])
    listed = opened.one_sided(max_rate=args.max_rate, confidence=args.confidence)
    features: list[sf.OneSided] = list(listed)
    if args.feature:
        features = [pick_feature(features, name) for name in args.feature]
    if args.limit is not None:
        features = features[: args.limit]
    if not features:
        print("signflip: no feature is one-sided at this rate: nothing to scan", file=sys.stderr)
        return NOTHING_FOUND
    chosen = _chosen_behaviours(args.behaviour)
    shown = not args.quiet and sys.stderr.isatty()
    result = sf.scan(
        model,
        features,
        chosen,
        doses=args.doses,
        screen=args.screen,
        keep=args.keep,
        tiers=args.tiers,
        confirm=args.confirm,
        seed=args.seed,
        progress=shown,
    )
    if args.out is not None:
        result.save(args.out)
    reversed_ = result.reversed()
    if args.json:
        print_json(result)
    else:
        print(result.table())
        print(result.summary())
    return OK if reversed_ else NOTHING_FOUND


def search(args: argparse.Namespace) -> int:
    """``signflip search``."""
    model = _load(args)
    objective, contexts = _objective(args, model)
    if args.lower:
        objective = [-one for one in objective] if isinstance(objective, list) else -objective
    result = sf.search(
        model,
        objective,
        tokens=args.tokens,
        method=args.method,
        contexts=[tuple(context) for context in args.context] if args.context else contexts,
        chat=args.chat,
        steps=args.steps,
        width=args.width,
        seed=args.seed,
        stop_at=args.stop_at,
        variant=args.variant,
        aggregate=args.aggregate,
        topk=args.topk,
        population=args.population,
        out=args.out,
        progress=not args.quiet,
    )
    best = result.best
    # A flip is on the other side where its objective is positive; other objectives have only the threshold asked for.
    if args.stop_at is not None:
        reached = best.value >= args.stop_at
    else:
        reached = best.value > 0 or not (args.survey or args.scan)
    if args.json:
        print_json({"best": best, "front": result.front, "work": result.work, "reached": reached})
    else:
        print(result)
        if not reached:
            print(f"not reached within this budget: the best value is {best.value:.4g}")
    return OK if reached else NOTHING_FOUND


def _objective(args: argparse.Namespace, model: Any) -> tuple[Any, Any]:
    """The objective that was asked for, and the contexts that come with it."""
    known = ("survey", "scan", "neuron", "logprob", "behaviour")
    sources = [name for name in known if getattr(args, name) is not None]
    if len(sources) != 1:
        raise ArgumentError(
            f"search: expected one of {', '.join(f'--{name}' for name in known)}, found "
            + (" and ".join(f"--{name}" for name in sources) or "none")
        )
    unused = {"neuron": ("feature",), "logprob": ("feature", "position")}
    unused["behaviour"] = ("feature", "position", "context", "chat")
    for option in unused.get(sources[0], ()):
        given = getattr(args, option)
        if given is not None and given is not False:
            raise ArgumentError(f"search: expected no --{option} beside --{sources[0]}, found {given}")
    where = {} if args.position is None else {"position": args.position}
    if args.neuron is not None:
        return sf.objectives.neuron(*split_feature(args.neuron), **where), None
    if args.logprob is not None:
        return sf.objectives.logprob(args.logprob), None
    if args.behaviour is not None:
        contexts, objectives = chosen_behaviour(args.behaviour).opposite(model, n=args.prompts, seed=args.seed)
        return objectives, contexts
    if args.scan is not None:
        saved = sf.Scan.open(args.scan)
        _check_model(model, f"scan {args.scan}", saved.plain["meta"]["model_hash"])
        found = saved.reversed()
        if args.feature is not None:
            found = [r for r in found if (r.feature.site, r.feature.index) == split_feature(args.feature)]
        if not found:
            raise ArgumentError(f"{args.scan}: the scan found {args.feature or 'nothing'} not reversed")
        return found[0].flip(**where), found[0].contexts
    if args.feature is None:
        raise ArgumentError("search: --survey needs --feature SITE:INDEX")
    return find_feature(args.survey, args.feature, model).flip(**where), None


def flip(args: argparse.Namespace) -> int:
    """``signflip flip``."""
    check_out(args.out)
    model = _load(args)
    feature = find_feature(args.survey, args.feature, model)
    result = sf.flip(
        model,
        feature,
        sf.SearchResult.open(args.result),
        chosen_behaviour(args.behaviour),
        doses=args.doses,
        half=None if args.half == "all" else args.half,
        positions=args.positions,
        units=args.units,
        strings=args.strings,
        seed=args.seed,
    )
    if args.out is not None:
        result.save(args.out)
    if args.json:
        print_json(result)
    else:
        print(result)
    return OK


def run(args: argparse.Namespace) -> int:
    """``signflip run``."""
    model = _load(args)
    edits = [sf.Edit(site, op, value, index=index) for site, op, value, index in args.edit]
    tokens = np.asarray([rendered_ids(model, model.to_chat(args.text))]) if args.chat else model.to_tokens(args.text)
    logits = np.asarray(model.run(tokens, edits=edits))[0, -1].astype(np.float64)
    logprobs = logits - np.logaddexp.reduce(logits)
    order = np.argsort(-logits, kind="stable")[: args.top]
    top = [{"id": int(i), "token": _decoded(model, int(i)), "logit": logits[i], "logprob": logprobs[i]} for i in order]
    made = None
    if args.max_new_tokens:
        ids = model.generate(
            tokens, args.max_new_tokens, temperature=args.temperature, top_k=args.top_k, seed=args.seed, edits=edits
        )
        new = [int(i) for i in np.asarray(ids).reshape(-1)[np.asarray(tokens).size :]]
        known = all(_decoded(model, i) is not None for i in new)
        made = model.to_string(new) if known else "".join(_decoded(model, i) or UNKNOWN for i in new)
    if args.json:
        print_json({"tokens": model.to_str_tokens(tokens), "next": top, "generated": made})
        return OK
    print("tokens:", " ".join(repr(token) for token in model.to_str_tokens(tokens)))
    print(
        table(
            ("next", "id", "logit", "logprob"),
            (("-" if t["token"] is None else repr(t["token"]), t["id"], t["logit"], t["logprob"]) for t in top),
        )
    )
    if made is not None:
        print("generated:", repr(made))
    return OK


def _decoded(model: Any, token: int) -> str | None:
    """A token's text; None for an id that the tokenizer has not (a vocabulary padded beyond it)."""
    try:
        return str(model.to_string([token]))
    except TokenError:
        return None


def doctor(args: argparse.Namespace) -> int:
    """``signflip doctor``."""
    from signflip.doctor import examine

    found = examine()
    if args.json:
        print_json(found)
    else:
        print("\n".join(f"{name:<12} {value}" for name, value in found.items()))
    return OK


def demo(args: argparse.Namespace) -> int:
    """``signflip demo``."""
    from signflip.demo import SHIPPED, run_demo

    _set_threads(args)
    say = (
        (lambda line: print(line, file=sys.stderr, flush=True)) if args.json else (lambda line: print(line, flush=True))
    )
    # A folder holds the survey of one model.
    out = args.out or ("demo-out/shipped" if args.model == SHIPPED else "demo-out")
    summary = run_demo(
        Path(out), model=args.model, tokens=args.tokens, seed=args.seed, progress=not args.quiet, say=say
    )
    if args.json:
        print_json(summary)
    # Of the organism it is known that there is something to find.
    return OK if summary.get("conclusion", {"found": True})["found"] else NOTHING_FOUND


def _load(args: argparse.Namespace) -> Any:
    _set_threads(args)
    return sf.load(args.model, revision=args.revision, device=args.device, dtype=args.dtype)


def _set_threads(args: argparse.Namespace) -> None:
    if args.threads is not None:
        sf.set_num_threads(args.threads)


def split_feature(name: str) -> tuple[str, int]:
    """``SITE:INDEX``, or ``SITE[INDEX]`` as tables print it, in its two parts."""
    match = FEATURE.fullmatch(name)
    if match is None:
        raise ArgumentError(f"feature: expected SITE:INDEX, found {name!r}")
    return match[1], int(match[2] or match[3])


def pick_feature(features: Sequence[Any], name: str) -> Any:
    """The feature of that name among one-sided ones."""
    wanted = split_feature(name)
    for feature in features:
        if (feature.site, feature.index) == wanted:
            return feature
    raise ArgumentError(f"feature {name}: not among the {len(features)} features that are one-sided at this rate")


def find_feature(path: str, name: str, model: Any) -> Any:
    """Find a feature in a survey file of this model, however often its other side was seen."""
    opened = sf.Survey.open(path)
    _check_model(model, f"survey {path}", opened.metadata["settings"]["model_hash"])
    return pick_feature(opened.one_sided(max_rate=0.5), name)


def _check_model(model: Any, what: str, found: str) -> None:
    if found != model.hash:
        raise ArgumentError(f"{what}: expected one of {model.name} (hash {model.hash}), found one of hash {found}")


def check_out(path: str | None) -> None:
    """Before any work: whether a file can be written there. Nothing is, and what is there stays."""
    if path is None:
        return
    there = Path(path).exists()
    try:
        with Path(path).open("ab"):
            pass
    except OSError as error:
        raise FileError(f"{path}: can not be written: {error.strerror or error}") from error
    if not there:
        Path(path).unlink()


def _chosen_behaviours(names: Sequence[str] | None) -> list[Any]:
    return [chosen_behaviour(name) for name in names] if names else sf.behaviours.all()


def chosen_behaviour(name: str) -> Any:
    """A built-in behaviour by its name, or one from a JSONL file."""
    if name.endswith(".jsonl"):
        return sf.Behaviour.open(name)
    known = {behaviour.name: behaviour for behaviour in sf.behaviours.all()}
    if name not in known:
        raise ArgumentError(f"behaviour {name!r}: expected one of {', '.join(known)} or a .jsonl file")
    return known[name]
