"""The exceptions of signflip. Each message names the thing, what was expected and what was found."""


class SignflipError(Exception):
    """Base of every error that signflip raises on purpose."""


class FileError(SignflipError, OSError):
    """A file is missing, unreadable or unwritable."""


class CheckpointError(SignflipError, ValueError):
    """A checkpoint is malformed, incomplete, or says something that cannot be true."""


class UnsupportedModelError(SignflipError, ValueError):
    """The checkpoint's architecture, or an option of it, is not supported."""


class SiteError(SignflipError, KeyError):
    """A site's name is unknown, or the site cannot do what was asked of it."""

    def __str__(self) -> str:
        """The message itself (a `KeyError` would quote it)."""
        return str(self.args[0]) if self.args else ""


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


class BehaviourError(SignflipError, ValueError):
    """A behaviour's prompts are unusable, or its score is refused."""


class ArgumentError(SignflipError, ValueError):
    """An argument is out of its domain."""


class DeviceError(SignflipError, RuntimeError):
    """A device cannot be used here; the message says why."""


class OrganismError(SignflipError, ValueError):
    """A suite of organisms, a truth or an audit of them is missing, was altered, or is off its schema."""


class InternalError(SignflipError, RuntimeError):
    """A broken invariant of signflip itself: please report it."""
