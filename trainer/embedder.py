"""An exported model as a few lines of code use it: texts in, vectors of any trained dimension out."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from datakit import storage
from datakit.errors import UserError

log = logging.getLogger(__name__)


class Embedder:
    """`Embedder.load("models/quickstart/latest/model").encode(["how to open a file"], dim=256)`"""

    def __init__(self, model: Any, dimensions: Sequence[int]) -> None:
        self.model = model  # a SentenceTransformer
        self.dimensions = list(dimensions)  # that were trained, widest first

    @classmethod
    def load(cls, path: str) -> Embedder:
        """Opens a folder that `trainer` exported. Raises UserError where it is none."""
        from sentence_transformers import SentenceTransformer

        from trainer.export import TRAINED
        from trainer.model import quiet

        marker = os.path.join(path, TRAINED)
        if not os.path.isfile(marker):
            raise UserError(f"'{path}' is no model that trainer exported: it has no {TRAINED}. Give models/NAME/latest/model.")
        with quiet():
            return cls(SentenceTransformer(path), storage.read_json(marker)["dimensions"])

    def encode(
        self,
        texts: Sequence[str],
        dim: int | None = None,
        kind: Literal["query", "document"] = "document",
        prompt: str | None = None,
    ) -> np.ndarray:
        """Vectors [len(texts), dim] float32 of norm 1; of all dimensions where `dim` is absent.

        `kind` chooses the prompt that queries or documents had in training; `prompt` is one to use in its place ('' for none).
        Raises UserError where `dim` is above what the model has; one that was not trained is told in the log.
        """
        width = int(self.model.get_embedding_dimension())
        if dim is not None and not 1 <= dim <= width:
            raise UserError(f"dim is {dim}; allowed: 1 to {width}, of which {', '.join(map(str, self.dimensions))} were trained.")
        if dim is not None and dim not in self.dimensions:
            log.warning("Dimension %d was not trained; those that were: %s.", dim, ", ".join(map(str, self.dimensions)))
        chosen = self.model.prompts.get(kind) if prompt is None else prompt
        vectors = self.model.encode(list(texts), prompt=chosen or None, show_progress_bar=False)
        cut = np.asarray(vectors, np.float32).reshape(len(texts), width)[:, :dim]
        return np.asarray(cut / np.linalg.norm(cut, axis=1, keepdims=True).clip(min=1e-12), np.float32)
