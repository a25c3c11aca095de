"""Records that become rows together: groups, inference sets, and texts of one class. An exchange:

    scatter   files    -> key and text of each record, by bucket; records that cannot be used are refused here
    rows      buckets  -> the rows of each key

Each record gives one row or is counted: in the balance of the step, created is the number of records.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from datakit.recipe import Columns, Group, Grouping, Nli, TableSource
from datakit.schema import digest
from datakit.sources import labelled
from datakit.sources.buckets import BUCKETS, Sender, Sent, bucket
from datakit.sources.files import DataFile
from datakit.sources.job import Job
from datakit.sources.labelled import POOL, Classes, exemplars, place, pools
from datakit.sources.paths import Record, look_up
from datakit.sources.records import PairMapper, Unreadable
from datakit.sources.stream import parts
from datakit.sources.wanted import matches

SENT = pa.schema([("key", pa.string()), ("text", pa.string()), ("kind", pa.string())])
ENTAILS, CONTRADICTS = "entails", "contradicts"

# The text and the kind of a record, as they were sent.
Member = tuple[str, str | None]
# A record with the columns RESHAPED, and whether it is a row.
Made = tuple[Record, bool]


def columns_of(shape: Grouping) -> Columns:
    """What is read of a record before it is grouped: the key, or for labels the text, as the query."""
    if isinstance(shape, Group):
        return Columns(query=shape.by, positive=shape.text)
    if isinstance(shape, Nli):
        return Columns(query=shape.premise, positive=shape.hypothesis, label=shape.label)
    return labelled.columns_of(shape)


@dataclass(frozen=True)
class Scatter:
    """Sends what is to be grouped. `classes` is the file that labelled.Together wrote, for exemplars."""

    job: Job
    classes: str | None

    def __call__(self, unit: Sequence[DataFile], folder: str) -> dict[str, Any]:
        source, seed = self.job.reading.source, str(self.job.reading.seed)
        assert isinstance(source, TableSource)
        shape = source.grouping
        assert shape is not None
        columns = columns_of(shape)
        mapper, writer = PairMapper(columns, self.job.reading.language), self.job.writer(folder)
        sender = Sender(folder, "sent", SENT, BUCKETS + 1)
        classes = None if self.classes is None else Classes(self.classes)
        with self.job.declared():
            for name, read in parts(self.job, unit, columns):
                writer.begin(name)
                for number, (record, sampled) in read:
                    if isinstance(record, Unreadable):
                        writer.refuse(number, record)
                        continue
                    mapped = mapper(record)
                    if not sampled or mapped.refusal is not None or writer.oversize(mapped.values) is not None:
                        writer.add(number, mapped, sampled)
                        continue
                    query, positive = mapped.values[:2]
                    if classes is None:
                        sender.send(bucket(query), query, positive, _kind(shape, record))
                    else:
                        for to in place(classes, seed, positive, query):
                            sender.send(to, positive, query, None)
        return writer.finish() | sender.finish()


def _kind(shape: Grouping, record: Record) -> str | None:
    if isinstance(shape, Nli):
        label = look_up(record, shape.label)
        return ENTAILS if matches(label, shape.entailment) else CONTRADICTS if matches(label, shape.contradiction) else None
    return None


@dataclass(frozen=True)
class Gather:
    """Makes the rows of some buckets."""

    job: Job
    sent: Sent

    def __call__(self, buckets: Sequence[int], folder: str) -> dict[str, Any]:
        source, seed = self.job.reading.source, str(self.job.reading.seed)
        assert isinstance(source, TableSource)
        shape = source.grouping
        assert shape is not None
        mapper, writer = PairMapper(source.mapping, self.job.reading.language), self.job.writer(folder)
        writer.begin(shape.type)
        make: Callable[[str, Sequence[Member]], Iterator[Made]]
        if isinstance(shape, Group):
            make = partial(group, seed=seed)
        elif isinstance(shape, Nli):
            make = nli
        else:
            held_out = self.job.reading.held_out
            drawn_from = pools(self.sent.read(POOL), held_out)
            make = partial(exemplars, held_out=held_out, pools=drawn_from, negatives=shape.negatives, seed=seed)
        for number in buckets:
            for key, members in _by_key(self.sent.read(number)):
                for position, (record, sampled) in enumerate(make(key, members), start=1):
                    writer.add(position, mapper(record), sampled, key)
        return writer.finish()


def _by_key(rows: Iterable[tuple[str, str, str | None]]) -> Iterator[tuple[str, list[Member]]]:
    keys: dict[str, list[Member]] = {}
    for key, text, kind in rows:
        keys.setdefault(key, []).append((text, kind))
    yield from keys.items()


def group(key: str, members: Sequence[Member], seed: str) -> Iterator[Made]:
    """Each text with the next one, in a ring whose order the seed decides."""
    texts = Counter(text for text, _ in members)
    ring = sorted(texts, key=lambda text: (digest("group", seed, key, text), text))
    pairs = len(ring) if len(ring) > 2 else len(ring) - 1
    for number, text in enumerate(ring):
        yield {"query": text, "positive": ring[(number + 1) % len(ring)]}, number < pairs
        for _ in range(texts[text] - 1):
            yield {"query": text, "positive": text}, False


def nli(premise: str, members: Sequence[Member]) -> Iterator[Made]:
    """Each hypothesis that follows, with those that contradict the premise, each once and in their order, as negatives."""
    follows = {text for text, kind in members if kind == ENTAILS}
    negatives = list(dict.fromkeys(text for text, kind in members if kind == CONTRADICTS and text not in follows))
    for text, kind in members:
        yield {"query": premise, "positive": text, "negative": negatives if kind == ENTAILS else None}, kind == ENTAILS
