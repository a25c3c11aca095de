"""Embedder, and exports of every shape of encoder."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer
from toys import save_base, tiny_config

from datakit.errors import UserError
from trainer import Embedder, heads
from trainer.base import first_token_sees_last
from trainer.config import ModelConfig
from trainer.export import export
from trainer.model import Prompted, load_encoder

TEXTS = ["the red house", "what is green horse the river turns black", "a"]
PROMPTS = {"query": "Instruct: find\nQuery: ", "document": ""}


def exported(folder: Path, config: dict[str, Any]) -> tuple[Any, str]:
    encoder = load_encoder(ModelConfig.model_validate(config), seed=4)
    for parameter in encoder.parameters():  # adapters begin at 0
        if parameter.requires_grad and parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(parameter.numel()))
    export(encoder, str(folder), PROMPTS, "toy", "v1", [16, 8], {16: 0.5, 8: 0.4})
    return encoder, str(folder)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"pooling": "last"},
        {"pooling": "cls"},
        {"pooling": "weighted"},
        {"pool_instruction": False},
        {"pooling": "weighted", "pool_instruction": False, "projection": 16},
        {"projection": 16},
        {"layer_weights": [2, 0, 0.5]},
        {"lowercase": True},
        {"layer_weights": [1, 2, 3], "pooling": "weighted", "pool_instruction": False, "projection": 16, "lora": {"rank": 4}},
        {"lora": {"rank": 4}},
        {"bidirectional": False, "pooling": "last"},
    ],
    ids=str,
)
def test_an_export_gives_the_vectors_of_the_encoder(change: dict[str, Any], tiny_base: str, tmp_path: Path) -> None:
    if "lora" in change:
        pytest.importorskip("peft", reason="the extra 'lora' is not installed")
    encoder, folder = exported(tmp_path / "model", {"base": tiny_base, "max_length": 24, **change})
    card = (tmp_path / "model" / "README.md").read_text()
    assert ("with the weights 2, 0, 0.5, unit length" in card) == (change.get("layer_weights") == [2, 0, 0.5])
    assert ("texts are read in lower case" in card) == bool(change.get("lowercase"))
    embedder = Embedder.load(folder)
    for kind, prompt in PROMPTS.items():
        ours = encoder.embed([Prompted(prompt, text) for text in TEXTS])
        np.testing.assert_allclose(embedder.encode(TEXTS, kind=kind), ours, atol=1e-5)  # type: ignore[arg-type]
    if "lora" in change:
        assert not [name for name in SentenceTransformer(folder, device="cpu")[0].auto_model.state_dict() if "lora" in name]
        assert any("lora" in name for name, parameter in encoder.named_parameters() if parameter.requires_grad)


KINDS: dict[str, dict[str, Any]] = {
    "qwen2": {}, "qwen3": {"head_dim": 8}, "llama": {}, "mistral": {"sliding_window": 6}, "phi3": {"pad_token_id": 1},
    "gemma": {"head_dim": 8}, "gemma2": {"head_dim": 8, "sliding_window": 6}, "bert": {},
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_base_sees_both_ways_padded_saved_and_in_sentence_transformers(
    kind: str, tmp_path: Path, tokenizer: transformers.PreTrainedTokenizerFast
) -> None:
    folder = save_base(tmp_path / "base", tokenizer, tiny_config(kind, **KINDS[kind]))
    encoder, saved = exported(tmp_path / "model", {"base": folder, "max_length": 24})
    opened = SentenceTransformer(saved, device="cpu")
    ids = torch.tensor([[5, 6, 7, 8, 9], [5, 6, 7, 8, 10]])
    pad = torch.ones(2, 3, dtype=torch.long)
    for base in (encoder.base.eval(), opened[0].auto_model.eval()):
        assert first_token_sees_last(base)
        alone = base(input_ids=ids).last_hidden_state
        right = base(input_ids=torch.cat([ids, pad], 1), attention_mask=torch.cat([torch.ones_like(ids), pad * 0], 1))
        left = base(input_ids=torch.cat([pad, ids], 1), attention_mask=torch.cat([pad * 0, torch.ones_like(ids)], 1))
        one = base(input_ids=ids[:1]).last_hidden_state
        outputs = [alone, right.last_hidden_state[:, :5]]
        if kind != "bert":  # its positions are absolute
            outputs.append(left.last_hidden_state[:, 3:])
        for hidden in outputs:
            assert (hidden[0, 0] - hidden[1, 0]).abs().max() > 1e-5
            torch.testing.assert_close(hidden, alone, rtol=0, atol=1e-5)
        torch.testing.assert_close(one[0], alone[0], rtol=0, atol=1e-5)
    together = encoder.embed([Prompted("", text) for text in TEXTS])
    for number, text in enumerate(TEXTS):
        np.testing.assert_allclose(encoder.embed([Prompted("", text)])[0], together[number], atol=1e-5)
        if kind != "qwen2":  # transformers makes a tokenizer of Qwen2 anew, without the words of the toy
            np.testing.assert_allclose(opened.encode(text), together[number], atol=1e-5)


def test_dimensions_are_cut_and_made_unit_again_and_wrong_ones_are_told(
    tiny_base: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, folder = exported(tmp_path / "model", {"base": tiny_base, "max_length": 24, "projection": 16})
    embedder = Embedder.load(folder)
    whole = embedder.encode(TEXTS)
    cut = embedder.encode(TEXTS, dim=8)
    assert (whole.shape, cut.shape, cut.dtype) == ((3, 16), (3, 8), np.float32)
    np.testing.assert_allclose(cut, whole[:, :8] / np.linalg.norm(whole[:, :8], axis=1, keepdims=True), atol=1e-6)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        embedder.encode(TEXTS, dim=5)
    assert "Dimension 5 was not trained; those that were: 16, 8." in caplog.text
    with pytest.raises(UserError, match="dim is 17; allowed: 1 to 16"):
        embedder.encode(TEXTS, dim=17)
    with pytest.raises(UserError, match=r"has no matryoshka\.json"):
        Embedder.load(tiny_base)
    np.testing.assert_array_equal(embedder.encode(TEXTS[0], dim=8), embedder.encode(TEXTS[:1], dim=8)[0])
    card = (tmp_path / "model" / "README.md").read_text()
    assert "| 8 | 0.400 |" in card
    assert "`v1`" in card
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"model' could not be loaded"):
        Embedder.load(folder)
    (tmp_path / "model" / "heads.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"heads\.safetensors' is damaged"):
        heads.load(folder)
    (tmp_path / "model" / "matryoshka.json").write_text("{}")
    with pytest.raises(UserError, match=r"matryoshka\.json"):
        Embedder.load(folder)
