"""What card and report show of the rows themselves: lengths, examples. Memory is bounded by one file at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from datakit.opened import Build

# Lengths fall into bins of doubling width: 1, 2-3, 4-7, ... words; the last one is open.
BINS = 12


@dataclass(frozen=True)
class Lengths:
    """How long some texts are, in words. `bins[i]` counts those of 2^i up to 2^(i+1) - 1 words."""

    bins: tuple[int, ...]
    median: int
    p95: int


def lengths(build: Build) -> dict[str, dict[str, Lengths]]:
    """The lengths of "query" and "positive" of all kept rows, by category. Words are what stands between white space."""
    counted: dict[tuple[str, str], Counter[int]] = {}
    for file in [*build.files("train"), *build.files("validation")]:
        frame = pl.scan_parquet(file, hive_partitioning=False, glob=False).select("category", "query", "positive")
        for column in ("query", "positive"):
            words = pl.col(column).str.count_matches(r"\S+").alias("words")
            found = frame.select("category", words).drop_nulls().group_by("category", "words").len()
            for category, number, rows in found.collect(engine="streaming").iter_rows():
                counted.setdefault((category, column), Counter())[number] += rows
    result: dict[str, dict[str, Lengths]] = {}
    for (category, column), numbers in sorted(counted.items()):
        result.setdefault(category, {})[column] = _lengths(numbers)
    return result


def _lengths(numbers: Counter[int]) -> Lengths:
    bins = [0] * BINS
    for number, rows in numbers.items():
        bins[min(max(number, 1).bit_length() - 1, BINS - 1)] += rows
    return Lengths(tuple(bins), _quantile(numbers, 0.5), _quantile(numbers, 0.95))


def _quantile(numbers: Counter[int], share: float) -> int:
    """The smallest number that at least `share` of the rows do not exceed."""
    wanted, seen = share * numbers.total(), 0
    for number, rows in sorted(numbers.items()):
        seen += rows
        if seen >= wanted:
            return number
    return 0


def sample(build: Build, rows: int = 300) -> list[dict[str, Any]]:
    """About `rows` kept rows, as many of each category as there are, in turn through the categories. The same for the same build.

    Those with the lowest row_id are taken; a row_id is a digest, so that this is as good as drawing them.
    """
    names = [name for name, entry in build.manifest.categories.items() if entry.kept]
    each = max(3, -(-rows // max(1, len(names))))
    files = [*build.files("train"), *build.files("validation")]
    found = _rows(files, _lowest(files, "category", each))
    validation = _present(build.files("validation"), [row["row_id"] for row in found])
    for row in found:
        row["part"] = "validation" if row["row_id"] in validation else "train"
    by_category = {name: [row for row in found if row["category"] == name] for name in names}
    return [of_one[turn] for turn in range(each) for of_one in by_category.values() if turn < len(of_one)]


def rejected_examples(build: Build, each: int = 3) -> dict[str, list[dict[str, Any]]]:
    """Up to `each` rejected rows for each reason, whole, with the query and positive of the row that `other_id` names.

    `other` is None where there is no other row, or where it is not in this build (a row of an evaluation set).
    """
    files = build.files("rejected")
    found = _rows(files, _lowest(files, "reason", each))
    wanted = [row["other_id"] for row in found if row["other_id"]]
    columns = ["row_id", "query", "positive"]
    everywhere = [*build.files("train"), *build.files("validation"), *files]
    others = {row["row_id"]: row for row in _rows(everywhere, wanted, columns)} if wanted else {}
    result: dict[str, list[dict[str, Any]]] = {}
    for row in found:
        row["other"] = others.get(row["other_id"])
        result.setdefault(row["reason"], []).append(row)
    return result


def _lowest(files: Sequence[str], by: str, each: int) -> list[str]:
    """For each value of the column `by`, the `each` lowest row_ids."""
    best = pl.DataFrame(schema={by: pl.String, "row_id": pl.String})
    for file in files:
        rows = pl.read_parquet(file, columns=[by, "row_id"], hive_partitioning=False, glob=False).select(by, "row_id")
        best = pl.concat([best, rows]).unique().sort("row_id").group_by(by, maintain_order=True).head(each)
    return best.get_column("row_id").to_list()


def _rows(files: Sequence[str], ids: Sequence[str], columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The rows with these ids, once each, in the order of their ids."""
    found: dict[str, dict[str, Any]] = {}
    for file in files:
        frame = pl.scan_parquet(file, hive_partitioning=False, glob=False)
        frame = frame.filter(pl.col("row_id").is_in(list(ids)))
        for row in (frame.select(columns) if columns else frame).collect(engine="streaming").iter_rows(named=True):
            found.setdefault(row["row_id"], row)
    return [found[key] for key in sorted(found)]


def _present(files: Sequence[str], ids: Sequence[str]) -> set[str]:
    return {row["row_id"] for row in _rows(files, ids, ["row_id"])}
