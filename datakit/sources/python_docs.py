"""Documentation that every Python carries: the language reference, docstrings, descriptions of installed packages."""

from __future__ import annotations

import importlib.metadata
import itertools
import pydoc_data.topics
import sys
from collections.abc import Iterator

from datakit.distributions import canonical, installed
from datakit.errors import UserError
from datakit.recipe import Columns, PythonDocsSource
from datakit.sources import docstrings, readme, topics
from datakit.sources.lines import Numbered
from datakit.sources.paragraphs import beginning
from datakit.sources.paths import Record
from datakit.sources.records import Unreadable

# How records are mapped, by whether they are documents.
COLUMNS = {
    False: Columns(query="query", positive="positive", document_id="document_id"),
    True: Columns(document="text", title="title", document_id="document_id"),
}
# Longer descriptions are cut at a paragraph where they are the positive.
WORDS = 300


def records(source: PythonDocsSource, seed: int) -> Iterator[Numbered]:
    """The records of a source with their positions from 1."""
    return enumerate(itertools.islice(_records(source, seed), source.limit), start=1)


def distributions(source: PythonDocsSource) -> tuple[str, ...]:
    """The distributions whose versions decide what is read. Raises a UserError for a package that is not installed."""
    if source.part == "topics":
        return ("python",)
    if source.part == "packages":
        return tuple(_installed(source))
    by_package = importlib.metadata.packages_distributions()
    names = set()
    for package in source.packages or [docstrings.STDLIB]:
        next(docstrings.module_files(package), None)
        first = package.split(".")[0]
        standard = first == docstrings.STDLIB or first in sys.stdlib_module_names
        names.update(["python"] if standard else by_package.get(first, [first]))
    # What counts as a docstring, and how a signature is written, is decided by Python's own parser.
    return tuple(sorted(names | {"python"}))


def _records(source: PythonDocsSource, seed: int) -> Iterator[Record | Unreadable]:
    if source.part == "topics":
        return (topics.documents if source.documents else topics.pairs)(pydoc_data.topics.topics)
    if source.part == "packages":
        return _packages(source)
    return _documented(source, seed)


def _documented(source: PythonDocsSource, seed: int) -> Iterator[Record | Unreadable]:
    """What the packages document, one after the other: they take turns."""
    for item in _in_turns([docstrings.documented(package, seed) for package in source.packages or [docstrings.STDLIB]]):
        if isinstance(item, Unreadable):
            yield item
        else:
            yield docstrings.document(item) if source.documents else docstrings.pair(item, source.part)


def _in_turns(
    iterators: list[Iterator[docstrings.Documented | Unreadable]],
) -> Iterator[docstrings.Documented | Unreadable]:
    while iterators:
        left = []
        for iterator in iterators:
            for item in itertools.islice(iterator, 1):
                yield item
                left.append(iterator)
        iterators = left


def _installed(source: PythonDocsSource) -> list[str]:
    """Names of the distributions to read, in the form that package indexes use, sorted."""
    there = installed()
    for name in source.packages:
        if canonical(name) not in there:
            raise UserError(f"The distribution '{name}' is not installed. Install it (pip install {name}), or take it out.")
    return sorted({canonical(name) for name in source.packages} or there)


def _packages(source: PythonDocsSource) -> Iterator[Record]:
    for name in _installed(source):
        metadata = installed()[name].metadata
        summary = " ".join((metadata["Summary"] or "").split())
        raw = metadata["Description"] or ""
        text = readme.plain(raw, metadata["Description-Content-Type"])
        # A description that opens with the summary would be found by its words alone.
        paragraphs = [part for part in text.split("\n\n") if " ".join(part.split()).casefold() != summary.casefold()]
        text = "\n\n".join(paragraphs)
        if source.documents:
            title = f"{name}: {summary}" if summary else name
            yield {"title": title, "text": text, "document_id": f"package {name}"}
        else:
            yield {"query": summary, "positive": beginning(text, WORDS), "document_id": f"package {name}"}
