"""A decoder that reads in both directions, and one vector for each text."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn

from datakit.assets import locate
from datakit.errors import UserError
from trainer.config import ModelConfig

log = logging.getLogger(__name__)

# Padded tokens that go through the base at once. Texts are sorted by length first, so that little of it is padding.
CHUNK_TOKENS = {"cpu": 1_024, "cuda": 65_536}


class Encoder(nn.Module):
    """Texts to vectors: the base, the mean over its last hidden states without padding, L2 norm 1."""

    def __init__(self, base: Any, tokenizer: Any, config: ModelConfig) -> None:
        super().__init__()
        self.base = base
        self.tokenizer = tokenizer
        self.config = config
        # The type in which the base computes; float32 means no autocast. Pooling and norm are float32 always.
        self.compute: torch.dtype = torch.float32

    @property
    def dimension(self) -> int:
        return int(self.base.config.hidden_size)

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.base.parameters()).device
        return device

    def query_text(self, text: str, instruction: str | None) -> str:
        return prefix(self.config.query_prefix, instruction) + text

    def document_text(self, text: str, instruction: str | None) -> str:
        return prefix(self.config.document_prefix, instruction) + text

    def tokenize(self, texts: Sequence[str], max_length: int | None = None) -> list[list[int]]:
        """Token ids of each text, cut to `max_length` (the config's by default), never empty."""
        if not texts:
            return []
        ids = self.tokenizer(list(texts), truncation=True, max_length=max_length or self.config.max_length)["input_ids"]
        return [list(row) or [self.tokenizer.pad_token_id] for row in ids]

    def forward(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """Vectors [len(tokens), dimension], float32, of norm 1, in the order of `tokens`."""
        order = sorted(range(len(tokens)), key=lambda number: (len(tokens[number]), number))
        parts = [self._pooled([tokens[number] for number in chunk]) for chunk in chunks(order, tokens, self._budget())]
        inverse = torch.empty(len(order), dtype=torch.long)
        inverse[torch.tensor(order)] = torch.arange(len(order))
        return nn.functional.normalize(torch.cat(parts)[inverse.to(self.device)], dim=1)

    def _budget(self) -> int:
        return CHUNK_TOKENS.get(self.device.type, CHUNK_TOKENS["cuda"])

    def _pooled(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        ids, mask = padded(tokens, self.tokenizer.pad_token_id)
        ids, mask = ids.to(self.device), mask.to(self.device)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.compute == torch.bfloat16):
            hidden = self.base(input_ids=ids, attention_mask=mask).last_hidden_state
        return mean_pool(hidden, mask)

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors [len(texts), dimension] float32, of norm 1, without gradients and dropout."""
        was_training = self.training
        self.eval()
        tokens = self.tokenize(texts)
        vectors = self(tokens).cpu().numpy() if tokens else np.zeros((0, self.dimension), np.float32)
        self.train(was_training)
        return np.asarray(vectors, np.float32)


def prefix(template: str, instruction: str | None) -> str:
    """What stands before a text: the template with the instruction, or nothing where there is none."""
    return template.format(instruction=instruction) if instruction else ""


def chunks(order: Sequence[int], tokens: Sequence[Sequence[int]], budget: int) -> list[list[int]]:
    """Cuts `order` (ascending by length) into runs whose padded size is at most `budget` tokens; a longer text is alone."""
    result: list[list[int]] = []
    for number in order:
        if result and len(tokens[number]) * (len(result[-1]) + 1) <= budget:
            result[-1].append(number)
        else:
            result.append([number])
    return result


def padded(tokens: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Ids and attention mask [n, longest], padded on the right."""
    width = max(map(len, tokens))
    ids = torch.full((len(tokens), width), pad, dtype=torch.long)
    mask = torch.zeros((len(tokens), width), dtype=torch.long)
    for number, row in enumerate(tokens):
        ids[number, : len(row)] = torch.tensor(row)
        mask[number, : len(row)] = 1
    return ids, mask


def mean_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """The mean [n, d] of the hidden states [n, length, d] where the mask [n, length] is 1, in float32."""
    weights = mask.unsqueeze(-1).float()
    return (hidden.float() * weights).sum(1) / weights.sum(1).clamp(min=1.0)


def load_encoder(config: ModelConfig) -> Encoder:
    """Loads the base in float32, cut and made bidirectional as the config says. Raises UserError where that cannot be."""
    path = locate(config.base)
    _check_path(path, config)
    try:
        with quiet():
            base = _load_base(path, config)
            tokenizer = transformers.AutoTokenizer.from_pretrained(path, **_source(config))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, ImportError) as error:
        raise UserError(f"The base '{config.base}' could not be loaded: {first_line(error)}") from error
    if tokenizer.pad_token_id is None:
        # Padding is never seen, so that any token does.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        if tokenizer.pad_token_id is None:
            raise UserError(f"The tokenizer of the base '{config.base}' has no token for padding, end or unknown.")
    tokenizer.padding_side = "right"
    tokenizer.truncation_side = "right"
    if config.bidirectional and not first_token_sees_last(base):
        raise UserError(
            f"The base '{config.base}' ({base.config.model_type}) stays causal: its first token does not see the last one. "
            "Choose a base that heeds config.is_causal, or set model.bidirectional: false."
        )
    base.get_input_embeddings().requires_grad_(config.train_embeddings)
    return Encoder(base, tokenizer, config)


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps the bars and notes of transformers off the terminal. The bar of its GGUF reader heeds no switch."""
    settings = transformers.utils.logging
    verbosity, bar = settings.get_verbosity(), settings.is_progress_bar_enabled()
    settings.set_verbosity_error()
    settings.disable_progress_bar()
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        settings.set_verbosity(verbosity)
        if bar:
            settings.enable_progress_bar()


def first_line(error: Exception) -> str:
    """What an error says first; its name where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _check_path(path: str, config: ModelConfig) -> None:
    local = os.path.exists(path)
    if not local and (path.startswith((".", "/")) or path.count("/") > 1):
        raise UserError(f"The base '{config.base}' is not there. Give a folder, a name on the hub, or package:NAME/inner/path.")
    if os.path.isfile(path):
        raise UserError(f"The base '{config.base}' is a file. Give its folder, and for a GGUF file its name as model.gguf.")
    if local and config.gguf is None:
        names = sorted(os.listdir(path))
        if "config.json" not in names:
            ggufs = [name for name in names if name.endswith(".gguf")]
            hint = f"Add model.gguf: {ggufs[0]}." if ggufs else "A folder made by save_pretrained is needed."
            raise UserError(f"The folder '{config.base}' holds no config.json, so it is no model of transformers. {hint}")
        if not any(name.endswith((".safetensors", ".bin", ".index.json")) for name in names):
            raise UserError(f"The folder '{config.base}' has a config.json and no weights (looked for model.safetensors).")
    if local and config.gguf is not None and not os.path.isfile(os.path.join(path, config.gguf)):
        found = ", ".join(sorted(file.name for file in Path(path).glob("*.gguf"))) or "no .gguf file"
        raise UserError(f"'{config.base}' holds no '{config.gguf}'; it holds {found}.")


def _source(config: ModelConfig) -> dict[str, Any]:
    source = {"gguf_file": config.gguf, "revision": config.revision}
    return {name: value for name, value in source.items() if value is not None}


def _load_base(path: str, config: ModelConfig) -> Any:
    settings = transformers.AutoConfig.from_pretrained(path, **_source(config))
    if config.layers is not None:
        _cut(settings, config)
    # The one switch that is honoured with and without padding, and that survives saving (transformers >= 5.2).
    settings.is_causal = not config.bidirectional
    settings.use_cache = False
    base, info = transformers.AutoModel.from_pretrained(
        path, config=settings, dtype=torch.float32, output_loading_info=True, **_source(config)
    )
    if missing := sorted(info["missing_keys"]):
        raise UserError(
            f"The weights of the base '{config.base}' lack {len(missing)} tensors of the model, such as '{missing[0]}'."
        )
    if config.gguf is None:
        return base
    # A model that came out of a GGUF file refuses to be saved; one with the same weights and no trace of the file does not.
    plain = base.config.__class__.from_dict(
        {name: value for name, value in base.config.to_dict().items() if name != "quantization_config"}
    )
    fresh = transformers.AutoModel.from_config(plain, dtype=torch.float32)
    fresh.load_state_dict(base.state_dict())
    return fresh.eval()


def _cut(settings: Any, config: ModelConfig) -> None:
    whole = getattr(settings, "num_hidden_layers", None)
    if whole is None:
        raise UserError(f"model.layers: the base '{config.base}' ({settings.model_type}) does not say how many layers it has.")
    assert config.layers is not None
    if config.layers > whole:
        raise UserError(f"model.layers is {config.layers}; the base '{config.base}' has {whole} layers.")
    settings.num_hidden_layers = config.layers
    if getattr(settings, "layer_types", None):
        settings.layer_types = settings.layer_types[: config.layers]


@torch.no_grad()
def first_token_sees_last(base: Any) -> bool:
    """Whether the first token's output changes with the last token, alone and in a batch with padding."""
    was_training = base.training
    base.eval()
    ids = (torch.arange(2, 10) % base.config.vocab_size).repeat(2, 1)
    ids[1, -1] = (ids[1, -1] + 1) % base.config.vocab_size
    longer = torch.cat([torch.cat([ids, ids[:, :2]], dim=1), torch.full((1, 10), int(ids[0, 0]))])
    mask = torch.ones_like(longer)
    mask[:2, -2:] = 0
    seen = []
    for tokens, attention in ((ids, torch.ones_like(ids)), (longer, mask)):
        first = base(input_ids=tokens.to(base.device), attention_mask=attention.to(base.device)).last_hidden_state[:2, 0].float()
        seen.append(bool((first[0] - first[1]).abs().max() > 1e-6))
    base.train(was_training)
    return all(seen)
