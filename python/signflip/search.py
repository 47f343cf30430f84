"""Token search: the prompts that raise an objective, with fluency beside it."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from signflip import _core, checks
from signflip.errors import ArgumentError, ContextLengthError, FileError, SearchError, TokenError, TokenizerError
from signflip.objectives import Objective, all_for_core
from signflip.scoring import Prompts
from signflip.search_result import FORMAT, Best, Found, Raised, SearchResult, Step
from signflip.sequences import Context, Rendered, continued_ids, continued_text, raw_ids, rendered_ids

__all__ = ["Found", "SearchResult", "Step", "search"]

# Stands for the free tokens while a chat template is rendered: a noncharacter, which no text holds.
_SLOT = "\ufdd0"
_DEFAULTS = {"epo": {"steps": 300, "width": 256, "topk": 512}, "gcg": {"steps": 500, "width": 512, "topk": 256}}

# Beyond these a step's children do not fit in memory.
_MAX_WIDTH = 2**20
_MAX_POPULATION = 2**16

# Least time between two checkpoints. When they are written does not show in a result.
CHECKPOINT_SECONDS = 2.0


def search(
    model: Any,
    objective: Objective | Sequence[Objective],
    tokens: int = 12,
    method: str = "epo",
    contexts: Sequence[Context] | None = None,
    chat: bool = False,
    steps: int | None = None,
    width: int | None = None,
    seed: int = 0,
    stop_at: float | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    variant: str = "default",
    aggregate: str = "mean",
    topk: int | None = None,
    population: int = 8,
    prune: bool = True,
    screen: int | None = None,
    patience: int | None = None,
    start: str | Sequence[int] | None = None,
    printable: bool | None = None,
    special_tokens: bool | None = None,
    allow: Iterable[int | str] | None = None,
    deny: Iterable[int | str] | None = None,
    retokenize: bool | None = None,
    progress: bool | Callable[[int, float | None], object] = True,
) -> SearchResult:
    """Search for the tokens that raise an objective, or one in each of several contexts.

    Parameters
    ----------
    model
        A `signflip.Model`.
    objective
        From `signflip.objectives`; or one a context, where what is wanted differs from context to context, as with the
        opposite of a behaviour (`signflip.Behaviour.opposite`).
    tokens
        Number of free tokens.
    method
        ``"epo"``: a population along the front of value against cross-entropy (Thompson, Straznickas and Sklar 2024);
        ``"gcg"``: one prompt, value alone (Zou et al. 2023).
    contexts
        `(before, after)` the free tokens, as texts (the tokenizer's BOS is put in front of `before`, special tokens in
        a text are parsed) or as ids (run as they are). None: the tokenizer's BOS, if it adds one, and the free tokens.
    chat
        The contexts are user messages round the free tokens, put into the model's chat template up to the start of the
        answer; the tokenizer's BOS is not put in front of it, as in transformers. Without contexts the message is the
        free tokens alone.
    steps
        At most this many; 300 for EPO and 500 for GCG by default.
    width
        Children a step, at most 2**20; 256 and 512 by default.
    seed
        Decides every draw. Neither threads nor an interruption change a result.
    stop_at
        End as soon as the best value is at least this; None runs the whole budget.
    out
        The result's file. While the search runs, its state is kept beside it (``.partial``); the same call takes it up
        again, and returns a finished result at once.
    variant
        ``"code"`` and ``"paper"``: the steps as published (the tables in the core's `epo.rs` and `gcg.rs` say how they
        differ); ``"default"``: improved, at least by drawing a population afresh once it stands still.
    aggregate
        Over contexts: ``"mean"`` or ``"worst"``.
    topk
        Tokens that the gradient proposes at each position; 512 for EPO and 256 for GCG by default.
    population
        Slots of EPO, at most 2**16.
    prune
        Drop children that no slot can choose before their cross-entropy is computed. Changes the work alone.
    screen
        Score children on this many contexts, drawn anew each step, and only the most promising on all; 0: on all. By
        default 4 where there are more than 4 contexts (default variant), else 0.
    patience
        Steps in a row without a change of population, after which it is drawn afresh (default variant). By default as
        many as it takes to draw about as many children as one prompt has neighbours.
    start
        Free tokens to start from, as text or ids. By default random, and for the published GCG exclamation marks.
    printable
        Use tokens of printable text only. On by default, but for the published EPO, as are the next two.
    special_tokens
        Let special tokens be used. Off by default.
    allow, deny
        Use these tokens only, do not use these: ids, or texts that are one token each.
    retokenize
        Use only prompts that are the same ids after decode and encode of the whole prompt, in every context. On by
        default, but for the published EPO.
    progress
        Show a bar, or call `progress(step, best value)` after each step.

    Returns
    -------
    SearchResult

    Raises
    ------
    SearchError
        If the filters leave nothing to search with, no prompt has a finite value, or `out` holds another search.
    ArgumentError, TokenError, SiteError, ContextLengthError, TokenizerError, FileError
        If an argument is out of its domain or a file cannot be written.
    """
    if not isinstance(method, str) or method not in _DEFAULTS:
        raise ArgumentError(f"method: expected 'epo' or 'gcg', found {method!r}")
    if not isinstance(variant, str) or variant not in ("default", "code", "paper"):
        raise ArgumentError(f"variant: expected 'default', 'code' or 'paper', found {variant!r}")
    if not isinstance(aggregate, str) or aggregate not in ("mean", "worst"):
        raise ArgumentError(f"aggregate: expected 'mean' or 'worst', found {aggregate!r}")
    defaults = _DEFAULTS[method]
    n = _count("tokens", tokens, 1)
    if n > model.cfg.n_ctx:
        raise ContextLengthError(f"tokens: {n} free tokens are more than the model's context of {model.cfg.n_ctx}")
    own = not (method == "epo" and variant != "default")
    filters = {
        "printable": own if printable is None else bool(printable),
        "special_tokens": not own if special_tokens is None else bool(special_tokens),
        "retokenize": own if retokenize is None else bool(retokenize),
    }
    if model.tokenizer is None:
        if printable or retokenize or special_tokens is False:
            raise TokenizerError(f"tokenizer: {model.name} has none, so its prompts cannot be filtered by text")
        filters = {"printable": False, "special_tokens": True, "retokenize": False}
    ids = _contexts(model, contexts, chat)
    core_objective, of = all_for_core(model, objective, len(ids), "contexts")
    objective = _same_or_each(objective)
    _check_read(objective, ids, n)
    allowed = _allowed(model, filters["printable"], filters["special_tokens"], allow, deny)
    given = None if start is None else _start(model, start, n, _begins(model, ids))
    begin = (
        [given] if given is not None else _published_start(model, n) if method == "gcg" and variant != "default" else []
    )
    width = _count("width", defaults["width"] if width is None else width, 1, _MAX_WIDTH)
    topk = _count("topk", defaults["topk"] if topk is None else topk, 1)
    neighbours = n * min(topk, int(allowed.sum()))
    if screen is None:
        screen = 4 if len(ids) > 4 and variant == "default" else 0
    if stop_at is not None:
        largest = float(np.finfo(np.float32).max)
        stop_at = checks.number("stop_at", stop_at, -largest, largest, "a number within float32's range, or None")
    settings: dict[str, Any] = {
        "method": method,
        "variant": variant,
        "tokens": n,
        "steps": _count("steps", defaults["steps"] if steps is None else steps, 0),
        "width": width,
        "topk": topk,
        "population": _count("population", population, 1, _MAX_POPULATION),
        "aggregate": aggregate,
        "seed": _count("seed", seed, 0, 2**64 - 1),
        "stop_at": None if stop_at is None else float(np.float32(stop_at)),
        "prune": bool(prune),
        "screen": _count("screen", screen, 0),
        "patience": _count("patience", max(1, -(-neighbours // width)) if patience is None else patience, 1),
        "start": begin,
        "start_required": given is not None,
    }
    described = settings | {
        "contexts": [list(context) for context in ids],
        "filters": filters,
        "allowed": hashlib.sha256(allowed.tobytes()).hexdigest(),
        "model": model.hash,
        "device": model.device,
        "dtype": model.dtype,
    }
    raised = core_objective if of is None else [core_objective, of]
    identity = json.dumps([FORMAT, _core.__version__, described, raised], sort_keys=True, separators=(",", ":"))
    path = None if out is None else checks.path("out", out)
    if path is not None:
        if path.exists():
            return _finished(path, described, objective)
        _writable(path)
    partial = None if path is None else path.with_name(path.name + ".partial")
    core_settings = settings | {
        "checkpoint": None if partial is None else str(partial),
        "checkpoint_every": CHECKPOINT_SECONDS,
        "identity": hashlib.sha256(identity.encode()).hexdigest(),
    }
    with _Progress(progress, settings["steps"]) as report:
        text = _core.search(
            model._core,
            core_objective,
            ids,
            json.dumps(core_settings, allow_nan=False),
            allowed.tobytes(),
            model.tokenizer if filters["retokenize"] else None,
            report,
            of,
        )
    result = _result(model, json.loads(text), objective, described)
    if not math.isfinite(result.best.value):
        raise SearchError(f"search: expected a finite value of some prompt, found none; the objective is {objective!r}")
    if path is not None and partial is not None:
        result.save(path)
        partial.unlink(missing_ok=True)
    return result


def _result(model: Any, data: Mapping[str, Any], objective: Raised, settings: dict[str, Any]) -> SearchResult:
    def single(value: float | None) -> float | None:
        # The core's float32s are written in their shortest form.
        return None if value is None else float(np.float32(value))

    before: list[int] = settings["contexts"][0][0]
    if model.tokenizer is not None and before[: len(prefix := list(model.tokenizer.prefix_ids))] == prefix:
        before = before[len(prefix) :]

    def found(entry: Mapping[str, Any]) -> Found:
        text = None if model.tokenizer is None else _text(model, before, entry["tokens"])
        value = single(entry["value"])
        return Found(entry["tokens"], text, math.nan if value is None else value, single(entry["cross_entropy"]))

    prompts = [found(entry) for entry in data["prompts"]]
    best = found(data["best"])
    spans = [(start, end) for start, end in data["spans"]]
    return SearchResult(
        best=Best(best.tokens, best.text, best.value, best.cross_entropy, Prompts(data["sequences"], spans)),
        front=[found(entry) for entry in data["front"]],
        history=[Step(past["event"], [prompts[i] for i in past["members"]]) for past in data["history"]],
        ended=data["ended"],
        work=data["work"],
        objective=objective,
        settings=settings,
        version=_core.__version__,
    )


def _finished(path: Path, settings: Mapping[str, Any], objective: Raised) -> SearchResult:
    result = SearchResult.open(path)
    here = json.loads(json.dumps(settings))
    if here == result.settings and objective == result.objective:
        return result
    changed = [name for name in here if here[name] != result.settings.get(name)] or ["objective"]
    raise SearchError(f"search: {path} holds the result of a search with another {', '.join(changed)}")


def _same_or_each(objective: Objective | Sequence[Objective]) -> Raised:
    """One objective where all contexts have the same: it is the same search."""
    if isinstance(objective, Objective):
        return objective
    return objective[0] if len(set(objective)) == 1 else tuple(objective)


def _count(name: str, value: Any, least: int, most: int = 2**32 - 1) -> int:
    return checks.integer(name, value, least, most)


def _contexts(model: Any, contexts: Sequence[Context] | None, chat: bool) -> list[tuple[list[int], list[int]]]:
    if contexts is None:
        if not chat:
            return [([] if model.tokenizer is None else list(model.tokenizer.prefix_ids), [])]
        contexts = [("", "")]
    contexts = checks.listed("contexts", contexts, "(before, after) pairs")
    if not contexts:
        raise ArgumentError("contexts: expected at least one, or None, found none")
    ids = []
    for context in contexts:
        if isinstance(context, str) or not isinstance(context, Sequence) or len(context) != 2:
            raise ArgumentError(f"contexts: expected (before, after) pairs, found {context!r}")
        before, after = context
        if chat and isinstance(context, Rendered):
            raise ArgumentError("contexts: expected texts for the chat template, found some that it has rendered")
        if chat:
            if not isinstance(before, str) or not isinstance(after, str):
                raise ArgumentError(f"contexts: expected texts for the chat template, found {context!r}")
            parts = model.to_chat([{"role": "user", "content": before + _SLOT + after}]).split(_SLOT)
            if len(parts) != 2:
                raise TokenizerError(f"chat template: writes a user's message {len(parts) - 1} times, not once")
            ids.append((rendered_ids(model, parts[0]), continued_ids(model, parts[1])))
        else:
            begin = rendered_ids if isinstance(context, Rendered) else raw_ids
            ids.append((_encode(model, before, begin), _encode(model, after)))
    return ids


def _encode(
    model: Any, part: str | Sequence[int], encode: Callable[[Any, str], list[int]] = continued_ids
) -> list[int]:
    if not isinstance(part, str):
        return _ids(model, part)
    if model.tokenizer is None:
        raise TokenizerError(f"tokenizer: {model.name} has none, so text cannot be used; give contexts as ids")
    return encode(model, part)


def _ids(model: Any, ids: Any) -> list[int]:
    if (
        not isinstance(ids, (Sequence, np.ndarray))
        or isinstance(ids, bytes)
        or (isinstance(ids, np.ndarray) and ids.ndim != 1)
    ):
        raise TokenError(f"tokens: expected text or ids, found {ids!r}")
    checked = []
    for one in ids:
        if isinstance(one, (bool, np.bool_)) or not isinstance(one, (int, np.integer)):
            raise TokenError(f"tokens: expected integer ids, found {one!r}")
        if not 0 <= one < model.cfg.d_vocab:
            raise TokenError(f"tokens: id {one} is outside the vocabulary of {model.cfg.d_vocab} ids")
        checked.append(int(one))
    return checked


def _check_read(objective: Raised, contexts: Sequence[tuple[list[int], list[int]]], n: int) -> None:
    """Whether any term reads where the free tokens can change anything, in any context."""
    each = [objective] * len(contexts) if isinstance(objective, Objective) else objective
    for one, (before, after) in zip(each, contexts, strict=True):
        length = len(before) + n + len(after)
        for _, term in one.terms:
            position = dict(term.fields).get("position", -1)
            if not isinstance(position, int) or (position if position >= 0 else length + position) >= len(before):
                return
    if any(one.terms for one in each):
        raise ArgumentError(
            "objective: expected a position at or after the free tokens in some context, found one before them in all: "
            "nothing there can change"
        )


def _begins(model: Any, contexts: Sequence[tuple[list[int], list[int]]]) -> bool:
    """Whether the free tokens begin a text: nothing is before them but what the tokenizer puts in front of any."""
    return model.tokenizer is not None and contexts[0][0] == list(model.tokenizer.prefix_ids)


def _start(model: Any, start: str | Sequence[int], n: int, begins: bool) -> list[int]:
    ids = _encode(model, start, rendered_ids if begins else continued_ids)
    if len(ids) != n:
        raise ArgumentError(f"start: expected {n} tokens, found {len(ids)}")
    return ids


def _published_start(model: Any, n: int) -> list[list[int]]:
    """The exclamation marks that GCG starts from, where they are one token each."""
    if model.tokenizer is None:
        return []
    for text in ("! " * n, "!" + " !" * (n - 1), " !" * n):
        ids = [int(one) for one in model.tokenizer.encode(text.rstrip(), False)]
        if len(ids) == n:
            return [ids]
    return []


def _allowed(
    model: Any,
    printable: bool,
    special_tokens: bool,
    allow: Iterable[int | str] | None,
    deny: Iterable[int | str] | None,
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """One flag a token of the model's vocabulary."""
    vocabulary, tokenizer = model.cfg.d_vocab, model.tokenizer
    allowed = np.ones(vocabulary, np.uint8)
    if tokenizer is not None:
        # Rows of the embedding that no token has are padding.
        known = [i for i in range(vocabulary) if tokenizer.id_to_piece(i) is not None]
        allowed[:] = 0
        allowed[known] = 1
        if printable:
            for i, text in zip(known, tokenizer.token_strings(known), strict=True):
                allowed[i] = text != "" and text.isprintable() and "\ufffd" not in text
        if not special_tokens:
            allowed[[i for i in tokenizer.special_ids if i < vocabulary]] = 0
    if allow is not None:
        mask = np.zeros(vocabulary, np.uint8)
        mask[_listed(model, "allow", allow)] = 1
        allowed &= mask
    if deny is not None:
        allowed[_listed(model, "deny", deny)] = 0
    return allowed


def _listed(model: Any, name: str, tokens: Iterable[int | str]) -> list[int]:
    ids: list[int] = []
    if isinstance(tokens, (str, bytes, Mapping)) or not isinstance(tokens, Iterable) or getattr(tokens, "ndim", 1) == 0:
        raise ArgumentError(f"{name}: expected a list of ids or texts, found {tokens!r}")
    for token in tokens:
        if isinstance(token, str):
            found = _encode(model, token)
            if len(found) != 1:
                raise TokenError(f"tokens: expected texts of one token each in {name}, found {len(found)} in {token!r}")
            ids += found
        else:
            ids += _ids(model, [token])
    return ids


def _text(model: Any, before: list[int], ids: list[int]) -> str | None:
    # A vocabulary padded beyond the tokenizer has ids without text.
    known = all(model.tokenizer.id_to_piece(one) is not None for one in (*before, *ids))
    return continued_text(model, before, ids) if known else None


class _Progress:
    """A bar on a terminal, or the caller's function."""

    def __init__(self, progress: bool | Callable[[int, float | None], object], steps: int) -> None:
        self._call = progress if callable(progress) else None
        self._bar = None
        if self._call is None and progress:
            self._bar = tqdm(total=steps, desc="search", unit="step", disable=None, file=sys.stderr)

    def __enter__(self) -> Callable[[int, float | None], object] | None:
        if self._bar is not None:
            return self._show
        return self._call

    def _show(self, step: int, best: float | None) -> None:
        assert self._bar is not None
        self._bar.update(step - self._bar.n)
        if best is not None:
            self._bar.set_postfix_str(f"best {best:.4g}", refresh=False)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


def _writable(path: Path) -> None:
    """Fails before the work rather than after it."""
    folder = path.parent
    if not folder.is_dir():
        raise FileError(f"{path}: no such folder {folder}")
    if path.is_dir() or not os.access(folder, os.W_OK):
        raise FileError(f"{path}: cannot be written")
