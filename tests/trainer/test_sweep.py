"""`trainer sweep`: what is proposed, what a stop and more trials change, what fails, what is refused, and what is said."""

from __future__ import annotations

import math
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from toys import command_line, toy_config, write_config

from datakit.errors import BuildError, UserError
from datakit.opened import Build
from datakit.recipe_file import load_model
from trainer import loop, stages
from trainer.config import Config
from trainer.evaluation.retrieval import evaluate_encoder, load_task
from trainer.studies.sweep import Report, Sweep, Trial, importance, proposed, sweep
from trainer.studies.sweep_report import notes, position, tables
from trainer.studies.sweep_space import Parameter, place_of

QUIET = Console(quiet=True)
RATE, TEMPERATURE, GAMMA = (
    "stages.second.optimizer.learning_rate",
    "stages.second.loss.temperature",
    "stages.second.loss.focal.gamma",
)
SPACE: dict[str, Any] = {
    RATE: {"low": 1e-4, "high": 0.1, "log": True},
    GAMMA: {"low": 0.5, "high": 4.0},
    "stages.second.data.batch_size": {"low": 8, "high": 24, "step": 8, "int": True},
    "stages.second.loss.form": {"choices": ["documents", "qwen3"]},
}


@pytest.fixture
def files(tmp_path: Path, tiny_base: str, toy_build: Build) -> Path:
    """A run of two stages, of which the first lies outside the space, and a sweep file."""
    # In bfloat16 the dev metric would not be the exported model's to the last digit.
    shared = {"training": {"steps": 2, "precision": "float32"}, "checkpoint": {"every": 1}}
    loss = {"focal": {"gamma": 2.0}, "dimensions": [32, 8]}
    gate = {"min_gain": 9.0}
    write_config(
        tmp_path / "run.yaml",
        toy_config(tiny_base, [{"name": "first"}, {"name": "second", "loss": loss, "gate": gate}], **shared),
    )
    write_sweep(tmp_path)
    return tmp_path


def write_sweep(folder: Path, **changes: Any) -> None:
    value = {"run": str(folder / "run.yaml"), "build": str(folder / "build"), "trials": 3, "seed": 1, "space": SPACE, **changes}
    written = yaml.safe_dump({key: each for key, each in value.items() if each is not None}, sort_keys=False)
    (folder / "sweep.yaml").write_text(written, encoding="utf-8")


def do(folder: Path, output: str = "out") -> Report:
    return sweep(str(folder / "sweep.yaml"), None, str(folder / output), QUIET)[1]


def told(report: Report) -> list[Any]:
    return [each.model_dump(exclude={"seconds"}) for each in report.trials]


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


class Stopped(BaseException):
    """Ends a sweep at a chosen place, as a kill would."""


def test_a_stop_in_a_trial_changes_nothing_and_more_trials_go_on(
    files: Path, toy_build: Build, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real, taken = loop.take_step, []

    def take_step(step: int, job: Any, *rest: Any) -> Any:
        taken.append(f"{Path(job.folder).relative_to(files).as_posix()}/{step}")
        # In the middle of the third trial: its first step is in a checkpoint.
        if taken.count("out/trials/3/second/1") == 1 and taken[-1] == "out/trials/3/second/1":
            raise Stopped
        return real(step, job, *rest)

    monkeypatch.setattr(loop, "take_step", take_step)
    with caplog.at_level("INFO"), pytest.raises(Stopped):
        do(files)
    assert "Trial 1 has the run file's own values" in caplog.text
    assert not (files / "out/trials/3/trial.json").exists()
    first = do(files)
    assert taken == [
        "out/trials/1/first/0", "out/trials/1/first/1", "out/trials/1/second/0", "out/trials/1/second/1", "out/trials/2/second/0",
        "out/trials/2/second/1", "out/trials/3/second/0", "out/trials/3/second/1", "out/trials/3/second/1",
    ]  # fmt: skip
    write_sweep(files, trials=4)
    times = {file: file.stat().st_mtime_ns for file in (files / "out/trials").rglob("*")}
    more = do(files)
    assert more.trials[:3] == first.trials
    assert times == {file: file.stat().st_mtime_ns for file in times}
    # In one go, elsewhere.
    alone = do(files, "alone")
    assert told(alone) == told(more)
    assert [each.shared for each in alone.trials] == [[], ["first"], ["first"], ["first"]]
    for trial in more.trials:
        assert weights(files / f"out/trials/{trial.number}") == weights(files / f"alone/trials/{trial.number}")
    assert len({weights(files / f"out/trials/{trial.number}") for trial in more.trials}) == 4

    # Trial 1 is the run file; a trial is what an ordinary run of its values is; its score is that of its model.
    config = load_model(str(files / "run.yaml"), Config)
    second = config.stages[1]
    assert [more.trials[0].values[path] for path in SPACE] == [2e-3, 2.0, 16, "documents"]
    assert second.optimizer.learning_rate == 2e-3
    best = max(more.trials, key=lambda each: (each.score, -each.number))
    assert more.ranked[0] == best
    made = load_model(str(files / "out/best.yaml"), Config)
    assert made.stages[1].gate == second.gate
    assert made.stages[0] == config.stages[0]
    changed = made.stages[1]
    found = [
        changed.optimizer.learning_rate,
        changed.loss.focal and changed.loss.focal.gamma,
        changed.data.batch_size,
        changed.loss.form,
    ]
    assert found == [best.values[path] for path in SPACE]
    with pytest.raises(BuildError, match="its gate asks for"):
        stages.do(made, toy_build, str(files / "best"), QUIET)
    exported = files / "best/second/model/model.safetensors"
    assert exported.read_bytes() == weights(files / f"out/trials/{best.number}")
    assert best.score == pytest.approx(evaluate_encoder(load_task(toy_build), str(exported.parent), [32])[32].score)

    # The same files, but for the seconds.
    assert Report.model_validate_json((files / "out/sweep.json").read_text()) == more
    page = (files / "out/sweep.html").read_text()
    assert page.count("<figure") == 1 + len(SPACE)
    assert page.count("<circle") == 4 * (1 + len(SPACE))
    assert f"{best.score:.4f}" in page
    assert "<script" not in page
    said = " ".join(notes(more))
    assert "uncertain" in said
    assert "gates were left out" in said
    assert sum(more.importance.values()) == pytest.approx(1.0)


def test_what_differs_is_refused_in_the_same_folder(files: Path, tiny_base: str) -> None:
    write_sweep(files, trials=1)
    do(files)
    for changes, said in (
        ({"space": {RATE: {"low": 1e-4, "high": 0.2}}}, "differs in: space"),
        ({"seed": 2}, "differs in: seed of the sweep"),
        ({"metric": {"dimension": 8}}, "differs in: metric"),
    ):
        write_sweep(files, **changes)
        with pytest.raises(UserError, match=said):
            do(files)
    write_sweep(files)
    run = yaml.safe_load((files / "run.yaml").read_text())
    run["stages"][0]["training"]["steps"] = 3
    (files / "run.yaml").write_text(yaml.safe_dump(run))
    with pytest.raises(UserError, match="differs in: stages"):
        do(files)
    with pytest.raises(UserError, match="is not empty and holds no sweep"):
        do(files, "build")


def test_a_trial_that_diverges_is_told_and_the_sweep_goes_on(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # At the two low temperatures float32 overflows.
    space = {RATE: {"low": 0.01, "high": 0.02}, TEMPERATURE: {"choices": [0.05, 1e-37, 1e-38]}}
    write_sweep(files, space=space, trials=4, metric={"dimension": 8})
    report = do(files)
    failed = [each for each in report.trials if each.failed]
    assert failed
    assert {each.values[TEMPERATURE] for each in failed} <= {1e-37, 1e-38}
    assert {each.values[TEMPERATURE] for each in report.ranked} == {0.05}
    for each in failed:
        assert each.failed is not None
        assert each.failed.startswith("Step 1 of stage 'second': the loss is ")
        assert (files / f"out/trials/{each.number}/second/failed-batch.json").is_file()
    assert report.outside == [RATE]
    page, console = (files / "out/sweep.html").read_text(), Console(width=200)
    with console.capture() as captured:
        console.print(tables(report))
    shown = captured.get()
    assert "Step 1 of stage" in page
    assert f"{len(failed)} of them failed" in page
    assert f"Trial {failed[0].number} failed (learning_rate 0.01" in shown

    # A full disk is no property of the values.
    shutil.rmtree(files / "out/trials/4")

    def full(*_: Any) -> Any:
        raise BuildError("The disk is full.")

    monkeypatch.setattr(stages, "do", full)
    with pytest.raises(BuildError, match="disk is full"):
        do(files)
    assert not (files / "out/trials/4/trial.json").exists()


def test_values_that_do_not_go_together_are_a_failed_trial(files: Path) -> None:
    space = {"model.max_length": {"choices": [24, 12]}, "stages.second.data.max_length": {"choices": [20, 10]}}
    write_sweep(files, space=space, trials=2)
    run = yaml.safe_load((files / "run.yaml").read_text())
    run["model"]["max_length"], run["stages"][1]["data"]["max_length"] = 24, 10
    (files / "run.yaml").write_text(yaml.safe_dump(run))
    for seed in range(20):
        wanted = load_model(str(files / "sweep.yaml"), Sweep).model_copy(update={"seed": seed})
        if list(
            proposed(wanted, [Trial(number=1, values={path: each["choices"][0] for path, each in space.items()})]).values()
        ) == [12, 20]:
            break
    write_sweep(files, space=space, trials=2, seed=seed)
    report = do(files)
    assert report.trials[0].score is not None
    assert "does not allow these values together" in (report.trials[1].failed or "")
    assert "data.max_length is 20; allowed: up to model.max_length, which is 12" in (report.trials[1].failed or "")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"space": {"stages.third.loss.temperature": {"low": 1, "high": 2}}}, "names no stage. The run file has: first, second"),
        (
            {"space": {"stages.second.optimizer.rate": {"low": 1, "high": 2}}},
            "has no 'rate' there. There is: learning_rate, weight_decay",
        ),
        ({"space": {"stages.first.loss.focal.gamma": {"low": 1, "high": 2}}}, "no 'gamma' there. It has None in its place"),
        ({"space": {"evaluation.queries": {"low": 1, "high": 2, "int": True}}}, "changes what is measured"),
        (
            {"space": {TEMPERATURE: {"low": -0.1, "high": 1}}},
            "may be -0.1, .*stages.1.loss.temperature: Input should be greater than 0",
        ),
        ({"space": {"stages.second.optimizer.warmup": {"low": 0, "high": 1}}}, "may be 1.0, .*less than 1"),
        ({"space": {"stages.second.data.batch_size": {"low": 4, "high": 8}}}, "may be 6.4.*integer"),
        ({"space": {"stages.second.loss.form": {"choices": ["documents", "qwen4"]}}}, "may be 'qwen4'"),
        ({"space": {"model.projection": {"choices": [None, 16]}}}, "loss.dimensions holds 32"),
        ({"space": {TEMPERATURE: {"low": 1, "high": 1}}}, "low is 1.0 and high is 1.0; allowed: a low that is below high"),
        ({"space": {TEMPERATURE: {"low": 0, "high": 1, "log": True}}}, "low is 0.0 with log: true; allowed: above 0"),
        ({"space": {TEMPERATURE: {"low": 1}}}, "low and high, or choices: give one of the two"),
        ({"space": {TEMPERATURE: {"low": 1, "high": 2, "step": 1}}}, "step is 1; allowed with int: true"),
        ({"space": {TEMPERATURE: {"low": 1, "high": 4, "int": True, "step": 2}}}, "whole steps apart"),
        ({"space": {TEMPERATURE: {"choices": [1, 1]}}}, "allowed: different ones"),
        ({"space": {TEMPERATURE: {"lo": 1, "high": 2}}}, "unknown key 'lo'. Did you mean 'log'|unknown key 'lo'"),
        ({"space": {"stages.second.loss": {"choices": [None, 1]}, TEMPERATURE: {"low": 1, "high": 2}}}, "lies at or inside"),
        ({"space": {}}, "space: "),
        ({"metric": {"dimension": 16}}, "metric.dimension is 16; allowed: one that a stage trains: 32, 8"),
        ({"trial": 3}, "unknown key 'trial'. Did you mean 'trials'"),
        ({"build": None}, "build is missing"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(changes: dict[str, Any], said: str, files: Path) -> None:
    write_sweep(files, **changes)
    with pytest.raises(UserError, match=said):
        do(files)
    assert not (files / "out").exists()


def test_a_mistake_in_the_last_stage_is_told_before_the_first_is_trained(files: Path) -> None:
    run = yaml.safe_load((files / "run.yaml").read_text())
    run["stages"][1]["objectives"] = {"o": {"tasks": ["bitext"]}}
    (files / "run.yaml").write_text(yaml.safe_dump(run))
    with pytest.raises(UserError, match=r"Stage 'second': no row .* is of objective 'o'"):
        do(files)
    assert not (files / "out").exists()


def test_without_optuna_the_extra_is_named(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"pip install 'datakit\[sweep\]'"):
        do(files)


def test_stages_go_by_names_that_may_hold_dots(tiny_base: str) -> None:
    config = toy_config(
        tiny_base, [{"name": "a"}, {"name": "a.loss"}, {"name": "b", "loss": {"dimensions": [32, 8], "weights": [1.0, 2.0]}}]
    )
    assert place_of("stages.a.optimizer.clip", config) == ("stages", 0, "optimizer", "clip")
    assert place_of("stages.a.loss.optimizer.clip", config) == ("stages", 1, "optimizer", "clip")
    assert place_of("stages.b.loss.weights.1", config) == ("stages", 2, "loss", "weights", 1)
    assert place_of("model.max_length", config) == ("model", "max_length")


def wanted(space: dict[str, Any], seed: int = 0) -> Sweep:
    return Sweep.model_validate({"run": "run.yaml", "trials": 1, "seed": seed, "space": space})


numbers = st.floats(1e-3, 1e3)
parameters = st.one_of(
    st.builds(lambda low, more, log: {"low": low, "high": low + more, "log": log}, numbers, numbers, st.booleans()),
    st.builds(
        lambda low, step, count: {"low": low, "high": low + step * count, "step": step, "int": True},
        st.integers(-50, 50), st.integers(1, 7), st.integers(1, 9),
    ),
    st.lists(st.one_of(st.none(), st.text(max_size=3), st.integers(2, 9)), min_size=2, max_size=4, unique=True).map(
        lambda found: {"choices": found}
    ),
)  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(st.sampled_from("abc"), parameters, min_size=1),
    st.integers(0, 9),
    st.integers(0, 14),
    st.randoms(use_true_random=False),
)
def test_what_is_proposed_lies_in_the_space_and_follows_from_what_came_before(
    space: Any, seed: int, count: int, draw: random.Random
) -> None:
    sweep = wanted(space, seed)
    trials: list[Trial] = []
    for number in range(1, count + 1):
        score = None if draw.random() < 0.2 else draw.random()
        trials.append(Trial(number=number, values=proposed(wanted(space, draw.randrange(99)), []), score=score))
    found = proposed(sweep, trials)
    assert found == proposed(sweep, [Trial.model_validate_json(each.model_dump_json()) for each in trials])
    assert list(found) == list(space)
    # Nor does the order matter in which the places are written.
    assert found == proposed(wanted(dict(reversed(space.items())), seed), trials)
    for path, value in found.items():
        assert sweep.space[path].holds(value)
        assert 0 <= position(sweep.space[path], value) <= 1


def searched(seed: int, count: int, score: Any) -> list[Trial]:
    sweep = wanted(
        {"x": {"low": 1e-5, "high": 1.0, "log": True}, "y": {"low": 0.0, "high": 1.0}, "z": {"low": 0.0, "high": 1.0}}, seed
    )
    trials: list[Trial] = []
    for number in range(1, count + 1):
        values = proposed(sweep, trials)
        trials.append(Trial(number=number, values=values, score=score(values)))
    found = importance(sweep, trials)
    assert max(found, key=lambda name: found[name]) == "x"
    return trials


def test_the_search_comes_near_the_best_keeps_away_from_failures_and_knows_what_matters() -> None:
    def score(values: Any) -> float | None:
        away = math.log10(values["x"]) + 3
        return None if away > 1 else -(away**2) - 0.3 * (values["y"] - 0.5) ** 2

    late = [each for seed in range(3) for each in searched(seed, 40, score)[20:]]
    # Of values at random two fifths fail, and a fifth is within half of a power of ten of the best.
    assert sum(each.score is None for each in late) < 0.15 * len(late)
    assert sum(abs(math.log10(float(each.values["x"] or 0)) + 3) < 0.5 for each in late) > 0.5 * len(late)


def test_the_command_line_shows_the_best_and_where_the_page_is(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_sweep(files, build=None, trials=2)
    with pytest.raises(SystemExit) as stopped:
        command_line(["sweep", str(files / "sweep.yaml"), "--data", str(files / "build"), "--output", str(files / "out")])
    assert not stopped.value.code
    shown = capsys.readouterr().out
    assert "the best 2 of 2 trials" in shown
    assert f"{files}/out/sweep.html" in shown


def test_the_example_in_mixtures_is_one_of_its_run_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    example = load_model("mixtures/quickstart-sweep.yaml", Sweep)
    config = load_model(str(example.run), Config)
    assert all(place_of(path, config) for path in example.space)
    assert isinstance(next(iter(example.space.values())), Parameter)
