"""Draws an evaluation set from the validation rows of a build, whose documents are in no training row. What it writes:

    corpus.jsonl, queries.jsonl, qrels/test.tsv   BEIR; the hard negatives are judged too, with 0
    annotations.jsonl                             the pairs to label, whole queries at a time, in an order that gives nothing away
    key.jsonl                                     which of the pairs are positives, and who found the others
    evalset.json                                  the build, what was drawn, and what was left out and why

The folder is there whole, or not at all.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any

import polars as pl

from datakit import storage
from datakit.errors import UserError
from datakit.negatives.labels import OTHER_LABEL
from datakit.negatives.lists import SOURCE
from datakit.opened import Build
from datakit.schema import digest
from datakit.synthesis.allocation import allocate

log = logging.getLogger(__name__)

# Why a validation row is not in the set.
NO_RETRIEVAL = "no_retrieval"  # its positive is a class, or it has a graded score
SEEN = {f"{name}_in_train": f"{name}_id" for name in ("document", "query", "positive")}
REPEATED_PAIR = "repeated_pair"
NO_HARD_NEGATIVES = "no_hard_negatives"
NOT_DRAWN = "not_drawn"

POSITIVE = "positive"
QRELS = "query-id\tcorpus-id\tscore\n"
_COLUMNS = [
    "row_id", "category", "instruction", "query", "positive", "query_id", "positive_id", "document_id", "negatives", "score",
    "label", "in_batch_negatives",
]  # fmt: skip


def make(build: Build, folder: str, pairs: int, negatives: int, seed: int, unverified: bool = False) -> dict[str, Any]:
    """Writes `pairs` queries and positives with up to `negatives` hard negatives of each query; returns what evalset.json says.

    Each category has its share of the rows that can be taken. A query comes with all its positives, so that none of them counts
    as a wrong answer; where these do not fit into what is left, another query is drawn, and where none fits, of another category.
    Where none of any fits, there are fewer pairs than were asked for (`asked`), and the log says so. Raises a UserError where
    nothing is held out, where the negatives were not screened and judged (unless `unverified`), and where there are too few rows.
    """
    if os.path.lexists(folder):
        raise UserError(f"'{folder}' is there already, and labels may be in it. Give another folder.")
    screened = _screened(build)
    if not all(screened.values()) and not unverified:
        missing = " and ".join(name for name, done in screened.items() if not done)
        raise UserError(
            f"The negatives of '{build.path}' are not verified: its recipe has no {missing}. Add negatives: {{screen: {{encoder: "
            "NAME, relabel: {type: judge, engine: NAME}}} and build again; or take them as they are, with --unverified."
        )
    rows = build.validation.select(_COLUMNS).sort("row_id").collect()
    if rows.is_empty():
        raise UserError(
            f"'{build.path}' holds nothing out: it has no validation rows. Set split: {{validation: 0.1}} or more in its recipe, "
            "and build again; the split keeps whole documents together."
        )
    seen = _seen_in_train(build, rows)
    graded = pl.col("label").is_not_null() | pl.col("in_batch_negatives").eq_missing(False) | pl.col("score").is_not_null()
    found = [pl.when(pl.col(column).is_in(seen)).then(pl.lit(reason)) for reason, column in SEEN.items()]
    rows = rows.with_columns(reason=pl.coalesce(pl.when(graded).then(pl.lit(NO_RETRIEVAL)), *found))
    left_out = Counter(rows.get_column("reason").drop_nulls().to_list())
    clean = rows.filter(pl.col("reason").is_null())
    kept = clean.unique(["query_id", "positive_id"], keep="first", maintain_order=True)
    left_out[REPEATED_PAIR] = clean.height - kept.height
    hard, dropped = _hard_negatives(build, rows, kept, seen, negatives)
    bare = ~pl.col("query_id").is_in(hard.get_column("query_id").implode())
    left_out[NO_HARD_NEGATIVES] = kept.filter(bare).height
    kept = kept.filter(~bare)
    if kept.height < pairs:
        why = ", ".join(f"{reason} {count:,}" for reason, count in sorted(left_out.items()) if count) or "nothing"
        raise UserError(
            f"The build holds {kept.height:,} pairs that can be taken, and --pairs is {pairs:,}. Of its {rows.height:,} "
            f"validation rows are left out: {why}. Ask for fewer, or raise split.validation in the recipe and build again."
        )
    drawn = kept.filter(pl.col("query_id").is_in(_drawn(kept, pairs, seed)))
    hard = hard.filter(pl.col("query_id").is_in(drawn.get_column("query_id").implode()))
    left_out[NOT_DRAWN] = kept.height - drawn.height
    if drawn.height < pairs:
        log.warning(
            "%d pairs are drawn, and --pairs is %d: the queries that are left have more positives than fit.", drawn.height, pairs
        )
    facts = {
        "schema": 1,
        "build": {"name": build.name, "version": build.version},
        "seed": seed,
        "verified": screened,
        "queries": drawn.get_column("query_id").n_unique(),
        "pairs": drawn.height,
        "asked": pairs,
        "hard_negatives": hard.height,
        "categories": dict(sorted(Counter(drawn.get_column("category").to_list()).items())),
        "miners": dict(sorted(Counter(hard.get_column("miner").to_list()).items())),
        "sources": {
            name: [source.model_dump() for source in build.manifest.categories[name].sources]
            for name in sorted(set(drawn.get_column("category").to_list()))
        },
        "corpus": [source.model_dump() for source in build.manifest.corpus],
        "left_out": {"rows": {reason: count for reason, count in sorted(left_out.items()) if count}, "negatives": dropped},
    }
    _write(folder, drawn, hard, seed, facts)
    return facts


def _screened(build: Build) -> dict[str, bool]:
    names = {step.name for step in build.manifest.steps}
    return {"screen": "screen" in names, "relabel": "relabel" in names}


def _seen_in_train(build: Build, rows: pl.DataFrame) -> pl.Series:
    """Those ids of the rows (documents, queries, texts) that a training row has too. Memory is bounded by one file."""

    def ids(frame: pl.DataFrame) -> pl.Series:
        texts = frame.get_column("negatives").explode().drop_nulls().struct.field("id")
        return pl.concat([*(frame.get_column(column).rename("id") for column in SEEN.values()), texts]).drop_nulls().unique()

    wanted = ids(rows)
    columns = [*SEEN.values(), "negatives"]
    empty = pl.Series("id", [], pl.String)
    frames = (pl.read_parquet(file, columns=columns, hive_partitioning=False, glob=False) for file in build.files("train"))
    return pl.concat([empty, *(wanted.filter(wanted.is_in(ids(frame).implode())) for frame in frames)]).unique().implode()


def _hard_negatives(
    build: Build, rows: pl.DataFrame, kept: pl.DataFrame, seen: pl.Series, most: int
) -> tuple[pl.DataFrame, dict[str, int]]:
    """The hardest negatives of each query (query_id, id, text, miner), and how many were dropped and why.

    Negatives that the data had were looked at by screen and judge only where the recipe says `source`.
    """
    screen = (build.manifest.recipe.get("negatives") or {}).get("screen") or {}
    easy = ["random", OTHER_LABEL, *([] if screen.get("source") or not screen else [SOURCE])]
    positives = rows.select("query_id", id="positive_id").unique()
    found = kept.select("query_id", "negatives").explode("negatives").drop_nulls().unnest("negatives")
    found = found.sort("difficulty", "id", descending=[True, False], nulls_last=True)
    found = found.unique(["query_id", "id"], keep="first", maintain_order=True)
    rules = {
        "easy_or_unverified": pl.col("miner").is_in(easy),
        "in_train": pl.col("id").is_in(seen),
        "known_positive": pl.struct("query_id", "id").is_in(positives.to_struct().implode()),
    }
    dropped = {}
    for reason, holds in rules.items():
        left = found.filter(~holds)
        dropped[reason], found = found.height - left.height, left
    hardest = found.group_by("query_id", maintain_order=True).head(most)
    dropped["not_among_the_hardest"] = found.height - hardest.height
    return hardest.select("query_id", "id", "text", "miner"), {reason: count for reason, count in dropped.items() if count}


def _drawn(kept: pl.DataFrame, pairs: int, seed: int) -> list[str]:
    """The queries to take. A query of several categories counts in the first of them by name.

    What a category cannot fill goes to the next one, and what the last one leaves to any that has a query of that size.
    """
    queries: dict[str, dict[str, int]] = {}
    grouped = kept.group_by("query_id").agg(pl.col("category").min(), pl.len())
    for query, category, count in grouped.sort("query_id").iter_rows():
        queries.setdefault(category, {})[query] = count
    names = sorted(queries)
    sizes = [sum(queries[name].values()) for name in names]
    quotas = allocate(pairs, [Fraction(size) for size in sizes], sizes, [0] * len(sizes))
    taken: list[str] = []
    left = 0
    for name, quota in [*zip(names, quotas, strict=True), *((name, 0) for name in names)]:
        left += quota
        for query in sorted(queries[name], key=lambda query: digest("evalset", str(seed), query)):
            if queries[name][query] <= left:
                taken.append(query)
                left -= queries[name].pop(query)
    return taken


def _write(folder: str, drawn: pl.DataFrame, hard: pl.DataFrame, seed: int, facts: Mapping[str, Any]) -> None:
    queries = {row["query_id"]: row for row in drawn.sort("row_id", descending=True).iter_rows(named=True)}
    judged = [(*row, POSITIVE) for row in drawn.select("query_id", "positive_id", "positive").iter_rows()] + hard.rows()
    judged.sort(key=lambda each: (digest("order", str(seed), each[0]), digest("order", str(seed), each[0], each[1])))
    corpus = {document: text for _, document, text, _ in judged}
    annotations, key = [], []
    for query, document, text, source in judged:
        pair = digest("pair", query, document, size=8)
        shown = {name: queries[query][name] for name in ("category", "instruction", "query")}
        annotations.append({"pair": pair, "query_id": query, "document_id": document, **shown, "document": text})
        key.append({"pair": pair, "source": source})
    parent, name = os.path.split(os.path.abspath(folder))
    try:
        os.makedirs(parent, exist_ok=True)
        made = tempfile.mkdtemp(prefix=f".{name}.", dir=parent)
    except OSError as error:
        raise storage.failure(error, folder) from error
    try:
        write_lines(made, "corpus.jsonl", ({"_id": name, "title": "", "text": corpus[name]} for name in sorted(corpus)))
        asked = ({"_id": name, "text": row["query"], "metadata": {"category": row["category"]}} for name, row in queries.items())
        write_lines(made, "queries.jsonl", sorted(asked, key=lambda each: each["_id"]))
        grades = sorted((query, document, int(source == POSITIVE)) for query, document, _, source in judged)
        write_qrels(os.path.join(made, "qrels/test.tsv"), grades)
        write_lines(made, "annotations.jsonl", annotations)
        write_lines(made, "key.jsonl", key)
        storage.write_json(os.path.join(made, "evalset.json"), facts)
        os.chmod(made, 0o755)
        os.rename(made, folder)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


def write_qrels(path: str, grades: Iterable[tuple[str, str, int]]) -> None:
    """Judgements as BEIR has them: query, document, grade."""
    storage.write_bytes(path, (QRELS + "".join(f"{query}\t{document}\t{grade}\n" for query, document, grade in grades)).encode())


def write_lines(folder: str, name: str, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes a file with a record in each line."""
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    storage.write_bytes(os.path.join(folder, name), text.encode())
