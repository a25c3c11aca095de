"""The corpora that negatives come from: for each part, the different positives of a category, those of all categories, or texts
from outside.

A part has corpora of its own, so that no document crosses the split. A corpus is in the order of its ids; what was mined from it
does not depend on the order of the rows. It lies in pieces of about PIECE texts, by ranges of ids: work that is done piece by
piece holds one piece in memory, however large the corpus is.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from datakit import exchange, storage
from datakit.dedup.exact import normalised
from datakit.filters.sides import positive_is_label
from datakit.negatives.outside import Outside, dealt, pieces_of
from datakit.schema import text_id
from datakit.step import Work, part_of

PIECE = 32_768

# The name of the corpus of all categories. A category cannot be called so.
MIXTURE = "(mixture)"
OUTSIDE = "(outside)"

_COLUMNS = ["category", "positive_id", "document_id", "label", "in_batch_negatives", "positive"]

# The name of the file with the corpora of a step, for the steps after it.
LIST = "corpora.json"


@dataclass(frozen=True)
class Piece:
    """Texts of a corpus as they are on disk. `first` is the position of the first one."""

    folder: str
    first: int
    size: int

    def texts(self, *columns: str) -> pl.DataFrame:
        """Columns of its texts, in order: id, text, label, folded (equal for texts that differ in case or punctuation)."""
        return pl.DataFrame(storage.read_table(storage.join(self.folder, "corpus.parquet"), columns=list(columns)))


@dataclass(frozen=True)
class Corpus:
    """A corpus. `labelled`: its texts are the names of classes, or stand for them."""

    part: str
    name: str
    labelled: bool
    pieces: tuple[Piece, ...]

    @property
    def size(self) -> int:
        return sum(piece.size for piece in self.pieces)

    def frame(self) -> pl.DataFrame:
        """One row for each text, in order: position, id, folded, label. 150 bytes a text; kept until another is asked for."""
        return _frame(self)

    def documents(self) -> pl.DataFrame:
        """Which documents the texts are of: document_id, position."""
        parts = [pl.DataFrame(schema={"document_id": pl.String, "position": pl.Int64})]
        for piece in self.pieces:
            table = pl.DataFrame(storage.read_table(storage.join(piece.folder, "documents.parquet")))
            parts.append(table.with_columns(pl.col("position") + piece.first))
        return pl.concat(parts)

    def with_texts(self, ids: pl.Series) -> pl.DataFrame:
        """The texts of some ids, each once: id, text. Reads one piece at a time."""
        wanted = ids.unique().to_frame("id")
        parts = [pl.DataFrame(schema={"id": pl.String, "text": pl.String})]
        parts += [piece.texts("id", "text").join(wanted, on="id", how="semi") for piece in self.pieces]
        return pl.concat(parts).unique("id")


@functools.lru_cache(maxsize=1)
def _frame(corpus: Corpus) -> pl.DataFrame:
    empty = pl.DataFrame(schema={"id": pl.String, "folded": pl.String, "label": pl.String})
    parts = [piece.texts("id", "folded", "label") for piece in corpus.pieces]
    return pl.concat([empty, *parts]).with_row_index("position").cast({"position": pl.Int64})


Corpora = Mapping[tuple[str, str], Corpus]


def corpora(work: Work, kind: str, outside: Outside | None = None) -> Corpora:
    """Writes the corpora of the rows of a step, and their list. By part and category: where its negatives come from.

    `kind` is "category", "mixture" or "outside"; categories whose positives are labels have their own in any case.
    """
    names = sorted({name for source in work.inputs for name in source.report.categories})
    rows = {
        name: sum(source.report.categories[name].out for source in work.inputs if name in source.report.categories)
        for name in names
    }
    together = sum(rows.values())
    cuts = [1 + (together if kind == "mixture" else rows[name]) // PIECE for name in names]
    places = np.cumsum([0, *cuts])
    shards = work.shards
    sent = work.map("texts", _Texts(names, cuts), shards)
    labelled = {(part, name) for result in sent for part, name in result["labelled"]}
    units, owners = list[_Unit](), list[tuple[str, str, bool, list[str]]]()
    for part in sorted({part_of(shard) for shard in shards}):
        mine = [number for number, shard in enumerate(shards) if part_of(shard) == part]
        groups: dict[str, tuple[str, ...]] = {name: (name,) for name in names if kind != "mixture" or (part, name) in labelled}
        if kind == "mixture":
            groups[MIXTURE] = tuple(name for name in names if (part, name) not in labelled)
        for group, members in groups.items():
            found = 0
            for cut in range(max((cuts[names.index(name)] for name in members), default=0)):
                destinations = [int(places[names.index(name)]) + cut for name in members]
                pieces = {
                    kept: tuple(
                        (work.files("texts", number, f"{kept}.parquet"), sent[number][kept], place)
                        for number in mine
                        for place in destinations
                        if sent[number]["texts"][place]
                    )
                    for kept in ("texts", "documents")
                }
                if pieces["texts"]:
                    units.append(_Unit((part, group) in labelled, pieces["texts"], pieces["documents"]))
                    found += 1
            owners += [(part, group, (part, group) in labelled, list(members))] * found
    results = work.map("corpora", _write, units)
    listed: list[dict[str, Any]] = []
    for number, ((part, group, is_labelled, of), result) in enumerate(zip(owners, results, strict=True)):
        if not listed or (listed[-1]["part"], listed[-1]["name"]) != (part, group):
            listed.append({"part": part, "name": group, "labelled": is_labelled, "of": of, "pieces": []})
        listed[-1]["pieces"].append([f"corpora/{number:05d}", result["rows"]])
    if outside is not None:
        listed = [*(each for each in listed if each["labelled"]), *_from_outside(work, outside, listed)]
    storage.write_json(storage.join(work.folder, LIST), listed)
    return corpora_of(work.folder)


def _from_outside(work: Work, outside: Outside, listed: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A corpus of the outside texts for each part, in place of those of its unlabelled categories."""
    members: dict[str, list[str]] = {}
    for each in listed:
        if not each["labelled"]:
            members.setdefault(each["part"], []).extend(each["of"])
    units = pieces_of(outside, sorted(members), said_by_part(work))
    results = work.map("outside", dealt, units)
    found = []
    for part in sorted(members):
        pieces = [
            [f"outside/{number:05d}", result["rows"]]
            for number, (unit, result) in enumerate(zip(units, results, strict=True))
            if unit.part == part and result["rows"]
        ]
        found.append({"part": part, "name": OUTSIDE, "labelled": False, "of": members[part], "pieces": pieces})
    return found


def corpora_of(folder: str) -> Corpora:
    """Where the negatives of a part and category come from, as the step with that folder wrote it; none where none mined."""
    path = storage.join(folder, LIST)
    found = {}
    for each in storage.read_json(path) if storage.exists(path) else []:
        firsts = np.cumsum([0, *(size for _, size in each["pieces"])]).tolist()
        pieces = [
            Piece(storage.join(folder, inner), first, size) for (inner, size), first in zip(each["pieces"], firsts, strict=False)
        ]
        corpus = Corpus(each["part"], each["name"], each["labelled"], tuple(pieces))
        found.update({(each["part"], name): corpus for name in each["of"]})
    return found


def fold(texts: pl.Series) -> pl.Series:
    """The digest of each text as exact dedup compares it: without case, punctuation and repeated white space."""
    return pl.Series([text_id(text) for text in normalised(pa.chunked_array([texts.to_arrow()]))], dtype=pl.String)


def said_by_part(work: Work) -> dict[str, list[str]]:
    """Maps the rows of a step to files with what they say: `folded` of all queries and positives. The files, by part."""
    work.map("said", _said, work.shards)
    files: dict[str, list[str]] = {}
    for number, shard in enumerate(work.shards):
        files.setdefault(part_of(shard), []).append(work.files("said", number, "said.parquet"))
    return files


def _said(shard: str, folder: str) -> dict[str, Any]:
    table = storage.read_table(shard, columns=["query", "positive"])
    texts = pl.concat([pl.Series(table.column(name), dtype=pl.String) for name in ("query", "positive")]).drop_nulls().unique()
    storage.write_table(storage.join(folder, "said.parquet"), fold(texts).unique().sort().to_frame("folded").to_arrow())
    return {"rows": table.num_rows}


_Sent = tuple[str, list[int], int]


@dataclass(frozen=True)
class _Texts:
    """Writes the different positives of a shard, and of which documents they are, by category and range of ids."""

    names: list[str]
    cuts: list[int]

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
        number = np.searchsorted(np.array(self.names, object), frame.get_column("category").to_numpy()).astype(np.int64)
        cuts = np.array(self.cuts, np.int64)
        places = np.concatenate(([0], np.cumsum(cuts)))[number] + range_of(frame.get_column("positive_id"), cuts[number])
        return exchange.scatter(path, frame.drop("category").to_arrow(), places, int(cuts.sum()))


def range_of(ids: pl.Series, cuts: Any) -> Any:
    """Which of so many equal ranges each id is in."""
    heads = np.array([int(each[:8], 16) for each in ids], np.int64)
    return (heads * cuts) >> 32


@dataclass(frozen=True)
class _Unit:
    labelled: bool
    texts: tuple[_Sent, ...]
    documents: tuple[_Sent, ...]


def _write(unit: _Unit, folder: str) -> dict[str, Any]:
    """Brings a piece of a corpus together. A text with two labels stands there twice; without labels each stands once."""
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
    return {"rows": len(corpus)}


def _together(pieces: Sequence[_Sent], *columns: str) -> pl.DataFrame:
    schema = dict.fromkeys(columns, pl.String)
    tables = [exchange.gather([path], [sizes], place) for path, sizes, place in pieces]
    return pl.concat([pl.DataFrame(table) for table in tables if table is not None] or [pl.DataFrame(schema=schema)])
