"""Two processes are one with the same batches: losses, gradients, weights. Real processes, over gloo, under torchrun's own agent."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import transformers
from rich.console import Console
from safetensors.torch import load_file
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from toys import COLOURS, THINGS, MakeBuild, command_line, row, save_base, tiny_config, toy_config, toy_rows, write_config

from datakit.opened import Build, open_build
from trainer import checkpoint, distributed, loop, stages, unpadded
from trainer.config import ModelConfig, Stage
from trainer.data import TrainingRows
from trainer.dryrun import pretended
from trainer.model import Encoder, chunks, load_encoder
from trainer.teacher import Teacher

Found = dict[str, tuple[dict[str, float], dict[str, torch.Tensor]]]

LOSSES: dict[str, dict[str, Any]] = {
    "InfoNCE": {},
    "qwen3": {"form": "qwen3", "false_negative_margin": 0.1},
    "hard": {"false_negative_margin": 0.05},
    "focal": {"focal": {"gamma": 0.5, "detach": False}},
    "mixing": {"mixing": {"pairs": 1, "lists": True}},
    "KL": {"contrastive": 0.0, "distillation": {"teacher": "random"}},
    "scores": {"distillation": {"teacher": "random", "kind": "scores", "documents": "own"}},
    "triangle": {"triangle": {"epsilon": 0.1, "distance": "angular"}},
    "CoSENT": {"similarity": {"kind": "cosent"}},
    "graded": {"similarity": {"kind": "mse"}},
}
# What an encoder is like: its config, how it is spread, whether it keeps the inputs of its layers only, tokens of a chunk.
WAYS: dict[str, tuple[dict[str, Any], str, bool, int]] = {
    "ddp": ({}, "ddp", False, 120),
    "ddp, sparse embeddings, a chunk for each text": ({"embeddings": "sparse"}, "ddp", False, 1),
    "fsdp": ({}, "fsdp", False, 120),
    "fsdp, checkpointing, a chunk for each text": ({"projection": None}, "fsdp", True, 1),
    "fsdp, adapters": ({"lora": {"rank": 2}}, "fsdp", False, 120),
    "ddp, unpadded": ({}, "ddp", False, 120),
    "fsdp, unpadded": ({}, "fsdp", False, 120),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tokenizer: transformers.PreTrainedTokenizerFast) -> str:
    """Without dropout: what is dropped depends on the number of processes. Two do not divide its 33 intermediate dimensions."""
    return save_base(tmp_path_factory.mktemp("qwen3"), tokenizer, tiny_config("qwen3", head_dim=8, intermediate_size=33))


def launch(function: Callable[..., None], *arguments: Any) -> None:
    """`function(*arguments)` in two processes, by the agent of torchrun, forked from one in which the slow imports are done."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(["toys", "trainer.stages", "sentence_transformers"])
    settings = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=2, run_id=str(time.monotonic_ns()), rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", max_restarts=0, monitor_interval=0.05, start_method="forkserver",
    )  # fmt: skip
    elastic_launch(settings, function)(*arguments)


def encoder_of(base: str, way: str) -> Encoder:
    config, _, checkpointing, budget = WAYS[way]
    encoder = load_encoder(ModelConfig.model_validate({"base": base, "max_length": 24, "projection": 16, **config}), seed=1)
    encoder.double().train()
    encoder.chunk_tokens = budget
    if "unpadded" in way:
        unpadded.turn_on(encoder)
    encoder.activation_checkpointing(checkpointing)
    return encoder


def computed(base: str, build: str, folder: str) -> Found:
    """Statistics and gradients of a batch, by loss, dimensions, gradient caching and way: what take_step does with it."""
    found: Found = {}
    opened = open_build(build)
    encoders = {way: encoder_of(base, way) for way in WAYS}
    for way, encoder in encoders.items():
        distributed.spread(encoder, cast(Any, WAYS[way][1]))
    for loss, dimensions in itertools.product(LOSSES, ([], [16, 8, 4])):
        value = {"name": "one", "loss": {**LOSSES[loss], "dimensions": dimensions}, "training": {"steps": 1}}
        value["data"] = {"batch_size": 13, "negatives": 2}
        rows = TrainingRows(opened, folder, Stage.model_validate(value), 0)
        ways = WAYS if loss == "InfoNCE" and dimensions else ("ddp", "fsdp")
        for cached, way in itertools.product((False, True), ways):
            encoder = encoders[way]
            stage = Stage.model_validate({**value, "training": {"steps": 1, "gradient_cache": cached}})
            numbers = range(rows.batches_per_epoch)
            batch = next(
                batch
                for batch in (rows.batch(0, number, encoder, 0.0) for number in numbers)
                if (batch.scores is not None) == (stage.loss.similarity is not None)
            )
            kind = stage.loss.distillation.kind if stage.loss.distillation else None
            teacher: Teacher | None = pretended(batch, kind) if kind else None
            job = loop.Job(toy_config(base), stage, folder, encoder, rows, teacher, cast(Any, None), [])
            encoder.zero_grad()
            statistics = loop.backward(batch, 0.5, 3, job, 0.05, torch.amp.GradScaler("cpu", enabled=False))
            distributed.sum_gradients(encoder.parameters())
            gradients = {
                name: whole_gradient(parameter.grad)
                for name, parameter in encoder.named_parameters()
                if parameter.grad is not None
            }
            values = {name: each.item() for name, each in statistics.items()}
            values["norm"] = loop.clip(encoder.parameters(), 1e9)
            found[f"{loss}, {dimensions}, {cached}, {way}"] = values, gradients
    return found


def whole_gradient(gradient: torch.Tensor) -> torch.Tensor:
    return distributed.together(gradient).to_dense().clone()


def compute_and_save(base: str, build: str, folder: str) -> None:
    torch.set_num_threads(1)
    with distributed.joined():
        found = computed(base, build, folder)
        torch.save(found, f"{folder}/{distributed.rank()}.pt")


def test_losses_and_gradients_are_those_of_one_process(base: str, make_build: MakeBuild, tmp_path: Path) -> None:
    things = toy_rows()
    # Two queries of a positive, and two positives of a query, so that such stand in the shares of different processes.
    asked = [row(f"where is {each['query']}", each["positive"]) for each in things[:4]]
    asked += [row(each["query"], f"{each['positive']} again") for each in things[4:12]]
    alike = [
        row(f"{one} {THINGS[0]}", f"the {other} {THINGS[0]}", category="graded", score=(float(one == other) + place / 100) / 2)
        for place, (one, other) in enumerate(itertools.product(COLOURS[:5], COLOURS[:3]))
    ]
    build = make_build([*things[:12], *asked, *alike], things[40:])
    launch(compute_and_save, base, build.path, str(tmp_path))
    expected = computed(base, build.path, str(tmp_path))
    for rank in range(2):
        found: Found = torch.load(tmp_path / f"{rank}.pt")
        assert set(found) == set(expected)
        for case, (values, gradients) in expected.items():
            statistics, summed = found[case]
            assert statistics == pytest.approx(values, rel=1e-7, abs=1e-9), (case, rank)
            assert set(summed) == set(gradients), (case, rank)
            assert sum(gradient.norm() for gradient in gradients.values()) > 0, case
            for name, gradient in gradients.items():
                assert (summed[name] - gradient).norm() <= 1e-7 * gradient.norm() + 1e-12, (case, rank, name)
    assert expected["InfoNCE, [], False, ddp"][0]["masked"] > 0, "no other positive of a query is in the batch"


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_shares_hold_each_text_once_and_are_alike_in_size(world: int) -> None:
    lengths = torch.randint(1, 40, (101,), generator=torch.Generator().manual_seed(world)).tolist()
    found = chunks(lengths, 100, world)
    shares = [[chunk[rank::world] for chunk in found] for rank in range(world)]
    assert sorted(number for share in shares for part in share for number in part) == list(range(101))
    padded = [sum(max(lengths[number] for number in part) * len(part) for part in share if part) for share in shares]
    assert all(max((lengths[number] for number in part), default=0) * len(part) <= 100 for share in shares for part in share)
    assert max(padded) - min(padded) <= 40 * len(found)
    # Only the shortest texts of all may be too few for all processes.
    assert all(len(chunk) >= world for chunk in found[1:])


def dies_at(arguments: list[str], rank: int, log: str, wanted: int) -> None:
    """The command line in a process that, if it is that of the rank, is killed some time after the log has so many lines."""

    def watch() -> None:
        while lines(Path(log)) < wanted:
            time.sleep(0.002)
        os.kill(os.getpid(), signal.SIGKILL)

    if os.environ["RANK"] == str(rank):
        threading.Thread(target=watch, daemon=True).start()
    command_line(arguments)


def lines(log: Path) -> int:
    return log.read_bytes().count(b"\n") if log.exists() else 0


def journal(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "one/log.jsonl").read_text().splitlines()]


def weights(folder: Path) -> bytes:
    return (folder / "model/model.safetensors").read_bytes()


def by_torchrun(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "trainer.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


WAYS_TO_TRAIN: dict[str, dict[str, Any]] = {
    "ddp": {"model": {"embeddings": "sparse"}, "training": {"steps": 12, "accumulate": 2, "precision": "float32"}},
    "fsdp": {"training": {"steps": 12, "parallel": "fsdp", "gradient_cache": True, "precision": "float32"}},
}


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_train_as_one_does_and_resume_to_the_same_weights_after_a_kill(
    parallel: str, base: str, toy_build: Build, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = toy_config(base, **WAYS_TO_TRAIN[parallel], checkpoint={"every": 3}, evaluation={"every": 5}, export="best")
    file = write_config(tmp_path / "train.yaml", config)

    def arguments(folder: str) -> list[str]:
        return ["train", file, "--data", toy_build.path, "--output", str(tmp_path / folder)]

    if parallel == "ddp":
        done = by_torchrun(arguments("whole"))
        assert done.returncode == 0, done.stderr
        # One of the two tells how it goes.
        assert done.stderr.count("step 10 of 12") == done.stdout.count("report.html") == 1
    else:
        launch(command_line, arguments("whole"))
    with pytest.raises(ChildFailedError):
        launch(dies_at, arguments("killed"), 0 if parallel == "ddp" else 1, str(tmp_path / "killed/one/log.jsonl"), 5)
    assert not (tmp_path / "killed/one/metrics.json").exists()
    assert 3 <= checkpoint.steps(str(tmp_path / "killed/one/checkpoints"))[0][0] < 12
    shutil.copytree(tmp_path / "killed", tmp_path / "alone")
    launch(command_line, arguments("killed"))
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
    assert [line["step"] for line in journal(tmp_path / "killed")] == list(range(1, 13))
    for path in (tmp_path / "whole/one/checkpoints").rglob("*.safetensors"):
        found, expected = load_file(tmp_path / "killed" / path.relative_to(tmp_path / "whole")), load_file(path)
        assert all(torch.equal(found[name], value) for name, value in expected.items()), path
    assert not list((tmp_path / "killed").rglob("*.tmp"))
    assert json.loads((tmp_path / "killed/run.json").read_text())["processes"] == 2

    # Another number of processes goes on from the same checkpoints, up to rounding, and says so.
    with caplog.at_level("WARNING"):
        stages.do(config, toy_build, str(tmp_path / "alone"), Console(quiet=True))
    assert "Resumed with 1 processes after 2" in caplog.text
    stages.do(config, toy_build, str(tmp_path / "one"), Console(quiet=True))
    for folder in ("alone", "one"):
        for line, other in zip(journal(tmp_path / folder), journal(tmp_path / "whole"), strict=True):
            names = ("loss", "gradient_norm", "tokens", "rows")
            assert [line[name] for name in names] == pytest.approx([other[name] for name in names], rel=2e-3), (
                folder,
                line["step"],
            )
    assert json.loads((tmp_path / "alone/run.json").read_text())["processes"] == 1


def test_what_one_process_cannot_do_ends_all(base: str, toy_build: Build, tmp_path: Path) -> None:
    """Process 0 alone looks for the encoders that stand beside the model; the other waits for it."""
    config = toy_config(base, evaluation={"encoders": [str(tmp_path / "nowhere")]})
    file = write_config(tmp_path / "train.yaml", config)
    with pytest.raises(ChildFailedError) as failed:
        launch(command_line, ["train", file, "--data", toy_build.path, "--output", str(tmp_path / "run")])
    assert failed.value.failures[0].exitcode == 2
    assert not (tmp_path / "run").exists()


def test_what_fsdp_cannot_divide_is_refused(base: str) -> None:
    with pytest.raises(
        ValueError, match=r"fsdp, which cannot divide model\.embeddings: sparse; allowed with it: trained, frozen"
    ):
        toy_config(base, training={"parallel": "fsdp"}, model={"embeddings": "sparse"})
    with pytest.raises(ValueError, match="precision is float16 with parallel: fsdp; allowed with it: auto, float32, bfloat16"):
        toy_config(base, training={"parallel": "fsdp", "precision": "float16"})
