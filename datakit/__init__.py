"""Training data for text-embedding models: synthesis, filters, dedup, hard negatives, mixtures."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datakit.dedup.deduplicate import deduplicate
    from datakit.negatives.alone import mine
    from datakit.opened import Build

__all__ = ["build", "deduplicate", "mine", "open"]


def __getattr__(name: str) -> object:
    """`datakit.deduplicate` and `datakit.mine`, imported when they are asked for: `import datakit` stays quick."""
    if name == "deduplicate":
        from datakit.dedup.deduplicate import deduplicate

        return deduplicate
    if name == "mine":
        from datakit.negatives.alone import mine

        return mine
    raise AttributeError(f"module 'datakit' has no attribute '{name}'")


def open(path: str) -> Build:
    """A published build, to look at: lazy Polars frames, the manifest, the story of each row.

    `path` is a version's folder, or one above it with a `latest`. Raises UserError where there is no build.
    """
    from datakit.opened import open_build

    return open_build(path)


def build(
    recipe: str, *, executor: str = "local", workers: int | None = None, address: str | None = None, quiet: bool = False
) -> Build:
    """Builds the recipe in the YAML file `recipe`, as `datakit build` does, and opens the result.

    Raises UserError for what the caller can mend, BuildError for what went wrong; the same call resumes a build.
    """
    from rich.console import Console

    from datakit import progress
    from datakit.executor import make
    from datakit.opened import open_build
    from datakit.pipeline import build as run_build
    from datakit.recipe import Recipe
    from datakit.recipe_file import load_model

    loaded = load_model(recipe, Recipe)
    place = make(executor, workers=workers, address=address)
    try:
        return open_build(run_build(loaded, place, progress.QUIET if quiet else progress.watcher(Console(stderr=True))).path)
    finally:
        place.close()
