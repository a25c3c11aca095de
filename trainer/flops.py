"""Floating-point operations of a base, and what devices can do of them.

FLOPs are those of matrices and attention alone. N parameters beside the token embeddings cost 2 N a token forward, 2 N for the
gradient of the activations, 2 N for that of the weights (Kaplan et al. 2020, arXiv 2001.08361, 2.1). Attention of width a over s
tokens costs 4 a s a layer and token forward, and twice that backward (Chowdhery et al. 2022, arXiv 2204.02311, appendix B).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import transformers
from torch import nn

from trainer import distributed
from trainer.base import quiet
from trainer.model import Encoder


class Hardware(NamedTuple):
    peak: float  # FLOP/s of dense matrices in bfloat16, on a CPU in float32
    memory: float  # bytes
    share: float  # of the peak that is reached
    source: str
    numbers: str = "bfloat16"


_PACKED = "MosaicML reached {} with packed texts (llm-foundry, 1B, 512 tokens)"
HARDWARE = {
    "a100": Hardware(312e12, 80e9, 0.4, f"NVIDIA's data sheet, SXM, 80 GB; {_PACKED.format('61%')}"),
    "h100": Hardware(989.5e12, 80e9, 0.3, f"NVIDIA's data sheet, SXM: 1,979 with sparsity; {_PACKED.format('43%')}"),
    "h200": Hardware(989.5e12, 141e9, 0.3, "NVIDIA's data sheet, SXM: 1,979 with sparsity; the share is that of the H100"),
    "l4": Hardware(121e12, 24e9, 0.4, "NVIDIA's data sheet: 242 with sparsity; the share is a guess"),
    "rtx4090": Hardware(165.2e12, 24e9, 0.4, "NVIDIA's Ada GPU architecture, appendix A; the share is a guess"),
    "cpu": Hardware(
        78.4e9, 4e9, 0.6, "a core of AMD's EPYC 7763: 2.45 GHz, 32 FLOP a cycle; 4 GB, and the share, are guesses", "float32"
    ),
}


class Shape(NamedTuple):
    """A transformer, as far as its cost goes."""

    matrices: int  # parameters beside the token embeddings
    embeddings: int
    layers: int
    hidden: int
    attention: int  # heads times the dimension of a head
    feed_forward: int
    adapters: int  # parameters of LoRA at rank 1

    def forward(self, length: float) -> float:
        """FLOPs of a token in a text of `length` tokens."""
        return 2.0 * self.matrices + self.layers * 4 * self.attention * length


def counted(settings: Any, targets: tuple[str, ...] = ()) -> Shape:
    """The shape of a config of transformers. BERT's pooler takes no part. `targets`: what LoRA adapts; all where empty."""
    with quiet(), torch.device("meta"):
        base = transformers.AutoModel.from_config(settings)
    embeddings = sum(each.weight.numel() for each in base.modules() if isinstance(each, nn.Embedding))
    whole = sum(each.numel() for name, each in base.named_parameters() if not name.startswith("pooler."))
    layers, hidden, heads = settings.num_hidden_layers, settings.hidden_size, settings.num_attention_heads
    attention = heads * (getattr(settings, "head_dim", None) or hidden // heads)
    linear = [
        each
        for name, each in base.named_modules()
        if isinstance(each, nn.Linear)
        and not name.startswith("pooler.")
        and (not targets or any(f".{name}".endswith(f".{target}") for target in targets))
    ]
    adapters = sum(each.in_features + each.out_features for each in linear)
    # Each family has a name of its own; GPT-2 leaves it out where it is four times as wide.
    widths = (getattr(settings, name, None) for name in ("intermediate_size", "hidden_dim", "d_ff", "n_inner"))
    feed_forward = next((each for each in widths if each), 4 * hidden)
    return Shape(whole - embeddings, embeddings, layers, hidden, attention, feed_forward, adapters)


def peak_of(device: torch.device, compute: torch.dtype) -> float | None:
    """FLOP/s of a GPU in the numbers that it computes in; None where its data sheet is not in HARDWARE."""
    if device.type != "cuda" or compute not in (torch.bfloat16, torch.float16):
        return None
    return peak_by_name(torch.cuda.get_device_name(device))


def peak_by_name(name: str) -> float | None:
    """By the name that the driver gives. Boards for PCIe are slower than the data sheets' SXM, and not known here."""
    words = re.sub(r"rtx ", "rtx", name.lower())
    found = [key for key in HARDWARE if re.search(rf"\b{key}\b", words)]
    return HARDWARE[found[0]].peak if found and not re.search(r"pcie|nvl|laptop|mig", words) else None


def step_flops(shape: Shape, trained: int, tokens: float, pairs: float) -> float:
    """Of a step, forward and backward: `tokens` without padding, `pairs` of them that see each other.

    `trained` of the parameters beside the token embeddings have gradients. Passes repeated to save memory are not among these, so
    that over seconds and peak this is the model FLOPs utilization (Chowdhery et al. 2022, appendix B).
    """
    forward = tokens * shape.forward(pairs / tokens)
    return 3 * forward - 2.0 * (shape.matrices - trained) * tokens


def meter(encoder: Encoder) -> Callable[[float, float, float], dict[str, float]]:
    """Gives a function of a step's tokens, pairs and seconds: tokens a second, and on a known GPU the utilization."""
    if (peak := peak_of(encoder.device, encoder.compute)) is None:
        return lambda tokens, pairs, seconds: {"tokens_per_second": tokens / seconds}
    shape, whole = counted(encoder.base.config), peak * distributed.world()
    weights = (value for value in encoder.base.parameters() if value is not encoder.embedding_parameter)
    trained = sum(value.numel() for value in weights if value.requires_grad)

    def speed(tokens: float, pairs: float, seconds: float) -> dict[str, float]:
        share = step_flops(shape, trained, tokens, pairs) / seconds / whole
        return {"tokens_per_second": tokens / seconds, "utilization": share}

    return speed
