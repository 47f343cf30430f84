"""Chat templates: found beside a model, and rendered as transformers renders them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from signflip.errors import ArgumentError, CheckpointError, FileError, TokenizerError


class _GenerationTag(jinja2.ext.Extension):
    """``{% generation %}``, by which templates mark the assistant's words for training: here it is only its body."""

    tags = {"generation"}  # noqa: RUF012 - the base class's own form

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML, which models were not trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@lru_cache(maxsize=32)
def _compile(template: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment.from_string(template)


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    prefill: str = "",
    *,
    bos_token: str | None = None,
    eos_token: str | None = None,
    **variables: Any,
) -> str:
    """Text of a conversation up to the assistant's turn, in a model's chat template.

    Parameters
    ----------
    template
        A Jinja template. It runs in a sandbox that can neither change what it is given nor reach beyond it.
    messages
        Each with ``role`` and ``content``.
    prefill
        Put after the generation prompt: the beginning of the assistant's answer.
    bos_token, eos_token
        Special tokens that the template may name; None is the empty string.
    **variables
        Anything else that the template reads.

    Returns
    -------
    str
        The text, special tokens written out in it.

    Raises
    ------
    ArgumentError
        If `messages` is no list or empty, `prefill` is no text, or a message lacks its role.
    TokenizerError
        If the template is malformed or refuses the messages; the message is the template's own.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, (str, bytes)):
        raise ArgumentError(f"messages: expected a list of mappings with a role and a content, found {messages!r}")
    if not isinstance(prefill, str):
        raise ArgumentError(f"prefill: expected text, found {prefill!r}")
    if not messages:
        raise ArgumentError("messages: expected at least one, found none")
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ArgumentError(f"messages: expected mappings with a role and a content, found {message!r}")
    try:
        text: str = _compile(template).render(
            messages=[dict(message) for message in messages],
            tools=None,
            documents=None,
            add_generation_prompt=True,
            bos_token=bos_token or "",
            eos_token=eos_token or "",
            **variables,
        )
    # What a template can run into: its own refusals, and wrong types inside its expressions.
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as err:
        raise TokenizerError(f"chat template: {err}") from err
    return text + prefill


def read_template(folder: Path, tokenizer_config: Mapping[str, Any]) -> tuple[str | None, Path | None]:
    """The chat template of a Hugging Face folder.

    Parameters
    ----------
    folder
        The folder; its ``chat_template.jinja`` wins, as in transformers.
    tokenizer_config
        Its ``tokenizer_config.json``, whose ``chat_template`` is a template or a list of named ones, of which the
        one named ``default`` is taken.

    Returns
    -------
    tuple
        The template, and the file it was read from where that is its own; None where there is none.

    Raises
    ------
    CheckpointError
        If the entry is neither.
    FileError
        If the file cannot be read.
    """
    path = folder / "chat_template.jinja"
    if path.exists():
        try:
            return path.read_text(encoding="utf-8"), path
        except (OSError, UnicodeDecodeError) as err:
            raise FileError(f"{path}: {err}") from err
    entry = tokenizer_config.get("chat_template")
    if entry is None or isinstance(entry, str):
        return entry, None
    if isinstance(entry, list) and all(isinstance(each, dict) for each in entry):
        named = {each.get("name"): each.get("template") for each in entry}
        default = named.get("default")
        if default is None or isinstance(default, str):
            return default, None
    raise CheckpointError("tokenizer_config.json, chat_template: expected a template or a list of named templates")
