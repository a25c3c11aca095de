"""Texts in one form, and the ids that follow from them.

Unicode NFC; newlines as \\n; spaces of all kinds as " "; no invisible characters; no blanks at the ends of lines; at most two
blank lines in a row; nothing around the text. Indentation and newlines stay, since they matter for code; a text that is indented
as a whole is moved to the left.
"""

from __future__ import annotations

import re
import textwrap
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from datakit import storage
from datakit.recipe import Model
from datakit.schema import EXAMPLE, NEGATIVE, content_id, reasons, text_id
from datakit.step import Step, Work, count_categories, part_of, split_rejected, write_rows

VERSION = 1
EMPTY_FIELD = "empty_field"
CONTROL_CHARACTERS = "control_characters"

# Text has no use for these; where they stand, the bytes were something else.
_CONTROL = r"[\x00-\x08\x0e-\x1f\x7f]"
_NEWLINE = r"\r\n|[\r\x0b\x0c\u0085\u2028\u2029]"
# C1 controls, soft hyphen, zero-width space, word joiner, BOM, and marks of direction. The zero-width joiner and non-joiner
# stay: Persian, Indic scripts and emoji need them.
_INVISIBLE = r"[\x80-\x84\x86-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]"
_SPACE = r"[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]"
_LINE_END = r"[ \t]+\n"
_BLANK_LINES = r"\n{4,}"
_INDENTED = r"^\n*[ \t]+[^\n]*\n"


class Nothing(Model):
    """No parameters: there is one way to normalise."""


def normalise_step(inputs: tuple[Step, ...]) -> Step:
    """The step that brings the rows of all inputs into one form and fills their ids.

    Reasons: control_characters, empty_field. `notes` counts the texts that changed.
    """
    return Step("normalise", VERSION, _work, Nothing(), inputs=inputs, packages=("polars", "python"))


def _work(work: Work) -> None:
    results = work.map("rows", _Normalise(work.step.name), work.shards)
    changed: Counter[str] = Counter()
    for result in results:
        changed.update(result["changed"])
    work.notes["changed"] = {name: changed[name] for name in ("query", "positive", "negatives", "negatives_dropped")}
    work.finish("rows", results)


def normalised(texts: pl.Series) -> pl.Series:
    """The texts in the one form. Control characters stay as they are."""
    plain = texts.str.replace_all(_NEWLINE, "\n")
    plain = _where(plain, plain.str.len_bytes() != plain.str.len_chars(), _composed)
    plain = plain.str.replace_all(_LINE_END, "\n").str.replace_all(_BLANK_LINES, "\n\n\n")
    plain = _where(plain, plain.str.contains(_INDENTED), _to_the_left)
    return plain.str.strip_chars(" \t\n")


def _where(texts: pl.Series, mask: pl.Series, change: Callable[[pl.Series], pl.Series]) -> pl.Series:
    """The texts, those of the mask changed."""
    rows = mask.fill_null(False).arg_true()
    return texts.scatter(rows, change(texts.gather(rows))) if len(rows) else texts


def _composed(texts: pl.Series) -> pl.Series:
    """What only texts beyond ASCII need: no invisible characters, one kind of space, NFC."""
    plain = texts.str.replace_all(_INVISIBLE, "").str.replace_all(_SPACE, " ")
    # The quick check of unicodedata is several times faster than composing every text.
    return pl.Series(
        [text if unicodedata.is_normalized("NFC", text) else unicodedata.normalize("NFC", text) for text in plain],
        dtype=pl.String,
    )


def _to_the_left(texts: pl.Series) -> pl.Series:
    return pl.Series([textwrap.dedent(text.rstrip(" \t\n")) for text in texts], dtype=pl.String)


@dataclass(frozen=True)
class _Normalise:
    step: str

    def __call__(self, shard: str, folder: str) -> dict[str, Any]:
        table = storage.read_table(shard)
        raw = {name: pl.Series(name, table.column(name), dtype=pl.String) for name in ("query", "positive")}
        texts = {name: normalised(series) for name, series in raw.items()}
        said = _objections(raw, texts)
        changed = Counter({name: int((raw[name] != texts[name]).sum()) for name in raw})
        negatives, counts = _negatives(table.column("negatives").combine_chunks())
        changed.update(counts)
        columns = {name: series.to_arrow().cast(pa.string()) for name, series in texts.items()} | {"negatives": negatives}
        kept, _ = split_rejected(_with(table, columns), self.step, said)
        _, rejected = split_rejected(table, self.step, said)
        result = write_rows(folder, kept=[(part_of(shard), _with_ids(kept))], rejected=rejected, rows_in=count_categories(table))
        return result | {"changed": dict(changed)}


def _objections(raw: Mapping[str, pl.Series], texts: Mapping[str, pl.Series]) -> pa.Table:
    """What is said against rows: a control character, or nothing left of a text."""
    said: dict[int, dict[str, Any]] = {}
    for name, series in raw.items():
        for row in series.str.contains(_CONTROL).fill_null(False).arg_true():
            text = series[row]
            match = re.search(_CONTROL, text)
            assert match is not None
            detail = f"{name}: U+{ord(match[0]):04X} at character {match.start() + 1}"
            said.setdefault(row, {"row": row, "reason": CONTROL_CHARACTERS, "detail": detail})
        for row in texts[name].fill_null("").eq("").arg_true():
            said.setdefault(row, {"row": row, "reason": EMPTY_FIELD, "detail": f"{name}: nothing to read in it"})
    return reasons([said[row] for row in sorted(said)])


def _negatives(column: pa.ListArray) -> tuple[pa.Array, dict[str, int]]:
    """The negatives with their texts in the one form and their ids. Those with control characters or no text are dropped."""
    values = column.flatten()
    if not len(values):
        return column, {}
    raw = pl.Series("text", values.field("text"), dtype=pl.String)
    texts = normalised(raw)
    keep = (texts.fill_null("") != "") & ~raw.str.contains(_CONTROL).fill_null(True)
    counts = {"negatives": int((raw != texts).sum()), "negatives_dropped": int((~keep).sum())}
    fields = {field.name: values.field(field.name) for field in NEGATIVE}
    fields["text"] = texts.to_arrow().cast(pa.string())
    fields["id"] = pa.array([None if text is None else text_id(text) for text in texts], pa.string())
    mask = pa.array(keep.to_numpy())
    structs = pa.StructArray.from_arrays([fields[field.name] for field in NEGATIVE], fields=list(NEGATIVE)).filter(mask)
    ends = np.cumsum(pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False))
    kept_before = np.concatenate([[0], np.cumsum(keep.to_numpy())])
    offsets = pa.array(kept_before[np.concatenate([[0], ends])], pa.int32())
    return pa.ListArray.from_arrays(offsets, structs, mask=pc.is_null(column)), counts


def _with_ids(table: pa.Table) -> pa.Table:
    """The rows with content_id, query_id and positive_id; and with document_id, where the source gave none.

    A row without a document of its own belongs to its positive; to its query where the positive is a class (no in-batch
    negatives).
    """
    categories, queries, positives, own, retrieval = (
        table.column(name).to_pylist() for name in ("category", "query", "positive", "document_id", "in_batch_negatives")
    )
    query_ids = [text_id(text) for text in queries]
    positive_ids = [text_id(text) for text in positives]
    columns = {
        "content_id": [content_id(*row) for row in zip(categories, queries, positives, strict=True)],
        "query_id": query_ids,
        "positive_id": positive_ids,
        "document_id": [
            document if document is not None else query if in_batch is False else positive
            for document, query, positive, in_batch in zip(own, query_ids, positive_ids, retrieval, strict=True)
        ],
    }
    return _with(table, {name: pa.array(ids, pa.string()) for name, ids in columns.items()})


def _with(table: pa.Table, columns: Mapping[str, pa.Array]) -> pa.Table:
    """The table with some columns replaced."""
    for name, column in columns.items():
        table = table.set_column(table.schema.get_field_index(name), EXAMPLE.field(name), column)
    return table
