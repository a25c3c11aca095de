"""What both command lines print on, and where their logs go."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.logging import RichHandler


def console(*, stderr: bool = False) -> Console:
    """A console of the terminal's width; of 100 columns, which tables are made for, where there is no terminal to ask."""
    made = Console(stderr=stderr)
    return made if made.is_terminal or "COLUMNS" in os.environ else Console(stderr=stderr, width=100)


def show(out: Console, line: str) -> None:
    """Prints a line as it is: not folded, not coloured, brackets and all. Paths are such lines."""
    out.print(line, soft_wrap=True, highlight=False, markup=False)


@contextmanager
def resumable(err: Console) -> Iterator[None]:
    """Around what the same command goes on with where it was interrupted: says so."""
    try:
        yield
    except KeyboardInterrupt:
        err.print("Interrupted. Finished work is kept: the same command goes on from here.")
        raise


def set_up_logging(err: Console, names: tuple[str, ...], verbose: bool) -> None:
    """Sends logs to `err`: those of the packages `names` from INFO (DEBUG when verbose), all others from WARNING."""
    handler: logging.Handler = RichHandler(console=err, show_path=False) if err.is_terminal else logging.StreamHandler()
    if not err.is_terminal:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    # Some packages set levels of their own when they are imported; what they say below a warning is not for this person.
    handler.addFilter(lambda record: record.levelno >= logging.WARNING or record.name.partition(".")[0] in names)
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    for name in names:
        logging.getLogger(name).setLevel(logging.DEBUG if verbose else logging.INFO)
