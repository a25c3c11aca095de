"""The registry of categories: one YAML file for each family, and the code that loads them."""

from __future__ import annotations

import functools
from importlib import resources

import yaml
from pydantic import Field

from datakit.recipe import AnySource, Model, Task


class PublicSource(Model):
    """A public data set that a category can be built from, with where its facts were read."""

    source: AnySource
    rows: int = Field(ge=1, description="Records of the split, about.")
    mteb: list[str] = Field([], description="MTEB tasks whose training side this is.")
    checked: list[str] = Field(
        min_length=1, description="Where the path, the columns and the licence were read: pages of the Hub, files of a package."
    )


class Category(Task):
    """An entry: what a category is, how its texts are prefixed, what it can be built from, and how it is written.

    An entry without `sources` is for synthesis only; `note` says why it has none.
    """

    key: str
    family: str
    description: str
    languages: list[str] = Field(["en"], description="BCP 47 codes.")
    sources: list[PublicSource] = []
    note: str = ""


@functools.cache
def load() -> dict[str, Category]:
    """All entries by key."""
    entries: dict[str, Category] = {}
    for file in sorted(resources.files(__name__).iterdir(), key=lambda file: file.name):
        if file.name.endswith(".yaml"):
            family = file.name.removesuffix(".yaml")
            for key, fields in yaml.safe_load(file.read_text(encoding="utf-8")).items():
                if key in entries:
                    raise ValueError(f"The registry has '{key}' twice: in '{entries[key].family}' and in '{family}'.")
                entries[key] = Category(key=key, family=family, **fields)
    return entries
