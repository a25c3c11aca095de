"""What decides the bytes of an index, and what `settings.json` says of it."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from datakit import storage
from datakit.encoders.encode import PACKAGES
from datakit.recipe.fields import Model
from datakit.sources.files import DataFile, reading

SETTINGS, VECTORS, PASSAGES = "settings.json", "vectors.faiss", "passages.parquet"


class Options(Model):
    """What a person may choose."""

    precision: Literal["float32", "int8", "binary"] = Field("float32", description="Of stored vectors; 4, 1 and 1/8 bytes each.")
    shortlist: int = Field(64, ge=1, description="Dimensions of the vectors that the shortlist compares.")
    method: Literal["exact", "hnsw"] = Field("exact", description="How the shortlist is found.")
    column: str = Field("text", description="Of JSONL, CSV and Parquet: where the text is.")
    words: int = Field(160, ge=8, description="Most words of a passage; a quarter of it where paragraphs allow.")
    format: Literal["parquet", "jsonl", "json", "csv", "tsv", "text"] | None = Field(None, description="Default: by the name.")


class Job(Model):
    """All that decides an index. A run that was killed is gone on with only where this is the same."""

    version: int = 1
    options: Options
    model: str
    model_digest: str
    files: int
    files_digest: str
    packages: dict[str, str]


class Settings(Model):
    """settings.json. While an index is made it holds the job alone."""

    job: Job
    dimensions: int = 0
    passages: int = 0

    @property
    def finished(self) -> bool:
        return self.passages > 0


def job(options: Options, model: str, model_digest: str, files: Sequence[DataFile], faiss: str) -> Job:
    """The job of indexing some files. `faiss` is its version. Reads each file once; raises UserError where one cannot be."""
    digests = []
    for file in files:
        with reading(file.path):
            digests.append(f"{file.name}={storage.file_digest(file.path)}")
    return Job(
        options=options,
        model=model,
        model_digest=model_digest,
        files=len(files),
        files_digest=storage.bytes_digest("\n".join(digests).encode()),
        packages={name: importlib.metadata.version(name) for name in PACKAGES} | {"faiss": faiss},
    )
