"""The command line. No logic: each command reads its arguments, calls one function, and shows what came of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from datakit.errors import UserError, run_command_line
from datakit.terminal import console, set_up_logging

app = typer.Typer(
    help="Training data for text-embedding models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
out = console()
err = console(stderr=True)

RecipeFile = Annotated[str, typer.Argument(metavar="RECIPE", help="A mixture file, such as mixtures/quickstart.yaml.")]
BuildPath = Annotated[str, typer.Argument(metavar="BUILD", help="A built data set: datasets/NAME/latest, or a version's folder.")]


@app.command()
def build(
    recipe: RecipeFile,
    workers: Annotated[int | None, typer.Option(help="Worker processes. Default: one for each processor.")] = None,
    executor: Annotated[str, typer.Option(help="local, or ray (extra 'ray').")] = "local",
    address: Annotated[str | None, typer.Option(help="Address of the Ray cluster. Default: a new one on this machine.")] = None,
) -> None:
    """Build the data set of a recipe. What is already in the cache is not made again; a build that was stopped goes on."""
    from datakit import progress
    from datakit.executor import make
    from datakit.opened import open_build
    from datakit.pipeline import build as run_build
    from datakit.publish.summary import summary
    from datakit.recipe import Recipe
    from datakit.recipe_file import load_model

    loaded = load_model(recipe, Recipe)
    place = make(executor, workers=workers, address=address)
    watcher = progress.watcher(err)
    try:
        published = run_build(loaded, place, watcher)
    except KeyboardInterrupt:
        err.print("Interrupted. Finished work is kept: the same command goes on from here.")
        raise
    finally:
        if isinstance(watcher, progress.Terminal):
            watcher.close()
        place.close()
    out.print(summary(open_build(published.path)))
    out.print(f"Built {published.path}", soft_wrap=True, highlight=False)


@app.command()
def plan(recipe: RecipeFile) -> None:
    """Show what a build would do: which steps are cached, which will run, how many LLM requests and about how many tokens."""
    from datakit.planning import planned_table
    from datakit.recipe import Recipe
    from datakit.recipe_file import load_model

    out.print(planned_table(load_model(recipe, Recipe)))


@app.command()
def validate(recipe: RecipeFile) -> None:
    """Check a recipe: its keys and values, its categories, the models and data files that it names. Runs nothing."""
    from datakit.pipeline import plan as make_plan
    from datakit.recipe import Recipe
    from datakit.recipe_file import load_model

    planned = make_plan(load_model(recipe, Recipe))
    out.print(f"{recipe} is valid: {len(planned.entries)} categories, {len(planned.steps)} steps.", highlight=False)


@app.command()
def schema() -> None:
    """Print the JSON Schema of a recipe, so that editors complete and check it."""
    from datakit.recipe import Recipe
    from datakit.recipe_file import json_schema

    typer.echo(json.dumps(json_schema(Recipe), indent=2))


@app.command()
def inspect(build: BuildPath) -> None:
    """Show a build: rows in, kept, and rejected by reason, for each category."""
    from datakit.opened import open_build
    from datakit.publish.summary import summary

    out.print(summary(open_build(build)))


@app.command()
def explain(
    row_id: Annotated[str, typer.Argument(metavar="ID", help="A row_id, or its first characters.")],
    build: Annotated[str, typer.Option("--build", "-b", help="The build that the row is in.")] = "datasets/quickstart/latest",
) -> None:
    """Tell one row's whole story: where it came from, what it passed, why it was dropped."""
    from datakit.opened import open_build

    out.print(open_build(build).explain(row_id))


@app.command()
def diff(a: BuildPath, b: BuildPath) -> None:
    """Tell what changed between two builds: recipe, models, rows."""
    from datakit.diff import diff as difference
    from datakit.opened import open_build

    out.print(difference(open_build(a), open_build(b)))


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="Where to write the recipe.")] = Path("mixture.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Write a commented recipe to start from."""
    from importlib import resources

    if path.exists() and not force:
        raise UserError(f"'{path}' is there already. Give another name, or --force to write over it.")
    path.write_text((resources.files("datakit") / "starter.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    out.print(f"Wrote {path}. Next: datakit validate {path}; datakit plan {path}; datakit build {path}", highlight=False)


@app.callback()
def settings(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False,
) -> None:
    """Training data for text-embedding models."""
    set_up_logging(err, ("datakit",), verbose)


def main() -> None:
    """Entry point of the console script `datakit`."""
    run_command_line(app, "datakit")


if __name__ == "__main__":
    main()
