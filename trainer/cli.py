"""The command line. No logic: each command reads its arguments, calls one function, and shows what came of it."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from datakit.errors import UserError, run_command_line
from datakit.terminal import console, resumable, set_up_logging, show
from trainer.search.commands import app as search

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
out = console()
err = console(stderr=True)

VALIDATION = "nDCG@10 on the validation split"

ConfigPath = Annotated[str, typer.Argument(metavar="CONFIG", help="A run file, such as mixtures/quickstart-train.yaml.")]
BuildPath = Annotated[
    str | None,
    typer.Option("--data", "-d", metavar="BUILD", help="A built data set: datasets/NAME/latest, or a version's folder."),
]
Output = Annotated[
    str | None,
    typer.Option(
        "--output", "-o", metavar="DIR", help="Folder of the run. Default: models/NAME/VERSION, and models/NAME/latest."
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Check config, base and build, tell how much there is to do, try one batch of each stage; write nothing.",
    ),
]


@app.command()
def run(config: ConfigPath, data: BuildPath = None, output: Output = None, dry_run: DryRun = False) -> None:
    """Train an embedding model on a build, stage after stage, and measure it before and after each.

    A stage that does not pass its gate is repeated, or ends the run.
    The same command goes on where a run was stopped. Several processes: torchrun --nproc-per-node 2 -m trainer.cli run CONFIG ...

    DIR/model            the model of the last stage that was passed, as sentence-transformers opens it
    DIR/metrics.json     every number of the tables
    DIR/report.html      curves and tables
    DIR/evaluation.json  the score of each category, for a next build
    DIR/STAGE/           log.jsonl with one line for each step, checkpoints, and the model of each stage
    """
    _train(config, data, output, dry_run, None)


@app.command()
def train(
    config: ConfigPath,
    data: BuildPath = None,
    stage: Annotated[str | None, typer.Option("--stage", "-s", metavar="NAME", help="Needed where there are several.")] = None,
    output: Output = None,
    dry_run: DryRun = False,
) -> None:
    """Train one stage of a run. The stages before it must be finished in the same folder.

    All else is as with [bold]trainer run[/bold].
    """
    from datakit.recipe_file import load_model
    from trainer.config import Config

    names = [each.name for each in load_model(config, Config).stages]
    if stage is None and len(names) > 1 and not dry_run:
        raise UserError(
            f"'{config}' has {len(names)} stages; give --stage one of: {', '.join(names)}. `trainer run` does them all."
        )
    _train(config, data, output, dry_run, stage)


def _train(config: str, data: str | None, output: str | None, dry_run: bool, stage: str | None) -> None:
    from datakit.opened import open_build
    from datakit.recipe_file import load_model
    from trainer import distributed
    from trainer.config import Config

    distributed.hush(out, err)
    loaded = load_model(config, Config)
    build = open_build(data) if data is not None else None
    if dry_run:
        from trainer.dryrun import check

        for line in check(loaded, build, stage):
            show(out, line)
        return
    if build is None:
        raise UserError("--data is missing: the build to train on, such as --data datasets/NAME/latest.")
    from trainer.report import tables
    from trainer.stages import do

    with resumable(err), distributed.joined():
        done, metrics = do(loaded, build, output, err, stage)
    out.print(tables(metrics))
    for name in ("report.html", "model"):
        show(out, done.path(name))


@app.command()
def evaluate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A sentence-transformers model: a folder, a name, or package:NAME/path.")
    ],
    data: Annotated[str | None, typer.Option("--data", "-d", metavar="BUILD", help="A built data set.")] = None,
    sets: Annotated[
        str | None, typer.Option("--sets", metavar="FILE", help="Local sets, as in mixtures/evaluation-sets.yaml.")
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option("--task", metavar="NAME", help="Of the sets this one alone, or a task of mteb (from the Hub); repeatable."),
    ] = None,
    benchmark: Annotated[str | None, typer.Option(metavar="NAME", help="A benchmark of mteb (from the Hub).")] = None,
    dimensions: Annotated[
        list[int] | None, typer.Option("--dimension", help="Cut vectors to so many dimensions; may be repeated.")
    ] = None,
    bm25: Annotated[bool, typer.Option("--bm25", help="BM25 beside the model, for retrieval.")] = False,
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="PATH", help="With --data alone: write evaluation.json there. Else a folder: results.json."
        ),
    ] = None,
) -> None:
    """Measure any sentence-transformers model: nDCG@10 on the validation split of a build, or MTEB's families.

    --data BUILD        the validation split, by category
    --sets FILE         local sets of the eight families, by mteb's own evaluators; --task and --benchmark add mteb's
    """
    if data is None and sets is None and not tasks and benchmark is None:
        raise UserError("Say what to measure on: --data BUILD, --sets FILE, --task NAME or --benchmark NAME.")
    from datakit import storage
    from datakit.opened import open_build
    from trainer.evaluation.scores import table, writable

    build = open_build(data) if data is not None else None
    by_families = sets is not None or bool(tasks) or benchmark is not None
    places: dict[str, str] = {}
    if output is not None:
        names = [name for name, written in (("results.json", by_families), ("evaluation.json", build is not None)) if written]
        places = {name: writable(storage.join(output, name) if by_families else output) for name in names}
    if by_families:
        from trainer.evaluation.families import evaluate_families

        found = evaluate_families(model, sets, tasks or [], benchmark, dimensions or [], bm25)
        out.print(table(found))  # first, so that no number is lost where it cannot be written
        if places:
            storage.write_json(places["results.json"], found.model_dump(mode="json", by_alias=True))
    if build is None:
        return
    from trainer.evaluation.retrieval import evaluate_bm25, evaluate_encoder, load_task
    from trainer.report import category_table, evaluation

    task = load_task(build)
    results = evaluate_encoder(task, model, sorted(set(dimensions or []), reverse=True))
    systems = {str(dimension): each for dimension, each in results.items()}
    beside = {"BM25": evaluate_bm25(task)} if bm25 else {}
    out.print(category_table(systems | beside, f"{model}: nDCG@10"))
    if places:
        scores = evaluation(model, build.version, results[max(results)], None)
        storage.write_json(places["evaluation.json"], scores.model_dump(mode="json", by_alias=True))


app.add_typer(search, name="search")


@app.command()
def merge(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Exported models, or checkpoints of runs.")],
    output: Annotated[str, typer.Option("--output", "-o", metavar="DIR", help="Folder of the merged model.")],
    method: Annotated[
        Literal["soup", "slerp"], typer.Option(help="soup: the mean of the weights. slerp: on the arc between two models.")
    ] = "soup",
    weights: Annotated[
        list[float] | None, typer.Option("--weight", metavar="W", help="Once for each model, in their order; alike when absent.")
    ] = None,
    data: BuildPath = None,
) -> None:
    """Merge models of one architecture into one, and measure inputs and merge on a build (nDCG@10 by dimension)."""
    from datakit.opened import open_build
    from trainer.finished.merge import merge as merged
    from trainer.report import dimension_table

    found = merged(models, output, method, weights or [], open_build(data) if data is not None else None)
    if found.scores:
        out.print(dimension_table(found.scores, VALIDATION))
    show(out, output)


@app.command()
def rotate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A sentence-transformers model: a folder, a name, or package:NAME/path.")
    ],
    data: Annotated[str, typer.Option("--data", "-d", metavar="BUILD", help="Its texts are learned from, and measured on.")],
    output: Annotated[str, typer.Option("--output", "-o", metavar="DIR", help="Folder of the rotated model.")],
    dimensions: Annotated[
        list[int] | None,
        typer.Option("--dimension", help="To learn for; may be repeated. Default: those that the model was trained at."),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Training rows whose texts are used, at most.")] = 10_000,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Decides the batches.")] = 0,
) -> None:
    """Rotate the vectors of a model so that their first dimensions say more. Whole vectors stay as alike as they were."""
    from datakit.opened import open_build
    from trainer.finished.rotation import rotate as rotated
    from trainer.report import dimension_table

    found = rotated(model, open_build(data), output, dimensions or [], rows, seed)
    out.print(dimension_table(found, VALIDATION))
    show(out, output)


@app.command()
def estimate(
    config: ConfigPath,
    hardware: Annotated[str, typer.Option(metavar="NAMExCOUNT", help="Such as a100x8, h200 or cpux2.")],
    data: BuildPath = None,
    rows: Annotated[
        list[str] | None, typer.Option(metavar="N", help="Rows, such as 100M: once, or once for each stage; else the build's.")
    ] = None,
    tokens: Annotated[float | None, typer.Option("--tokens-per-text", metavar="N", help="Else as in the build, or 128.")] = None,
    parameters: Annotated[float | None, typer.Option(metavar="N", help="Of a base that is not here, such as 1.5e9.")] = None,
    share: Annotated[float | None, typer.Option("--mfu", metavar="SHARE", help="Share of the peak that is reached.")] = None,
) -> None:
    """Tell what a run would take on some hardware: tokens, FLOPs, days, memory, storage, and what is assumed. Runs nothing."""
    from datakit.opened import open_build
    from datakit.planning import count
    from datakit.recipe_file import load_model
    from trainer.config import Config
    from trainer.estimate import estimate as estimated

    build, counts = open_build(data) if data is not None else None, [count(each) for each in rows or []]
    found = estimated(load_model(config, Config), hardware, build, counts, tokens, parameters, share)
    out.print(found.tables(), highlight=False)


Workers = Annotated[int | None, typer.Option(help="Worker processes of builds. Default: one for each processor.")]


@app.command()
def ablate(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="An ablation file: run, recipe or build, seeds, components.")],
    output: Annotated[str | None, typer.Option("--output", "-o", metavar="DIR", help="Default: ablations/NAME.")] = None,
    workers: Workers = None,
) -> None:
    """Remove one component at a time, train with several seeds, and tell what the differences support.

    Runs share the stages that they have in common. The same command goes on where it was stopped.
    """
    from trainer.studies.ablation import ablate as ablated
    from trainer.studies.ablation_report import tables

    with resumable(err):
        folder, report = ablated(config, output, workers, err)
    out.print(tables(report))
    show(out, f"{folder}/ablation.html")


@app.command()
def sweep(
    config: Annotated[str, typer.Argument(metavar="SWEEP", help="A sweep file, such as mixtures/quickstart-sweep.yaml.")],
    data: BuildPath = None,
    output: Annotated[str | None, typer.Option("--output", "-o", metavar="DIR", help="Default: sweeps/NAME.")] = None,
) -> None:
    """Search values of a run file, such as learning rate and temperature, for the best dev metric (extra: sweep).

    The same command goes on where it was stopped, or with more trials.

    DIR/best.yaml   the run file with the best values, for [bold]trainer run[/bold]
    DIR/sweep.html  score by trial, each parameter against the score, importance, failed trials
    DIR/trials/N/   an ordinary run
    """
    from trainer.studies.sweep import sweep as swept
    from trainer.studies.sweep_report import tables

    with resumable(err):
        folder, report = swept(config, data, output, err)
    out.print(tables(report))
    show(out, f"{folder}/sweep.html")


@app.command()
def loop(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A mixture file, with mixture.total.")],
    config: ConfigPath,
    rounds: Annotated[int, typer.Option(min=1, help="Builds, and runs on them.")] = 3,
    output: Annotated[str | None, typer.Option("--output", "-o", metavar="DIR", help="Default: loops/NAME.")] = None,
    workers: Workers = None,
) -> None:
    """Build, train, pass the gate, and let the scores move the weights of the next build; round after round.

    The same command goes on where it was stopped, or with more rounds.
    """
    from trainer.studies import rounds as looped

    with resumable(err):
        folder, found = looped.loop(recipe, config, rounds, output, workers, err)
    out.print(looped.tables(found))
    show(out, f"{folder}/loop.html")


@app.command()
def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="An exported model: models/NAME/latest/model.")],
    output: Annotated[str, typer.Option("--output", "-o", metavar="DIR", help="Folder to write; it must not exist.")],
    kind: Annotated[
        Literal["onnx", "tei"], typer.Option("--format", help="onnx: a graph. tei: a folder for text-embeddings-inference.")
    ],
) -> None:
    """Write a model for a server. Its vectors are compared with the model's own before the folder is there."""
    from trainer.finished.serving import serve

    for line in serve(model, output, kind):
        show(out, line)
    show(out, output)


@app.command()
def report(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A sentence-transformers model, as for trainer evaluate.")],
    scores: Annotated[str, typer.Option(metavar="FILE", help="results.json of trainer evaluate --sets FILE.")],
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="The page to write: report.html.")],
    ablation: Annotated[str | None, typer.Option(metavar="FILE", help="JSON of trainer ablate.")] = None,
    data: Annotated[
        str | None, typer.Option("--data", "-d", metavar="BUILD", help="Its validation split, for nearest neighbours.")
    ] = None,
) -> None:
    """Write a page about a model: scores by family and dimension, retention, nearest neighbours, ablation."""
    from datakit.opened import open_build
    from trainer.finished.model_report import write

    write(model, scores, output, ablation, open_build(data) if data is not None else None)
    show(out, output)


@app.callback()
def settings(verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False) -> None:
    """A lean trainer of text-embedding models: run files say what, builds of datakit are the data.

    [bold]trainer run CONFIG --data BUILD --dry-run[/bold] checks everything first; without [bold]--dry-run[/bold] it trains.
    """
    set_up_logging(err, ("trainer", "datakit"), verbose)


def main() -> None:
    """Entry point of the console script `trainer`."""
    run_command_line(app, "trainer")


if __name__ == "__main__":
    main()
