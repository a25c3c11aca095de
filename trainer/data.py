"""Training rows of a build, and which of them make a batch: a pure function of (seed, epoch, number, progress)."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datakit import storage
from datakit.errors import BuildError, UserError
from datakit.opened import Build
from datakit.schema import EXAMPLE, SCHEMA_VERSION, digest
from trainer import distributed
from trainer.batch import Batch, Draw, Known, keys, make_batch, target_difficulty
from trainer.config import Objective, Stage
from trainer.model import Encoder
from trainer.objectives import check, in_turn, names_of, selected

if TYPE_CHECKING:
    from trainer.remine import Round

log = logging.getLogger(__name__)

COLUMNS = [
    "row_id", "query_id", "positive_id", "document_id", "category", "batch_group", "instruction", "document_instruction",
    "query", "positive", "negatives", "in_batch_negatives", "score", "task", "label",
]  # fmt: skip
BLOCK_ROWS = 2_048
FEW_ROWS = 8  # A batch with fewer has hardly any in-batch negatives.


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


def usable_blocks(files: Sequence[str], graded: bool = False) -> Iterator[pa.RecordBatch]:
    """The rows that have a query and a positive, in order, in blocks; those with a graded score where it is wanted.

    What was left out stands in the log.
    """
    empty = scored = 0
    for file in files:
        for block in read_blocks(file):
            texts = [pc.greater(pc.fill_null(pc.utf8_length(block.column(name)), 0), 0) for name in ("query", "positive")]
            whole = block.filter(pc.and_(*texts))
            wrong = pc.filter(whole.column("row_id"), pc.invert(pc.is_finite(pc.fill_null(whole.column("score"), 0.0))))
            if len(wrong):
                raise BuildError(f"'{file}': the score of row {wrong[0]} is no finite number. Mend the source, and build again.")
            kept = whole if graded else whole.filter(pc.is_null(whole.column("score")))
            empty, scored = empty + block.num_rows - whole.num_rows, scored + whole.num_rows - kept.num_rows
            yield kept
    if empty or scored:
        log.warning(
            "%d rows are left out: %d have an empty side, %d a graded score, which only loss.similarity uses.",
            empty + scored, empty, scored,
        )  # fmt: skip


def read_blocks(file: str) -> Iterator[pa.RecordBatch]:
    """The columns of a Parquet file, in blocks. Raises BuildError where its pages are damaged."""
    try:
        yield from pq.ParquetFile(file).iter_batches(batch_size=BLOCK_ROWS, columns=COLUMNS)
    except (OSError, pa.ArrowException) as error:
        raise BuildError(f"'{file}' cannot be read ({error}). Build the recipe again.") from error


def plan(sizes: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[tuple[int, int, int]]:
    """The batches of an epoch as (group, start, stop) in the shuffled rows of the group: each row once, groups in proportion.

    A group has as few batches as hold it, and they are equal in size, up to one row: a last batch of two rows would teach little.
    """
    batches = []
    for group, size in enumerate(sizes):
        count = -(-size // batch_size)
        edges = [size * each // count for each in range(count + 1)]
        batches += [(group, start, stop) for start, stop in pairwise(edges)]
    order = generator(seed, "plan", epoch).permutation(len(batches))
    return [batches[number] for number in order]


def generator(seed: int, *purpose: object) -> np.random.Generator:
    """A source of pseudo-random numbers for one purpose: equal arguments, equal numbers."""
    return np.random.Generator(np.random.Philox(key=int(digest(str(seed), *map(str, purpose)), 16)))


class TrainingRows:
    """The training rows of a build, in a file that is mapped into memory and has no name, so that it goes when the process ends.

    In memory are five numbers a row: its group, its place by group, the keys of its query and its positive, its place by query.
    Rows with a graded score, where the stage has a loss for them, are in batches of their own.
    """

    def __init__(self, build: Build, folder: str, stage: Stage, seed: int) -> None:
        self.build, self.data, self.seed = build, stage.data, seed
        graded_too = stage.loss.similarity is not None
        self._file = mapped_rows(part_files(build, "train"), folder, graded_too, stage.objectives)
        starts, most, groups, graded, queries, positives = [0], [0], [], [], [], []
        names: dict[tuple[str, bool, str], int] = {}
        for _, block in self.blocks():
            starts.append(starts[-1] + block.num_rows)
            most.append(pc.max(pc.list_value_length(block.column("negatives"))).as_py() or 0)
            queries.append(keys(block.column("query_id"), block.column("query")))
            positives.append(keys(block.column("positive_id"), block.column("positive")))
            graded.append(has_score(block))
            check_scores(block, build, stage)
            group = pc.coalesce(block.column("batch_group"), block.column("category")).to_pylist()
            triples = zip(group, graded[-1].tolist(), names_of(block, stage.objectives), strict=True)
            groups.append(np.array([names.setdefault(each, len(names)) for each in triples], np.int32))
        self._starts = np.array(starts)
        self.round: Round | None = None  # of negatives in place of the build's
        self.most_negatives = max([*most, stage.data.remine.per_query if stage.data.remine else 0])  # of a row
        if len(self) == 0:
            raise no_rows(build, stage)
        # Groups by name, so that their order does not depend on the order of the rows. With each: whether its rows are graded.
        ordered = sorted(names)
        self.groups, self.objectives = [each[:2] for each in ordered], [each[2] for each in ordered]
        check(stage, build, self.objectives)
        ranks = np.empty(len(names), np.int32)
        ranks[[names[name] for name in ordered]] = np.arange(len(names))
        codes = ranks[np.concatenate(groups)]
        self._by_group = np.argsort(codes, kind="stable")
        self._sizes = np.bincount(codes, minlength=len(names)).tolist()
        self._queries, self._positives = np.concatenate(queries), np.concatenate(positives)
        # A graded pair may be alike or not: it makes no positive.
        ungraded = np.flatnonzero(~np.concatenate(graded))
        self._by_query = ungraded[np.argsort(self._queries[ungraded], kind="stable")]
        self._sorted_queries = self._queries[self._by_query]
        self.plan = lru_cache(2)(lambda epoch: in_turn(plan(self._sizes, stage.data.batch_size, seed, epoch), self.objectives))
        self._shuffled = lru_cache(len(names))(self._shuffle)
        self._tell_small_batches()

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def batches_per_epoch(self) -> int:
        return len(self.plan(0))

    def _tell_small_batches(self) -> None:
        few = min(FEW_ROWS, self.data.batch_size)
        small = [self.groups[group][0] for group, start, stop in self.plan(0) if stop - start < few]
        if 10 * len(small) > self.batches_per_epoch:
            log.warning(
                "%d of the %d batches of an epoch have fewer than %d rows, as their groups are small (such as '%s'). Their rows "
                "have few in-batch negatives. Give such rows one batch_group, or leave their categories out.",
                len(small), self.batches_per_epoch, few, small[0],
            )  # fmt: skip

    def _shuffle(self, epoch: int, group: int) -> np.ndarray:
        """The rows of a group in the order of the epoch."""
        start = sum(self._sizes[:group])
        rows = self._by_group[start : start + self._sizes[group]]
        return rows[generator(self.seed, "rows", epoch, *self.groups[group]).permutation(len(rows))]

    def batch(self, epoch: int, number: int, encoder: Encoder, progress: float) -> Batch:
        """Batch `number` of an epoch, when a part `progress` of the stage is done.

        The encoder says how instructions stand before the texts. Several processes make the same batch, and share its texts
        (trainer.distributed).
        """
        group, start, stop = self.plan(epoch)[number]
        name, graded = self.groups[group]
        rows = self._shuffled(epoch, group)[start:stop]
        luck = generator(self.seed, "negatives", epoch, number).random((stop - start, self.most_negatives))
        draw = Draw(0 if graded else self.data.negatives, target_difficulty(self.data.curriculum, progress), luck)
        taken = self.take(rows)
        if self.round is not None:
            place = COLUMNS.index("negatives")
            taken = taken.set_column(place, EXAMPLE.field("negatives"), self.round.negatives(self, rows))
        made = make_batch(taken, name, graded, self.known(rows), draw, encoder)
        return replace(made, objective=self.objectives[group])

    def known(self, rows: np.ndarray) -> Known:
        """What is a positive of the queries of these rows, anywhere in the training rows."""
        queries, query = np.unique(self._queries[rows], return_inverse=True)
        first = np.searchsorted(self._sorted_queries, queries, "left")
        count = np.searchsorted(self._sorted_queries, queries, "right") - first
        owner = np.repeat(np.arange(len(queries)), count)
        place = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count) + np.repeat(first, count)
        return Known(query, owner, self._positives[self._by_query[place]])

    def blocks(self) -> Iterator[tuple[int, pa.RecordBatch]]:
        """All rows in order, in blocks, each with the number of its first row."""
        start = 0
        for number in range(self._file.num_record_batches):
            block = self._file.get_batch(number)
            yield start, block
            start += block.num_rows

    def take(self, rows: np.ndarray) -> pa.Table:
        """The rows with these numbers, in their order."""
        blocks = np.searchsorted(self._starts, rows, side="right") - 1
        parts = [
            self._file.get_batch(int(block)).take(pa.array(rows[blocks == block] - self._starts[block]))
            for block in np.unique(blocks)
        ]
        return pa.Table.from_batches(parts, self._file.schema).take(pa.array(np.argsort(np.argsort(blocks, kind="stable"))))

    def texts(self, places: np.ndarray) -> list[dict[str, Any]]:
        """The id, text, instruction and row's query of what stands at places: row x (most_negatives + 2) + slot.

        Slot 0 is the query, 1 the positive, 2 and more the mined negatives.
        """
        row, slot = np.divmod(places, self.most_negatives + 2)
        different, which = np.unique(row, return_inverse=True)
        names = ["query", "query_id", "instruction", "positive", "positive_id", "document_instruction", "negatives"]
        records = self.take(different).select(names).to_pylist()
        found = []
        for record, at in zip((records[number] for number in which.tolist()), slot.tolist(), strict=True):
            side = ("query", "positive")[min(at, 1)]
            own = record["negatives"][at - 2] if at > 1 else {"id": record[f"{side}_id"], "text": record[side]}
            instruction = record["document_instruction" if at else "instruction"]
            found.append({"id": own["id"], "text": own["text"], "instruction": instruction, "query": record["query"]})
        return found

    def prompts(self, encoder: Encoder) -> dict[str, str]:
        """What stands before texts, by name: "query" and "document" (the most frequent), and one for each category."""
        counted: dict[tuple[str, str, str], int] = {}
        for _, whole in self.blocks():
            block = whole.select(["category", "instruction", "document_instruction"])
            for row in pa.Table.from_batches([block]).group_by(block.schema.names).aggregate([([], "count_all")]).to_pylist():
                key = (
                    row["category"],
                    encoder.query_text("", row["instruction"]).prefix,
                    encoder.document_text("", row["document_instruction"]).prefix,
                )
                counted[key] = counted.get(key, 0) + row["count_all"]
        ordered = sorted(counted, key=lambda key: (-counted[key], key))
        by_category = {category: query for category, query, _ in reversed(ordered)}
        return {**dict(sorted(by_category.items())), "query": ordered[0][1], "document": ordered[0][2]}


def check_scores(block: pa.RecordBatch, build: Build, stage: Stage) -> None:
    """Raises UserError where a score cannot be a cosine, and the loss of the stage takes it for one."""
    if stage.loss.similarity is None or stage.loss.similarity.kind != "mse":
        return
    least, most = pc.min_max(block.column("score")).values()
    if least.is_valid and not (least.as_py() >= -1 and most.as_py() <= 1):
        raise UserError(
            f"Stage '{stage.name}': '{build.path}' has scores such as {least.as_py():g} and {most.as_py():g}; loss.similarity "
            "of kind mse compares them with cosines; allowed: -1 to 1. Scale them, or take kind: cosent, which needs their order."
        )


def no_rows(build: Build, stage: Stage) -> UserError:
    return UserError(f"The build '{build.path}' has no row in 'train' that stage '{stage.name}' can be trained on.")


def has_score(block: pa.RecordBatch) -> np.ndarray:
    """Which rows [n] have a graded score."""
    return np.asarray(block.column("score").is_valid().to_numpy(zero_copy_only=False), bool)


def mapped_rows(files: Sequence[str], folder: str, graded: bool, objectives: Mapping[str, Objective]) -> Any:
    """The usable rows of some Parquet files as an Arrow file reader that maps them into memory."""
    path = os.path.join(folder, "rows.arrow.tmp")
    try:
        schema = pa.schema([EXAMPLE.field(name) for name in COLUMNS])
        if distributed.rank() == 0:
            with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
                for block in selected(usable_blocks(files, graded), objectives):
                    writer.write_batch(pa.RecordBatch.from_arrays([block.column(name) for name in COLUMNS], schema=schema))
        distributed.wait()
        opened = pa.ipc.open_file(pa.memory_map(path, "r"))
        distributed.wait()  # before its name goes
        return opened
    except OSError as error:
        raise storage.failure(error, path) from error
    except pa.ArrowException as error:
        raise BuildError(f"The training rows could not be read ({error}). Build the recipe again.") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)
