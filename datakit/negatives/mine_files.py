"""`datakit mine`: reads queries, corpus and judgements from files, mines, and writes what was mined."""

from __future__ import annotations

import os
from statistics import median
from typing import Any

import polars as pl
from rich.console import Group, RenderableType
from rich.table import Table

from datakit import storage
from datakit.errors import UserError
from datakit.negatives.alone import Mined
from datakit.sources.lines import json_fault

FORMATS = ".parquet, .jsonl, .ndjson, .csv, .tsv, .txt (a text in each line)"
SHAPES = ("lists", "triplets", "n-tuples")
MARGIN, PARAPHRASE = 0.95, 0.95


def read(path: str, what: str) -> pl.DataFrame:
    """A file as a frame, by the end of its name."""
    if not os.path.exists(path) and "://" not in path:
        raise UserError(f"The file of the {what}, '{path}', does not exist.")
    try:
        match os.path.splitext(path)[1].lower():
            case ".parquet":
                return pl.read_parquet(path)
            case ".jsonl" | ".ndjson":
                return pl.read_ndjson(path, infer_schema_length=None)
            case ".csv":
                return pl.read_csv(path, infer_schema_length=0)
            case ".tsv":
                return pl.read_csv(path, separator="\t", infer_schema_length=0, quote_char=None)
            case ".txt":
                return pl.DataFrame({"text": storage.read_bytes(path).decode("utf-8").splitlines()})
    except (pl.exceptions.PolarsError, UnicodeDecodeError) as error:
        if path.lower().endswith((".jsonl", ".ndjson")) and (fault := json_fault(path)):
            raise UserError(f"The file of the {what} is broken. {fault}") from error
        raise UserError(f"The file of the {what}, '{path}', cannot be read: {str(error).splitlines()[0]}") from error
    raise UserError(f"The file of the {what}, '{path}', is of no known format. Allowed: {FORMATS}.")


def corpus_file(path: str) -> str:
    """The file itself, or corpus.jsonl of a BEIR folder."""
    if not os.path.isdir(path):
        return path
    inner = os.path.join(path, "corpus.jsonl")
    if not os.path.exists(inner):
        raise UserError(f"The folder '{path}' has no corpus.jsonl. Give a BEIR folder, or a file: {FORMATS}.")
    return inner


def renamed(frame: pl.DataFrame, what: str, names: dict[str, str | None]) -> pl.DataFrame:
    """The frame with the columns that a person named under the names that `mine` looks for."""
    for name, given in names.items():
        if given is None or given == name:
            continue
        if given not in frame.columns:
            raise UserError(f"The {what} have no column '{given}'. They have: {', '.join(frame.columns)}.")
        frame = frame.drop(name, strict=False).rename({given: name})
    return frame


def window(text: str | None) -> tuple[int, int] | None:
    """ "31-400" as (31, 400)."""
    if text is None:
        return None
    first, _, last = text.partition("-")
    if not first.isdecimal() or not last.isdecimal():
        raise UserError(f"--ranks is '{text}'. Write the first and the last rank, such as 31-400.")
    if not 1 <= int(first) <= int(last):
        raise UserError(f"--ranks is '{text}'. The first rank is at least 1, and the last one not below it.")
    return int(first), int(last)


def screen(
    encoder: str | None,
    margin: float | None,
    absolute_margin: float | None,
    max_score: float | None,
    ranks: str | None,
    paraphrase: float | None,
) -> dict[str, Any]:
    """The options of `mine` about the screen, by name; those that were not given have their defaults, and 0 turns a rule off.

    Raises a UserError for one that was given where no encoder screens: it would do nothing.
    """
    given = {
        "--margin": margin, "--absolute-margin": absolute_margin, "--max-score": max_score, "--ranks": ranks,
        "--paraphrase": paraphrase,
    }  # fmt: skip
    for option, value in given.items():
        if encoder is None and value is not None:
            raise UserError(
                f"{option} is '{value}', and without --encoder nothing is screened. Give an encoder, or leave {option} out."
            )
    return {
        "margin": (MARGIN if margin is None else margin) or None,
        "absolute_margin": absolute_margin,
        "max_score": max_score,
        "ranks": window(ranks),
        "paraphrase": (PARAPHRASE if paraphrase is None else paraphrase) or None,
    }


def write(mined: Mined, path: str, shape: str, per_query: int) -> int:
    """Writes Parquet or JSONL in one of SHAPES; returns the number of rows."""
    frame = mined.rows if shape == "lists" else mined.triplets() if shape == "triplets" else mined.n_tuples(per_query)
    if path.endswith(".jsonl"):
        storage.write_bytes(path, frame.write_ndjson().encode())
    else:
        storage.write_table(path, frame.to_arrow())
    return len(frame)


def check_output(path: str, shape: str, force: bool) -> None:
    """Refuses what `write` could not write, before anything is mined."""
    if shape not in SHAPES:
        raise UserError(f"--shape is '{shape}'. Allowed: {', '.join(SHAPES)}.")
    storage.check_output(path, [".parquet", ".jsonl"], force)


def shown(mined: Mined) -> RenderableType:
    """What became of the candidates of each miner, and how many rows have how many negatives."""
    last = mined.notes.get("relabel", {})
    parts: list[RenderableType] = []
    screen = mined.notes.get("screen")
    if screen is not None:
        reasons = sorted({reason for counts in screen["miners"].values() for reason in counts} - {"candidates", "taken"})
        seen = [reason for reason in reasons if any(counts[reason] for counts in screen["miners"].values())]
        table = Table(title="Candidates", title_justify="left")
        for heading in ("miner", "candidates", *seen, "taken"):
            table.add_column(heading, justify="left" if heading == "miner" else "right")
        for miner, counts in screen["miners"].items():
            table.add_row(str(miner), *(f"{counts[name]:,}" for name in ("candidates", *seen, "taken")))
        parts.append(table)
        known = screen["known_positives"]
        if known["tried"]:
            parts.append(
                f"Of {known['tried']:,} known positives that were taken for unknown, the screen found {known['caught']:,} "
                f"({known['caught_rate']:.0%})."
            )
    if last:
        parts.append(f"Relabelled: {last['rows_made']:,} negatives became positives of their queries.")
    numbers = mined.rows.get_column("negatives").list.len().fill_null(0)
    parts.append(
        f"{len(numbers):,} rows, {int(numbers.sum()):,} negatives; "
        f"{int((numbers == 0).sum()):,} rows have none, the median is {median(numbers.to_list() or [0]):.0f}."
    )
    return Group(*parts)
