"""The registry of categories: one YAML file for each family, and the code that loads them."""

from __future__ import annotations

import functools
from importlib import resources

import yaml
from pydantic import Field

from datakit.recipe import Task


class Category(Task):
    """An entry: what a category is, and how its texts are prefixed."""

    key: str
    family: str
    description: str
    languages: list[str] = Field(default=["en"])


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
