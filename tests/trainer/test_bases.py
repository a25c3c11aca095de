"""Every family of bases: in both directions, however it is padded, before and after saving, here and in sentence-transformers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer
from torch import Tensor
from toys import save_base, tiny_config

from datakit.errors import UserError
from trainer.base import first_token_sees_last
from trainer.config import ModelConfig
from trainer.export import export
from trainer.model import Prompted, load_encoder

Tokenizer = transformers.PreTrainedTokenizerFast
WINDOWED = {"sliding_window": 4, "layer_types": ["sliding_attention"] * 3}
DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "qwen2": ("qwen2", {}),
    "qwen2 with windows": ("qwen2", {"use_sliding_window": True, "max_window_layers": 0, **WINDOWED}),
    "qwen3": ("qwen3", {"head_dim": 8}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral with windows": ("mistral", {"sliding_window": 4}),
    "phi3": ("phi3", {}),
    "gemma": ("gemma", {"head_dim": 8}),
    "gemma2": ("gemma2", {"head_dim": 8, "query_pre_attn_scalar": 8, **WINDOWED}),
    "gemma3": ("gemma3_text", {"head_dim": 8, "query_pre_attn_scalar": 8}),
    "gemma3 with windows": ("gemma3_text", {"head_dim": 8, "query_pre_attn_scalar": 8, **WINDOWED}),
}
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", {}),
    "roberta": ("roberta", {}),
    "xlm-roberta": ("xlm-roberta", {}),
    "modernbert": ("modernbert", {"local_attention": 8, "global_attn_every_n_layers": 2, "cls_token_id": 1, "sep_token_id": 1}),
}
IDS = torch.tensor([[5, 6, 7, 8, 9], [5, 6, 7, 8, 10]])
TEXTS = ["the red house", "a", "what is green horse the river turns black and the stone falls is a", "find blue table"]


def saved(name: str, folder: Path, tokenizer: Tokenizer) -> str:
    kind, more = {**DECODERS, **ENCODERS}[name]
    return save_base(folder / "base", tokenizer, tiny_config(kind, **more))


def hidden_states(base: Any) -> dict[str, Tensor]:
    """The hidden states [2, 5, 32] of IDS: alone, in one batch, padded right and left by more than a window."""
    pad = torch.full((2, 6), 1)
    mask = torch.tensor([[1] * 5 + [0] * 6] * 2)
    with torch.no_grad():
        return {
            "alone": torch.cat([base(input_ids=row[None]).last_hidden_state for row in IDS]),
            "batch": base(input_ids=IDS).last_hidden_state,
            "right": base(input_ids=torch.cat([IDS, pad], 1), attention_mask=mask).last_hidden_state[:, :5],
            "left": base(input_ids=torch.cat([pad, IDS], 1), attention_mask=mask.flip(1)).last_hidden_state[:, 6:],
        }


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_reads_in_both_directions_padded_or_not_here_and_after_export(
    name: str, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    encoder = load_encoder(ModelConfig(base=saved(name, tmp_path, tokenizer), max_length=24))
    export_here(encoder, tmp_path / "model")
    again = transformers.AutoModel.from_pretrained(tmp_path / "model").eval()
    opened = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    expected = hidden_states(encoder.base.eval())["alone"]
    for base in (encoder.base, again, opened[0].auto_model):
        for way, found in hidden_states(base).items():
            assert (found[0, 0] - found[1, 0]).abs().max() > 1e-4, way
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5, msg=lambda text, way=way: f"{way}: {text}")
    # The tokenizers of some families read the file of a toy in their own way.
    encoder.tokenizer = copy.deepcopy(tokenizer)
    encoder.tokenizer.pad_token = "<end>"
    opened.tokenizer = copy.deepcopy(encoder.tokenizer)
    ours = encoder.embed([Prompted("", text) for text in TEXTS])
    for side in ("right", "left"):
        opened.tokenizer.padding_side = side
        np.testing.assert_allclose(opened.encode(TEXTS, batch_size=4), ours, atol=1e-5, err_msg=side)
        np.testing.assert_allclose(np.stack([opened.encode(text) for text in TEXTS]), ours, atol=1e-5)


@pytest.mark.parametrize("name", ["mistral with windows", "gemma3 with windows"])
def test_a_window_opens_to_both_sides(name: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    base = load_encoder(ModelConfig(base=saved(name, tmp_path, tokenizer), layers=1)).base.eval()
    ids = torch.arange(2, 18)[None]
    with torch.no_grad():
        plain = base(input_ids=ids).last_hidden_state[0]
        for place in (0, 8, 15):
            other = ids.clone()
            other[0, place] = 40
            changed = (base(input_ids=other).last_hidden_state[0] - plain).abs().amax(1) > 1e-6
            assert changed.nonzero()[:, 0].tolist() == list(range(max(place - 4, 0), min(place + 5, 16)))


@pytest.mark.parametrize("name", [*DECODERS, *ENCODERS])
def test_each_family_trains_the_same_whatever_is_asked_of_its_memory(name: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Gradients of one chunk, of many, and with activation checkpointing, without dropout and with it: equal."""
    encoder = load_encoder(ModelConfig(base=saved(name, tmp_path, tokenizer), max_length=24, layers=2)).double()
    tokens = encoder.tokenize([Prompted("find ", text) for text in TEXTS])

    def gradients(seed: int | None) -> dict[str, Tensor]:
        encoder.zero_grad(set_to_none=True)
        encoder(tokens, seed)[:, ::2].square().sum().backward()
        return {key: value.grad for key, value in encoder.named_parameters() if value.requires_grad and value.grad is not None}

    encoder.eval()
    whole = gradients(None)
    assert set(whole) == {key for key, value in encoder.named_parameters() if value.requires_grad}
    assert not any(value.is_sparse for value in whole.values())
    encoder.chunk_tokens = 1
    assert len(encoder.chunks(tokens)) == 4
    compare(gradients(None), whole)
    encoder.train()
    dropped = gradients(7)
    compare(gradients(7), dropped)
    encoder.activation_checkpointing(True)
    compare(gradients(7), dropped)


def compare(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert (found[name] - value).norm() <= 1e-6 * value.norm() + 1e-12, name


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_is_cut_and_exported_and_cannot_be_made_causal(name: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    folder = saved(name, tmp_path, tokenizer)
    encoder = load_encoder(ModelConfig(base=folder, layers=2, pooling="cls", max_length=24))
    assert encoder.base.config.num_hidden_layers == 2
    export_here(encoder, tmp_path / "model")
    opened = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert first_token_sees_last(opened[0].auto_model)
    np.testing.assert_allclose(opened.encode(TEXTS), encoder.embed([Prompted("", text) for text in TEXTS]), atol=1e-5)
    with pytest.raises(UserError, match="sees in both directions and cannot be made causal"):
        load_encoder(ModelConfig(base=folder, bidirectional=False))


def test_an_encoder_without_a_pooler_is_loaded(tmp_path: Path, tokenizer: Tokenizer) -> None:
    folder = saved("bert", tmp_path, tokenizer)
    transformers.BertModel.from_pretrained(folder, add_pooling_layer=False).save_pretrained(folder)
    first, second = (load_encoder(ModelConfig(base=folder)).state_dict() for _ in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def export_here(encoder: Any, folder: Path) -> None:
    export(encoder, str(folder), {"query": "", "document": ""}, "toy", "v1", [32], {32: 0.5})
