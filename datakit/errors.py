"""The errors a person meets. Each is one sentence or two: what was found, where, what is allowed, what to do."""

from __future__ import annotations


class DatakitError(Exception):
    """A failure that was foreseen. Its text is the whole message; the command line prints no traceback for it."""

    exit_status = 1


class UserError(DatakitError):
    """The recipe, an argument or an input is wrong, and the person can mend it."""

    exit_status = 2


class MissingExtra(UserError):
    """A part that needs a package which is not installed."""

    def __init__(self, what: str, package: str, extra: str) -> None:
        super().__init__(
            f"{what} needs the package '{package}', which is not installed. Install it with: pip install 'datakit[{extra}]'"
        )


class BuildError(DatakitError):
    """The build could not go on. Finished work is kept, and the same command resumes it."""


class BudgetExceeded(BuildError):
    """The budget of the recipe is spent. A larger one resumes the build where it stopped."""
