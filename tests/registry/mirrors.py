"""Small mirrors of public data sets, which carry the columns that the registry declares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from datakit.recipe import BeirSource, Group, HuggingFaceSource, Labelled, Nli, Range
from datakit.sources.grouping import columns_of
from datakit.sources.stream import needed

RECORDS = 6
BEIR_CORPUS = [{"_id": f"d{i}", "title": f"title {i}", "text": f"text {i}"} for i in range(4)]
BEIR_QUERIES = [{"_id": f"q{i}", "text": f"query {i}"} for i in range(2)]


def write(mirror: Path, source: HuggingFaceSource | BeirSource, renamed: str | None = None) -> str:
    """Writes a copy of a source below `mirror`, as the Hub lays it out; one column has a new name. Returns that name."""
    folder = mirror / source.path
    if isinstance(source, HuggingFaceSource):
        records = [rename(record, renamed) for record in declared_records(source)]
        config(folder, source.config or "default", source.split, records)
        readme(folder, {source.config or "default": source.split})
    else:
        judgements = [
            {"query-id": f"q{i}", "corpus-id": f"d{i}", "score": score}
            for i, score in ((0, source.min_score), (0, 0), (1, source.min_score))
        ]
        config(folder, "corpus", "corpus", [rename(record, renamed) for record in BEIR_CORPUS])
        config(folder, "queries", "queries", BEIR_QUERIES)
        config(folder, source.judgements, source.split, judgements)
        readme(folder, {"corpus": "corpus", "queries": "queries", source.judgements: source.split})
    return f"{renamed}_new"


def config(folder: Path, name: str, split: str, records: Sequence[Mapping[str, Any]]) -> None:
    path = folder / name / f"{split}-00000-of-00001.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(records)), path)


def readme(folder: Path, splits: Mapping[str, str]) -> None:
    lines = ["---", "configs:"]
    for name, split in splits.items():
        lines += [f"- config_name: {name}", "  data_files:", f"  - split: {split}", f"    path: {name}/{split}-*"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))


def names(source: HuggingFaceSource) -> list[str]:
    """The columns and paths that a source declares."""
    shape = source.grouping
    return needed(source, source.mapping if shape is None else columns_of(shape))


def rename(record: Mapping[str, Any], name: str | None) -> dict[str, Any]:
    """The record with the column, or the field at the end of the path, called `<name>_new`."""
    if name is None:
        return dict(record)
    head, _, rest = name.partition(".")
    inner = {f"{head}_new": record[head]} if not rest else {head: rename(record[head], rest)}
    return {key: value for key, value in record.items() if key != head} | inner


def declared_records(source: HuggingFaceSource) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = [{} for _ in range(RECORDS)]
    declared = names(source)
    for name in declared:
        if not any(other.startswith(f"{name}.") for other in declared):
            for number, record in enumerate(records):
                *heads, last = name.split(".")
                for head in heads:
                    record = record.setdefault(head, {})
                record[last] = value(source, name, number)
    return records


def value(source: HuggingFaceSource, name: str, number: int) -> Any:
    wanted = source.where.get(name)
    if isinstance(wanted, list):
        wanted = wanted[0]
    if isinstance(wanted, Range):
        wanted = wanted.at_least if wanted.at_least is not None else wanted.at_most
    item = wanted if wanted is not None else text(source, name, number)
    unpacked = [column for shape in source.unpacking for column in shape.columns]
    return [item, item if wanted is not None else f"{item}, again"] if name in unpacked else item


def text(source: HuggingFaceSource, name: str, number: int) -> Any:
    shape = source.grouping
    if isinstance(shape, Group) and name == shape.by:
        return f"key {number % 2}"
    if isinstance(shape, Nli) and name in (shape.premise, shape.label):
        labels = (shape.entailment, shape.contradiction, shape.entailment)
        return f"premise {number // 3}" if name == shape.premise else labels[number % 3]
    if isinstance(shape, Labelled) and name == shape.label:
        return (list(shape.names) or ["one class", "another class"])[number % 2]
    return number / RECORDS if name == source.mapping.score else f"{name} {number}"
