"""The rows that a quality model is trained on, or scores: those of a build, or of Parquet and JSONL files."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence

import polars as pl
import pyarrow as pa
from polars.exceptions import PolarsError

from datakit.errors import UserError
from datakit.filters.sides import Array, is_written
from datakit.opened import Build, open_build
from datakit.schema import EXAMPLE, digest, text_id
from datakit.sources.lines import json_fault

ROWS = pa.schema(
    [
        EXAMPLE.field(name)
        for name in (
            "row_id",
            "document_id",
            "category",
            "task",
            "label",
            "in_batch_negatives",
            "score",
            "query",
            "positive",
            "provenance",
        )
    ]
)


def rows(paths: Sequence[str], query: str = "query", positive: str = "positive") -> pa.Table:
    """The good rows (ROWS) of a build (its train and validation), or all rows of some files."""
    build = as_build(paths)
    if build is not None:
        return as_rows(pl.concat([build.train.collect(), build.validation.collect()]))
    return as_rows(pl.concat([frame(path, query, positive) for path in expanded(paths)], how="diagonal_relaxed"))


def as_build(paths: Sequence[str]) -> Build | None:
    """The build that a single path names, if it is a folder."""
    return open_build(paths[0]) if len(paths) == 1 and os.path.isdir(os.path.expanduser(paths[0])) else None


def expanded(paths: Sequence[str]) -> list[str]:
    """The files that paths and patterns name. Nothing found is a UserError."""
    found = []
    for path in paths:
        here = os.path.expanduser(path)
        files = [here] if os.path.isfile(here) else sorted(glob.glob(here))
        if not files:
            raise UserError(f"'{path}' is no file, and no pattern that any file fits.")
        found += files
    return found


def frame(path: str, query: str, positive: str) -> pl.DataFrame:
    """A Parquet or JSONL file with its texts as `query` and `positive`; other columns stay as they are."""
    try:
        if path.endswith(".parquet"):
            table = pl.read_parquet(path, hive_partitioning=False, glob=False)
        elif path.endswith((".jsonl", ".ndjson")):
            table = pl.read_ndjson(path, infer_schema_length=None)
        else:
            raise UserError(f"'{path}' is neither .parquet nor .jsonl. Turn it into one of these.")
    except (PolarsError, OSError) as error:
        fault = json_fault(path) if isinstance(error, PolarsError) and not path.endswith(".parquet") else None
        raise UserError(fault or f"'{path}' cannot be read: {next(iter(str(error).splitlines()), '')}") from error
    for name, option in ((query, "--query"), (positive, "--positive")):
        if name not in table.columns:
            raise UserError(
                f"'{path}' has no column '{name}'. It has: {', '.join(table.columns)}. Name the right one with {option}."
            )
        if table.schema[name] != pl.String:
            raise UserError(f"The column '{name}' of '{path}' holds {table.schema[name]}, and texts are needed.")
    return table.with_columns(query=pl.col(query), positive=pl.col(positive))


def judged(build: Build, criterion: str, good: float, poor: float) -> tuple[pa.Table, Array]:
    """The rows (ROWS) that a judge scored at least `good` or at most `poor`, and which of them are poor."""
    scored = build.judged().filter(pl.col("criterion") == criterion, pl.col("score").is_not_null()).collect()
    if scored.is_empty():
        raise UserError(
            f"The build '{build.path}' has no rows that a judge scored for {criterion}. Give the recipe a filter "
            f"{{type: judge, criterion: {criterion}, ...}} and build again, or train with --labels corrupted."
        )
    scored = scored.filter((pl.col("score") >= good) | (pl.col("score") <= poor))
    known = pl.concat([each.select(ROWS.names).collect() for each in (build.train, build.validation, build.rejected)])
    others = known.drop("category", "query", "positive").unique("row_id", keep="first", maintain_order=True)
    found = scored.join(others, on="row_id", how="left", suffix="_row", maintain_order="left").with_columns(
        score_=pl.col("score")
    )
    return as_rows(found.drop("score").with_columns(score=pl.col("score_row"))), (found["score_"] <= poor).to_numpy()


def written(build: Build) -> tuple[pa.Table, Array, Array]:
    """The rows (ROWS) that a model wrote and the build kept or rejected: which are poor, and for what reason ("kept" for none).

    Left out are rejections that say nothing against a row: duplicates, and what is in an evaluation set.
    """
    kept = pl.concat([build.train.select(ROWS.names).collect(), build.validation.select(ROWS.names).collect()])
    rejected = build.rejected.select(*ROWS.names, "reason").collect()
    rejected = rejected.filter(~pl.col("reason").str.contains("duplicate|contaminated"))
    both = pl.concat([kept.with_columns(reason=pl.lit("kept")), rejected], how="vertical_relaxed")
    both = both.filter(pl.col("query").is_not_null() & pl.col("positive").is_not_null())
    table = as_rows(both)
    mask = is_written(table)
    reasons = both["reason"].to_numpy().astype(object)[mask]
    return table.filter(pa.array(mask)), reasons != "kept", reasons


def as_rows(found: pl.DataFrame) -> pa.Table:
    """Rows in the schema ROWS; ids that are missing are made of the texts."""
    found = found.with_columns(pl.col("query").fill_null(""), pl.col("positive").fill_null(""))
    table = found.to_arrow()
    columns = {
        field.name: table.column(field.name).cast(field.type)
        if field.name in table.column_names
        else pa.nulls(len(table), field.type)
        for field in ROWS
    }
    queries, positives = found["query"].to_list(), found["positive"].to_list()
    ids = [digest("row", str(number), *pair) for number, pair in enumerate(zip(queries, positives, strict=True))]
    made = {"row_id": ids, "document_id": [text_id(each) for each in positives], "category": ["rows"] * len(ids)}
    for name, values in made.items():
        columns[name] = pa.compute.coalesce(columns[name], pa.array(values, pa.string()))
    return pa.table(columns, schema=pa.schema([field.with_nullable(True) for field in ROWS]))
