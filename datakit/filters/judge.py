"""A language model as a judge: each row gets a score from 1 to 5, and those below the least one are rejected.

relevance asks whether the positive matches the query under the instruction of the row; quality whether a careful person would
write this query, and whether the positive is worth learning from. For quality, the column `quality` of a scored row becomes

    quality = (score - 1) / 4

Requests go the way of those of synthesis: the same cache of answers, the same budget, the same counts. Scores stand beside the
rows of the step, and are published as the part "judged": labels for a classifier.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from datakit import schema, storage
from datakit.filters import judge_prompts
from datakit.filters.judge_prompts import HIGHEST, LOWEST, Pair
from datakit.filters.sides import Array, is_graded, is_written, positive_is_label
from datakit.recipe import AnyEngine, JudgeFilter, Model
from datakit.schema import JUDGED, digest
from datakit.step import Output, Step, Work, count_categories, is_cached, load, part_of, split_rejected, write_rows
from datakit.synthesis import budget as budgets
from datakit.synthesis import request_cache
from datakit.synthesis.desk import Asking, StepDesk, spent_on
from datakit.synthesis.engines import REFUSED, Answer, Batch, Engine, engine_packages
from datakit.synthesis.injection import find
from datakit.synthesis.parsing import REQUEST_REFUSED
from datakit.synthesis.request_cache import RequestCache
from datakit.synthesis.wishes import structured

VERSION = 1

JUDGED_IRRELEVANT = "judged_irrelevant"
JUDGED_POOR = "judged_poor"
# A text of the row speaks to the model that reads it. Nobody is asked about such a row, whose score would be its own.
JUDGE_INJECTION = "judge_injection"
JUDGE_UNPARSABLE = "judge_unparsable"
REASONS = (JUDGED_IRRELEVANT, JUDGED_POOR, JUDGE_INJECTION, JUDGE_UNPARSABLE, REQUEST_REFUSED)

FILE = "judged.parquet"

# Tokens of an answer, about: "Score: 4" and what ends it.
_ANSWER_TOKENS = 6

# So many rows with one score are no chance.
_TELLING = 20

log = logging.getLogger(__name__)


class Judging(Model):
    """All that decides the scores."""

    filter: JudgeFilter
    engine: AnyEngine
    seed: int


@dataclass(frozen=True)
class _Work:
    """The work of a judge's step."""

    asking: Asking

    def __call__(self, work: Work) -> None:
        parameters = _parameters(work.step)
        total = sum(int(_chosen(_facts(shard), parameters).drawn.sum()) for shard in work.shards)
        with self.asking.desk(work, {"rows": len(work.shards)}, total) as (engine, desk):
            results = work.map("rows", _Asks(work.step.name, parameters, engine, desk), work.shards, exclusive=True)
        work.notes |= _notes(results, parameters)
        _tell(work.step.name, work.notes, parameters)
        work.finish("rows", results)


def judge_step(name: str, filter: JudgeFilter, asking: Asking, inputs: tuple[Step, ...]) -> Step:
    """The step of a judge."""
    prompt = judge_prompts.load(filter)
    return Step(
        name=name,
        version=VERSION,
        work=_Work(asking),
        parameters=Judging(filter=filter, engine=asking.parameters, seed=asking.seed),
        inputs=inputs,
        assets={asking.model: asking.model_digest, f"prompt {prompt.label}": prompt.digest},
        packages=("jinja2", *engine_packages(asking.parameters)),
    )


def scores(step: Step, output: Output) -> Iterator[pa.Table]:
    """What a judge said of its rows (JUDGED), shard by shard; nothing for other steps."""
    if isinstance(step.parameters, Judging):
        for shard in output.shards:
            yield storage.read_table(storage.join(shard.rsplit("/", 1)[0], FILE)).cast(JUDGED)


def planned(step: Step, cache: str) -> dict[str, int] | None:
    """What a judge would ask: requests that are not answered yet, about how many tokens they take, and those that are.

    None while its rows are not there. Sends nothing.
    """
    if not all(is_cached(source, cache) for source in step.inputs):
        return None
    parameters, work = _parameters(step), step.work
    assert isinstance(work, _Work)
    engine = work.asking.engine()
    counts = {"requests": 0, "prompt_tokens": 0, "completion_tokens": 0, "answered": 0}
    answers = RequestCache(cache) if request_cache.is_there(cache) else None
    try:
        for source in step.inputs:
            for shard in load(source, cache).shards:
                _, batches = _requests(storage.read_table(shard), parameters, engine)
                asked = [request for batch in batches for request in batch]
                known = answers.answers([request.key for request in asked]) if answers else {}
                for request in asked:
                    if request.key in known:
                        counts["answered"] += 1
                        continue
                    counts["requests"] += 1
                    counts["prompt_tokens"] += sum(len(message.content) for message in request.conversation.messages) // 4
                    counts["completion_tokens"] += _ANSWER_TOKENS
    finally:
        if answers:
            answers.close()
        engine.close()
    return counts


@dataclass(frozen=True)
class _Asks:
    """Asks about the rows of one shard, and writes them with what was said."""

    step: str
    parameters: Judging
    engine: Engine
    desk: StepDesk

    def __call__(self, shard: str, folder: str) -> dict[str, Any]:
        table = storage.read_table(shard)
        asked, batches = _requests(table, self.parameters, self.engine)
        answers = self.desk.answers(self.engine, batches)
        keys = {request.number: request.key for batch in batches for request in batch}
        said, judged = _verdicts(
            table, asked, [answers[keys[number]] for number in range(len(asked.rows))], self.parameters.filter
        )
        table = _with_quality(table, asked.rows, judged, self.parameters.filter)
        kept, rejected = split_rejected(table, self.step, said)
        storage.write_table(storage.join(folder, FILE), judged)
        result = write_rows(folder, kept=[(part_of(shard), kept)], rejected=rejected, rows_in=count_categories(table))
        counts = {
            "not_written": int((~asked.chosen.wanted).sum()),
            "graded": int((asked.chosen.wanted & asked.chosen.graded).sum()),
            "not_drawn": int(asked.chosen.left.sum()),
            "shortened": asked.shortened,
            "scores": _histogram(judged),
        }
        return {**result, **counts, **spent_on(list(answers.values())).notes()}


@dataclass(frozen=True)
class _Chosen:
    """Masks over the rows of a shard: those that the filter is about, graded ones among them, those that the share leaves out,
    and those to be judged."""

    wanted: Array
    graded: Array
    left: Array
    drawn: Array


@dataclass(frozen=True)
class _Asked:
    """The numbers of the rows that are asked about, in order, and those of the rows that speak to the judge, with their words.

    `shortened` counts the pairs of which the judge sees a part.
    """

    rows: list[int]
    injected: dict[int, str]
    chosen: _Chosen
    shortened: int


def _parameters(step: Step) -> Judging:
    assert isinstance(step.parameters, Judging)
    return step.parameters


def _facts(shard: str) -> pa.Table:
    return storage.read_table(shard, ["row_id", "score", "provenance"])


def _chosen(table: pa.Table, parameters: Judging) -> _Chosen:
    filter = parameters.filter
    wanted = is_written(table) if filter.rows == "written" else np.ones(table.num_rows, bool)
    graded = is_graded(table) if filter.criterion == "relevance" else np.zeros(table.num_rows, bool)
    limit, seed = filter.share * 2**64, str(parameters.seed)
    inside = np.array([int(digest("judge", seed, row_id, size=8), 16) < limit for row_id in table["row_id"].to_pylist()], bool)
    judged = wanted & ~graded
    return _Chosen(wanted, graded, judged & ~inside, judged & inside)


def _requests(table: pa.Table, parameters: Judging, engine: Engine) -> tuple[_Asked, list[Batch]]:
    """What is asked about the rows of a shard, and the batches that it is asked in."""
    filter, chosen = parameters.filter, _chosen(table, parameters)
    label = positive_is_label(table)
    columns = table.select(["query", "positive", "instruction"])
    rows, pairs = list[int](), list[Pair]()
    injected: dict[int, str] = {}
    shortened = 0
    for row in np.flatnonzero(chosen.drawn).tolist():
        query, positive, instruction = (column[row].as_py() or "" for column in columns.columns)
        if found := find(query) or find(positive):
            injected[row] = found.words
            continue
        seen = [judge_prompts.shortened(text, filter.max_characters) for text in (query, positive)]
        shortened += seen != [query, positive]
        rows.append(row)
        pairs.append(Pair(instruction=instruction, query=seen[0], positive=seen[1], label=bool(label[row])))
    prompt = judge_prompts.load(filter)
    batches = engine.batches(prompt.conversations(pairs, parameters.seed, structured(parameters.engine)))
    return _Asked(rows, injected, chosen, shortened), batches


def _verdicts(table: pa.Table, asked: _Asked, answers: Sequence[Answer], filter: JudgeFilter) -> tuple[pa.Table, pa.Table]:
    """What is said against rows (REASONS), and the scores (JUDGED) of all rows that were asked about."""
    low = JUDGED_IRRELEVANT if filter.criterion == "relevance" else JUDGED_POOR
    said: list[dict[str, Any]] = [
        {"row": row, "reason": JUDGE_INJECTION, "detail": words} for row, words in asked.injected.items()
    ]
    found, kept = list[float | None](), list[bool]()
    for row, answer in zip(asked.rows, answers, strict=True):
        refused = answer.finish_reason == REFUSED
        score = None if refused else judge_prompts.score_in(answer.text)
        found.append(score)
        if score is None and filter.unparsable == "reject":
            said.append({"row": row, "reason": REQUEST_REFUSED if refused else JUDGE_UNPARSABLE, "detail": answer.text})
            kept.append(False)
        elif score is not None and score < filter.min_score:
            said.append({"row": row, "reason": low, "value": score, "threshold": filter.min_score})
            kept.append(False)
        else:
            kept.append(True)
    rows = table.take(pa.array(asked.rows, pa.int64()))
    columns = [rows[name] for name in ("row_id", "category", "query", "positive")]
    columns += [pa.array([filter.criterion] * len(found), pa.string()), pa.array(found, pa.float32()), pa.array(kept, pa.bool_())]
    return schema.reasons(sorted(said, key=lambda each: int(each["row"]))), pa.table(columns, schema=JUDGED)


def _with_quality(table: pa.Table, rows: Sequence[int], judged: pa.Table, filter: JudgeFilter) -> pa.Table:
    """The table with the judge's quality in place of what was there; rows without a score stay as they are."""
    if filter.criterion != "quality":
        return table
    values = table["quality"].to_pylist()
    for row, score in zip(rows, judged["score"].to_pylist(), strict=True):
        if score is not None:
            values[row] = (score - LOWEST) / (HIGHEST - LOWEST)
    at = table.schema.get_field_index("quality")
    return table.set_column(at, table.schema.field("quality"), pa.array(values, pa.float32()))


def _histogram(judged: pa.Table) -> dict[str, int]:
    """Rows by score, halves and the like rounded down; "none" for answers without one."""
    names = ["none" if score is None else str(int(score)) for score in judged["score"].to_pylist()]
    return dict(sorted(Counter(names).items()))


def _notes(results: Sequence[dict[str, Any]], parameters: Judging) -> dict[str, Any]:
    """What the step notes for the manifest."""
    total, spent = Counter[str](), budgets.Spent()
    for result in results:
        total.update(result["scores"])
        spent = spent.plus(budgets.from_notes(result))
    counts = {name: sum(result[name] for result in results) for name in ("not_written", "graded", "not_drawn", "shortened")}
    return {
        "judged": total.total(),
        "scores": dict(sorted(total.items())),
        "unparsable": total["none"],
        **counts,
        **spent.priced(parameters.engine).notes(),
    }


def _tell(name: str, notes: dict[str, Any], parameters: Judging) -> None:
    """Says what a person should not find out by accident."""
    filter = parameters.filter
    if notes["unparsable"]:
        fate = "are kept without a score" if filter.unparsable == "keep" else "are rejected"
        log.warning(
            "%s: %d of %d answers of '%s' have no score; these rows %s.",
            name,
            notes["unparsable"],
            notes["judged"],
            filter.engine,
            fate,
        )
    known = [score for score in notes["scores"] if score != "none"]
    if len(known) == 1 and notes["judged"] >= _TELLING:
        log.warning(
            "%s: '%s' gives all of %d rows the score %s, so that it tells nothing of them. Take another model.",
            name, filter.engine, notes["judged"] - notes["unparsable"], known[0],
        )  # fmt: skip
    if notes["shortened"]:
        log.info("%s: %d pairs were judged by their first %d characters.", name, notes["shortened"], filter.max_characters)
    if not notes["judged"] and notes["not_written"]:
        log.warning(
            "%s: no row was judged; %d rows were not written by a model. 'rows: all' judges these.", name, notes["not_written"]
        )
