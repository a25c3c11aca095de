"""An index that was made: queries in, the nearest passages out."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from datakit import storage
from datakit.assets import Assets, locate
from datakit.encoders import encode
from datakit.encoders.vectors import Array
from datakit.errors import UserError
from trainer.evaluation.retrieval import unit
from trainer.search import stages
from trainer.search.indexing import encoder
from trainer.search.passages import BLOCK, Passage, opened
from trainer.search.settings import PASSAGES, SETTINGS, VECTORS, Settings


class Hits(NamedTuple):
    """Of Q queries: the numbers of the best passages and their scores [Q, k], best first; equal scores by number.

    Where HNSW reached fewer than k, the rest are -1 with scores of -inf.
    """

    ids: Array
    scores: Array


class Index:
    """`Index.open("handbook.index").search(["how do I reset it"])`. Not for several threads at once."""

    def __init__(self, found: Any, settings: Settings, folder: str, model: str | None = None) -> None:
        self._stages, self._exact = found, stages.exact(found)
        # Making them takes as long as a tenth of a search.
        self._parameters = functools.cache(functools.partial(stages.parameters, found))
        self.settings = settings
        self.folder = folder
        self.model = model or settings.job.model

    @classmethod
    def open(cls, folder: str, model: str | None = None) -> Index:
        """Opens a folder that `build` made; `model` is where its model lies now, if not where it was.

        Raises UserError where it is none, MissingExtra without faiss. The model is looked at when the first text is encoded.
        """
        stages.library()
        path = storage.join(folder, SETTINGS)
        try:
            settings = Settings.model_validate(storage.read_json(path))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UserError(
                f"'{folder}' is no index: it has no {SETTINGS}. `trainer search index MODEL PATH... --output {folder}` makes "
                "one, and goes on with one that was not finished."
            ) from error
        except ValueError as error:
            raise UserError(f"'{path}' was not written by this version of trainer. Make the index again.") from error
        opened(os.path.join(folder, PASSAGES))  # before a query is asked, and shown
        return cls(stages.read(os.path.join(folder, VECTORS)), settings, folder, model)

    def __len__(self) -> int:
        return self.settings.passages

    def search(
        self, queries: Sequence[str] | Array, top: int = 10, shortlist: int = 200, full: bool = False, exact: bool = False
    ) -> Hits:
        """The `top` passages of each query (texts, or vectors [Q, d]): Hits of [Q, min(top, passages)].

        `shortlist` is how many passages the first dimensions choose for all dimensions to rank. `exact`: an index with HNSW
        compares the first dimensions of all passages all the same. `full`: all dimensions of all passages are compared.
        """
        if not 1 <= top <= shortlist:
            raise UserError(f"top is {top} and the shortlist {shortlist}; allowed: 1 <= top <= shortlist.")
        vectors = unit(queries) if isinstance(queries, np.ndarray) else self.encode(queries)
        if vectors.ndim != 2 or vectors.shape[1] != self.settings.dimensions:
            raise UserError(f"Vectors of {self.settings.dimensions} dimensions are needed, and the array is {vectors.shape}.")
        top = min(top, len(self))
        if full or shortlist >= len(self):
            scores, ids = stages.full(self._stages).search(vectors, top)
        else:
            chosen, told = (self._exact, None) if exact else (self._stages, self._parameters(shortlist))
            # The whole shortlist comes back ranked: IndexRefine would take its size as a factor of `top`, rounded.
            scores, ids = chosen.search(vectors, shortlist, params=told)
            scores, ids = scores[:, :top], ids[:, :top]
        scores[ids < 0] = -np.inf
        row, order = np.arange(len(ids))[:, None], np.lexsort((ids, -scores))
        return Hits(ids[row, order], scores[row, order])

    def encode(self, queries: Sequence[str]) -> Array:
        """Vectors [Q, d] of queries, as the model encodes queries. Raises UserError where the model is gone or has changed."""
        # Arguments of a command may hold bytes that are no UTF-8.
        texts = [query.encode(errors="replace").decode() for query in ([queries] if isinstance(queries, str) else queries)]
        return encode.encode(self._encoder, "query", texts)

    @functools.cached_property
    def _encoder(self) -> Any:
        name, model = f"The index '{self.folder}'", locate(self.model)
        if os.path.isabs(model) and not os.path.exists(model):
            raise UserError(f"{name} was made with the model '{model}', which is not there any more. Give --model its new place.")
        if Assets(self.folder).digest(self.model) != self.settings.job.model_digest:
            raise UserError(
                f"{name} was made with another model than '{self.model}' is now: its files have changed. "
                "Make the index again, or give --model the one that it was made with."
            )
        return encoder(self.model)

    def passages(self, ids: Sequence[int] | Array) -> list[Passage]:
        """The passages of some numbers, in their order."""
        places = [divmod(int(each), BLOCK) for each in ids]
        return [Passage(*self._texts.read_row_group(group).slice(row, 1).to_pylist()[0].values()) for group, row in places]

    @functools.cached_property
    def _texts(self) -> Any:
        return opened(os.path.join(self.folder, PASSAGES))
