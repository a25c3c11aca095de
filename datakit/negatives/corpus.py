"""The corpora that negatives come from: for each part and category, the different positives of its rows.

A part has corpora of its own, so that no document crosses the split. A corpus is in the order of its ids; what was mined from it
does not depend on the order of the rows.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from datakit import exchange, storage
from datakit.dedup.exact import normalised
from datakit.filters.sides import positive_is_label
from datakit.negatives.bm25 import Bm25sIndex, Index, build
from datakit.recipe import Bm25Miner
from datakit.schema import text_id
from datakit.step import Work, part_of

_COLUMNS = ["category", "positive_id", "document_id", "label", "in_batch_negatives", "positive"]

# The name of the file with the corpora of a step, for the steps after it: [part, category, folder].
LIST = "corpora.json"


@dataclass(frozen=True)
class Corpus:
    """A corpus as it is on disk. `labelled`: its texts are the names of classes, or stand for them."""

    part: str
    category: str
    labelled: bool
    folder: str

    def frame(self) -> pl.DataFrame:
        """One row for each text, in order: position, id, folded (equal for texts that differ in case or punctuation), label."""
        table = storage.read_table(storage.join(self.folder, "corpus.parquet"), columns=["id", "folded", "label"])
        return pl.DataFrame(table).with_row_index("position").cast({"position": pl.Int64})

    def documents(self) -> pl.DataFrame:
        """Which documents the texts are of: document_id, position."""
        return pl.DataFrame(storage.read_table(storage.join(self.folder, "documents.parquet")))

    def texts(self) -> pl.DataFrame:
        """The texts, in order: id, text."""
        return pl.DataFrame(storage.read_table(storage.join(self.folder, "corpus.parquet"), columns=["id", "text"]))

    def index(self, miner: Bm25Miner, number: int) -> Index:
        """The index for the miner of that number: loaded, or built again where the engine has no files."""
        if miner.engine == "rank_bm25":
            return build(self.texts().get_column("text"), miner)
        return Bm25sIndex.load(storage.join(self.folder, f"bm25-{number}"))


def corpora(work: Work, miners: Sequence[Bm25Miner]) -> list[Corpus]:
    """Writes the corpora of the rows of a step, indexed for each miner, and their list."""
    names = sorted({name for source in work.inputs for name in source.report.categories})
    shards = work.shards
    sent = work.map("texts", _Texts(names), shards)
    labelled = {(part, name) for result in sent for part, name in result["labelled"]}
    units = []
    for part in sorted({part_of(shard) for shard in shards}):
        for place, name in enumerate(names):
            files = [
                number
                for number, (shard, result) in enumerate(zip(shards, sent, strict=True))
                if part_of(shard) == part and result["texts"][place]
            ]
            if files:
                texts = tuple(_piece(work, sent, number, "texts", place) for number in files)
                documents = tuple(_piece(work, sent, number, "documents", place) for number in files)
                units.append(_Unit(part, name, (part, name) in labelled, texts, documents, tuple(miners)))
    work.map("corpora", _write, units)
    found = [
        Corpus(unit.part, unit.category, unit.labelled, storage.join(work.folder, "corpora", f"{number:05d}"))
        for number, unit in enumerate(units)
    ]
    places = [[each.part, each.category, each.labelled, f"corpora/{number:05d}"] for number, each in enumerate(found)]
    storage.write_json(storage.join(work.folder, LIST), places)
    return found


def corpora_of(folder: str) -> list[Corpus]:
    """The corpora that the step with that folder wrote; none where it is no mining step."""
    path = storage.join(folder, LIST)
    listed = storage.read_json(path) if storage.exists(path) else []
    return [Corpus(part, category, labelled, storage.join(folder, inner)) for part, category, labelled, inner in listed]


def fold(texts: pl.Series) -> pl.Series:
    """The digest of each text as exact dedup compares it: without case, punctuation and repeated white space."""
    return pl.Series([text_id(text) for text in normalised(pa.chunked_array([texts.to_arrow()]))], dtype=pl.String)


_Piece = tuple[str, list[int], int]


def _piece(work: Work, sent: Sequence[dict[str, Any]], number: int, name: str, place: int) -> _Piece:
    return work.files("texts", number, f"{name}.parquet"), sent[number][name], place


@dataclass(frozen=True)
class _Texts:
    """Writes the different positives of a shard, and of which documents they are, by category."""

    names: list[str]

    def __call__(self, shard: str, folder: str) -> dict[str, Any]:
        table = storage.read_table(shard, columns=_COLUMNS)
        frame = pl.DataFrame(table).with_columns(pl.Series("labelled", positive_is_label(table)))
        labelled = frame.filter("labelled").get_column("category").unique().sort().to_list()
        frame = frame.drop_nulls(["positive_id", "positive"])
        texts = frame.select("category", "positive_id", "label", text="positive").unique(["category", "positive_id", "label"])
        documents = frame.select("category", "positive_id", "document_id").drop_nulls().unique()
        return {
            "rows": table.num_rows,
            "labelled": [[part_of(shard), name] for name in labelled],
            "texts": self._send(storage.join(folder, "texts.parquet"), texts),
            "documents": self._send(storage.join(folder, "documents.parquet"), documents),
        }

    def _send(self, path: str, frame: pl.DataFrame) -> list[int]:
        frame = frame.sort(["positive_id", *(name for name in ("label", "document_id") if name in frame.columns)])
        places = np.searchsorted(np.array(self.names, object), frame.get_column("category").to_numpy())
        return exchange.scatter(path, frame.drop("category").to_arrow(), places, len(self.names))


@dataclass(frozen=True)
class _Unit:
    part: str
    category: str
    labelled: bool
    texts: tuple[_Piece, ...]
    documents: tuple[_Piece, ...]
    miners: tuple[Bm25Miner, ...]


def _write(unit: _Unit, folder: str) -> dict[str, Any]:
    """Brings a corpus together and indexes it. A text with two labels stands there twice; without labels each stands once."""
    texts = (
        _together(unit.texts, "positive_id", "text", "label")
        .sort("positive_id", "label")
        .unique(["positive_id", "label"] if unit.labelled else ["positive_id"], keep="first", maintain_order=True)
    )
    corpus = texts.select(pl.col("positive_id").alias("id"), "text", "label", folded=fold(texts.get_column("text")))
    places = texts.select("positive_id").with_row_index("position").cast({"position": pl.Int64})
    documents = _together(unit.documents, "positive_id", "document_id").unique().join(places, on="positive_id")
    documents = documents.select("document_id", "position").sort("document_id", "position")
    storage.write_table(storage.join(folder, "corpus.parquet"), corpus.to_arrow())
    storage.write_table(storage.join(folder, "documents.parquet"), documents.to_arrow())
    for number, miner in enumerate(unit.miners):
        if miner.engine == "bm25s" and not unit.labelled:
            Bm25sIndex.build(corpus.get_column("text"), miner).save(storage.join(folder, f"bm25-{number}"))
    return {"rows": len(corpus)}


def _together(pieces: Sequence[_Piece], *columns: str) -> pl.DataFrame:
    schema = dict.fromkeys(columns, pl.String)
    tables = [exchange.gather([path], [sizes], place) for path, sizes, place in pieces]
    return pl.concat([pl.DataFrame(table) for table in tables if table is not None] or [pl.DataFrame(schema=schema)])


@functools.lru_cache(maxsize=1)
def loaded(corpus: Corpus, miner: Bm25Miner, number: int) -> Index:
    """The index of a corpus, kept until another one is asked for: memory is bounded by one index."""
    return corpus.index(miner, number)
