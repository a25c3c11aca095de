"""The screen step: drops mined negatives that are likely positives, and keeps the first `per_query` of the others.

A negative n of query q is dropped as `equal_to_positive`, when it is a known positive of the query, in any row, and by the rules
of `Screen` (criteria.py) on the similarities of an encoder. With several positives the least similar one decides: what is more
like the query than a text that is known to answer it, is likely to answer it too. Labels are screened by equality alone, and so
are negatives that the data had, unless `source` is set.

A row is never dropped, and nothing takes the place of what was dropped: a row may be left with fewer negatives, or none.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from datakit import exchange
from datakit.encoders.vectors import lookup_any
from datakit.negatives import quota
from datakit.negatives.corpus import Corpora, corpora_of
from datakit.negatives.criteria import REASONS, compared, held_out, reasons
from datakit.negatives.known import positives, siblings
from datakit.negatives.labels import OTHER_LABEL
from datakit.negatives.lists import SOURCE, exploded, with_negatives
from datakit.negatives.texts import texts_of
from datakit.recipe import Encoder, Model, Negatives, Screen
from datakit.step import Output, Step, Work, count_categories, part_of, write_rows

VERSION = 2

# Miners whose candidates do not count in the rates: nobody mined them.
_NOT_MINED = (SOURCE, OTHER_LABEL)


class ScreenParameters(Model):
    """`per_query` is how many negatives a row needs; `taken` how many it keeps: more, where somebody relabels them afterwards.
    `weights` mix those of the miners that are left."""

    screen: Screen
    per_query: int
    taken: int
    weights: dict[str, float]
    encoder: Encoder


def screen_step(negatives: Negatives, encoder: Encoder, inputs: tuple[Step, ...], vectors: tuple[Step, ...]) -> Step:
    """Screens what `mine_step` found. `vectors` are embed steps with the queries, positives and candidates of the rows."""
    screen_, per_query = negatives.screen, negatives.per_query
    assert screen_ is not None
    taken = per_query
    if screen_.relabel is not None:
        taken = max(taken, screen_.relabel.candidates)
        # Who relabels decides for itself; its own settings do not make the screen run again.
        screen_ = screen_.model_copy(update={"relabel": None})
    weights = quota.weights_of(negatives)
    parameters = ScreenParameters(screen=screen_, per_query=per_query, taken=taken, weights=weights, encoder=encoder)
    return Step("screen", VERSION, screen, parameters, inputs, side=vectors, packages=("numpy", "polars", "python"))


def screen(work: Work) -> None:
    parameters: ScreenParameters = work.step.parameters  # type: ignore[assignment]
    known = siblings(work)
    corpora = {where: corpus for source in work.inputs for where, corpus in corpora_of(source.folder).items()}
    blocks = [(shard, block) for shard in work.shards for block in range(exchange.row_groups(shard))]
    results = work.map("rows", _Screen(parameters, corpora, known, tuple(work.side)), blocks)
    work.notes.update(_notes(results, parameters.per_query))
    work.finish("rows", results)


def _notes(results: Sequence[Mapping[str, Any]], per_query: int) -> dict[str, Any]:
    """What the manifest says: candidates, those dropped by reason, those taken; negatives by row; by category and in all.

    `false_negative_rate` estimates the share of false negatives among the mined candidates (not labels, nor what the data had)
    by the share that was dropped. It counts true negatives that were dropped, and leaves out false ones that passed.
    `known_positives` says how far to trust the rules: of `tried` rows whose query has further positives, in how many (`caught`)
    the rules would have dropped the row's own positive, had nobody known it; `caught_rate` estimates the share of false
    negatives that they find.
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
    mined = [count for miner, count in miners.items() if miner not in _NOT_MINED]
    candidates = sum(count["candidates"] for count in mined)
    dropped = sum(count[reason] for count in mined for reason in REASONS)
    histogram = {int(number): rows for number, rows in counts.get("negatives_by_row", {}).items()}
    rows = sum(histogram.values())
    fewer = sum(count for number, count in histogram.items() if number < per_query)
    tried, caught = counts.get("tried", 0), counts.get("caught", 0)
    return {
        "miners": {miner: dict(miners[miner]) for miner in sorted(miners)},
        "negatives_by_row": {str(number): histogram[number] for number in sorted(histogram)},
        "rows_with_fewer": round(fewer / rows, 6) if rows else 0.0,
        "false_negative_rate": round(dropped / candidates, 6) if candidates else 0.0,
        "known_positives": {"tried": tried, "caught": caught, "caught_rate": round(caught / tried, 6) if tried else None},
    }


@dataclass(frozen=True)
class _Screen:
    """Screens one row group of a shard."""

    parameters: ScreenParameters
    corpora: Corpora
    known: list[str]
    vectors: tuple[Output, ...]

    def __call__(self, unit: tuple[str, int], folder: str) -> dict[str, Any]:
        shard, block = unit
        table = exchange.read_row_group(shard, block)
        rows = pl.DataFrame(table.select(["category", "query_id", "positive_id"])).with_row_index("row").cast({"row": pl.Int64})
        candidates = exploded(table)
        known = positives(rows, self.known)
        lookup = functools.partial(lookup_any, self.vectors)
        candidates = candidates.with_columns(reason=reasons(candidates, rows, known, self.parameters.screen, lookup))
        left = candidates.filter(pl.col("reason").is_null()).sort("row", "place")
        left = quota.mixed(left, self.parameters.weights).with_columns(place=pl.int_range(pl.len()).over("row"))
        taken = take(left, self.parameters.taken)
        taken = texts_of(taken, rows, self.corpora, part_of(shard))
        kept = with_negatives(table, taken.sort("row", "place"))
        result = write_rows(folder, kept=[(part_of(shard), kept)], rows_in=count_categories(table))
        counted = _counted(rows, candidates, taken)
        for (name,), some in rows.group_by("category", maintain_order=True):
            mined = candidates.filter(compared(candidates, self.parameters.screen)).join(some.select("row"), on="row", how="semi")
            beside = known.join(some.select("row"), on="row", how="semi")
            tried, caught = held_out(mined, some, beside, self.parameters.screen, lookup) if len(mined) else (0, 0)
            counted[str(name)] |= {"tried": tried, "caught": caught}
        return {**result, "screened": counted}


def take(negatives: pl.DataFrame, per_query: int) -> pl.DataFrame:
    """The first `per_query` of each row, in order. What the data had is taken in any case, and counts."""
    own = pl.col("miner") == SOURCE
    room = per_query - own.cast(pl.Int64).sum().over("row")
    return negatives.sort("row", "place").filter(own | ((~own).cum_sum().over("row") <= room))


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
