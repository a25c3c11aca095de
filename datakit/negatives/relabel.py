"""The relabel step: a cross-encoder or a language model reads the negatives that passed the screen. Three outcomes (RLHN, arXiv
2505.16967), for each negative:

- it is kept;
- it is dropped (`judged_relevant`, `judge_injection`, `judge_unparsable`): nobody should train on it;
- it becomes a positive (`relabelled_positive`): a row of its own, created here, with the query of the row and this text, and the
  negatives that the row keeps. Its provenance names the row that it comes from, and who said so.

A text that became a positive of a query is no negative of any row with that query, and it becomes one once in each category,
however many rows found it: the row with the lowest row_id makes it. It makes none, and is dropped as `judged_relevant`, where the
row has a graded score, and where rows on the other side of the split say the same, or would come to: what the data had as a
negative may be a positive there.

Classes are not asked about, nor what the data had, unless the screen has `source`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from datakit import exchange, storage
from datakit.assets import Assets
from datakit.filters import judge_prompts
from datakit.negatives import cross_encoder
from datakit.negatives.corpus import fold, said_by_part
from datakit.negatives.criteria import EQUAL_TO_POSITIVE, compared
from datakit.negatives.lists import exploded, with_negatives
from datakit.negatives.screen import take
from datakit.recipe import AnyEngine, CrossEncoderRelabel, JudgeFilter, JudgeRelabel, Model, Negatives, Screen
from datakit.schema import EXAMPLE, content_id, digest
from datakit.step import Step, Work, count_categories, part_of, write_rows
from datakit.synthesis import budget as budgets
from datakit.synthesis.desk import Asking, StepDesk, spent_on
from datakit.synthesis.engines import REFUSED, Batch, Engine, engine_packages
from datakit.synthesis.injection import find
from datakit.synthesis.wishes import structured

VERSION = 2

RELABELLED = "relabelled_positive"
JUDGED_RELEVANT = "judged_relevant"
JUDGE_INJECTION = "judge_injection"
JUDGE_UNPARSABLE = "judge_unparsable"
# The last one is for negatives that nobody read, and that became a positive by way of another row.
REASONS = (RELABELLED, JUDGED_RELEVANT, JUDGE_INJECTION, JUDGE_UNPARSABLE, EQUAL_TO_POSITIVE)

# What decides which texts are equal.
PACKAGES = ("polars", "python")

# What `provenance.template` of a new row says.
TEMPLATE = "relabelled_negative"

PARTITION_ROWS = 2_000_000


class Relabelling(Model):
    """All that decides the outcomes. `engine` and `seed` are those of a judge."""

    screen: Screen
    per_query: int
    engine: AnyEngine | None = None
    seed: int = 0


def relabel_step(negatives: Negatives, asking: Asking | None, inputs: tuple[Step, ...], assets: Assets) -> Step:
    """Relabels what `screen_step` kept. `asking` is how a judge gets its answers; None for a cross-encoder."""
    assert negatives.screen is not None
    relabel = negatives.screen.relabel
    if isinstance(relabel, CrossEncoderRelabel):
        parameters = Relabelling(screen=negatives.screen, per_query=negatives.per_query)
        known = {"cross-encoder": assets.digest(relabel.model, relabel.revision)}
        return Step(
            "relabel", VERSION, _Work(None), parameters, inputs, assets=known, packages=(*PACKAGES, *cross_encoder.PACKAGES)
        )
    assert isinstance(relabel, JudgeRelabel)
    assert asking is not None
    prompt = judge_prompts.load(_filter(relabel))
    parameters = Relabelling(screen=negatives.screen, per_query=negatives.per_query, engine=asking.parameters, seed=asking.seed)
    known = {asking.model: asking.model_digest, f"prompt {prompt.label}": prompt.digest}
    packages = (*PACKAGES, "jinja2", *engine_packages(asking.parameters))
    return Step("relabel", VERSION, _Work(asking), parameters, inputs, assets=known, packages=packages)


def is_judge(step: Step) -> bool:
    """Whether the step asks a language model what to relabel."""
    return isinstance(step.parameters, Relabelling) and step.parameters.engine is not None


def _filter(relabel: JudgeRelabel) -> JudgeFilter:
    """The filter whose prompts ask the same."""
    return JudgeFilter(type="judge", engine=relabel.engine, criterion="relevance", small_model=relabel.small_model)


@dataclass(frozen=True)
class _Work:
    asking: Asking | None

    def __call__(self, work: Work) -> None:
        parameters: Relabelling = work.step.parameters  # type: ignore[assignment]
        blocks = [(shard, block) for shard in work.shards for block in range(exchange.row_groups(shard))]
        count = 1 + sum(source.report.counts.out for source in work.inputs) // PARTITION_ROWS
        if self.asking is None:
            try:
                scored = work.map("scores", _Reads(parameters, count), blocks, exclusive=True)
            finally:
                cross_encoder.load.cache_clear()
        else:
            total = sum(len(_candidates(exchange.read_row_group(*unit), parameters)) for unit in blocks)
            with self.asking.desk(work, {"scores": len(blocks)}, total) as (engine, desk):
                scored = work.map("scores", _Asks(parameters, count, engine, desk), blocks, exclusive=True)
        files = [work.files("scores", number, "relabelled.parquet") for number in range(len(blocks))]
        sent = [result["sent"] for result in scored]
        work.map("relabelled", _Winners(files, sent, said_by_part(work)), list(range(count)))
        winners = [work.files("relabelled", partition, "relabelled.parquet") for partition in range(count)]
        units = [(shard, block, work.files("scores", number, "scores.parquet")) for number, (shard, block) in enumerate(blocks)]
        results = work.map("rows", _Rows(parameters, winners), units)
        work.notes |= _notes(results, scored, parameters)
        work.finish("rows", results)


def _candidates(table: pa.Table, parameters: Relabelling) -> pl.DataFrame:
    """The negatives of a table that are asked about: row, place, id, text, miner, and the row's query, instruction, query_id."""
    candidates = exploded(table).select("row", "place", "id", "text", "miner")
    candidates = candidates.filter(compared(candidates, parameters.screen))
    rows = pl.DataFrame(table.select(["row_id", "category", "query_id", "query", "instruction"]))
    return candidates.join(rows.with_row_index("row").cast({"row": pl.Int64}), on="row", how="left", maintain_order="left")


@dataclass(frozen=True)
class _Reads:
    """A cross-encoder scores the negatives of one row group."""

    parameters: Relabelling
    partitions: int

    def __call__(self, unit: tuple[str, int], folder: str) -> dict[str, Any]:
        relabel = self.parameters.screen.relabel
        assert isinstance(relabel, CrossEncoderRelabel)
        table = exchange.read_row_group(*unit)
        asked = _candidates(table, self.parameters)
        pairs = list(zip(asked.get_column("query").to_list(), asked.get_column("text").to_list(), strict=True))
        scores = cross_encoder.scores(relabel, pairs)
        said = [_outcome(score, relabel.drop, relabel.positive) for score in scores.tolist()]
        return _write(folder, table, asked, scores.tolist(), said, part_of(unit[0]), self.partitions)


@dataclass(frozen=True)
class _Asks:
    """A language model scores the negatives of one row group. Nobody is asked about a text that speaks to the model."""

    parameters: Relabelling
    partitions: int
    engine: Engine
    desk: StepDesk

    def __call__(self, unit: tuple[str, int], folder: str) -> dict[str, Any]:
        relabel, engine = self.parameters.screen.relabel, self.parameters.engine
        assert isinstance(relabel, JudgeRelabel)
        assert engine is not None
        table = exchange.read_row_group(*unit)
        asked = _candidates(table, self.parameters)
        numbers, batches = _requests(asked, relabel, self.parameters.seed, structured(engine), self.engine)
        answers = self.desk.answers(self.engine, batches)
        said_of = {request.number: answers[request.key] for batch in batches for request in batch}
        scores: list[float | None] = [None] * len(asked)
        said: list[str | None] = [JUDGE_INJECTION] * len(asked)
        for request, place in enumerate(numbers):
            answer = said_of[request]
            # Who serves the judge would not take the text: there is no score, as in an answer that has none.
            score = None if answer.finish_reason == REFUSED else judge_prompts.score_in(answer.text)
            scores[place] = score
            said[place] = JUDGE_UNPARSABLE if score is None else _outcome(score, relabel.drop, relabel.positive)
        written = _write(folder, table, asked, scores, said, part_of(unit[0]), self.partitions)
        return {**written, **spent_on(list(answers.values())).notes()}


def _requests(asked: pl.DataFrame, relabel: JudgeRelabel, seed: int, form: str, engine: Engine) -> tuple[list[int], list[Batch]]:
    """The places in `asked` of those that somebody is asked about, and the batches that they are asked in."""
    numbers, pairs = list[int](), list[judge_prompts.Pair]()
    for place, (query, text, instruction) in enumerate(asked.select("query", "text", "instruction").iter_rows()):
        if not find(query) and not find(text):
            seen = [judge_prompts.shortened(each, relabel.max_characters) for each in (query, text)]
            numbers.append(place)
            pairs.append(judge_prompts.Pair(instruction=instruction or "", query=seen[0], positive=seen[1]))
    return numbers, list(engine.batches(judge_prompts.load(_filter(relabel)).conversations(pairs, seed, form)))


def _outcome(score: float, drop: float, positive: float | None) -> str | None:
    if positive is not None and score >= positive:
        return RELABELLED
    return JUDGED_RELEVANT if score >= drop else None


def _write(
    folder: str,
    table: pa.Table,
    asked: pl.DataFrame,
    scores: Sequence[float | None],
    said: Sequence[str | None],
    part: str,
    partitions: int,
) -> dict[str, Any]:
    """Writes the outcomes of a row group, and who relabels what to the partition of its text."""
    graded = pl.Series(table.column("score").to_pylist(), dtype=pl.Float32).is_not_null()
    found = asked.with_columns(judged=pl.Series(scores, dtype=pl.Float64), reason=pl.Series(said, dtype=pl.String))
    of_graded = pl.Series(graded.gather(found.get_column("row")))
    found = found.with_columns(
        reason=pl.when(of_graded & (pl.col("reason") == RELABELLED)).then(pl.lit(JUDGED_RELEVANT)).otherwise("reason")
    )
    storage.write_table(storage.join(folder, "scores.parquet"), found.select("row", "place", "judged", "reason").to_arrow())
    new = found.filter(pl.col("reason") == RELABELLED)
    new = new.select("category", "query_id", "id", "row_id", part=pl.lit(part), folded=fold(new.get_column("text")))
    heads = np.array([int(folded[:8], 16) for folded in new.get_column("folded")], np.int64)
    path = storage.join(folder, "relabelled.parquet")
    return {"rows": table.num_rows, "sent": exchange.scatter(path, new.to_arrow(), heads % partitions, partitions)}


@dataclass(frozen=True)
class _Winners:
    """Who makes which row: for each part, category, query and text the lowest row_id. None for a text that two parts would have;
    `said` are the files with what the rows of each part say."""

    files: list[str]
    sent: list[list[int]]
    said: dict[str, list[str]]

    def __call__(self, partition: int, folder: str) -> dict[str, Any]:
        table = exchange.gather(self.files, self.sent, partition)
        schema = dict.fromkeys(("category", "query_id", "id", "row_id", "part", "folded"), pl.String)
        new = pl.DataFrame(table) if table is not None else pl.DataFrame(schema=schema)
        for part, files in self.said.items():
            for file in files:
                said = pl.DataFrame(storage.read_table(file)).get_column("folded")
                new = new.filter((pl.col("part") == part) | ~pl.col("folded").is_in(said.implode()))
        new = new.filter(pl.col("part").n_unique().over("folded") == 1)
        new = new.group_by("part", "category", "query_id", "id").agg(pl.col("row_id").min())
        new = new.sort("query_id", "id", "category", "part")
        storage.write_table(storage.join(folder, "relabelled.parquet"), new.to_arrow())
        return {"rows": len(new)}


@dataclass(frozen=True)
class _Rows:
    """Writes the rows of one row group, and those that it makes."""

    parameters: Relabelling
    winners: list[str]

    def __call__(self, unit: tuple[str, int, str], folder: str) -> dict[str, Any]:
        shard, block, scores = unit
        table = exchange.read_row_group(shard, block)
        rows = pl.DataFrame(table.select(["row_id", "category", "query_id"])).with_row_index("row").cast({"row": pl.Int64})
        found = [
            pl.DataFrame(storage.read_table(file)).join(rows.select("query_id"), on="query_id", how="semi")
            for file in self.winners
        ]
        winners = pl.concat(found)
        candidates = exploded(table).join(rows, on="row", how="left", maintain_order="left")
        judged = pl.DataFrame(storage.read_table(scores))
        # A text that became a positive of the query is one for all its rows, also where the screen has not seen it.
        became = winners.select("query_id", "id", became=pl.lit(True)).unique()
        candidates = candidates.join(judged, on=["row", "place"], how="left", maintain_order="left")
        candidates = candidates.join(became, on=["query_id", "id"], how="left", maintain_order="left")
        candidates = candidates.with_columns(asked=compared(candidates, self.parameters.screen))
        candidates = candidates.with_columns(
            reason=pl.when(pl.col("became") & pl.col("asked"))
            .then(pl.lit(RELABELLED))
            .when(pl.col("became"))
            .then(pl.lit(EQUAL_TO_POSITIVE))
            .when(pl.col("reason") == RELABELLED)
            .then(pl.lit(JUDGED_RELEVANT))
            .otherwise("reason")
        )
        taken = take(candidates.filter(pl.col("reason").is_null()), self.parameters.per_query)
        kept = with_negatives(table, taken.sort("row", "place"))
        made = candidates.filter(pl.col("reason") == RELABELLED).join(
            winners.select("category", "query_id", "id", "row_id"), on=["category", "query_id", "id", "row_id"], how="semi"
        )
        new = _made(kept, made.unique(["row", "id"], keep="first", maintain_order=True))
        part = part_of(shard)
        tables = [(part, kept)] + ([(part, new)] if new.num_rows else [])
        result = write_rows(folder, kept=tables, rows_in=count_categories(table), created=count_categories(new))
        return {**result, "relabelled": _counted(candidates, taken, new)}


def _made(kept: pa.Table, made: pl.DataFrame) -> pa.Table:
    """The rows that texts become: `made` has row, id, text. The row's own score, label and quality are not those of the text."""
    records = []
    for parent, made_row in zip(
        kept.take(pa.array(made.get_column("row").to_list(), pa.int64())).to_pylist(), made.iter_rows(named=True), strict=True
    ):
        text, id_ = made_row["text"], made_row["id"]
        provenance = {**(parent["provenance"] or {}), "template": TEMPLATE, "parents": [parent["row_id"]]}
        records.append(
            {
                **parent,
                "row_id": digest(TEMPLATE, parent["row_id"], id_),
                "content_id": content_id(parent["category"], parent["query"], text),
                "positive": text,
                "positive_id": id_,
                "document_id": None,
                "score": None,
                "label": None,
                "quality": None,
                "provenance": provenance,
            }
        )
    return pa.Table.from_pylist(records, schema=EXAMPLE)


def _counted(candidates: pl.DataFrame, taken: pl.DataFrame, new: pa.Table) -> dict[str, Any]:
    """By category and miner: how many were asked about, what became of them, and how many the rows keep."""
    counted: dict[str, Any] = {}
    for (name, miner), some in candidates.group_by("category", "miner", maintain_order=True):
        seen = {"asked": int(some.get_column("asked").sum())}
        seen |= {reason: int((some.get_column("reason") == reason).sum()) for reason in REASONS}
        seen["taken"] = len(taken.filter((pl.col("category") == name) & (pl.col("miner") == miner)))
        counted.setdefault(str(name), {"miners": {}})["miners"][str(miner)] = seen
    for name, count in count_categories(new).items():
        counted.setdefault(name, {"miners": {}})["rows_made"] = count
    return counted


def _notes(results: Sequence[Mapping[str, Any]], scored: Sequence[Mapping[str, Any]], parameters: Relabelling) -> dict[str, Any]:
    """What the manifest says. `false_negative_rate` estimates the share of false negatives among those that passed the screen: of
    the negatives that were read, how many were called relevant. Those without a score, or that speak to the model, are left out.
    """
    total, categories = _Counts(), dict[str, _Counts]()
    for result in results:
        for name, seen in result["relabelled"].items():
            for counts in (total, categories.setdefault(name, _Counts())):
                counts.add(seen)
    notes = {**total.told(), "categories": {name: categories[name].told() for name in sorted(categories)}}
    if parameters.engine is not None:
        spent = budgets.Spent()
        for result in scored:
            spent = spent.plus(budgets.from_notes(result))
        notes |= spent.priced(parameters.engine).notes()
    return notes


class _Counts:
    def __init__(self) -> None:
        self.miners: dict[str, Counter[str]] = {}
        self.rows_made = 0

    def add(self, seen: Mapping[str, Any]) -> None:
        self.rows_made += seen.get("rows_made", 0)
        for miner, counts in seen["miners"].items():
            self.miners.setdefault(miner, Counter()).update(counts)

    def told(self) -> dict[str, Any]:
        together = Counter[str]()
        for counts in self.miners.values():
            together.update(counts)
        read = together["asked"] - together[JUDGE_INJECTION] - together[JUDGE_UNPARSABLE]
        relevant = together[RELABELLED] + together[JUDGED_RELEVANT]
        return {
            "miners": {miner: dict(self.miners[miner]) for miner in sorted(self.miners)},
            "rows_made": self.rows_made,
            "false_negative_rate": round(relevant / read, 6) if read else None,
        }
