"""A cross-encoder: reads query and text together, and says in [0, 1] how well they match."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from datakit.assets import locate
from datakit.errors import UserError
from datakit.recipe import CrossEncoderRelabel

# What decides the last bits of a score besides the model's own files.
PACKAGES = ("sentence-transformers", "tokenizers", "torch", "transformers")

Array = np.ndarray[Any, np.dtype[Any]]


@functools.lru_cache(maxsize=1)
def load(relabel: CrossEncoderRelabel) -> Any:
    """The CrossEncoder that is named, in float32. A name that cannot be found, or a model of several classes, is a UserError."""
    import torch
    from sentence_transformers import CrossEncoder
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    try:
        model = CrossEncoder(
            locate(relabel.model),
            revision=relabel.revision,
            max_length=relabel.max_length,
            model_kwargs={"dtype": torch.float32},
        )
    except UserError:
        raise
    except Exception as error:
        line = next(iter(str(error).strip().splitlines()), "")[:300]
        raise UserError(
            f"The cross-encoder '{relabel.model.raw}' cannot be loaded: {type(error).__name__}: {line} Give a folder that "
            "sentence-transformers has saved, the name of a model on the Hub, or package:NAME/FOLDER."
        ) from error
    if model.num_labels != 1:
        raise UserError(
            f"The model '{relabel.model.raw}' tells {model.num_labels} classes apart; a cross-encoder that scores has one output."
        )
    return model.eval()


def scores(relabel: CrossEncoderRelabel, pairs: Sequence[tuple[str, str]]) -> Array:
    """The score of each (query, text), in order: float64 (n), sigmoid of the model's output. Equal lists give equal bytes."""
    import torch

    if not pairs:
        return np.zeros(0)
    model = load(relabel)
    order = sorted(range(len(pairs)), key=lambda each: (sum(map(len, pairs[each])), pairs[each]))
    found = model.predict(
        [pairs[each] for each in order],
        batch_size=relabel.batch_size,
        activation_fn=torch.nn.Sigmoid(),
        show_progress_bar=False,
    )
    result = np.empty(len(pairs))
    result[order] = np.asarray(found, np.float64)
    return result
