"""The command line. No logic: each command reads its arguments, calls one function, and shows what came of it."""

from __future__ import annotations

from typing import Annotated

import typer

from datakit.errors import run_command_line
from datakit.terminal import console, set_up_logging

app = typer.Typer(
    help="A lean trainer of text-embedding models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
out = console()
err = console(stderr=True)

BuildPath = Annotated[
    str, typer.Option("--data", "-d", metavar="BUILD", help="A built data set: datasets/NAME/latest, or a version's folder.")
]


@app.command()
def train(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A training file, such as mixtures/quickstart-train.yaml.")],
    data: BuildPath,
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="DIR", help="Folder of the run. Default: models/NAME/VERSION, and models/NAME/latest."
        ),
    ] = None,
) -> None:
    """Train an embedding model on a build, and measure it before and after.

    The same command goes on where a run was stopped. Of a finished run it only shows the result.

    DIR/model            the model, as sentence-transformers opens it
    DIR/metrics.json     every number of the tables
    DIR/evaluation.json  the score of each category, for a next build
    DIR/log.jsonl        one line for each step
    """
    from datakit.opened import open_build
    from datakit.recipe_file import load_model
    from trainer.config import Config

    loaded = load_model(config, Config)
    build = open_build(data)
    from trainer.loop import train as run_training
    from trainer.report import tables

    try:
        run, metrics = run_training(loaded, build, output, err)
    except KeyboardInterrupt:
        err.print("Interrupted. The same command goes on from the last checkpoint.")
        raise
    out.print(tables(metrics))
    out.print(f"Trained {run.path('model')}", soft_wrap=True, highlight=False)


@app.command()
def evaluate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A sentence-transformers model: a folder, a name, or package:NAME/path.")
    ],
    data: BuildPath,
    dimensions: Annotated[
        list[int] | None, typer.Option("--dimension", help="Cut vectors to so many dimensions; may be repeated.")
    ] = None,
    output: Annotated[str | None, typer.Option("--output", "-o", metavar="FILE", help="Write evaluation.json there.")] = None,
) -> None:
    """Measure any sentence-transformers model on the validation split of a build (nDCG@10)."""
    from datakit.opened import open_build

    build = open_build(data)
    from datakit import storage
    from trainer.evaluation.retrieval import evaluate_model
    from trainer.report import category_table, evaluation

    results = evaluate_model(build, model, dimensions or [])
    if output is not None:
        scores = evaluation(model, build.version, results[max(results)], None)
        storage.write_json(output, scores.model_dump(mode="json", by_alias=True))
    out.print(category_table({str(dimension): found for dimension, found in results.items()}, f"{model}: nDCG@10"))


@app.callback()
def settings(verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False) -> None:
    """A lean trainer of text-embedding models."""
    set_up_logging(err, ("trainer", "datakit"), verbose)


def main() -> None:
    """Entry point of the console script `trainer`."""
    run_command_line(app, "trainer")


if __name__ == "__main__":
    main()
