"""The mine step: hard negatives for each row from the positives of its category and part.

A negative is never a known positive of the query, in any category; nor equal to one of those in its category, or to the query,
when case and punctuation are left aside; nor mined from the row's own document. What the data had as negatives stays first.

Difficulty of a BM25 negative is 1 - (rank - 1) / depth, where rank 1 is the best candidate. Ranks are comparable across miners
and queries: BM25 scores grow with the length of the query, and are on no common scale with cosines. A label drawn without
looking has difficulty 0. A negative of the data has the one it came with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from datakit import exchange
from datakit.negatives import bm25
from datakit.negatives.corpus import Corpus, corpora, fold, loaded
from datakit.negatives.known import positives, siblings
from datakit.negatives.labels import other_labels
from datakit.negatives.lists import exploded, with_negatives
from datakit.recipe import Bm25Miner, Model, Negatives
from datakit.step import Step, Work, count_categories, part_of, write_rows

VERSION = 1

_ROW_COLUMNS = ["category", "query", "query_id", "positive", "positive_id", "document_id", "label"]


class MineParameters(Model):
    """With a screen to follow, rows keep all candidates, without their texts: the screen takes `per_query` of them."""

    miners: list[Bm25Miner]
    per_query: int
    screened: bool


def mine_step(negatives: Negatives, inputs: tuple[Step, ...]) -> Step:
    """Fills `negatives` of each row. Without a screen: `per_query` with their texts. With one: up to `depth` candidates."""
    parameters = MineParameters(miners=negatives.miners, per_query=negatives.per_query, screened=negatives.screen is not None)
    packages = sorted({package for miner in negatives.miners for package in bm25.PACKAGES[miner.engine]})
    return Step("mine", VERSION, mine, parameters, inputs, packages=tuple(packages))


def mine(work: Work) -> None:
    parameters: MineParameters = work.step.parameters  # type: ignore[assignment]
    known = siblings(work)
    found = {(corpus.part, corpus.category): corpus for corpus in corpora(work, parameters.miners)}
    blocks = [(shard, block) for shard in work.shards for block in range(exchange.row_groups(shard))]
    results = work.map("rows", _Mine(parameters, found, known), blocks)
    work.notes.update(_notes(results))
    work.finish("rows", results)


def _notes(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """For each category: rows, rows without a negative, and negatives by miner; and how many of the data's own were positives."""
    categories: dict[str, dict[str, Any]] = {}
    for result in results:
        for name, mined in result["mined"].items():
            total = categories.setdefault(name, {"rows": 0, "without": 0, "negatives": {}})
            total["rows"] += mined["rows"]
            total["without"] += mined["without"]
            for miner, count in mined["negatives"].items():
                total["negatives"][miner] = total["negatives"].get(miner, 0) + count
    return {
        "categories": dict(sorted(categories.items())),
        "source_negatives_dropped": sum(result["source_dropped"] for result in results),
    }


@dataclass(frozen=True)
class _Mine:
    """Mines for one row group of a shard."""

    parameters: MineParameters
    corpora: dict[tuple[str, str], Corpus]
    known: list[str]

    def __call__(self, unit: tuple[str, int], folder: str) -> dict[str, Any]:
        shard, block = unit
        table = exchange.read_row_group(shard, block)
        rows = pl.DataFrame(table.select(_ROW_COLUMNS)).with_row_index("row").cast({"row": pl.Int64})
        given = exploded(table)
        given = given.with_columns(folded=fold(given.get_column("text")))
        known = positives(rows, self.known)
        mined = []
        dropped = 0
        for name in rows.get_column("category").unique().sort().to_list():
            some = rows.filter(pl.col("category") == name)
            corpus = self.corpora.get((part_of(shard), name))
            own = given.join(some.select("row"), on="row", how="semi")
            kept, candidates = self._category(some, own, known.join(some.select("row"), on="row", how="semi"), corpus)
            dropped += len(own) - len(kept)
            mined.append(self._take(kept, candidates, corpus))
        negatives = pl.concat(mined)
        result = write_rows(folder, kept=[(part_of(shard), with_negatives(table, negatives))], rows_in=count_categories(table))
        return {**result, "mined": _counted(rows, negatives), "source_dropped": dropped}

    def _category(
        self, rows: pl.DataFrame, own: pl.DataFrame, known: pl.DataFrame, corpus: Corpus | None
    ) -> tuple[pl.DataFrame, pl.DataFrame]:
        """The negatives that the rows of one category had, less those that are positives; and candidates."""
        queries = rows.select("row", folded=fold(rows.get_column("query")))
        texts = rows.select("row", folded=fold(rows.get_column("positive")))
        frame = corpus.frame() if corpus else _NO_CORPUS
        siblings = known.join(frame, left_on="positive_id", right_on="id").select("row", "folded")
        wrong = pl.concat([queries, texts, siblings]).unique()
        kept = own.join(wrong, on=["row", "folded"], how="anti", maintain_order="left")
        kept = kept.join(known, left_on=["row", "id"], right_on=["row", "positive_id"], how="anti", maintain_order="left")
        if corpus is None:
            return kept, _NO_CANDIDATES
        barred = pl.concat([wrong, kept.select("row", "folded")]).unique()
        if corpus.labelled:
            return kept, other_labels(rows, frame, barred, self.parameters.per_query)
        excluded = _excluded(rows, frame, barred, corpus.documents())
        candidates = [
            _bm25(rows, loaded(corpus, miner, number), miner, excluded).with_columns(miner_number=pl.lit(number))
            for number, miner in enumerate(self.parameters.miners)
        ]
        together = pl.concat(candidates).sort("row", -pl.col("difficulty"), "miner_number")
        # Two miners may find the same text, and two texts may differ in case only.
        ids = frame.select("position", "id", "folded")
        return kept, (
            together.join(ids, on="position", maintain_order="left").unique(["row", "folded"], keep="first", maintain_order=True)
        )

    def _take(self, kept: pl.DataFrame, candidates: pl.DataFrame, corpus: Corpus | None) -> pl.DataFrame:
        """The data's own negatives, then candidates; without a screen up to `per_query` in all, with their texts."""
        columns = ["row", "id", "text", "miner", "score", "difficulty"]
        if self.parameters.screened or corpus is None:
            return pl.concat([kept.select(columns), candidates.with_columns(text=_NULL).select(columns)], how="vertical_relaxed")
        before = kept.group_by("row").agg(before=pl.len())
        room = self.parameters.per_query - pl.col("before").fill_null(0).cast(pl.Int64)
        taken = candidates.join(before, on="row", how="left", maintain_order="left")
        taken = taken.filter(pl.int_range(pl.len()).over("row") < room)
        taken = taken.join(corpus.texts().unique("id"), on="id", how="left", maintain_order="left")
        return pl.concat([kept.select(columns), taken.select(columns)], how="vertical_relaxed")


_NULL = pl.lit(None, pl.String)
_NO_CORPUS = pl.DataFrame(schema={"position": pl.Int64, "id": pl.String, "folded": pl.String, "label": pl.String})
_NO_CANDIDATES = pl.DataFrame(
    schema={"row": pl.Int64, "id": pl.String, "miner": pl.String, "score": pl.Float32, "difficulty": pl.Float32}
)


def _excluded(rows: pl.DataFrame, corpus: pl.DataFrame, barred: pl.DataFrame, documents: pl.DataFrame) -> bm25.Excluded:
    """The places in the corpus of all texts that a row may not have: those barred by what they say, and those of its document."""
    by_text = barred.join(corpus.select("folded", "position"), on="folded").select("row", "position")
    by_document = rows.select("row", "document_id").join(documents, on="document_id").select("row", "position")
    pairs = pl.concat([by_text, by_document]).unique().sort("row", "position")
    number = np.searchsorted(rows.get_column("row").to_numpy(), pairs.get_column("row").to_numpy())
    starts = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(np.bincount(number, minlength=len(rows)), out=starts[1:])
    return bm25.Excluded(pairs.get_column("position").to_numpy(), starts)


def _bm25(rows: pl.DataFrame, index: bm25.Index, miner: Bm25Miner, excluded: bm25.Excluded) -> pl.DataFrame:
    """Candidates: row, position, miner, score, difficulty."""
    hits = index.top(rows.get_column("query"), miner.depth, excluded)
    row, rank = np.nonzero(hits.documents >= 0)
    return pl.DataFrame(
        {
            "row": rows.get_column("row").to_numpy()[row],
            "position": hits.documents[row, rank],
            "miner": pl.repeat(miner.type, len(row), dtype=pl.String, eager=True),
            "score": hits.scores[row, rank].astype(np.float32),
            "difficulty": (1 - rank / miner.depth).astype(np.float32),
        }
    )


def _counted(rows: pl.DataFrame, negatives: pl.DataFrame) -> dict[str, Any]:
    """What the notes say of the negatives of some rows, by category."""
    counted = {}
    for (name,), some in rows.group_by("category", maintain_order=True):
        own = negatives.join(some.select("row"), on="row", how="semi")
        miners = {miner: len(group) for (miner,), group in own.group_by("miner")}
        counted[str(name)] = {
            "rows": len(some),
            "without": len(some) - own.get_column("row").n_unique(),
            "negatives": {str(miner): miners[miner] for miner in sorted(miners)},
        }
    return counted
