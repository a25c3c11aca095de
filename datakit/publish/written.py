"""The texts of a build that a model wrote, and a sample of them by ids. Memory is bounded by one file and the sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import polars as pl

from datakit.negatives.relabel import TEMPLATE


def written(files: Sequence[str], *more: str) -> Iterator[pl.DataFrame]:
    """The rows of each file that a model wrote: category, persona, and id and role of the text that was written.

    A row's query was written for its positive, unless the query is what the model was given: then its positive was. A label is
    chosen, not written; and a row that relabelling made is put together of texts of other rows.
    """
    for file in files:
        frame = pl.read_parquet(
            file,
            columns=["category", "query_id", "positive_id", "label", "provenance", *more],
            hive_partitioning=False,
            glob=False,
        )
        origin = pl.col("provenance").struct
        given = pl.col("query_id").is_in(origin.field("parents")).fill_null(False)
        yield (
            frame.filter(
                origin.field("model").is_not_null(), origin.field("template").ne_missing(TEMPLATE), pl.col("label").is_null()
            )
            .select(
                pl.lit("all").alias("whole"),
                "category",
                origin.field("persona").alias("persona"),
                pl.when(given).then("positive_id").otherwise("query_id").alias("id"),
                given.alias("given"),
                *more,
            )
            .drop_nulls("id")
        )


@dataclass(frozen=True)
class Sample:
    """The texts of a group that are looked at, by id, and the rows that have one of them; `rows` are all of the group."""

    ids: Sequence[str]
    having: int
    rows: int


def lowest(files: Sequence[str], by: str, size: int, listed: Sequence[str] | None = None) -> dict[str, Sample]:
    """For each value of the column `by`, or of those in `listed`, the `size` lowest ids, with how many rows have them.

    So many lowest digests are a sample of what differs (Bar-Yossef et al. 2002, "Counting Distinct Elements in a Data Stream").
    An id that is among the lowest in the end was so in every file, so that its rows are all counted.
    """
    best = pl.DataFrame(schema={by: pl.String, "id": pl.String, "rows": pl.Int64})
    rows: Counter[str] = Counter()
    for frame in written(files):
        mine = frame.filter(pl.col(by).is_in(listed)) if listed is not None else frame
        counted = mine.group_by(by, "id").agg(pl.len().cast(pl.Int64).alias("rows"))
        rows.update(dict(counted.group_by(by).agg(pl.col("rows").sum()).iter_rows()))
        together = pl.concat([best, counted]).group_by(by, "id").agg(pl.col("rows").sum())
        best = together.sort(by, "id").group_by(by, maintain_order=True).head(size)
    result = {}
    for (name,), group in best.group_by([by], maintain_order=True):
        result[str(name)] = Sample(group.get_column("id").to_list(), int(group.get_column("rows").sum()), rows[str(name)])
    return result


def texts(files: Sequence[str], ids: Iterable[str], characters: int) -> pl.DataFrame:
    """The texts with these ids, once each, by ascending id: id, given (whether it is a positive), text of so many characters."""
    wanted = pl.DataFrame({"id": sorted(ids)}, schema={"id": pl.String})
    found = [wanted.clear().with_columns(given=pl.lit(False), text=pl.lit(""))]
    for frame in written(files, "query", "positive"):
        text = pl.when("given").then("positive").otherwise("query").fill_null("").str.slice(0, characters)
        new = frame.select("id", "given", text.alias("text")).unique("id", keep="first", maintain_order=True)
        new = new.join(wanted, on="id", how="semi", maintain_order="left")
        wanted = wanted.join(new, on="id", how="anti", maintain_order="left")
        found.append(new)
    return pl.concat(found).sort("id")
