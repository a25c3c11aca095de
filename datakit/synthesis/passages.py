"""The passages of a step: documents are cut, and as many passages are drawn as the recipe asks for."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from datakit import schema, storage
from datakit.schema import digest, text_id
from datakit.step import write_rows
from datakit.synthesis import injection
from datakit.synthesis.chunking import passages, sentences
from datakit.synthesis.injection import Injection

if TYPE_CHECKING:
    from datakit.synthesis.rows import Facts

# What is taken from a document: passages, sentences, or all of its text.
Unit = Literal["passage", "sentence", "whole"]
Array = np.ndarray[Any, np.dtype[Any]]

FILE = "passages.parquet"
PASSAGE = pa.schema(
    [
        pa.field("passage_id", pa.string(), nullable=False),
        pa.field("round", pa.int32(), nullable=False),
        pa.field("rank", pa.uint64(), nullable=False),
        pa.field("document_id", pa.string(), nullable=False),
        pa.field("source", pa.string()),
        pa.field("language", pa.string()),
        pa.field("title", pa.string()),
        pa.field("domain", pa.string()),
        pa.field("text", pa.string(), nullable=False),
    ]
)
_DOCUMENTS_AT_ONCE = 1024
# Characters on both sides of a cut that are read together, so that no attack passes in two halves.
_SEAM = 200


@dataclass(frozen=True)
class Passage:
    """A piece of a document. Its id is that of its text: what stands in two documents is asked about once."""

    id: str
    text: str
    document_id: str
    title: str | None
    language: str | None
    source: str | None


@dataclass(frozen=True)
class Cut:
    """Cuts the documents of one file into passages, and gives each the place at which it is drawn.

    A passage that speaks to the model which is to read it (datakit.synthesis.injection) is no passage but a rejected row of
    `step`; `facts` are what its rows share. So are all passages of a document whose title or language does.
    """

    min_words: int
    max_words: int
    seed: int
    unit: Unit
    step: str
    facts: Facts

    def __call__(self, documents: str, folder: str) -> dict[str, Any]:
        records: list[dict[str, Any]] = []
        refused: list[tuple[dict[str, Any], Injection]] = []
        for batch in storage.read_table(documents).to_batches(_DOCUMENTS_AT_ONCE):
            for document in batch.to_pylist():
                texts = self._texts(document["text"])
                found = attacks(document, texts)
                records += self._records(document, [text for number, text in enumerate(texts) if number not in found])
                refused += [({**document, "text": texts[number]}, each) for number, each in found.items()]
        storage.write_table(storage.join(folder, FILE), pa.Table.from_pylist(records, schema=PASSAGE))
        file = "/".join(documents.split("/")[-2:])
        return {"passages": len(records), "refused": len(refused), **self._write_refused(folder, file, refused)}

    def _records(self, document: dict[str, Any], texts: Sequence[str]) -> list[dict[str, Any]]:
        records = []
        for text in texts:
            rank = int(digest("draw", str(self.seed), text_id(text), size=8), 16)
            records.append({**document, "passage_id": text_id(text), "rank": rank, "text": text})
        # A document gives its second passage only when every document has given its first.
        for turn, record in enumerate(sorted(records, key=lambda record: (record["rank"], record["passage_id"]))):
            record["round"] = turn
        return records

    def _write_refused(self, folder: str, file: str, refused: Sequence[tuple[dict[str, Any], Injection]]) -> dict[str, Any]:
        """Writes the rejected rows: the passage stands where the positive would."""
        facts, rows, said = self.facts, list[dict[str, Any]](), list[dict[str, Any]]()
        times: Counter[tuple[str, str]] = Counter()
        for number, (document, found) in enumerate(refused):
            identity = (document["document_id"], text_id(document["text"]))
            place = (facts.category, document["source"] or "", *identity, file, str(times[identity]))
            times[identity] += 1
            row = {name: document[name] for name in ("document_id", "source", "language")}
            row |= {"row_id": digest("refused passage", *place), "positive": document["text"], "batch_group": facts.category}
            row |= {"positive_language": document["language"], "provenance": {"parents": [identity[1]]}}
            for name in ("category", "task", "instruction", "document_instruction", "in_batch_negatives"):
                row[name] = getattr(facts, name)
            rows.append(row)
            said.append({"row": number, "reason": found.reason, "detail": found.words})
        rejected = schema.rejected_rows(schema.rows(rows), self.step, schema.reasons(said))
        return write_rows(folder, kept=[], rejected=rejected, created={facts.category: len(rows)} if rows else {})

    def _texts(self, text: str) -> list[str]:
        if self.unit == "whole":
            return [text]
        return (sentences if self.unit == "sentence" else passages)(text, self.min_words, self.max_words)


def attacks(document: Mapping[str, Any], texts: Sequence[str]) -> dict[int, Injection]:
    """Which passages of a document are no seeds, by their numbers, and why."""
    for name in ("title", "language"):
        if document[name] and (found := injection.find(document[name])):
            return dict.fromkeys(range(len(texts)), Injection(found.reason, f"{name}: {found.words}"))
    result = {number: found for number, text in enumerate(texts) if (found := injection.find(text))}
    for number, (before, after) in enumerate(itertools.pairwise(texts)):
        if number in result or number + 1 in result:
            continue
        if found := injection.find(f"{before[-_SEAM:]} {after[:_SEAM]}"):
            result |= {number: found, number + 1: found}
    return dict(sorted(result.items()))


@dataclass(frozen=True)
class Index:
    """All passages of some files, without their texts: about 70 bytes for each. A position is a place in these arrays.

    `starts` are the positions at which the files begin, and the end. `domains` are places in `names`. `first` are the positions,
    ascending, of the passages whose text did not come before: only these are drawn.
    """

    files: Sequence[str]
    starts: Array
    turns: Array
    ranks: Array
    domains: Array
    names: list[str | None]
    first: Array

    @property
    def repeated(self) -> int:
        """How many passages repeat the text of an earlier one."""
        return int(self.starts[-1]) - len(self.first)

    def ordered(self, positions: Array) -> Array:
        """Positions in the order in which they are drawn: a document gives its second only when all have given their first."""
        return positions[np.lexsort((positions, self.ranks[positions], self.turns[positions]))]

    def rows(self, positions: Array) -> list[Array]:
        """The rows of each file, ascending."""
        ascending = np.sort(positions)
        bounds = np.searchsorted(ascending, self.starts)
        return [ascending[begin:end] - start for begin, end, start in zip(bounds, bounds[1:], self.starts, strict=False)]


def index(files: Sequence[str]) -> Index:
    """The index of some files of passages."""
    tables = [storage.read_table(file, columns=["passage_id", "round", "rank", "domain"]) for file in files]
    together = pa.concat_tables([PASSAGE.empty_table().select(["passage_id", "round", "rank", "domain"]), *tables])
    ids = np.array(together.column("passage_id").to_pylist(), "S32")
    encoded = together.column("domain").combine_chunks().dictionary_encode(null_encoding="encode")
    return Index(
        files=files,
        starts=np.cumsum([0, *(table.num_rows for table in tables)]),
        turns=together.column("round").to_numpy(),
        ranks=together.column("rank").to_numpy(),
        domains=encoded.indices.to_numpy(),
        names=encoded.dictionary.to_pylist(),
        first=np.sort(np.unique(ids, return_index=True)[1]),
    )


# Some rows of a file of passages.
Part = tuple[str, Array]


def slices(files: Sequence[str], rows: Sequence[Array], size: int) -> Iterator[list[Part]]:
    """The drawn passages in order, `size` at a time."""
    parts: list[Part] = []
    room = size
    for file, left in zip(files, rows, strict=True):
        while len(left):
            parts.append((file, left[:room]))
            room, left = room - len(parts[-1][1]), left[room:]
            if room == 0:
                yield parts
                parts, room = [], size
    if parts:
        yield parts


def read(parts: Sequence[Part]) -> list[Passage]:
    """The passages themselves."""
    result = []
    for file, rows in parts:
        for record in storage.read_table(file).take(pa.array(rows)).to_pylist():
            names = ("text", "document_id", "title", "language", "source")
            result.append(Passage(record["passage_id"], *(record[name] for name in names)))
    return result
