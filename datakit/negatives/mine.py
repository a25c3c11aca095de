"""The mine step: hard negatives for each row from a corpus of its part, by the miners of the recipe.

A negative is never a known positive of the query, in any category, nor equal to one, or to the query, when case and punctuation
are left aside; nor mined from the row's own document. What the data had as negatives stays first; then come candidates, mixed by
the quota (quota.py), each with its miner, score and difficulty (finding.py). Scores are those of the miner, on no common scale.

Rows are mined in blocks of one row group (16,384 rows). A worker holds one block with its candidates (about 100 bytes for each of
rows x depth x miners), the frame of one corpus (150 bytes a text), and what the miners say they hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from pydantic import Field

from datakit import exchange
from datakit.errors import BuildError
from datakit.negatives import adversarial, bm25, bm25_search, dense, entities, quota
from datakit.negatives.adversarial import Written
from datakit.negatives.corpus import Corpora, Corpus, corpora, fold
from datakit.negatives.drawn import RandomFinder
from datakit.negatives.finding import Finder, difficulty
from datakit.negatives.known import folded_positives, positives, siblings
from datakit.negatives.labels import other_labels
from datakit.negatives.lists import exploded, with_negatives
from datakit.negatives.outside import Outside
from datakit.negatives.postings import Excluded
from datakit.recipe import (
    Bm25Miner,
    DenseMiner,
    EntitiesMiner,
    Model,
    Negatives,
    OtherClusterMiner,
    OutsideCorpus,
    RandomMiner,
)
from datakit.recipe.negatives import AnyMiner
from datakit.step import Output, Step, Work, count_categories, part_of, write_rows

VERSION = 2

_ROW_COLUMNS = ["category", "query", "query_id", "positive", "positive_id", "document_id", "label"]
_COLUMNS = ["row", "id", "text", "miner", "score", "difficulty"]


class MineParameters(Model):
    """With a screen to follow, rows keep all candidates, without their texts: the screen takes `per_query` of them.

    `corpus` is "category", "mixture" or "outside"; `encoders` says which of the side steps have the vectors of an encoder,
    `outside` which of them brought texts from outside, and `written` which of them asked a language model.
    """

    miners: list[AnyMiner]
    per_query: int
    quota: dict[str, float] | None
    corpus: str
    screened: bool
    validation: float = 0.0
    encoders: dict[str, list[int]] = Field({})
    outside: int | None = None
    written: int | None = None


def mine_step(
    negatives: Negatives,
    inputs: tuple[Step, ...],
    vectors: Mapping[str, Sequence[Step]] | None = None,
    outside: Step | None = None,
    written: Step | None = None,
    validation: float = 0.0,
) -> Step:
    """Fills `negatives` of each row. Without a screen: `per_query` with their texts. With one: all candidates.

    `vectors` are embed steps by the name of their encoder, over `inputs` and texts from outside; `outside` is the step
    that brought texts from outside together, of which validation gets the share `validation`; `written` that of the adversarial
    miner.
    """
    side = [step for step in (outside, written) if step is not None]
    encoders = dict[str, list[int]]()
    for name, steps in sorted((vectors or {}).items()):
        encoders[name] = list(range(len(side), len(side) + len(steps)))
        side += steps
    parameters = MineParameters(
        miners=negatives.miners,
        per_query=negatives.per_query,
        quota=negatives.quota,
        corpus="outside" if isinstance(negatives.corpus, OutsideCorpus) else negatives.corpus,
        screened=negatives.screen is not None,
        validation=validation if outside is not None else 0.0,
        encoders=encoders,
        outside=side.index(outside) if outside is not None else None,
        written=side.index(written) if written is not None else None,
    )
    packages = {"numpy", "polars", "python"}
    for miner in negatives.miners:
        packages |= set(bm25.PACKAGES[miner.engine]) if isinstance(miner, Bm25Miner) else set()
    return Step("mine", VERSION, mine, parameters, inputs, side=tuple(side), packages=tuple(sorted(packages)))


def mine(work: Work) -> None:
    parameters: MineParameters = work.step.parameters  # type: ignore[assignment]
    known = siblings(work)
    outside = Outside(work.side[parameters.outside], parameters.validation) if parameters.outside is not None else None
    found = corpora(work, parameters.corpus, outside)
    written = adversarial.written(work.side[parameters.written]) if parameters.written is not None else None
    finders = tuple(_finders(work, found, parameters))
    blocks = [(shard, block) for shard in work.shards for block in range(exchange.row_groups(shard))]
    results = work.map("rows", _Mine(parameters, found, known, finders, written), blocks)
    work.notes.update(_notes(results))
    work.finish("rows", results)


def _finders(work: Work, found: Corpora, parameters: MineParameters) -> list[Finder]:
    """The miners that search corpora, ready to be used. One encoder has its vectors brought into order once."""
    finders: list[Finder] = []
    places: dict[str, dense.Places] = {}

    def vectors(name: str) -> tuple[tuple[Output, ...], dense.Places]:
        if name not in parameters.encoders:
            raise BuildError(f"The mine step has no vectors by the encoder '{name}'. This is a defect of datakit.")
        outputs = tuple(work.side[number] for number in parameters.encoders[name])
        if name not in places:
            searching = [each for each in parameters.miners if isinstance(each, DenseMiner | OtherClusterMiner)]
            wanted = [each for each in searching if each.encoder == name]
            searches = {"clusters" if isinstance(each, OtherClusterMiner) else each.search for each in wanted}
            clusters = "clusters" if "clusters" in searches else "auto" if "auto" in searches else "exact"
            places[name] = dense.place(work, found, outputs, name, clusters=clusters)
        return outputs, places[name]

    for miner in parameters.miners:
        if isinstance(miner, Bm25Miner):
            finders.append(bm25_search.prepare(work, found, miner))
        elif isinstance(miner, DenseMiner):
            finders.append(dense.DenseFinder(miner, *vectors(miner.encoder)))
        elif isinstance(miner, OtherClusterMiner):
            finders.append(dense.OtherClusterFinder(miner, *vectors(miner.encoder)))
        elif isinstance(miner, EntitiesMiner):
            finders.append(entities.prepare(work, found, miner))
        elif isinstance(miner, RandomMiner):
            finders.append(RandomFinder(parameters.per_query))
    return finders


def _notes(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """For each category: rows, rows without a negative, negatives by miner, and what miners lack of their quota; and how many of
    the data's own were positives."""
    categories: dict[str, dict[str, Any]] = {}
    for result in results:
        for name, mined in result["mined"].items():
            total = categories.setdefault(name, {"rows": 0, "without": 0, "negatives": {}, "short": {}})
            total["rows"] += mined["rows"]
            total["without"] += mined["without"]
            for kind in ("negatives", "short"):
                for miner, count in mined[kind].items():
                    total[kind][miner] = total[kind].get(miner, 0) + count
    return {
        "categories": dict(sorted(categories.items())),
        "source_negatives_dropped": sum(result["source_dropped"] for result in results),
    }


@dataclass(frozen=True)
class _Mine:
    """Mines for one row group of a shard."""

    parameters: MineParameters
    corpora: Corpora
    known: list[str]
    finders: tuple[Finder, ...]
    written: Written | None

    def __call__(self, unit: tuple[str, int], folder: str) -> dict[str, Any]:
        shard, block = unit
        table = exchange.read_row_group(shard, block)
        rows = pl.DataFrame(table.select(_ROW_COLUMNS)).with_row_index("row").cast({"row": pl.Int64})
        given = exploded(table)
        given = given.with_columns(folded=fold(given.get_column("text")))
        known = positives(rows, self.known)
        wrong = _wrong(rows, self.known)
        kept = given.join(wrong, on=["row", "folded"], how="anti", maintain_order="left")
        kept = kept.join(known, left_on=["row", "id"], right_on=["row", "positive_id"], how="anti", maintain_order="left")
        barred = pl.concat([wrong, kept.select("row", "folded")]).unique()
        mined, short = [kept.select(_COLUMNS)], dict[str, dict[str, int]]()
        for name in rows.get_column("category").unique().sort().to_list():
            some = rows.filter(pl.col("category") == name)
            corpus = self.corpora.get((part_of(shard), name))
            own = barred.join(some.select("row"), on="row", how="semi")
            candidates, short[name] = self._category(some, own, kept, corpus)
            mined.append(candidates)
        negatives = pl.concat(mined, how="vertical_relaxed")
        result = write_rows(folder, kept=[(part_of(shard), with_negatives(table, negatives))], rows_in=count_categories(table))
        return {**result, "mined": _counted(rows, negatives, short), "source_dropped": len(given) - len(kept)}

    def _category(
        self, rows: pl.DataFrame, barred: pl.DataFrame, kept: pl.DataFrame, corpus: Corpus | None
    ) -> tuple[pl.DataFrame, dict[str, int]]:
        """The candidates of the rows of one category; and what miners lack of their quota."""
        weight = quota.weights(self.parameters.miners, self.parameters.quota)
        if corpus is not None and corpus.labelled:
            candidates = other_labels(rows, corpus.frame(), barred, self.parameters.per_query).with_columns(text=_NULL)
            return self._take(candidates, kept, corpus), {}
        found = [_NO_CANDIDATES]
        if corpus is not None and corpus.size:
            found += self._found(rows, barred, corpus)
        if self.written is not None:
            found.append(self.written.candidates(rows, barred, fold))
        candidates = quota.distinct(pl.concat(found), weight, "folded")
        short = quota.shortfalls(candidates, len(rows), weight, self.parameters.per_query)
        return self._take(candidates, kept, corpus), short

    def _found(self, rows: pl.DataFrame, barred: pl.DataFrame, corpus: Corpus) -> list[pl.DataFrame]:
        """What each miner finds in a corpus: the columns of _NO_CANDIDATES."""
        frame = corpus.frame()
        excluded = _excluded(rows, frame, barred, corpus.documents())
        numbers, ids, folded = rows.get_column("row"), frame.get_column("id"), frame.get_column("folded")
        found = []
        for finder in self.finders:
            hits = finder.find(rows, corpus, excluded)
            score = pl.col("score") if finder.name != RANDOM else _NULL.cast(pl.Float32)
            found.append(
                hits.select(
                    row=numbers.gather(hits.get_column("number")),
                    id=ids.gather(hits.get_column("position")),
                    text=_NULL,
                    folded=folded.gather(hits.get_column("position")),
                    miner=pl.lit(finder.name),
                    score=score,
                    difficulty=difficulty(pl.col("rank"), corpus.size) if finder.name != RANDOM else pl.lit(0.0, pl.Float32),
                )
            )
        return found

    def _take(self, candidates: pl.DataFrame, kept: pl.DataFrame, corpus: Corpus | None) -> pl.DataFrame:
        """Candidates as they go on: without a screen as many as there is room for, with their texts."""
        if self.parameters.screened:
            return candidates.select(_COLUMNS)
        before = kept.group_by("row").agg(before=pl.len())
        room = self.parameters.per_query - pl.col("before").fill_null(0).cast(pl.Int64)
        taken = candidates.join(before, on="row", how="left", maintain_order="left")
        taken = taken.filter(pl.int_range(pl.len()).over("row") < room)
        without = taken.filter(pl.col("text").is_null()).get_column("id")
        if corpus is not None and len(without):
            texts = corpus.with_texts(without).rename({"text": "found"})
            taken = taken.join(texts, on="id", how="left", maintain_order="left")
            taken = taken.with_columns(text=pl.coalesce("text", "found"))
        return taken.select(_COLUMNS)


RANDOM = RandomFinder.NAME
_NULL = pl.lit(None, pl.String)
_NO_CANDIDATES = pl.DataFrame(
    schema={
        "row": pl.Int64,
        "id": pl.String,
        "text": pl.String,
        "folded": pl.String,
        "miner": pl.String,
        "score": pl.Float32,
        "difficulty": pl.Float32,
    }
)


def _wrong(rows: pl.DataFrame, known: Sequence[str]) -> pl.DataFrame:
    """(row, folded) of what a row must not have as a negative: its query, and all known positives of that query."""
    queries = rows.select("row", folded=fold(rows.get_column("query")))
    texts = rows.select("row", folded=fold(rows.get_column("positive")))
    return pl.concat([queries, texts, folded_positives(rows, known)]).unique()


def _excluded(rows: pl.DataFrame, corpus: pl.DataFrame, barred: pl.DataFrame, documents: pl.DataFrame) -> Excluded:
    """The places in the corpus of all texts that a row may not have: those barred by what they say, and those of its document."""
    by_text = barred.join(corpus.select("folded", "position"), on="folded").select("row", "position")
    by_document = rows.select("row", "document_id").join(documents, on="document_id").select("row", "position")
    pairs = pl.concat([by_text, by_document]).unique().sort("row", "position")
    number = np.searchsorted(rows.get_column("row").to_numpy(), pairs.get_column("row").to_numpy())
    starts = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(np.bincount(number, minlength=len(rows)), out=starts[1:])
    return Excluded(pairs.get_column("position").to_numpy(), starts)


def _counted(rows: pl.DataFrame, negatives: pl.DataFrame, short: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """What the notes say of the negatives of some rows, by category."""
    counted = {}
    for (name,), some in rows.group_by("category", maintain_order=True):
        own = negatives.join(some.select("row"), on="row", how="semi")
        miners = {miner: len(group) for (miner,), group in own.group_by("miner")}
        counted[str(name)] = {
            "rows": len(some),
            "without": len(some) - own.get_column("row").n_unique(),
            "negatives": {str(miner): miners[miner] for miner in sorted(miners)},
            "short": dict(short.get(str(name), {})),
        }
    return counted
