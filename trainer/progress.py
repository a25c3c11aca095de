"""Who is told how a run gets on: a bar on a terminal, log lines elsewhere, TensorBoard where the config says so."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from datakit.errors import MissingExtra

log = logging.getLogger("trainer")

Advance = Callable[[int, dict[str, float]], None]

# What a line says of a step, where the step has it. A rate stands with its warm-up, the difficulty with its curriculum.
_WORDS = {
    "loss": "loss {:.3f}",
    "accuracy": "positive first in {:.0%} of rows",
    "kl": "KL {:.3f}",
    "masked": "masked {:.1%}",
    "difficulty": "difficulty {:.2f}",
    "gradient_norm": "gradient {:.2g}",
    "temperature": "temperature {:.3g}",
    "rate": "rate {:.1e}",
    "tokens_per_second": "{:,.0f} tokens/s",
    "utilization": "{:.0%} of the peak",
}


@contextmanager
def training_progress(
    console: Console, steps: int, done: int, every: int, stage: str = "training", board: str | None = None
) -> Iterator[Advance]:
    """Gives a function to call after each step with its number and statistics. A log line comes every so many steps.

    `board` is the folder of the stage's TensorBoard events; events of steps after `done` are dropped: these are done again.
    """
    with tensorboard(board, done) as write:
        if not console.is_terminal:

            def line(step: int, values: dict[str, float]) -> None:
                write(step, values)
                if step % every == 0 or step == steps:
                    log.info("%s, step %d of %d: %s", stage, step, steps, said(values))

            yield line
            return
        columns = (TextColumn(stage), BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("{task.description}"))
        with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True) as bar:
            task = bar.add_task("", total=steps, completed=done)

            def move(step: int, values: dict[str, float]) -> None:
                write(step, values)
                bar.update(task, completed=step, description=said(values))

            yield move


def said(values: dict[str, float]) -> str:
    return ", ".join(words.format(values[name]) for name, words in _WORDS.items() if name in values)


@contextmanager
def tensorboard(folder: str | None, done: int) -> Iterator[Advance]:
    """Gives a function that writes a step's statistics as TensorBoard events, or that does nothing where there is no folder."""
    if folder is None:
        yield lambda step, values: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtra("tensorboard: true", "tensorboard", "tensorboard") from error
    with SummaryWriter(folder, purge_step=done + 1) as writer:

        def write(step: int, values: dict[str, float]) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)

        yield write
