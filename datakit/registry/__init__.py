"""The registry of categories: one YAML file for each family, and the code that loads them."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Sequence
from importlib import resources

import yaml
from pydantic import Field, RootModel

from datakit import storage
from datakit.recipe import AnySource, Model, Task
from datakit.recipe_file import FastLoader, load_model

log = logging.getLogger(__name__)


class PublicSource(Model):
    """A public data set that a category can be built from, with where its facts were read."""

    source: AnySource
    rows: int = Field(ge=1, description="Records of the split, about.")
    mteb: list[str] = Field([], description="MTEB tasks whose training side this is.")
    checked: list[str] = Field(
        min_length=1, description="Where the path, the columns and the licence were read: pages of the Hub, files of a package."
    )


class Entry(Task):
    """What a registry file says of a category: what it is, what it can be built from, and how it is written.

    An entry without `sources` is for synthesis only; `note` says why it has none.
    """

    description: str
    languages: list[str] = Field(["en"], description="BCP 47 codes.")
    sources: list[PublicSource] = []
    note: str = ""


class Category(Entry):
    """An entry with its key, and the file that it stands in."""

    key: str
    family: str


class _File(RootModel[dict[str, Entry]]):
    """A registry file: entries by key."""


def load(paths: Sequence[str] = ()) -> dict[str, Category]:
    """All entries by key: those of the files at `paths`, in their order, then those of datakit.

    A key that comes again is not taken, and the log says so. Raises a UserError for a file that is no registry.
    """
    entries: dict[str, Category] = {}
    for path in paths:
        _add(entries, _entries(path, read_file(os.path.expanduser(path))), path)
    _add(entries, _bundled(), "datakit")
    return entries


def _add(entries: dict[str, Category], found: dict[str, Category], where: str) -> None:
    for key, entry in found.items():
        if key in entries:
            log.info("the category '%s' is that of the registry '%s', not that of %s", key, entries[key].family, where)
        else:
            entries[key] = entry


@functools.cache
def _bundled() -> dict[str, Category]:
    entries: dict[str, Category] = {}
    for file in sorted(resources.files(__name__).iterdir(), key=lambda file: file.name):
        if file.name.endswith(".yaml"):
            for key, entry in _entries(file.name, _read_ours(str(file))).items():
                if key in entries:
                    raise ValueError(f"The registry has '{key}' twice: in '{entries[key].family}' and in '{entry.family}'.")
                entries[key] = entry
    return entries


def _entries(path: str, entries: dict[str, Entry]) -> dict[str, Category]:
    family = os.path.splitext(os.path.basename(path))[0]
    return {key: Category(key=key, family=family, **dict(entry)) for key, entry in entries.items()}


def read_file(path: str) -> dict[str, Entry]:
    """The entries of a registry file. A mistake is a UserError that names file, line and key."""
    return load_model(path, _File).root


def _read_ours(path: str) -> dict[str, Entry]:
    """The same for files that are known to be right: without the numbers of lines, and many times faster."""
    return _File.model_validate(yaml.load(storage.read_bytes(path), FastLoader)).root
