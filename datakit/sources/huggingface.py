"""Data sets of Hugging Face: from the Hub, from a local folder, or as `save_to_disk` wrote them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from datakit.errors import UserError
from datakit.recipe import HuggingFaceSource
from datakit.sources.files import batch_records
from datakit.sources.lines import Numbered
from datakit.sources.paths import check_columns, column_of, names_in
from datakit.sources.records import ClassName, shown

_BATCH = 1024


def is_local(path: str) -> bool:
    return os.path.isdir(os.path.expanduser(path))


def records(source: HuggingFaceSource, wanted: Sequence[str], path: str) -> Iterator[Numbered]:
    """The records of one split with their positions from 1. `path` is where the data set lies: its name on the Hub, or a folder.

    Raises a UserError where it cannot be opened or lacks a column.
    """
    dataset = _open(source, path)
    if dataset.features is not None:
        check_columns(wanted, names_in(dataset.features.arrow_schema), source.path)
        dataset = dataset.select_columns(_columns(wanted, dataset.column_names))
    named = {name: name_classes for name, kind in (dataset.features or {}).items() if (name_classes := naming(kind)) is not None}
    return itertools.islice(_numbered(dataset, source, wanted, named, path), source.limit)


def columns(source: HuggingFaceSource, path: str) -> list[str]:
    """The names of a data set's columns; none where it does not say them before it is read."""
    return _open(source, path).column_names or []


def splits(source: HuggingFaceSource, path: str) -> list[str]:
    """The splits of a data set's configuration."""
    import datasets

    try:
        found: list[str] = datasets.get_dataset_split_names(os.path.expanduser(path), source.config, revision=source.revision)
    except Exception as error:  # as in _open
        raise _refusal(source, error, path) from error
    return found


def _columns(wanted: Sequence[str], there: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(column_of(name, there) for name in wanted))


Naming = Callable[[Any], Any]


def naming(kind: Any) -> Naming | None:
    """What puts the names of classes in the place of their numbers, also within lists and objects; None where there are none."""
    names = getattr(kind, "names", None)
    if names is not None:
        return lambda value: ClassName(names[value], value) if value is not None and 0 <= value < len(names) else None
    if isinstance(kind, dict):
        inner = {name: found for name, part in kind.items() if (found := naming(part)) is not None}
        return (lambda value: value and {**value, **{name: of(value[name]) for name, of in inner.items()}}) if inner else None
    item = (
        naming(kind[0] if isinstance(kind, list) else kind.feature)
        if isinstance(kind, list) or hasattr(kind, "feature")
        else None
    )
    return None if item is None else lambda value: value and [item(part) for part in value]


def _numbered(
    dataset: Any, source: HuggingFaceSource, wanted: Sequence[str], named: dict[str, Naming], path: str
) -> Iterator[Numbered]:
    number = 0
    batches = dataset.with_format("arrow").iter(batch_size=_BATCH)
    while True:
        try:
            batch = next(batches, None)
        except Exception as error:  # a reader of datasets may raise anything
            raise _refusal(source, error, path) from error
        if batch is None:
            return
        if not number:
            check_columns(wanted, names_in(batch.schema), source.path)
        for record in batch_records(batch.select(_columns(wanted, batch.schema.names))):
            number += 1
            for name, of in named.items():
                record[name] = of(record[name])
            yield number, record


def _open(source: HuggingFaceSource, path: str) -> Any:
    import datasets

    datasets.disable_progress_bars()
    path = os.path.expanduser(path)
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
        raise _refusal(source, error, path) from error


def _refusal(source: HuggingFaceSource, error: Exception, path: str) -> UserError:
    reason = shown((str(error).strip() or type(error).__name__).splitlines()[0], 400).rstrip(".")
    if is_local(source.path):
        where = "a local folder"
    else:
        where = f"in the mirror '{path}'" if is_local(path) else "a name on the Hub (no such folder is here)"
    of = f"configuration '{source.config}', " if source.config else ""
    return UserError(f"The data set '{source.path}', {where}, cannot be read ({of}split '{source.split}'): {reason}.")
