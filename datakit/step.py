"""What a step is, its key, its cache, and how its output is committed.

A step is a pure function from the outputs of other steps and its parameters to an output. It does not know where it runs.
Its output lies in `<cache>/steps/<name>-<key>/`: one folder for each unit of work, and `step.json`, which is written last and
makes the output whole. A unit is finished when its `unit.json` is there, so a build that was killed goes on at the unit. Every
file appears whole or not at all (storage.atomic), and equal inputs give equal bytes: a unit that is done twice does no harm.
Markers, unlike a renamed folder, hold on object stores too.
"""

from __future__ import annotations

import functools
import json
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa
from pydantic import BaseModel

from datakit import storage
from datakit.distributions import canonical, installed
from datakit.errors import BuildError
from datakit.executor import Executor
from datakit.recipe import deciding
from datakit.schema import EXAMPLE, REJECTED, digest, rejected_rows


class Counts(BaseModel):
    """Rows of one step, as a balance: rows_in + created = out + rejected + not_sampled."""

    rows_in: int = 0
    created: int = 0
    out: int = 0
    rejected: dict[str, int] = {}
    not_sampled: int = 0

    def balanced(self) -> bool:
        return self.rows_in + self.created == self.out + sum(self.rejected.values()) + self.not_sampled

    def plus(self, other: Counts) -> Counts:
        return Counts(
            rows_in=self.rows_in + other.rows_in,
            created=self.created + other.created,
            out=self.out + other.out,
            rejected=dict(sorted((Counter(self.rejected) + Counter(other.rejected)).items())),
            not_sampled=self.not_sampled + other.not_sampled,
        )


@dataclass(frozen=True)
class Step:
    """One step of a build. `work` does it; everything else decides its key.

    `inputs` are steps whose rows flow through this one; `side` are steps that it only looks at (vectors, documents).
    `assets` maps the names of files and models from outside to their digests; `packages` are those whose version decides the
    output. `parameters` count as a whole, except the fields that recipe.py marks as not deciding the output.
    """

    name: str
    version: int
    work: Callable[[Work], None]
    parameters: BaseModel
    inputs: tuple[Step, ...] = ()
    side: tuple[Step, ...] = ()
    assets: Mapping[str, str] = field(default_factory=dict)
    packages: tuple[str, ...] = ()

    @functools.cached_property
    def key(self) -> str:
        identity = {
            "name": self.name,
            "version": self.version,
            "parameters": deciding(self.parameters),
            "inputs": [step.key for step in self.inputs],
            "side": [step.key for step in self.side],
            "assets": dict(sorted(self.assets.items())),
            "packages": {name: package_version(name) for name in sorted(self.packages)},
        }
        return digest(json.dumps(identity, sort_keys=True, ensure_ascii=False))

    def folder(self, cache: str) -> str:
        return storage.join(cache, "steps", f"{self.name}-{self.key}")


@functools.cache
def package_version(name: str) -> str:
    """The installed version of a distribution; of the interpreter for "python"; "absent" where it is not installed."""
    if name == "python":
        return platform.python_version()
    found = installed().get(canonical(name))
    return found.version if found else "absent"


class Report(BaseModel):
    """step.json: what a finished step has to say. `files` are those of each unit, in order, relative to the step's folder."""

    name: str
    key: str
    version: int
    counts: Counts
    categories: dict[str, Counts]
    shards: list[str]
    shard_rows: list[int]
    rejected: list[str]
    not_sampled: list[str]
    notes: dict[str, Any] = {}


@dataclass(frozen=True)
class Output:
    """A finished step, as the steps after it see it."""

    folder: str
    report: Report

    @property
    def shards(self) -> list[str]:
        """Paths of the Parquet files with the rows that go on, in order."""
        return [storage.join(self.folder, name) for name in self.report.shards]

    def part(self, name: str) -> list[str]:
        """The shards of one part: "rows" before the split, "train" or "validation" after it."""
        return [shard for shard in self.shards if part_of(shard) == name]

    @property
    def rejected(self) -> list[str]:
        return [storage.join(self.folder, name) for name in self.report.rejected]

    @property
    def not_sampled(self) -> list[str]:
        return [storage.join(self.folder, name) for name in self.report.not_sampled]


class Watcher(Protocol):
    """Who is told how a step gets on."""

    def units(self, done: int, total: int, rows: int, phase: str) -> None: ...


@dataclass(frozen=True)
class _Unit:
    """A unit of work with its place, so that it can travel to a worker. `function(unit, folder)` returns what unit.json keeps."""

    function: Callable[[Any, str], dict[str, Any]]
    unit: Any
    folder: str


def _run_unit(task: _Unit) -> dict[str, Any]:
    result = task.function(task.unit, task.folder)
    storage.write_json(storage.join(task.folder, "unit.json"), result)
    return result


class Work:
    """What a step is given to do its work: its parameters, the outputs it reads, and where to put its own."""

    def __init__(self, step: Step, cache: str, executor: Executor, watcher: Watcher) -> None:
        self.step = step
        self.cache = cache
        self.folder = step.folder(cache)
        self.inputs = [load(source, cache) for source in step.inputs]
        self.side = [load(source, cache) for source in step.side]
        self.executor = executor
        self.watcher = watcher
        self.notes: dict[str, Any] = {}

    @property
    def shards(self) -> list[str]:
        """The shards of all row inputs, in order."""
        return [shard for source in self.inputs for shard in source.shards]

    def map(
        self,
        phase: str,
        function: Callable[[Any, str], dict[str, Any]],
        units: Sequence[Any],
        *,
        exclusive: bool = False,
    ) -> list[dict[str, Any]]:
        """Runs function(unit, folder) for each unit, and returns what each returned, in order.

        The function writes its files into `folder`, which is its own, and returns a small dict for `unit.json`. Units that an
        earlier run finished are not run again. A "rows" entry in the dict feeds the progress display.
        """
        results: list[dict[str, Any] | None] = []
        tasks = []
        for number, unit in enumerate(units):
            folder = storage.join(self.folder, phase, f"{number:05d}")
            marker = storage.join(folder, "unit.json")
            done = storage.read_json(marker) if storage.exists(marker) else None
            results.append(done)
            if done is None:
                tasks.append((number, _Unit(function, unit, folder)))
        finished = len(results) - len(tasks)
        rows = sum(int(result.get("rows", 0)) for result in results if result)
        self.watcher.units(finished, len(results), rows, phase)
        outcomes = self.executor.map(_run_unit, [task for _, task in tasks], exclusive=exclusive)
        for (number, _), outcome in zip(tasks, outcomes, strict=True):
            results[number] = outcome
            finished += 1
            rows += int(outcome.get("rows", 0))
            self.watcher.units(finished, len(results), rows, phase)
        return [result for result in results if result is not None]

    def files(self, phase: str, number: int, name: str) -> str:
        """The path of a file that unit `number` of a phase has written."""
        return storage.join(self.folder, phase, f"{number:05d}", name)

    def finish(
        self,
        phase: str | None,
        results: Iterable[Mapping[str, Any]] = (),
        also: Mapping[str, Iterable[Mapping[str, Any]]] | None = None,
    ) -> None:
        """Commits the step. `results` are what `write_rows` returned for the units of `phase`; none for a step without rows.

        `also` are those of other phases that kept, rejected or left out rows; they come before those of `phase`.
        """
        parts = [(name, number, result) for name, found in (also or {}).items() for number, result in enumerate(found)]
        parts += [(str(phase), number, result) for number, result in enumerate(results)]
        total, categories = Counts(), dict[str, Counts]()
        shards, shard_rows, rejected, not_sampled = list[str](), list[int](), list[str](), list[str]()
        for name, number, result in parts:
            at = functools.partial(storage.join, name, f"{number:05d}")
            for category, counts in result["categories"].items():
                categories[category] = categories.get(category, Counts()).plus(Counts(**counts))
                total = total.plus(Counts(**counts))
            shards.extend(at(file) for file, _ in result["shards"])
            shard_rows.extend(rows for _, rows in result["shards"])
            rejected.extend(at(file) for file in result["rejected"])
            not_sampled.extend(at(file) for file in result["not_sampled"])
        flowed_in = sum(source.report.counts.out for source in self.inputs)
        if phase is not None and (total.rows_in != flowed_in or not total.balanced()):
            raise BuildError(
                f"The step '{self.step.name}' does not balance: {flowed_in} rows were given to it, and it reports {total}. "
                "This is a defect of datakit; no build was published."
            )
        report = Report(
            name=self.step.name,
            key=self.step.key,
            version=self.step.version,
            counts=total,
            categories=dict(sorted(categories.items())),
            shards=shards,
            shard_rows=shard_rows,
            rejected=rejected,
            not_sampled=not_sampled,
            notes=self.notes,
        )
        storage.write_json(storage.join(self.folder, "step.json"), report.model_dump())


def load(step: Step, cache: str) -> Output:
    """The output of a finished step."""
    folder = step.folder(cache)
    return Output(folder, Report.model_validate(storage.read_json(storage.join(folder, "step.json"))))


def is_cached(step: Step, cache: str) -> bool:
    return storage.exists(storage.join(step.folder(cache), "step.json"))


def run(step: Step, cache: str, executor: Executor, watcher: Watcher) -> tuple[Output, float, bool]:
    """The output of a step, the seconds that it took, and whether it came from the cache."""
    if is_cached(step, cache):
        return load(step, cache), 0.0, True
    started = time.monotonic()
    step.work(Work(step, cache, executor, watcher))
    return load(step, cache), time.monotonic() - started, False


class RowWriter:
    """Writes what a unit makes of its rows into `folder`, table by table, so that a unit may be larger than memory.

    Each kept table makes one file. `finish` checks the balance of each category and returns the counts for `Work.finish`.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._shards: list[tuple[str, int]] = []
        self._files: dict[str, list[str]] = {"rejected": [], "not_sampled": []}
        self._out: Counter[str] = Counter()
        self._left_out: Counter[str] = Counter()
        self._reasons: dict[str, Counter[str]] = {}

    def keep(self, part: str, table: pa.Table) -> None:
        """Rows that go on, in the EXAMPLE schema. The part is "rows" before the split, "train" or "validation" after it."""
        name = f"{part}-{len(self._shards):03d}.parquet"
        storage.write_table(storage.join(self._folder, name), table.select(EXAMPLE.names).cast(EXAMPLE))
        self._shards.append((name, table.num_rows))
        self._out.update(count_categories(table))

    def reject(self, table: pa.Table) -> None:
        """Rows in the REJECTED schema."""
        if table.num_rows:
            self._write("rejected", table.select(REJECTED.names).cast(REJECTED))
            for category, reason in zip(table.column("category").to_pylist(), table.column("reason").to_pylist(), strict=True):
                self._reasons.setdefault(category, Counter())[reason] += 1

    def leave_out(self, table: pa.Table) -> None:
        """Rows that were not sampled; only their `row_id` and `category` are kept."""
        if table.num_rows:
            self._write("not_sampled", table.select(["row_id", "category"]))
            self._left_out.update(count_categories(table))

    def _write(self, kind: str, table: pa.Table) -> None:
        number = len(self._files[kind])
        name = f"{kind}-{number:03d}.parquet" if number else f"{kind}.parquet"
        storage.write_table(storage.join(self._folder, name), table)
        self._files[kind].append(name)

    def finish(self, *, rows_in: Mapping[str, int] | None = None, created: Mapping[str, int] | None = None) -> dict[str, Any]:
        """The counts of the unit; `rows_in` and `created` are counts by category."""
        rows_in, created = rows_in or {}, created or {}
        categories = {}
        for category in sorted({*rows_in, *created, *self._out, *self._reasons, *self._left_out}):
            counts = Counts(
                rows_in=rows_in.get(category, 0),
                created=created.get(category, 0),
                out=self._out[category],
                rejected=dict(sorted(self._reasons.get(category, Counter()).items())),
                not_sampled=self._left_out[category],
            )
            if not counts.balanced():
                raise BuildError(
                    f"Rows of the category '{category}' do not balance in '{self._folder}': {counts}. This is a defect."
                )
            categories[category] = counts.model_dump()
        return {"rows": sum(self._out.values()), "shards": self._shards, "categories": categories, **self._files}


def write_rows(
    folder: str,
    *,
    kept: Sequence[tuple[str, pa.Table]],
    rejected: pa.Table | None = None,
    not_sampled: pa.Table | None = None,
    rows_in: Mapping[str, int] | None = None,
    created: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """What `RowWriter` does, for a unit whose tables are all in memory. `kept` are (part, table), one file each."""
    writer = RowWriter(folder)
    for part, table in kept:
        writer.keep(part, table)
    if rejected is not None:
        writer.reject(rejected)
    if not_sampled is not None:
        writer.leave_out(not_sampled)
    return writer.finish(rows_in=rows_in, created=created)


def part_of(shard: str) -> str:
    """The part that a shard belongs to; its file is called `<part>-<number>.parquet`."""
    return shard.rsplit("/", 1)[-1].rsplit("-", 1)[0]


def count_categories(table: pa.Table) -> dict[str, int]:
    counts = table.column("category").value_counts()
    return {item["values"]: item["counts"] for item in counts.to_pylist()}


# A shard-wise function: the rows of one shard and the step's parameters to the reasons (REASONS) against some of them.
Judge = Callable[[pa.Table, Any], pa.Table]


@dataclass(frozen=True)
class _Judged:
    judge: Judge
    parameters: Any
    name: str

    def __call__(self, shard: str, folder: str) -> dict[str, Any]:
        table = storage.read_table(shard)
        kept, rejected = split_rejected(table, self.name, self.judge(table, self.parameters))
        return write_rows(folder, kept=[(part_of(shard), kept)], rejected=rejected, rows_in=count_categories(table))


def split_rejected(table: pa.Table, step: str, said: pa.Table) -> tuple[pa.Table, pa.Table]:
    """The rows that nothing was said against, and the others in the REJECTED schema. At most one reason is given for a row."""
    rows = said.column("row").to_pylist()
    if len(set(rows)) != len(rows):
        raise BuildError(f"The step '{step}' gave two reasons for one row. This is a defect of that filter.")
    keep = [True] * table.num_rows
    for row in rows:
        keep[row] = False
    return table.filter(pa.array(keep, pa.bool_())), rejected_rows(table, step, said)


def judged(work: Work, judge: Judge, *, exclusive: bool = False) -> None:
    """The work of a filter: `judge` is a pure function of one shard and the parameters, and is mapped over the shards."""
    function = _Judged(judge, work.step.parameters, work.step.name)
    work.finish("rows", work.map("rows", function, work.shards, exclusive=exclusive))
