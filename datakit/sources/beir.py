"""Retrieval sets as BEIR lays them out. Judgements meet their documents, then their queries, in two exchanges:

    sides      corpus, queries, judgements -> texts and judgements by id; what cannot be read is refused here
    documents  buckets of document ids     -> judgements with the text of their document
    rows       buckets of query ids        -> a row for each judgement of a positive

The balance of the step counts judgements, and records of corpus and queries that cannot be read.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from datakit import storage
from datakit.errors import UserError
from datakit.recipe import BeirSource, Columns, FilesSource, HuggingFaceSource, Path
from datakit.sources import files, huggingface
from datakit.sources.buckets import Sender, Sent, bucket, units
from datakit.sources.files import COMPRESSIONS, DataFile
from datakit.sources.job import Job
from datakit.sources.lines import Numbered
from datakit.sources.records import PairMapper, Unreadable, getter, shown
from datakit.step import Work

UNKNOWN_ID = "unknown_id"

CORPUS, QUERIES, JUDGEMENTS = "corpus", "queries", "judgements"
IDS = ("_id", "id")
JUDGED = Columns(query="query-id", positive="corpus-id", score="score")
ROW = Columns(query="query", positive="positive", negative="negative", document_id="document")
_TEXT = pa.schema([("id", pa.string()), ("text", pa.string())])
_JUDGEMENT = pa.schema([("number", pa.int64()), ("query", pa.string()), ("document", pa.string()), ("score", pa.float64())])
_WITH_TEXT = pa.schema([*_JUDGEMENT, ("known", pa.bool_()), ("text", pa.string())])

log = logging.getLogger(__name__)


def find(source: BeirSource, path: str) -> list[DataFile]:
    """Corpus, queries and judgements of a folder as BEIR publishes it; none where `path` is a data set as the Hub holds it."""
    if "://" not in path and not huggingface.is_local(path):
        return []
    fs, inner = storage.filesystem(path)
    judged = sorted(name.rpartition("/")[2] for name in fs.glob(storage.join(inner, "qrels/*.tsv*")))
    if not judged and "://" not in path:
        return []
    found = []
    for name in ("corpus.jsonl", "queries.jsonl", f"qrels/{source.split}.tsv"):
        places = [storage.join(path, name + suffix) for suffix in ("", *COMPRESSIONS)]
        place = next(filter(storage.exists, places), None)
        if place is None:
            raise UserError(
                f"'{source.path}' has no '{name}', which a BEIR folder needs for the split '{source.split}'. Its judgements are: "
                f"{', '.join(judged) or 'none'}."
            )
        found += files.find(_as_files(source, place))
    return found


def _as_files(source: BeirSource, place: str) -> FilesSource:
    return FilesSource(
        type="files",
        path=Path(place),
        quotes=False,
        columns=Columns(document="text"),
        max_record_bytes=source.max_record_bytes,
    )


def rows(work: Work, job: Job, found: Sequence[DataFile]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Does the work of the step but for its end. Returns what the phases `sides` and `rows` did."""
    sides = list(zip((CORPUS, QUERIES, JUDGEMENTS), found or (None, None, None), strict=True))
    read = work.map("sides", _Side(job), sides)
    corpus, queries, judgements = (Sent.of(work, "sides", read, [number]) for number in range(3))
    joined = work.map("documents", _Documents(corpus, judgements), units([corpus, judgements]))
    with_text = Sent.of(work, "documents", joined)
    made = work.map("rows", _Rows(job, queries, with_text), units([queries, with_text]))
    work.notes["repeated_ids"] = {
        CORPUS: sum(result["repeated"] for result in joined),
        QUERIES: sum(result["repeated"] for result in made),
    }
    for side, repeated in work.notes["repeated_ids"].items():
        if repeated:
            log.warning(
                "%s: %d judged ids of the %s come again with another text; the first is taken.",
                work.step.name,
                repeated,
                side,
            )
    return read, made


@dataclass(frozen=True)
class _Side:
    """Sends the texts or the judgements of one side by their ids. Judgements go to the bucket of their document."""

    job: Job

    def __call__(self, unit: tuple[str, DataFile | None], folder: str) -> dict[str, Any]:
        side, file = unit
        writer = self.job.writer(folder)
        writer.begin(side if file is None else file.name)
        sender = Sender(folder, side, _JUDGEMENT if side == JUDGEMENTS else _TEXT)
        mapper, read = PairMapper(JUDGED, None), 0
        with self.job.declared():
            for number, record in _records(self.job, side, file):
                read += 1
                if isinstance(record, Unreadable):
                    writer.refuse(number, record)
                elif side == JUDGEMENTS:
                    mapped = mapper(record)
                    if mapped.refusal is None:
                        query, document, score = mapped.values[0], mapped.values[1], mapped.values[4]
                        sender.send(bucket(document), number, query, document, score)
                    else:
                        writer.add(number, mapped, True)
                else:
                    try:
                        own_id, text = _text(record)
                    except Unreadable as error:
                        writer.refuse(number, error)
                    else:
                        sender.send(bucket(own_id), own_id, text)
        # Texts are read, and are no rows: they count among the records of which some may be unreadable.
        return writer.finish() | sender.finish() | {"records": read if side != JUDGEMENTS else writer.records}


def _text(record: Mapping[str, Any]) -> tuple[str, str | None]:
    """The id, and the title and the text below each other. Raises Unreadable for what is no text, or has no id."""
    name = next((name for name in IDS if name in record), IDS[0])
    own_id, title, text = getter(name)(record), getter("title")(record), getter("text")(record)
    if own_id is None:
        raise Unreadable(UNKNOWN_ID, f"a text without an id: {shown(text or '')}", repr(record).encode("utf-8", "surrogatepass"))
    return own_id, "\n".join(part for part in (title, text) if part) or None


def _records(job: Job, side: str, file: DataFile | None) -> Iterator[Numbered]:
    source = job.reading.source
    assert isinstance(source, BeirSource)
    wanted = JUDGED.used() if side == JUDGEMENTS else [IDS[0], "text"]
    limit = source.limit if side == JUDGEMENTS else None
    if file is not None:
        return files.records(file, _as_files(source, file.path), wanted, limit)
    opened = _as_hub(source, side)
    if side != JUDGEMENTS:
        opened = opened.model_copy(update={"split": _split(opened, side, source, job.path)})
        there = huggingface.columns(opened, job.path)
        wanted = [next((name for name in IDS if name in there), IDS[0]), "text", *(["title"] if "title" in there else [])]
    return itertools.islice(huggingface.records(opened, wanted, job.path), limit)


def _as_hub(source: BeirSource, side: str) -> HuggingFaceSource:
    return HuggingFaceSource(
        type="huggingface",
        path=source.path,
        config=source.judgements if side == JUDGEMENTS else side,
        split=source.split,
        revision=source.revision,
        columns=Columns(document="text"),
    )


def _split(opened: HuggingFaceSource, side: str, source: BeirSource, path: str) -> str:
    """The split of texts: the only one, or the one called as their side or as the split of the judgements."""
    there = huggingface.splits(opened, path)
    named = there[0] if len(there) == 1 else next((name for name in (side, source.split) if name in there), None)
    if named is None:
        raise UserError(
            f"The configuration '{side}' of '{source.path}' has the splits {', '.join(there)}, and none is called '{side}' or "
            f"'{source.split}'."
        )
    return named


@dataclass(frozen=True)
class _Documents:
    """Gives the judgements of some buckets the texts of their documents, and sends them on to their queries."""

    corpus: Sent
    judgements: Sent

    def __call__(self, buckets: Sequence[int], folder: str) -> dict[str, Any]:
        sender, repeated = Sender(folder, JUDGEMENTS, _WITH_TEXT), 0
        for number in buckets:
            judged = list(self.judgements.read(number))
            texts, again = _texts(self.corpus, number, {document for _, _, document, _ in judged})
            repeated += again
            for judgement in judged:
                _, query, document, _ = judgement
                sender.send(bucket(query), *judgement, document in texts, texts.get(document))
        return sender.finish() | {"repeated": repeated}


def _texts(sent: Sent, number: int, judged: set[str]) -> tuple[dict[str, str | None], int]:
    """The texts of a bucket that are judged, and how often an id came again with another text."""
    texts: dict[str, str | None] = {}
    repeated = 0
    for own_id, text in sent.read(number):
        if own_id in judged:
            repeated += own_id in texts and texts[own_id] != text
            texts.setdefault(own_id, text)
    return texts, repeated


@dataclass(frozen=True)
class _Rows:
    """Makes the rows of the queries in some buckets."""

    job: Job
    queries: Sent
    judgements: Sent

    def __call__(self, buckets: Sequence[int], folder: str) -> dict[str, Any]:
        source = self.job.reading.source
        assert isinstance(source, BeirSource)
        writer, mapper, repeated = self.job.writer(folder), PairMapper(ROW, self.job.reading.language), 0
        writer.begin(source.split)
        for number in buckets:
            judged: dict[str, list[tuple[Any, ...]]] = {}
            for judgement in sorted(self.judgements.read(number), key=lambda judgement: judgement[0]):
                judged.setdefault(judgement[1], []).append(judgement)
            texts, again = _texts(self.queries, number, set(judged))
            repeated += again
            for query, judgements in judged.items():
                positives = {text for _, _, _, score, _, text in judgements if score >= source.min_score}
                below = [text for _, _, _, score, _, text in judgements if score < source.min_score]
                negatives = [text for text in dict.fromkeys(below) if text is not None and text not in positives]
                for position, _, document, score, known, text in judgements:
                    record = {"query": texts.get(query), "positive": text, "negative": negatives, "document": document}
                    mapped = mapper(record)
                    if query not in texts or not known:
                        side, missing = ("queries", query) if query not in texts else ("corpus", document)
                        mapped.refusal = Unreadable(UNKNOWN_ID, f"'{shown(missing)}' is judged, and is not in the {side}")
                    sampled = score >= source.min_score or (mapped.refusal is not None and mapped.refusal.reason == UNKNOWN_ID)
                    writer.add(position, mapped, sampled, f"{query}\n{document}")
        return writer.finish() | {"repeated": repeated}
