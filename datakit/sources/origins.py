"""What a source is called, and where its data lie."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

import fsspec

from datakit import storage
from datakit.errors import UserError
from datakit.recipe import AnySource, BeirSource, HuggingFaceSource, ParallelSource, PythonDocsSource
from datakit.sources.huggingface import is_local

log = logging.getLogger(__name__)


def origin(source: AnySource) -> str:
    """What the column `source` says: the name that the recipe gives, else one made from the source."""
    if source.name is not None:
        return source.name
    if isinstance(source, PythonDocsSource):
        return f"python-docs/{source.part}"
    if isinstance(source, HuggingFaceSource | BeirSource):
        path = source.path.rstrip("/")
        path = path.rpartition("/")[2] if is_local(path) or "://" in path else path
        config = source.config if isinstance(source, HuggingFaceSource) else None
        return "/".join(part for part in (path, config, source.split) if part)
    if isinstance(source, ParallelSource):
        paths: Sequence[str] = source.paths
    else:
        paths = source.path if isinstance(source.path, list) else [source.path]
    return ",".join(_last_part(path) for path in paths)


def _last_part(path: str) -> str:
    parts = path.rstrip("/").split("/")
    return "/".join(parts[-2:] if fsspec.core.has_magic(parts[-1]) else parts[-1:])


def check_origins(category: str, sources: Sequence[AnySource]) -> None:
    """Raises a UserError when two sources of a category have one name: equal records in them would get equal ids."""
    seen: set[str] = set()
    for source in sources:
        name = origin(source)
        if name in seen:
            raise UserError(f"The category '{category}' has two sources called '{name}'. Give each a 'name' of its own.")
        seen.add(name)


def place(source: HuggingFaceSource | BeirSource, mirror: str | None) -> str:
    """Where a data set lies: its own path where that is a folder, else its copy in the mirror, else its name on the Hub."""
    if is_local(source.path) or "://" in source.path:
        return str(source.path)
    if mirror is not None:
        copy = storage.join(os.path.expanduser(mirror), source.path)
        if is_local(copy):
            return copy
    where = "it is not in the mirror" if mirror is not None else "the recipe names no mirror"
    log.info("'%s' is read from the Hub, over the network: %s.", source.path, where)
    if source.revision is None:
        log.warning("'%s' has no 'revision': what is on the Hub may change, and a build in the cache will not.", source.path)
    return str(source.path)
