"""The steps that read a source: pairs become rows, documents become passages for synthesis."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import fsspec

from datakit import storage
from datakit.assets import Assets
from datakit.errors import UserError
from datakit.recipe import AnySource, Columns, FilesSource, HuggingFaceSource, Model, PythonDocsSource
from datakit.registry import Category
from datakit.sources import files, huggingface, python_docs
from datakit.sources.files import DataFile
from datakit.sources.lines import Numbered
from datakit.sources.records import PairMapper, PassageMapper, Unreadable, Where, needed
from datakit.sources.shards import Facts, ShardWriter
from datakit.step import Step, Work

VERSION = 1
# Small files are read together, so that many of them do not make as many shards.
UNIT_BYTES = 16 << 20

log = logging.getLogger(__name__)


class Reading(Model):
    """All that decides what is read."""

    source: AnySource
    facts: Facts
    language: str | None
    shard_rows: int
    seed: int


def read_step(
    name: str,
    category: str,
    entry: Category,
    source: AnySource,
    language: str | None,
    shard_rows: int,
    assets: Assets,
    seed: int,
) -> Step:
    """A step that reads pairs as rows of `category`. `language` is for rows whose source does not say it.

    `seed` decides the order of python-docs; the records of files and data sets come as they lie. Raises a UserError for a file
    that does not exist and for a pattern that nothing matches.
    """
    return _step(name, category, entry, source, language, shard_rows, assets, seed, documents=False)


def documents_step(
    name: str,
    category: str,
    entry: Category,
    source: AnySource,
    language: str | None,
    shard_rows: int,
    assets: Assets,
    seed: int,
) -> Step:
    """A step that reads documents for synthesis. It has no rows, only rejected ones.

    The documents lie in the files (DOCUMENT schema) that `notes["files"]` names, in order, relative to the step's folder;
    `notes["documents"]` is their number.
    """
    return _step(name, category, entry, source, language, shard_rows, assets, seed, documents=True)


def origin(source: AnySource) -> str:
    """What the column `source` says: the name that the recipe gives, else one made from the source."""
    if source.name is not None:
        return source.name
    if isinstance(source, PythonDocsSource):
        return f"python-docs/{source.part}"
    if isinstance(source, HuggingFaceSource):
        path = source.path.rstrip("/")
        path = path.rpartition("/")[2] if huggingface.is_local(path) else path
        return "/".join(part for part in (path, source.config, source.split) if part)
    paths = source.path if isinstance(source.path, list) else [source.path]
    return ",".join(_last_part(path) for path in paths)


def _last_part(path: str) -> str:
    parts = path.rstrip("/").split("/")
    return "/".join(parts[-2:] if fsspec.core.has_magic(parts[-1]) else parts[-1:])


def check_origins(category: str, sources: Sequence[AnySource]) -> None:
    """Raises a UserError when two sources of a category have one name: equal records in them would get equal ids."""
    seen: set[str] = set()
    for source in sources:
        name = origin(source)
        if name in seen:
            raise UserError(f"The category '{category}' has two sources called '{name}'. Give each a 'name' of its own.")
        seen.add(name)


def _step(
    name: str,
    category: str,
    entry: Category,
    source: AnySource,
    language: str | None,
    shard_rows: int,
    assets: Assets,
    seed: int,
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
    if language is None and python:
        language = "en"
    parameters = Reading(source=source, facts=facts, language=language, shard_rows=shard_rows, seed=seed if python else 0)
    digests, packages, units = dict[str, str](), tuple[str, ...](), list[list[DataFile]]()
    if isinstance(source, FilesSource):
        found = files.find(source)
        digests = {file.name: _digest(file.path, assets) for file in found}
        units = [found] if source.limit is not None else _grouped(found)
    elif isinstance(source, HuggingFaceSource):
        digests = {"data": _digest(source.path, assets, source.revision)}
        packages = ("datasets",)
        if source.revision is None and not huggingface.is_local(source.path):
            log.warning(
                "'%s' has no 'revision': what is on the Hub may change, and a build that is in the cache will not.", source.path
            )
    else:
        packages = python_docs.distributions(source)
    work = _ReadWork(units, documents)
    return Step(name, VERSION, work, parameters, assets=digests, packages=packages)


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
    """The work of a step that reads: one unit for each group of files, or one for the whole source."""

    groups: list[list[DataFile]]
    documents: bool

    def __call__(self, work: Work) -> None:
        reading = work.step.parameters
        assert isinstance(reading, Reading)
        phase = "documents" if self.documents else "rows"
        results = work.map(phase, _ReadUnit(reading, work.step.name, self.documents), self.groups or [[]])
        _check_unreadable(reading, results)
        if self.documents:
            work.notes["documents"] = sum(result["documents"] for result in results)
            work.notes["files"] = [
                storage.join(phase, f"{number:05d}", name) for number, result in enumerate(results) for name in result["files"]
            ]
        work.finish(phase, results)


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


@dataclass(frozen=True)
class _ReadUnit:
    """Reads one group of files, or a whole source that is not files, into shards."""

    reading: Reading
    step: str
    documents: bool

    def __call__(self, unit: list[DataFile], folder: str) -> dict[str, Any]:
        reading, source = self.reading, self.reading.source
        if isinstance(source, PythonDocsSource):
            columns, where = python_docs.COLUMNS[source.documents], Where({})
        else:
            columns, where = source.mapping, Where(source.where)
        mapper = (PassageMapper if self.documents else PairMapper)(columns, reading.language)
        writer = ShardWriter(folder, reading.facts, self.step, reading.shard_rows, source.max_record_bytes, self.documents)
        for name, read in _parts(reading, unit, columns, writer):
            writer.begin(name)
            for number, record in read:
                if isinstance(record, Unreadable):
                    writer.refuse(number, record)
                else:
                    writer.add(number, mapper(record), where(record))
        return writer.finish()


def _parts(
    reading: Reading, unit: list[DataFile], columns: Columns, writer: ShardWriter
) -> Iterator[tuple[str, Iterator[Numbered]]]:
    """The files of a unit, or the one part of a source that is not files, with their records."""
    source = reading.source
    if isinstance(source, FilesSource):
        for file in unit:
            left = None if source.limit is None else source.limit - writer.records
            if left != 0:
                yield file.name, files.records(file, source, needed(columns, source.where), left)
    elif isinstance(source, HuggingFaceSource):
        yield reading.facts.source, huggingface.records(source, needed(columns, source.where))
    else:
        yield source.part, python_docs.records(source, reading.seed)
