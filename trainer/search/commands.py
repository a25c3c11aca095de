"""`trainer search`. No logic: each command reads its arguments, calls the library, and shows what came of it."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.padding import Padding
from rich.text import Text

from datakit.errors import UserError
from datakit.terminal import console, resumable, show

if TYPE_CHECKING:
    from trainer.search.index import Hits, Index

app = typer.Typer(help="Index a corpus, and search it: few dimensions find a shortlist, all rank it.", no_args_is_help=True)
out = console()
err = console(stderr=True)


@app.command()
def index(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A sentence-transformers model: a folder, a name, or package:NAME/path."),
    ],
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH...", help="Text, JSONL, CSV or Parquet files, or globs: 'docs/**/*.md'.")
    ],
    output: Annotated[str, typer.Option("--output", "-o", metavar="DIR", help="Folder of the index.")],
    precision: Annotated[
        Literal["float32", "int8", "binary"], typer.Option(help="Of the stored vectors: 4 bytes a dimension, 1, or 1 bit.")
    ] = "float32",
    shortlist: Annotated[int, typer.Option(min=1, help="Dimensions that the shortlist compares.")] = 64,
    method: Annotated[
        Literal["exact", "hnsw"], typer.Option(help="How the shortlist is found: comparing all, or by a graph.")
    ] = "exact",
    column: Annotated[str, typer.Option(help="Of JSONL, CSV and Parquet: the column with the text.")] = "text",
    words: Annotated[int, typer.Option(min=8, help="Most words of a passage. Longer texts are cut.")] = 160,
    kind: Annotated[
        Literal["parquet", "jsonl", "json", "csv", "tsv", "text"] | None,
        typer.Option("--format", help="Of files whose name does not tell it."),
    ] = None,
) -> None:
    """Make an index of a corpus. The same command goes on where it was stopped.

    DIR/vectors.faiss      vectors: the first dimensions for the shortlist, all for the ranking
    DIR/passages.parquet   the passages, with file and place
    DIR/settings.json      the model's digest, options, counts
    """
    from trainer.search.indexing import build
    from trainer.search.settings import Options

    options = Options(precision=precision, shortlist=shortlist, method=method, column=column, words=words, format=kind)
    with resumable(err):
        done = build(model, paths, output, options, err)
    show(out, f"{output}: {done.passages:,} passages of {done.dimensions} dimensions")


@app.command()
def query(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="An index.")],
    queries: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT...", help="Queries. Without any, each line of the input is one.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Passages to show.")] = 10,
    shortlist: Annotated[int, typer.Option(min=1, help="Passages that the first dimensions choose.")] = 200,
    full: Annotated[bool, typer.Option("--full", help="No shortlist: compare all dimensions of all passages.")] = False,
    exact: Annotated[bool, typer.Option("--exact", help="Choose the shortlist without HNSW, also where there is one.")] = False,
    compare: Annotated[bool, typer.Option("--compare", help="Search in full too: what was missed, and the time.")] = False,
    model: Annotated[str | None, typer.Option(metavar="MODEL", help="Where the model lies now, if it was moved.")] = None,
) -> None:
    """Search an index: rank, score, file and place, passage."""
    from datakit.sources.records import shown
    from trainer.search.index import Index

    opened = Index.open(folder, model)
    if queries and not all(map(str.strip, queries)):
        raise UserError("A query is empty.")
    opened.encode([])  # a model that is gone or has changed is told before anything is asked
    for text in queries or _lines():
        vector = opened.encode([text])
        hits, taken = _timed(partial(opened.search, vector, top, max(top, shortlist), full, exact))
        out.print(Text(shown(text), "bold"))
        _show(opened, hits)
        if compare:
            best, whole = _timed(partial(opened.search, vector, top, max(top, shortlist), full=True))
            found = len(set(best.ids[0].tolist()) & set(hits.ids[0].tolist()))
            said = (
                f"{found} of the {best.ids.shape[1]} that full search finds, in {taken:.1f} ms; full search takes {whole:.1f} ms"
            )
            out.print(said, highlight=False)


def _lines() -> Iterator[str]:
    """Queries of the standard input, one a line; asked for where it is a terminal."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    while True:
        if sys.stdin.isatty():
            err.print("query> ", end="")
        if not (line := sys.stdin.readline()):
            return
        if line.strip():
            yield line.strip()


def _timed(search: Callable[[], Hits]) -> tuple[Hits, float]:
    """What a search finds, and the milliseconds that it takes."""
    began = time.perf_counter()
    return search(), (time.perf_counter() - began) * 1e3


def _show(opened: Index, hits: Hits) -> None:
    from datakit.sources.records import shown

    ids = [each for each in hits.ids[0].tolist() if each >= 0]
    for rank, (score, passage) in enumerate(zip(hits.scores[0].tolist(), opened.passages(ids), strict=False), start=1):
        out.print(Text(f"{rank:>3}  {score:.3f}  {shown(passage.place)}"), soft_wrap=True)
        out.print(Padding(Text(shown(" ".join(passage.text.split()), 300), "dim"), (0, 0, 0, 5), expand=False))
