"""Batches out of a build. A batch is a pure function of (seed, epoch, number); rows stay on disk, mapped into memory."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datakit import storage
from datakit.errors import BuildError, UserError
from datakit.opened import Build
from datakit.schema import EXAMPLE, SCHEMA_VERSION, digest, text_id
from trainer.config import DataConfig
from trainer.model import Encoder

log = logging.getLogger(__name__)

COLUMNS = [
    "row_id", "query_id", "positive_id", "category", "batch_group", "instruction", "document_instruction",
    "query", "positive", "negatives", "in_batch_negatives", "score",
]  # fmt: skip
BLOCK_ROWS = 2_048


def part_files(build: Build, part: str) -> list[str]:
    """The Parquet files of a part, when there are some and their schema is the one that this trainer reads."""
    files = build.files(part)
    if not files:
        raise UserError(f"The build '{build.path}' has no rows in '{part}'. Build it with a split that leaves some there.")
    for file in files:
        try:
            schema = pq.read_schema(file)
        except FileNotFoundError as error:
            raise UserError(f"The build lacks '{file}', which its manifest names. Build it again.") from error
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"'{file}' cannot be read as Parquet ({error}). Build it again.") from error
        version = (schema.metadata or {}).get(b"datakit.schema", b"none").decode()
        if version != str(SCHEMA_VERSION):
            raise UserError(
                f"'{file}' has rows of schema version {version}, and this trainer reads version {SCHEMA_VERSION}. "
                "Build the recipe again with this datakit."
            )
        for name in COLUMNS:
            if name not in schema.names or not schema.field(name).type.equals(EXAMPLE.field(name).type):
                raise UserError(f"'{file}': the column '{name}' is missing or of another type than datakit.schema.EXAMPLE says.")
    return files


def usable_blocks(files: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The rows that have a query and a positive and no graded score, in order, in blocks. Says how many it left out."""
    left_out = 0
    for file in files:
        for block in pq.ParquetFile(file).iter_batches(batch_size=BLOCK_ROWS, columns=COLUMNS):
            texts = [pc.greater(pc.fill_null(pc.utf8_length(block.column(name)), 0), 0) for name in ("query", "positive")]
            keep = pc.and_(pc.and_(*texts), pc.is_null(block.column("score")))
            left_out += block.num_rows - int(pc.sum(keep).as_py() or 0)
            yield block.filter(keep)
    if left_out:
        log.warning("%d rows are left out: they have an empty side, or a graded score, which InfoNCE cannot use.", left_out)


def keys(ids: Any, texts: Any) -> np.ndarray:
    """A number for each id, equal where ids are equal; an id that is absent is taken from its text."""
    column = pl.Series("id", pl.from_arrow(ids), dtype=pl.String)
    if column.null_count():
        known = zip(column.to_list(), texts.to_pylist(), strict=True)
        column = pl.Series("id", [key if key is not None else text_id(text) for key, text in known], dtype=pl.String)
    return np.asarray(column.hash(seed=0).to_numpy())


@dataclass(frozen=True)
class Batch:
    """Rows that are trained on together: B queries against the N different documents among their positives and negatives."""

    row_ids: list[str]
    group: str
    queries: list[str]
    documents: list[str]
    positive: np.ndarray  # [B] the document of each row
    candidates: np.ndarray  # [B, N] which documents stand in a row's denominator


def plan(sizes: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[tuple[int, int, int]]:
    """The batches of an epoch as (group, start, stop) in the shuffled rows of the group: each row once, groups in proportion.

    What is left of a group makes a smaller batch, so that small groups are seen too.
    """
    batches = [
        (group, start, min(start + batch_size, size)) for group, size in enumerate(sizes) for start in range(0, size, batch_size)
    ]
    order = generator(seed, "plan", epoch).permutation(len(batches))
    return [batches[number] for number in order]


def generator(seed: int, *purpose: object) -> np.random.Generator:
    """A source of pseudo-random numbers for one purpose: equal arguments, equal numbers."""
    return np.random.Generator(np.random.Philox(key=int(digest(str(seed), *map(str, purpose)), 16)))


class TrainingRows:
    """The training rows of a build, in a file that is mapped into memory and has no name, so that it goes when the process ends.

    In memory are four numbers a row: its place by group, and keys of its query and its positive.
    """

    def __init__(self, build: Build, folder: str, config: DataConfig, seed: int) -> None:
        self.config = config
        self.seed = seed
        self._file = mapped_rows(part_files(build, "train"), folder)
        starts, groups, queries, positives = [0], [], [], []
        names: dict[str, int] = {}
        for number in range(self._file.num_record_batches):
            block = self._file.get_batch(number)
            starts.append(starts[-1] + block.num_rows)
            queries.append(keys(block.column("query_id"), block.column("query")))
            positives.append(keys(block.column("positive_id"), block.column("positive")))
            group = pc.coalesce(block.column("batch_group"), block.column("category")).to_pylist()
            groups.append(np.array([names.setdefault(name, len(names)) for name in group], np.int32))
        self._starts = np.array(starts)
        if len(self) == 0:
            raise UserError(f"The build '{build.path}' has no row in 'train' that can be trained on.")
        # Groups by name, so that their order does not depend on the order of the rows.
        self.groups = sorted(names)
        ranks = np.empty(len(names), np.int32)
        ranks[[names[name] for name in self.groups]] = np.arange(len(names))
        codes = ranks[np.concatenate(groups)]
        self._by_group = np.argsort(codes, kind="stable")
        self._sizes = np.bincount(codes, minlength=len(names)).tolist()
        self._queries, self._positives = np.concatenate(queries), np.concatenate(positives)
        self._by_query = np.argsort(self._queries, kind="stable")
        self._sorted_queries = self._queries[self._by_query]
        self.plan = lru_cache(2)(lambda epoch: plan(self._sizes, config.batch_size, seed, epoch))
        self._shuffled = lru_cache(len(names))(self._shuffle)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def batches_per_epoch(self) -> int:
        return sum(-(-size // self.config.batch_size) for size in self._sizes)

    def _shuffle(self, epoch: int, group: int) -> np.ndarray:
        """The rows of a group in the order of the epoch."""
        start = sum(self._sizes[:group])
        rows = self._by_group[start : start + self._sizes[group]]
        return rows[generator(self.seed, "rows", epoch, self.groups[group]).permutation(len(rows))]

    def batch(self, epoch: int, number: int, encoder: Encoder) -> Batch:
        """Batch `number` of an epoch. The encoder says how instructions stand before the texts."""
        group, start, stop = self.plan(epoch)[number]
        rows = self._shuffled(epoch, group)[start:stop]
        records = self._records(rows)
        documents: dict[str, int] = {}
        document_keys: list[str] = []

        def place(text: str, key: str | None, instruction: str | None) -> int:
            whole = encoder.document_text(text, instruction)
            if whole not in documents:
                documents[whole] = len(documents)
                document_keys.append(key if key is not None else text_id(text))
            return documents[whole]

        draw = generator(self.seed, "negatives", epoch, number)
        positive, mined = [], []
        for record in records:
            instruction = record["document_instruction"]
            positive.append(place(record["positive"], record["positive_id"], instruction))
            known = [negative for negative in record["negatives"] or [] if negative["text"]]
            drawn = draw.permutation(len(known))[: self.config.negatives]
            mined.append([place(known[each]["text"], known[each]["id"], instruction) for each in sorted(drawn)])
        named = keys(pa.array(document_keys, pa.string()), None)
        forbidden = np.stack([np.isin(named, self.positives_of(row)) for row in rows])
        in_batch = np.array([record["in_batch_negatives"] is not False for record in records])
        return Batch(
            row_ids=[record["row_id"] for record in records],
            group=self.groups[group],
            queries=[encoder.query_text(record["query"], record["instruction"]) for record in records],
            documents=list(documents),
            positive=np.array(positive),
            candidates=candidates(np.array(positive), mined, in_batch, forbidden),
        )

    def positives_of(self, row: int) -> np.ndarray:
        """Keys of all positives, anywhere in the training rows, of the query of this row."""
        query = self._queries[row]
        first, last = np.searchsorted(self._sorted_queries, query, "left"), np.searchsorted(self._sorted_queries, query, "right")
        return np.asarray(self._positives[self._by_query[first:last]])

    def _records(self, rows: np.ndarray) -> list[dict[str, Any]]:
        blocks = np.searchsorted(self._starts, rows, side="right") - 1
        records: dict[int, dict[str, Any]] = {}
        for block in np.unique(blocks):
            inside = rows[blocks == block]
            taken = self._file.get_batch(int(block)).take(pa.array(inside - self._starts[block]))
            records.update(zip(inside.tolist(), taken.to_pylist(), strict=True))
        return [records[row] for row in rows.tolist()]

    def prompts(self, encoder: Encoder) -> dict[str, str]:
        """What stands before texts, by name: "query" and "document" (the most frequent), and one for each category."""
        counted: dict[tuple[str, str, str], int] = {}
        for number in range(self._file.num_record_batches):
            block = self._file.get_batch(number).select(["category", "instruction", "document_instruction"])
            for row in pa.Table.from_batches([block]).group_by(block.schema.names).aggregate([([], "count_all")]).to_pylist():
                key = (
                    row["category"],
                    encoder.query_text("", row["instruction"]),
                    encoder.document_text("", row["document_instruction"]),
                )
                counted[key] = counted.get(key, 0) + row["count_all"]
        ordered = sorted(counted, key=lambda key: (-counted[key], key))
        by_category = {category: query for category, query, _ in reversed(ordered)}
        return {**dict(sorted(by_category.items())), "query": ordered[0][1], "document": ordered[0][2]}


def candidates(positive: np.ndarray, mined: Sequence[Sequence[int]], in_batch: np.ndarray, forbidden: np.ndarray) -> np.ndarray:
    """Which documents [B, N] stand in the denominator of each row.

    A row with in-batch negatives has all documents of the batch, another one only its own. What is a positive of an equal query
    (`forbidden` [B, N]) is no negative. The row's own positive [B] always stands there.
    """
    allowed = np.zeros(forbidden.shape, bool)
    for row, own in enumerate(mined):
        allowed[row, list(own)] = True
    allowed |= in_batch[:, None]
    allowed &= ~forbidden
    allowed[np.arange(len(positive)), positive] = True
    return allowed


def mapped_rows(files: Sequence[str], folder: str) -> Any:
    """The usable rows of some Parquet files as an Arrow file reader that maps them into memory."""
    path = os.path.join(folder, "rows.arrow.tmp")
    try:
        schema = pa.schema([EXAMPLE.field(name) for name in COLUMNS])
        with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for block in usable_blocks(files):
                writer.write_batch(pa.RecordBatch.from_arrays([block.column(name) for name in COLUMNS], schema=schema))
        return pa.ipc.open_file(pa.memory_map(path, "r"))
    except OSError as error:
        raise storage.failure(error, path) from error
    except pa.ArrowException as error:
        raise BuildError(f"The training rows could not be read ({error}). Build the recipe again.") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)
