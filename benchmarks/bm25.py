"""BM25+ top-100 against rank-bm25's BM25Plus and plain bm25s: queries per second as ratios, and that scores and ranks agree.

    python benchmarks/bm25.py --data FOLDER [--runs 3] [--queries 100] [--passages 0] [--out benchmarks/bm25.md]

FOLDER holds train/medquad.jsonl (default: the variable DATAKIT_REAL_DATA). The corpus are its different answers, the queries its
questions; `--passages N` takes a generated corpus of N passages instead, with words in the proportions of the answers. All
engines get the same texts, the same tokenizer and one thread, and run by turns in one process; times are from the text of the
queries to the hits. rank-bm25 answers the first `--queries` of a fixed sample only, the others all of it. Memory is what a
process of its own grows by while it builds the index: to keep it, and at most.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
import polars as pl
import psutil

from datakit.negatives.bm25 import Hits, Index, build, tokens
from datakit.recipe import Bm25Miner

K = 100
SAMPLE = 4000
PIECE = 32_768


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("DATAKIT_REAL_DATA"), help="folder of the real data sets")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--queries", type=int, default=100, help="queries that rank-bm25 answers in each run")
    parser.add_argument("--passages", type=int, default=0, help="size of a generated corpus; 0: the answers of medquad")
    parser.add_argument("--out", type=Path, help="also writes the table there")
    arguments = parser.parse_args()
    if arguments.data is None:
        parser.error("give the folder of real data with --data, or in DATAKIT_REAL_DATA")
    corpus, questions = texts(arguments.data, arguments.passages)
    memory = {name: measured_memory(name, arguments.data, arguments.passages) for name in ("ours", "plain", "rank")}
    report = "\n".join(compare(corpus, questions, arguments.runs, arguments.queries, memory))
    print(report)
    if arguments.out:
        arguments.out.write_text(report + "\n", encoding="utf-8")


def texts(data: Path, passages: int) -> tuple[pl.Series, pl.Series]:
    """The corpus, and a sample of questions."""
    lines = [json.loads(line) for line in (data / "train" / "medquad.jsonl").open(encoding="utf-8")]
    corpus = pl.Series(sorted({line["answer"] for line in lines}))
    questions = pl.Series([line["question"] for line in lines]).sample(SAMPLE, seed=1)
    if passages:
        draw = np.random.default_rng(1)
        words = tokens(corpus).explode().drop_nulls().to_numpy()
        drawn = draw.integers(len(words), size=passages * 60)
        corpus = pl.Series([" ".join(words[drawn[start : start + 60]]) for start in range(0, len(drawn), 60)])
    return corpus, questions


def index(name: str, corpus: pl.Series) -> Any:
    """The index of an engine; ours in pieces, as the mine step has it."""
    if name == "plain":
        plain = bm25s.BM25(method="bm25+", delta=1.0, backend="numba")
        plain.index(tokens(corpus).to_list(), show_progress=False)
        return plain
    return build(corpus, Bm25Miner(type="bm25", engine="bm25s" if name == "ours" else "rank_bm25"), PIECE)


def measured_memory(name: str, data: Path, passages: int) -> tuple[float, float]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(grown, (name, data, passages))


def grown(name: str, data: Path, passages: int) -> tuple[float, float]:
    """MB that this process grows by while it builds an index: to keep it, and at most."""
    corpus, _ = texts(data, passages)
    # What an engine loads once is no part of its index.
    index(name, corpus[:100])
    before = psutil.Process().memory_info().rss
    kept = index(name, corpus)
    after, most = psutil.Process().memory_info().rss, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert kept is not None
    return (after - before) / 1e6, (most - before) / 1e6


def compare(corpus: pl.Series, questions: pl.Series, runs: int, few: int, memory: dict[str, tuple[float, float]]) -> list[str]:
    started = time.perf_counter()
    ours = index("ours", corpus)
    built = time.perf_counter() - started
    started = time.perf_counter()
    reference = index("rank", corpus)
    reference_built = time.perf_counter() - started
    started = time.perf_counter()
    plain = index("plain", corpus)
    plain_built = time.perf_counter() - started

    def retrieve(queries: pl.Series) -> None:
        plain.retrieve(tokens(queries).to_list(), k=K, show_progress=False, n_threads=1)

    first = {"ours": timed(lambda: ours.top(questions[:1], K)), "plain": timed(lambda: retrieve(questions[:1]))}
    asked = questions[:few]
    seconds: dict[str, list[float]] = {"ours": [], "plain": [], "rank": []}
    for _ in range(runs):
        seconds["ours"].append(timed(lambda: ours.top(questions, K)) / len(questions))
        seconds["plain"].append(timed(lambda: retrieve(questions)) / len(questions))
        seconds["rank"].append(timed(lambda: reference.top(asked, K)) / len(asked))
    rate = {name: 1 / statistics.median(values) for name, values in seconds.items()}
    ratios = {name: paired(seconds["rank"], seconds[name]) for name in rate}
    against_plain = {name: paired(seconds["plain"], seconds[name]) for name in rate}
    error, same = agreement(ours, reference, asked)
    longest = tokens(corpus).list.len().mean()
    return [
        f"{len(corpus):,} passages of {longest:.0f} words on average; {len(questions):,} queries, {few} of them for rank-bm25; "
        f"top {K}; medians of {runs} runs; one thread of {os.cpu_count()} processors.",
        "",
        "| engine | index, s | first query, s | queries/s | against rank-bm25 | against plain bm25s | memory, MB | peak, MB |",
        "|---|---|---|---|---|---|---|---|",
        row(
            "datakit (bm25s' scores, own retrieval)",
            built,
            first["ours"],
            rate["ours"],
            ratios["ours"],
            against_plain["ours"],
            memory["ours"],
        ),
        row(
            "bm25s `bm25+`, numba",
            plain_built,
            first["plain"],
            rate["plain"],
            ratios["plain"],
            against_plain["plain"],
            memory["plain"],
        ),
        row("rank-bm25 BM25Plus", reference_built, None, rate["rank"], ratios["rank"], against_plain["rank"], memory["rank"]),
        "",
        f"- Scores: largest relative difference to rank-bm25 {error:.1e} (asked for: 1e-5).",
        f"- Top {K} equal up to ties: {same} of {few} queries.",
        f"- Ratio to rank-bm25: {ratios['ours']:,.0f} (asked for: 50).",
    ]


def paired(theirs: list[float], ours: list[float]) -> float:
    """The median of the ratios of runs that came one after the other: other work on the machine slows both."""
    return statistics.median(other / one for other, one in zip(theirs, ours, strict=True))


def row(
    name: str, built: float, first: float | None, rate: float, ratio: float, against_plain: float, memory: tuple[float, float]
) -> str:
    shown = "" if first is None else f"{first:.1f}"
    kept, most = memory
    return f"| {name} | {built:.1f} | {shown} | {rate:,.0f} | {ratio:,.0f} | {against_plain:.2g} | {kept:,.0f} | {most:,.0f} |"


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def agreement(ours: Index, reference: Index, queries: pl.Series) -> tuple[float, int]:
    """The largest relative difference of scores by rank, and for how many queries both name the same documents but for ties."""
    one, other = ours.top(queries, K), reference.top(queries, K)
    error = float(np.max(np.abs(one.scores / np.where(other.scores == 0, 1, other.scores) - (other.scores != 0))))
    return error, sum(same_but_for_ties(one, other, number) for number in range(len(queries)))


def same_but_for_ties(one: Hits, other: Hits, query: int) -> bool:
    """Every document that one side has alone has the score of the last place, where ties are cut."""
    alone = np.setxor1d(one.documents[query], other.documents[query])
    last = other.scores[query].min()
    for hits in (one, other):
        scores = hits.scores[query][np.isin(hits.documents[query], alone)]
        if not np.allclose(scores, last, rtol=1e-9, atol=0):
            return False
    return True


if __name__ == "__main__":
    main()
