"""Worker processes on this machine."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from datakit.errors import BuildError, UserError


def _die_with_parent() -> None:
    """Ends this worker when its parent is gone, so that a killed build leaves nobody behind who still writes."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class LocalExecutor:
    """`workers` processes (default: one for each processor). With one worker everything runs in this process."""

    def __init__(self, workers: int | None = None) -> None:
        if workers is not None and workers < 1:
            raise UserError(f"The number of workers is {workers}; it must be at least 1.")
        self.workers = workers or len(os.sched_getaffinity(0))
        self._pool: ProcessPoolExecutor | None = None

    def map(self, function: Callable[[Any], Any], units: Iterable[Any], *, exclusive: bool = False) -> Iterator[Any]:
        if exclusive or self.workers == 1:
            yield from (function(unit) for unit in units)
            return
        if self._pool is None:
            # spawn: forking a process that has run Arrow or torch threads can hang.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.workers, mp_context=context, initializer=_die_with_parent)
        pending: deque[Future[Any]] = deque()
        try:
            for unit in units:
                pending.append(self._pool.submit(function, unit))
                # Two units for each worker keep everybody busy; more would only hold memory.
                if len(pending) >= 2 * self.workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool as error:
            self._pool = None
            raise BuildError(
                "A worker process ended abruptly. Either memory ran out: finished work is kept, so run the same command again, "
                "with fewer workers (--workers 1) if it happens again. Or a script of yours called datakit.build without "
                "`if __name__ == '__main__':` around it, which worker processes need."
            ) from error
        finally:
            for future in pending:
                future.cancel()

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
