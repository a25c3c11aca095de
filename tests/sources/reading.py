"""Reading sources in tests."""

from __future__ import annotations

import bz2
import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import zstandard
from stepping import read, run_step

from datakit.assets import Assets
from datakit.recipe import AnySource, FilesSource
from datakit.registry import Category
from datakit.sources.read import documents_step, read_step
from datakit.step import Output, Step

PAIRS = {"query": "question", "positive": "answer"}
ENTRY = Category(key="entry", family="test", description="", task="retrieval", instruction="Find", document_instruction="Doc")
COMPRESS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".zst": zstandard.ZstdCompressor().compress}


def files(path: Path | str | list[Path], columns: dict[str, Any] | None = None, **options: Any) -> FilesSource:
    paths = [str(item) for item in path] if isinstance(path, list) else str(path)
    return FilesSource.model_validate({"type": "files", "path": paths, "columns": columns or PAIRS, **options})


def shaped(path: Path | str, *reshape: dict[str, Any], **options: Any) -> FilesSource:
    """Files whose records are grouped, without columns of their own."""
    return FilesSource.model_validate({"type": "files", "path": str(path), "reshape": list(reshape), **options})


def step(source: AnySource, cache: Path, *, documents: bool = False, shard_rows: int = 1000, **options: Any) -> Step:
    make = documents_step if documents else read_step
    entry = options.get("entry", ENTRY)
    return make("read-c", "c", entry, source, options.get("language"), shard_rows, Assets(str(cache)), options.get("seed", 0))


def output(source: AnySource, cache: Path, workers: int = 1, **options: Any) -> Output:
    return run_step(step(source, cache, **options), str(cache), workers)


def rows(output: Output) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read(output.shards).to_pylist()
    return found


def rejected(output: Output) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pa.Table.to_pylist(read(output.rejected))
    return found


def documents(output: Output) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read([f"{output.folder}/{name}" for name in output.report.notes["files"]]).to_pylist()
    return found
