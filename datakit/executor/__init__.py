"""Where units of work run. A step hands over a function and its units; the executor gives the results back in order.

The number of workers, the machine and the executor never change a result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from datakit.errors import UserError


class Executor(Protocol):
    """What a step may ask of the place where it runs."""

    @property
    def workers(self) -> int: ...

    def map(self, function: Callable[[Any], Any], units: Iterable[Any], *, exclusive: bool = False) -> Iterator[Any]:
        """Yields function(unit) for each unit, in the order of the units. Function and units must be picklable.

        `exclusive` work (a model in process) gets all processors of a machine, one unit at a time. It never shares them, so
        that the number of workers cannot change the last bits of its results.
        """
        ...

    def close(self) -> None: ...


def make(name: str, *, workers: int | None = None, address: str | None = None) -> Executor:
    """The executor called `name`: "local" (worker processes on this machine) or "ray" (a Ray cluster at `address`)."""
    if name == "local":
        from datakit.executor.local import LocalExecutor

        if address is not None:
            raise UserError("An address was given for the local executor. Leave --address out, or use --executor ray.")
        return LocalExecutor(workers)
    if name == "ray":
        from datakit.executor.ray import RayExecutor

        return RayExecutor(workers, address)
    raise UserError(f"The executor '{name}' is not known. Allowed: local, ray.")
