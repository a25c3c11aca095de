"""Elastic weight consolidation: the Fisher information of rows, the penalty and its gradient, and runs that have it."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from rich.console import Console
from safetensors.torch import load_file
from toys import MakeBuild, row, toy_config, toy_rows

from datakit.errors import UserError
from datakit.opened import Build
from trainer import consolidation, loop, stages
from trainer.checkpoint import place, trained
from trainer.config import Config, ModelConfig, Stage
from trainer.data import TrainingRows
from trainer.evaluation.retrieval import load_task
from trainer.heads import attach
from trainer.model import Encoder, load_encoder
from trainer.run import open_run

QUIET = Console(quiet=True)


def encoder_of(base: str, **more: Any) -> Encoder:
    return load_encoder(ModelConfig.model_validate({"base": base, "max_length": 24, "projection": 16, **more}), seed=1).double()


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("embeddings", ["trained", "sparse"])
def test_fisher_is_the_mean_square_of_the_gradients_of_single_rows(
    embeddings: str, cached: bool, tiny_base: str, make_build: MakeBuild, tmp_path: Path
) -> None:
    train = [*toy_rows()[:13], *toy_rows("others", 2)[:9], row("graded", "text", score=0.5)]
    value = {
        "name": "one", "data": {"batch_size": 5, "negatives": 1}, "loss": {"similarity": {}},
        "training": {"steps": 1, "gradient_cache": cached},
    }  # fmt: skip
    stage = Stage.model_validate(value)
    rows = TrainingRows(make_build(train, [row("q", "p")]), str(tmp_path), stage, 0)
    encoder = encoder_of(tiny_base, embeddings=embeddings)
    encoder.chunk_tokens = 40
    most = 9
    found, count = consolidation.fisher(encoder.train(), rows, stage, None, most)
    assert count == most
    assert all(parameter.grad is None for parameter in encoder.parameters())

    # Batches of 5, 4 and 4, of 5 and 4, and one of the graded row: the first of each, and the second of four.
    batches = [rows.batch(0, number, encoder, 1.0) for number in range(rows.batches_per_epoch)]
    ungraded = [batch for batch in batches if batch.scores is None]
    assert (len(batches), len(ungraded)) == (6, 5)
    chosen = [(batch, 0) for batch in ungraded] + [(batch, 1) for batch in ungraded[:4]]
    encoder.eval()
    parameters = trained(encoder)
    expected = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for batch, number in chosen:
        queries, documents = (encoder(encoder.tokenize(texts)) for texts in (batch.queries, batch.documents))
        logits = (queries[number] @ documents.T / stage.loss.temperature)[torch.from_numpy(batch.candidates[number])]
        right = int(batch.candidates[number][: batch.positive[number]].sum())
        loss = torch.logsumexp(logits, 0) - logits[right]
        encoder.zero_grad()
        torch.autograd.backward(loss)
        for name, parameter in parameters.items():
            assert parameter.grad is not None
            expected[name] += parameter.grad.to_dense() ** 2 / most
    for name, value_ in expected.items():
        assert value_.norm() > 0, name
        assert (found[name] - value_).norm() <= 1e-6 * value_.norm(), name


def test_fisher_takes_the_rows_that_there_are(tiny_base: str, make_build: MakeBuild, tmp_path: Path) -> None:
    stage = Stage.model_validate({"name": "one", "data": {"batch_size": 4}, "training": {"steps": 1}})
    rows = TrainingRows(make_build(toy_rows()[:6], [row("q", "p")]), str(tmp_path), stage, 0)
    assert consolidation.fisher(encoder_of(tiny_base), rows, stage, None, 100)[1] == 6
    graded = Stage.model_validate({"name": "one", "loss": {"similarity": {}}, "training": {"steps": 1}})
    only = TrainingRows(make_build([row("a", "b", score=1.0)], [row("q", "p")], name="graded"), str(tmp_path), graded, 0)
    with pytest.raises(UserError, match="no row in 'train' that stage 'one' can be trained on"):
        consolidation.fisher(encoder_of(tiny_base), only, graded, None, 100)


def test_fisher_is_of_the_loss_through_the_head(tiny_base: str, toy_build: Build, tmp_path: Path) -> None:
    objectives = {"search": {"categories": ["things"]}}
    config = toy_config(tiny_base, model={"heads": {"layers": 2, "width": 1}}, objectives=objectives)
    rows, found = TrainingRows(toy_build, str(tmp_path), config.stages[0], 0), []
    for spread in (1.0, 5.0):
        encoder = load_encoder(config.model)
        attach(encoder, config)
        with torch.no_grad():
            encoder.heads["search"].second.weight.normal_(std=spread, generator=torch.Generator().manual_seed(1))
        found.append(consolidation.fisher(encoder, rows, config.stages[0], None, 4)[0])
    assert all(value.any() for name, value in found[0].items() if name.startswith("heads."))
    assert not any(torch.equal(found[0][name], found[1][name]) for name in found[0] if name.endswith("q_proj.weight"))


def test_fisher_is_of_the_batches_that_the_stage_was_trained_on(
    tiny_base: str, toy_build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    real = TrainingRows.batch

    def batch(self: TrainingRows, epoch: int, number: int, *arguments: Any) -> Any:
        made = real(self, epoch, number, *arguments)
        if (epoch, number) == (0, 0):
            seen.append(made.row_ids)
        return made

    monkeypatch.setattr(TrainingRows, "batch", batch)
    held = {"name": "two", "training": {"steps": 1}, "consolidation": {"strength": 1.0, "rows": 1}}
    config = toy_config(tiny_base, [{"name": "one", "training": {"steps": 1}}, held])
    stages.do(config, toy_build, str(tmp_path / "run"), QUIET)
    trained_on, fisher_of, _ = seen
    assert fisher_of == trained_on


def test_what_the_stage_does_not_train_keeps_no_gradient(tiny_base: str) -> None:
    encoder = encoder_of(tiny_base)
    weights = {name: parameter.detach().clone() for name, parameter in trained(encoder).items()}
    consolidation.pull(3.0, weights, {name: torch.ones_like(value) for name, value in weights.items()}, encoder)
    assert all(parameter.grad is None for parameter in encoder.parameters())


def moved(encoder: Encoder) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Anchors away from the encoder's weights, and an importance of each weight."""
    draw = torch.Generator().manual_seed(3)
    anchors, importance = {}, {}
    for name, parameter in trained(encoder).items():
        anchors[name] = parameter.detach() + 0.1 * torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype)
        importance[name] = torch.rand(parameter.shape, generator=draw, dtype=parameter.dtype)
    return anchors, importance


def explicit(encoder: Encoder, strength: float, anchors: Any, importance: Any) -> torch.Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for name, parameter in trained(encoder).items():
        total = total + strength / 2 * (importance[name] * (parameter - anchors[name]) ** 2).sum()
    return total


def test_the_gradient_is_that_of_the_penalty(tiny_base: str) -> None:
    encoder = encoder_of(tiny_base)
    anchors, importance = moved(encoder)
    before = {}
    for number, (name, parameter) in enumerate(trained(encoder).items()):
        # The first parameter has no gradient yet.
        parameter.grad = None if number == 0 else torch.full_like(parameter, 0.5)
        before[name] = 0.0 if number == 0 else 0.5
    penalty = consolidation.pull(7.0, anchors, importance, encoder)
    found = {name: parameter.grad for name, parameter in trained(encoder).items()}
    expected = explicit(encoder, 7.0, anchors, importance)
    assert penalty == pytest.approx(expected.item(), rel=1e-12)
    gradients = torch.autograd.grad(expected, list(trained(encoder).values()))
    for name, gradient in zip(found, gradients, strict=True):
        torch.testing.assert_close(found[name], gradient + before[name], rtol=1e-12, atol=1e-14)


def test_of_sparse_embeddings_the_rows_of_the_gradient_are_pulled(tiny_base: str) -> None:
    encoder = encoder_of(tiny_base, embeddings="sparse")
    anchors, importance = moved(encoder)
    parameter = encoder.embedding_parameter
    (name,) = (name for name, each in trained(encoder).items() if each is parameter)
    seen = torch.tensor([[5, 2, 5]])  # one of them twice
    values = torch.ones(3, parameter.shape[1], dtype=parameter.dtype)
    parameter.grad = torch.sparse_coo_tensor(seen, values, parameter.shape)
    penalty = consolidation.pull(2.0, anchors, importance, encoder)
    expected = torch.zeros_like(parameter)
    for number, times in ((5, 2), (2, 1)):
        expected[number] = times + (2.0 * importance[name] * (parameter - anchors[name]))[number]
    assert parameter.grad.is_sparse
    torch.testing.assert_close(parameter.grad.to_dense(), expected.detach(), rtol=1e-12, atol=1e-14)
    assert penalty == pytest.approx(explicit(encoder, 2.0, anchors, importance).item(), rel=1e-12)


@pytest.mark.parametrize("cached", [False, True])
def test_a_step_adds_the_penalty_once_and_before_it_clips(cached: bool, tiny_base: str, toy_build: Build, tmp_path: Path) -> None:
    gradients, norms = {}, {}
    for clip in (1e9, 0.01):
        config = toy_config(
            tiny_base, training={"accumulate": 2, "gradient_cache": cached}, optimizer={"clip": clip, "learning_rate": 1e-12}
        )
        for held in (False, True):
            encoder = load_encoder(config.model).double()
            rows = TrainingRows(toy_build, str(tmp_path), config.stages[0], 0)
            anchors, importance = moved(encoder)
            consolidate = partial(consolidation.pull, 0.5, anchors, importance) if held else None
            job = loop.Job(
                config, config.stages[0], str(tmp_path), encoder, rows, None, load_task(toy_build), [32, 8], consolidate
            )
            scaler = torch.amp.GradScaler("cpu", enabled=False)
            _, told = loop.take_step(0, job, loop.State(0.05), loop.make_optimizers(encoder, job.stage.optimizer), scaler)
            assert ("consolidation" in told) == held
            gradients[clip, held] = {name: each.grad for name, each in encoder.named_parameters() if each.grad is not None}
            norms[clip, held] = told["gradient_norm"]
    for name, gradient in gradients[1e9, True].items():
        pulled = 0.5 * importance[name] * (trained(encoder)[name] - anchors[name])
        torch.testing.assert_close(gradient - gradients[1e9, False][name], pulled.detach(), rtol=1e-5, atol=1e-7)
    assert norms[0.01, True] == pytest.approx(norms[1e9, True])
    clipped = torch.stack([each.norm() for each in gradients[0.01, True].values()]).norm()
    assert clipped.item() == pytest.approx(0.01)


def two_stages(base: str, strength: float | None, **more: Any) -> Config:
    second = {"name": "second", "consolidation": None if strength is None else {"strength": strength, "rows": 20}}
    return toy_config(base, [{"name": "first"}, second], training={"steps": 6}, checkpoint={"every": 2}, **more)


def test_a_strong_penalty_holds_the_weights_that_earlier_rows_need(tiny_base: str, toy_build: Build, tmp_path: Path) -> None:
    away = {}
    for strength in (None, 1e5):
        folder = tmp_path / str(strength)
        stages.do(two_stages(tiny_base, strength), toy_build, str(folder), QUIET)
        first, last = (
            load_file(place(str(folder / name / "checkpoints"), 6) / "model.safetensors") for name in ("first", "second")
        )
        importance = load_file(tmp_path / "100000.0" / "second" / "fisher.safetensors") if strength else None
        away[strength] = {name: last[name] - first[name] for name in first}
    assert importance is not None
    held, free = (sum((importance[name] * each[name] ** 2).sum().item() for name in each) for each in (away[1e5], away[None]))
    assert held < free / 4
    lines = [json.loads(line) for line in (tmp_path / "100000.0/second/log.jsonl").read_text().splitlines()]
    assert lines[0]["consolidation"] == 0
    assert all(line["consolidation"] > 0 for line in lines[1:])
    assert not (tmp_path / "None" / "second" / "fisher.safetensors").exists()


class Stopped(BaseException):
    """Ends a run at a chosen place, as a kill would."""


def test_a_run_that_stops_goes_on_to_the_same_weights_and_estimates_nothing_twice(
    tiny_base: str, toy_build: Build, tmp_path: Path
) -> None:
    config = two_stages(tiny_base, 1e4, model={"embeddings": "sparse"})
    stages.do(config, toy_build, str(tmp_path / "whole"), QUIET)
    folder, fisher = tmp_path / "stopped", Path("second", "fisher.safetensors")
    for owner, name, call in ((consolidation, "row_gradient", 7), (loop, "take_step", 4), (loop, "take_step", 2)):
        real, calls = getattr(owner, name), []

        def stop(*arguments: Any, real: Any = real, calls: list[Any] = calls, call: int = call) -> Any:
            in_second = (folder / "second").is_dir()
            calls += [None] * in_second
            if in_second and len(calls) == call:
                raise Stopped
            return real(*arguments)

        with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
            patch.setattr(owner, name, stop)
            stages.do(config, toy_build, str(folder), QUIET)
        assert (folder / fisher).exists() == (owner is loop)
        if owner is loop and call == 4:
            written = (folder / fisher).stat().st_mtime_ns
    assert (folder / fisher).stat().st_mtime_ns == written
    # What was cut is estimated again.
    (folder / fisher).write_bytes((folder / fisher).read_bytes()[:-4])
    stages.do(config, toy_build, str(folder), QUIET)
    for file in (fisher, Path("model", "model.safetensors")):
        assert (folder / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert not list(folder.rglob("*.tmp"))


def test_an_earlier_build_is_named_and_decides_the_run(
    tiny_base: str, toy_build: Build, make_build: MakeBuild, tmp_path: Path
) -> None:
    with pytest.raises(ValidationError, match="stage 'one' is the first one: its consolidation needs `build`"):
        toy_config(tiny_base, [{"consolidation": {"strength": 1.0}}])
    earlier = make_build(toy_rows("earlier", 1)[:20], [row("q", "p")], name="earlier")
    config = toy_config(
        tiny_base, [{"consolidation": {"strength": 1e4, "rows": 8, "build": earlier.path}}], training={"steps": 3}
    )
    run, _ = stages.do(config, toy_build, str(tmp_path / "run"), QUIET)
    told = json.loads((tmp_path / "run/one/fisher.safetensors.json").read_text())["told"]
    assert (told["rows"], told["build"]) == (8, earlier.version)
    assert open_run(config, toy_build, run.folder).version == run.version
    make_build(toy_rows("earlier", 2)[:20], [row("q", "p")], name="earlier")
    with pytest.raises(UserError, match=r"differs in: stages\.one\.build of consolidation"):
        open_run(config, toy_build, run.folder)
