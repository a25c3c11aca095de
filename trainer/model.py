"""One vector for each text: the base, a pooling, a projection where one is asked for, length 1."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from datakit.errors import UserError
from datakit.schema import digest
from trainer import distributed, unpadded
from trainer.base import first_line, load_base, quiet, token_states
from trainer.config import ModelConfig
from trainer.freezing import skipping

__all__ = ["Encoder", "Prompted", "Tokens", "first_line", "load_encoder", "quiet"]

log = logging.getLogger(__name__)

# Padded tokens that go through the base at once, where the config does not say. On CPUs: what was fastest.
CHUNK_TOKENS = {"cpu": 1_024, "cpu in bfloat16": 2_048, "cuda": 65_536}


class Prompted(NamedTuple):
    """A text and what stands before it. The base reads both, as one string."""

    prefix: str
    text: str


@dataclass(frozen=True)
class Tokens:
    """Token ids of texts, and how many of each text's leading tokens are left out of the pooling."""

    ids: list[list[int]]
    skipped: list[int]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def count(self) -> int:
        """Tokens of all texts, padding not among them."""
        return sum(map(len, self.ids))

    @property
    def pairs(self) -> int:
        """Pairs of tokens of one text."""
        return sum(len(each) ** 2 for each in self.ids)


class Encoder(nn.Module):
    """Texts to vectors. The base computes in `compute`; pooling, projection and norm in float32, in float64 after .double()."""

    def __init__(self, base: Any, tokenizer: Any, config: ModelConfig, seed: int = 0) -> None:
        super().__init__()
        self.base = base
        self.tokenizer = tokenizer
        self.config = config
        # float32 means no autocast.
        self.compute: torch.dtype = torch.float32
        self.chunk_tokens: int | None = None
        self.unpadded = False  # set by trainer.unpadded
        # Which of how many shares of the texts are computed here (trainer.distributed).
        self.share = (0, 1)
        self.projection: nn.Linear | None = None
        if config.projection:
            self.projection = nn.Linear(base.config.hidden_size, config.projection, bias=False)
            # Orthogonal, so that cosines change as little as the dimension allows.
            nn.init.orthogonal_(self.projection.weight, generator=torch.Generator().manual_seed(seed))
        self.heads = nn.ModuleDict()  # by objective; they stand after the vectors, see trainer.heads
        self.frozen: set[str] = set()  # parameters that the stage leaves as they are, and the layers that it may leave out
        self.droppable: list[nn.Module] = []
        self.layer_dropout = 0.0
        self._prefix_lengths: dict[tuple[str, int], int] = {}

    @property
    def dimension(self) -> int:
        return self.config.projection or int(self.base.config.hidden_size)

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.base.parameters()).device
        return device

    @property
    def embedding_parameter(self) -> nn.Parameter:
        """The table of token embeddings. Its gradient is sparse with embeddings: sparse, absent with frozen and with LoRA."""
        weight: nn.Parameter = self.base.get_input_embeddings().weight
        return weight

    @property
    def layers(self) -> nn.ModuleList | None:
        """The layers of the base, from the bottom; None where it does not show which they are."""
        count = self.base.config.num_hidden_layers
        return next((each for each in self.base.modules() if isinstance(each, nn.ModuleList) and len(each) == count), None)

    def query_text(self, text: str, instruction: str | None) -> Prompted:
        return Prompted(prefix(self.config.query_prefix, instruction), text)

    def document_text(self, text: str, instruction: str | None) -> Prompted:
        return Prompted(prefix(self.config.document_prefix, instruction), text)

    def activation_checkpointing(self, on: bool) -> None:
        """Whether layers keep their input only, and compute the rest again, with the same dropout, for the gradient."""
        if not on:
            self.base.activation_checkpointing_disable()
            return
        try:
            self.base.activation_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": True})
        except ValueError as error:
            raise UserError(f"training.activation_checkpointing: the base cannot do it: {first_line(error)}") from error

    def compile_layers(self) -> None:
        """Compiles the layers (torch.compile), which are all alike, when they are first used. Dropout draws what it drew before.

        Raises UserError where there is no compiler for the CPU's code, or where the base does not show its layers.
        """
        if self.device.type == "cpu" and shutil.which(os.environ.get("CXX", "g++")) is None:
            raise UserError("training.compile needs a C++ compiler on a CPU, and g++ is not there. Install it, or leave it out.")
        if self.layers is None:
            raise UserError(f"training.compile: the base '{self.config.base}' does not show which its layers are. Leave it out.")
        # Else a pass without gradients, as in gradient caching, drops out other things.
        torch._inductor.config.fallback_random = True
        for layer in self.layers:
            layer.compile(dynamic=True)

    def tokenize(self, texts: Sequence[Prompted], max_length: int | None = None) -> Tokens:
        """Tokens of each text, cut to `max_length` (the config's by default), never empty."""
        if not texts:
            return Tokens([], [])
        length = max_length or self.config.max_length
        ids = [row or [self.tokenizer.pad_token_id] for row in self._ids([prefix + text for prefix, text in texts], length)]
        if self.config.pool_instruction:
            return Tokens(ids, [0] * len(ids))
        return Tokens(ids, [self._prefix_length(text.prefix, length) for text in texts])

    def _ids(self, texts: list[str], length: int) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(texts, truncation=True, max_length=length)["input_ids"]
        return ids

    def _prefix_length(self, prefix: str, length: int) -> int:
        """Tokens of a prefix alone, less a special one at its end: as sentence-transformers counts, so that an export agrees.

        A last token that would join the text's first one (a space before a word) counts too, and takes that one out as well.
        """
        if (prefix, length) not in self._prefix_lengths:
            (ids,) = self._ids([prefix], length) if prefix else ([],)
            self._prefix_lengths[prefix, length] = len(ids) - (bool(ids) and ids[-1] in self.tokenizer.all_special_ids)
        return self._prefix_lengths[prefix, length]

    def chunks(self, tokens: Tokens) -> list[list[int]]:
        """Numbers of texts that go through the base together: alike in length, at most `chunk_tokens`, any padding included.

        With several processes this one's part of each chunk, dealt by length. Where it has none, -1: the last text, computed once
        more and not counted, as with FSDP all processes go through the base equally often.
        """
        kind = f"{self.device.type} in bfloat16" if self.compute == torch.bfloat16 else self.device.type
        budget = self.chunk_tokens or CHUNK_TOKENS.get(kind, CHUNK_TOKENS.get(self.device.type, CHUNK_TOKENS["cuda"]))
        rank, world = self.share
        lengths = [len(row) for row in tokens.ids]
        cut = unpadded.chunks(lengths, budget * world) if self.unpadded else chunks(lengths, budget, world)
        return [chunk[rank::world] or [-1] for chunk in cut]

    def chunk_vectors(self, tokens: Tokens, chunk: Sequence[int], seed: int | None) -> Tensor:
        """Vectors [len(chunk), dimension] of norm 1, of the texts whose numbers stand in `chunk`.

        Sets the random numbers of all devices from `seed` and the first number first, so that a replay drops out the same;
        leaves them alone where `seed` is None.
        """
        if seed is not None:
            torch.manual_seed(int(digest("dropout", str(seed), str(chunk[0]))[:15], 16))
        lengths = torch.tensor([len(tokens.ids[number]) for number in chunk])
        skipped = torch.tensor([tokens.skipped[number] for number in chunk])
        rows = [torch.tensor(tokens.ids[number]) for number in chunk]
        layers = skipping(self.droppable, self.layer_dropout, seed if self.training else None)
        autocast = self.compute != torch.float32
        kind = self.compute if autocast else None
        attention = self._attention(int(lengths.max()))
        with torch.autocast(self.device.type, dtype=kind, enabled=autocast), attention, layers:
            if self.unpadded:
                hidden = unpadded.hidden_states(self.base, rows, self.device, self.config.layer_weights)
            else:
                hidden = padded_states(self.base, rows, self.tokenizer.pad_token_id, self.device, self.config.layer_weights)
        with torch.autocast(self.device.type, enabled=False):
            kind = torch.promote_types(hidden.dtype, torch.float32)
            weights = pooling_weights(self.config.pooling, lengths, skipped).to(self.device, kind)
            vectors = torch.bmm(weights[:, None], hidden.to(kind))[:, 0]
            if self.projection is not None:
                vectors = self.projection(vectors)
            return nn.functional.normalize(vectors, dim=1)

    def _attention(self, longest: int) -> AbstractContextManager[None]:
        """Torch's fused attention, but plain products where these are faster: for short texts in bfloat16 on CPUs."""
        short = self.device.type == "cpu" and self.compute == torch.bfloat16 and longest <= 128
        # Layers that are computed again for the gradient are so outside of this context, and would not be the same.
        plain = short and not self.base.is_activation_checkpointing
        return sdpa_kernel(SDPBackend.MATH) if plain else nullcontext()

    def forward(self, tokens: Tokens, seed: int | None = None) -> Tensor:
        """Vectors [len(tokens), dimension] of norm 1, in the order of `tokens`."""
        chunks = self.chunks(tokens)
        return self.ordered([self.chunk_vectors(tokens, chunk, seed) for chunk in chunks], chunks, len(tokens))

    def ordered(self, vectors: Sequence[Tensor], chunks: Sequence[Sequence[int]], count: int) -> Tensor:
        """Vectors [count, dimension] of all texts, those of other processes among them, from the vectors of each chunk."""
        order = torch.tensor([number for chunk in chunks for number in chunk]).to(self.device)
        if self.share != (0, 1):
            return distributed.gathered(torch.cat(list(vectors)), order, count)
        return torch.cat(list(vectors))[order.argsort()]

    @torch.inference_mode()
    def embed(self, texts: Sequence[Prompted]) -> np.ndarray:
        """Vectors [len(texts), dimension] float32, of norm 1, without gradients and dropout."""
        was_training = self.training
        self.eval()
        tokens = self.tokenize(texts)
        vectors = self(tokens).cpu().numpy() if tokens.ids else np.zeros((0, self.dimension), np.float32)
        self.train(was_training)
        return np.asarray(vectors, np.float32)


def padded_states(
    base: Any, rows: list[Tensor], padding: int, device: torch.device, layer_weights: Sequence[float] | None
) -> Tensor:
    """The hidden states [n, longest, width] of n texts of token ids (base.token_states); anything where a text has no token."""
    lengths = torch.tensor([len(row) for row in rows])
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding)
    # Attention is faster without a mask, and it needs none where nothing is padded.
    mask = None if int(lengths.min()) == ids.shape[1] else (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    output = base(input_ids=ids.to(device), attention_mask=None if mask is None else mask.to(device))
    return token_states(output, layer_weights)


def prefix(template: str, instruction: str | None) -> str:
    """What stands before a text: the template with the instruction, or nothing where there is none."""
    return template.format(instruction=instruction) if instruction else ""


def chunks(lengths: Sequence[int], budget: int, world: int = 1) -> list[list[int]]:
    """Numbers by ascending length, cut into runs whose padded size is at most `budget`; a longer text is alone.

    Where a run is dealt to `world` processes, the size of the part of each, which is the same up to one text.

    The cuts are those with the least padding, where one chunk more costs as much as a sixteenth of the budget.
    """
    order = np.argsort(np.asarray(lengths), kind="stable")
    ordered = np.asarray(lengths)[order]
    count = len(ordered)
    # The cheapest way to cut the first so many texts, and where its last chunk begins.
    cost, begins = np.zeros(count + 1), np.zeros(count + 1, int)
    for stop in range(1, count + 1):
        longest = ordered[stop - 1]
        first = max(stop - world * max(budget // longest, 1), 0)
        costs = cost[first:stop] + longest * -(-np.arange(stop - first, 0, -1) // world)
        begins[stop] = first + int(costs.argmin())
        cost[stop] = costs.min() + budget / 16
    result, stop = [], count
    while stop:
        result.append(order[begins[stop] : stop].tolist())
        stop = int(begins[stop])
    return result[::-1]


def pooling_weights(pooling: str, lengths: Tensor, skipped: Tensor) -> Tensor:
    """How much each token counts in its text's vector [n, longest]; rows sum to 1. lengths [n]; skipped [n] leading tokens.

    mean: alike. last, cls: the last, the first token. weighted: 1, 2, 3, ... by position (Muennighoff 2022, arXiv 2202.08904).
    Skipped tokens keep their positions and count 0. Where no token is left, all are 0, for cls all but the very first:
    everything as in sentence-transformers' Pooling.
    """
    positions = torch.arange(int(lengths.max()))[None, :]
    left = ((positions < lengths[:, None]) & (positions >= skipped[:, None])).double()
    if pooling == "weighted":
        left = left * (positions + 1)
    elif pooling == "last":
        left = left * (positions == lengths[:, None] - 1)
    elif pooling == "cls":
        left = (positions == torch.where(skipped < lengths, skipped, 0)[:, None]).double()
    return left / left.sum(1, keepdim=True).clamp(min=1.0)


def load_encoder(config: ModelConfig, seed: int = 0) -> Encoder:
    """The encoder of a config, in float32, on the CPU. `seed` decides the projection and the adapters. Raises UserError."""
    base, tokenizer = load_base(config, seed)
    return Encoder(base, tokenizer, config, seed)
