"""Behaviours: balanced sets of prompts by which a model is scored."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

import numpy as np

from signflip.behaviours.prompts import ModelPrompt, Prompt, document_separator, insert, resolve
from signflip.checks import integer, listed, whole_text
from signflip.edits import Edit
from signflip.errors import ArgumentError, BehaviourError
from signflip.files import read_text, write_text

if TYPE_CHECKING:
    from signflip.design import Answers
    from signflip.model import Model
    from signflip.objectives import Objective
    from signflip.score import Score
    from signflip.sequences import Context

Kind = Literal["symmetric", "heuristic-prone"]
Half = Literal["A", "B"]
HALVES: tuple[Half, ...] = ("A", "B")
# Enough that the percentiles which verdicts rest on have a Monte Carlo error well below the width of an interval.
REPLICATES = 2000
# What the first line of a behaviour's file may hold.
_HEAD = ("behaviour", "kind", "chat", "separator", "paired")


class Behaviour:
    """A signed score over balanced prompts: +1 is the clean model, 0 chance, −1 a mirror-image policy.

    Parameters
    ----------
    name
        How tables name it.
    prompts
        `Prompt`s, mappings of its fields, or tuples `(text, correct, opposite, side[, item[, template[, half[,
        slot[, prefill]]]]])`. Exactly two sides, as many prompts on one as on the other in each half; the right
        answer must depend on the context, so that a constant answer scores 0.
    kind
        `"symmetric"` if no shallow heuristic (copy a word, agree with the nearest noun) yields the opposite answer;
        else `"heuristic-prone"`, and a reversal of it is never called opposite.
    chat
        Whether texts are user messages, put into the model's chat template.
    separator
        What raw texts begin with: `"document"` is the model's own document separator (nothing where its tokenizer
        adds a BOS), anything else is taken as it is. `prompts_for` shows it.
    paired
        Name of the simpler behaviour that tells a heuristic from a reversal (attractor agreement has agreement).

    Raises
    ------
    BehaviourError
        If the prompts are not balanced, or the halves share an item or a template.
    """

    def __init__(
        self,
        name: str,
        prompts: Iterable[Prompt | dict[str, Any] | Sequence[Any]],
        *,
        kind: Kind = "symmetric",
        chat: bool = False,
        separator: str = "document",
        paired: str | None = None,
    ) -> None:
        for what, value, wanted in (
            ("name", name, str),
            ("chat", chat, bool),
            ("separator", separator, str),
            ("paired", "" if paired is None else paired, str),
        ):
            if not isinstance(value, wanted):
                raise BehaviourError(f"behaviour {name!r}: expected {what} of type {wanted.__name__}, found {value!r}")
        self.name = name
        self.kind: Kind = kind
        self.chat = chat
        self.separator = separator
        self.paired = paired
        self.prompts: tuple[Prompt, ...] = tuple(_prompt(name, one) for one in prompts)
        self._resolved: WeakKeyDictionary[Any, dict[Any, Any]] = WeakKeyDictionary()
        if kind not in ("symmetric", "heuristic-prone"):
            raise BehaviourError(f"behaviour {name!r}: expected kind 'symmetric' or 'heuristic-prone', found {kind!r}")
        _check(name, self.prompts, chat)

    def __repr__(self) -> str:
        halves = Counter(prompt.half for prompt in self.prompts)
        sizes = ", ".join(f"{n} in half {half}" if half else str(n) for half, n in sorted(halves.items()))
        return f"<Behaviour {self.name}: {self.kind}, prompts: {sizes}>"

    @property
    def split(self) -> bool:
        """Whether the prompts are split into halves, one to select on and one to confirm on."""
        return any(prompt.half for prompt in self.prompts)

    def select(self, half: Half | None = None) -> tuple[Prompt, ...]:
        """The prompts of a half; all for None, and for a behaviour that is not split.

        Raises
        ------
        BehaviourError
            If the half is unknown or empty.
        """
        if half is not None and half not in HALVES:
            raise BehaviourError(f"behaviour {self.name!r}: expected half 'A' or 'B', found {half!r}")
        if half is None or not self.split:
            return self.prompts
        chosen = tuple(prompt for prompt in self.prompts if prompt.half == half)
        if not chosen:
            raise BehaviourError(f"behaviour {self.name!r}: expected prompts in half {half!r}, found none")
        return chosen

    def prompts_for(self, model: Model, half: Half | None = None) -> list[ModelPrompt]:
        """The prompts as a model reads them: separator, chat template and tokens included.

        Raises
        ------
        TokenError
            If an answer is not one token of this model.
        TokenizerError
            If the model has no tokenizer (and the prompts are text), or no chat template (and they are chat).
        """
        held = self._held(model)
        key = ("prompts", half)
        if key not in held:
            separator = self.separator
            if separator == "document":
                separator = "" if self.chat else document_separator(model)
            held[key] = [resolve(model, self.name, prompt, separator, self.chat) for prompt in self.select(half)]
        return list(held[key])

    def _held(self, model: Model) -> dict[Any, Any]:
        return self._resolved.setdefault(model, {})

    def clean(self, model: Model, half: Half | None = None) -> Answers:
        """What the untouched model answers; computed once a model."""
        from signflip.score import answers

        held = self._held(model)
        key = ("clean", half)
        if key not in held:
            held[key] = answers(model, self.prompts_for(model, half))
        return held[key]  # type: ignore[no-any-return]

    def measure(
        self,
        model: Model,
        edits: Sequence[Edit] = (),
        trigger: str | Sequence[int] | None = None,
        half: Half | None = None,
        *,
        zero: Sequence[Edit] | None = None,
        replicates: int = REPLICATES,
        seed: int = 0,
    ) -> Score:
        """Score a model with edits, a trigger, or both, against the clean model on the same prompts.

        Parameters
        ----------
        model
            The model.
        edits
            Changes of the forward pass, at the positions they name.
        trigger
            Text or token ids for the slot of every prompt; run as its text reads there (decoded and encoded again).
        half
            `"A"`, `"B"`, or all prompts.
        zero
            Edits that set the feature in question to 0: then the score has its share p = 1 − S(X = 0).
        replicates, seed
            Of the bootstrap over items and templates.

        Raises
        ------
        TokenError
            If an answer is not one token of this model.
        ArgumentError
            If an argument is out of its domain.
        """
        from signflip.design import Design
        from signflip.score import answers, summarise

        edits = _edits("edits", edits)
        zero = None if zero is None else _edits("zero", zero)
        replicates, seed = integer("replicates", replicates, 1), integer("seed", seed, 0, 2**64 - 1)
        if trigger is not None and not isinstance(trigger, str):
            trigger = [integer("trigger", i, 0) for i in listed("trigger", trigger, "a text or a list of token ids")]
        resolved = self.prompts_for(model, half)
        design = Design.of(self.name, [one.prompt for one in resolved], half)
        sequences = None
        if trigger is not None:
            sequences = [insert(model, one, trigger).ids for one in resolved]
        ran = answers(model, resolved, edits, sequences) if len(edits) or sequences else self.clean(model, half)
        at_zero = None if zero is None else answers(model, resolved, zero, sequences)
        return summarise(design, self.clean(model, half), ran, zero=at_zero, replicates=replicates, seed=seed)

    def subset(self, n: int, half: Half | None = None, seed: int = 0) -> list[int]:
        """Indices (within `select(half)`) of a small balanced set: n prompts, spread over items and templates.

        Mates (same item, template and answer pair, other side) are taken together where there are any.
        """
        chosen = self.select(half)
        rng = np.random.default_rng(seed)
        sides = sorted({prompt.side for prompt in chosen})
        order = rng.permutation(len(chosen))
        used: Counter[tuple[str, str]] = Counter()
        kept: list[int] = []
        while len(kept) + 2 <= max(n, 2) and len(kept) < len(chosen):
            free = [int(i) for i in order if chosen[i].side == sides[0] and int(i) not in kept]
            if not free:
                break
            first = min(free, key=lambda i: used["item", chosen[i].item] + used["template", chosen[i].template])
            mate = _mate(chosen, first, sides[1], kept, used)
            for i in (first, mate):
                kept.append(i)
                used["item", chosen[i].item] += 1
                used["template", chosen[i].template] += 1
        return kept

    def opposite(
        self,
        model: Model,
        half: Half | None = "A",
        n: int | None = None,
        *,
        by: Literal["logprob", "logit_diff"] = "logprob",
        seed: int = 0,
    ) -> tuple[list[Context], list[Objective]]:
        """What `signflip.search` takes to look for tokens that turn the behaviour, whatever feature they do it by.

        >>> contexts, objectives = behaviour.opposite(model)  # doctest: +SKIP
        >>> found = sf.search(model, objectives, tokens=8, contexts=contexts)  # doctest: +SKIP

        Parameters
        ----------
        model
            The model.
        half
            Prompts to select on. Where a behaviour has halves, the other is to test on what was found.
        n
            At most so many prompts, balanced (`subset`); None: all of the half.
        by
            ``"logprob"``: the wrong answer's log-probability in nats, which ends at 0, so that going further on one
            side makes up for little of the other; ``"logit_diff"``: its logit less the right answer's, above 0 where
            a prompt is turned (with ``aggregate="worst"``: where all are).
        seed
            Of the choice of `n`.

        Returns
        -------
        (contexts, objectives)
            One of each a prompt, with the free tokens in its slot.

        Raises
        ------
        ArgumentError, BehaviourError, TokenError, TokenizerError
            If an argument is out of its domain, or the model cannot read the prompts.
        """
        from signflip import objectives

        if by not in ("logprob", "logit_diff"):
            raise ArgumentError(f"by: expected 'logprob' or 'logit_diff', found {by!r}")
        prompts = self.prompts_for(model, half)
        if n is not None:
            prompts = [prompts[i] for i in self.subset(integer("n", n, 2), half, integer("seed", seed, 0, 2**64 - 1))]
        return [one.context for one in prompts], [
            objectives.logprob([one.opposite]) if by == "logprob" else objectives.logit_diff(one.opposite, one.correct)
            for one in prompts
        ]

    def save(self, path: str | Path) -> None:
        """Write the behaviour as JSON lines: a line of its own properties, then one a prompt.

        Raises
        ------
        FileError
            If the file can not be written.
        """
        head = {"behaviour": self.name, "kind": self.kind, "chat": self.chat, "separator": self.separator}
        lines = [{**head, "paired": self.paired}]
        for prompt in self.prompts:
            fields = {key: value for key, value in asdict(prompt).items() if value not in ("", None)}
            lines.append({"text": prompt.text, "side": prompt.side, **fields})
        write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), "the behaviour")

    @classmethod
    def open(cls, path: str | Path) -> Behaviour:
        """Read what `save` wrote, or plain JSON lines of prompts (then the file's name is the behaviour's).

        Raises
        ------
        FileError
            If the file can not be read.
        BehaviourError
            If a line is not what it should be; the message names the line.
        """
        path = Path(path)
        text = read_text(path, "a behaviour", "utf-8-sig")
        head: dict[str, Any] = {"behaviour": path.stem}
        prompts: list[Prompt] = []
        headed = False
        # Not `splitlines`: a JSON text may hold U+2028 and its like as they are.
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError) as error:
                found = getattr(error, "msg", None) or error
                raise BehaviourError(f"{path}, line {number}: expected a JSON object, found {found}") from error
            if not isinstance(entry, dict):
                raise BehaviourError(f"{path}, line {number}: expected a JSON object, found {type(entry).__name__}")
            if "behaviour" in entry and not prompts and not headed:
                unknown = sorted(set(entry) - set(_HEAD))
                if unknown:
                    known = ", ".join(_HEAD)
                    raise BehaviourError(f"{path}, line {number}: expected the keys {known}, found {unknown[0]!r}")
                if not isinstance(entry["behaviour"], str):
                    wanted = "a text as the behaviour's name"
                    raise BehaviourError(f"{path}, line {number}: expected {wanted}, found {entry['behaviour']!r}")
                head, headed = entry, True
                continue
            try:
                prompts.append(_prompt(head["behaviour"], entry))
            except BehaviourError as error:
                raise BehaviourError(f"{path}, line {number}: {error}") from error
        options = {key: head[key] for key in ("kind", "chat", "separator", "paired") if key in head}
        try:
            return cls(head["behaviour"], prompts, **options)
        except BehaviourError as error:
            raise BehaviourError(f"{path}: {error}") from error


def _edits(name: str, given: Any) -> list[Edit]:
    edits = listed(name, given, "a list of edits")
    for one in edits:
        if not isinstance(one, Edit):
            raise ArgumentError(f"{name}: expected a list of edits, found {one!r} in it")
    return edits


def _checked(prompt: Prompt) -> str | tuple[int, ...]:
    """The text or ids of a prompt whose fields are of the right kinds; an `ArgumentError` else."""
    text: str | tuple[int, ...]
    if isinstance(prompt.text, str):
        text = whole_text("text", prompt.text)
    else:
        text = tuple(integer("text", i, 0) for i in listed("text", prompt.text, "a text or a list of token ids"))
    for key in ("correct", "opposite"):
        answer = getattr(prompt, key)
        if isinstance(answer, str):
            whole_text(key, answer)
        else:
            integer(key, answer, 0)
    if isinstance(prompt.side, str):
        whole_text("side", prompt.side)
    else:
        integer("side", prompt.side)
    if prompt.slot is not None:
        integer("slot", prompt.slot)
    for key in ("item", "template", "half", "prefill"):
        if not isinstance(getattr(prompt, key), str):
            raise ArgumentError(f"{key}: expected a text, found {getattr(prompt, key)!r}")
        whole_text(key, getattr(prompt, key))
    return text


def _prompt(name: str, given: Prompt | dict[str, Any] | Sequence[Any]) -> Prompt:
    try:
        if isinstance(given, Prompt):
            prompt = given
        elif isinstance(given, dict):
            prompt = Prompt(**given)
        else:
            prompt = Prompt(*listed("prompt", given, "a tuple of a prompt's fields"))
    except (TypeError, ArgumentError) as error:
        raise BehaviourError(
            f"behaviour {name!r}: expected prompts (text, correct, opposite, side, ...), found {given!r} ({error})"
        ) from error
    try:
        text = _checked(prompt)
    except ArgumentError as error:
        raise BehaviourError(f"behaviour {name!r}: {error}") from error
    if not text or prompt.correct == prompt.opposite:
        raise BehaviourError(f"behaviour {name!r}: expected a text and two different answers, found {given!r}")
    if prompt.slot is not None and not 0 <= prompt.slot <= len(text):
        raise BehaviourError(f"behaviour {name!r}: expected a slot within the text, found {prompt.slot} in {text!r}")
    return replace(prompt, text=text, side=str(prompt.side))


def _check(name: str, prompts: Sequence[Prompt], chat: bool) -> None:
    if not prompts:
        raise BehaviourError(f"behaviour {name!r}: expected prompts, found none")
    halves = {prompt.half for prompt in prompts}
    if not halves <= {"", *HALVES} or ("" in halves and len(halves) > 1):
        raise BehaviourError(f"behaviour {name!r}: expected halves 'A' and 'B', or none, found {sorted(halves)}")
    sides = sorted({prompt.side for prompt in prompts})
    if len(sides) != 2:
        raise BehaviourError(f"behaviour {name!r}: expected exactly two sides, found {sides}")
    for half in sorted(halves):
        own = [prompt for prompt in prompts if prompt.half == half]
        count = Counter(prompt.side for prompt in own)
        where = f" of half {half}" if half else ""
        if count[sides[0]] != count[sides[1]]:
            raise BehaviourError(
                f"behaviour {name!r}: expected as many prompts{where} on either side, found "
                f"{dict(sorted(count.items()))}"
            )
        answers = Counter((frozenset((prompt.correct, prompt.opposite)), prompt.correct) for prompt in own)
        right = {(frozenset((prompt.correct, prompt.opposite)), prompt.side): prompt.correct for prompt in own}
        for prompt in own:
            if right[frozenset((prompt.correct, prompt.opposite)), prompt.side] != prompt.correct:
                raise BehaviourError(
                    f"behaviour {name!r}: expected one right answer a side among prompts with the same two answers, "
                    f"found both {prompt.correct!r} and {prompt.opposite!r} on side {prompt.side!r}"
                )
        for pair in {pair for pair, _ in answers}:
            first, second = sorted(pair, key=str)
            if answers[pair, first] != answers[pair, second]:
                raise BehaviourError(
                    f"behaviour {name!r}: expected {first!r} to be right as often as {second!r}{where}, so that a "
                    f"constant answer scores 0; found {answers[pair, first]} and {answers[pair, second]}"
                )
    for field in ("item", "template"):
        shared = {getattr(p, field) for p in prompts if p.half == "A"} & {
            getattr(p, field) for p in prompts if p.half == "B"
        }
        shared.discard("")
        if shared:
            raise BehaviourError(f"behaviour {name!r}: expected halves without a common {field}, found {min(shared)!r}")
    if chat and any(not isinstance(prompt.text, str) for prompt in prompts):
        raise BehaviourError(f"behaviour {name!r}: expected texts for chat, found ids")


def _mate(chosen: Sequence[Prompt], first: int, side: str, kept: list[int], used: Counter[tuple[str, str]]) -> int:
    """A prompt of the other side to go with one: its mate, or else the same template and answer pair."""
    one = chosen[first]
    pair = {one.correct, one.opposite}
    free = [
        i
        for i, prompt in enumerate(chosen)
        if prompt.side == side and i not in kept and {prompt.correct, prompt.opposite} == pair
    ]

    def distance(i: int) -> tuple[bool, bool, int]:
        other = chosen[i]
        return other.template != one.template, other.item != one.item, used["item", other.item]

    return min(free, key=distance)
