"""Who is told how a build gets on: a person at a terminal, a log, or nobody."""

from __future__ import annotations


class Quiet:
    """Tells nobody."""

    def units(self, done: int, total: int, rows: int, phase: str) -> None:
        return


QUIET = Quiet()
