"""Labelled texts as pairs: with names of classes, or with texts of classes (exemplars), as positives and negatives.

    classes    files -> how many texts each class has
    together   once  -> the same for all files

With names, rows can then be made record by record. With exemplars, an exchange (grouping.py) brings texts of a class together: a
small class as a whole, a large one in parts of about CHUNK texts, so that memory is bounded by a part. Negatives come from a
sample of all classes, of about POOL_TEXTS texts or POOL_CHARACTERS, which every unit holds.

An exemplar is a text of some other row. So the texts of a row all come from one side of the split, as it is likely to be drawn
(held_out.py). Rows could not be kept together after they are made: the pairs of a class, and the classes that texts have in
several categories, tie them all to one another.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from datakit import storage
from datakit.held_out import HeldOut
from datakit.recipe import AnySource, Columns, Labelled, TableSource
from datakit.schema import digest
from datakit.sources.buckets import BUCKETS, bucket, drawn
from datakit.sources.files import DataFile
from datakit.sources.job import Job
from datakit.sources.paths import Record, look_up
from datakit.sources.records import ClassName, Mapped, PairMapper, Unreadable
from datakit.sources.stream import parts

CHUNK = 4096
POOL = BUCKETS
POOL_TEXTS = 65_536
POOL_CHARACTERS = 32 << 20
_ODD = 0x9E3779B97F4A7C15
_COUNTED = pa.schema([("label", pa.string()), ("texts", pa.int64()), ("characters", pa.int64()), ("name", pa.string())])


class Classes:
    """The classes by label: how many texts each has, and its name. `share` is how many texts of each class are in the sample."""

    def __init__(self, path: str) -> None:
        labels, texts, characters, names = (column.to_pylist() for column in storage.read_table(path).columns)
        self.texts: dict[str, int] = dict(zip(labels, texts, strict=True))
        self.names: dict[str, str] = dict(zip(labels, names, strict=True))
        mean = max(1.0, sum(characters) / max(1, sum(texts)))
        self.share = min(POOL_TEXTS, POOL_CHARACTERS / mean) / max(1, len(labels))


def has_exemplars(source: AnySource) -> bool:
    """Whether the positives of a source are texts of other rows of it."""
    shape = source.grouping if isinstance(source, TableSource) else None
    return isinstance(shape, Labelled) and shape.documents == "exemplars"


def columns_of(shape: Labelled) -> Columns:
    return Columns(query=shape.text, positive=shape.label, label=shape.label)


@dataclass(frozen=True)
class Count:
    """Counts the texts of each class in some files."""

    job: Job

    def __call__(self, unit: Sequence[DataFile], folder: str) -> dict[str, Any]:
        source = self.job.reading.source
        assert isinstance(source, TableSource)
        shape = source.grouping
        assert isinstance(shape, Labelled)
        columns = columns_of(shape)
        mapper = PairMapper(columns, None)
        texts, characters, names = Counter[str](), Counter[str](), dict[str, str]()
        with self.job.declared():
            for _, read in parts(self.job, unit, columns):
                for _, (record, sampled) in read:
                    if isinstance(record, Unreadable) or not sampled:
                        continue
                    mapped = mapper(record)
                    if mapped.refusal is None:
                        text, label = mapped.values[:2]
                        texts[label] += 1
                        characters[label] += len(text)
                        if label not in names:
                            names[label] = _name(shape, label, look_up(record, shape.label))
        storage.write_table(storage.join(folder, "classes.parquet"), _table(texts, characters, names))
        return {"classes": len(texts)}


def _name(shape: Labelled, label: str, value: Any) -> str:
    number = str(value.number) if isinstance(value, ClassName) else label
    return shape.names.get(label, shape.names.get(number, label))


def _table(texts: Counter[str], characters: Counter[str], names: dict[str, str]) -> pa.Table:
    labels = sorted(texts)
    columns = [labels, *([of[label] for label in labels] for of in (texts, characters, names))]
    return pa.table([pa.array(values, field.type) for values, field in zip(columns, _COUNTED, strict=True)], schema=_COUNTED)


def together(paths: Sequence[str], folder: str) -> dict[str, Any]:
    """Adds up what Count wrote."""
    texts, characters, names = Counter[str](), Counter[str](), dict[str, str]()
    for path in paths:
        for label, count, size, name in zip(*(column.to_pylist() for column in storage.read_table(path).columns), strict=True):
            texts[label] += count
            characters[label] += size
            names.setdefault(label, name)
    storage.write_table(storage.join(folder, "classes.parquet"), _table(texts, characters, names))
    return {"classes": len(texts)}


# ------------------------------------------------------------------------------------------------------------------------ names


class NameMapper:
    """Maps a labelled text to a row: the name of its class, and names of other classes that text and seed decide."""

    def __init__(self, shape: Labelled, mapping: Columns, language: str | None, classes: Classes, seed: str) -> None:
        self._read, self._make = PairMapper(columns_of(shape), language), PairMapper(mapping, language)
        self._shape, self._classes, self._seed = shape, classes, seed
        self._names = sorted(set(classes.names.values()))

    def __call__(self, record: Record) -> Mapped:
        read = self._read(record)
        text, label = read.values[:2]
        # A label that is not counted is one of a record that is not sampled.
        if read.refusal is not None or label not in self._classes.names:
            return read
        name = self._classes.names[label]
        negatives = list[str]()
        for number in walk(len(self._names), self._seed, label, text):
            if len(negatives) == self._shape.negatives:
                break
            if self._names[number] != name:
                negatives.append(self._names[number])
        return self._make({"query": text, "positive": name, "negative": negatives, "label": label})


def walk(size: int, *parts: str) -> Iterator[int]:
    """All numbers below `size`, each once: from a start and in steps that the parts decide, and that share no divisor with it."""
    if size < 2:
        yield from range(size)
        return
    draw = drawn("walk", *parts)
    start, step = draw % size, 1 + (draw >> 32) % (size - 1)
    while math.gcd(step, size) != 1:
        step = step % (size - 1) + 1
    for number in range(size):
        yield (start + number * step) % size


# -------------------------------------------------------------------------------------------------------------------- exemplars


def place(classes: Classes, seed: str, label: str, text: str) -> Iterator[int]:
    """The bucket of a text, and POOL where it is one of the sample. Equal texts of a class meet."""
    count = classes.texts[label]
    chunk = drawn("chunk", text) % -(-count // CHUNK)
    yield bucket(label, str(chunk))
    if drawn("pool", seed, label, text) < classes.share / count * 2**64:
        yield POOL


class Pool:
    """The sample: texts of each class, in an order that has nothing to do with what they say, and the classes of each text."""

    def __init__(self, rows: Iterable[tuple[str, str, Any]]) -> None:
        self.classes: dict[str, set[str]] = {}
        for label, text, _ in rows:
            self.classes.setdefault(text, set()).add(label)
        self.texts: dict[str, list[str]] = {}
        for text in sorted(self.classes, key=lambda text: (digest("pool", text), text)):
            for label in self.classes[text]:
                self.texts.setdefault(label, []).append(text)
        self.labels = sorted(self.texts)

    def others(self, label: str, text: str, count: int, seed: str, without: set[str]) -> list[str]:
        """Texts of other classes, one of each before a second one of any. A text that is of this class too is none of them."""
        found: dict[str, None] = {}
        draw = drawn("exemplar", seed, label, text)
        for turn in range(max(map(len, self.texts.values()), default=0)):
            for number in walk(len(self.labels), seed, label, text):
                other = self.texts[self.labels[number]]
                if len(found) == count:
                    return list(found)
                if self.labels[number] != label and turn < len(other):
                    # The draw is mixed with the class, so that one draw does for all classes.
                    candidate = other[((draw ^ (number * _ODD)) + turn) % len(other)]
                    if label not in self.classes[candidate] and candidate not in without:
                        found[candidate] = None
        return list(found)


def pools(rows: Iterable[tuple[str, str, Any]], held_out: HeldOut) -> dict[bool, Pool]:
    """The sample of each side: of texts to train on (False), and of those that are held out (True)."""
    sample = list(rows)
    sides = held_out.of([text for _, text, _ in sample])
    return {side: Pool(row for row, own in zip(sample, sides, strict=True) if own == side) for side in (False, True)}


def exemplars(
    label: str,
    members: Sequence[tuple[str, str | None]],
    *,
    held_out: HeldOut,
    pools: Mapping[bool, Pool],
    negatives: int,
    seed: str,
) -> Iterator[tuple[Record, bool]]:
    """Each text with the next other one of its class and its side, in rings whose order the seed decides."""
    texts = sorted({text for text, _ in members}, key=lambda text: (digest("exemplars", seed, label, text), text))
    sides = dict(zip(texts, held_out.of(texts), strict=True))
    after: dict[str, str] = {}
    for side in (False, True):
        ring = [text for text in texts if sides[text] == side]
        after |= zip(ring, [*ring[1:], *ring[:1]], strict=True)
    for text, _ in members:
        paired = after[text] != text
        found = pools[sides[text]].others(label, text, negatives, seed, {text, after[text]}) if paired else []
        yield {"query": text, "positive": after[text], "negative": found, "label": label}, paired
