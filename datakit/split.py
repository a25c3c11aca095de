"""Train and validation: whole documents, with all that would give a validation row away, go to one side.

Rows hang together when they share a document, a query or a positive, or when their positives are near duplicates. Where the
positive is a label (no negatives in the batch) it says nothing about where a row is from: there the query stands in for it. A
component of rows goes to validation when a number in [0, 1), drawn from the seed and its lowest document, is below the share
asked for. So a row's side does not change when rows of other documents come or go.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from datakit import exchange, storage
from datakit.dedup.candidates import Sent, Texts, find, read_group, warn_of_cuts
from datakit.errors import BuildError
from datakit.filters.sides import positive_is_label
from datakit.recipe import MinHashDedup, Model, Split
from datakit.schema import digest
from datakit.step import Step, Work, count_categories, write_rows

log = logging.getLogger(__name__)

VERSION = 1

# A component of so many rows is never too large for validation, however small the data are.
SMALL_COMPONENT = 10


class SplitParameters(Model):
    """What decides a split: the recipe's section, the seed, and how near duplicates are found."""

    split: Split
    seed: int
    near: MinHashDedup


def split_step(split: Split, seed: int, inputs: tuple[Step, ...]) -> Step:
    near = MinHashDedup(type="minhash", on="positive", within="all", threshold=split.near_duplicate_threshold)
    return Step(
        "split", VERSION, _work, SplitParameters(split=split, seed=seed, near=near), inputs, packages=("python", near.engine)
    )


def _work(work: Work) -> None:
    parameters = work.step.parameters
    assert isinstance(parameters, SplitParameters)
    sizes = [rows for source in work.inputs for rows in source.report.shard_rows]
    work.map("ids", _write_ids, work.shards)
    ids = [work.files("ids", number, "ids.parquet") for number in range(len(sizes))]
    links: list[str] = []
    if parameters.split.validation > 0:
        columns = ["query", "positive", "query_id", "positive_id", "label", "in_batch_negatives"]
        found = find(work, parameters.near, split_texts, columns, ["row_id"])
        bases = np.cumsum([0, *sizes]).tolist()
        results = work.map("near", _Link(parameters.near.threshold, bases), found.groups)
        links = [work.files("near", number, "links.parquet") for number in range(len(results))]
        cut = sum(int(result["cut"]) for result in results)
        work.notes["near_duplicates"] = found.notes | {"comparisons_cut": cut}
        warn_of_cuts(work.step.name, cut)
    (notes,) = work.map("sides", _Sides(parameters.split, parameters.seed, ids, links), [sizes])
    sent = notes.pop("sizes")
    work.notes |= notes
    if notes["forced_to_train"]["components"]:
        log.warning(
            "split: %d components with %d rows are larger than max_group_fraction (%g) of all rows, and are for training.",
            notes["forced_to_train"]["components"],
            notes["forced_to_train"]["rows"],
            parameters.split.max_group_fraction,
        )
    write = _WriteSides(work.files("sides", 0, "sides.parquet"), sent)
    work.finish("rows", work.map("rows", write, list(enumerate(work.shards))))


def split_texts(table: pa.Table) -> Texts:
    """The text that tells where a row is from: its positive, or the query where the positive is a label; equal texts once."""
    is_label = pa.array(positive_is_label(table))
    text = pc.if_else(is_label, table.column("query"), table.column("positive"))
    text_id = pc.if_else(is_label, table.column("query_id"), table.column("positive_id"))
    indices = text_id.combine_chunks().dictionary_encode().indices
    first = np.zeros(table.num_rows, bool)
    first[np.unique(indices.fill_null(-1).to_numpy(), return_index=True)[1]] = True
    return Texts([text], included=first | pc.is_null(text_id).to_numpy())


_IDS = ("document", "query", "positive")


def _write_ids(shard: str, folder: str) -> dict[str, Any]:
    """The ids of a shard's rows as 64-bit numbers; null where a row has none, or where it does not bind the row."""
    table = storage.read_table(shard, ["row_id", "document_id", "query_id", "positive_id", "label", "in_batch_negatives"])
    is_label = pa.array(positive_is_label(table))
    none = pa.scalar(None, pa.string())
    positive = pc.if_else(is_label, none, table.column("positive_id"))
    # A document that is only the label's text is none.
    own = pc.and_(is_label, pc.equal(table.column("document_id"), table.column("positive_id"))).fill_null(False)
    document = pc.if_else(own, none, table.column("document_id"))
    document = pc.coalesce(document, positive, table.column("query_id"), table.column("row_id"))
    columns = [_numbers(column) for column in (document, table.column("query_id"), positive)]
    storage.write_table(storage.join(folder, "ids.parquet"), pa.table(columns, names=_IDS))
    return {"rows": table.num_rows}


def _numbers(ids: pa.ChunkedArray) -> pa.Array:
    """64 bits of BLAKE2b of each id. Two of a billion ids share one with a probability of 3 %; then they share a side."""
    encoded = ids.combine_chunks().dictionary_encode()
    texts = encoded.dictionary.to_pylist()
    numbers = [int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") for text in texts]
    return pa.array(numbers, pa.uint64()).take(encoded.indices)


@dataclass(frozen=True)
class _Link:
    """Links rows of a group whose texts are near duplicates: each to the first of its component, by their numbers in all rows."""

    threshold: float
    bases: list[int]

    def __call__(self, sent: Sent, folder: str) -> dict[str, Any]:
        from datakit.dedup.verify import MAX_COMPARISONS, buckets, connected

        group = read_group(sent)
        order = pc.sort_indices(group.carried.column("row_id")).to_numpy().astype(np.int64)
        met = buckets(group.keys[:, order])
        first, cut = connected(
            met.of, met.members, met.starts, group.values, group.bounds[order], self.threshold, MAX_COMPARISONS
        )
        number = (np.array(self.bases)[group.shard] + group.row)[order]
        linked = np.flatnonzero(first != np.arange(len(first)))
        links = pa.table({"left": number[first[linked]], "right": number[linked]})
        storage.write_table(storage.join(folder, "links.parquet"), links)
        return {"rows": len(order), "cut": int(cut)}


@dataclass(frozen=True)
class _Sides:
    """Draws a side for each component. Needs about 150 bytes of memory for each row of the build."""

    split: Split
    seed: int
    ids: list[str]
    links: list[str]

    def __call__(self, sizes: list[int], folder: str) -> dict[str, Any]:
        from datakit.dedup.verify import roots, unite

        columns = {name: self._column(name) for name in _IDS}
        document, *texts = _nodes(list(columns.values()))
        parents = np.arange(1 + max(int(nodes.max(initial=-1)) for nodes in (document, *texts)), dtype=np.int64)
        for nodes in texts:
            bound = nodes >= 0
            unite(parents, document[bound], nodes[bound])
        for path in self.links:
            table = storage.read_table(path)
            unite(parents, document[table.column("left").to_numpy()], document[table.column("right").to_numpy()])
        component = roots(parents)
        rows = np.bincount(component[document], minlength=len(parents))
        # Nodes are numbered in the order of their ids, so the first document of a component is its lowest.
        documents, where = np.unique(document, return_index=True)
        components, lowest = np.unique(component[documents], return_index=True)
        keys = columns["document"].combine_chunks().take(where[lowest]).to_pylist()
        limit = max(self.split.max_group_fraction * len(document), SMALL_COMPONENT)
        forced = components[rows[components] > limit]
        chosen = np.zeros(len(parents), bool)
        chosen[components] = [self.draw(key) < self.split.validation for key in keys]
        chosen[forced] = False
        validation = chosen[component[document]]
        for name, nodes in zip(_IDS, (document, *texts), strict=True):
            check_apart(name, nodes, validation)
        shards = np.repeat(np.arange(len(sizes)), sizes)
        path = storage.join(folder, "sides.parquet")
        return {
            "sizes": exchange.scatter(path, pa.table({"validation": validation}), shards, len(sizes)),
            "documents": len(documents),
            "components": len(components),
            "largest_component_rows": int(rows.max(initial=0)),
            "validation_components": int(chosen.sum()),
            "forced_to_train": {"components": len(forced), "rows": int(rows[forced].sum())},
        }

    def draw(self, document: int) -> float:
        """A number in [0, 1) that seed and document decide."""
        return int(digest("split", str(self.seed), f"{document:016x}", size=8), 16) / 2**64

    def _column(self, name: str) -> pa.ChunkedArray:
        chunks = [chunk for path in self.ids for chunk in storage.read_table(path, [name]).column(name).chunks]
        return pa.chunked_array(chunks, pa.uint64())


def _nodes(columns: list[pa.ChunkedArray]) -> list[NDArray[np.int64]]:
    """A number for each id, the same in all columns and in the order of the ids; -1 for null."""
    valid = [column.is_valid().to_numpy() for column in columns]
    ids = [column.drop_null().to_numpy() for column in columns]
    numbers = np.unique(np.concatenate(ids), return_inverse=True)[1]
    result = []
    for there, part in zip(valid, np.split(numbers, np.cumsum([len(part) for part in ids])[:-1]), strict=True):
        nodes = np.full(len(there), -1, np.int64)
        nodes[there] = part
        result.append(nodes)
    return result


def check_apart(name: str, nodes: NDArray[np.int64], validation: NDArray[np.bool_]) -> None:
    """Raises BuildError when some id has rows on both sides."""
    bound = nodes >= 0
    total = np.bincount(nodes[bound])
    held_out = np.bincount(nodes[bound], weights=validation[bound])
    crossing = int(((held_out > 0) & (held_out < total)).sum())
    if crossing:
        raise BuildError(f"The split put {crossing} values of {name}_id on both sides. This is a defect; no build was published.")


@dataclass(frozen=True)
class _WriteSides:
    sides: str
    sizes: list[int]

    def __call__(self, unit: tuple[int, str], folder: str) -> dict[str, Any]:
        number, shard = unit
        table = storage.read_table(shard)
        sides = exchange.gather([self.sides], [self.sizes], number)
        validation = pa.array([], pa.bool_()) if sides is None else sides.column("validation")
        parts = [("train", table.filter(pc.invert(validation))), ("validation", table.filter(validation))]
        return write_rows(folder, kept=parts, rows_in=count_categories(table))
