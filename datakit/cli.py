"""The command line. No logic: each command reads its arguments, calls one function, and shows what came of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from datakit.errors import UserError, run_command_line
from datakit.evalset.commands import app as evalset
from datakit.quality_commands import app as quality
from datakit.terminal import console, resumable, set_up_logging, show

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
    feedback: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="evaluation.json of a model: more of what it is poor at, less where it stands still."),
    ] = None,
) -> None:
    """Build the data set of a recipe. What is already in the cache is not made again; a build that was stopped goes on."""
    from datakit import progress
    from datakit.executor import make
    from datakit.mixing.feedback import load_evaluation
    from datakit.opened import open_build
    from datakit.pipeline import build as run_build
    from datakit.publish.summary import summary
    from datakit.recipe import Recipe
    from datakit.recipe_file import load_model

    loaded = load_model(recipe, Recipe)
    evaluation = None if feedback is None else load_evaluation(feedback, loaded.categories)
    place = make(executor, workers=workers, address=address)
    watcher = progress.watcher(err)
    try:
        with resumable(err):
            published = run_build(loaded, place, watcher, evaluation)
    finally:
        if isinstance(watcher, progress.Terminal):
            watcher.close()
        place.close()
    out.print(summary(open_build(published.path)))
    show(out, f"Built {published.path}")


@app.command()
def plan(
    recipe: RecipeFile,
    pairs: Annotated[str | None, typer.Option(help="What so many synthesised pairs would take, such as 100M.")] = None,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs behind the engines, for the GPU hours.")] = 1,
) -> None:
    """Show what a build would do: which steps are cached, how many LLM requests, tokens and hours, and how much storage."""
    from datakit.planning import count, report
    from datakit.recipe import Recipe
    from datakit.recipe_file import load_model

    out.print(report(load_model(recipe, Recipe), None if pairs is None else count(pairs), gpus))


@app.command()
def mix(
    recipe: RecipeFile,
    what_if: Annotated[bool, typer.Option("--what-if", help="Show what the mixture would give; nothing is built.")] = False,
    temperature: Annotated[float | None, typer.Option(help="Instead of the recipe's.")] = None,
    language_temperature: Annotated[float | None, typer.Option(help="Instead of the recipe's.")] = None,
    total: Annotated[int | None, typer.Option(help="Instead of the recipe's.")] = None,
    max_epochs: Annotated[float | None, typer.Option(help="Instead of the recipe's.")] = None,
    shortfall: Annotated[str | None, typer.Option(help="renormalise, repeat or stop, instead of the recipe's.")] = None,
    feedback: Annotated[str | None, typer.Option(metavar="FILE", help="evaluation.json of a model, as for `build`.")] = None,
    build: Annotated[
        str | None, typer.Option(metavar="BUILD", help="Take the counts of this build. Default: the cache, else the newest one.")
    ] = None,
    plot: Annotated[str | None, typer.Option(metavar="FILE", help="Where to write the plot over T: .svg or .html.")] = None,
) -> None:
    """Show counts and weights of a mixture, and its shares over the temperature, without building."""
    from datakit.mixing import what_if as shown
    from datakit.mixing import what_if_plot
    from datakit.mixing.feedback import load_evaluation
    from datakit.opened import open_build
    from datakit.recipe import Recipe
    from datakit.recipe_file import load_model

    if not what_if:
        raise UserError("`datakit mix` shows what a mixture would give: add --what-if. To build it, run `datakit build`.")
    what_if_plot.check(plot)
    loaded = load_model(recipe, Recipe)
    given = {
        "temperature": temperature, "language_temperature": language_temperature, "total": total, "max_epochs": max_epochs,
        "shortfall": shortfall,
    }  # fmt: skip
    found = shown.what_if(
        loaded,
        {name: value for name, value in given.items() if value is not None},
        None if feedback is None else load_evaluation(feedback, loaded.categories),
        None if build is None else open_build(build),
    )
    out.print(shown.table(found), highlight=False)
    if plot is not None:
        what_if_plot.write(found, plot)
        show(out, f"Wrote {plot}")


@app.command()
def validate(recipe: RecipeFile) -> None:
    """Check a recipe: its keys and values, its categories, the models and data files that it names. Runs nothing."""
    from datakit.pipeline import plan as make_plan
    from datakit.recipe import Recipe
    from datakit.recipe_file import load_model

    planned = make_plan(load_model(recipe, Recipe))
    show(out, f"{recipe} is valid: {len(planned.entries)} categories, {len(planned.steps)} steps.")


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
def diversity(build: BuildPath) -> None:
    """Show how varied the texts are that models wrote, by category and persona."""
    from datakit.opened import open_build
    from datakit.publish.diversity import table

    out.print(table(open_build(build)))


@app.command()
def diff(a: BuildPath, b: BuildPath) -> None:
    """Tell what changed between two builds: recipe, models, rows."""
    from datakit.diff import diff as difference
    from datakit.opened import open_build

    out.print(difference(open_build(a), open_build(b)))


@app.command(name="filter")
def filter_(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Parquet, JSONL, JSON, CSV or TSV files; patterns too.")],
    filters: Annotated[str, typer.Option(help="A YAML file with `filters` and `dedup` as in a recipe, or a recipe.")],
    output: Annotated[str, typer.Option("--output", "-o", help="Folder for kept.parquet, rejected.parquet, report.json.")],
    query: Annotated[str | None, typer.Option(help="Column of the query. Default: query.")] = None,
    positive: Annotated[str | None, typer.Option(help="Column of the positive. Default: positive.")] = None,
    negative: Annotated[list[str] | None, typer.Option(help="A column of negatives; may be given again.")] = None,
    text: Annotated[
        str | None, typer.Option(help="Column of single texts, where there are no pairs; bounds of `query` hold for them.")
    ] = None,
    category: Annotated[str, typer.Option(help="What the rows are called; a key of the registry gives them its task.")] = "rows",
    task: Annotated[str | None, typer.Option(help="Their task, which some filters heed. Default: retrieval.")] = None,
    language: Annotated[str | None, typer.Option(help="Their language (BCP 47), where it is known.")] = None,
    format: Annotated[str | None, typer.Option(help="Default: by the name of the file.")] = None,
    delimiter: Annotated[str | None, typer.Option(help="Of CSV and TSV.")] = None,
    header: Annotated[bool, typer.Option(help="Whether CSV and TSV have one; else columns are column_1, column_2, ...")] = True,
    force: Annotated[bool, typer.Option("--force", help="Write over what is in the folder.")] = False,
    cache: Annotated[str, typer.Option(help="Where steps are kept, so that a second run does only what changed.")] = ".datakit",
    workers: Annotated[int | None, typer.Option(help="Worker processes. Default: one for each processor.")] = None,
    executor: Annotated[str, typer.Option(help="local, or ray (extra 'ray').")] = "local",
    address: Annotated[str | None, typer.Option(help="Address of the Ray cluster.")] = None,
) -> None:
    """Filter and deduplicate files, without a build: each row is kept, or rejected with a reason; all its columns stay."""
    from datakit import progress
    from datakit.executor import make
    from datakit.filter_file import Rows, filter_file, funnel, load_filters

    rows = Rows(
        files=files, query=query, positive=positive, negatives=negative or [], text=text, category=category, task=task,
        language=language, format=format, delimiter=delimiter, header=header,
    )  # fmt: skip
    wanted, place, watcher = load_filters(filters), make(executor, workers=workers, address=address), progress.watcher(err)
    try:
        filtered = filter_file(rows, wanted, output, cache, place, watcher, force)
    finally:
        if isinstance(watcher, progress.Terminal):
            watcher.close()
        place.close()
    out.print(funnel(filtered), highlight=False)


@app.command()
def calibrate(
    name: Annotated[
        str,
        typer.Argument(
            metavar="FILTER",
            help="toxicity, quality_model, language, consistency, round_trip, or "
            "query_too_short, query_too_long, document_too_short, document_too_long.",
        ),
    ],
    labels: Annotated[list[str], typer.Option(help="A file of labelled rows; may be given again.")],
    label: Annotated[str, typer.Option(help="Column of the label.")] = "label",
    bad: Annotated[
        list[str] | None, typer.Option(help="A label of bad rows; may be given again. Default: bad. Others are good.")
    ] = None,
    filters: Annotated[
        str | None, typer.Option(help="A file with the filter, for its parameters. Default: those of datakit.")
    ] = None,
    precision: Annotated[float | None, typer.Option(help="Of the proposed threshold. Default: the best F1.")] = None,
    output: Annotated[str | None, typer.Option("--output", "-o", help="Where to write the curve: .html, .svg or .csv.")] = None,
    query: Annotated[str | None, typer.Option(help="Column of the query. Default: query.")] = None,
    positive: Annotated[str | None, typer.Option(help="Column of the positive. Default: positive.")] = None,
    text: Annotated[
        str | None, typer.Option(help="Column of single texts, where there are no pairs; bounds of `query` hold for them.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="Task of the rows, which some filters heed. Default: retrieval.")] = None,
    cache: Annotated[str, typer.Option(help="Where steps are kept.")] = ".datakit",
    workers: Annotated[int | None, typer.Option(help="Worker processes. Default: one for each processor.")] = None,
) -> None:
    """Draw the precision-recall curve of a filter on labelled rows, and propose a threshold."""
    from datakit import calibration_curve, progress
    from datakit.calibrate import calibrate as run_calibration
    from datakit.executor import make
    from datakit.filter_file import Rows

    calibration_curve.check(output)
    rows = Rows(files=labels, query=query, positive=positive, text=text, task=task)
    place = make("local", workers=workers)
    try:
        found = run_calibration(name, rows, label, bad or ["bad"], filters, precision, cache, place, progress.QUIET)
    finally:
        place.close()
    if output is not None:
        calibration_curve.write(found, output)
    out.print(calibration_curve.shown(found), highlight=False)


@app.command()
def mine(
    queries: Annotated[str, typer.Option(help="File of queries: .parquet, .jsonl, .csv, .tsv.")],
    output: Annotated[str, typer.Option("--output", "-o", help="Where to write: .parquet or .jsonl.")],
    corpus: Annotated[
        str | None, typer.Option(help="File of texts, or a BEIR folder. Default: the positives of the queries.")
    ] = None,
    qrels: Annotated[str | None, typer.Option(help="File of judgements: query-id, corpus-id, score.")] = None,
    query: Annotated[str | None, typer.Option(help="Column of the query. Default: query, or text.")] = None,
    positives: Annotated[
        str | None, typer.Option(help="Column of the known positives, a text or a list. Default: positive.")
    ] = None,
    text: Annotated[str | None, typer.Option(help="Column of the texts of the corpus. Default: text.")] = None,
    miners: Annotated[str, typer.Option(help="Of bm25, dense, entities, other_cluster, random; commas between.")] = "bm25",
    encoder: Annotated[
        str | None, typer.Option(help="Searches for `dense`, and screens: a folder, a name, package:NAME/FOLDER.")
    ] = None,
    per_query: Annotated[int, typer.Option(min=1, max=64, help="Negatives of a row.")] = 8,
    depth: Annotated[int, typer.Option(min=1, help="Ranks that each miner looks at.")] = 100,
    margin: Annotated[
        float | None,
        typer.Option(help="Share of the positive's similarity that no negative reaches; 0 for no margin. Default: 0.95."),
    ] = None,
    absolute_margin: Annotated[float | None, typer.Option(help="Cosine below that of the positive.")] = None,
    max_score: Annotated[float | None, typer.Option(help="Cosine that no negative reaches.")] = None,
    ranks: Annotated[str | None, typer.Option(help="First and last rank by similarity, such as 31-400.")] = None,
    paraphrase: Annotated[
        float | None, typer.Option(help="Cosine to a positive that says the same; 0 for no such rule. Default: 0.95.")
    ] = None,
    cross_encoder: Annotated[str | None, typer.Option(help="A model that relabels: a folder, or a name.")] = None,
    shape: Annotated[str, typer.Option(help="lists, triplets, or n-tuples (rows with fewer are left out).")] = "lists",
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    cache: Annotated[str, typer.Option(help="Where steps are kept: another margin mines nothing anew.")] = ".datakit",
    workers: Annotated[int | None, typer.Option(help="Worker processes. Default: one for each processor.")] = None,
) -> None:
    """Mine hard negatives for queries and a corpus, and screen them, without a build."""
    from datakit import progress
    from datakit.negatives import mine_files as files
    from datakit.negatives.alone import mine as run_mine

    files.check_output(output, shape, force)
    screen = files.screen(encoder, margin, absolute_margin, max_score, ranks, paraphrase)
    asked = files.renamed(files.read(queries, "queries"), "queries", {"query": query, "positive": positives})
    texts = None if corpus is None else files.renamed(files.read(files.corpus_file(corpus), "corpus"), "texts", {"text": text})
    watcher = progress.watcher(err)
    try:
        mined = run_mine(
            asked, texts, qrels=None if qrels is None else files.read(qrels, "judgements"),
            miners=[name.strip() for name in miners.split(",")], encoder=encoder, per_query=per_query, depth=depth,
            cross_encoder=cross_encoder, cache=cache, workers=workers, watcher=watcher, **screen,
        )  # fmt: skip
    finally:
        if isinstance(watcher, progress.Terminal):
            watcher.close()
    count = files.write(mined, output, shape, per_query)
    out.print(files.shown(mined))
    show(out, f"Wrote {count:,} rows to {output}")


@app.command()
def categories(
    keys: Annotated[list[str] | None, typer.Argument(metavar="[KEY]...", help="Shows all that is known of these.")] = None,
    family: Annotated[str | None, typer.Option(help="Only this family, such as medical.")] = None,
    task: Annotated[str | None, typer.Option(help="Only this task, such as retrieval.")] = None,
    language: Annotated[str | None, typer.Option(help="Only with this language (BCP 47), such as de.")] = None,
    public: Annotated[bool | None, typer.Option("--public/--synthesis-only", help="With public sources, or without.")] = None,
    search: Annotated[str | None, typer.Option(help="Only with these words in the key, description or instruction.")] = None,
    registry: Annotated[list[str] | None, typer.Option(help="A registry file of your own, besides that of datakit.")] = None,
) -> None:
    """List the categories of the registry, or show some of them."""
    from datakit import categories as shown
    from datakit.registry import load

    entries = load(registry or [])
    for key in keys or []:
        out.print(shown.details(shown.find(entries, key)))
    if not keys:
        chosen = shown.chosen(entries, family=family, task=task, language=language, public=public, search=search)
        out.print(shown.table(chosen))


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="Where to write the recipe.")] = Path("mixture.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    categories: Annotated[str | None, typer.Option(help="Keys of the registry, with commas between them.")] = None,
) -> None:
    """Write a commented recipe to start from, of categories of the registry if you like."""
    from importlib import resources

    from datakit import storage
    from datakit.categories import recipe_text
    from datakit.registry import load

    if path.exists() and not force:
        raise UserError(f"'{path}' is there already. Give another name, or --force to write over it.")
    text = (resources.files("datakit") / "starter.yaml").read_text(encoding="utf-8")
    if categories is not None:
        text = recipe_text(text, load(), [key.strip() for key in categories.split(",") if key.strip()])
    storage.write_bytes(str(path), text.encode())
    show(out, f"Wrote {path}. Next: datakit validate {path}; datakit plan {path}; datakit build {path}")


app.add_typer(evalset)  # without a name: its commands stand beside those above
app.add_typer(quality, name="quality")


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
