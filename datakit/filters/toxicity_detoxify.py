"""Detoxify's models (https://github.com/unitaryai/detoxify) from a checkpoint on this machine.

Detoxify itself reads a checkpoint with an unrestricted `torch.load`, which runs whatever code the file holds, and asks the Hub
for the configuration of the base model even where a folder is given. So the checkpoint is read here, with `weights_only=True`,
and handed to Detoxify's own functions; the scores are those of its own `predict`.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import pickle
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from datakit.errors import MissingExtra, UserError
from datakit.filters.sides import Array
from datakit.recipe import ToxicityFilter

PACKAGES = ("detoxify", "tokenizers", "torch", "transformers")

# The class that every checkpoint of Detoxify has: "toxic" in those of the first challenge.
TOXIC_CLASS = "toxicity"
# Detoxify's own table: names in the checkpoint of `original`, and what its `predict` calls them.
NAMES = {"toxic": TOXIC_CLASS, "identity_hate": "identity_attack", "severe_toxic": "severe_toxicity"}


def check(parameters: ToxicityFilter) -> None:
    """Refuses what would fail only when the step runs."""
    if importlib.util.find_spec("detoxify") is None:
        raise MissingExtra("The toxicity filter's engine 'detoxify'", "detoxify", "toxicity")
    if not os.path.isfile(str(parameters.checkpoint)):
        raise UserError(
            f"The toxicity filter's checkpoint '{parameters.checkpoint}' is no file. Download one of Detoxify's releases and "
            "give its path: datakit never downloads a model silently."
        )
    if not os.path.isfile(os.path.join(str(parameters.config), "config.json")):
        raise UserError(
            f"The toxicity filter's config '{parameters.config}' has no config.json. Give a folder with the configuration and "
            "the tokenizer of the checkpoint's base model (for Detoxify 'original': bert-base-uncased)."
        )


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint of Detoxify holds. `classes` are the labels that `predict` gives, in the order of the model's outputs.

    `unbiased` and `multilingual` have more outputs than labels: the identities that they were trained beside come last.
    """

    arguments: dict[str, Any]
    classes: list[str]
    state: dict[str, Any]


def read(checkpoint: str) -> Checkpoint:
    """Reads a checkpoint without running what it may hold; of a file in torch's zip format, weights only when they are used."""
    import torch

    try:
        mapped = zipfile.is_zipfile(checkpoint)
        loaded = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=mapped)
        arguments = dict(loaded["config"]["arch"]["args"])
        classes = [NAMES.get(name, name) for name in loaded["config"]["dataset"]["args"]["classes"]]
        state = loaded["state_dict"]
    except pickle.UnpicklingError as error:
        raise UserError(
            f"The checkpoint '{checkpoint}' holds more than tensors and plain values, so reading it could run code; it is not "
            "opened. If you trust it, load it once with torch.load(..., weights_only=False), and save its 'config' and "
            "'state_dict' anew."
        ) from error
    except (KeyError, TypeError, ValueError, RuntimeError, EOFError) as error:
        raise UserError(
            f"'{checkpoint}' is no checkpoint of Detoxify: {type(error).__name__}: {error}. It needs 'state_dict', and 'config' "
            "with 'arch' and 'dataset'."
        ) from error
    if TOXIC_CLASS not in classes:
        raise UserError(f"The checkpoint '{checkpoint}' has no class '{TOXIC_CLASS}'; it has: {', '.join(classes)}.")
    return Checkpoint(arguments, classes, state)


@functools.lru_cache(maxsize=1)
def load(checkpoint: str, config: str) -> Any:
    """A Detoxify with the checkpoint's weights, on a GPU where there is one."""
    import torch
    from detoxify import Detoxify
    from detoxify.detoxify import get_model_and_tokenizer

    found = read(checkpoint)
    try:
        # The folder stands in for the name of the base model, so that the number of classes is set and nothing is downloaded.
        model, tokenizer = get_model_and_tokenizer(**{**found.arguments, "model_type": config}, state_dict=found.state)
    except (OSError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        line = next(iter(str(error).strip().splitlines()), "")[:300]
        raise UserError(f"The checkpoint '{checkpoint}' does not fit the config '{config}': {line}") from error
    detector = Detoxify.__new__(Detoxify)
    detector.class_names = found.classes
    detector.tokenizer = tokenizer
    detector.device = "cuda" if torch.cuda.is_available() else "cpu"
    detector.model = model.to(detector.device)
    # A tokenizer without a limit would hand the model more positions than it has.
    positions = int(getattr(model.config, "max_position_embeddings", 512))
    tokenizer.model_max_length = min(tokenizer.model_max_length, positions - (2 if "roberta" in model.config.model_type else 0))
    return detector


def score(texts: Sequence[str], parameters: ToxicityFilter, labels: Sequence[str] = (TOXIC_CLASS,)) -> Array:
    """The scores of each text for the labels, (texts, labels): float64, 0 to 1. Batches depend on texts and batch size alone."""
    detector = load(str(parameters.checkpoint), str(parameters.config))
    order = sorted(range(len(texts)), key=lambda each: (len(texts[each]), texts[each], each))
    scores = np.zeros((len(texts), len(labels)))
    for start in range(0, len(order), parameters.batch_size):
        batch = order[start : start + parameters.batch_size]
        found = detector.predict([texts[each] for each in batch])
        for place, label in enumerate(labels):
            scores[batch, place] = found[label]
    return scores
