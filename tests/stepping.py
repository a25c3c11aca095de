"""Running steps in tests."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from datakit import storage
from datakit.executor.local import LocalExecutor
from datakit.progress import QUIET
from datakit.recipe import Model
from datakit.schema import EXAMPLE, digest
from datakit.step import Output, Step, Work, count_categories, run, write_rows


class Given(Model):
    contents: list[str]


def rows_step(tables: Sequence[pa.Table], part: str = "rows") -> Step:
    """A step whose output is the given tables (EXAMPLE schema), one shard each."""
    shards = [table.select(EXAMPLE.names).cast(EXAMPLE) for table in tables]

    def work(work: Work) -> None:
        def write(number: int, folder: str) -> dict[str, Any]:
            return write_rows(folder, kept=[(part, shards[number])], created=count_categories(shards[number]))

        work.finish("rows", [_mark(work, number, write) for number in range(len(shards))])

    contents = [digest(str(table.to_pylist())) for table in shards]
    return Step("given", 1, work, Given(contents=[*contents, part]))


def _mark(work: Work, number: int, write: Any) -> dict[str, Any]:
    folder = storage.join(work.folder, "rows", f"{number:05d}")
    result: dict[str, Any] = write(number, folder)
    storage.write_json(storage.join(folder, "unit.json"), result)
    return result


def run_step(step: Step, cache: str, workers: int = 1) -> Output:
    """Runs a step and all that it needs."""
    for needed in (*step.inputs, *step.side):
        run_step(needed, cache, workers)
    return run(step, cache, executor(workers), QUIET)[0]


@functools.cache
def executor(workers: int) -> LocalExecutor:
    """Kept to the end, as its processes take longer to start than most steps take to run."""
    return LocalExecutor(workers)


def read(paths: Sequence[str]) -> pa.Table:
    """All rows of some Parquet files."""
    return pa.concat_tables([storage.read_table(path) for path in paths]) if paths else EXAMPLE.empty_table()
