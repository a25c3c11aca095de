"""A sentence encoder: texts to vectors of length 1, the same for the same list of texts."""

from __future__ import annotations

import functools
import logging
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from datakit.assets import locate
from datakit.encoders.vectors import Array, Role
from datakit.errors import UserError
from datakit.recipe import Encoder

# What decides the last bits of a vector besides the model's own files.
PACKAGES = ("sentence-transformers", "tokenizers", "torch", "transformers")

log = logging.getLogger(__name__)

_WEIGHTS = (".safetensors", ".bin", ".onnx")


@functools.lru_cache(maxsize=1)
def load(encoder: Encoder) -> Any:
    """The SentenceTransformer that `encoder` names, in float32. It stays loaded until another one is asked for, or `cache_clear`.

    A folder that is not there, has no weights or is no model, and a name that cannot be found, are a UserError.
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging as transformers_logging

    # datakit shows its own progress; a bar for the weights would stand in its way.
    transformers_logging.disable_progress_bar()
    path = locate(encoder.model)
    _check_folder(encoder, path)
    try:
        model = SentenceTransformer(path, revision=encoder.revision, model_kwargs={"dtype": torch.float32})
    except Exception as error:
        raise UserError(
            f"The encoder '{encoder.model.raw}' cannot be loaded: {type(error).__name__}: {_first_line(error)} "
            "Give a folder that sentence-transformers has saved, the name of a model on the Hub, or package:NAME/FOLDER "
            "for one that a package carries."
        ) from error
    limit = model.max_seq_length
    if limit == math.inf:
        # A static embedding is a mean of token vectors: it has no length, and none can be set.
        log.info("The encoder '%s' reads whole texts; max_length does not apply.", encoder.model.raw)
    else:
        model.max_seq_length = encoder.max_length if limit is None else min(limit, encoder.max_length)
    return model.eval()


def encode(encoder: Encoder, role: Role, texts: list[str]) -> Array:
    """Vectors of `texts` in their order: float32, (n, d), of length 1.

    Batches depend on `texts` and `batch_size` alone: the texts are sorted by length and then by content, and each batch is padded
    to its longest. So equal lists give equal bytes on one machine.
    """
    model = load(encoder)
    if not texts:
        return np.zeros((0, model.get_embedding_dimension()), np.float32)
    order = sorted(range(len(texts)), key=lambda each: (len(texts[each]), texts[each], each))
    function, prompt = (
        (model.encode_query, encoder.query_prompt) if role == "query" else (model.encode_document, encoder.document_prompt)
    )
    vectors = function(
        [texts[each] for each in order],
        prompt=prompt,
        batch_size=encoder.batch_size,
        show_progress_bar=False,
        normalize_embeddings=True,
    )
    result = np.empty(vectors.shape, np.float32)
    result[order] = vectors
    return result


def _check_folder(encoder: Encoder, path: str) -> None:
    """A sentence for what transformers would fail on with a page, or would try to find on a hub."""
    if not os.path.isdir(path):
        if os.path.exists(path) or path.startswith(("/", ".")):
            what = "is a file" if os.path.exists(path) else "does not exist"
            raise UserError(f"The encoder '{encoder.model.raw}' should be a folder with a model, and '{path}' {what}.")
        return
    files = [file for file in Path(path).rglob("*") if file.is_file()]
    if not any(file.suffix in _WEIGHTS and file.stat().st_size for file in files):
        raise UserError(
            f"The encoder '{encoder.model.raw}' is a folder without weights: '{path}' has no file that ends in "
            f"{', '.join(_WEIGHTS)}. Copy the whole model there, or name another folder."
        )


def _first_line(error: Exception) -> str:
    line = next(iter(str(error).strip().splitlines()), "")[:300]
    return line if line.endswith(".") else line + "."
