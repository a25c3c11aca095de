"""What a build would ask about its rows: judges, a judge that relabels negatives, and the miner that has negatives written.

Each asks once for a row, or a few times. As long as the step before has not run, rows are counted as if nothing dropped any: the
requests are the most that there can be.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from datakit import storage
from datakit.filters import judge, judge_prompts
from datakit.filters.judge import Judging
from datakit.filters.judge_prompts import shortened
from datakit.measured import Measured, measured
from datakit.negatives import adversarial_prompts
from datakit.negatives.adversarial import Writing as Adversarial
from datakit.negatives.labels import OTHER_LABEL
from datakit.negatives.lists import SOURCE
from datakit.negatives.relabel import Relabelling
from datakit.recipe import AnyEngine, JudgeFilter, JudgeRelabel
from datakit.step import Step, is_cached, load
from datakit.synthesis.synthesise import Synthesising, size
from datakit.synthesis.wishes import structured

# Tokens of an answer that is a score, and of a query that is written with a negative, about.
_SCORE, _QUERY = 6, 32

# Rows whose texts tell how long prompts are, about; and shards that they are taken from.
_ROWS, _SHARDS = 512, 8


@dataclass(frozen=True)
class AboutRows:
    """What one step asks of one engine, which the recipe calls `name`.

    `requests` are those that are left: exactly, or else at most. None where files that were not read decide it; `source` is the
    step that has to run first. Tokens are those of one request, `rate` is in requests a second; None where nothing tells.
    `basis` says what the figures go by, "" where nothing is left.
    """

    step: str
    name: str
    engine: AnyEngine
    source: str
    answered: int
    requests: int | None
    exact: bool = True
    prompt_tokens: float | None = None
    completion_tokens: float | None = None
    rate: float | None = None
    basis: str = ""


@dataclass(frozen=True)
class _Asks:
    """A step that asks about the rows of `source`, with what it has of the recipe.

    `others` names the steps of its kind, of which earlier ones may have been measured. A text is cut after `most` characters.
    `judge` is the filter whose prompt is used; None for what writes negatives.
    """

    step: Step
    source: Step
    name: str
    engine: AnyEngine
    others: str
    most: int
    judge: JudgeFilter | None = None


@dataclass(frozen=True)
class _Estimate:
    """Requests that are left, and tokens of one. `bound` and `texts` say what these go by."""

    requests: int
    prompt_tokens: float
    completion_tokens: float
    bound: str
    texts: str


def about_rows(steps: Sequence[Step], cache: str, written: Mapping[str, int]) -> list[AboutRows]:
    """The steps that ask about rows, in order. `written` has the most rows of a synthesise step by its name, where the documents
    are there."""
    return [_about(asks, cache, written) for step in steps if (asks := _asks(step)) is not None]


def _asks(step: Step) -> _Asks | None:
    match step.parameters:
        case Judging(filter=filter, engine=engine):
            return _Asks(step, step.inputs[0], filter.engine, engine, "filter-judge*", filter.max_characters, filter)
        case Adversarial(miner=miner, engine=engine):
            return _Asks(step, step.side[0], miner.engine, engine, "adversarial-*", miner.max_characters)
        case Relabelling(screen=screen, engine=engine) if engine is not None and isinstance(screen.relabel, JudgeRelabel):
            # It asks what a judge of relevance asks.
            name, small = screen.relabel.engine, screen.relabel.small_model
            same = JudgeFilter(type="judge", engine=name, criterion="relevance", small_model=small)
            return _Asks(step, step.inputs[0], name, engine, "relabel-*", screen.relabel.max_characters, same)
    return None


def _about(asks: _Asks, cache: str, written: Mapping[str, int]) -> AboutRows:
    step, known = asks.step, measured(cache, asks.engine, asks.others)
    told = functools.partial(AboutRows, step.name, asks.name, asks.engine, asks.source.name)
    if is_cached(step, cache):
        answered = int(load(step, cache).report.notes["requests"])
        return told(answered, 0, prompt_tokens=0.0, completion_tokens=0.0, rate=known.rate if known else None)
    answered, exact = 0, False
    if isinstance(step.parameters, Judging) and (counts := judge.planned(step, cache)) is not None:
        answered, exact, each = counts["answered"], True, max(1, counts["requests"])
        prompt, completion = counts["prompt_tokens"] / each, counts["completion_tokens"] / each
        found = _Estimate(counts["requests"], prompt, completion, "each row is asked about once.", "Tokens by the texts of all.")
    else:
        rows = rows_at_most(asks.source, cache, written)
        if rows is None:
            return told(0, None)
        found = _estimate(asks, cache, rows)
    prompt, completion, texts = found.prompt_tokens, found.completion_tokens, found.texts
    if known is not None:
        prompt, completion = known.prompt_tokens, known.completion_tokens
        texts = f"Tokens as measured over {known.requests:,} requests of its kind."
    rate, speed = _speed(asks, known, cache)
    basis = f"{step.name}: {found.bound} {texts} {speed}" if found.requests else ""
    return told(answered, found.requests, exact, prompt, completion, rate, basis)


def _speed(asks: _Asks, known: Measured | None, cache: str) -> tuple[float | None, str]:
    """Requests a second, and of what they were. That of synthesis is better than none."""
    for measure, what in ((known, "requests of its kind"), (measured(cache, asks.engine), "requests that wrote texts")):
        if measure is not None and measure.rate is not None:
            return measure.rate, f"Hours at {measure.rate:.3g} requests/s, as measured over {measure.sent:,} {what}."
    return None, "No speed was measured."


def rows_at_most(step: Step, cache: str, written: Mapping[str, int]) -> int | None:
    """Rows that a step gives, at most; None while files that were not read decide it.

    Between synthesis and those that ask, steps drop rows and make none.
    """
    if is_cached(step, cache):
        return load(step, cache).report.counts.out
    if isinstance(step.parameters, Synthesising):
        each = size(step)
        return written.get(step.name, None if each.seeds is None else each.rows(each.seeds))
    # Documents that were read for synthesis are no rows.
    documents = {side.name for source in step.inputs for side in source.side}
    before = [rows_at_most(source, cache, written) for source in step.inputs if source.name not in documents]
    known = [rows for rows in before if rows is not None]
    return sum(known) if known and len(known) == len(before) else None


def _estimate(asks: _Asks, cache: str, rows: int) -> _Estimate:
    """What may be asked about so many rows of the source."""
    requests, bound = _requests(asks, cache, rows)
    texts = _texts(asks.source, cache)
    by = f"Tokens by the texts of {len(texts):,} rows that are there."
    if not texts:
        # Nothing is known of the texts but where the recipe has them cut.
        texts = [("x" * asks.most, "x" * asks.most, "")]
        by = f"Tokens at most, for texts of {asks.most:,} characters (max_characters)."
    asked = [_tokens(asks, *each) for each in texts]
    prompt, completion = (sum(tokens) / len(asked) for tokens in zip(*asked, strict=True))
    return _Estimate(requests, prompt, min(completion, asks.engine.max_tokens), bound, by)


def _requests(asks: _Asks, cache: str, rows: int) -> tuple[int, str]:
    """The most requests about so many rows, and what that is the bound of."""
    source, there = asks.source, is_cached(asks.source, cache)
    have = f"the {rows:,} rows that '{source.name}' {'has' if there else 'can have, if nothing is dropped before'}"
    match asks.step.parameters:
        case Judging(filter=filter):
            return _share(rows, filter.share), f"one request for each of {have}{_drawn(filter.share)}."
        case Adversarial(miner=miner):
            each = miner.per_query * len(set(miner.writes))
            bound = f"{each} for each of {have}{_drawn(miner.share)}; equal rows are asked about once."
            return _share(rows * each, miner.share), bound
        case Relabelling(screen=screen, per_query=per_query):
            unseen = [OTHER_LABEL] if screen.source else [OTHER_LABEL, SOURCE]
            if there:
                miners = load(source, cache).report.notes["miners"]
                taken = sum(counts["taken"] for miner, counts in miners.items() if miner not in unseen)
                return taken, f"one request for each negative that '{source.name}' kept."
            assert screen.relabel is not None
            each = max(per_query, screen.relabel.candidates)
            more = "; where the data had more negatives than that, they come on top" if screen.source else ""
            return rows * each, f"{each} negatives of each of {have}{more}."
    raise AssertionError(asks.step.name)


def _share(number: int, share: float) -> int:
    return math.ceil(round(number * share, 6))


def _drawn(share: float) -> str:
    return "" if share == 1 else f", of which a share of {share:g} is drawn, give or take chance"


def _tokens(asks: _Asks, query: str, positive: str, instruction: str) -> tuple[float, float]:
    """Tokens of a prompt about a row with these texts, and of its answer. A negative is taken to be as long as the positive."""
    query, positive, form = shortened(query, asks.most), shortened(positive, asks.most), structured(asks.engine)
    if isinstance(asks.step.parameters, Adversarial):
        miner = asks.step.parameters.miner
        pair = adversarial_prompts.Pair(query=query, positive=positive, instruction=instruction)
        prompts = [adversarial_prompts.load(kind, miner.small_model) for kind in dict.fromkeys(miner.writes)]
        said = [prompt.conversation(pair, 0, 0, form) for prompt in prompts]
        queries = sum("query" in prompt.head.fields for prompt in prompts) / len(prompts)
        completion = len(positive) / 4 + queries * _QUERY
    else:
        assert asks.judge is not None
        judged = judge_prompts.Pair(query=query, positive=positive, instruction=instruction)
        said = judge_prompts.load(asks.judge).conversations([judged], 0, form)
        completion = _SCORE
    return sum(len(message.content) for each in said for message in each.messages) / 4 / len(said), completion


def _texts(step: Step, cache: str) -> list[tuple[str, str, str]]:
    """Query, positive and instruction of some rows of a step, spread over them; of the steps before it while it has none."""
    if not is_cached(step, cache):
        return [texts for source in step.inputs for texts in _texts(source, cache)]
    shards = load(step, cache).shards
    shards = shards[:: -(-len(shards) // _SHARDS) or 1]
    found = list[tuple[str, str, str]]()
    for shard in shards:
        table = storage.read_table(shard, ["query", "positive", "instruction"])
        places = np.arange(0, table.num_rows, -(-table.num_rows * len(shards) // _ROWS) or 1)
        some = table.take(places).to_pylist()
        found += [(row["query"] or "", row["positive"] or "", row["instruction"] or "") for row in some]
    return found
