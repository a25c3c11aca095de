"""How a mixture looks to a reader that streams its shards in order: proportions of windows, batches from a small buffer, copies.

Builds nothing but the step `mix`, over generated rows of eight categories of very different sizes, some repeated.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import Counter

import numpy as np
import pyarrow as pa

from datakit import storage
from datakit.executor.local import LocalExecutor
from datakit.mixing.mix import mix_step
from datakit.progress import QUIET
from datakit.recipe import Mixture, Model
from datakit.schema import EXAMPLE, content_id, digest
from datakit.step import Output, Step, Work, count_categories, run, write_rows

SIZES = {"a": 200_000, "b": 100_000, "c": 60_000, "d": 30_000, "e": 15_000, "f": 6_000, "g": 2_000, "h": 500}
LANGUAGES = ("en", "en", "en", "en", "de", "fr", "sw")
SHARD = 20_000


class Nothing(Model):
    """The rows are always the same."""


def table(category: str, start: int, stop: int) -> pa.Table:
    names = [f"{category} {number}" for number in range(start, stop)]
    columns = {
        "row_id": [digest("row", name) for name in names],
        "content_id": [content_id(category, name, name) for name in names],
        "category": [category] * len(names),
        "language": [LANGUAGES[number % len(LANGUAGES)] for number in range(start, stop)],
        "query": names,
        "positive": names,
    }
    arrays = [
        pa.array(columns[field.name], field.type) if field.name in columns else pa.nulls(len(names), field.type)
        for field in EXAMPLE
    ]
    return pa.table(arrays, schema=EXAMPLE)


def rows_step() -> Step:
    def work(work: Work) -> None:
        def write(unit: tuple[str, int, int], folder: str) -> dict:
            made = table(*unit)
            return write_rows(folder, kept=[("train", made)], created=count_categories(made))

        units = [(name, start, min(start + SHARD, size)) for name, size in SIZES.items() for start in range(0, size, SHARD)]
        work.finish(
            "rows", [write(unit, storage.join(work.folder, "rows", f"{number:05d}")) for number, unit in enumerate(units)]
        )

    return Step("rows", 1, work, Nothing())


def order(output: Output) -> pa.Table:
    columns = ["category", "batch_group", "content_id"]
    return pa.concat_tables([storage.read_table(path, columns=columns) for path in output.part("train")])


def windows(categories: list[str], size: int) -> tuple[float, float, float, float]:
    """Over all windows and categories: mean and largest distance in points, and in standard deviations of a random sample."""
    whole = Counter(categories)
    points, deviations = [], []
    for start in range(0, len(categories) - size + 1, size):
        found = Counter(categories[start : start + size])
        for name, count in whole.items():
            share = count / len(categories)
            points.append(100 * abs(found[name] / size - share))
            deviations.append(abs(found[name] - size * share) / (size * share * (1 - share)) ** 0.5)
    return statistics.mean(points), max(points), statistics.mean(deviations), max(deviations)


def streamed(groups: list[str], batch: int) -> tuple[int, float, int]:
    """A reader holds rows by group and gives a batch when a group has enough: most rows held, share in full batches, rest."""
    held: Counter[str] = Counter()
    most = full = rows = 0
    for group in groups:
        held[group] += 1
        rows += 1
        most = max(most, rows)
        if held[group] == batch:
            held[group], rows, full = 0, rows - batch, full + 1
    return most, full * batch / len(groups), sum(1 for left in held.values() if left)


def copies(contents: list[str]) -> tuple[int, float, int]:
    """Distances in rows from one use of a row to the next: the least, the median, and how many there are."""
    last: dict[str, int] = {}
    gaps = []
    for place, content in enumerate(contents):
        if content in last:
            gaps.append(place - last[content])
        last[content] = place
    return min(gaps, default=0), statistics.median(gaps) if gaps else 0, len(gaps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--total", type=int, default=200_000)
    total = parser.parse_args().total
    fields = {"temperature": 3.0, "total": total, "max_epochs": 8.0, "language_temperature": 3.0}
    with tempfile.TemporaryDirectory() as cache:
        source, executor = rows_step(), LocalExecutor(1)
        run(source, cache, executor, QUIET)
        for by in ("category", "language"):
            started = time.monotonic()
            output, _, _ = run(mix_step(Mixture(**fields, batch_groups=by), 7, 65_536, (source,)), cache, executor, QUIET)
            seconds, rows = time.monotonic() - started, order(output)
            if by == "category":
                notes = output.report.notes["categories"]
                print(f"{total:,} of {sum(SIZES.values()):,} rows mixed in {seconds:.1f} s, one worker.\n")
                print("| category | rows to draw from | rows | epochs |\n|---|---:|---:|---:|")
                for name, each in notes.items():
                    print(f"| {name} | {each['available']:,} | {each['rows']:,} | {each['epochs']:.2f} |")
                print("\n| window of | mean points off | most points off | mean deviations of a random sample | most |")
                print("|---|---:|---:|---:|---:|")
                for size in (1_000, 10_000):
                    figures = windows(rows.column("category").to_pylist(), size)
                    print(f"| {size:,} rows | " + " | ".join(f"{figure:.2f}" for figure in figures) + " |")
                least, middle, number = copies(rows.column("content_id").to_pylist())
                print(f"\nA row comes again {number:,} times: after {least:,} rows at least, {middle:,.0f} in the median.\n")
                print("| batch_groups | groups | batch | most rows held | rows in full batches |\n|---|---:|---:|---:|---:|")
            groups = rows.column("batch_group").to_pylist()
            for batch in (64, 512):
                most, share, _ = streamed(groups, batch)
                print(f"| {by} | {len(np.unique(groups))} | {batch} | {most:,} | {100 * share:.1f} % |")
        executor.close()


if __name__ == "__main__":
    main()
