"""The screen step: drops mined negatives that are likely positives, and keeps the first `per_query` of the others.

A negative n of query q is dropped
- as `equal_to_positive`, when it is a known positive of the query, in any row;
- as `paraphrase`, when its similarity to one of them is at least `paraphrase`;
- as `above_margin`, when s(q, n) >= s(q, p) - |s(q, p)| (1 - margin) for one of them, p (NV-Retriever, arXiv 2407.15831,
  "percentage of the positive", written so that it holds below zero). With several positives the least similar one decides: what
  is more like the query than a text that is known to answer it, is likely to answer it too.
Labels and negatives that the data had are screened by equality alone: the encoder has not seen them.

A row is never dropped, and nothing takes the place of what was dropped: a row may be left with fewer negatives, or none.
Similarities are float64 dot products, one by one: no matrix product whose last bits depend on how many rows it has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from datakit import exchange
from datakit.encoders.vectors import Role, lookup
from datakit.negatives.corpus import Corpus, corpora_of
from datakit.negatives.known import positives, siblings
from datakit.negatives.labels import OTHER_LABEL
from datakit.negatives.lists import SOURCE, exploded, with_negatives
from datakit.recipe import Encoder, Model, Negatives, Screen
from datakit.step import Output, Step, Work, count_categories, part_of, write_rows

VERSION = 1

EQUAL_TO_POSITIVE = "equal_to_positive"
PARAPHRASE = "paraphrase"
ABOVE_MARGIN = "above_margin"
REASONS = (EQUAL_TO_POSITIVE, PARAPHRASE, ABOVE_MARGIN)

# Miners whose texts the encoder has not seen.
UNSEEN = (SOURCE, OTHER_LABEL)

# Negatives that are compared at a time, and vectors that are multiplied at a time: they bound the memory.
BLOCK = 65_536
_CHUNK = 4_096

Array = np.ndarray[Any, np.dtype[Any]]


class ScreenParameters(Model):
    screen: Screen
    per_query: int
    encoder: Encoder


def screen_step(negatives: Negatives, encoder: Encoder, inputs: tuple[Step, ...], vectors: Step) -> Step:
    """Screens what `mine_step` found, by `vectors`, an embed step with the queries and positives of the rows by `encoder`."""
    assert negatives.screen is not None
    parameters = ScreenParameters(screen=negatives.screen, per_query=negatives.per_query, encoder=encoder)
    return Step("screen", VERSION, screen, parameters, inputs, side=(vectors,), packages=("numpy",))


def screen(work: Work) -> None:
    parameters: ScreenParameters = work.step.parameters  # type: ignore[assignment]
    known = siblings(work)
    corpora = {(corpus.part, corpus.category): corpus for source in work.inputs for corpus in corpora_of(source.folder)}
    blocks = [(shard, block) for shard in work.shards for block in range(exchange.row_groups(shard))]
    results = work.map("rows", _Screen(parameters, corpora, known, work.side[0]), blocks)
    work.notes.update(_notes(results, parameters.per_query))
    work.finish("rows", results)


def _notes(results: Sequence[Mapping[str, Any]], per_query: int) -> dict[str, Any]:
    """What the manifest says: candidates, those dropped by reason, those taken; negatives by row; by category and in all.

    `false_negative_rate` is estimated: the share of the mined candidates (not labels, nor what the data had) that were dropped.
    """
    categories: dict[str, dict[str, Any]] = {}
    for result in results:
        for name, seen in result["screened"].items():
            _add(categories.setdefault(name, {}), seen)
    total: dict[str, Any] = {}
    for name in sorted(categories):
        _add(total, categories[name])
    return {**_told(total, per_query), "categories": {name: _told(categories[name], per_query) for name in sorted(categories)}}


def _add(total: dict[str, Any], seen: Mapping[str, Any]) -> None:
    for key, value in seen.items():
        if isinstance(value, Mapping):
            _add(total.setdefault(key, {}), value)
        else:
            total[key] = total.get(key, 0) + value


def _told(counts: Mapping[str, Any], per_query: int) -> dict[str, Any]:
    miners: Mapping[str, Mapping[str, int]] = counts.get("miners", {})
    mined = [count for miner, count in miners.items() if miner not in UNSEEN]
    candidates = sum(count["candidates"] for count in mined)
    dropped = sum(count[reason] for count in mined for reason in REASONS)
    histogram = {int(number): rows for number, rows in counts.get("negatives_by_row", {}).items()}
    rows = sum(histogram.values())
    fewer = sum(count for number, count in histogram.items() if number < per_query)
    return {
        "miners": {miner: dict(miners[miner]) for miner in sorted(miners)},
        "negatives_by_row": {str(number): histogram[number] for number in sorted(histogram)},
        "rows_with_fewer": round(fewer / rows, 6) if rows else 0.0,
        "false_negative_rate": round(dropped / candidates, 6) if candidates else 0.0,
    }


@dataclass(frozen=True)
class _Screen:
    """Screens one row group of a shard."""

    parameters: ScreenParameters
    corpora: dict[tuple[str, str], Corpus]
    known: list[str]
    vectors: Output

    def __call__(self, unit: tuple[str, int], folder: str) -> dict[str, Any]:
        shard, block = unit
        table = exchange.read_row_group(shard, block)
        rows = pl.DataFrame(table.select(["category", "query_id", "positive_id"])).with_row_index("row").cast({"row": pl.Int64})
        candidates = exploded(table)
        known = positives(rows, self.known)
        reason = reasons(candidates, rows, known, self.parameters.screen, self.vectors)
        candidates = candidates.with_columns(reason=reason)
        taken = take(candidates.filter(pl.col("reason").is_null()), self.parameters.per_query)
        taken = self._texts(taken, rows, part_of(shard))
        kept = with_negatives(table, taken.sort("row", "place"))
        result = write_rows(folder, kept=[(part_of(shard), kept)], rows_in=count_categories(table))
        return {**result, "screened": _counted(rows, candidates, taken)}

    def _texts(self, taken: pl.DataFrame, rows: pl.DataFrame, part: str) -> pl.DataFrame:
        """Fills in the texts that the mine step left out."""
        taken = taken.join(rows.select("row", "category"), on="row", how="left")
        filled = [taken.filter(pl.col("text").is_not_null())]
        without = taken.filter(pl.col("text").is_null())
        for name in without.get_column("category").unique().sort().to_list():
            some = without.filter(pl.col("category") == name).drop("text")
            texts = self.corpora[(part, name)].texts().unique("id")
            filled.append(some.join(texts, on="id", how="left").select(taken.columns))
        return pl.concat(filled, how="vertical_relaxed")


def take(negatives: pl.DataFrame, per_query: int) -> pl.DataFrame:
    """The first `per_query` of each row, in order. What the data had is taken in any case, and counts."""
    own = pl.col("miner") == SOURCE
    room = per_query - own.cast(pl.Int64).sum().over("row")
    return negatives.sort("row", "place").filter(own | ((~own).cum_sum().over("row") <= room))


def reasons(candidates: pl.DataFrame, rows: pl.DataFrame, known: pl.DataFrame, screen: Screen, vectors: Output) -> pl.Series:
    """The reason against each candidate, or null. `candidates` has row, id, miner; `known` all positives (row, positive_id)."""
    equal = candidates.select("row", "id").join(
        known.with_columns(equal=True), left_on=["row", "id"], right_on=["row", "positive_id"], how="left", maintain_order="left"
    )
    is_equal = equal.get_column("equal").fill_null(False).to_numpy()
    near, high = np.zeros(len(candidates), bool), np.zeros(len(candidates), bool)
    places = np.flatnonzero(~is_equal & ~candidates.get_column("miner").is_in(list(UNSEEN)).to_numpy())
    for start, stop in _blocks(candidates.get_column("row").to_numpy()[places]):
        some = places[start:stop]
        near[some], high[some] = _compare(candidates.select("row", "id")[some], rows, known, screen, vectors)
    # The first reason that holds is the one that is counted.
    said = dict(zip(REASONS, (pl.Series(is_equal), pl.Series(near), pl.Series(high)), strict=True))
    chosen = pl.coalesce(*(pl.when(holds).then(pl.lit(reason)) for reason, holds in said.items()))
    return pl.select(chosen.cast(pl.String)).to_series()


def _blocks(rows: Array) -> list[tuple[int, int]]:
    """Runs of about BLOCK negatives that hold whole rows."""
    if not len(rows):
        return []
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    cuts = [0]
    for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True):
        if stop - cuts[-1] > BLOCK and start > cuts[-1]:
            cuts.append(int(start))
    return list(zip(cuts, [*cuts[1:], len(rows)], strict=True))


def _compare(
    pairs: pl.DataFrame, rows: pl.DataFrame, known: pl.DataFrame, screen: Screen, vectors: Output
) -> tuple[Array, Array]:
    """For each negative (row, id): is it a paraphrase of a positive of its row, and is it too similar to the query?"""
    asked = rows.select("row", "query_id").join(pairs.select("row"), on="row", how="semi", maintain_order="left")
    right = known.join(asked.select("row"), on="row", how="semi", maintain_order="left")
    queries = _Vectors.of(vectors, "query", asked.get_column("query_id"))
    texts = _Vectors.of(vectors, "document", pl.concat([pairs.get_column("id"), right.get_column("positive_id")]))

    query_of = dict(asked.iter_rows())
    of_positive = dots(queries, texts, [query_of[row] for row in right.get_column("row")], right.get_column("positive_id"))
    of_negative = dots(queries, texts, [query_of[row] for row in pairs.get_column("row")], pairs.get_column("id"))
    allowed = of_positive - np.abs(of_positive) * (1 - screen.margin)
    least = right.select("row").with_columns(allowed=allowed).group_by("row").agg(pl.col("allowed").min())
    threshold = pairs.join(least, on="row", how="left", maintain_order="left").get_column("allowed").to_numpy()

    both = pairs.with_row_index("pair").join(right, on="row", maintain_order="left")
    alike = dots(texts, texts, both.get_column("id"), both.get_column("positive_id"))
    near = np.zeros(len(pairs), bool)
    np.logical_or.at(near, both.get_column("pair").to_numpy(), alike >= screen.paraphrase)
    return near, of_negative >= threshold


@dataclass(frozen=True)
class _Vectors:
    """The vectors of some ids, each once."""

    places: dict[str, int]
    vectors: Array

    @classmethod
    def of(cls, output: Output, role: Role, ids: pl.Series) -> _Vectors:
        different = ids.unique().sort().to_list()
        return cls({name: place for place, name in enumerate(different)}, lookup(output, role, different))

    def at(self, ids: Sequence[str] | pl.Series) -> Array:
        return np.fromiter((self.places[name] for name in ids), np.int64, len(ids))


def dots(left: _Vectors, right: _Vectors, left_ids: Sequence[str] | pl.Series, right_ids: Sequence[str] | pl.Series) -> Array:
    """The dot product of each pair, float64 (n). Each is summed in the order of the dimensions, whatever stands beside it."""
    one, other = left.at(left_ids), right.at(right_ids)
    result = np.zeros(len(one))
    for start in range(0, len(one), _CHUNK):
        some = slice(start, start + _CHUNK)
        a, b = left.vectors[one[some]].astype(np.float64), right.vectors[other[some]].astype(np.float64)
        result[some] = np.einsum("nd,nd->n", a, b)
    return result


def _counted(rows: pl.DataFrame, candidates: pl.DataFrame, taken: pl.DataFrame) -> dict[str, Any]:
    """By category: what became of the candidates of each miner, and how many rows have how many negatives."""
    numbers = rows.select("row", "category").join(taken.group_by("row").agg(number=pl.len()), on="row", how="left")
    candidates = candidates.join(rows.select("row", "category"), on="row", how="left")
    counted: dict[str, Any] = {}
    for (name,), some in numbers.group_by("category", maintain_order=True):
        histogram = some.get_column("number").fill_null(0).value_counts().sort("number").iter_rows()
        counted[str(name)] = {"miners": {}, "negatives_by_row": {str(number): count for number, count in histogram}}
    for (name, miner), some in candidates.group_by("category", "miner", maintain_order=True):
        seen = {"candidates": len(some), **{reason: int((some.get_column("reason") == reason).sum()) for reason in REASONS}}
        seen["taken"] = len(taken.filter((pl.col("category") == name) & (pl.col("miner") == miner)))
        counted[str(name)]["miners"][str(miner)] = seen
    return counted
