"""The records of a unit of a source, one after the other, as conditions and unpacking leave them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from datakit.recipe import Columns, FilesSource, ParallelSource, PythonDocsSource, TableSource
from datakit.sources import files, huggingface, parallel, python_docs
from datakit.sources.files import DataFile
from datakit.sources.job import Job
from datakit.sources.lines import Numbered
from datakit.sources.records import Unreadable
from datakit.sources.reshape import Shaped, Shaper

Part = tuple[str, Iterator[tuple[int, Shaped]]]


def parts(job: Job, unit: Sequence[DataFile], columns: Columns) -> Iterator[Part]:
    """The files of a unit, or the one part of a source that is not files, with their records and the numbers of these.

    Records that come of one by unpacking share its number. They have the columns that `columns` uses.
    """
    source, reading = job.reading.source, job.reading
    if isinstance(source, PythonDocsSource):
        yield source.part, _shaped(python_docs.records(source, reading.seed), Shaper({}, []))
        return
    if isinstance(source, ParallelSource):
        yield "+".join(file.name for file in unit), _shaped(parallel.records(source, unit), Shaper({}, []))
        return
    assert isinstance(source, TableSource)
    shaper, wanted = Shaper(source.where, source.unpacking), needed(source, columns)
    if not isinstance(source, FilesSource):
        yield reading.facts.source, _shaped(huggingface.records(source, wanted, job.path), shaper)
        return
    left = source.limit
    for file in unit:
        if left == 0:
            return
        count = _Counted(files.records(file, source, wanted, left))
        yield file.name, _shaped(count, shaper)
        if left is not None:
            left -= count.count


def needed(source: TableSource, columns: Columns) -> list[str]:
    """The names that records of a source must have: those of the columns, of conditions, and of lists to unpack."""
    unpacked = [name for shape in source.unpacking for name in shape.columns]
    return list(dict.fromkeys([*columns.used(), *source.where, *unpacked]))


class _Counted:
    """An iterator that knows how many records it gave."""

    def __init__(self, read: Iterator[Numbered]) -> None:
        self._read, self.count = read, 0

    def __iter__(self) -> Iterator[Numbered]:
        for item in self._read:
            self.count += 1
            yield item


def _shaped(read: _Counted | Iterator[Numbered], shaper: Shaper) -> Iterator[tuple[int, Shaped]]:
    for number, record in read:
        if isinstance(record, Unreadable):
            yield number, (record, True)
        else:
            for shaped in shaper(record):
                yield number, shaped
