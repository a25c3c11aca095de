"""Heads: small networks from the shared vector to the one of an objective. The exported encoder works without them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from datakit.errors import UserError
from datakit.schema import digest
from trainer.config import Config

if TYPE_CHECKING:
    from trainer.model import Encoder

FILE = "heads.safetensors"
LARGEST = 0.05
WIDTH = 64


class Head(nn.Module):
    """Vectors [n, d] to vectors [n, d], not of norm 1: losses and cosines see to that. A new head changes nothing."""

    def __init__(self, dimension: int, width: int | None, seed: int = 0) -> None:
        """One layer where `width` is None, else two."""
        super().__init__()
        self.first = nn.Linear(dimension, width or dimension, bias=False)
        self.second = None if width is None else nn.Linear(width, dimension, bias=False)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            if self.second is None:
                nn.init.eye_(self.first.weight)
            else:
                nn.init.normal_(self.first.weight, std=dimension**-0.5, generator=generator)
                nn.init.zeros_(self.second.weight)

    def forward(self, vectors: Tensor) -> Tensor:
        within: Tensor = self.first(vectors)
        return within if self.second is None else vectors + self.second(nn.functional.gelu(within))


def attach(encoder: Encoder, config: Config) -> None:
    """Gives an encoder a new head for each objective of the run. Raises UserError where one has 5 % of the parameters or more."""
    heads = config.model.heads
    if heads is None:
        return
    whole = sum(parameter.numel() for parameter in encoder.parameters())
    for name in config.objectives:
        if hasattr(nn.ModuleDict(), name):  # some are attributes of the instance alone
            raise UserError(f"model.heads: an objective cannot be named '{name}', which torch uses itself. Rename it.")
        seed = int(digest("head", str(config.seed), name)[:15], 16)
        head = Head(encoder.dimension, (heads.width or WIDTH) if heads.layers == 2 else None, seed)
        size = sum(parameter.numel() for parameter in head.parameters())
        if size >= LARGEST * whole:
            raise UserError(
                f"model.heads: a head of {heads.layers} layers has {size:,} parameters, {size / whole:.1%} of the encoder's "
                f"{whole:,}; allowed: less than {LARGEST:.0%}. Choose layers: 2 with a width below "
                f"{LARGEST * whole / (2 * encoder.dimension):.0f}."
            )
        encoder.heads[name] = head.to(encoder.device)


def applied(encoder: Encoder, objective: str, vectors: Tensor) -> Tensor:
    """Vectors [n, d] through the head of an objective; as they are where it has none."""
    return encoder.heads[objective](vectors) if objective in encoder.heads else vectors


def save(encoder: Encoder, folder: str) -> None:
    """Writes the heads, where there are some, beside an exported encoder."""
    tensors = {f"heads.{name}": value.cpu().contiguous() for name, value in encoder.heads.state_dict().items()}
    if tensors:
        save_file(tensors, os.path.join(folder, FILE))


def load(folder: str) -> dict[str, Head]:
    """The heads of an exported model, by objective; {} where it has none."""
    path = os.path.join(folder, FILE)
    try:
        tensors = load_file(path) if os.path.isfile(path) else {}
    except SafetensorError as error:
        raise UserError(f"'{path}' is damaged ({error}). Export the model again.") from error
    heads = {}
    for name in sorted({key.split(".")[1] for key in tensors}):
        weights = {key.removeprefix(f"heads.{name}."): value for key, value in tensors.items() if key.split(".")[1] == name}
        two = "second.weight" in weights
        heads[name] = Head(weights["first.weight"].shape[1], weights["first.weight"].shape[0] if two else None)
        heads[name].load_state_dict(weights)
    return heads


@torch.inference_mode()
def through(head: nn.Module | None, vectors: np.ndarray) -> np.ndarray:
    """Vectors [n, d] float32 as a head gives them; as they are where there is none."""
    if head is None:
        return vectors
    given = torch.from_numpy(vectors).to(next(head.parameters()).device)
    return np.asarray(head(given).cpu().numpy(), np.float32)
