"""Entry point: parse, run, and turn whatever happens into one exit code and at most one line on stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from signflip.cli.codes import BUG, FAILED, INTERRUPTED, PIPE_CLOSED
from signflip.cli.parser import build_parser
from signflip.errors import InternalError, SignflipError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments after the program's name; those of the process by default.

    Returns
    -------
    int
        0, 1, 2, 70 or 130, as the package's documentation of :mod:`signflip.cli` says; 141 where the reader of
        standard output went away.
    """
    args = build_parser().parse_args(argv)
    try:
        code: int = args.command(args)
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes stdout once more at exit; give it somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED, debug=args.debug)
    except (SignflipError, OSError) as error:
        return _fail(str(error), BUG if isinstance(error, InternalError) else FAILED, debug=args.debug)
    except Exception as error:  # noqa: BLE001 - the last line of defence; --debug shows all of it
        what = f"internal error ({type(error).__name__}: {error}); run again with --debug and please report it"
        return _fail(what, BUG, debug=args.debug)
    return code


def _fail(message: str, code: int, *, debug: bool) -> int:
    """Say what went wrong in one line, or with ``--debug`` let the exception in flight go on with its traceback."""
    if debug:
        raise  # noqa: PLE0704 - only called while an exception is handled
    print("signflip:", " ".join(message.split()), file=sys.stderr)
    return code
