"""Exceptions. Every message names the thing, what was expected and what was found."""

from __future__ import annotations


class SignflipError(Exception):
    """Base of all exceptions that signflip raises on purpose."""


class FileError(SignflipError, OSError):
    """A file could not be read or written."""


class CheckpointError(SignflipError, ValueError):
    """A checkpoint is malformed, incomplete, or says something that cannot be true."""


class UnsupportedModelError(SignflipError, ValueError):
    """The architecture is not one that the engine builds."""


class SiteError(SignflipError, KeyError):
    """A site's name is unknown, or the site cannot do what was asked of it."""

    def __str__(self) -> str:
        return Exception.__str__(self)


class TokenError(SignflipError, ValueError):
    """Token ids outside the vocabulary, or no tokens where some are needed."""


class ContextLengthError(SignflipError, ValueError):
    """A sequence is longer than the model's context."""


class TokenizerError(SignflipError, ValueError):
    """The tokenizer is missing, malformed, or refused a text."""


class SurveyError(SignflipError, ValueError):
    """A corpus or a survey file is unusable."""


class SearchError(SignflipError, ValueError):
    """A search cannot start or go on."""


class ArgumentError(SignflipError, ValueError):
    """An argument is out of its domain."""


class DeviceError(SignflipError, RuntimeError):
    """A device cannot be used here."""


class InternalError(SignflipError, RuntimeError):
    """A broken invariant of the engine: a bug."""
