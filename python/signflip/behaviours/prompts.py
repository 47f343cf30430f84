"""Prompts of a behaviour: what a user writes, and what a model then reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from signflip.errors import BehaviourError, TokenError
from signflip.sequences import Context, Rendered, continued_ids, continued_text, raw_ids, rendered_ids

if TYPE_CHECKING:
    from signflip.model import Model

# Strings that tokenizers of known families use between documents, most specific first.
_SEPARATORS = ("<|endoftext|>", "<|end_of_text|>", "<eos>", "</s>")
_SLOT = "\u241f"


@dataclass(frozen=True, slots=True)
class Prompt:
    """One question with a right and a mirror-image wrong answer.

    Parameters
    ----------
    text
        The raw text or, in a chat behaviour, the user's message; or token ids.
    correct, opposite
        The two answers, one token each: text (with its leading space, where it has one) or an id.
    side
        Which of the behaviour's two contexts this is; the right answer depends on it.
    item, template
        What was put into the text, and the text it was put into: the clusters that intervals are taken over.
    half
        `"A"` (to select on), `"B"` (to confirm on), or empty.
    slot
        Where a trigger goes: characters (or ids) of `text` before it. None: at its beginning.
    prefill
        Chat only: the beginning of the assistant's answer.
    """

    text: str | tuple[int, ...]
    correct: str | int
    opposite: str | int
    side: str
    item: str = ""
    template: str = ""
    half: str = ""
    slot: int | None = None
    prefill: str = ""


@dataclass(frozen=True, slots=True)
class ModelPrompt:
    """A prompt as one model reads it.

    Attributes
    ----------
    prompt
        The prompt it comes from.
    before, after
        The text on either side of the slot, separator and chat template included; None for prompts of ids.
    ids
        The tokens, nothing in the slot.
    n_before
        How many ids lie before the slot.
    n_leading
        How many leading ids are special (separator, BOS, or the chat template's first token): no edit touches them.
    correct, opposite
        Ids of the two answers.
    chat
        Whether the text is a rendered chat template, which writes its own special tokens.
    """

    prompt: Prompt
    before: str | None
    after: str | None
    ids: tuple[int, ...]
    n_before: int
    n_leading: int
    correct: int
    opposite: int
    chat: bool = False

    @property
    def text(self) -> str | None:
        """The whole text, nothing in the slot; None for prompts of ids."""
        return None if self.before is None or self.after is None else self.before + self.after

    @property
    def context(self) -> Context:
        """What a search takes: what is before and after the slot."""
        if self.before is None or self.after is None:
            return list(self.ids[: self.n_before]), list(self.ids[self.n_before :])
        return Rendered((self.before, self.after)) if self.chat else (self.before, self.after)


@dataclass(frozen=True, slots=True)
class Triggered:
    """A prompt with a trigger in its slot, after decoding and encoding.

    Attributes
    ----------
    ids
        The tokens that the text with the trigger in it has.
    n_after
        How many of the last ids are those that the prompt has after the slot: both runs have them in common.
    survived
        Whether the text came back as the ids before the slot, the trigger's, and those after it.
    span
        Positions of the ids between the two common parts: the trigger, as the prompt reads it.
    """

    ids: tuple[int, ...]
    n_after: int
    survived: bool
    span: tuple[int, int]


def document_separator(model: Model) -> str:
    """What raw text must begin with for this model: its document separator, or nothing if its tokenizer adds a BOS.

    The separator is a part of the prompt that is shown, not something that happens inside.
    """
    if model.tokenizer is None or leading_bos(model):
        return ""
    for text in _SEPARATORS:
        if len(model.to_tokens(text)[0]) == 1:
            return text
    return ""


def leading_bos(model: Model) -> int:
    """How many ids the tokenizer puts before any text."""
    return len(model.tokenizer.prefix_ids) if model.tokenizer is not None else 0


def resolve(model: Model, name: str, prompt: Prompt, separator: str, chat: bool) -> ModelPrompt:
    """A prompt as a model reads it.

    Raises
    ------
    BehaviourError
        If the chat template hides the user's message, or tokens do not join at the slot.
    TokenError
        If an answer is not one token.
    """
    answers = [answer_id(model, name, prompt, answer) for answer in (prompt.correct, prompt.opposite)]
    if answers[0] == answers[1]:
        raise TokenError(f"behaviour {name!r}: expected two different answers, found {prompt.correct!r} twice")
    if not isinstance(prompt.text, str):
        ids = tuple(int(i) for i in prompt.text)
        slot = prompt.slot or 0
        return ModelPrompt(prompt, None, None, ids, slot, min(slot, len(ids) - 1), answers[0], answers[1])
    slot = prompt.slot or 0
    if chat:
        marked = prompt.text[:slot] + _SLOT + prompt.text[slot:]
        whole = str(model.to_chat([{"role": "user", "content": marked}], prefill=prompt.prefill))
        before, found, after = whole.partition(_SLOT)
        if not found:
            raise BehaviourError(f"behaviour {name!r}: the chat template leaves out the user's message {prompt.text!r}")
        if _SLOT in after:
            raise BehaviourError(f"behaviour {name!r}: the chat template writes the user's message more than once")
        n_leading = 1
    else:
        before, after = separator + prompt.text[:slot], prompt.text[slot:]
        n_leading = len(_encode(model, separator))
    ids = _encode(model, before + after, chat)
    # The template's own text is cut off where the two encodings part, so that a merge across the slot is seen.
    n_before = _common(_encode(model, before, chat), ids)
    return ModelPrompt(prompt, before, after, ids, n_before, min(n_leading, len(ids) - 1), answers[0], answers[1], chat)


def answer_id(model: Model, name: str, prompt: Prompt, answer: str | int) -> int:
    """The one token of an answer.

    Raises
    ------
    TokenError
        If it is none or several; the message says which answer of which prompt.
    """
    if not isinstance(answer, str):
        if not 0 <= answer < model.cfg.d_vocab:
            raise TokenError(f"behaviour {name!r}: expected answers of id 0 to {model.cfg.d_vocab - 1}, found {answer}")
        return int(answer)
    ids = _going_on(model, answer)
    if len(ids) != 1:
        raise TokenError(
            f"behaviour {name!r}: expected the answer {answer!r} of {prompt.text!r} to be one token of this model, "
            f"found {len(ids)}"
        )
    return ids[0]


def insert(model: Model, prompt: ModelPrompt, trigger: str | Sequence[int]) -> Triggered:
    """Put a trigger into a prompt's slot, by text where it has one: what is run is what a user could type.

    Raises
    ------
    BehaviourError
        If the trigger is a text and the prompt has only ids.
    """
    if prompt.before is None or prompt.after is None:
        if isinstance(trigger, str):
            raise BehaviourError("trigger: expected ids for a prompt given as ids, found a text")
        own = tuple(int(i) for i in trigger)
        ids = prompt.ids[: prompt.n_before] + own + prompt.ids[prompt.n_before :]
        n_after = len(prompt.ids) - prompt.n_before
        return Triggered(ids, n_after, True, (prompt.n_before, prompt.n_before + len(own)))
    if isinstance(trigger, str):
        text, own = trigger, tuple(trigger_ids(model, prompt, trigger))
    else:
        own = tuple(int(i) for i in trigger)
        text = trigger_text(model, prompt, own) if own else ""
    ids = _encode(model, prompt.before + text + prompt.after, prompt.chat)
    n_before = min(_common(ids, prompt.ids), prompt.n_before)
    n_after = min(_common(ids[::-1], prompt.ids[::-1]), len(ids) - n_before, len(prompt.ids) - prompt.n_before)
    # What a search saw: the context's two texts encoded on their own, the free tokens between them.
    wanted = _encode(model, prompt.before, prompt.chat) + own + _going_on(model, prompt.after)
    return Triggered(ids, n_after, ids == wanted, (n_before, len(ids) - n_after))


def trigger_ids(model: Model, prompt: ModelPrompt, text: str) -> list[int]:
    """The ids of a trigger's text as it stands in a prompt's slot: at a text's beginning, or going on from one."""
    if prompt.before == "":
        return rendered_ids(model, text)
    return continued_ids(model, text)


def trigger_text(model: Model, prompt: ModelPrompt, trigger: Sequence[int]) -> str:
    """The text of a trigger's ids, as it stands in a prompt's slot."""
    prefix = 0 if prompt.chat else leading_bos(model)
    before = prompt.ids[prefix : prompt.n_before] if prompt.before is not None else ()
    return continued_text(model, before, trigger)


def _encode(model: Model, text: str, chat: bool = False) -> tuple[int, ...]:
    """Ids of raw text, with what the tokenizer puts before any, or of a rendered chat template."""
    if model.tokenizer is None and not text:
        return ()
    return tuple(rendered_ids(model, text) if chat else raw_ids(model, text))


def _going_on(model: Model, text: str) -> tuple[int, ...]:
    if model.tokenizer is None and not text:
        return ()
    return tuple(continued_ids(model, text))


def _common(a: Sequence[Any], b: Sequence[Any]) -> int:
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
