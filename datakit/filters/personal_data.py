"""Personal data and secrets: masked, or a reason to reject the row. `personal_data_patterns` finds them.

A text that is masked is another text: its ids are made anew, as `normalise` makes them, so equal texts still have equal ids. What
was found is told by its kind alone: no value reaches a reason, a note or a log line, and rejected rows are masked as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from datakit import storage
from datakit.errors import UserError
from datakit.filters.personal_data_patterns import KINDS, Found, check_regions, find
from datakit.filters.verdicts import Verdicts
from datakit.recipe import PersonalDataFilter
from datakit.schema import EXAMPLE, NEGATIVE, content_id, text_id
from datakit.step import Work, count_categories, part_of, split_rejected, write_rows

VERSION = 1

PERSONAL_DATA = "personal_data"
SECRET = "secret"
REASONS = (SECRET, PERSONAL_DATA)

_SIDES = ("query", "positive", "negative")


def work(work: Work) -> None:
    results = work.map("rows", _Unit(work.step.parameters, work.step.name), work.shards)
    for name in ("masked", "found_in_rejected"):
        total: Counter[str] = Counter()
        for result in results:
            total.update(result[name])
        work.notes[name] = dict(sorted(total.items()))
    work.finish("rows", results)


def check(parameters: PersonalDataFilter) -> None:
    """Refuses regions that are not known, and phone numbers without the library that knows them."""
    if action(parameters, "phone") != "keep":
        unknown = check_regions(parameters.phone_regions)
        if unknown:
            raise UserError(
                f"The filter 'personal_data' has the phone region '{unknown[0]}', which is none. ISO 3166 codes are allowed, "
                "such as US, GB, DE."
            )


def masks(parameters: PersonalDataFilter) -> bool:
    """Whether texts of rows that go on may change."""
    return any(action(parameters, kind) == "mask" for kind in KINDS)


def action(parameters: PersonalDataFilter, kind: str) -> str:
    return next((given for name, given in parameters.kinds.items() if name == kind), parameters.action)


@dataclass(frozen=True)
class _Unit:
    parameters: Any
    step: str

    def __call__(self, shard: str, folder: str) -> dict[str, Any]:
        table, said, counts = annotate(storage.read_table(shard), self.parameters)
        kept, rejected = split_rejected(table, self.step, said)
        result = write_rows(folder, kept=[(part_of(shard), kept)], rejected=rejected, rows_in=count_categories(table))
        lost = set(said.column("row").to_pylist())
        inside, outside = Counter[str](), Counter[str]()
        for (row, side, name), number in counts.items():
            (outside if row in lost else inside)[f"{side} {name}"] += number
        return {**result, "masked": dict(inside), "found_in_rejected": dict(outside)}


def annotate(table: pa.Table, parameters: PersonalDataFilter) -> tuple[pa.Table, pa.Table, Counter[tuple[int, str, str]]]:
    """The rows with findings masked and ids that fit, the reasons (REASONS), and the number of findings by (row, side, name)."""
    kinds = [kind for kind in KINDS if action(parameters, kind) != "keep"]
    dropping = {kind for kind in kinds if action(parameters, kind) == "drop"}
    negatives = table.column("negatives").combine_chunks()
    values = negatives.flatten()
    lengths = pc.fill_null(pc.list_value_length(negatives), 0).to_numpy(zero_copy_only=False)
    sides: dict[str, tuple[pa.Array, Sequence[int]]] = {
        "query": (table.column("query").combine_chunks(), range(table.num_rows)),
        "positive": (table.column("positive").combine_chunks(), range(table.num_rows)),
        "negative": (values.field("text"), np.repeat(np.arange(table.num_rows), lengths).tolist()),
    }
    counts: Counter[tuple[int, str, str]] = Counter()
    dropped: dict[str, dict[int, str]] = {reason: {} for reason in REASONS}
    changed: dict[str, dict[int, str]] = {}
    for side, (texts, rows) in sides.items():
        changed[side] = {}
        for at, text, found in findings(pl.Series(texts, dtype=pl.String), kinds, parameters.phone_regions):
            row = rows[at]
            for each in found:
                counts[row, side, each.name] += 1
                if each.kind in dropping:
                    reason = SECRET if each.kind == "secret" else PERSONAL_DATA
                    dropped[reason].setdefault(row, f"{side}: {each.name}")
            changed[side][at] = masked(text, found)
    verdicts = Verdicts(table.num_rows)
    totals = np.bincount([row for row, _, _ in counts], list(counts.values()), minlength=table.num_rows)
    for reason, details in dropped.items():
        against = np.zeros(table.num_rows, bool)
        against[list(details)] = True
        verdicts.add(against, reason, value=totals, detail=[details.get(row) for row in range(table.num_rows)])
    return _changed(table, changed), verdicts.table(), counts


def findings(texts: pl.Series, kinds: Sequence[str], regions: Sequence[str]) -> list[tuple[int, str, list[Found]]]:
    """The texts in which something was found: their place, the text, and what."""
    worth: dict[int, list[str]] = {}
    for kind in kinds:
        for pattern in KINDS[kind]:
            for at in texts.str.contains(pattern).fill_null(False).arg_true().to_list():
                known = worth.setdefault(at, [])
                if kind not in known:
                    known.append(kind)
    result = []
    for at in sorted(worth):
        text = texts[at]
        if found := find(text, worth[at], regions):
            result.append((at, text, found))
    return result


def masked(text: str, found: Sequence[Found]) -> str:
    """The text with a placeholder for each finding: <EMAIL>, <PHONE>, <CREDIT_CARD>, <IBAN>, <IP_ADDRESS>, <SECRET>."""
    parts, end = [], 0
    for each in found:
        parts += [text[end : each.start], f"<{each.kind.upper()}>"]
        end = each.end
    return "".join([*parts, text[end:]])


def _changed(table: pa.Table, changed: dict[str, dict[int, str]]) -> pa.Table:
    """The table with other texts, and the ids that follow from them."""
    for side, texts in changed.items():
        if side == "negative" and texts:
            table = _set(table, "negatives", _negatives(table.column("negatives").combine_chunks(), texts))
    rows = sorted(changed["query"].keys() | changed["positive"].keys())
    if not rows:
        return table
    names = ("query", "positive", "query_id", "positive_id", "document_id", "content_id", "category")
    columns = {name: table.column(name).to_pylist() for name in names}
    for row in rows:
        for side in ("query", "positive"):
            if row in changed[side]:
                before, text = columns[f"{side}_id"][row], changed[side][row]
                columns[side][row], columns[f"{side}_id"][row] = text, text_id(text)
                # A row without a document of its own belongs to one of its texts.
                if before is not None and columns["document_id"][row] == before:
                    columns["document_id"][row] = text_id(text)
        query, positive = columns["query"][row], columns["positive"][row]
        columns["content_id"][row] = content_id(columns["category"][row], query or "", positive or "")
    for name in names[:-1]:
        table = _set(table, name, pa.array(columns[name], pa.string()))
    return table


def _negatives(column: pa.ListArray, changed: dict[int, str]) -> pa.ListArray:
    values = column.flatten()
    texts, ids = values.field("text").to_pylist(), values.field("id").to_pylist()
    for at, text in changed.items():
        texts[at], ids[at] = text, text_id(text)
    given = {"text": pa.array(texts, pa.string()), "id": pa.array(ids, pa.string())}
    arrays = [given.get(field.name, values.field(field.name)) for field in NEGATIVE]
    structs = pa.StructArray.from_arrays(arrays, fields=list(NEGATIVE))
    ends = np.cumsum(pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False))
    offsets = pa.array(np.concatenate([[0], ends]), pa.int32())
    return pa.ListArray.from_arrays(offsets, structs, mask=pc.is_null(column))


def _set(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), EXAMPLE.field(name), values)
