"""The quality filter and the quality model on real rows: false rejections by reason, recall against spoilt and poor rows, rows/s.

    python benchmarks/quality.py rules
    python benchmarks/quality.py model [--build BUILD]      BUILD: one with rows that a model wrote, kept and rejected

Texts are split in halves by a digest of the positive: thresholds were looked at on one half (--half calibration), and the tables
are of the other.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from datakit import schema
from datakit.filters import quality, quality_model
from datakit.filters.quality_train import NOT_SPOILT, corrupted
from datakit.recipe import QualityFilter, QualityModelFilter

FILTER = QualityFilter(type="quality")
MODEL = QualityModelFilter(type="quality_model")
LIMIT = 4_000


def clean_sets(data: Path, half: str) -> dict[str, pa.Table]:
    def jsonl(name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in open(data / "train" / name, encoding="utf-8")]

    with open(data / "train/stsb-en-train.csv", encoding="utf-8", newline="") as file:
        similar = [(a, b) for a, b, score in csv.reader(file) if float(score) >= 4]
    found: dict[str, tuple[str, list[tuple[str, str]]]] = {
        "medquad": ("question_answering", [(row["question"], row["answer"]) for row in jsonl("medquad.jsonl")]),
        "rqe": ("paraphrase", [(row["consumer_question"], row["faq"]) for row in jsonl("rqe.jsonl") if row["entails"]]),
        "pubmedqa": ("retrieval", [(row["question"], row["context"]) for row in jsonl("pubmedqa.jsonl")]),
        "disfl-qa": ("paraphrase", [(row["disfluent"], row["original"]) for row in jsonl("disfl-qa.jsonl")]),
        "python-api": ("code_search", [(row["intent"], row["snippet"]) for row in jsonl("python-api.jsonl")]),
        "stsb": ("similarity", similar),
    }
    wanted = "0" if half == "calibration" else "1"
    return {
        name: rows(name, task, [pair for pair in pairs if in_half(pair, wanted)][:LIMIT]) for name, (task, pairs) in found.items()
    }


def in_half(pair: tuple[str, str], wanted: str) -> bool:
    # The same text twice is no clean pair: query_is_positive is right to reject it (rqe has 1,500 of them).
    same = pair[0].casefold().split() == pair[1].casefold().split()
    return bool(pair[0].strip() and pair[1].strip()) and not same and str(int(schema.digest("half", pair[1]), 16) % 2) == wanted


def rows(name: str, task: str, pairs: list[tuple[str, str]]) -> pa.Table:
    return schema.rows(
        [
            {
                "row_id": schema.digest(name, str(number)),
                "document_id": schema.text_id(positive),
                "category": name,
                "task": task,
                "language": "en",
                "in_batch_negatives": True,
                "query": query,
                "positive": positive,
            }
            for number, (query, positive) in enumerate(pairs)
        ]
    )


def rules(data: Path, half: str) -> None:
    print("| set | rows | rejected | share | reasons | rows for each second of a processor |\n|---|---|---|---|---|---|")
    for name, table in clean_sets(data, half).items():
        quality.annotate(table.slice(0, 50), FILTER)
        started = time.process_time()
        said = quality.annotate(table, FILTER)[1]
        seconds = time.process_time() - started
        reasons = Counter(said.column("reason").to_pylist())
        told = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
        share = said.num_rows / table.num_rows
        print(f"| {name} | {table.num_rows:,} | {said.num_rows} | {share:.2%} | {told} | {table.num_rows / seconds:,.0f} |")


def auc(poor: np.ndarray[Any, Any], scores: np.ndarray[Any, Any]) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(poor, scores))


def model(data: Path, half: str, build: str | None, folder: str) -> None:
    """Poor rows are found by a low quality: precision, recall and good rows lost at the default threshold."""
    print("| set | good | spoilt | AUC | good rejected | precision | recall | rows for each second of a processor |")
    print("|---|---|---|---|---|---|---|---|")
    ways: dict[str, Counter[str]] = {}
    for name, table in clean_sets(data, half).items():
        labelled = corrupted(table.slice(0, 2_000), 1.0, 23)
        quality_model.score(table.slice(0, 50), folder)
        started = time.process_time()
        scores = quality_model.score(labelled.rows, folder)
        speed = len(scores) / (time.process_time() - started)
        poor, low = labelled.poor, scores < MODEL.threshold
        print(
            f"| {name} | {int((~poor).sum()):,} | {int(poor.sum()):,} | {auc(poor, -scores):.3f} | {low[~poor].mean():.2%} "
            f"| {(low & poor).sum() / max(low.sum(), 1):.3f} | {low[poor].mean():.3f} | {speed:,.0f} |"
        )
        for way in sorted(set(labelled.origin.tolist()) - {NOT_SPOILT}):
            ways.setdefault(way, Counter())[name] = float(low[labelled.origin == way].mean())  # type: ignore[assignment]
    names = list(clean_sets(data, half))
    print(f"\n| recall of | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    for way, found in ways.items():
        print(f"| {way} | {' | '.join(f'{found[name]:.2f}' if name in found else '' for name in names)} |")
    if build:
        synthetic(build, folder)


def synthetic(build: str, folder: str) -> None:
    from datakit.filters.quality_rows import written
    from datakit.opened import open_build

    table, poor, reasons = written(open_build(build))
    scores = quality_model.score(table, folder)
    print(f"\nRows that a model wrote in '{build}': {int((~poor).sum()):,} kept, {int(poor.sum()):,} rejected.\n")
    print("| rejected for | rows | AUC | recall at the default threshold |\n|---|---|---|---|")
    low = scores < MODEL.threshold
    for reason, count in [("all", int(poor.sum())), *Counter(reasons[poor].tolist()).most_common(8)]:
        picked = poor if reason == "all" else reasons == reason
        both = picked | ~poor
        print(f"| {reason} | {count} | {auc(picked[both], -scores[both]):.3f} | {low[picked].mean():.2f} |")
    print(f"\nOf the kept ones {low[~poor].mean():.2%} are below the default threshold.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["rules", "model"])
    parser.add_argument("--data", default=os.environ.get("DATAKIT_REAL_DATA"))
    parser.add_argument("--half", choices=["calibration", "held-out"], default="held-out")
    parser.add_argument("--build")
    parser.add_argument("--model", default=str(MODEL.model))
    given = parser.parse_args()
    if not given.data:
        raise SystemExit("Give --data, or DATAKIT_REAL_DATA: the folder of real data sets.")
    if given.what == "rules":
        rules(Path(given.data), given.half)
    else:
        model(Path(given.data), given.half, given.build, given.model)


if __name__ == "__main__":
    main()
