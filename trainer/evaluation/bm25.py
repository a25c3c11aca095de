"""BM25+ beside the models: as mteb searches with it, and for the candidates that models rerank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from datakit.negatives.bm25 import build
from datakit.recipe import Bm25Miner


def document_text(title: str | None, text: str | None) -> str:
    """A document as mteb gives it to models."""
    return f"{title or ''} {text or ''}".strip()


def ranked(queries: Mapping[str, str], corpus: Mapping[str, str], k: int) -> dict[str, dict[str, float]]:
    """By query the scores of the k best documents that share a term with it, by id, best first (k1 1.5, b 0.75, delta 1)."""
    ids = list(corpus)
    index = build(pl.Series(list(corpus.values()), dtype=pl.String), Bm25Miner(type="bm25"))
    hits = index.top(pl.Series(list(queries.values()), dtype=pl.String), min(k, len(ids)))
    return {
        query: {ids[place]: float(score) for place, score in zip(places, scores, strict=True) if place >= 0}
        for query, places, scores in zip(queries, hits.documents, hits.scores, strict=True)
    }


class Bm25Search:
    """What mteb asks of a system that searches (mteb.models.SearchProtocol)."""

    def __init__(self) -> None:
        from mteb.models import ModelMeta

        self.mteb_model_meta = ModelMeta.create_empty({"name": "datakit/bm25+", "revision": "1", "model_type": ["sparse"]})
        self.corpus: dict[str, str] = {}

    def index(self, corpus: Any, **more: Any) -> None:
        """Takes a corpus of mteb: columns id, text and, where documents have them, title."""
        titles = corpus["title"] if "title" in corpus.column_names else [""] * len(corpus)
        self.corpus = {key: document_text(*both) for key, *both in zip(corpus["id"], titles, corpus["text"], strict=True)}

    def search(self, queries: Any, *, top_k: int, **more: Any) -> dict[str, dict[str, float]]:
        """The scores of the `top_k` best documents of each query, by their ids."""
        return ranked(dict(zip(queries["id"], queries["text"], strict=True)), self.corpus, top_k)
