"""How the time of exact and MinHash dedup grows with the rows: from texts in shards to survivors, without the rest of a build.

    python benchmarks/dedup_growth.py --rows 10000 100000 1000000

Rows are those of memory.py (40 to 80 words, every twentieth nearly the one before it), in shards of 65,536. One worker, in this
process; seconds are those of the processor. The exponent is log(time ratio) / log(row ratio) to the size before: 1 is linear.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from memory import write_rows

from datakit.dedup import dedup_step
from datakit.executor.local import LocalExecutor
from datakit.progress import QUIET
from datakit.recipe import ExactDedup, MinHashDedup, Model
from datakit.schema import content_id, digest, rows
from datakit.step import Step, Work, count_categories, run
from datakit.step import write_rows as write_step_rows

SHARD = 65_536


class Folder(Model):
    path: str
    rows: int


def tables(folder: Path) -> Iterator[pa.Table]:
    """The generated rows, as a build has them."""

    def records() -> Iterator[dict[str, Any]]:
        for file in sorted(folder.glob("rows-*.jsonl")):
            with file.open() as lines:
                for line in lines:
                    said = json.loads(line)
                    ids = {"row_id": digest("row", line), "content_id": content_id("a", said["q"], said["p"])}
                    yield {**ids, "category": "a", "query": said["q"], "positive": said["p"], "in_batch_negatives": True}

    stream = records()
    while shard := list(islice(stream, SHARD)):
        yield rows(shard)


def given(folder: Path, number: int) -> Step:
    def work(work: Work) -> None:
        results = []
        for shard, table in enumerate(tables(folder)):
            results.append(
                write_step_rows(f"{work.folder}/rows/{shard:05d}", kept=[("rows", table)], created=count_categories(table))
            )
        work.finish("rows", results)

    return Step("given", 1, work, Folder(path=str(folder), rows=number))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    arguments = parser.parse_args()
    print("| rows | exact, s | exponent | minhash, s | exponent | dropped | peak memory (GB) |\n|---|---|---|---|---|---|---|")
    before: dict[str, tuple[int, float]] = {}
    run_all(100)  # what is compiled, or read from disk, once
    for number in arguments.rows:
        seconds, dropped = run_all(number)
        said = []
        for name, each in seconds.items():
            exponent = ""
            if name in before:
                exponent = f"{math.log(each / before[name][1]) / math.log(number / before[name][0]):.2f}"
            before[name] = (number, each)
            said += [f"{each:.2f}", exponent]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(f"| {number:,} | {' | '.join(said)} | {dropped:,} | {peak:.2f} |", flush=True)


def run_all(number: int) -> tuple[dict[str, float], int]:
    """Seconds of exact and MinHash dedup of generated rows, and how many rows they drop together."""
    with tempfile.TemporaryDirectory(prefix="datakit-growth-") as folder:
        write_rows(Path(folder), number)
        executor, cache = LocalExecutor(1), f"{folder}/cache"
        step = given(Path(folder), number)
        run(step, cache, executor, QUIET)
        seconds, dropped = {}, 0
        for dedup in (ExactDedup(type="exact", on="pair"), MinHashDedup(type="minhash", on="positive", threshold=0.8)):
            step = dedup_step(0, dedup, (step,))
            started = time.process_time()
            output, _, _ = run(step, cache, executor, QUIET)
            seconds[dedup.type] = time.process_time() - started
            dropped += sum(output.report.counts.rejected.values())
    return seconds, dropped


if __name__ == "__main__":
    main()
