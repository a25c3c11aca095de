"""The mix step: draws the rows of each category, repeats them where the recipe says so, and puts all in one shuffled order.

Which rows are drawn, and where they stand, is decided by digests of what a row says (content_id) and of the seed, never by where
a row stood: the order of the sources, the shards and the number of workers change nothing. An exchange (datakit/exchange.py)
brings the rows in order: a destination holds a range of the order, and becomes one shard.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datakit import exchange, storage
from datakit.errors import BuildError, UserError
from datakit.mixing.weights import Allocation, allocate, probabilities
from datakit.recipe import Mixture, Model
from datakit.schema import EXAMPLE, digest
from datakit.step import Step, Work, count_categories, part_of, write_rows

VERSION = 1

log = logging.getLogger(__name__)

PARTS = ("train", "validation")

# A shard with long negatives may weigh gigabytes at the recipe's number of rows. It gets fewer rows, so that memory is bounded.
SHARD_BYTES = 256 * 2**20

_KEY = "_key"

# A file of an exchange, and how many rows it has for each destination.
_File = tuple[str, list[int]]


class MixParameters(Model):
    mixture: Mixture
    seed: int
    shard_rows: int


def mix_step(mixture: Mixture, seed: int, shard_rows: int, inputs: tuple[Step, ...]) -> Step:
    """Draws and orders the rows of `train`; `validation` goes on whole. Shards have about `shard_rows` rows."""
    parameters = MixParameters(mixture=mixture, seed=seed, shard_rows=shard_rows)
    return Step("mix", VERSION, mix, parameters, inputs)


def mix(work: Work) -> None:
    parameters: MixParameters = work.step.parameters  # type: ignore[assignment]
    shards = work.shards
    for shard in shards:
        if part_of(shard) not in PARTS:
            raise BuildError(f"The step 'mix' was given '{shard}', which is in none of the parts {', '.join(PARTS)}.")
    seen = work.map("keys", _Keys(parameters.seed), shards)
    counts, weight = _count(shards, seen)
    available = dict(sorted(counts["train"].items()))
    allocation = _allocate(parameters.mixture, available)
    cuts = _cuts(work, shards, seen, available, allocation)
    draws = {name: Draw(rows // available[name], cuts.get(name)) for name, rows in allocation.rows.items() if available[name]}

    sizes = {"train": allocation.rows, "validation": dict(counts["validation"])}
    destinations = {part: _destinations(sizes[part], counts[part], weight[part], parameters.shard_rows) for part in PARTS}
    sent = work.map("sent", _Send(parameters.seed, draws, destinations["train"], destinations["validation"]), shards)
    work.notes.update(_notes(parameters.mixture, available, allocation))
    work.finish("rows", work.map("rows", _receive, _receivers(work, shards, sent, destinations)))


def _count(shards: Sequence[str], seen: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Counter[str]], dict[str, Counter[str]]]:
    """Rows and bytes of text by part and category."""
    rows: dict[str, Counter[str]] = {part: Counter() for part in PARTS}
    weight: dict[str, Counter[str]] = {part: Counter() for part in PARTS}
    for shard, result in zip(shards, seen, strict=True):
        rows[part_of(shard)].update(dict(zip(result["categories"], result["sizes"], strict=True)))
        weight[part_of(shard)].update(dict(zip(result["categories"], result["bytes"], strict=True)))
    return rows, weight


def _allocate(mixture: Mixture, available: Mapping[str, int]) -> Allocation:
    allocation = allocate(available, mixture.temperature, mixture.total, mixture.caps, mixture.max_epochs)
    if mixture.total is None and mixture.temperature != 1 and mixture.max_epochs <= 1:
        log.info(
            "mix: the temperature %g changes nothing here: without 'total', and with 'max_epochs' at most 1, every category "
            "gives all its rows under its cap. Set 'total', or raise 'max_epochs'.",
            mixture.temperature,
        )
    if allocation.shortfall:
        sentence = (
            f"mixture.total is {allocation.requested} rows, and the {sum(available.values())} training rows give "
            f"{allocation.total} at most with max_epochs {mixture.max_epochs:g} and the caps"
        )
        if mixture.shortfall == "stop":
            raise UserError(
                f"{sentence}. Lower 'total', raise 'max_epochs' or the caps, or set 'shortfall: renormalise' to take fewer."
            )
        log.warning("mix: %s; %d rows are taken.", sentence, allocation.total)
    return allocation


def _notes(mixture: Mixture, available: Mapping[str, int], allocation: Allocation) -> dict[str, Any]:
    """What the manifest says of the mixture: for each category its rows, its limit, p_i, what was taken, and how often."""
    p = probabilities(available, mixture.temperature)
    return {
        "temperature": mixture.temperature,
        "requested": allocation.requested,
        "total": allocation.total,
        "categories": {
            name: {
                "available": available[name],
                "limit": allocation.limits[name],
                "probability": round(p[name], 6),
                "rows": rows,
                "share": round(rows / allocation.total, 6) if allocation.total else 0.0,
                "epochs": round(rows / available[name], 6) if available[name] else 0.0,
            }
            for name, rows in allocation.rows.items()
        },
    }


# ------------------------------------------------------------------------------------------------------- which rows are drawn


@dataclass(frozen=True)
class Draw:
    """Every row of a category is taken `copies` times, and once more up to the key and row_id of `cut`."""

    copies: int
    cut: tuple[int, str] | None


def keys(purpose: str, seed: int, contents: Sequence[str], copy: int = 0) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """A pseudo-random 64-bit number for each content: the digest of the purpose, the seed, the number of the copy and the id."""
    start = hashlib.blake2b(digest(purpose, str(seed), str(copy)).encode(), digest_size=8)
    result = bytearray()
    for content in contents:
        state = start.copy()
        state.update(content.encode())
        result += state.digest()
    return np.frombuffer(bytes(result), dtype=">u8").astype(np.uint64)


def _contents(table: pa.Table) -> list[str]:
    contents: list[str] = pc.coalesce(table.column("content_id"), table.column("row_id")).to_pylist()
    return contents


@dataclass(frozen=True)
class _Keys:
    """Counts the rows and bytes of a shard by category; for training rows, writes the keys that decide which are drawn."""

    seed: int

    def __call__(self, shard: str, folder: str) -> dict[str, Any]:
        table = storage.read_table(shard, columns=["row_id", "content_id", "category", "query", "positive", "negatives"])
        names = sorted(count_categories(table))
        places = pc.index_in(table.column("category"), pa.array(names, pa.string())).to_numpy()
        sizes = np.bincount(places, minlength=len(names)).tolist()
        weights = np.bincount(places, weights=_text_bytes(table), minlength=len(names)).astype(np.int64)
        drawn = pa.table([table.column("row_id"), pa.array(keys("draw", self.seed, _contents(table)))], ["row_id", _KEY])
        if part_of(shard) != "train":
            drawn, places = drawn.slice(0, 0), places[:0]
        rows = exchange.scatter(storage.join(folder, "keys.parquet"), drawn, places, len(names))
        return {"rows": table.num_rows, "categories": names, "sizes": sizes, "keys": rows, "bytes": weights.tolist()}


def _text_bytes(table: pa.Table) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Bytes of the texts of each row."""
    total = np.zeros(table.num_rows, np.int64)
    start = 0
    for batch in table.to_batches():
        rows = total[start : start + batch.num_rows]
        for name in ("query", "positive"):
            rows += pc.fill_null(pc.binary_length(batch.column(name)), 0).to_numpy(zero_copy_only=False)
        negatives = batch.column("negatives")
        lengths = pc.fill_null(pc.binary_length(pc.struct_field(pc.list_flatten(negatives), "text")), 0)
        np.add.at(rows, pc.list_parent_indices(negatives).to_numpy(), lengths.to_numpy(zero_copy_only=False))
        start += batch.num_rows
    return total


def _cuts(
    work: Work,
    shards: Sequence[str],
    seen: Sequence[Mapping[str, Any]],
    available: Mapping[str, int],
    allocation: Allocation,
) -> dict[str, tuple[int, str]]:
    """For each category that is not taken a whole number of times: the key and row_id of the last row that is taken once more."""
    cut = {name: rows % available[name] for name, rows in allocation.rows.items() if available[name] and rows % available[name]}
    units = []
    for name, rows in cut.items():
        files, destinations = [], []
        for number, (shard, result) in enumerate(zip(shards, seen, strict=True)):
            if part_of(shard) == "train" and name in result["categories"]:
                files.append((work.files("keys", number, "keys.parquet"), result["keys"]))
                destinations.append(result["categories"].index(name))
        units.append((files, destinations, rows))
    results = work.map("cuts", _cut, units)
    return {name: (result["key"], result["row_id"]) for name, result in zip(cut, results, strict=True)}


def _cut(unit: tuple[list[_File], list[int], int], folder: str) -> dict[str, Any]:
    files, destinations, rows = unit
    tables = [exchange.gather([path], [sizes], place) for (path, sizes), place in zip(files, destinations, strict=True)]
    table = pa.concat_tables([table for table in tables if table is not None])
    last = pc.select_k_unstable(table, rows, [(_KEY, "ascending"), ("row_id", "ascending")])[rows - 1].as_py()
    return {"key": table.column(_KEY)[last].as_py(), "row_id": table.column("row_id")[last].as_py()}


# ---------------------------------------------------------------------------------------------------------- in what order


def _destinations(rows: Mapping[str, int], counts: Mapping[str, int], weight: Mapping[str, int], shard_rows: int) -> int:
    """The number of shards of a part, by rows and by bytes of text."""
    heavy = sum(weight[name] * taken // counts[name] for name, taken in rows.items() if taken)
    return max(-(-sum(rows.values()) // shard_rows), -(-heavy // SHARD_BYTES), 1 if counts else 0)


@dataclass(frozen=True)
class _Send:
    """Writes the rows of a shard that are taken, copies included, and the ids of those that are not, by destination."""

    seed: int
    draws: Mapping[str, Draw]
    train: int
    validation: int

    def __call__(self, shard: str, folder: str) -> dict[str, Any]:
        table = storage.read_table(shard)
        contents = _contents(table)
        if part_of(shard) == "train":
            count, copies = self.train, self._copies(table, contents)
        else:
            count, copies = self.validation, np.ones(table.num_rows, np.int64)
        sent: dict[str, list[int]] = {}
        for copy in range(int(copies.max(initial=0))):
            rows = np.flatnonzero(copies > copy)
            taken = self._copy(table.take(pa.array(rows)), [contents[row] for row in rows], copy)
            sent[f"taken-{copy}.parquet"] = self._send(folder, f"taken-{copy}.parquet", taken, count)
        rows = np.flatnonzero(copies == 0)
        if len(rows):
            left = table.select(["row_id", "category"]).take(pa.array(rows))
            left = left.append_column(_KEY, pa.array(keys("order", self.seed, [contents[row] for row in rows])))
            sent["left.parquet"] = self._send(folder, "left.parquet", left, count)
        return {"rows": table.num_rows, "sent": sent}

    def _send(self, folder: str, name: str, table: pa.Table, count: int) -> list[int]:
        """Destination i gets the i-th of `count` equal ranges of the keys."""
        high = table.column(_KEY).to_numpy() >> np.uint64(32)
        places = ((high * np.uint64(count)) >> np.uint64(32)).astype(np.int64)
        return exchange.scatter(storage.join(folder, name), table, places, count)

    def _copies(self, table: pa.Table, contents: list[str]) -> np.ndarray[Any, np.dtype[np.int64]]:
        """How often each row is taken."""
        result = np.zeros(table.num_rows, np.int64)
        drawn = keys("draw", self.seed, contents).tolist()
        row_ids = table.column("row_id").to_pylist()
        for row, category in enumerate(table.column("category").to_pylist()):
            draw = self.draws[category]
            result[row] = draw.copies + (draw.cut is not None and (drawn[row], row_ids[row]) <= draw.cut)
        return result

    def _copy(self, table: pa.Table, contents: list[str], copy: int) -> pa.Table:
        """The rows with their place in the order. A copy has a row_id of its own; all else is as in the row that it repeats."""
        order = pa.array(keys("order", self.seed, contents, copy))
        if copy:
            ids = [digest("copy", row_id, str(copy)) for row_id in table.column("row_id").to_pylist()]
            table = table.set_column(0, EXAMPLE.field("row_id"), pa.array(ids, pa.string()))
        copied = pa.array(np.full(table.num_rows, copy > 0))
        return table.append_column(_KEY, order).append_column("_copied", copied)


@dataclass(frozen=True)
class _Receiver:
    """One destination: its part, and the files (path, rows by destination) that may hold rows for it."""

    part: str
    destination: int
    taken: list[_File]
    left: list[_File]


def _receivers(
    work: Work, shards: Sequence[str], sent: Sequence[Mapping[str, Any]], destinations: Mapping[str, int]
) -> list[_Receiver]:
    units = []
    for part in PARTS:
        taken, left = list[_File](), list[_File]()
        for number, (shard, result) in enumerate(zip(shards, sent, strict=True)):
            if part_of(shard) == part:
                for name, sizes in result["sent"].items():
                    (left if name == "left.parquet" else taken).append((work.files("sent", number, name), sizes))
        units += [_Receiver(part, destination, taken, left) for destination in range(destinations[part])]
    return units


def _receive(unit: _Receiver, folder: str) -> dict[str, Any]:
    """Writes one shard, in order."""
    taken = _sorted(unit.taken, unit.destination)
    left = _sorted(unit.left, unit.destination)
    rows_in: Counter[str] = Counter()
    created: Counter[str] = Counter()
    if taken is not None:
        copied = taken.column("_copied")
        rows_in.update(count_categories(taken.filter(pc.invert(copied))))
        created.update(count_categories(taken.filter(copied)))
    if left is not None:
        rows_in.update(count_categories(left))
    kept = [(unit.part, taken)] if taken is not None else []
    return write_rows(folder, kept=kept, not_sampled=left, rows_in=rows_in, created=created)


def _sorted(files: Sequence[_File], destination: int) -> pa.Table | None:
    table = exchange.gather([path for path, _ in files], [sizes for _, sizes in files], destination)
    return table if table is None else table.sort_by([(_KEY, "ascending"), ("row_id", "ascending")])
