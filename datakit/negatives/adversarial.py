"""The adversarial miner: a language model writes texts on the subject of a query that are not what it looks for.

    pairs    shard  -> its pairs of query and positive, by ranges of query ids (not those whose positive is a label)
    written  range  -> what the model wrote for them

Pairs are asked about in the order of their ids, so that what is written does not depend on the order of the rows. Requests go the
way of those of synthesis: the same cache of answers, the same budget, the same counts. The step has no rows; the mine step takes
what it wrote for the candidates of the miner `adversarial`, without a score and with the difficulty 1: it was written for this
query, and no corpus ranks it. A screen looks at it as at any other candidate, and drops what answers the query after all.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from datakit import exchange, storage
from datakit.filters.judge_prompts import shortened
from datakit.filters.sides import positive_is_label
from datakit.negatives.adversarial_prompts import Kind, Pair, Prompt, Text, load
from datakit.recipe import AdversarialMiner, AnyEngine, Model
from datakit.schema import digest, text_id
from datakit.step import Output, Step, Work
from datakit.synthesis import budget as budgets
from datakit.synthesis.desk import Asking, StepDesk, spent_on
from datakit.synthesis.engines import REFUSED, Engine, engine_packages
from datakit.synthesis.injection import detect
from datakit.synthesis.parsing import REQUEST_REFUSED
from datakit.synthesis.wishes import structured

VERSION = 2

ADVERSARIAL = "adversarial"

# Pairs of one range, about; and those that are asked about in one unit of work.
PARTITION, UNIT = 65_536, 512
# Somebody speaks to the model in such a pair: it is not asked about.
INJECTION = "injection"

FILE = "written.parquet"
# What was written, with where it came from; `reason` says why a text is none.
WRITTEN = {
    "query_id": pl.String,
    "positive_id": pl.String,
    "number": pl.Int64,
    "kind": pl.String,
    "id": pl.String,
    "text": pl.String,
    "query": pl.String,
    "reason": pl.String,
    "model": pl.String,
    "template": pl.String,
    "request_id": pl.String,
}
_PAIRS = ["query_id", "positive_id", "query", "positive", "instruction"]

log = logging.getLogger(__name__)


class Writing(Model):
    """All that decides what is written."""

    miner: AdversarialMiner
    engine: AnyEngine
    seed: int


def adversarial_step(miner: AdversarialMiner, asking: Asking, inputs: tuple[Step, ...]) -> Step:
    """The step that asks. `inputs` are the rows after the split; it looks at them only."""
    prompts = _prompts(miner)
    return Step(
        name=ADVERSARIAL,
        version=VERSION,
        work=_Work(asking),
        parameters=Writing(miner=miner, engine=asking.parameters, seed=asking.seed),
        side=inputs,
        assets={asking.model: asking.model_digest, **{f"prompt {prompt.label}": prompt.digest for prompt in prompts}},
        packages=("jinja2", *engine_packages(asking.parameters)),
    )


def _prompts(miner: AdversarialMiner) -> list[Prompt]:
    return [load(kind, miner.small_model) for kind in dict.fromkeys(miner.writes)]


@dataclass(frozen=True)
class _Work:
    asking: Asking

    def __call__(self, work: Work) -> None:
        parameters: Writing = work.step.parameters  # type: ignore[assignment]
        shards = [shard for source in work.side for shard in source.shards]
        count = 1 + sum(source.report.counts.out for source in work.side) // PARTITION
        sent = work.map("pairs", _Pairs(parameters, count), shards)
        paths = [work.files("pairs", number, "pairs.parquet") for number in range(len(shards))]
        sizes = [result["sent"] for result in sent]
        parted = work.map("together", _together, [(paths, sizes, number) for number in range(count)])
        units = [
            (work.files("together", number, "pairs.parquet"), start)
            for number, result in enumerate(parted)
            for start in range(0, result["rows"], UNIT)
        ]
        pairs = sum(result["rows"] for result in parted)
        total = pairs * parameters.miner.per_query * len(_prompts(parameters.miner))
        with self.asking.desk(work, {"written": len(units)}, total) as (engine, desk):
            asks = _Asks(parameters, engine, desk, self.asking.model)
            results = work.map("written", asks, units, exclusive=True)
        work.notes |= _notes(results, parameters, pairs)
        work.notes["files"] = [f"written/{number:05d}/{FILE}" for number in range(len(units))]
        refused = sum(work.notes["refused"].values())
        if refused:
            log.warning("%s: %d of %d answers hold no text that can be used.", work.step.name, refused, work.notes["answers"])
        work.finish(None)


def _notes(results: Sequence[dict[str, Any]], parameters: Writing, pairs: int) -> dict[str, Any]:
    refused, spent = Counter[str](), budgets.Spent()
    for result in results:
        refused.update(result["refused"])
        spent = spent.plus(budgets.from_notes(result))
    counts = {name: sum(result[name] for result in results) for name in ("answers", "written", INJECTION)}
    return {"pairs": pairs, **counts, "refused": dict(sorted(refused.items())), **spent.priced(parameters.engine).notes()}


@dataclass(frozen=True)
class _Pairs:
    """Sends the pairs of a shard that are asked about to their ranges."""

    parameters: Writing
    count: int

    def __call__(self, shard: str, folder: str) -> dict[str, Any]:
        table = storage.read_table(shard, columns=[*_PAIRS, "label", "in_batch_negatives"])
        frame = pl.DataFrame(table.select(_PAIRS)).filter(~pl.Series(positive_is_label(table)))
        frame = frame.drop_nulls(["query_id", "positive_id", "query", "positive"])
        frame = frame.unique(["query_id", "positive_id", "instruction"]).sort("query_id", "positive_id", "instruction")
        limit, seed = self.parameters.miner.share * 2**64, str(self.parameters.seed)
        drawn = [int(digest(ADVERSARIAL, seed, each, size=8), 16) < limit for each in frame.get_column("query_id")]
        frame = frame.filter(pl.Series(drawn, dtype=pl.Boolean))
        heads = np.array([int(each[:8], 16) for each in frame.get_column("query_id")], np.int64)
        path = storage.join(folder, "pairs.parquet")
        return {
            "rows": table.num_rows,
            "sent": exchange.scatter(path, frame.to_arrow(), (heads * self.count) >> 32, self.count),
        }


def _together(unit: tuple[list[str], list[list[int]], int], folder: str) -> dict[str, Any]:
    """The pairs of a range, each once, in order. Of equal pairs with two instructions the first one by its text counts."""
    table = exchange.gather(*unit)
    frame = pl.DataFrame(table) if table is not None else pl.DataFrame(schema=dict.fromkeys(_PAIRS, pl.String))
    frame = frame.sort("query_id", "positive_id", "instruction").unique(
        ["query_id", "positive_id"], keep="first", maintain_order=True
    )
    storage.write_table(storage.join(folder, "pairs.parquet"), frame.to_arrow())
    return {"rows": len(frame)}


@dataclass(frozen=True)
class _Asks:
    """Asks about UNIT pairs, and writes what was answered."""

    parameters: Writing
    engine: Engine
    desk: StepDesk
    model: str

    def __call__(self, unit: tuple[str, int], folder: str) -> dict[str, Any]:
        path, start = unit
        pairs = storage.read_table(path).slice(start, UNIT).to_pylist()
        miner, seed, how = self.parameters.miner, self.parameters.seed, structured(self.parameters.engine)
        asked = list[tuple[dict[str, Any], Pair, Prompt, int]]()
        injected = 0
        for each in pairs:
            if detect(each["query"]) or detect(each["positive"]):
                injected += 1
                continue
            texts = {name: shortened(each[name], miner.max_characters) for name in ("query", "positive")}
            pair = Pair(**texts, instruction=each["instruction"] or "")
            asked += [(each, pair, prompt, number) for prompt in _prompts(miner) for number in range(miner.per_query)]
        batches = self.engine.batches([prompt.conversation(pair, number, seed, how) for _, pair, prompt, number in asked])
        answers = self.desk.answers(self.engine, batches)
        keys = {request.number: request.key for batch in batches for request in batch}
        records, refused = [], Counter[str]()
        for place, (each, pair, prompt, number) in enumerate(asked):
            answer = answers[keys[place]]
            if answer.finish_reason == REFUSED:
                text = Text(reason=REQUEST_REFUSED)
            else:
                text = prompt.text_in(answer.text, pair, seed, cut=answer.finish_reason == "length")
            if text.reason is not None:
                refused[text.reason] += 1
            records.append(_record(each, number, prompt.kind, text, answer.text, self.model, prompt.label, keys[place]))
        frame = pl.DataFrame(records, schema=WRITTEN)
        storage.write_table(storage.join(folder, FILE), frame.to_arrow())
        counts = {"answers": len(asked), "written": len(asked) - sum(refused.values()), INJECTION: injected}
        return {
            "rows": len(pairs),
            **counts,
            "refused": dict(sorted(refused.items())),
            **spent_on(list(answers.values())).notes(),
        }


def _record(
    pair: dict[str, Any], number: int, kind: Kind, text: Text, answer: str, model: str, template: str, request: str
) -> dict[str, Any]:
    """A row of WRITTEN. Of an answer that is none, the whole of it is kept."""
    return {
        "query_id": pair["query_id"],
        "positive_id": pair["positive_id"],
        "number": number,
        "kind": kind,
        "id": text_id(text.text) if text.reason is None else None,
        "text": text.text if text.reason is None else answer,
        "query": text.query,
        "reason": text.reason,
        "model": model,
        "template": template,
        "request_id": request,
    }


@dataclass(frozen=True)
class Written:
    """What the step wrote, for the mine step."""

    files: tuple[str, ...]

    def candidates(self, rows: pl.DataFrame, barred: pl.DataFrame, fold: Callable[[pl.Series], pl.Series]) -> pl.DataFrame:
        """row, id, text, folded, miner, score, difficulty: what was written for the pair of each row and is not barred."""
        asked = rows.select("row", "query_id", "positive_id")
        empty = pl.DataFrame(schema={"row": pl.Int64, "kind": pl.String, "number": pl.Int64, "id": pl.String, "text": pl.String})
        found = [empty]
        for file in self.files:
            table: pa.Table = storage.read_table(
                file, columns=["query_id", "positive_id", "number", "kind", "id", "text", "reason"]
            )
            kept = pl.DataFrame(table).filter(pl.col("reason").is_null())
            found.append(kept.join(asked, on=["query_id", "positive_id"]).select(empty.columns))
        frame = pl.concat(found).sort("row", "number", "kind")
        frame = frame.with_columns(folded=fold(frame.get_column("text")))
        frame = frame.unique(["row", "folded"], keep="first", maintain_order=True)
        frame = frame.join(barred, on=["row", "folded"], how="anti", maintain_order="left")
        return frame.select(
            "row",
            "id",
            "text",
            "folded",
            miner=pl.lit(ADVERSARIAL),
            score=pl.lit(None, pl.Float32),
            difficulty=pl.lit(1.0, pl.Float32),
        )


def written(output: Output) -> Written:
    return Written(tuple(storage.join(output.folder, name) for name in output.report.notes["files"]))
