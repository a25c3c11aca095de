"""A published build, as Python sees it: lazy Polars frames, the manifest, the story of each row."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import polars as pl
import pyarrow as pa
from pydantic import ValidationError

from datakit import storage
from datakit.errors import BuildError, UserError
from datakit.publish.manifest import MANIFEST_VERSION, Manifest
from datakit.schema import EXAMPLE, JUDGED, REJECTED

if TYPE_CHECKING:
    from datakit.explain import Explanation

# A row that was in order, and for which the mixture had no room. Its text is not published.
NOT_SAMPLED = pa.schema([pa.field("row_id", pa.string()), pa.field("category", pa.string()), pa.field("step", pa.string())])
PARTS = {"train": EXAMPLE, "validation": EXAMPLE, "rejected": REJECTED, "not_sampled": NOT_SAMPLED, "judged": JUDGED}


@dataclass(frozen=True)
class Build:
    """A version of a data set on disk. The frames are lazy: nothing is read before `collect`."""

    path: str
    manifest: Manifest

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def version(self) -> str:
        return self.manifest.version

    @property
    def train(self) -> pl.LazyFrame:
        """The rows to train on (columns: schema.EXAMPLE)."""
        return self.frame("train")

    @property
    def validation(self) -> pl.LazyFrame:
        """The rows to measure on (schema.EXAMPLE); none of their documents is in train."""
        return self.frame("validation")

    @property
    def rejected(self) -> pl.LazyFrame:
        """The rejected rows, whole, with step, reason, value, threshold, other_id, detail (schema.REJECTED)."""
        return self.frame("rejected")

    @property
    def not_sampled(self) -> pl.LazyFrame:
        """row_id, category and step of the rows that nothing was wrong with, and that were not drawn."""
        return self.frame("not_sampled")

    def judged(self) -> pl.LazyFrame:
        """What judges said of rows (schema.JUDGED): row_id, category, query, positive, criterion, score from 1 to 5, kept.

        One row for each that a judge was asked about, wherever it went afterwards; `score` is null where an answer had none.
        """
        return self.frame("judged")

    def files(self, part: str) -> list[str]:
        """The Parquet files of a part ("train", "validation", "rejected", "not_sampled", "judged"), in order."""
        return [os.path.join(self.path, name) for name in sorted(self.manifest.files) if name.startswith(f"{part}/")]

    def frame(self, part: str) -> pl.LazyFrame:
        """A part as a lazy frame; empty, with all its columns, where the build has no such rows."""
        files = self.files(part)
        if not files:
            empty = pl.from_arrow(PARTS[part].empty_table())
            assert isinstance(empty, pl.DataFrame)
            return empty.lazy()
        return pl.scan_parquet(files, hive_partitioning=False, glob=False)

    def explain(self, row_id: str) -> Explanation:
        """The story of the row with this id, or the only one whose id begins so (at least 6 characters).

        Raises UserError where no row, or more than one, has such an id.
        """
        from datakit.explain import explain

        return explain(self, row_id)

    def verify(self) -> None:
        """Reads every file and compares its digest with the manifest. Raises BuildError with the files that differ."""
        wrong = []
        for name, file in self.manifest.files.items():
            path = os.path.join(self.path, name)
            if not os.path.isfile(path):
                wrong.append(f"'{name}' is missing")
            elif storage.file_digest(path) != file.digest:
                wrong.append(f"'{name}' was changed")
        if wrong:
            raise BuildError(
                f"The build '{self.path}' is not as it was published: {'; '.join(wrong[:5])}"
                f"{f' and {len(wrong) - 5} more' if len(wrong) > 5 else ''}. Move that folder away and build again."
            )

    def __repr__(self) -> str:
        totals = self.manifest.totals
        return (
            f"Build({self.name} {self.version}: {totals.train:,} train, {totals.validation:,} validation, "
            f"{totals.rejected:,} rejected, {totals.not_sampled:,} not sampled, {len(self.manifest.categories)} categories; "
            f"'{self.path}')"
        )

    def _repr_html_(self) -> str:
        heads = ("category", "rows in", "rejected", "not sampled", "train", "validation")
        lines = [
            (name, entry.created, sum(entry.rejected.values()), entry.not_sampled, entry.train, entry.validation)
            for name, entry in self.manifest.categories.items()
        ]
        totals = self.manifest.totals
        lines.append(("all", totals.created, totals.rejected, totals.not_sampled, totals.train, totals.validation))
        head = "".join(f"<th>{text}</th>" for text in heads)
        body = "".join(
            f"<tr><th>{escape(name)}</th>{''.join(f'<td>{number:,}</td>' for number in numbers)}</tr>" for name, *numbers in lines
        )
        return (
            f"<p><b>{escape(self.name)}</b> {escape(self.version)}<br><code>{escape(self.path)}</code></p>"
            f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        )


def open_build(path: str) -> Build:
    """Opens the build at `path`: a version's folder, a link to one, or the folder above with a `latest`.

    Raises UserError where no build is there, with what was found instead.
    """
    given = os.path.expanduser(str(path))
    for folder in (given, os.path.join(given, "latest")):
        file = os.path.join(folder, "manifest.json")
        if os.path.isfile(file):
            # The link is followed now: what was opened stays the same when a newer version is published.
            return Build(os.path.realpath(folder) if os.path.islink(folder) else folder, _read(file))
    raise UserError(f"There is no build at '{path}': {_found(given)}. {_advice(given)}")


def _read(file: str) -> Manifest:
    try:
        value = storage.read_json(file)
        if isinstance(value, dict) and value.get("schema") != MANIFEST_VERSION:
            raise UserError(
                f"'{file}' has the manifest version {value.get('schema')}, and this datakit reads {MANIFEST_VERSION}. "
                "Build the recipe again, or use the datakit that made it."
            )
        return Manifest.model_validate(value)
    except (json.JSONDecodeError, UnicodeDecodeError, ValidationError) as error:
        raise UserError(f"'{file}' is no manifest of a build ({str(error).splitlines()[0]}). Build the recipe again.") from error


def _found(path: str) -> str:
    if os.path.islink(path) and not os.path.exists(path):
        return f"it is a link to '{os.readlink(path)}', which is not there"
    if not os.path.lexists(path):
        return "nothing is there"
    if not os.path.isdir(path):
        return "it is a file, and a build is a folder"
    inside = sorted(os.listdir(path))
    if not inside:
        return "it is an empty folder"
    shown = ", ".join(inside[:5])
    return f"the folder has no manifest.json and no 'latest'; it holds {shown}{' and more' if len(inside) > 5 else ''}"


def _advice(path: str) -> str:
    """Names builds close to the path, where there are some."""
    for folder in (path, os.path.dirname(path.rstrip("/")) or "."):
        if os.path.isdir(folder):
            near = [
                os.path.join(folder, name, inner)
                for name in sorted(os.listdir(folder))
                for inner in ("", "latest")
                if os.path.isfile(os.path.join(folder, name, inner, "manifest.json"))
            ]
            if near:
                return f"Builds near it: {', '.join(name.rstrip('/') for name in near[:5])}."
    return "Give a version's folder, such as datasets/NAME/latest, or make a build with: datakit build RECIPE."
