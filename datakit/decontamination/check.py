"""What is checked of rows against evaluation sets, and what becomes of them. Rows and canaries go through the same functions."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from datakit import storage
from datakit.decontamination import index as indexing
from datakit.decontamination.likeness import alike
from datakit.encoders.vectors import Role, holds, load_array, lookup
from datakit.negatives.lists import SOURCE, exploded, with_negatives
from datakit.recipe import Decontamination
from datakit.schema import EXAMPLE, reasons
from datakit.step import Output, split_rejected

CONTAMINATED_EXACT = "contaminated_exact"
CONTAMINATED_NGRAM = "contaminated_ngram"
CONTAMINATED_SEMANTIC = "contaminated_semantic"
LEVELS = REASONS = (CONTAMINATED_EXACT, CONTAMINATED_NGRAM, CONTAMINATED_SEMANTIC)
SIDES = ("query", "positive", "negative")

# Of a hit's evaluation text: as much as a person needs to judge it.
SHOWN = 300

# item: the place of a text among those of its side; other: the number of an evaluation text; level: a place in LEVELS.
_HITS = {"item": pl.Int64, "other": pl.Int64, "level": pl.Int64, "value": pl.Float64}


@dataclass(frozen=True)
class Checked:
    """What became of some rows. `hits` counts by set, level and side, and holds the numbers of the texts that were met."""

    kept: pa.Table
    rejected: pa.Table
    hits: dict[str, Any]
    negatives_dropped: int


@dataclass(frozen=True)
class Check:
    """`index` is the folder of the index, `evaluation` those of the vectors of each set (none without `semantic`)."""

    decontamination: Decontamination
    step: str
    index: str
    names: tuple[str, ...]
    mined: bool
    vectors: Output | None
    evaluation: tuple[str, ...]

    def judged(self, table: pa.Table, encoded: str | None) -> Checked:
        """Checks the rows of a table. `encoded` is the file with the vectors of `texts_to_encode`."""
        negatives = exploded(table)
        hits = self._hits(table, negatives, encoded)
        rejecting = hits if self.decontamination.negatives == "reject" else hits.filter(pl.col("side") < SIDES.index("negative"))
        worst = rejecting.sort("level", "side", -pl.col("value"), "other", "item").unique(
            "row", keep="first", maintain_order=True
        )
        said = reasons([self._reason(*row) for row in worst.select("row", "side", "level", "value", "other").iter_rows()])
        dropped = hits.filter(pl.col("side") == SIDES.index("negative")).select("item").unique()
        dropped = negatives.with_row_index("item").cast({"item": pl.Int64}).join(dropped, on="item", how="semi")
        dropped = dropped.join(worst.select("row"), on="row", how="anti")
        clean = table
        if len(dropped):
            left = negatives.join(dropped.select("row", "place"), on=["row", "place"], how="anti", maintain_order="left")
            clean = _replaced(table, with_negatives(table, left))
        kept, _ = split_rejected(clean, self.step, said)
        _, rejected = split_rejected(table, self.step, said)
        return Checked(kept, rejected, self._counted(hits), len(dropped))

    def lexical(self, texts: pa.ChunkedArray | pa.Array) -> pl.DataFrame:
        """The hits of some texts, exact and by n-grams (_HITS). Equal texts are looked at once."""
        array = texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts
        encoded = array.cast(pa.large_string()).dictionary_encode()
        found = indexing.find(indexing.loaded(self.index), encoded.dictionary, self.decontamination.ngram.threshold)
        hits = pl.DataFrame(
            {"text": found.texts, "other": found.others, "level": np.where(found.exact, 0, 1), "value": found.values},
            schema={"text": pl.Int64, "other": pl.Int64, "level": pl.Int64, "value": pl.Float64},
        )
        places = pl.DataFrame({"text": pl.Series(encoded.indices.cast(pa.int64()), dtype=pl.Int64)}).with_row_index("item")
        return places.cast({"item": pl.Int64}).join(hits, on="text").select(*_HITS)

    def alike(self, vectors: np.ndarray[Any, np.dtype[Any]], role: Role) -> pl.DataFrame:
        """The hits of some vectors by meaning (_HITS)."""
        semantic = self.decontamination.semantic
        assert semantic is not None
        sets = indexing.loaded(self.index).sets
        frames = [pl.DataFrame(schema=_HITS)]
        for number, folder in enumerate(self.evaluation):
            evaluation = np.asarray(load_array(storage.join(folder, f"{role}.npy")))
            item, other, value = alike(vectors, evaluation, semantic.threshold)
            numbers = np.flatnonzero(sets == number)[other]
            frames.append(
                pl.DataFrame({"item": item, "other": numbers, "level": np.full(len(item), 2), "value": value}, schema=_HITS)
            )
        return pl.concat(frames)

    def _hits(self, table: pa.Table, negatives: pl.DataFrame, encoded: str | None) -> pl.DataFrame:
        """All hits of the rows: side (a place in SIDES), row, and _HITS; a negative's item is its place among `negatives`."""
        texts = negatives.get_column("text").to_arrow().cast(pa.string())
        found = [self.lexical(table.column("query")), self.lexical(table.column("positive")), self.lexical(texts)]
        if self.evaluation and encoded is not None and self.vectors is not None:
            names = texts_to_encode(table, self.vectors, self.mined)
            found[0] = pl.concat([found[0], self._by_id(table, "query", "query")])
            found[1] = pl.concat([found[1], self._by_id(table, "positive", "document")])
            found[2] = pl.concat([found[2], self._encoded(negatives.get_column("text").to_list(), names, encoded)])
            if self.mined:
                found[1] = pl.concat([found[1], self._encoded(table.column("positive").to_pylist(), names, encoded)])
                found[2] = pl.concat([found[2], self._negatives_known(negatives)])
        rows = negatives.select("row").with_row_index("item").cast({"item": pl.Int64})
        together = [each.with_columns(side=pl.lit(number, pl.Int64)) for number, each in enumerate(found)]
        together[0] = together[0].with_columns(row=pl.col("item"))
        together[1] = together[1].with_columns(row=pl.col("item"))
        together[2] = together[2].join(rows, on="item").select(together[0].columns)
        return pl.concat(together)

    def _by_id(self, table: pa.Table, column: str, role: Role) -> pl.DataFrame:
        """Hits by meaning of queries or positives, by the vectors that the embed step has of them."""
        assert self.vectors is not None
        there = pc.and_(pc.is_valid(table.column(column)), pc.is_valid(table.column(f"{column}_id")))
        items = np.flatnonzero(there.to_numpy())
        ids = table.column(f"{column}_id").take(pa.array(items)).combine_chunks().dictionary_encode()
        known, places = ids.dictionary.to_pylist(), ids.indices.to_numpy()
        if self.mined and role == "document":  # a negative may have become the positive of a row of its own
            seen = holds(self.vectors, role, known)[places]
            items, places = items[seen], places[seen]
            known = [each if there else None for each, there in zip(known, holds(self.vectors, role, known), strict=True)]
            numbers = np.cumsum([each is not None for each in known]) - 1
            known, places = [each for each in known if each is not None], numbers[places]
        return self._spread(self._looked_up(known, role), items, places)

    def _looked_up(self, ids: list[str], role: Role) -> pl.DataFrame:
        assert self.vectors is not None
        return self.alike(lookup(self.vectors, role, ids), role)

    def _spread(self, hits: pl.DataFrame, items: Any, texts: Any) -> pl.DataFrame:
        """The hits of distinct texts as those of the items that have them."""
        places = pl.DataFrame({"place": items, "item": texts}, schema={"place": pl.Int64, "item": pl.Int64})
        return places.join(hits, on="item").drop("item").rename({"place": "item"}).select(*_HITS)

    def _encoded(self, texts: list[str | None], names: list[str], encoded: str) -> pl.DataFrame:
        """Hits by meaning of texts among those that were encoded here (their `names`, in the order of the file)."""
        places = {text: place for place, text in enumerate(names)}
        items = [(item, places[text]) for item, text in enumerate(texts) if text in places]
        own = self.alike(np.asarray(load_array(encoded)), "document")
        return self._spread(own, [item for item, _ in items], [place for _, place in items])

    def _negatives_known(self, negatives: pl.DataFrame) -> pl.DataFrame:
        """Hits by meaning of negatives that are positives elsewhere."""
        assert self.vectors is not None
        ids = negatives.get_column("id").fill_null("").to_list()
        items = [item for item, each in enumerate(ids) if len(each) == 32]
        seen = holds(self.vectors, "document", [ids[item] for item in items])
        items = [item for item, there in zip(items, seen, strict=True) if there]
        distinct = sorted({ids[item] for item in items})
        numbers = {each: number for number, each in enumerate(distinct)}
        return self._spread(self._looked_up(distinct, "document"), items, [numbers[ids[item]] for item in items])

    def _reason(self, row: int, side: int, level: int, value: float, other: int) -> dict[str, Any]:
        table = _texts(self.index)
        text = table.column("text")[other].as_py()
        name = self.names[table.column("set")[other].as_py()]
        threshold = (1.0, self.decontamination.ngram.threshold, getattr(self.decontamination.semantic, "threshold", None))[level]
        return {
            "row": row,
            "reason": LEVELS[level],
            "value": value,
            "threshold": threshold,
            "other_id": f"{name}:{table.column('id')[other].as_py()}",
            "detail": f"{SIDES[side]}: {text[:SHOWN]}{'…' if len(text) > SHOWN else ''}",
        }

    def _counted(self, hits: pl.DataFrame) -> dict[str, Any]:
        """By set: items of each side by the first level that hits, and the evaluation texts that were met."""
        if not len(hits):
            return {}
        sets = indexing.loaded(self.index).sets
        hits = hits.with_columns(set=pl.Series(sets[hits.get_column("other").to_numpy()], dtype=pl.Int64))
        first = hits.group_by("set", "side", "item").agg(pl.col("level").min())
        counted: dict[str, Any] = {}
        for number, level, side, items in first.group_by("set", "level", "side").len().sort("set", "level", "side").iter_rows():
            counted.setdefault(self.names[number], {}).setdefault(LEVELS[level], {})[SIDES[side]] = items
        for (number,), some in hits.group_by("set"):
            counted[self.names[int(str(number))]]["texts"] = some.get_column("other").unique().sort().to_list()
        return counted


@functools.lru_cache(maxsize=1)
def _texts(index: str) -> pa.Table:
    return storage.read_table(storage.join(index, "texts.parquet"))


def _replaced(table: pa.Table, changed: pa.Table) -> pa.Table:
    """The changed negatives where there were any: null stays null."""
    column = pc.if_else(
        pc.is_valid(table.column("negatives")), changed.column("negatives"), pa.scalar(None, EXAMPLE.field("negatives").type)
    )
    return table.set_column(EXAMPLE.names.index("negatives"), EXAMPLE.field("negatives"), column)


def texts_to_encode(table: pa.Table, vectors: Output, mined: bool) -> list[str]:
    """The texts that no embed step has seen, each once, sorted: negatives; of rows that were checked before they got negatives,
    what was mined or written since.
    """
    negatives = exploded(table).filter(pl.col("text").is_not_null())
    if not mined:
        return negatives.get_column("text").unique().sort().to_list()
    given = negatives.filter(pl.col("miner") != SOURCE).select("id", "text")
    positives = pl.DataFrame({"id": pl.Series(table.column("positive_id")), "text": pl.Series(table.column("positive"))})
    together = pl.concat([given, positives.cast(given.schema)]).drop_nulls("text").unique().sort("text", "id")
    identified = together.get_column("id").fill_null("").str.len_chars() == 32
    unseen = ~holds(vectors, "document", together.filter(identified).get_column("id").to_list())
    new = pl.concat([together.filter(~identified), together.filter(identified).filter(pl.Series(unseen, dtype=pl.Boolean))])
    return new.get_column("text").unique().sort().to_list()
