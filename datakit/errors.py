"""The errors a person meets. Each is one sentence or two: what was found, where, what is allowed, what to do."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable


class DatakitError(Exception):
    """A failure that was foreseen. Its text is the whole message; the command line prints no traceback for it."""

    exit_status = 1


class UserError(DatakitError):
    """The recipe, an argument or an input is wrong, and the person can mend it."""

    exit_status = 2


class MissingExtra(UserError):
    """A part that needs a package which is not installed."""

    def __init__(self, what: str, package: str, extra: str) -> None:
        # An exception is pickled with its arguments; so this one arrives from a worker.
        super().__init__(what, package, extra)

    def __str__(self) -> str:
        what, package, extra = self.args
        return f"{what} needs the package '{package}', which is not installed. Install it with: pip install 'datakit[{extra}]'"


class BuildError(DatakitError):
    """The build could not go on. Finished work is kept, and the same command resumes it."""


class BudgetExceeded(BuildError):
    """The budget of the recipe is spent. A larger one resumes the build where it stopped."""


def run_command_line(app: Callable[[], object], program: str) -> None:
    """Runs a command line. A foreseen error is one sentence on stderr and an exit status: 2 for the person's mistakes, else 1."""
    try:
        app()
    except DatakitError as error:
        print(f"{program}: {error}", file=sys.stderr)  # noqa: T201
        raise SystemExit(error.exit_status) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(  # noqa: T201
            f"{program}: The disk is full ({error.filename or 'a temporary file'}). Finished work is kept; make room and run the "
            "same command again.",
            file=sys.stderr,
        )
        raise SystemExit(1) from error
