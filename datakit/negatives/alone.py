"""`datakit mine` and `datakit.mine`: hard negatives for queries and a corpus, without a build. The steps are those of a build."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl
import pyarrow as pa
from pydantic import ValidationError

from datakit import storage
from datakit.assets import Assets
from datakit.cleaning import screened
from datakit.encoders.embed import embed_step
from datakit.errors import UserError
from datakit.executor import make
from datakit.negatives.mine import mine_step
from datakit.negatives.outside import outside_step, titled
from datakit.progress import BuildWatcher
from datakit.recipe import AnyDedup, AnyEngine, AnyFilter, Budget, Encoder, Model, Negatives, OutsideCorpus
from datakit.schema import content_id, digest, rows, text_id
from datakit.step import Output, Step, Work, count_categories, run, write_rows

VERSION = 1

# Miners that need neither a language model nor classes, in the order in which they give when their quotas are equal.
MINERS = ("bm25", "dense", "entities", "other_cluster", "random")
_ENCODED = ("dense", "other_cluster")

_CATEGORY = "rows"
_TELLING = ("mine", "screen", "relabel")
# Texts from outside, which are at hand: nothing is read by a source.
_OUTSIDE = OutsideCorpus.model_construct(sources=[])
_SHARD_ROWS = 65_536

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Mined:
    """What was mined. `rows` has one row for each query and known positive: query_id, query, positive_id, positive, negatives (a
    list of id, text, miner, score, difficulty). `notes` are what the steps count, by the name of the step."""

    rows: pl.DataFrame
    notes: Mapping[str, Mapping[str, Any]]

    def triplets(self) -> pl.DataFrame:
        """query, positive, negative: a row for each negative."""
        flat = self.rows.explode("negatives").drop_nulls("negatives")
        return flat.select("query", "positive", negative=pl.col("negatives").struct.field("text"))

    def n_tuples(self, number: int) -> pl.DataFrame:
        """query, positive, negative_1 to negative_`number`: rows with fewer negatives are left out."""
        texts = pl.col("negatives").list.eval(pl.element().struct.field("text"))
        full = self.rows.filter(pl.col("negatives").list.len() >= number)
        return full.select("query", "positive", *(texts.list.get(at).alias(f"negative_{at + 1}") for at in range(number)))


def mine(
    queries: pl.DataFrame,
    corpus: pl.DataFrame | None = None,
    *,
    qrels: pl.DataFrame | None = None,
    miners: Sequence[str] = ("bm25", "dense"),
    quota: Mapping[str, float] | None = None,
    encoder: str | Encoder | None = None,
    per_query: int = 8,
    depth: int = 100,
    margin: float | None = 0.95,
    absolute_margin: float | None = None,
    max_score: float | None = None,
    ranks: tuple[int, int] | None = None,
    paraphrase: float | None = 0.95,
    cross_encoder: str | Mapping[str, Any] | None = None,
    cache: str | None = None,
    workers: int | None = 1,
    watcher: BuildWatcher | None = None,
) -> Mined:
    """Mines hard negatives for queries with known positives, and screens them.

    `queries` has `query` (or `text`), and either `positive` (a text, or a list of texts), or `id` with `qrels`: query-id,
    corpus-id, score (positive where above 0; all without it). `corpus` has `text`, and may have `title` and `id`; without one the
    positives are the corpus. `miners` are of bm25, dense, entities, other_cluster, random; `quota` says how they share
    `per_query`. `encoder` is a folder, a name on the Hub, or package:NAME/FOLDER, or an `Encoder`; it searches and screens.
    Without one nothing is screened but equal texts, and `dense` is refused.

    `margin` to `paraphrase` are the keys of a recipe's `screen` (`max_score` is `ceiling` there). They correspond to
    relative_margin = 1 - margin, absolute_margin, max_score, range_min and range_max of sentence-transformers'
    mine_hard_negatives; here they look at all known positives of a query. `cross_encoder` relabels: a model, or the keys of
    `relabel: {type: cross_encoder}`.

    `cache` keeps the steps, so that another margin mines nothing anew. Raises UserError for what the caller can mend.
    """
    table, known = _rows(queries, corpus, qrels)
    given = _negatives(
        miners, quota, encoder, per_query, depth,
        {
            "margin": margin, "absolute_margin": absolute_margin, "ceiling": max_score, "ranks": ranks, "paraphrase": paraphrase,
            "relabel": _relabel(cross_encoder),
        },
    )  # fmt: skip
    encoders = {"encoder": _encoder(encoder)} if encoder is not None else {}
    folder = cache or tempfile.mkdtemp(prefix="datakit-mine-")
    place = make("local", workers=workers)
    try:
        steps = _steps(table, known, given, encoders, Assets(folder))
        outputs = []
        for number, step in enumerate(steps, start=1):
            if watcher is not None:
                watcher.begin(step.name, number, len(steps))
            output, seconds, cached = run(step, folder, place, watcher or _quiet())
            if watcher is not None:
                watcher.end(output.report, seconds, cached)
            outputs.append(output)
        return _told(steps, outputs)
    finally:
        place.close()
        if cache is None:
            shutil.rmtree(folder, ignore_errors=True)


def _quiet() -> BuildWatcher:
    from datakit.progress import QUIET

    return QUIET


def _encoder(encoder: str | Encoder) -> Encoder:
    return encoder if isinstance(encoder, Encoder) else Encoder.model_validate({"model": encoder})


def _relabel(cross_encoder: str | Mapping[str, Any] | None) -> dict[str, Any] | None:
    if cross_encoder is None:
        return None
    keys = {"model": cross_encoder} if isinstance(cross_encoder, str) else dict(cross_encoder)
    return {"type": "cross_encoder", **keys}


def _negatives(
    miners: Sequence[str],
    quota: Mapping[str, float] | None,
    encoder: str | Encoder | None,
    per_query: int,
    depth: int,
    screen: Mapping[str, Any],
) -> Negatives:
    """The section `negatives` of a recipe that says the same."""
    for name in miners:
        if name not in MINERS:
            raise UserError(f"There is no miner '{name}' here. Allowed: {', '.join(MINERS)}.")
        if name in _ENCODED and encoder is None:
            raise UserError(f"The miner '{name}' needs an encoder: a folder, the name of a model, or package:NAME/FOLDER.")
    if encoder is None and screen["relabel"] is not None:
        raise UserError("A cross-encoder reads what passed the screen of an encoder; give an encoder too.")
    if encoder is None and any(screen[name] is not None for name in ("absolute_margin", "ceiling", "ranks")):
        raise UserError("absolute_margin, max_score and ranks are about the screen of an encoder; give an encoder too.")
    if encoder is None:
        log.warning("Without an encoder negatives are not screened, but for texts that are equal to a positive.")
    listed = [
        {"type": name, **({} if name == "random" else {"depth": depth}), **({"encoder": "encoder"} if name in _ENCODED else {})}
        for name in miners
    ]
    given = {"miners": listed, "per_query": per_query, "quota": quota}
    try:
        return Negatives.model_validate({**given, "screen": {"encoder": "encoder", **screen} if encoder is not None else None})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(each) for each in first["loc"])
        raise UserError(f"'{where}' is {first['input']}: {first['msg']}.") from error


def _rows(queries: pl.DataFrame, corpus: pl.DataFrame | None, qrels: pl.DataFrame | None) -> tuple[pa.Table, pl.DataFrame | None]:
    """The rows (EXAMPLE) of queries and their known positives; and the corpus: title, text."""
    text = _column(queries, "queries", "query", "text")
    asked = queries.with_row_index("_number").with_columns(_query=pl.col(text).cast(pl.String))
    documents = None
    if corpus is not None:
        title = pl.col("title").cast(pl.String) if "title" in corpus.columns else pl.lit(None, pl.String)
        documents = corpus.select(
            title=title, text=pl.col(_column(corpus, "corpus", "text", "document", "positive")).cast(pl.String)
        )
    if qrels is not None:
        pairs = _judged(asked, corpus, documents, qrels)
    elif "positive" in asked.columns:
        pairs = asked.select("_number", "_query", _positive="positive")
        if isinstance(pairs.schema["_positive"], pl.List):
            pairs = pairs.explode("_positive")
    else:
        raise UserError(
            f"The queries have no column 'positive' (they have: {', '.join(queries.columns)}), and there are no qrels. "
            "Known positives are what negatives are screened against: name their column, or give qrels."
        )
    pairs = pairs.with_columns(pl.col("_query", "_positive").str.normalize("NFC"))
    full = pairs.filter((pl.col("_query").str.strip_chars() != "") & (pl.col("_positive").str.strip_chars() != ""))
    without = len(asked) - full.get_column("_number").n_unique()
    if without:
        log.warning("%d of %d queries have no text or no known positive, and are left out.", without, len(asked))
    if full.is_empty():
        raise UserError("No query has a known positive.")
    distinct = full.unique(["_query", "_positive"], keep="first", maintain_order=True)
    return rows([_row(query, positive) for query, positive in distinct.select("_query", "_positive").iter_rows()]), documents


def _row(query: str, positive: str) -> dict[str, Any]:
    return {
        "row_id": digest("mine", query, positive),
        "content_id": content_id(_CATEGORY, query, positive),
        "query_id": text_id(query),
        "positive_id": text_id(positive),
        "document_id": text_id(positive),
        "category": _CATEGORY,
        "task": "retrieval",
        "query": query,
        "positive": positive,
        "in_batch_negatives": True,
    }


def _column(frame: pl.DataFrame, what: str, *names: str) -> str:
    for name in names:
        if name in frame.columns:
            return name
    raise UserError(f"The {what} have none of the columns {', '.join(names)}. They have: {', '.join(frame.columns)}.")


def _judged(
    asked: pl.DataFrame, corpus: pl.DataFrame | None, documents: pl.DataFrame | None, qrels: pl.DataFrame
) -> pl.DataFrame:
    """_number, _query, _positive by the judgements."""
    if corpus is None or documents is None:
        raise UserError("qrels name texts of a corpus; give one.")
    query = _column(qrels, "qrels", "query-id", "query_id")
    text = _column(qrels, "qrels", "corpus-id", "corpus_id")
    relevant = qrels.filter(pl.col("score").cast(pl.Float64) > 0) if "score" in qrels.columns else qrels
    relevant = relevant.select(_query_id=pl.col(query).cast(pl.String), _text_id=pl.col(text).cast(pl.String))
    asked_by = asked.with_columns(_query_id=pl.col(_column(asked, "queries", "_id", "id", "query_id")).cast(pl.String))
    texts = documents.select(
        _positive=titled(),
        _text_id=corpus.get_column(_column(corpus, "corpus", "_id", "id", "corpus_id")).cast(pl.String),
    )
    # The order of the rows is part of their digest.
    found = asked_by.join(relevant, on="_query_id", maintain_order="left_right")
    found = found.join(texts, on="_text_id", maintain_order="left_right")
    if found.is_empty():
        raise UserError("No judgement names a query and a text that are there: look at the ids of queries, corpus and qrels.")
    return found.select("_number", "_query", "_positive")


class Given(Model):
    """What decides the rows that are given: their digest."""

    contents: str


@dataclass(frozen=True)
class _Rows:
    table: pa.Table

    def __call__(self, work: Work) -> None:
        results = []
        for number, start in enumerate(range(0, self.table.num_rows, _SHARD_ROWS)):
            folder = storage.join(work.folder, "rows", f"{number:05d}")
            some = self.table.slice(start, _SHARD_ROWS)
            results.append(write_rows(folder, kept=[("rows", some)], created=count_categories(some)))
        work.finish("rows", results)


@dataclass(frozen=True)
class _Documents:
    texts: pl.DataFrame

    def __call__(self, work: Work) -> None:
        files = []
        for number, start in enumerate(range(0, len(self.texts), _SHARD_ROWS)):
            files.append(f"documents/{number:05d}.parquet")
            some = self.texts[start : start + _SHARD_ROWS].to_arrow()
            storage.write_table(storage.join(work.folder, files[-1]), some)
        work.notes |= {"files": files, "documents": len(self.texts)}
        work.finish(None)


def _digest(frame: pl.DataFrame) -> str:
    """Of all values, in their order."""
    columns = [digest(name, *("" if value is None else str(value) for value in frame.get_column(name))) for name in frame.columns]
    return digest(*columns)


def _steps(
    table: pa.Table, documents: pl.DataFrame | None, negatives: Negatives, encoders: Mapping[str, Encoder], assets: Assets
) -> list[Step]:
    steps = [Step("given", VERSION, _Rows(table), Given(contents=_digest(pl.DataFrame(table.select(["row_id"])))))]
    rows_, outside = steps[0], None
    if documents is not None:
        texts = documents.filter(pl.col("text").is_not_null())
        steps.append(Step("documents", VERSION, _Documents(texts), Given(contents=_digest(texts))))
        steps.append(outside_step("corpus", (steps[-1],)))
        outside = steps[-1]
        negatives = negatives.model_copy(update={"corpus": _OUTSIDE})
    seen: dict[str, Step] = {}
    for name, encoder in encoders.items():
        steps.append(embed_step(f"embed-{name}", encoder, tuple(step for step in (rows_, outside) if step is not None), assets))
        seen[name] = steps[-1]
    searched = any(getattr(miner, "encoder", None) for miner in negatives.miners)
    mined = mine_step(negatives, (rows_,), {name: (step,) for name, step in seen.items()} if searched else None, outside)
    steps.append(mined)
    screened(negatives, _Wanted(encoders), mined, steps, lambda name, rows: seen[name], assets)
    assets.save()
    return steps


@dataclass(frozen=True)
class _Wanted:
    """What a recipe says to `screened`."""

    encoders: Mapping[str, Encoder]
    engines: Mapping[str, AnyEngine] = field(default_factory=dict)
    filters: Sequence[AnyFilter] = ()
    dedup: Sequence[AnyDedup] = ()
    budget: Budget = field(default_factory=Budget)
    seed: int = 0


def _told(steps: Sequence[Step], outputs: Sequence[Output]) -> Mined:
    """The rows of the last step, and what the steps note of negatives."""
    tables = [
        storage.read_table(shard, ["query_id", "query", "positive_id", "positive", "negatives"]) for shard in outputs[-1].shards
    ]
    notes = {step.name: output.report.notes for step, output in zip(steps, outputs, strict=True) if step.name in _TELLING}
    return Mined(pl.DataFrame(pa.concat_tables(tables)), notes)
