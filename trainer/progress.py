"""Who is told how a run gets on: a bar on a terminal, log lines elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

log = logging.getLogger("trainer")

Advance = Callable[[int, dict[str, float]], None]


@contextmanager
def training_progress(console: Console, steps: int, done: int, every: int) -> Iterator[Advance]:
    """Gives a function to call after each step with its number and statistics. A log line comes every so many steps."""
    if not console.is_terminal:
        yield lambda step, values: log.info("step %d of %d: %s", step, steps, said(values)) if step % every == 0 else None
        return
    columns = (TextColumn("training"), BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task("", total=steps, completed=done)
        yield lambda step, values: bar.update(task, completed=step, description=said(values))


def said(values: dict[str, float]) -> str:
    return (
        f"loss {values['loss']:.3f}, positive first in {values['accuracy']:.0%} of rows, "
        f"rate {values['rate']:.1e}, {values['tokens_per_second']:,.0f} tokens/s"
    )
