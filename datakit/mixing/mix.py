"""The mix step: draws the rows of each category, repeats them where the recipe says so, and puts all in one shuffled order.

Which rows are drawn, and where they stand, is decided by digests (draw.py), never by where a row stood: the order of the sources,
the shards and the number of workers change nothing. An exchange (datakit/exchange.py) brings the rows in order: a destination
holds a range of the order, and becomes one shard. A reader that goes through the shards in order sees a shuffled mixture.

`batch_group` is filled here, for train and validation: the category, or "category/language" where the mixture says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datakit import exchange, storage
from datakit.errors import BuildError
from datakit.mixing import draw
from datakit.mixing.draw import Draw, Stratum
from datakit.mixing.planned import MixParameters, notes, planned, strata
from datakit.recipe import Mixture
from datakit.schema import EXAMPLE, Evaluation, digest
from datakit.step import Step, Work, count_categories, part_of, write_rows

VERSION = 1

PARTS = ("train", "validation")

# A shard with long negatives may weigh gigabytes at the recipe's number of rows. It gets fewer rows, so that memory is bounded.
SHARD_BYTES = 256 * 2**20

_KEY = "_key"

# A file of an exchange, and how many rows it has for each destination.
_File = tuple[str, list[int]]


def mix_step(
    mixture: Mixture,
    seed: int,
    shard_rows: int,
    inputs: tuple[Step, ...],
    members: Iterable[Iterable[str]] = (),
    feedback: Evaluation | None = None,
) -> Step:
    """Draws and orders the rows of `train`; `validation` goes on whole. Shards have about `shard_rows` rows."""
    parameters = MixParameters(
        mixture=mixture, seed=seed, shard_rows=shard_rows, members=tuple(tuple(each) for each in members), feedback=feedback
    )
    return Step("mix", VERSION, mix, parameters, inputs)


def mix(work: Work) -> None:
    parameters: MixParameters = work.step.parameters  # type: ignore[assignment]
    mixture, shards = parameters.mixture, work.shards
    for shard in shards:
        if part_of(shard) not in PARTS:
            raise BuildError(f"The step 'mix' was given '{shard}', which is in none of the parts {', '.join(PARTS)}.")
    separate = mixture.language_temperature is not None
    seen = work.map("keys", _Keys(parameters.seed, separate), shards)
    counts, weight = _count(shards, seen)
    spoken = _languages(shards, seen)
    available = dict(sorted(counts["train"].items()))
    allocation = planned(parameters, available)
    wanted, there = strata(mixture, allocation, available, spoken)
    cuts = _cuts(work, shards, seen, there, wanted)
    draws = {each: Draw(rows // there[each], cuts.get(each), rows, there[each]) for each, rows in wanted.items()}

    sizes = {"train": allocation.rows, "validation": dict(counts["validation"])}
    destinations = {part: _destinations(sizes[part], counts[part], weight[part], parameters.shard_rows) for part in PARTS}
    send = _Send(parameters.seed, mixture, draws, destinations["train"], destinations["validation"])
    sent = work.map("sent", send, shards)
    work.notes.update(notes(parameters, available, allocation, spoken, wanted))
    work.finish("rows", work.map("rows", _receive, _receivers(work, shards, sent, destinations)))


def _count(shards: Sequence[str], seen: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Counter[str]], dict[str, Counter[str]]]:
    """Rows and bytes of text by part and category."""
    rows: dict[str, Counter[str]] = {part: Counter() for part in PARTS}
    weight: dict[str, Counter[str]] = {part: Counter() for part in PARTS}
    for shard, result in zip(shards, seen, strict=True):
        rows[part_of(shard)].update(dict(zip(result["categories"], result["sizes"], strict=True)))
        weight[part_of(shard)].update(dict(zip(result["categories"], result["bytes"], strict=True)))
    return rows, weight


def _languages(shards: Sequence[str], seen: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Training rows by category and language."""
    counts: Counter[Stratum] = Counter()
    for shard, result in zip(shards, seen, strict=True):
        if part_of(shard) == "train":
            counts.update({(category, language): rows for category, language, rows in result["languages"]})
    spoken: dict[str, dict[str, int]] = {}
    for (category, language), rows in sorted(counts.items()):
        spoken.setdefault(category, {})[language] = rows
    return spoken


# ------------------------------------------------------------------------------------------------------- which rows are drawn


@dataclass(frozen=True)
class _Keys:
    """Counts the rows and bytes of a shard by category; for training rows, writes the keys that decide which are drawn."""

    seed: int
    by_language: bool

    def __call__(self, shard: str, folder: str) -> dict[str, Any]:
        columns = ["row_id", "content_id", "category", "language", "positive_language", "query", "positive", "negatives"]
        table = storage.read_table(shard, columns=columns)
        names = sorted(count_categories(table))
        places = pc.index_in(table.column("category"), pa.array(names, pa.string())).to_numpy()
        sizes = np.bincount(places, minlength=len(names)).tolist()
        weights = np.bincount(places, weights=_text_bytes(table), minlength=len(names)).astype(np.int64)
        spoken = Counter(draw.strata(table, by_language=True))
        of = draw.strata(table, self.by_language)
        strata = sorted(set(of))
        drawn = pa.table([table.column("row_id"), pa.array(draw.keys("draw", self.seed, draw.contents(table)))], ["row_id", _KEY])
        numbers = {stratum: number for number, stratum in enumerate(strata)}
        destinations = np.array([numbers[stratum] for stratum in of], np.int64)
        if part_of(shard) != "train":
            drawn, destinations = drawn.slice(0, 0), destinations[:0]
        return {
            "rows": table.num_rows,
            "categories": names,
            "sizes": sizes,
            "bytes": weights.tolist(),
            "languages": [[*stratum, rows] for stratum, rows in sorted(spoken.items())],
            "strata": [list(stratum) for stratum in strata],
            "keys": exchange.scatter(storage.join(folder, "keys.parquet"), drawn, destinations, len(strata)),
        }


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
    there: Mapping[Stratum, int],
    wanted: Mapping[Stratum, int],
) -> dict[Stratum, tuple[int, str]]:
    """For each stratum that is not taken a whole number of times: the key and row_id of the last row that is taken once more."""
    cut = {stratum: rows % there[stratum] for stratum, rows in wanted.items() if rows % there[stratum]}
    units = []
    for stratum, rows in cut.items():
        files, destinations = [], []
        for number, (shard, result) in enumerate(zip(shards, seen, strict=True)):
            if part_of(shard) == "train" and list(stratum) in result["strata"]:
                files.append((work.files("keys", number, "keys.parquet"), result["keys"]))
                destinations.append(result["strata"].index(list(stratum)))
        units.append((files, destinations, rows))
    results = work.map("cuts", _cut, units)
    return {stratum: (result["key"], result["row_id"]) for stratum, result in zip(cut, results, strict=True)}


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
    mixture: Mixture
    draws: Mapping[Stratum, Draw]
    train: int
    validation: int

    def __call__(self, shard: str, folder: str) -> dict[str, Any]:
        table = storage.read_table(shard)
        table = table.set_column(EXAMPLE.names.index("batch_group"), EXAMPLE.field("batch_group"), self._groups(table))
        contents = draw.contents(table)
        of = draw.strata(table, self.mixture.language_temperature is not None)
        if part_of(shard) == "train":
            count, copies = self.train, draw.copies(table, of, self.draws, self.seed)
            draws = [self.draws[stratum] for stratum in of]
        else:
            count, copies = self.validation, np.ones(table.num_rows, np.int64)
            draws = [Draw(1, None, 1, 1)] * table.num_rows
        sent: dict[str, list[int]] = {}
        for copy in range(int(copies.max(initial=0))):
            rows = np.flatnonzero(copies > copy)
            taken = _copy(table.take(pa.array(rows)), copy)
            order = draw.places(self.seed, [contents[row] for row in rows], copy, [draws[row] for row in rows])
            sent[f"taken-{copy}.parquet"] = self._send(folder, f"taken-{copy}.parquet", taken, order, count)
        rows = np.flatnonzero(copies == 0)
        if len(rows):
            left = table.select(["row_id", "category"]).take(pa.array(rows))
            order = draw.keys("order", self.seed, [contents[row] for row in rows])
            sent["left.parquet"] = self._send(folder, "left.parquet", left, order, count)
        return {"rows": table.num_rows, "sent": sent}

    def _groups(self, table: pa.Table) -> pa.ChunkedArray:
        """The `batch_group` of each row."""
        if self.mixture.batch_groups == "category":
            return table.column("category")
        return pc.binary_join_element_wise(table.column("category"), draw.languages(table), "/")

    def _send(self, folder: str, name: str, table: pa.Table, order: draw.Array, count: int) -> list[int]:
        """Destination i gets the i-th of `count` equal ranges of the order."""
        places = (((order >> np.uint64(32)) * np.uint64(count)) >> np.uint64(32)).astype(np.int64)
        return exchange.scatter(storage.join(folder, name), table.append_column(_KEY, pa.array(order)), places, count)


def _copy(table: pa.Table, copy: int) -> pa.Table:
    """A copy has a row_id of its own; all else is as in the row that it repeats."""
    if copy:
        ids = [digest("copy", row_id, str(copy)) for row_id in table.column("row_id").to_pylist()]
        table = table.set_column(0, EXAMPLE.field("row_id"), pa.array(ids, pa.string()))
    return table.append_column("_copied", pa.array(np.full(table.num_rows, copy > 0)))


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
