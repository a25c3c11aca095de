"""The texts of a chunk in one row, without padding: [1, T tokens] goes through the base, not [n texts, longest].

All of a layer but its attention works on each token alone, and so costs what the tokens cost. Attention alone sees the texts side
by side, padded to the longest: queries, keys and values are laid out for the attention that the base had before, whatever its
pattern, with the mask that it would have had, and what comes out is put back in a row. Positions begin anew with each text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from datakit.errors import UserError
from trainer.base import first_line, token_states

if TYPE_CHECKING:
    from trainer.model import Encoder

NAME = "trainer.unpadded."  # and after it the attention that the base had
MOST_POSITIONS = 1_024  # of the row that turn_on tries


@dataclass(frozen=True)
class Row:
    """How the T tokens of n texts lie in their row."""

    real: Tensor  # [n, longest] bool: where a text has a token
    places: Tensor | None  # [T] among n * longest; None where all texts are equally long

    def apart(self, values: Tensor) -> Tensor:
        """[T, ...] as [n, longest, ...], zeros where a text has no token."""
        if self.places is None:
            return torch.unflatten(values, 0, self.real.shape)
        empty = values.new_zeros(self.real.numel(), *values.shape[1:])
        return torch.unflatten(empty.index_copy(0, self.places, values), 0, self.real.shape)

    def joined(self, values: Tensor) -> Tensor:
        """[n, longest, ...] as [T, ...]."""
        flat = values.flatten(0, 1)
        return flat if self.places is None else flat[self.places]


@dataclass(frozen=True)
class RowMask:
    """What layers get for a mask: the row, and the mask of its texts side by side."""

    row: Row
    inner: Any


_row: ContextVar[Row | None] = ContextVar("row", default=None)


def row_of(lengths: Tensor, device: torch.device) -> Row:
    """The row of texts of so many tokens, [n]."""
    longest = int(lengths.max())
    real = torch.arange(longest) < lengths[:, None]
    places = None if int(lengths.min()) == longest else real.flatten().nonzero()[:, 0].to(device)
    return Row(real.to(device), places)


@contextmanager
def passing(row: Row) -> Iterator[None]:
    """While a base that was turned on computes this row."""
    token = _row.set(row)
    try:
        yield
    finally:
        _row.reset(token)


def hidden_states(base: Any, rows: list[Tensor], device: torch.device, layer_weights: Sequence[float] | None = None) -> Tensor:
    """The hidden states [n, longest, width] of n texts of token ids (base.token_states), zeros where a text has no token."""
    row = row_of(torch.tensor([len(each) for each in rows]), device)
    ids = torch.cat(rows).to(device)[None]
    positions = torch.cat([torch.arange(len(each)) for each in rows]).to(device)[None]
    with passing(row):
        # With a mask transformers does not look for texts in the row by itself.
        output = base(input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=positions)
    return row.apart(token_states(output, layer_weights)[0])


def turn_on(encoder: Encoder) -> None:
    """Makes an encoder compute its chunks in rows. Raises UserError where its base gives other vectors then, or cannot."""
    base, named = encoder.base, f"training.unpadded: the base '{encoder.config.base}' ({encoder.base.config.model_type})"
    before = base.config._attn_implementation
    if before not in AttentionInterface() or before not in AttentionMaskInterface():
        raise UserError(f"{named} attends in a way of its own ('{before}') and cannot leave out padding. Leave unpadded out.")
    # Texts of two and of three tokens, and more of them than a base with a table of positions has.
    limit = min(getattr(base.config, "max_position_embeddings", None) or 0, MOST_POSITIONS)
    rows = [torch.arange(2, 4 + number % 2) % base.config.vocab_size for number in range(limit // 4 * 2 + 2)]
    was_training = base.training
    base.eval()
    with torch.no_grad():
        ids = torch.nn.utils.rnn.pad_sequence(rows[:2], batch_first=True).to(encoder.device)
        mask = torch.tensor([[1, 1, 0], [1, 1, 1]], device=encoder.device)
        expected = base(input_ids=ids, attention_mask=mask).last_hidden_state * mask[:, :, None]
        AttentionInterface.register(NAME + before, partial(_attend, AttentionInterface()[before]))
        AttentionMaskInterface.register(NAME + before, partial(_mask, AttentionMaskInterface()[before]))
        base.set_attn_implementation(NAME + before)
        try:
            found = torch.unflatten(hidden_states(base, rows, encoder.device), 0, (-1, 2))
        except (IndexError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"{named} cannot read texts in one row: {first_line(error)}. Leave unpadded out.") from error
    if not (found - expected).abs().max() <= 1e-3 * expected.abs().max():
        raise UserError(f"{named} gives other vectors to texts that stand in one row. Leave unpadded out.")
    base.train(was_training)
    encoder.unpadded = True


def chunks(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Numbers by ascending length, cut into runs of at most `budget` tokens; a longer text is alone."""
    found: list[list[int]] = []
    held = budget
    for number in np.argsort(np.asarray(lengths), kind="stable").tolist():
        held += lengths[number]
        if held > budget:
            found.append([])
            held = lengths[number]
        found[-1].append(number)
    return found


def _mask(inner: Any, **arguments: Any) -> Any:
    """What transformers calls for a mask (AttentionMaskInterface)."""
    row = _row.get()
    if row is None:
        return inner(**arguments)
    count, longest = row.real.shape
    real = None if row.places is None else row.real
    sizes = {"batch_size": count, "q_length": longest, "kv_length": longest}
    return RowMask(row, inner(**{**arguments, **sizes, "attention_mask": real}))


def _attend(
    inner: Any, module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **more: Any
) -> tuple[Tensor, None]:
    """What transformers calls for attention (AttentionInterface). query [1, heads, T, width]; [1, T, heads, width]."""
    if not isinstance(attention_mask, RowMask):
        attended: tuple[Tensor, None] = inner(module, query, key, value, attention_mask, **more)
        return attended
    row = attention_mask.row
    apart = [row.apart(each[0].transpose(0, 1)).transpose(1, 2) for each in (query, key, value)]
    output, _ = inner(module, *apart, attention_mask.inner, **more)
    return row.joined(output)[None], None
