"""The decontaminate step: no row goes on that says what an evaluation set asks.

    sets        set    -> its texts
    index       once   -> all texts in one table, and the index of their words
    evaluation  set    -> vectors of its texts and of its canaries (with `semantic` alone)
    canaries    set    -> canaries go through what the rows go through; one that is not caught stops the build
    unseen      block  -> vectors of negatives, and of other texts that no embed step has seen (with `semantic` alone)
    rows        block  -> rows that are clean, and those that are not

A hit in query or positive rejects the row; a hit in a negative drops that negative, unless the recipe says otherwise. Of several
hits the reason tells of the one of the first level (exact, n-gram, semantic), then of the first side, then of the highest value.

Memory: the texts of all evaluation sets, their index (index.py), with `semantic` 8 bytes for each dimension of each text; and one
row group of rows in each worker.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from datakit import exchange, storage
from datakit.assets import Assets
from datakit.decontamination import index as indexing
from datakit.decontamination.canaries import canaries
from datakit.decontamination.check import LEVELS, SIDES, Check, Checked, texts_to_encode
from datakit.decontamination.sets import Found, find, texts
from datakit.decontamination.words import weight, words
from datakit.encoders import encode
from datakit.encoders.vectors import ROLES, load_array, save_array
from datakit.errors import BuildError, UserError
from datakit.recipe import Containment, Decontamination, Encoder, Model
from datakit.schema import digest, rows, text_id
from datakit.step import Step, Work, count_categories, part_of, write_rows

VERSION = 1

TEXTS = pa.schema([("set", pa.int32()), ("id", pa.string()), ("text", pa.string()), ("long_enough", pa.bool_())])


class Decontaminating(Model):
    """`mined`: the rows were checked before, and have got negatives since."""

    decontamination: Decontamination
    encoder: Encoder | None
    mined: bool


def decontaminate_step(
    name: str,
    decontamination: Decontamination,
    inputs: tuple[Step, ...],
    assets: Assets,
    *,
    mirror: str | None = None,
    encoder: Encoder | None = None,
    vectors: Step | None = None,
    mined: bool = False,
) -> Step:
    """Checks the rows of `inputs` against the evaluation sets. `vectors` embeds their texts, or those of rows they come from.

    `mined` says that they were checked before they got their negatives. Raises a UserError for a set that is not there.
    """
    found = find(decontamination.sets, mirror, assets)
    digests = {f"{each.name}/{file}": value for each in found for file, value in each.digests.items()}
    packages = {"numpy", "polars", "python", *(package for each in found for package in each.packages)}
    if encoder is not None:
        digests["encoder"] = assets.digest(encoder.model, encoder.revision)
        packages |= set(encode.PACKAGES)
    parameters = Decontaminating(decontamination=decontamination, encoder=encoder, mined=mined)
    side = (vectors,) if vectors is not None else ()
    return Step(name, VERSION, _Work(tuple(found)), parameters, inputs, side, digests, tuple(sorted(packages)))


@dataclass(frozen=True)
class _Work:
    found: tuple[Found, ...]

    def __call__(self, work: Work) -> None:
        parameters = work.step.parameters
        assert isinstance(parameters, Decontaminating)
        names = [found.name for found in self.found]
        work.map("sets", _read, self.found)
        files = [work.files("sets", number, "texts.parquet") for number in range(len(names))]
        (indexed,) = work.map("index", _Build(parameters.decontamination.ngram, names), [files])
        folder = storage.join(work.folder, "index", "00000")
        blocks = [(shard, block) for shard in work.shards for block in range(exchange.row_groups(shard))]
        evaluation: list[str] = []
        encoded: list[str | None] = [None] * len(blocks)
        vectors = work.side[0] if work.side else None
        if parameters.encoder is not None and vectors is not None:
            try:
                work.map("evaluation", _Encode(parameters.encoder, folder), list(range(len(names))), exclusive=True)
                unseen = _EncodeUnseen(parameters.encoder, parameters.mined, vectors)
                work.map("unseen", unseen, blocks, exclusive=True)
            finally:
                encode.load.cache_clear()
            evaluation = [storage.join(work.folder, "evaluation", f"{number:05d}") for number in range(len(names))]
            encoded = [work.files("unseen", number, "vectors.npy") for number in range(len(blocks))]
        check = Check(
            parameters.decontamination, work.step.name, folder, tuple(names), parameters.mined, vectors, tuple(evaluation)
        )
        caught = work.map("canaries", _Canaries(check), list(range(len(names))))
        units = [(*block, vector) for block, vector in zip(blocks, encoded, strict=True)]
        results = work.map("rows", _Rows(check), units)
        work.notes["sets"] = {
            name: {**read, **_told([result["hits"].get(name, {}) for result in results]), "canaries": planted["canaries"]}
            for name, read, planted in zip(names, indexed["sets"], caught, strict=True)
        }
        work.notes["rows_hit"] = sum(result["rows_hit"] for result in results)
        work.notes["negatives_dropped"] = sum(result["negatives_dropped"] for result in results)
        work.finish("rows", results)


def _told(hits: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What was found of one set: texts of it that were met, and hits by level and side; levels without a hit too."""
    met = {number for each in hits for number in each.get("texts", [])}
    counts = {level: {side: sum(each.get(level, {}).get(side, 0) for each in hits) for side in SIDES} for level in LEVELS}
    return {"texts_met": len(met), "hits": counts}


def _read(found: Found, folder: str) -> dict[str, Any]:
    """Writes the texts of a set, as they are."""
    read = list(texts(found))
    if not read:
        raise UserError(f"The evaluation set '{found.name}' has no texts. Check its path, split and columns.")
    table = pa.table({"id": [own_id for own_id, _ in read], "text": [text for _, text in read]})
    storage.write_table(storage.join(folder, "texts.parquet"), table)
    return {"rows": len(read)}


@dataclass(frozen=True)
class _Build:
    """Puts the texts of all sets into one table (TEXTS), each text once in its set, and builds the index."""

    ngram: Containment
    names: list[str]

    def __call__(self, files: Sequence[str], folder: str) -> dict[str, Any]:
        tables, told = [], []
        for number, file in enumerate(files):
            table = storage.read_table(file)
            said = words(table.column("text").combine_chunks())
            there = np.flatnonzero(said.counts > 0)
            _, first = np.unique(said.wholes[there], return_index=True)
            chosen = there[np.sort(first)]
            if not len(chosen):
                raise UserError(f"No text of the evaluation set '{self.names[number]}' has a word. Check its columns.")
            table = table.take(pa.array(chosen))
            # Only a character that is a word of its own counts less than one: twice as many words are enough in any case.
            enough = said.counts[chosen] >= 2 * self.ngram.min_words
            for place in np.flatnonzero(~enough):
                enough[place] = weight(table.column("text")[int(place)].as_py()) >= self.ngram.min_words
            columns = [
                pa.array(np.full(len(chosen), number, np.int32)),
                table.column("id"),
                table.column("text"),
                pa.array(enough),
            ]
            tables.append(pa.table(columns, schema=TEXTS))
            told.append(
                {
                    "texts": len(chosen),
                    "repeated": len(there) - len(chosen),
                    "without_words": len(said.counts) - len(there),
                    "exact_only": int((~enough).sum()),
                }
            )
        together = pa.concat_tables(tables).combine_chunks()
        storage.write_table(storage.join(folder, "texts.parquet"), together)
        sets, long_enough = together.column("set").to_numpy(), together.column("long_enough").to_numpy()
        index = indexing.build(together.column("text").combine_chunks(), sets, np.asarray(long_enough, bool), self.ngram.n)
        index.save(folder)
        return {"rows": together.num_rows, "sets": told}


@dataclass(frozen=True)
class _Encode:
    """Encodes the texts of a set and those of its canaries, each in both roles."""

    encoder: Encoder
    folder: str

    def __call__(self, number: int, folder: str) -> dict[str, Any]:
        planted = [canary.text for canary in _planted(self.folder, number) if canary.kind == "verbatim"]
        for role in ROLES:
            mine = _of_set(self.folder, number)
            save_array(storage.join(folder, f"{role}.npy"), encode.encode(self.encoder, role, mine.column("text").to_pylist()))
            save_array(storage.join(folder, f"canaries-{role}.npy"), encode.encode(self.encoder, role, planted))
        return {"rows": mine.num_rows}


def _of_set(folder: str, number: int) -> pa.Table:
    table = storage.read_table(storage.join(folder, "texts.parquet"))
    return table.filter(pa.array(table.column("set").to_numpy() == number))


def _planted(folder: str, number: int) -> list[Any]:
    table = storage.read_table(storage.join(folder, "texts.parquet"))
    numbers = np.flatnonzero(table.column("set").to_numpy() == number)
    mine = table.take(pa.array(numbers))
    return canaries(mine.column("text").to_pylist(), numbers.tolist(), mine.column("long_enough").to_pylist())


@dataclass(frozen=True)
class _EncodeUnseen:
    encoder: Encoder
    mined: bool
    vectors: Any

    def __call__(self, unit: tuple[str, int], folder: str) -> dict[str, Any]:
        table = exchange.read_row_group(*unit)
        wanted = texts_to_encode(table, self.vectors, self.mined)
        save_array(storage.join(folder, "vectors.npy"), encode.encode(self.encoder, "document", wanted))
        return {"rows": len(wanted)}


@dataclass(frozen=True)
class _Canaries:
    """Sends the canaries of a set through `check`, as query, positive and negative. None of them is written anywhere."""

    check: Check

    def __call__(self, number: int, folder: str) -> dict[str, Any]:
        planted = _planted(self.check.index, number)
        name = self.check.names[number]
        long_enough = storage.read_table(storage.join(self.check.index, "texts.parquet"), ["long_enough"]).column(0).to_pylist()
        caught: dict[str, dict[str, int]] = {}
        found = self.check.lexical(pa.array([canary.text for canary in planted], pa.string()))
        seen = {(item, other, level) for item, other, level in found.select("item", "other", "level").iter_rows()}
        for item, canary in enumerate(planted):
            expected = {LEVELS[0]: canary.kind != "embedded", LEVELS[1]: long_enough[canary.other]}
            for place, (level, due) in enumerate(expected.items()):
                hit = (item, canary.other, place) in seen
                if due and not hit:
                    raise _missed(name, canary.kind, level)
                counts = caught.setdefault(canary.kind, {})
                counts[level] = counts.get(level, 0) + hit
        if self.check.evaluation:
            counts = caught["verbatim"]
            for role in ROLES:
                vectors = load_array(storage.join(self.check.evaluation[number], f"canaries-{role}.npy"))
                near = self.check.alike(np.asarray(vectors), role)
                pairs = set(near.select("item", "other").iter_rows())
                verbatim = [canary for canary in planted if canary.kind == "verbatim"]
                if not all((item, canary.other) in pairs for item, canary in enumerate(verbatim)):
                    raise _missed(name, "verbatim", LEVELS[2])
                counts[LEVELS[2]] = len(verbatim)
        table = _canary_rows([canary.text for canary in planted])
        checked = self.check.judged(table, None)
        self._all_gone(checked, planted, name)
        kinds = {kind: sum(canary.kind == kind for canary in planted) for kind in caught}
        return {"canaries": {"planted": kinds, "caught": caught, "rows": table.num_rows, "rows_caught": table.num_rows}}

    def _all_gone(self, checked: Checked, planted: Sequence[Any], name: str) -> None:
        """Whether no row with a canary goes on, and no canary among the negatives of those that do."""
        gone = set(checked.rejected.column("row_id").to_pylist())
        reject = self.check.decontamination.negatives == "reject"
        for side in SIDES if reject else SIDES[:2]:
            for item, canary in enumerate(planted):
                if f"{side}-{item}" not in gone:
                    raise _missed(name, canary.kind, f"rows, as {side}")
        left = {item["text"] for negatives in checked.kept.column("negatives").to_pylist() for item in negatives or []}
        for canary in planted:
            if canary.text in left:
                raise _missed(name, canary.kind, "rows, as negative")


def _missed(name: str, kind: str, where: str) -> BuildError:
    return BuildError(
        f"A canary of the evaluation set '{name}' was not caught ({kind}; {where}). Decontamination does not work as it should, "
        "so no build was published. This is a defect of datakit."
    )


def _canary_rows(planted: Sequence[str]) -> pa.Table:
    """Rows with each canary as query, as positive, and as a negative; the other texts say nothing."""
    records = []
    for item, text in enumerate(planted):
        for side in SIDES:
            other = {each: digest("no canary", each, str(item)) for each in ("query", "positive", "negative")}
            said = {**other, side: text}
            negatives = [
                {"id": text_id(each), "text": each, "miner": "canary"} for each in (said["negative"], other["negative"][::-1])
            ]
            records.append(
                {
                    "row_id": f"{side}-{item}",
                    "category": "canary",
                    "query": said["query"],
                    "positive": said["positive"],
                    "negatives": negatives,
                }
            )
    return rows(records)


@dataclass(frozen=True)
class _Rows:
    """Checks one row group of a shard."""

    check: Check

    def __call__(self, unit: tuple[str, int, str | None], folder: str) -> dict[str, Any]:
        shard, block, encoded = unit
        table = exchange.read_row_group(shard, block)
        checked = self.check.judged(table, encoded)
        kept = [(part_of(shard), checked.kept)]
        result = write_rows(folder, kept=kept, rejected=checked.rejected, rows_in=count_categories(table))
        return {
            **result,
            "hits": checked.hits,
            "rows_hit": checked.rejected.num_rows,
            "negatives_dropped": checked.negatives_dropped,
        }
