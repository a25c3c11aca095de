"""`datakit filter`: filters and dedup on files, without a build. Each row comes out again, kept or rejected with its reason.

Steps, shards and the cache are those of a build: a second run with another threshold does only what changed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, get_args

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field, ValidationError, model_validator
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from datakit import storage
from datakit.assets import Assets
from datakit.cleaning import Vectors, clean
from datakit.errors import BuildError, UserError
from datakit.executor import Executor
from datakit.normalise import normalise_step
from datakit.original import ROW, common_schema, conform, originals, read_original_step
from datakit.progress import BuildWatcher
from datakit.recipe import (
    AnyDedup,
    AnyFilter,
    Budget,
    Columns,
    ConsistencyFilter,
    Constant,
    Encoder,
    Engines,
    FilesSource,
    JudgeFilter,
    LengthFilter,
    Model,
    Recipe,
    RoundTripFilter,
    SemanticDedup,
    Task,
    language_code,
)
from datakit.recipe_file import load_model, parse
from datakit.registry import Category, load
from datakit.schema import REJECTED
from datakit.step import Output, Step, run

KEPT, REJECTED_FILE, REPORT = "kept.parquet", "rejected.parquet", "report.json"
SHARD_ROWS = 65_536

# What stands for the positive of a text that is filtered alone; it is treated as a class label, which no filter reads.
_ALONE = "-"

log = logging.getLogger(__name__)


class FilterFile(Model):
    """The file of `datakit filter --filters`: these parts of a recipe, by the same names. A whole recipe will do as well."""

    filters: list[AnyFilter] = Field([])
    dedup: list[AnyDedup] = Field([])
    encoders: dict[str, Encoder] = Field({})
    engines: Engines = Field({})
    budget: Budget = Budget()
    seed: int = 0

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        if not self.filters and not self.dedup:
            raise ValueError("there is nothing to do: give 'filters', 'dedup', or both")
        used: list[tuple[str, str, Mapping[str, Any], str]] = []
        for number, item in enumerate(self.filters):
            if isinstance(item, RoundTripFilter | ConsistencyFilter):
                used.append((f"filters.{number}.encoder", item.encoder, self.encoders, "encoders"))
            if isinstance(item, JudgeFilter):
                used.append((f"filters.{number}.engine", item.engine, self.engines, "engines"))
        for number, dedup in enumerate(self.dedup):
            if isinstance(dedup, SemanticDedup):
                used.append((f"dedup.{number}.encoder", dedup.encoder, self.encoders, "encoders"))
        for place, name, known, where in used:
            if name not in known:
                raise ValueError(f"{place} is '{name}', and '{where}' has no such name (it has: {', '.join(known) or 'none'})")
        return self


class Rows(Model):
    """What is to be filtered: files, which of their columns are the texts, and what kind of rows they are."""

    files: list[str] = Field(min_length=1)
    query: str | None = None
    positive: str | None = None
    negatives: list[str] = Field([])
    text: str | None = None
    category: str = "rows"
    task: str | None = None
    language: str | None = None
    format: str | None = None
    delimiter: str | None = None
    header: bool = True

    def source(self) -> FilesSource:
        if self.text is not None:
            if self.query or self.positive or self.negatives:
                raise UserError("--text is for files of single texts; it goes without --query, --positive and --negative.")
            columns = Columns(query=self.text, positive=Constant(constant=_ALONE))
        else:
            query, positive = self.query or "query", self.positive or "positive"
            columns = Columns(query=query, positive=positive, negative=list(self.negatives) or None)
        given = {"path": self.files, "format": self.format, "delimiter": self.delimiter, "header": self.header}
        # Nothing stops at records that cannot be read: they are rejected rows.
        fixed = {"type": "files", "name": "file", "columns": columns, "max_bad_fraction": 1.0}
        try:
            return FilesSource.model_validate({**fixed, **given})
        except ValidationError as error:
            first = error.errors()[0]
            raise UserError(
                f"--{first['loc'][0]} is '{first['input']}'; allowed: {first['msg'].removeprefix('Input should be ')}."
            ) from error

    def entry(self) -> Category:
        """What the rows are: single texts, the task that was named, else that of the category in the registry, else retrieval."""
        known = load([]).get(self.category)
        tasks = get_args(Task.model_fields["task"].annotation)
        if self.task is not None and self.task not in tasks:
            raise UserError(f"--task is '{self.task}'. Allowed: {', '.join(tasks)}.")
        try:
            language_code(self.language or "en")
        except ValueError as error:
            raise UserError(f"--language: {error}.") from error
        if self.text is not None:
            return Category(key=self.category, family="recipe", description="", task="classification", in_batch_negatives=False)
        if self.task is None and known is not None:
            return known
        return Category(key=self.category, family="recipe", description="", task=self.task or "retrieval")


@dataclass(frozen=True)
class Filtered:
    """What came of it: the steps with what they did, and where the rows lie."""

    steps: list[tuple[Step, Output]]
    folder: str

    @property
    def rows_in(self) -> int:
        return self.steps[0][1].report.counts.created

    @property
    def kept(self) -> int:
        return self.steps[-1][1].report.counts.out

    @property
    def rejected(self) -> int:
        return sum(sum(output.report.counts.rejected.values()) for _, output in self.steps)


def load_filters(path: str) -> FilterFile | Recipe:
    """The file of filters: a FilterFile, or a whole recipe, of which filters and dedup count."""
    try:
        value, _ = parse(storage.read_bytes(path).decode("utf-8", "replace"), path)
    except OSError:
        value = None
    whole = isinstance(value, dict) and "categories" in value
    return load_model(path, Recipe) if whole else load_model(path, FilterFile)


def steps_of(rows: Rows, wanted: FilterFile | Recipe, cache: str) -> list[Step]:
    """The steps that read the rows, normalise, filter and deduplicate them; those that embed are among them."""
    if isinstance(wanted, FilterFile):
        for number, item in enumerate(wanted.filters):
            unknown = [name for name in item.categories if name != rows.category] if isinstance(item, LengthFilter) else []
            if unknown:
                raise UserError(
                    f"filters.{number}.categories names '{unknown[0]}', and the rows are of the category '{rows.category}'. "
                    "Give --category, or leave the name out."
                )
    assets = Assets(cache)
    source = rows.source()
    read = read_original_step("read", rows.category, rows.entry(), source, rows.language, SHARD_ROWS, assets)
    steps = [read, normalise_step((read,))]
    clean(wanted, steps[-1], steps, Vectors(wanted.encoders, steps, assets), assets)
    assets.save()
    return steps


def filter_file(
    rows: Rows,
    wanted: FilterFile | Recipe,
    output: str,
    cache: str,
    executor: Executor,
    watcher: BuildWatcher,
    force: bool = False,
) -> Filtered:
    """Filters the rows, and writes kept.parquet, rejected.parquet and report.json into the folder `output`."""
    taken = [name for name in (KEPT, REJECTED_FILE) if storage.exists(storage.join(output, name))]
    if taken and not force:
        raise UserError(f"'{output}' has a {taken[0]} already. Give another folder, or --force to write over it.")
    done = run_steps(steps_of(rows, wanted, cache), cache, executor, watcher)
    filtered = Filtered(
        [(step, each) for step, each in done if each.report.shards or each.report.rejected or step is done[0][0]], output
    )
    if filtered.rows_in != filtered.kept + filtered.rejected:
        raise BuildError(
            f"{filtered.rows_in:,} rows came in, {filtered.kept:,} are kept and {filtered.rejected:,} rejected: they do not "
            "add up. This is a defect of datakit; nothing was written."
        )
    _write(filtered, rows.source().mapping, _filled(wanted))
    return filtered


def run_steps(steps: Sequence[Step], cache: str, executor: Executor, watcher: BuildWatcher) -> list[tuple[Step, Output]]:
    done = []
    for number, step in enumerate(steps, start=1):
        watcher.begin(step.name, number, len(steps))
        output, seconds, cached = run(step, cache, executor, watcher)
        watcher.end(output.report, seconds, cached)
        done.append((step, output))
    unreadable = done[0][1].report.notes["unreadable"]
    if unreadable:
        log.warning("%d records cannot be read; they are among the rejected rows, with where they stand.", unreadable)
    return done


def _filled(wanted: FilterFile | Recipe) -> list[str]:
    """The columns that filters fill, and that are worth having beside the user's own."""
    kinds = [item.type for item in wanted.filters]
    language = ["language", "positive_language"] if "language" in kinds else []
    return [*language, *(["quality"] if any(kind.startswith("quality") or kind == "judge" for kind in kinds) else [])]


def _write(filtered: Filtered, columns: Columns, filled: Sequence[str]) -> None:
    read = filtered.steps[0][1]
    schema = common_schema(originals(read))
    paths = [storage.join(filtered.folder, name) for name in (KEPT, REJECTED_FILE)]
    with storage.atomic(paths[0]) as kept_file, storage.atomic(paths[1]) as rejected_file:
        writers: list[pq.ParquetWriter | None] = [None, None]
        for tables in _parts(filtered, schema, columns, filled):
            for place, (table, file) in enumerate(zip(tables, (kept_file, rejected_file), strict=True)):
                writer = writers[place] or pq.ParquetWriter(file, table.schema, compression="zstd")
                writers[place] = writer
                if table.num_rows:
                    writer.write_table(table, row_group_size=storage.ROW_GROUP_ROWS)
        if writers[0] is None:
            for file in (kept_file, rejected_file):
                pq.write_table(pa.table({"row_id": pa.array([], pa.string())}), file)
        for each in writers:
            if each is not None:
                each.close()
    storage.write_json(storage.join(filtered.folder, REPORT), report(filtered))


def _parts(filtered: Filtered, schema: pa.Schema, columns: Columns, filled: Sequence[str]) -> Iterator[tuple[pa.Table, pa.Table]]:
    """The kept and the rejected rows of each shard, in the order of the input."""
    read, last = filtered.steps[0][1], filtered.steps[-1][1]
    for number, (path, shard) in enumerate(zip(originals(read), last.shards, strict=True)):
        original = storage.read_table(path)
        ids = original.column(ROW).combine_chunks()
        records = conform(original, schema)
        kept = storage.read_table(shard)
        found = [table for _, output in filtered.steps for table in _rejected_of(output, number, ids, output is read)]
        rejected = pa.concat_tables([REJECTED.empty_table(), *found]).combine_chunks()
        rejected = rejected.take(pc.sort_indices(pc.index_in(rejected.column("row_id"), ids)))
        if kept.num_rows + rejected.num_rows != len(ids):
            raise BuildError(
                f"{len(ids)} rows of '{path}' became {kept.num_rows} kept and {rejected.num_rows} rejected. A defect."
            )
        said = REJECTED.names[REJECTED.get_field_index("step") :]
        yield (
            _joined(records, ids, kept, columns, ["row_id", *filled]),
            _joined(records, ids, rejected, columns, ["row_id", *filled, *said]),
        )


def _rejected_of(output: Output, number: int, ids: pa.Array, read: bool) -> Iterator[pa.Table]:
    """What a step rejected of shard `number`. The step that reads has a unit for each file, all others one for each shard."""
    for name, path in zip(output.report.rejected, output.rejected, strict=True):
        if read:
            table = storage.read_table(path)
            yield table.filter(pc.is_in(table.column("row_id"), value_set=ids))
        elif int(name.split("/")[1]) == number:
            yield storage.read_table(path)


def _joined(records: pa.Table, ids: pa.Array, rows: pa.Table, columns: Columns, added: Sequence[str]) -> pa.Table:
    """The records of some rows, with their texts as they are now, and columns of the rows added.

    Negatives come in one column `negatives`, in place of those that they were read from.
    """
    table = records.take(pc.index_in(rows.column("row_id"), ids))
    pairs = {"query": columns.query, "positive": columns.positive}
    # A record that could not be read has no text, and keeps what it had.
    for side, column in pairs.items():
        if isinstance(column, str) and column in table.column_names:
            at = table.schema.get_field_index(column)
            before = table.column(column)
            now = rows.column(side)
            if pa.types.is_string(before.type) or pa.types.is_large_string(before.type):
                now = pc.coalesce(now, before.cast(pa.string()))
            table = table.set_column(at, column, now.cast(pa.string()))
        elif not isinstance(column, Constant):
            table = table.append_column(_free(side, table), rows.column(side))
    if columns.negative is not None:
        names = columns.negative if isinstance(columns.negative, list) else [columns.negative]
        table = table.drop([name for name in names if isinstance(name, str) and name in table.column_names])
        texts = pl.Series(rows.column("negatives").combine_chunks()).list.eval(pl.element().struct.field("text"))
        table = table.append_column(_free("negatives", table), texts.to_arrow().cast(pa.list_(pa.string())))
    for name in added:
        table = table.append_column(_free(name, table), rows.column(name))
    return table.drop([ROW])


def _free(name: str, table: pa.Table) -> str:
    """A name that no column has."""
    while name in table.column_names:
        name = f"datakit_{name}"
    return name


def report(filtered: Filtered) -> dict[str, Any]:
    """What report.json holds: rows in, kept and rejected, and the same for each step."""
    steps = [
        {
            "step": step.name,
            "rows_in": output.report.counts.rows_in + output.report.counts.created,
            "kept": output.report.counts.out,
            "rejected": output.report.counts.rejected,
            "notes": output.report.notes,
        }
        for step, output in filtered.steps
    ]
    return {"rows_in": filtered.rows_in, "kept": filtered.kept, "rejected": filtered.rejected, "steps": steps}


def funnel(filtered: Filtered) -> RenderableType:
    """The rows that each step got, kept and rejected, with the reasons below."""
    width = max(len(step.name) for step, _ in filtered.steps)
    lines: list[RenderableType] = [Text(f"{'':{width}}{'rows in':>12}{'kept':>12}{'rejected':>12}", style="dim")]
    for step, output in filtered.steps:
        counts = output.report.counts
        lost = sum(counts.rejected.values())
        numbers = f"{counts.rows_in + counts.created:>12,}{counts.out:>12,}{lost:>12,}"
        lines.append(Text.assemble((f"{step.name:{width}}", "bold"), numbers))
        said = [
            f"{reason} {number:,}" for reason, number in sorted(counts.rejected.items(), key=lambda each: (-each[1], each[0]))
        ]
        said += [f"masked: {name} {number:,}" for name, number in output.report.notes.get("masked", {}).items()]
        if said:
            lines.append(Padding(Text(", ".join(said), style="dim"), (0, 0, 0, 4)))
    share = f" ({filtered.kept / filtered.rows_in:.1%})" if filtered.rows_in else ""
    lines += [
        Text(),
        Text(f"{filtered.rows_in:,} rows: {filtered.kept:,} kept{share}, {filtered.rejected:,} rejected."),
        Text(f"{storage.join(filtered.folder, KEPT)} {storage.join(filtered.folder, REJECTED_FILE)}", overflow="fold"),
    ]
    return Group(*lines)
