"""`datakit quality`. No logic, as in cli.py.

Not in filters/, beside what is called: to import anything from there is to import all filters, and `datakit --help` would wait.
"""

from __future__ import annotations

from typing import Annotated

import typer

from datakit.terminal import console, show

app = typer.Typer(help="Train a quality classifier, and score files with one.", no_args_is_help=True)
out = console()


@app.command(name="train")
def quality_train(
    rows: Annotated[list[str], typer.Argument(metavar="BUILD|FILE...", help="A build, or Parquet and JSONL files.")],
    labels: Annotated[
        list[str],
        typer.Option(
            help="judge: a judge's scores. corrupted: good rows, and spoilt copies. rejected: written rows. May be given again."
        ),
    ],
    output: Annotated[str, typer.Option("--output", "-o", help="Folder for model.ftz, its card README.md, and curve.svg.")],
    test: Annotated[list[str] | None, typer.Option(help="A build whose written rows it is tested on as well.")] = None,
    query: Annotated[str, typer.Option(help="Column of the query, in files.")] = "query",
    positive: Annotated[str, typer.Option(help="Column of the positive, in files.")] = "positive",
    vary: Annotated[
        float, typer.Option(min=0, max=1, help="Share of good rows that are put otherwise: as questions, in small letters.")
    ] = 0.0,
    held_out: Annotated[float, typer.Option(min=0.05, max=0.5, help="Share of documents that it is tested on.")] = 0.2,
    criterion: Annotated[str, typer.Option(help="Of the judge: quality or relevance.")] = "quality",
    good: Annotated[float, typer.Option(help="A judge's score from which a row is good.")] = 4,
    poor: Annotated[float, typer.Option(help="A judge's score up to which a row is poor.")] = 2,
    licence: Annotated[str | None, typer.Option(help="Of the texts, for the card. Default: those of the build.")] = None,
    seed: Annotated[int, typer.Option(help="Of all that is drawn.")] = 17,
) -> None:
    """Train a quality classifier (fastText), and measure it on held-out rows. The same rows give the same bytes."""
    import shlex
    import sys

    from datakit.filters import quality_card
    from datakit.filters.quality_train import run

    command = shlex.join(["datakit", *sys.argv[1:]])
    results = run(
        rows, labels, output, command, test=test or [], query=query, positive=positive, vary=vary, share=held_out, seed=seed,
        criterion=criterion, good=good, poor=poor, licence=licence,
    )  # fmt: skip
    for result in results:
        out.print(quality_card.shown(result), highlight=False)
    show(out, f"Wrote {output}. Use it: {{type: quality_model, model: {output}, threshold: ...}}")


@app.command(name="score")
def quality_score(
    file: Annotated[str, typer.Argument(help="A Parquet or JSONL file.")],
    output: Annotated[str, typer.Option("--output", "-o", help="The Parquet file to write: all columns, and `quality`.")],
    model: Annotated[
        str, typer.Option(help="A folder that `datakit quality train` wrote. Default: the one that datakit carries.")
    ] = "package:datakit/filters/quality_default",
    query: Annotated[str, typer.Option(help="Column of the query.")] = "query",
    positive: Annotated[str, typer.Option(help="Column of the positive.")] = "positive",
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Score each row of a file: how likely it is good training data, from 0 to 1."""
    from datakit.filters.quality_train import score_file

    count, mean = score_file(file, model, output, query, positive, force)
    show(out, f"Wrote {output}: {count:,} rows, mean quality {mean:.3f}.")
