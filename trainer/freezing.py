"""The lower layers stay as they are, and of the others some are left out: together, stage after stage, a freezing cascade.

The brief (VII) calls this Cascaded Selective Mask Fine-Tuning; the method that was published under this name masks parameters.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from datakit.errors import UserError
from datakit.schema import digest
from trainer.config import Layers

if TYPE_CHECKING:
    from trainer.model import Encoder

log = logging.getLogger(__name__)


def freeze(encoder: Encoder, config: Layers) -> None:
    """Sets an encoder up for a stage. Raises UserError where the base does not say which its layers are.

    Of L layers the lowest `frozen` L stay, rounded, one at least is trained; and so does what the base holds before them, its
    embeddings. What comes after the layers (norm, projection, heads) is trained.
    """
    if not config.frozen and not config.dropout:
        return
    if (layers := encoder.layers) is None:
        raise UserError(
            f"The base '{encoder.config.base}' does not show which its layers are: leave layers.frozen and layers.dropout of the "
            "stages out."
        )
    count = len(layers)
    lowest = min(int(config.frozen * count + 0.5), count - 1)
    if config.frozen:
        first = {id(each) for each in layers[lowest].parameters()}
        below = list(takewhile(lambda pair: id(pair[1]) not in first, encoder.named_parameters()))
        encoder.frozen = {name for name, parameter in below if parameter.requires_grad}
        for _, parameter in below:
            parameter.requires_grad_(False)
    if config.dropout and not _gives_a_tensor(encoder, layers[lowest]):
        raise UserError(f"Layers of the base '{encoder.config.base}' give more than one tensor: leave layers.dropout out.")
    encoder.droppable, encoder.layer_dropout = list(layers[lowest:]), config.dropout
    if config.dropout and len(encoder.droppable) == 1:
        log.warning("layers.dropout has no effect: of %d layers one alone is not frozen, and one always stays.", count)


def _gives_a_tensor(encoder: Encoder, layer: nn.Module) -> bool:
    """Whether what a layer gives is what the next one takes, so that a layer can be left out."""
    found: list[bool] = []
    handle = layer.register_forward_hook(lambda _, __, output: found.append(isinstance(output, Tensor)))
    encoder.embed([encoder.document_text("a", None)])
    handle.remove()
    return found == [True]


def left_out(count: int, share: float, seed: int) -> list[int]:
    """Which of `count` layers are left out: each with the probability `share`, but never all. The same seed, the same layers."""
    luck = np.random.Generator(np.random.Philox(key=int(digest("layers", str(seed)), 16))).random(count)
    return [number for number in range(count) if luck[number] < share and number != luck.argmax()]


@contextmanager
def skipping(layers: Sequence[nn.Module], share: float, seed: int | None) -> Iterator[None]:
    """LayerDrop (Fan et al. 2019, arXiv 1909.11556): some layers give what they were given. None are left out without a seed.

    All texts of a batch go through the same layers, however they are cut into chunks; nothing is scaled, as there. Activation
    checkpointing computes only layers again that were not left out, outside of this context.
    """
    chosen = [layers[number] for number in left_out(len(layers), share, seed)] if share and seed is not None else []
    for layer in chosen:
        layer.forward = unchanged
    try:
        yield
    finally:
        for layer in chosen:
            del layer.forward


def unchanged(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden_states
