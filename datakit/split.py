"""Train and validation: whole documents, with all that would give a validation row away, go to one side.

Rows hang together when they share a document, a query or a positive, or when their positives are near duplicates. Where the
positive is a label (no negatives in the batch) it says nothing about where a row is from: there the query stands in for it. A
component of rows goes to validation when a number in [0, 1), drawn from the seed and its lowest document, is below the share
asked for. So a row's side does not change when rows of other documents come or go.

Exemplars (sources/labelled.py) are texts of other rows, as positives and as negatives. They tie no rows together, for they would
tie whole classes: each text has a side of its own, with its near duplicates. A row whose positive is on the other side than its
query is rejected, and negatives on the other side are dropped. These are few, since exemplars were drawn from one side as far as
that could be told before rows were filtered and compared; where they are many, that is told. Near duplicates are looked for among
positives: a text that stands in no positive any more, as a filter took that row, may have one on the other side.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from datakit import exchange, storage
from datakit.dedup.candidates import Sent, Texts, find, read_group, warn_of_cuts
from datakit.errors import BuildError
from datakit.filters.sides import positive_is_label
from datakit.held_out import HeldOut, number_of
from datakit.recipe import MinHashDedup, Model, Split
from datakit.schema import reasons
from datakit.step import Step, Work, count_categories, split_rejected, write_rows

log = logging.getLogger(__name__)

VERSION = 3

POSITIVE_ON_OTHER_SIDE = "positive_on_other_side"

# A component of so many rows is never too large for validation, however small the data are.
SMALL_COMPONENT = 10

# Above this share of the rows with exemplars it is told that they are rejected.
MANY_APART = 0.02


class SplitParameters(Model):
    """What decides a split: the recipe's section, the seed, how near duplicates are found, and where positives are exemplars."""

    split: Split
    seed: int
    near: MinHashDedup
    exemplars: list[tuple[str, str]]


def split_step(split: Split, seed: int, inputs: tuple[Step, ...], exemplars: Sequence[tuple[str, str]] = ()) -> Step:
    """The step that splits. `exemplars` are (category, source) of the rows whose positives and negatives are texts of other rows.

    Reason: positive_on_other_side, for exemplars. `notes` counts their negatives that were dropped.
    """
    near = MinHashDedup(type="minhash", on="positive", within="all", threshold=split.near_duplicate_threshold)
    parameters = SplitParameters(split=split, seed=seed, near=near, exemplars=list(exemplars))
    return Step("split", VERSION, _work, parameters, inputs, packages=("python", near.engine))


def _work(work: Work) -> None:
    parameters = work.step.parameters
    assert isinstance(parameters, SplitParameters)
    sizes = [rows for source in work.inputs for rows in source.report.shard_rows]
    kinds = _Kinds(parameters.exemplars)
    work.map("ids", _WriteIds(kinds), work.shards)
    ids = [work.files("ids", number, "ids.parquet") for number in range(len(sizes))]
    negatives = [work.files("ids", number, "negatives.parquet") for number in range(len(sizes))]
    links: list[str] = []
    if parameters.split.validation > 0:
        columns = ["query", "positive", "query_id", "positive_id", *_KIND_COLUMNS]
        found = find(work, parameters.near, _SplitTexts(kinds), columns, ["row_id"])
        bases = np.cumsum([0, *sizes]).tolist()
        results = work.map("near", _Link(parameters.near.threshold, bases), found.groups)
        links = [work.files("near", number, "links.parquet") for number in range(len(results))]
        cut = sum(int(result["cut"]) for result in results)
        work.notes["near_duplicates"] = found.notes | {"comparisons_cut": cut}
        warn_of_cuts(work.step.name, cut)
    (notes,) = work.map("sides", _Sides(parameters.split, parameters.seed, ids, negatives, links), [sizes])
    sent = notes.pop("sizes")
    work.notes |= notes
    if notes["forced_to_train"]["components"]:
        log.warning(
            "split: %d components with %d rows are larger than max_group_fraction (%g) of all rows, and are for training.",
            notes["forced_to_train"]["components"],
            notes["forced_to_train"]["rows"],
            parameters.split.max_group_fraction,
        )
    exemplars = notes["exemplars"]
    if exemplars["apart"] > MANY_APART * exemplars["rows"]:
        log.warning(
            "split: %d of %d rows of exemplars are rejected: their two texts are on different sides. They were paired by the "
            "texts as they were read, and something has changed these since (such as a filter that masks personal data), or "
            "many of them are near duplicates.",
            exemplars["apart"],
            exemplars["rows"],
        )
    write = _WriteSides(
        work.step.name, kinds, work.files("sides", 0, "sides.parquet"), sent, work.files("sides", 0, "texts.parquet")
    )
    results = work.map("rows", write, list(enumerate(work.shards)))
    work.notes["negatives_on_other_side"] = sum(result["negatives_dropped"] for result in results)
    work.finish("rows", results)


_KIND_COLUMNS = ("category", "source", "label", "in_batch_negatives")


@dataclass(frozen=True)
class _Kinds:
    """Tells what the positives of rows are. `exemplars` are the (category, source) of rows whose positives are exemplars."""

    exemplars: list[tuple[str, str]]

    def __call__(self, table: pa.Table) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Rows whose positive is the name of a class, and rows whose positive is an exemplar of one."""
        exemplar = np.zeros(table.num_rows, bool)
        for category, source in self.exemplars:
            of = pc.and_(pc.equal(table.column("category"), category), pc.equal(table.column("source"), source))
            exemplar |= of.fill_null(False).to_numpy()
        return positive_is_label(table) & ~exemplar, exemplar


@dataclass(frozen=True)
class _SplitTexts:
    """The text that tells where a row is from: its positive, or the query where the positive is a label; equal texts once."""

    kinds: _Kinds

    def __call__(self, table: pa.Table) -> Texts:
        is_label = pa.array(self.kinds(table)[0])
        text = pc.if_else(is_label, table.column("query"), table.column("positive"))
        text_id = pc.if_else(is_label, table.column("query_id"), table.column("positive_id"))
        indices = text_id.combine_chunks().dictionary_encode().indices
        first = np.zeros(table.num_rows, bool)
        first[np.unique(indices.fill_null(-1).to_numpy(), return_index=True)[1]] = True
        return Texts([text], included=first | pc.is_null(text_id).to_numpy())


_IDS = ("document", "query", "positive", "exemplar")


@dataclass(frozen=True)
class _WriteIds:
    """Writes the ids of a shard's rows as 64-bit numbers; null where a row has none, or where it does not bind the row.

    `exemplar` is the positive where it is one: it has a side of its own. So have the different negatives of these rows.
    """

    kinds: _Kinds

    def __call__(self, shard: str, folder: str) -> dict[str, Any]:
        table = storage.read_table(shard, ["row_id", "document_id", "query_id", "positive_id", "negatives", *_KIND_COLUMNS])
        is_label, is_exemplar = (pa.array(mask) for mask in self.kinds(table))
        none = pa.scalar(None, pa.string())
        unbound = pc.or_(is_label, is_exemplar)
        positive = pc.if_else(unbound, none, table.column("positive_id"))
        exemplar = pc.if_else(is_exemplar, table.column("positive_id"), none)
        # A document that is only the text of the label or the exemplar is none.
        own = pc.and_(unbound, pc.equal(table.column("document_id"), table.column("positive_id"))).fill_null(False)
        document = pc.if_else(own, none, table.column("document_id"))
        document = pc.coalesce(document, positive, table.column("query_id"), table.column("row_id"))
        columns = [_numbers(column) for column in (document, table.column("query_id"), positive, exemplar)]
        storage.write_table(storage.join(folder, "ids.parquet"), pa.table(columns, names=_IDS))
        _, negatives = _negative_ids(table.filter(is_exemplar))
        different = _numbers(negatives.drop_null().unique())
        storage.write_table(storage.join(folder, "negatives.parquet"), pa.table({"negative": different}))
        return {"rows": table.num_rows}


def _numbers(ids: pa.ChunkedArray | pa.Array) -> pa.Array:
    encoded = (ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids).dictionary_encode()
    numbers = [number_of(text) for text in encoded.dictionary.to_pylist()]
    return pa.array(numbers, pa.uint64()).take(encoded.indices)


def _negative_ids(table: pa.Table) -> tuple[NDArray[np.int64], pa.Array]:
    """The row and the id of each negative."""
    column = table.column("negatives").combine_chunks()
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    return np.repeat(np.arange(table.num_rows), lengths), column.flatten().field("id")


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
    negatives: list[str]
    links: list[str]

    def __call__(self, sizes: list[int], folder: str) -> dict[str, Any]:
        from datakit.dedup.verify import roots, unite

        columns = [*(_column(self.ids, name) for name in _IDS), _column(self.negatives, "negative")]
        ids, (document, query, positive, exemplar, negative) = _nodes(columns)
        parents = np.arange(len(ids), dtype=np.int64)
        for nodes in (query, positive):
            bound = nodes >= 0
            unite(parents, document[bound], nodes[bound])
        # What near duplicates are found by: see _SplitTexts.
        compared = np.where(exemplar >= 0, exemplar, document)
        for path in self.links:
            table = storage.read_table(path)
            unite(parents, compared[table.column("left").to_numpy()], compared[table.column("right").to_numpy()])
        component = roots(parents)
        rows = np.bincount(component[document], minlength=len(parents))
        # Nodes are numbered in the order of their ids, so the first document of a component is its lowest.
        documents = np.unique(document)
        drawn = np.unique(np.concatenate([documents, exemplar[exemplar >= 0], negative]))
        components, lowest = np.unique(component[drawn], return_index=True)
        limit = max(self.split.max_group_fraction * len(document), SMALL_COMPONENT)
        forced = components[rows[components] > limit]
        held_out = HeldOut(share=self.split.validation, seed=self.seed)
        chosen = np.zeros(len(parents), bool)
        chosen[components] = [held_out.draw(key) for key in ids[drawn[lowest]].tolist()]
        chosen[forced] = False
        side = chosen[component]
        validation = side[document]
        apart = (exemplar >= 0) & (side[exemplar] != validation)
        kept = ~apart
        check_apart("document", document[kept], validation[kept])
        texts = np.concatenate([query[kept], positive[kept], exemplar[kept]])
        check_apart("text", texts, np.tile(validation[kept], 3))
        shards = np.repeat(np.arange(len(sizes)), sizes)
        path = storage.join(folder, "sides.parquet")
        negative = np.unique(negative)
        storage.write_table(
            storage.join(folder, "texts.parquet"), pa.table({"text": ids[negative], "validation": side[negative]})
        )
        return {
            "sizes": exchange.scatter(path, pa.table({"validation": validation, "apart": apart}), shards, len(sizes)),
            "documents": len(documents),
            "components": int((rows > 0).sum()),
            "largest_component_rows": int(rows.max(initial=0)),
            "validation_components": int((chosen & (rows > 0)).sum()),
            "forced_to_train": {"components": len(forced), "rows": int(rows[forced].sum())},
            "exemplars": {"rows": int((exemplar >= 0).sum()), "apart": int(apart.sum())},
        }


def _column(paths: list[str], name: str) -> pa.ChunkedArray:
    chunks = [chunk for path in paths for chunk in storage.read_table(path, [name]).column(name).chunks]
    return pa.chunked_array(chunks, pa.uint64())


def _nodes(columns: list[pa.ChunkedArray]) -> tuple[NDArray[np.uint64], list[NDArray[np.int64]]]:
    """All ids, in order; and for each column the numbers of its ids among them, -1 for null."""
    valid = [column.is_valid().to_numpy() for column in columns]
    given = [column.drop_null().to_numpy() for column in columns]
    ids, numbers = np.unique(np.concatenate(given), return_inverse=True)
    result = []
    for there, part in zip(valid, np.split(numbers, np.cumsum([len(part) for part in given])[:-1]), strict=True):
        nodes = np.full(len(there), -1, np.int64)
        nodes[there] = part
        result.append(nodes)
    return ids, result


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
    """Writes the rows of a shard by side. `texts` is the file with the side of each negative of exemplars."""

    step: str
    kinds: _Kinds
    sides: str
    sizes: list[int]
    texts: str

    def __call__(self, unit: tuple[int, str], folder: str) -> dict[str, Any]:
        number, shard = unit
        table = storage.read_table(shard)
        sides = exchange.gather([self.sides], [self.sizes], number)
        validation, apart = (
            np.zeros(0, bool) if sides is None else sides.column(name).to_numpy() for name in ("validation", "apart")
        )
        whole, dropped = self._on_one_side(table, validation, apart)
        said = reasons([{"row": row, "reason": POSITIVE_ON_OTHER_SIDE} for row in np.flatnonzero(apart).tolist()])
        _, rejected = split_rejected(table, self.step, said)
        parts = [
            ("train", whole.filter(pa.array(~validation & ~apart))),
            ("validation", whole.filter(pa.array(validation & ~apart))),
        ]
        result = write_rows(folder, kept=parts, rejected=rejected, rows_in=count_categories(table))
        return result | {"negatives_dropped": dropped}

    def _on_one_side(self, table: pa.Table, validation: NDArray[np.bool_], apart: NDArray[np.bool_]) -> tuple[pa.Table, int]:
        """The rows without those negatives of exemplars that are on the other side, and how many rows that stay have lost."""
        is_exemplar = self.kinds(table)[1]
        row, ids = _negative_ids(table)
        of_exemplar = is_exemplar[row] & ids.is_valid().to_numpy(zero_copy_only=False)
        if not of_exemplar.any():
            return table, 0
        texts = storage.read_table(self.texts)
        numbers = _numbers(ids.filter(pa.array(of_exemplar))).to_numpy()
        side = texts.column("validation").to_numpy()[np.searchsorted(texts.column("text").to_numpy(), numbers)]
        keep = np.ones(len(row), bool)
        keep[of_exemplar] = side == validation[row[of_exemplar]]
        column = table.column("negatives").combine_chunks()
        left = np.bincount(row[keep], minlength=table.num_rows)
        offsets = pa.array(np.concatenate([[0], np.cumsum(left)]), pa.int32())
        none = pc.or_(pc.is_null(column), pa.array(is_exemplar & (left == 0)))
        negatives = pa.ListArray.from_arrays(offsets, column.flatten().filter(pa.array(keep)), mask=none)
        place = table.schema.get_field_index("negatives")
        return table.set_column(place, table.schema.field(place), negatives), int((~keep & ~apart[row]).sum())
