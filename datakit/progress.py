"""Who is told how a build gets on: a person at a terminal, a log, or nobody."""

from __future__ import annotations

import logging
import time
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from datakit.step import Report, Watcher

log = logging.getLogger("datakit")


class BuildWatcher(Watcher, Protocol):
    """Told of a build's steps, one after the other."""

    def begin(self, name: str, number: int, of: int) -> None: ...

    def end(self, report: Report, seconds: float, cached: bool) -> None: ...


def line(report: Report, seconds: float, cached: bool) -> str:
    """One step in one line: rows in, out and rejected by reason, seconds, and whether it came from the cache."""
    counts = report.counts
    parts = []
    if "documents" in report.notes:  # which are no rows yet
        parts.append(f"{report.notes['documents']:,} documents")
    elif report.shards or report.rejected or counts.rows_in:
        parts.append(f"{counts.rows_in + counts.created:,} -> {counts.out:,} rows")
    parts += [f"{number:,} {reason}" for reason, number in counts.rejected.items()]
    if counts.not_sampled:
        parts.append(f"{counts.not_sampled:,} not sampled")
    return f"{report.name}: {', '.join(parts) or 'done'} ({'cached' if cached else f'{seconds:.1f} s'})"


class Quiet:
    """Tells nobody."""

    def begin(self, name: str, number: int, of: int) -> None:
        return

    def units(self, done: int, total: int, rows: int, phase: str) -> None:
        return

    def end(self, report: Report, seconds: float, cached: bool) -> None:
        return


class Logged:
    """One log line for a step, and one a minute within a long one."""

    def __init__(self) -> None:
        self._place = ""
        self._name = ""
        self._last = 0.0

    def begin(self, name: str, number: int, of: int) -> None:
        self._place, self._name, self._last = f"[{number}/{of}]", name, time.monotonic()

    def units(self, done: int, total: int, rows: int, phase: str) -> None:
        now = time.monotonic()
        if now - self._last >= 60:
            self._last = now
            log.info("%s %s: %s %d of %d", self._place, self._name, phase, done, total)

    def end(self, report: Report, seconds: float, cached: bool) -> None:
        log.info("%s %s", self._place, line(report, seconds, cached))


class Terminal:
    """A bar for the step that runs, with rows/s and time left; a line for each that is done."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[speed]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._place = ""
        self._name = ""
        self._phase = ""
        self._phase_began = (0.0, 0)

    def begin(self, name: str, number: int, of: int) -> None:
        self._place, self._name, self._phase = f"[{number}/{of}]", name, ""
        self._progress.start()
        self._task = self._progress.add_task(f"{self._place} {name}", total=None, speed="")

    def units(self, done: int, total: int, rows: int, phase: str) -> None:
        if self._task is None:
            return
        now = time.monotonic()
        if phase != self._phase:
            self._phase, self._phase_began = phase, (now, rows)
            self._progress.reset(self._task, description=f"{self._place} {self._name}: {phase}", speed="")
        began, before = self._phase_began
        speed = f"{(rows - before) / (now - began):,.0f} rows/s" if rows > before and now > began else ""
        self._progress.update(self._task, completed=done, total=total, speed=speed)

    def end(self, report: Report, seconds: float, cached: bool) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None
        self._progress.console.print(f"[dim]{self._place}[/dim] {line(report, seconds, cached)}", highlight=False)

    def close(self) -> None:
        self._progress.stop()


QUIET = Quiet()


def watcher(console: Console) -> Terminal | Logged:
    """A bar where somebody looks at a terminal; log lines elsewhere."""
    return Terminal(console) if console.is_terminal else Logged()
