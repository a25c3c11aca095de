"""Keys and values of what a model has read, with room for what it will write: transformers copies all of them for each token."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicLayer


def give_room(cache: Any, tokens: int) -> Any:
    """The cache, which now takes up to so many more tokens in place. Layers of other kinds, as sliding ones, stay as they are."""
    for place, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[place] = Roomy(tokens)
            if layer.is_initialized:
                cache.layers[place].update(layer.keys, layer.values)
    return cache


class Roomy(DynamicLayer):  # type: ignore[misc]
    """A layer's keys and values [n, heads, length, width]: the filled part of tensors with room for `tokens` beyond the first."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.whole: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        n, heads, length, width = key_states.shape
        if not self.whole:
            self.lazy_initialization(key_states, value_states)
            self.whole = [states.new_empty(n, heads, length + self.tokens, width) for states in (key_states, value_states)]
        start = self.get_seq_length()
        for whole, states in zip(self.whole, (key_states, value_states), strict=True):
            whole[:, :, start : start + length] = states
        self.keys, self.values = (whole[:, :, : start + length] for whole in self.whole)
        return self.keys, self.values
