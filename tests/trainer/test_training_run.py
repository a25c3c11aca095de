"""Whole runs of `trainer train`: steps, resume after a kill, what a run writes."""

from __future__ import annotations

import json
import multiprocessing
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from toys import MakeBuild, command_line, row, toy_config, toy_rows, write_config

from datakit.errors import BuildError, UserError
from datakit.opened import Build
from datakit.schema import Evaluation
from trainer import loop
from trainer.config import Config
from trainer.data import TrainingRows
from trainer.losses import info_nce
from trainer.model import load_encoder
from trainer.report import Metrics
from trainer.run import Run, open_run

QUIET = Console(quiet=True)


def train(config: Config, build: Build, folder: Path) -> tuple[Run, Metrics]:
    return loop.train(config, build, str(folder), QUIET)


def weights(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


def gradients(config: Config, build: Build, folder: Path, step: int) -> dict[str, torch.Tensor]:
    """The gradients that one step of the loop leaves, for a model without dropout."""
    run = open_run(config, build, str(folder))
    encoder = load_encoder(config.model)
    encoder.base.config.attention_dropout = 0.0
    for layer in encoder.base.layers:
        layer.self_attn.attention_dropout = 0.0
    rows = TrainingRows(build, run.folder, config.data, config.seed)
    loop.take_step(step, 10, run, rows, encoder, loop.make_optimizer(config, encoder))
    return {name: value.grad.clone() for name, value in encoder.named_parameters() if value.grad is not None}


def test_accumulated_batches_give_the_mean_over_their_rows_each_with_its_own_negatives(
    tiny_base: str, toy_build: Build, tmp_path: Path
) -> None:
    config = toy_config(tiny_base, training={"accumulate": 3}, optimizer={"clip": 1e9})
    encoder = load_encoder(config.model).eval()
    rows = TrainingRows(toy_build, str(tmp_path), config.data, config.seed)
    # The step that has the smaller batch of the 25 rows.
    step = next(number // 3 for number in range(6) if len(rows.batch(0, number, encoder).row_ids) == 9)
    found = gradients(config, toy_build, tmp_path / "run", step)
    batches = [rows.batch(0, number, encoder) for number in range(3 * step, 3 * step + 3)]
    assert sorted(len(batch.row_ids) for batch in batches) == [9, 16, 16]
    total = sum(len(batch.row_ids) for batch in batches)
    loss = torch.zeros(())
    for batch in batches:
        vectors = [encoder(encoder.tokenize(texts)) for texts in (batch.queries, batch.documents)]
        targets = torch.from_numpy(batch.positive), torch.from_numpy(batch.candidates)
        loss = loss + info_nce(vectors[0], vectors[1], *targets, config.loss)[0] * len(batch.row_ids) / total
    loss.backward()
    expected = {name: value.grad for name, value in encoder.named_parameters() if value.grad is not None}
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert value is not None
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


def test_training_lifts_ndcg_and_writes_what_it_says(tiny_base: str, toy_build: Build, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    _, metrics = train(toy_config(tiny_base, training={"steps": 40}, checkpoint={"every": 15, "keep": 2}), toy_build, folder)
    assert metrics.after[32].score > metrics.before[32].score + 0.15
    assert set(metrics.after) == set(metrics.before) == {32, 8}
    assert {entry.name for entry in (folder / "checkpoints").iterdir()} == {"step-0000030", "step-0000040"}
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 41))
    assert {"loss", "loss_32", "loss_8", "rate", "gradient_norm", "accuracy", "masked", "tokens_per_second"} <= set(lines[0])
    assert sum(line["loss"] for line in lines[-5:]) < sum(line["loss"] for line in lines[:5])
    scores = Evaluation.model_validate_json((folder / "evaluation.json").read_text())
    assert (scores.build, scores.metric, set(scores.categories)) == (toy_build.version, "ndcg@10", {"others"})
    assert scores.categories["others"].score == metrics.after[32].categories["others"].score
    assert scores.categories["others"].history == [metrics.before[32].categories["others"].score]
    assert not list(folder.rglob("*.tmp"))


def test_a_finished_run_does_nothing_and_says_so(
    tiny_base: str, toy_build: Build, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = toy_config(tiny_base, training={"steps": 2})
    first = train(config, toy_build, tmp_path / "run")
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*")}
    with caplog.at_level("INFO"):
        assert train(config, toy_build, tmp_path / "run")[1] == first[1]
    assert "finished; nothing is left to do" in caplog.text
    assert times == {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*")}


class Stopped(BaseException):
    """Ends a run at a chosen place, as a kill would."""


@pytest.mark.parametrize("place", ["save_file", "flush", "steps", "export", "evaluation"])
def test_a_run_that_stops_while_it_writes_goes_on_to_the_same_weights(
    place: str, tiny_base: str, toy_build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toy_config(tiny_base, training={"steps": 5}, checkpoint={"every": 2})
    train(config, toy_build, tmp_path / "whole")
    owner = loop if place in ("export", "evaluation") else loop.checkpoint
    real, calls = getattr(owner, place), []

    def stop(*arguments: Any) -> Any:
        calls.append(place)
        if len(calls) == (1 if owner is loop else 3):
            raise Stopped
        return real(*arguments)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(owner, place, stop)
        train(config, toy_build, tmp_path / "stopped")
    train(config, toy_build, tmp_path / "stopped")
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")
    steps = [json.loads(line)["step"] for line in (tmp_path / "stopped" / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5]


def test_kills_at_random_moments_leave_the_same_weights(tiny_base: str, toy_build: Build, tmp_path: Path) -> None:
    config = toy_config(tiny_base, training={"steps": 60, "accumulate": 2}, checkpoint={"every": 5})
    train(config, toy_build, tmp_path / "whole")
    folder = tmp_path / "killed"
    arguments = ["train", write_config(tmp_path / "train.yaml", config), "--data", toy_build.path, "--output", str(folder)]
    # Processes that are forked from one in which the slow imports are done.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["toys", "trainer.loop", "sentence_transformers"])
    chance = random.Random(1)
    for wanted in (0, 7, 21, 38, 52):
        process = processes.Process(target=command_line, args=(arguments,))
        process.start()
        while process.is_alive() and lines(folder) < wanted:
            time.sleep(0.002)
        time.sleep(chance.random() * 0.05)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "the run was over before it was killed"
        assert not (folder / "metrics.json").exists()
    process = processes.Process(target=command_line, args=(arguments,))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert weights(folder) == weights(tmp_path / "whole")
    for name in ("model.safetensors", "optimizer.safetensors"):
        found, whole = (load_file(root / "checkpoints" / "step-0000060" / name) for root in (folder, tmp_path / "whole"))
        assert all(torch.equal(found[key], whole[key]) for key in whole)
    assert [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()] == list(range(1, 61))


def lines(folder: Path) -> int:
    file = folder / "log.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def test_a_loss_that_is_no_number_stops_before_the_weights_change(tiny_base: str, toy_build: Build, tmp_path: Path) -> None:
    config = toy_config(tiny_base, optimizer={"learning_rate": 1e25, "warmup": 0.0}, checkpoint={"every": 1})
    with pytest.raises(BuildError, match=r"At step [23] the loss is nan.*failed-batch.json'. Mend them, or lower"):
        train(config, toy_build, tmp_path / "run")
    failed = json.loads((tmp_path / "run" / "failed-batch.json").read_text())
    assert len(failed["rows"]) in (9, 16)
    assert f"step-{failed['step'] - 1:07d}" in {entry.name for entry in (tmp_path / "run" / "checkpoints").iterdir()}


def test_another_config_build_or_base_in_the_same_folder_is_refused_by_name(
    tiny_base: str, toy_build: Build, make_build: MakeBuild, tmp_path: Path
) -> None:
    config = toy_config(tiny_base)
    folder = str(tmp_path / "run")
    version = open_run(config, toy_build, folder).version
    assert open_run(toy_config(tiny_base, checkpoint={"every": 9}), toy_build, folder).version == version
    with pytest.raises(UserError, match=r"a run that differs in: loss\.temperature, seed"):
        open_run(toy_config(tiny_base, loss={"temperature": 0.1}, seed=6), toy_build, folder)
    with pytest.raises(UserError, match="a run that differs in: build"):
        open_run(config, make_build(toy_rows(), [row("q", "p")], name="other"), folder)
    changed = shutil.copytree(tiny_base, tmp_path / "base")
    moved = config.model_copy(update={"model": config.model.model_copy(update={"base": str(changed)})})
    (changed / "tokenizer_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"a run that differs in: base, model\.base"):
        open_run(moved, toy_build, folder)


def test_each_config_has_its_own_folder_and_latest_points_at_the_newest(tiny_base: str, toy_build: Build, tmp_path: Path) -> None:
    first = open_run(toy_config(tiny_base, output=str(tmp_path)), toy_build, None)
    second = open_run(toy_config(tiny_base, output=str(tmp_path), seed=9), toy_build, None)
    assert first.folder != second.folder
    assert (tmp_path / "toy" / "latest").resolve() == Path(second.folder).resolve()
    assert open_run(toy_config(tiny_base, output=str(tmp_path)), toy_build, None) == first
    assert (tmp_path / "toy" / "latest").resolve() == Path(first.folder).resolve()


def test_a_folder_that_is_somebody_elses_is_refused(tiny_base: str, toy_build: Build, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for output in (tmp_path / "file", tmp_path):
        with pytest.raises(UserError, match=r"is a file|holds no run"):
            open_run(toy_config(tiny_base), toy_build, str(output))


def test_epochs_count_all_batches(tiny_base: str, toy_build: Build, tmp_path: Path) -> None:
    config = toy_config(tiny_base, training={"steps": None, "epochs": 2, "accumulate": 4})
    _, metrics = train(config, toy_build, tmp_path / "run")
    # 64 and 25 rows in batches of 16 are 6 batches: two steps of an epoch.
    assert metrics.steps == 4
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 0, 1, 1]
    assert sum(line["rows"] for line in lines) == 2 * 89
