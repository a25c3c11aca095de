"""Texts from outside as a corpus: read by sources, brought together by id, and dealt to the parts of the split.

A text that is a query or a positive belongs to the part of that row, and to none where rows of both say it, as the name of a
class. Any other one is dealt by its digest: with the share of validation as chance to validation, else to training. So no text is
a negative of one part and stands in a row of the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from datakit import exchange, storage
from datakit.recipe import Model
from datakit.schema import digest, text_id
from datakit.step import Output, Step, Work

VERSION = 2
VALIDATION = "validation"

# Texts of a piece, about.
PIECE = 32_768


@dataclass(frozen=True)
class Outside:
    """The step that read the texts, and the share of them that validation has."""

    texts: Output
    validation: float


@dataclass(frozen=True)
class Unit:
    """A piece of outside texts for one part; `own` and `others` are files with what the rows of this part and of others say."""

    part: str
    file: str
    validation: float
    own: tuple[str, ...]
    others: tuple[str, ...]


class OutsideParameters(Model):
    piece: int


def outside_step(name: str, documents: tuple[Step, ...]) -> Step:
    """Brings documents together, each text once, in the order of their ids. `documents` are documents steps.

    It has no rows. `notes["texts"]` names files with positive_id, positive, query_id, query (null), as an embed step reads them.
    """
    return Step(name, VERSION, _work, OutsideParameters(piece=PIECE), side=documents, packages=("polars",))


def titled() -> pl.Expr:
    """A text below its title: one of `title` and `text` alone where the other is null or blank."""
    parts = [pl.when(pl.col(name).str.strip_chars() != "").then(pl.col(name)) for name in ("title", "text")]
    return pl.concat_str(parts, separator="\n", ignore_nulls=True)


def _work(work: Work) -> None:
    files = [storage.join(source.folder, name) for source in work.side for name in source.report.notes["files"]]
    count = 1 + sum(int(source.report.notes["documents"]) for source in work.side) // PIECE
    sent = work.map("sent", _Send(count), files)
    paths = [work.files("sent", number, "texts.parquet") for number in range(len(files))]
    sizes = [result["sent"] for result in sent]
    results = work.map("texts", _gather, [(paths, sizes, number) for number in range(count)])
    work.notes["texts"] = [f"texts/{number:05d}/texts.parquet" for number, result in enumerate(results) if result["rows"]]
    work.notes["distinct"] = sum(result["rows"] for result in results)
    work.finish(None)


@dataclass(frozen=True)
class _Send:
    count: int

    def __call__(self, file: str, folder: str) -> dict[str, Any]:
        table = storage.read_table(file, columns=["title", "text"])
        frame = pl.DataFrame(table).select(positive=titled().str.normalize("NFC"))
        frame = frame.filter(pl.col("positive").str.strip_chars() != "")
        ids = [text_id(text) for text in frame.get_column("positive")]
        frame = frame.with_columns(pl.Series("positive_id", ids, dtype=pl.String)).unique("positive_id").sort("positive_id")
        heads = np.array([int(each[:8], 16) for each in frame.get_column("positive_id")], np.int64)
        path = storage.join(folder, "texts.parquet")
        return {
            "rows": table.num_rows,
            "sent": exchange.scatter(path, frame.to_arrow(), (heads * self.count) >> 32, self.count),
        }


def _gather(unit: tuple[list[str], list[list[int]], int], folder: str) -> dict[str, Any]:
    table = exchange.gather(*unit)
    if table is None:
        return {"rows": 0}
    frame = pl.DataFrame(table).unique("positive_id").sort("positive_id")
    frame = frame.with_columns(query_id=pl.lit(None, pl.String), query=pl.lit(None, pl.String))
    storage.write_table(storage.join(folder, "texts.parquet"), frame.to_arrow())
    return {"rows": len(frame)}


def pieces_of(outside: Outside, parts: Sequence[str], said: Mapping[str, list[str]]) -> list[Unit]:
    """The units that deal the texts to `parts`; `said` are the files of `said_by_part`."""
    files = [storage.join(outside.texts.folder, name) for name in outside.texts.report.notes["texts"]]
    return [
        Unit(
            part,
            file,
            outside.validation,
            tuple(said[part]),
            tuple(other for name in sorted(said) if name != part for other in said[name]),
        )
        for part in parts
        for file in files
    ]


def dealt(unit: Unit, folder: str) -> dict[str, Any]:
    """Writes the texts of a piece that the part may have, as a piece of a corpus."""
    from datakit.negatives.corpus import fold

    frame = pl.DataFrame(storage.read_table(unit.file, columns=["positive_id", "positive"])).rename(
        {"positive_id": "id", "positive": "text"}
    )
    frame = frame.with_columns(label=pl.lit(None, pl.String), folded=fold(frame.get_column("text")))
    limit = int(unit.validation * 2**32)
    held = pl.Series([int(digest("outside", each, size=4), 16) < limit for each in frame.get_column("folded")], dtype=pl.Boolean)
    mine = held if unit.part == VALIDATION else ~held
    for files, belongs in ((unit.own, True), (unit.others, False)):
        for path in files:
            theirs = pl.DataFrame(storage.read_table(path))
            known = frame.get_column("folded").is_in(theirs.get_column("folded").implode())
            mine = mine | known if belongs else mine & ~known
    frame = frame.filter(mine)
    storage.write_table(storage.join(folder, "corpus.parquet"), frame.to_arrow())
    nothing = pl.DataFrame(schema={"document_id": pl.String, "position": pl.Int64})
    storage.write_table(storage.join(folder, "documents.parquet"), nothing.to_arrow())
    return {"rows": len(frame)}
