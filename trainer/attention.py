"""Attention by layer (the brief, VIII): local windows below, all tokens in the middle, strided above; ALiBi in place of RoPE.

Token i sees token j of the same text where
- local layers: |i - j| <= window // 2, as ModernBERT counts its window;
- strided layers: (i - j) is a multiple of the stride, in both directions, with no local band beside;
- layers between: always;
and where the base itself lets it: a causal base sees j <= i only, and a base with a sliding window keeps it in all its layers.
Strided layers attend inside each residue class, and local ones inside blocks with their neighbours, so that a layer costs
length^2 / stride, or 4 * length * window at most, in place of length^2; both are exact.

ALiBi (Press et al. 2021, arXiv 2108.12409): -m |i - j| is added to the scaled scores, m by head as in the paper, symmetric where
the base is bidirectional; the rotary embeddings are turned off by their frequencies, which are 0. The bias is held once for
all layers of a pattern: heads * length^2 numbers in full ones, where attention without it holds none.

The pattern is part of the base's config, and so survives saving. transformers has no such layers of its own, so that an export
cannot do without this module: its config.json names the attention, and transformers and sentence-transformers refuse to open it
(ValueError: attn_implementation="trainer.attention" is not supported) until `import trainer.attention` was run; from then on they
open it right. trainer.Embedder runs it itself. Sliding windows that some bases have natively would serve for local layers alone,
and not in all bases: one rule for all is easier to trust. Two ways lead to full attention in silence: asking for another
attn_implementation, and programs that read config.json by themselves and take no notice of that key.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from datakit.errors import UserError
from trainer.config import ModelConfig

NAME = "trainer.attention"  # what config.json says: the module to import
UNROTATED = "trainer.unrotated"
PATTERN = "trainer_attention"
BLOCK = 64  # queries of a block at least
NOWHERE = -(2**30)  # the place of what nobody sees


def plan(settings: Any, config: ModelConfig) -> None:
    """Writes the pattern into the config of a base, before the base is made. One that is there stays where `config` says nothing.

    Raises UserError where a part of the layers is none, and for ALiBi where the base has no rotary embeddings.
    """
    named = f"the base '{config.base}' ({settings.model_type})"
    if settings._attn_implementation == NAME:
        settings._attn_implementation = None  # turn_on does it, when the base was looked at without
    if config.attention is None and config.positions == "base":
        return
    count = settings.num_hidden_layers
    held = getattr(settings, PATTERN, {"windows": [None] * count, "strides": [1] * count, "alibi": False})
    pattern = {**held, "alibi": held["alibi"] or config.positions == "alibi"}
    if config.attention is not None:
        local, strided = config.attention.local, config.attention.strided
        below = round(local.layers * count) if local else 0
        # The layer that both parts are rounded up to is a local one.
        above = max(below, round((1 - strided.layers) * count)) if strided else count
        for part, layers in (("local", below if local else 1), ("strided", count - above if strided else 1)):
            if layers == 0:
                raise UserError(f"model.attention.{part}.layers is none of the {count} layers of {named}. Give a larger part.")
        pattern["windows"] = [local.window if local and layer < below else None for layer in range(count)]
        pattern["strides"] = [strided.stride if strided and layer >= above else 1 for layer in range(count)]
    if config.positions == "alibi":
        if not getattr(settings, "rope_parameters", None):
            raise UserError(f"model.positions: alibi takes the place of rotary embeddings, and {named} has none.")
        settings.rope_parameters = unrotated(settings.rope_parameters)
    setattr(settings, PATTERN, pattern)


def turn_on(base: Any, name: str) -> None:
    """Makes a base attend by the pattern in its config, if there is one. Raises UserError where a layer of it would not."""
    pattern = getattr(base.config, PATTERN, None)
    if pattern is None:
        return
    named = f"The base '{name}' ({base.config.model_type})"
    served: set[int] = set()

    def spy(module: Any, *arguments: Any, **more: Any) -> tuple[Tensor, None]:
        served.add(module.layer_idx)
        return attend(module, *arguments, **more)

    register("trainer.attention.probe", spy)
    base.set_attn_implementation("trainer.attention.probe")
    with torch.no_grad():
        base(input_ids=torch.tensor([[2, 3]], device=base.device) % base.config.vocab_size)
    base.set_attn_implementation(NAME)
    if missing := sorted(set(range(base.config.num_hidden_layers)) - served):
        raise UserError(f"{named} attends in its own way in layer {missing[0]}, so that model.attention cannot be had.")
    if pattern["alibi"] and any(each.any() for part, each in base.named_buffers() if part.endswith("inv_freq")):
        raise UserError(f"{named}: its rotary embeddings cannot be turned off, so that model.positions: alibi cannot be had.")


def said(settings: Any) -> str:
    """In words, which token of a base sees which."""
    pattern = getattr(settings, PATTERN, None)
    if pattern is None:
        return "causal attention" if settings.is_causal else "every token sees every other"
    kinds = [
        f"every {stride}th token" if stride > 1 else f"a window of {window} tokens" if window else "all tokens"
        for window, stride in zip(pattern["windows"], pattern["strides"], strict=True)
    ]
    layers = ", ".join(f"{kind} in {kinds.count(kind)} of them" for kind in dict.fromkeys(kinds))
    return f"{'causal' if settings.is_causal else 'bidirectional'} attention to {layers}{', ALiBi' if pattern['alibi'] else ''}"


def unrotated(parameters: dict[str, Any]) -> dict[str, Any]:
    """Parameters of rotary embeddings that rotate nothing."""
    if any(isinstance(each, dict) for each in parameters.values()):  # by type of layer
        return {kind: unrotated(each) for kind, each in parameters.items()}
    kept = {"rope_theta": parameters.get("rope_theta")}
    if "partial_rotary_factor" in parameters:  # Phi-3 knows no types but its own
        return {**kept, "rope_type": "default", "partial_rotary_factor": 0.0}
    return {**kept, "rope_type": UNROTATED}


def _no_frequencies(config: Any, *_: Any, **__: Any) -> tuple[Tensor, float]:
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return torch.zeros(width // 2), 1.0


def slopes(heads: int) -> Tensor:
    """ALiBi's m [heads]: 2^(-8 / heads), its square, ...; where heads is no power of 2, as in the authors' code: every other
    one of those of twice as many heads fills up what the next smaller power gives.
    """
    power = 2 ** (heads.bit_length() - 1)
    found = [2 ** (-8 * (head + 1) / power) for head in range(power)]
    return torch.tensor(found + [2 ** (-4 * (2 * head + 1) / power) for head in range(heads - power)])


@dataclass
class Sight:
    """What a base lets its tokens see, in one forward pass; it stands where other attentions have their mask."""

    real: Tensor | None  # [n, length]: what is no padding; None where all is real
    causal: bool
    window: int | None  # the base's own
    biases: dict[tuple[int, int], Tensor] = field(default_factory=dict)  # layers of one pattern share theirs


def sight(
    q_length: int,
    kv_length: int,
    mask_function: Callable[..., Tensor],
    attention_mask: Tensor | None,
    config: Any,
    local_size: int | None = None,
    use_vmap: bool = False,
    **_: Any,
) -> Sight:
    """What transformers calls for a mask (AttentionMaskInterface). Raises ValueError for masks of which nothing is known here."""
    known = local_size is not None or mask_function in (causal_mask_function, bidirectional_mask_function)
    if use_vmap or not known or q_length != kv_length:
        raise ValueError("trainer.attention knows whole texts, causal or not, with a sliding window or not, and no other masks")
    # transformers forgets the name when it opens a model, and a copy that is saved would be opened with full attention.
    config.attn_implementation = NAME
    causal = not mask_function(*torch.tensor([0, 0, 0, 1]))  # whether token 0 sees token 1
    padded = attention_mask is not None and not bool(attention_mask.all())
    return Sight(attention_mask if padded else None, causal, local_size)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Sight,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """What transformers calls for attention (AttentionInterface). query [n, heads, length, width]; [n, length, heads, width].

    Raises ValueError where the base wants more than queries, keys, values and a sliding window.
    """
    strange = [name for name in ("softcap", "s_aux", "position_bias") if more.get(name) is not None]
    if strange or not isinstance(attention_mask, Sight) or attention_mask.window != sliding_window:
        raise ValueError(f"trainer.attention does not know the attention of this base ({', '.join(strange) or 'its mask'})")
    seen, length = attention_mask, query.shape[2]
    pattern = getattr(module.config, PATTERN)
    window, stride = pattern["windows"][module.layer_idx], pattern["strides"][module.layer_idx]
    reach = min(window // 2 if window else length, length if sliding_window is None else sliding_window - seen.causal)

    # Places are counted inside a residue class from here on.
    span, near = -(-length // stride), reach // stride
    size = max(2 * near, BLOCK)
    before, after = near, 0 if seen.causal else near
    if before + size + after >= span:
        size, before, after = span, 0, 0

    def spread(rows: Tensor, before: int = 0, after: int = 0, fill: int = 0) -> Tensor:
        """[n, heads, length, width] as [n * stride * blocks, heads, before + size + after, width]."""
        if stride == 1 and size == span:
            return rows
        end = stride * (-(-span // size) * size + after) - length
        classes = torch.unflatten(functional.pad(rows, (0, 0, before * stride, end), value=fill), 2, (-1, stride))
        blocks: Tensor = classes.unfold(2, before + size + after, size).permute(0, 3, 2, 1, 5, 4).flatten(0, 2)
        return blocks

    def bias() -> Tensor:
        """What is added to scores: [n * stride * blocks, 1 or heads, size, before + size + after]."""
        places = torch.arange(length, dtype=torch.int32, device=query.device)[None, None, :, None]
        real = places if seen.real is None else torch.where(seen.real[:, None, :, None], places, NOWHERE)
        keys = torch.unflatten(spread(real, before, after, NOWHERE), 0, (len(real), -1))
        distance = spread(places, fill=NOWHERE) - keys.mT
        visible = distance.abs() <= reach
        if seen.causal:
            visible &= distance >= 0
        added = torch.zeros((), device=query.device)
        if pattern["alibi"]:
            added = -slopes(query.shape[1]).to(query.device)[:, None, None] * distance.abs()
        # Not infinity: what sees nothing, as padding may, would be no number.
        lowest = torch.finfo(query.dtype).min
        return torch.where(visible, added.to(query.dtype), lowest).expand(len(query), -1, -1, -1, -1).flatten(0, 1)

    everything = size == span and reach >= length - 1 and seen.real is None and (seen.causal or length % stride == 0)
    mask = None
    if pattern["alibi"] or not everything:
        mask = seen.biases[stride, reach] = seen.biases[stride, reach] if (stride, reach) in seen.biases else bias()
    keys, values = spread(key, before, after), spread(value, before, after)
    output, _ = sdpa_attention_forward(
        module, spread(query), keys, values, mask, dropout=dropout, scaling=scaling, is_causal=seen.causal
    )
    classes = torch.unflatten(output, 0, (len(query), stride, -1)).flatten(2, 3)[:, :, :span]
    return classes.transpose(1, 2).flatten(1, 2)[:, :length], None


def register(name: str, attention: Callable[..., tuple[Tensor, None]]) -> None:
    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, sight)


register(NAME, attend)
ROPE_INIT_FUNCTIONS[UNROTATED] = _no_frequencies
