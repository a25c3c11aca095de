"""`datakit evalset`, `annotate` and `agreement`. No logic, as in cli.py."""

from __future__ import annotations

from typing import Annotated

import typer

from datakit.terminal import console, show

app = typer.Typer()
out = console()

EvalsetFolder = Annotated[str, typer.Argument(metavar="FOLDER", help="What `datakit evalset` wrote.")]


@app.command()
def evalset(
    build: Annotated[str, typer.Argument(metavar="BUILD", help="A built data set: datasets/NAME/latest, or a version's folder.")],
    output: Annotated[str, typer.Option("--output", "-o", help="Folder to write: a BEIR set, and the pairs to label.")],
    pairs: Annotated[int, typer.Option(min=1, help="Pairs of a query and its document; 1,000 to 5,000 are usual.")] = 1000,
    negatives: Annotated[int, typer.Option(min=1, help="Most hard negatives of a query.")] = 3,
    seed: Annotated[int, typer.Option(help="Of what is drawn, and of the order in which it is labelled.")] = 0,
    unverified: Annotated[
        bool, typer.Option("--unverified", help="Also of negatives that were not screened and judged.")
    ] = False,
) -> None:
    """Draw an evaluation set from the held-out documents of a build, with hard negatives, ready to be labelled."""
    from datakit.evalset.draw import make
    from datakit.opened import open_build

    facts = make(open_build(build), output, pairs, negatives, seed, unverified)
    left_out = ", ".join(f"{reason} {count:,}" for reason, count in facts["left_out"]["rows"].items()) or "none"
    show(
        out,
        f"Wrote {output}: {facts['pairs']:,} pairs of {facts['queries']:,} queries, {facts['hard_negatives']:,} hard negatives.\n"
        f"Validation rows left out: {left_out}.\n"
        f"Label it: datakit annotate {output} --annotator NAME\n"
        "Keep it out of other builds: decontamination: {sets: [{type: beir, path: " + output + ", texts: both}]}",
    )  # fmt: skip


@app.command()
def annotate(
    folder: EvalsetFolder,
    annotator: Annotated[str, typer.Option(help="Who labels: the labels go to labels-NAME.jsonl.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of the page. Default: any that is free.")] = 0,
) -> None:
    """Label pairs with the keyboard, in a page that only this machine can open. What is labelled is kept; go on at any time."""
    from datakit.evalset import labels
    from datakit.evalset.serve import server

    pairs = labels.pairs_of(folder)
    with labels.opened(labels.file_of(folder, annotator), {each["pair"] for each in pairs}) as given:
        place, address = server(pairs, given, annotator, port)
        show(out, f"{address}\nOpen this page. End with Ctrl+C.")
        try:
            place.serve_forever()
        except KeyboardInterrupt:
            show(out, f"{len(given.grades):,} of {len(pairs):,} pairs are labelled. Figures: datakit agreement {folder}")
        finally:
            place.server_close()


@app.command()
def agreement(folder: EvalsetFolder) -> None:
    """Read labels back: agreement of annotators, false negatives, and judgements for evaluations (qrels/annotated.tsv)."""
    from datakit.evalset.agreement import agreement as figures
    from datakit.evalset.agreement import shown

    out.print(shown(folder, figures(folder)), highlight=False)
