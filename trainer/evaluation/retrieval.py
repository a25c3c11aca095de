"""Retrieval on a build's validation split: nDCG@10 of its queries against its own corpus, for any model and for BM25."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel

from datakit.assets import locate
from datakit.errors import UserError
from datakit.opened import Build
from datakit.schema import digest, text_id
from trainer.config import Objective
from trainer.data import part_files, usable_blocks
from trainer.evaluation.similarity import Pairs, load_pairs, spearman
from trainer.model import Encoder, first_line, quiet
from trainer.objectives import those_of

METRIC = "ndcg@10"
CUTOFF = 10
BLOCK = 512


@dataclass(frozen=True)
class Task:
    """Q queries against N documents. A query that stands in several categories is asked in each."""

    queries: list[tuple[str, str | None]]
    documents: list[tuple[str, str | None]]
    relevant: list[np.ndarray]
    categories: list[str]
    candidates: list[np.ndarray | None]  # the only documents that are ranked, for rows without in-batch negatives
    skipped: int  # queries with nothing to rank their positives against
    pairs: Pairs | None  # the graded rows, where there are some


class CategoryResult(BaseModel):
    score: float
    rows: int


class Result(BaseModel):
    """nDCG@10: the mean over all queries, and by category. Spearman's correlation on graded rows, where there are some."""

    score: float
    categories: dict[str, CategoryResult]
    spearman: float | None = None


def load_task(
    build: Build,
    most_queries: int | None = None,
    most_documents: int | None = None,
    objective: Mapping[str, Objective] | None = None,
) -> Task:
    """The validation rows of a build, of one objective where it is given: the corpus is all their positives and negatives.

    With limits: the queries, and beside their positives the documents, of the lowest digests.

    Every positive of an equal query is relevant. Where a row wants no in-batch negatives (classification), only its own positives
    and negatives are ranked. Queries and documents go by id, so that ties favour nobody.
    """
    documents: dict[str, tuple[str, str | None]] = {}
    queries: dict[tuple[str, str], tuple[str, str | None]] = {}
    positives: dict[str, set[str]] = {}
    limited: dict[tuple[str, str], set[str]] = {}
    files = part_files(build, "validation")
    for block in usable_blocks(files):
        for row in those_of(block, objective or {}).to_pylist():
            query = row["query_id"] or text_id(row["query"])
            place = (row["category"], query)
            queries.setdefault(place, (row["query"], row["instruction"]))
            negatives = [(each["id"], each["text"]) for each in row["negatives"] or [] if each and each["text"]]
            texts = [(row["positive_id"], row["positive"]), *negatives]
            ids = [key or text_id(text) for key, text in texts]
            documents |= {key: (text, row["document_instruction"]) for key, (_, text) in zip(ids, texts, strict=True)}
            positives.setdefault(query, set()).add(ids[0])
            if row["in_batch_negatives"] is False:
                limited.setdefault(place, set()).update(ids)
    places = [place for place in sorted(queries) if place not in limited or not limited[place] <= positives[place[1]]]
    skipped = len(queries) - len(places)
    places = sorted(sorted(places, key=lambda place: digest("queries", *place))[:most_queries])
    if not places:
        raise UserError(
            f"The build '{build.path}' has no query in 'validation' that can be ranked. Build it with a larger split."
        )
    needed = {key for place in places for key in positives[place[1]]}
    others = sorted((key for key in documents if key not in needed), key=lambda key: digest("documents", key))
    if most_documents is not None:
        others = others[: max(0, most_documents - len(needed))]
    corpus = sorted([*needed, *others])
    number = {key: position for position, key in enumerate(corpus)}

    def numbers(ids: set[str]) -> np.ndarray:
        return np.array(sorted(number[key] for key in ids if key in number), np.int64)

    return Task(
        queries=[queries[place] for place in places],
        documents=[documents[key] for key in corpus],
        relevant=[numbers(positives[place[1]]) for place in places],
        categories=[place[0] for place in places],
        candidates=[numbers(limited[place] | positives[place[1]]) if place in limited else None for place in places],
        skipped=skipped,
        pairs=load_pairs(files),
    )


def ndcg(scores: np.ndarray, relevant: np.ndarray, cutoff: int = CUTOFF) -> float:
    """nDCG@cutoff of scores [N] with binary relevance (Järvelin & Kekäläinen 2002): gain 1, discount log2(rank + 1).

    Equal scores are ranked by position. Documents at -inf are not ranked.
    """
    order = np.argsort(-scores, kind="stable")[:cutoff]
    order = order[np.isfinite(scores[order])]
    discounts = 1.0 / np.log2(np.arange(2, cutoff + 2))
    gains = discounts[: len(order)][np.isin(order, relevant)].sum()
    return float(gains / discounts[: min(cutoff, len(relevant))].sum())


def by_query(task: Task, blocks: Iterator[np.ndarray]) -> list[float]:
    """nDCG@10 of each query, of scores that come in blocks of rows [.., N], in the order of the queries."""
    values: list[float] = []
    for block in blocks:
        for scores in block:
            place = len(values)
            if (own := task.candidates[place]) is not None:
                scores = np.where(np.isin(np.arange(len(scores)), own), scores, -np.inf)
            values.append(ndcg(scores, task.relevant[place]))
    return values


def result(task: Task, blocks: Iterator[np.ndarray]) -> Result:
    """The result of scores that come in blocks of rows [.., N], in the order of the queries."""
    values = by_query(task, blocks)
    by_category: dict[str, list[float]] = {}
    for category, value in zip(task.categories, values, strict=True):
        by_category.setdefault(category, []).append(value)
    return Result(
        score=float(np.mean(values)),
        categories={
            name: CategoryResult(score=float(np.mean(found)), rows=len(found)) for name, found in sorted(by_category.items())
        },
    )


def evaluate_vectors(task: Task, queries: np.ndarray, documents: np.ndarray, dimensions: Sequence[int]) -> dict[int, Result]:
    """The result at each dimension: vectors [Q, d] and [N, d] cut to their first components, cosine."""
    return {dimension: result(task, cosines(queries, documents, dimension)) for dimension in dimensions}


def cosines(queries: np.ndarray, documents: np.ndarray, dimension: int) -> Iterator[np.ndarray]:
    """Cosines in blocks of rows [.., N], of vectors [Q, d] and [N, d] cut to their first components."""
    q, d = unit(queries[:, :dimension]), unit(documents[:, :dimension])
    return (q[start : start + BLOCK] @ d.T for start in range(0, len(q), BLOCK))


def measure(encoder: Encoder, task: Task, dimensions: Sequence[int]) -> dict[int, Result]:
    """The result of a model that is trained, at each dimension."""
    queries = encoder.embed([encoder.query_text(text, instruction) for text, instruction in task.queries])
    documents = encoder.embed([encoder.document_text(text, instruction) for text, instruction in task.documents])
    results = evaluate_vectors(task, queries, documents, dimensions)
    if task.pairs is not None:
        left = encoder.embed([encoder.query_text(text, instruction) for text, instruction in task.pairs.queries])
        right = encoder.embed([encoder.document_text(text, instruction) for text, instruction in task.pairs.documents])
        for dimension, found in results.items():
            cosines = (unit(left[:, :dimension]) * unit(right[:, :dimension])).sum(1)
            found.spearman = spearman(cosines, task.pairs.scores)
    return results


def unit(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-12), np.float32)


def evaluate_bm25(task: Task) -> Result:
    """BM25 (bm25s, k1 1.5, b 0.75, words in lower case) on the bare texts."""
    import bm25s

    def words(texts: list[tuple[str, str | None]]) -> list[list[str]]:
        found = bm25s.tokenize([text for text, _ in texts], stopwords=None, return_ids=False, show_progress=False)
        return [list(each) for each in found]

    index = bm25s.BM25(k1=1.5, b=0.75)
    index.index(words(task.documents), show_progress=False)
    scores = (index.get_scores(query) if query else np.zeros(len(task.documents)) for query in words(task.queries))
    return result(task, (row[None, :] for row in scores))


def load(name: str) -> Any:
    """A sentence-transformers model. Raises UserError where it cannot be had."""
    from sentence_transformers import SentenceTransformer

    try:
        with quiet():
            model = SentenceTransformer(locate(name))
    except UserError:
        raise
    except Exception as error:  # broken files raise all kinds, that of tokenizers is Exception itself
        raise UserError(f"The encoder '{name}' could not be loaded: {first_line(error)}") from error
    if getattr(tokenizer := model.tokenizer, "pad_token", "") is None:
        # As for a base of ours: padding is never seen, so that any token does.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        if tokenizer.pad_token is None:
            raise UserError(f"The tokenizer of the encoder '{name}' has no token for padding, end or unknown.")
    return model


def check_dimensions(name: str, width: int, dimensions: Sequence[int]) -> None:
    """Raises UserError where vectors of the model cannot be cut to one of the dimensions."""
    if wrong := [each for each in dimensions if not 1 <= each <= width]:
        raise UserError(f"Dimension {max(wrong)} is not in the model '{name}'; allowed: 1 to {width}.")


def evaluate_encoder(task: Task, name: str, dimensions: Sequence[int] = ()) -> dict[int, Result]:
    """Any sentence-transformers model with its own prompts; at its own dimension where none is given."""
    queries, documents = encoded(task, name, dimensions)
    return evaluate_vectors(task, queries, documents, dimensions or [queries.shape[1]])


def encoded(task: Task, name: str, dimensions: Sequence[int] = ()) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of queries [Q, d] and documents [N, d] by a sentence-transformers model, d not below any of `dimensions`."""
    model = load(name)
    check_dimensions(name, int(model.get_embedding_dimension() or 0), dimensions)
    return embed_task(model, task)


def embed_task(model: Any, task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of queries [Q, d] and documents [N, d] by a sentence-transformers model that is loaded."""
    queries = embed_queries(model, [text for text, _ in task.queries], task.categories)
    documents = model.encode_document([text for text, _ in task.documents], show_progress_bar=False)
    return queries, np.asarray(documents)


def embed_queries(model: Any, texts: Sequence[str], categories: Sequence[str]) -> np.ndarray:
    """Vectors [n, d] float32 of n queries, each with the prompt of its category where a sentence-transformers model has one."""
    # A model of ours has a prompt for each category; another may have one for all queries, or none.
    prompts = [model.prompts.get(category, model.prompts.get("query", "")) for category in categories]
    vectors = np.zeros((len(prompts), int(model.get_embedding_dimension())), np.float32)
    for prompt in sorted(set(prompts)):
        places = [place for place, each in enumerate(prompts) if each == prompt]
        vectors[places] = model.encode([texts[place] for place in places], prompt=prompt, show_progress_bar=False)
    return vectors
