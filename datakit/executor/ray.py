"""A Ray cluster whose nodes read and write the same storage."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from datakit.errors import BuildError, MissingExtra, UserError


class RayExecutor:
    """Tasks on the Ray cluster at `address` (default: the cluster that RAY_ADDRESS names, else a new one on this machine)."""

    def __init__(self, workers: int | None = None, address: str | None = None) -> None:
        # Ray would copy the working folder to every worker and set up an environment there; the nodes have their own.
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            import ray
        except ImportError as error:
            raise MissingExtra("The ray executor", "ray", "ray") from error
        self._ray = ray
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UserError(
                f"No Ray cluster answers at '{address or 'the default address'}' ({error}). "
                "Start one with 'ray start --head', or leave --address out to start one here."
            ) from error
        self.workers = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))

    def map(self, function: Callable[[Any], Any], units: Iterable[Any], *, exclusive: bool = False) -> Iterator[Any]:
        if exclusive:
            # A model in process stays where the build was started: one process with all its processors, as with `local`.
            yield from (function(unit) for unit in units)
            return
        task = self._ray.remote(function)
        pending: deque[Any] = deque()
        try:
            for unit in units:
                pending.append(task.remote(unit))
                if len(pending) >= 2 * self.workers:
                    yield self._get(pending.popleft())
            while pending:
                yield self._get(pending.popleft())
        finally:
            for reference in pending:
                self._ray.cancel(reference)

    def _get(self, reference: Any) -> Any:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            # The cause is the error that the function raised there; Ray wraps it in a class made on the fly.
            raise error.cause from error
        except self._ray.exceptions.RayError as error:
            raise BuildError(f"A Ray worker was lost ({error}). Finished work is kept: run the same command again.") from error

    def close(self) -> None:
        self._ray.shutdown()
