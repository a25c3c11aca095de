"""The steps that read a source: pairs become rows, documents become passages for synthesis."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from datakit import storage
from datakit.assets import Assets
from datakit.errors import UserError
from datakit.held_out import HeldOut
from datakit.recipe import (
    AnySource,
    BeirSource,
    Columns,
    FilesSource,
    Group,
    HuggingFaceSource,
    Labelled,
    ParallelSource,
    PythonDocsSource,
    Split,
    TableSource,
)
from datakit.registry import Category
from datakit.sources import beir, files, grouping, labelled, parallel, python_docs
from datakit.sources.buckets import Sent, units
from datakit.sources.files import DataFile
from datakit.sources.job import Job, Reading
from datakit.sources.labelled import Classes, NameMapper
from datakit.sources.origins import origin, place
from datakit.sources.records import PairMapper, PassageMapper, Unreadable
from datakit.sources.shards import Facts
from datakit.sources.stream import parts
from datakit.step import Step, Work

VERSION = 2
# Small files are read together, so that many of them do not make as many shards.
UNIT_BYTES = 16 << 20

log = logging.getLogger(__name__)


def read_step(
    name: str,
    category: str,
    entry: Category,
    source: AnySource,
    language: str | None,
    shard_rows: int,
    assets: Assets,
    seed: int,
    mirror: str | None = None,
    declared_by: str = "",
    split: Split | None = None,
) -> Step:
    """A step that reads pairs as rows of `category`. `language` is for rows whose source does not say it.

    `seed` decides the order of python-docs, and what groups and labels draw; else records come as they lie. `mirror` is a folder
    with copies of data sets of the Hub. `declared_by` is the registry entry that names the source, for errors. `split` says which
    texts will be held out, so that exemplars are paired on one side. Raises a UserError for a file that does not exist and for a
    pattern that nothing matches.
    """
    held_out = HeldOut()
    if split is not None and labelled.has_exemplars(source):
        held_out = HeldOut(share=split.validation, seed=seed)
    return _step(
        name, category, entry, source, language, shard_rows, assets, seed, mirror, declared_by, held_out, documents=False
    )


def documents_step(
    name: str,
    category: str,
    entry: Category,
    source: AnySource,
    language: str | None,
    shard_rows: int,
    assets: Assets,
    seed: int,
    mirror: str | None = None,
    declared_by: str = "",
) -> Step:
    """A step that reads documents for synthesis. It has no rows, only rejected ones.

    The documents lie in the files (DOCUMENT schema) that `notes["files"]` names, in order, relative to the step's folder;
    `notes["documents"]` is their number.
    """
    return _step(
        name, category, entry, source, language, shard_rows, assets, seed, mirror, declared_by, HeldOut(), documents=True
    )


def _step(
    name: str,
    category: str,
    entry: Category,
    source: AnySource,
    language: str | None,
    shard_rows: int,
    assets: Assets,
    seed: int,
    mirror: str | None,
    declared_by: str,
    held_out: HeldOut,
    *,
    documents: bool,
) -> Step:
    python = isinstance(source, PythonDocsSource)
    facts = Facts(
        category=category,
        source=origin(source),
        # One function gives rows to several parts of python-docs: they share a document, so that the split keeps them together.
        namespace="python-docs" if python else origin(source),
        task=entry.task,
        instruction=entry.instruction,
        document_instruction=entry.document_instruction,
        in_batch_negatives=entry.in_batch_negatives,
    )
    draws = python or (isinstance(source, TableSource) and isinstance(source.grouping, Group | Labelled))
    reading = Reading(
        source=source,
        facts=facts,
        language="en" if python and language is None else language,
        shard_rows=shard_rows,
        seed=seed if draws else 0,
        held_out=held_out,
    )
    digests, packages = dict[str, str](), tuple[str, ...]()
    path, found, groups = "", list[DataFile](), list[list[DataFile]]()
    if isinstance(source, FilesSource):
        with _of(category):
            found = files.find(source)
        groups = [found] if source.limit is not None else _grouped(found)
    elif isinstance(source, ParallelSource):
        with _of(category):
            found = parallel.find(source)
        groups = [found]
    elif isinstance(source, BeirSource | HuggingFaceSource):
        path = place(source, mirror)
        found = beir.find(source, path) if isinstance(source, BeirSource) else []
        packages = () if found else ("datasets",)
        digests = {} if found else {"data": _digest(path, assets, source.revision)}
        groups = [found]
    else:
        packages = python_docs.distributions(source)
    if held_out.share:
        # Texts are normalised before their sides are drawn.
        packages = (*packages, "polars", "python")
    digests |= {file.name: _digest(file.path, assets) for file in found}
    work = _ReadWork(Job(reading, name, documents, path, declared_by), groups or [[]])
    return Step(name, VERSION, work, reading, assets=digests, packages=packages)


@contextmanager
def _of(category: str) -> Iterator[None]:
    """Names the category in what is said of its files."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{error} It is a source of '{category}'.") from error


def _digest(path: str, assets: Assets, revision: str | None = None) -> str:
    try:
        return assets.digest(path, revision)
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror or error}.") from error


def _grouped(found: Sequence[DataFile]) -> list[list[DataFile]]:
    """Neighbouring files that together have at most UNIT_BYTES; a larger one, or one of unknown size, alone."""
    groups: list[list[DataFile]] = []
    size = UNIT_BYTES + 1
    for file in found:
        own = UNIT_BYTES if file.size is None else file.size
        if size + own > UNIT_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(file)
        size += own
    return groups


@dataclass(frozen=True)
class _ReadWork:
    """The work of a step that reads: a unit for each group of files, or one for the whole source."""

    job: Job
    groups: list[list[DataFile]]

    def __call__(self, work: Work) -> None:
        source = self.job.reading.source
        shape = source.grouping if isinstance(source, TableSource) else None
        phase, before = "documents" if self.job.documents else "rows", dict[str, list[dict[str, Any]]]()
        if isinstance(source, BeirSource):
            before["sides"], results = beir.rows(work, self.job, self.groups[0])
        elif shape is None or (isinstance(shape, Labelled) and shape.documents == "names"):
            classes = self._classes(work) if shape is not None else None
            results = work.map(phase, _ReadUnit(self.job, classes), self.groups)
        else:
            classes = self._classes(work) if isinstance(shape, Labelled) else None
            before["scatter"] = work.map("scatter", grouping.Scatter(self.job, classes), self.groups)
            sent = Sent.of(work, "scatter", before["scatter"])
            results = work.map("rows", grouping.Gather(self.job, sent), units([sent]))
        _check_unreadable(self.job.reading, [*(result for found in before.values() for result in found), *results])
        if self.job.documents:
            work.notes["documents"] = sum(result["documents"] for result in results)
            work.notes["files"] = [
                storage.join(phase, f"{number:05d}", name) for number, result in enumerate(results) for name in result["files"]
            ]
        work.finish(phase, results, before)

    def _classes(self, work: Work) -> str:
        """The file with the classes of labelled texts."""
        counted = work.map("classes", labelled.Count(self.job), self.groups)
        paths = [work.files("classes", number, "classes.parquet") for number in range(len(counted))]
        work.map("together", labelled.together, [paths])
        return work.files("together", 0, "classes.parquet")


def _check_unreadable(reading: Reading, results: Sequence[Mapping[str, Any]]) -> None:
    records, bad = sum(result["records"] for result in results), sum(result["unreadable"] for result in results)
    source = reading.facts.source
    if not records:
        log.warning("The source '%s' of the category '%s' has no records.", source, reading.facts.category)
        return
    allowed = reading.source.max_bad_fraction
    if bad > allowed * records:
        places = [place for result in results for place in result["places"]][:3]
        raise UserError(
            f"{bad:,} of {records:,} records of '{source}' cannot be read ({bad / records:.2%}), and max_bad_fraction allows "
            f"{allowed:.2%}. Mend the data, or allow more in the recipe. The first: {' | '.join(places)}"
        )
    if not any(result["rows"] for result in results):
        log.warning("The source '%s' of the category '%s' gives no rows: %d records.", source, reading.facts.category, records)


@dataclass(frozen=True)
class _ReadUnit:
    """Reads one group of files, or a whole source that is not files, into shards.

    `classes` is the file with the classes of labelled texts, where names of classes are the positives.
    """

    job: Job
    classes: str | None

    def __call__(self, unit: list[DataFile], folder: str) -> dict[str, Any]:
        columns, mapper = self._mapper()
        writer = self.job.writer(folder)
        with self.job.declared():
            for name, read in parts(self.job, unit, columns):
                writer.begin(name)
                for number, (record, sampled) in read:
                    if isinstance(record, Unreadable):
                        writer.refuse(number, record)
                    else:
                        writer.add(number, mapper(record), sampled)
        return writer.finish()

    def _mapper(self) -> tuple[Columns, PairMapper | PassageMapper | NameMapper]:
        """The columns that are read, and what makes fields of them."""
        source, language = self.job.reading.source, self.job.reading.language
        if self.classes is not None:
            assert isinstance(source, TableSource)
            assert isinstance(source.grouping, Labelled)
            classes, seed = Classes(self.classes), str(self.job.reading.seed)
            return labelled.columns_of(source.grouping), NameMapper(source.grouping, source.mapping, language, classes, seed)
        if isinstance(source, PythonDocsSource):
            columns = python_docs.COLUMNS[self.job.documents]
        elif isinstance(source, ParallelSource):
            columns = parallel.columns(source)
        else:
            assert isinstance(source, TableSource)
            columns = source.mapping
        return columns, (PassageMapper if self.job.documents else PairMapper)(columns, language)
