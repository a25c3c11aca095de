"""A build of datakit made from within a command of the trainer."""

from __future__ import annotations

from rich.console import Console

from datakit import executor, progress
from datakit.opened import Build, open_build
from datakit.pipeline import build
from datakit.recipe import Path, Recipe
from datakit.schema import Evaluation


def built(recipe: Recipe, output: str, workers: int | None, console: Console, feedback: Evaluation | None = None) -> Build:
    """What `datakit build` makes of a recipe, under the folder `output`. What is in the recipe's cache is not made again."""
    place, watcher = executor.make("local", workers=workers), progress.watcher(console)
    try:
        published = build(recipe.model_copy(update={"output": Path(output)}), place, watcher, feedback)
    finally:
        if isinstance(watcher, progress.Terminal):
            watcher.close()
        place.close()
    return open_build(published.path)


def digests(build: Build, part: str) -> list[str]:
    """What the rows of a part are known by, in their order."""
    return [file.digest for name, file in sorted(build.manifest.files.items()) if name.startswith(f"{part}/")]
