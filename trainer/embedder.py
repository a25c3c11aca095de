"""An exported model as a few lines of code use it: texts in, vectors of any trained dimension out."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from datakit.errors import UserError

log = logging.getLogger(__name__)


class Embedder:
    """`Embedder.load("models/quickstart/latest/model").encode(["how to open a file"], dim=256)`"""

    def __init__(self, model: Any, dimensions: Sequence[int], heads: Mapping[str, Any] | None = None) -> None:
        self.model = model  # a SentenceTransformer
        self.dimensions = list(dimensions)  # that were trained, widest first; none where merged models share none
        self.heads = dict(heads or {})  # by objective, where some were trained

    @classmethod
    def load(cls, path: str) -> Embedder:
        """Opens a folder that `trainer` exported. Raises UserError where it is none."""
        from trainer import heads
        from trainer.evaluation.retrieval import load
        from trainer.export import TRAINED, trained

        if not os.path.isfile(os.path.join(path, TRAINED)):
            raise UserError(f"'{path}' is no model that trainer exported: it has no {TRAINED}. Give models/NAME/latest/model.")
        dimensions = trained(path)
        return cls(load(path), dimensions, heads.load(path))

    def encode(
        self,
        texts: str | Sequence[str],
        dim: int | None = None,
        kind: Literal["query", "document"] = "document",
        prompt: str | None = None,
        head: str | None = None,
    ) -> np.ndarray:
        """Vectors [len(texts), dim] float32 of norm 1; of all dimensions where `dim` is absent. One vector [dim] of a lone text.

        `kind` chooses the prompt that queries or documents had in training; `prompt` is one to use in its place ('' for none).
        `head` is the objective whose head the vectors go through, where the model has heads; none when absent.
        Raises UserError where `dim` is above what the model has, or it lacks the head. A dimension that was not trained is told
        in the log.
        """
        from trainer.heads import through

        if isinstance(texts, str):
            vector: np.ndarray = self.encode([texts], dim, kind, prompt, head)[0]
            return vector
        width, known = int(self.model.get_embedding_dimension()), ", ".join(map(str, self.dimensions)) or "none"
        if dim is not None and not 1 <= dim <= width:
            raise UserError(f"dim is {dim}; allowed: 1 to {width}, of which {known} were trained.")
        if dim is not None and dim not in self.dimensions:
            log.warning("Dimension %d was not trained; those that were: %s.", dim, known)
        if head is not None and head not in self.heads:
            raise UserError(f"There is no head '{head}'; the model has: {', '.join(self.heads) or 'none'}.")
        chosen = self.model.prompts.get(kind) if prompt is None else prompt
        vectors = self.model.encode(list(texts), prompt=chosen or None, show_progress_bar=False)
        whole = through(self.heads.get(head or ""), np.asarray(vectors, np.float32).reshape(len(texts), width))
        cut = whole[:, :dim]
        return np.asarray(cut / np.linalg.norm(cut, axis=1, keepdims=True).clip(min=1e-12), np.float32)
