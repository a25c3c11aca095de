"""The gradients of a step, whichever way memory is saved, are those of the definition: every loss, every way, dropout on."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import naive_losses
import pytest
import torch
import transformers
from torch._dynamo.testing import CompileCounterWithBackend
from toys import MakeBuild, save_base, tiny_config, toy_rows

from datakit.opened import Build
from trainer import gradcache, loop, unpadded
from trainer.config import ModelConfig, Stage
from trainer.data import TrainingRows
from trainer.dryrun import pretended
from trainer.losses import batch_loss
from trainer.model import Encoder, Tokens, load_encoder

LOSSES: dict[str, dict[str, Any]] = {
    "InfoNCE": {},
    "hard": {"false_negative_margin": 0.05},
    "focal": {"focal": {"gamma": 0.5, "detach": False}},
    "mixing": {"mixing": {"pairs": 1, "lists": True}},
    "KL": {"contrastive": 0.0, "distillation": {"teacher": "random"}},
    "KL over texts": {"contrastive": 0.5, "distillation": {"teacher": "random", "documents": "texts", "teacher_temperature": 0.2}},
    "all": {
        "form": "qwen3", "false_negative_margin": 0.1, "focal": {}, "mixing": {}, "distillation": {"teacher": "random"},
        "triangle": {"epsilon": 0.1},
    },
}  # fmt: skip
WAYS = {"plain": (False, False), "gradient caching": (True, False), "checkpointing": (False, True), "both": (True, True)}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tokenizer: transformers.PreTrainedTokenizerFast) -> str:
    return save_base(tmp_path_factory.mktemp("qwen3"), tokenizer, tiny_config("qwen3", attention_dropout=0.2, head_dim=8))


def encoder_of(base: str, checkpointing: bool, **more: Any) -> Encoder:
    encoder = load_encoder(
        ModelConfig.model_validate({"base": base, "max_length": 24, "projection": 16, **more}), seed=1
    ).double()
    encoder.chunk_tokens = 40  # several chunks
    encoder.activation_checkpointing(checkpointing)
    return encoder.train()


def collected(encoder: Encoder) -> dict[str, torch.Tensor]:
    return {name: value.grad.to_dense() for name, value in encoder.named_parameters() if value.grad is not None}


@pytest.mark.parametrize(("loss", "dimensions"), list(itertools.product(LOSSES, ([], [16, 8, 4]))))
def test_every_way_gives_the_gradients_of_the_definition(
    loss: str, dimensions: list[int], base: str, toy_build: Build, tmp_path: Path
) -> None:
    value = {"name": "one", "loss": {**LOSSES[loss], "dimensions": dimensions}, "training": {"steps": 1}}
    stage = Stage.model_validate({**value, "data": {"batch_size": 12, "negatives": 0 if loss == "InfoNCE" else 2}})
    rows = TrainingRows(toy_build, str(tmp_path), stage, 0)
    naive = encoder_of(base, False)
    batch = rows.batch(0, 0, naive, 0.0)
    teacher = pretended(batch, "embeddings") if stage.loss.distillation else None
    targets = loop.targets_of(batch, teacher, naive.device)
    texts, count = batch.queries + batch.documents, len(batch.queries)
    tokens = naive.tokenize(texts)
    assert len(naive.chunks(tokens)) > 2

    vectors = naive(tokens, 3)
    expected_loss = naive_losses.naive_loss(vectors[:count], vectors[count:], targets, stage.loss, 0.05, 3)
    torch.autograd.backward(expected_loss)
    expected = collected(naive)
    assert set(expected) == {name for name, value in naive.named_parameters() if value.requires_grad}

    def objective(vectors: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return batch_loss(vectors[:count], vectors[count:], targets, stage.loss, 0.05, 3)

    for cached, checkpointing in WAYS.values():
        encoder = encoder_of(base, checkpointing)
        gradcache.backward(encoder, tokens, 3, objective, cached)
        found = collected(encoder)
        assert set(found) == set(expected)
        for name, gradient in expected.items():
            assert gradient.norm() > 0, name
            assert (found[name] - gradient).norm() <= 1e-6 * gradient.norm(), (name, cached, checkpointing)


def test_gradient_caching_computes_all_chunks_but_the_last_twice(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, seen = encoder_of(base, False), []
    tokens = encoder.tokenize([encoder.query_text(row["query"], None) for row in toy_rows()])
    whole = encoder.chunk_vectors

    def chunk_vectors(tokens: Tokens, chunk: list[int], seed: int | None) -> torch.Tensor:
        seen.append((tuple(chunk), torch.is_grad_enabled()))
        return whole(tokens, chunk, seed)

    monkeypatch.setattr(encoder, "chunk_vectors", chunk_vectors)
    gradcache.backward(encoder, tokens, 0, lambda vectors: (vectors.square().sum(), {}), True)
    chunks = [tuple(chunk) for chunk in encoder.chunks(tokens)]
    assert len(chunks) > 2
    assert sorted(chunk for chunk, graph in seen if graph) == sorted(chunks)
    assert sorted(chunk for chunk, graph in seen if not graph) == sorted(chunks[:-1])


def test_dropout_is_on_and_a_function_of_the_seed(base: str) -> None:
    encoder = encoder_of(base, False)
    tokens = encoder.tokenize([encoder.query_text("what is red house", None), encoder.query_text("where", None)])
    first, again, other = (encoder(tokens, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


@pytest.mark.parametrize("embeddings", ["trained", "sparse"])
def test_gradients_of_embeddings_are_the_same_sparse_or_dense(embeddings: str, base: str, make_build: MakeBuild) -> None:
    found = encoder_of(base, False, embeddings=embeddings)
    dense = encoder_of(base, False)
    dense.base.get_input_embeddings().sparse = False
    for encoder in (found, dense):
        tokens = encoder.tokenize([encoder.query_text(row["query"], None) for row in toy_rows()])
        gradcache.backward(encoder, tokens, 0, lambda vectors: ((vectors * torch.arange(16)).square().sum(), {}), True)
    assert found.embedding_parameter.grad is not None
    assert found.embedding_parameter.grad.is_sparse == (embeddings == "sparse")
    for name, gradient in collected(dense).items():
        assert torch.allclose(collected(found)[name], gradient, rtol=1e-9), name


def test_in_bfloat16_every_way_gives_the_gradients_of_float32_up_to_rounding(tiny_base: str) -> None:
    def gradients(compute: torch.dtype, cached: bool, checkpointing: bool) -> torch.Tensor:
        encoder = load_encoder(ModelConfig(base=tiny_base, max_length=24)).train()
        encoder.compute, encoder.chunk_tokens = compute, 40
        encoder.activation_checkpointing(checkpointing)
        tokens = encoder.tokenize([encoder.query_text(row["query"], None) for row in toy_rows()])
        weights = torch.linspace(-1, 1, encoder.dimension)
        gradcache.backward(encoder, tokens, 0, lambda vectors: ((vectors * weights).sum(1).square().sum(), {}), cached)
        return torch.cat([gradient.flatten() for gradient in collected(encoder).values()])

    expected = gradients(torch.float32, False, False)
    for way in WAYS.values():
        found = gradients(torch.bfloat16, *way)
        assert not torch.equal(found, expected)
        assert (found - expected).norm() <= 0.05 * expected.norm(), way


@pytest.mark.parametrize("in_rows", [False, True])
def test_compiled_layers_give_the_gradients_of_plain_ones(base: str, in_rows: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the graphs that torch traces, without the machine code of inductor, which takes minutes to make."""
    torch._dynamo.reset()
    graphs = CompileCounterWithBackend("aot_eager")
    compiled = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **more: compiled(self, backend=graphs, **more))
    found = []
    for way in ("plain", "compiled"):
        encoder = encoder_of(base, checkpointing=False)
        if in_rows:
            unpadded.turn_on(encoder)
        if way == "compiled":
            encoder.compile_layers()
        tokens = encoder.tokenize([encoder.query_text("alpha beta " * length, None) for length in (1, 2, 3, 5, 8)])
        aim = torch.randn(len(tokens), encoder.dimension, generator=torch.Generator().manual_seed(3)).double()
        gradcache.backward(encoder, tokens, 5, lambda vectors, aim=aim: ((vectors * aim).sum(), {}), cached=True)
        found.append(collected(encoder))
    # With and without gradients, with and without a mask, and for one text alone: for all layers and lengths together.
    assert 2 <= graphs.frame_count <= 6
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-5, atol=1e-6)
