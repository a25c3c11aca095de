"""Bases: a model of transformers and its tokenizer, loaded, cut, turned, and asked whether it sees in both directions."""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers.normalizers import Lowercase
from tokenizers.normalizers import Sequence as Normalizers
from torch import Tensor

from datakit.assets import locate
from datakit.errors import MissingExtra, UserError
from trainer.attention import plan, turn_on
from trainer.config import Lora, ModelConfig


def load_base(config: ModelConfig, seed: int) -> tuple[Any, Any]:
    """The base in float32 and its tokenizer, as the config says. `seed` decides what is drawn: adapters, and no more.

    Raises UserError where a base cannot be loaded, or sees in other directions than it is asked to.
    """
    path = locate(config.base)
    _check_path(path, config)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            with quiet():
                base = _load_model(path, config)
                tokenizer = transformers.AutoTokenizer.from_pretrained(path, **_source(config))
                _check_direction(base, config)
                turn_on(base, config.base)
        except UserError:
            raise
        except Exception as error:  # broken files raise all kinds, that of tokenizers is Exception itself
            raise UserError(f"The base '{config.base}' could not be loaded: {first_line(error)}") from error
        if config.lora:
            base = _with_adapters(base, config.lora, config.base)
        else:
            _set_embeddings(base, config.embeddings)
    if tokenizer.pad_token_id is None:
        # Padding is never seen, so that any token does.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        if tokenizer.pad_token_id is None:
            raise UserError(f"The tokenizer of the base '{config.base}' has no token for padding, end or unknown.")
    tokenizer.padding_side = "right"
    tokenizer.truncation_side = "right"
    if config.lowercase:
        _set_lowercase(tokenizer, config.base)
    return base, tokenizer


def _set_lowercase(tokenizer: Any, name: str) -> None:
    """Lower case before all else that the tokenizer does to a text: tokenizer.json keeps it, for servers too."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError(
            f"model.lowercase: the base '{name}' has no fast tokenizer. Leave it out, or put texts in lower case before."
        )
    backend.normalizer = Normalizers([Lowercase(), *([] if backend.normalizer is None else [backend.normalizer])])


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


def _load_model(path: str, config: ModelConfig) -> Any:
    settings = transformers.AutoConfig.from_pretrained(path, **_source(config))
    if config.layers is not None:
        cut(settings, config, config.layers)
    if config.layer_weights is not None:
        _check_weights(settings, config, config.layer_weights)
    settings.output_hidden_states = config.layer_weights is not None  # stays in the config of an export
    plan(settings, config)
    # The one switch that is honoured with and without padding, and that survives saving (transformers >= 5.2).
    settings.is_causal = not config.bidirectional
    settings.use_cache = False
    base, info = transformers.AutoModel.from_pretrained(
        path, config=settings, dtype=torch.float32, output_loading_info=True, **_source(config)
    )
    # The pooler of BERT and its kin takes no part in our pooling, and many checkpoints lack it.
    if missing := sorted(name for name in info["missing_keys"] if not name.startswith("pooler.")):
        raise UserError(
            f"The weights of the base '{config.base}' lack {len(missing)} tensors of the model, such as '{missing[0]}'."
        )
    if getattr(base, "pooler", None) is not None:
        base.pooler.requires_grad_(False)
    if config.gguf is None:
        return base
    # A model that came out of a GGUF file refuses to be saved; one with the same weights and no trace of the file does not.
    plain = base.config.__class__.from_dict(
        {name: value for name, value in base.config.to_dict().items() if name != "quantization_config"}
    )
    fresh = transformers.AutoModel.from_config(plain, dtype=torch.float32)
    fresh.load_state_dict(base.state_dict())
    return fresh.eval()


def cut(settings: Any, config: ModelConfig, layers: int) -> None:
    whole = getattr(settings, "num_hidden_layers", None)
    if whole is None:
        raise UserError(f"model.layers: the base '{config.base}' ({settings.model_type}) does not say how many layers it has.")
    if layers > whole:
        raise UserError(f"model.layers is {layers}; the base '{config.base}' has {whole} layers.")
    settings.num_hidden_layers = layers
    if getattr(settings, "layer_types", None):
        settings.layer_types = settings.layer_types[:layers]


def _check_weights(settings: Any, config: ModelConfig, weights: list[float]) -> None:
    layers = getattr(settings, "num_hidden_layers", None)
    if layers != len(weights):
        raise UserError(
            f"model.layer_weights has {len(weights)} weights; the base '{config.base}' has {layers} layers"
            f"{'' if config.layers is None else ' (model.layers)'}. Give one for each, from the first."
        )


def token_states(output: Any, weights: Sequence[float] | None) -> Tensor:
    """The hidden states [n, longest, width] that are pooled: the last ones, or a weighted mean of those after each layer.

    As sentence-transformers' WeightedLayerPooling has it, with weights that stay (Peters et al. 2018, arXiv 1802.05365, eq. 1,
    learn them). The last layer's are those after the final norm, as transformers counts; those before it are not normed.
    """
    if weights is None:
        last: Tensor = output.last_hidden_state
        return last
    parts = [layer * (weight / sum(weights)) for layer, weight in zip(output.hidden_states[1:], weights, strict=True) if weight]
    mean: Tensor = functools.reduce(torch.add, parts)
    return mean


def _check_direction(base: Any, config: ModelConfig) -> None:
    sees = first_token_sees_last(base)
    if sees is config.bidirectional:
        return
    named = f"The base '{config.base}' ({base.config.model_type})"
    where = " in some batches and not in others" if sees is None else ""
    if config.bidirectional:
        raise UserError(
            f"{named} stays causal{where}: its first token does not see the last one. "
            "Choose a base that heeds config.is_causal, or set model.bidirectional: false."
        )
    raise UserError(f"{named} sees in both directions{where} and cannot be made causal. Leave model.bidirectional: false out.")


@torch.no_grad()
def first_token_sees_last(base: Any) -> bool | None:
    """Whether the first token's output changes with the last token: without a mask, with one, and in a batch with padding.

    None where the answers differ: BERT with is_causal is causal without padding only. Asked of as many tokens as stand in one
    attention window.
    """
    was_training = base.training
    base.eval()
    length = max(2, min(8, getattr(base.config, "sliding_window", None) or 8))
    ids = (torch.arange(2, 2 + length) % base.config.vocab_size).repeat(2, 1)
    ids[1, -1] = (ids[1, -1] + 1) % base.config.vocab_size
    longer = torch.cat([torch.cat([ids, ids[:, :2]], dim=1), torch.full((1, length + 2), int(ids[0, 0]))])
    mask = torch.ones_like(longer)
    mask[:2, -2:] = 0
    seen = set()
    for tokens, attention in ((ids, None), (ids, torch.ones_like(ids).to(base.device)), (longer, mask.to(base.device))):
        first = base(input_ids=tokens.to(base.device), attention_mask=attention).last_hidden_state[:2, 0].float()
        if not first.isfinite().all():
            raise ValueError("its vectors are not finite numbers, so its weights are damaged")
        seen.add(bool((first[0] - first[1]).abs().max() > 1e-6))
    base.train(was_training)
    return seen.pop() if len(seen) == 1 else None


def _set_embeddings(base: Any, kind: str) -> None:
    """Token embeddings get sparse gradients: a dense one is as large as the whole table, for each chunk of a batch anew.

    `trained`: the first one of a step is made dense when it is stored; those that follow are added to the rows they touch.
    `sparse`: it stays sparse, for an optimizer that moves only those rows.
    """
    embeddings = base.get_input_embeddings()
    embeddings.sparse = kind != "frozen"
    if kind == "frozen":
        embeddings.requires_grad_(False)
    elif kind == "trained":
        embeddings.weight.register_post_accumulate_grad_hook(_make_dense)


def _make_dense(parameter: Tensor) -> None:
    if parameter.grad is not None and parameter.grad.is_sparse:
        parameter.grad = parameter.grad.to_dense()


def _with_adapters(base: Any, lora: Lora, name: str) -> Any:
    """The base inside a PeftModel; only the adapters are trained, not even the embeddings."""
    try:
        import peft
    except ImportError as error:
        raise MissingExtra("model.lora", "peft", "lora") from error
    modules = [module for module, _ in base.named_modules()]
    for target in lora.targets:  # peft is content where one of them fits
        if not any(f".{module}".endswith(f".{target}") for module in modules):
            raise UserError(f"model.lora.targets does not fit the base '{name}': it has no layer named '{target}'.")
    settings = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=lora.targets or "all-linear",
        exclude_modules=[module for module in modules if module.startswith("pooler.")],
    )  # fmt: skip
    try:
        return peft.get_peft_model(base, settings)
    except ValueError as error:
        raise UserError(f"model.lora.targets does not fit the base '{name}': {first_line(error)}") from error
