"""Data sets of Hugging Face: from the Hub, from a local folder, or as `save_to_disk` wrote them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Any

from datakit.errors import UserError
from datakit.recipe import HuggingFaceSource
from datakit.sources.files import batch_records
from datakit.sources.lines import Numbered
from datakit.sources.records import check_columns, shown

_BATCH = 1024


def is_local(path: str) -> bool:
    return os.path.isdir(os.path.expanduser(path))


def records(source: HuggingFaceSource, wanted: Sequence[str]) -> Iterator[Numbered]:
    """The records of one split with their positions from 1. Raises a UserError where it cannot be opened or lacks a column."""
    dataset = _open(source)
    names: Sequence[str] | None = dataset.column_names
    if names is not None:
        check_columns(wanted, names, source.path)
        dataset = dataset.select_columns(list(wanted))
    classes = {name: feature.names for name, feature in (dataset.features or {}).items() if hasattr(feature, "names")}
    read = _numbered(dataset, source, wanted, classes)
    return itertools.islice(read, source.limit)


def _numbered(
    dataset: Any, source: HuggingFaceSource, wanted: Sequence[str], classes: dict[str, list[str]]
) -> Iterator[Numbered]:
    number = 0
    batches = dataset.with_format("arrow").iter(batch_size=_BATCH)
    while True:
        try:
            batch = next(batches, None)
        except Exception as error:  # a reader of datasets may raise anything
            raise _refusal(source, error) from error
        if batch is None:
            return
        if not number:
            check_columns(wanted, batch.schema.names, source.path)
        for record in batch_records(batch.select(list(wanted))):
            number += 1
            for name, labels in classes.items():
                value = record[name]
                record[name] = labels[value] if value is not None and 0 <= value < len(labels) else None
            yield number, record


def _open(source: HuggingFaceSource) -> Any:
    import datasets

    datasets.disable_progress_bars()
    path = os.path.expanduser(source.path)
    try:
        if is_local(path) and os.path.exists(os.path.join(path, "dataset_dict.json")):
            splits = datasets.load_from_disk(path)
            if source.split not in splits:
                raise UserError(f"'{source.path}' has no split '{source.split}'; it has: {', '.join(splits)}.")
            return splits[source.split]
        if is_local(path) and os.path.exists(os.path.join(path, "state.json")):
            return datasets.load_from_disk(path)
        return datasets.load_dataset(
            path, source.config, split=source.split, revision=source.revision, streaming=source.streaming
        )
    except UserError:
        raise
    except Exception as error:  # besides its own errors, datasets passes on those of every library under it
        raise _refusal(source, error) from error


def _refusal(source: HuggingFaceSource, error: Exception) -> UserError:
    reason = shown((str(error).strip() or type(error).__name__).splitlines()[0], 400).rstrip(".")
    where = "local folder" if is_local(source.path) else "name on the Hub (no such folder is here)"
    return UserError(f"The data set '{source.path}', a {where}, cannot be read (split '{source.split}'): {reason}.")
