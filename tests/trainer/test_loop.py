"""`trainer loop`: weights that follow the scores, the same rows to measure on, and rounds that go on after a stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from toys import toy_config, toy_recipe, toy_rows, write_config

from datakit.errors import BuildError, UserError
from datakit.mixing.feedback import factors, load_evaluation
from datakit.mixing.weights import allocate, probabilities
from datakit.opened import open_build
from datakit.recipe import Recipe
from trainer import stages
from trainer.run import Run
from trainer.studies import rounds
from trainer.studies.rounds import Loop, loop

QUIET = Console(quiet=True)
CATEGORIES = ("things", "others")
# Scores of some rows count, and what is below the mean is pushed at once.
MIXTURE = {"total": 60, "feedback": {"rows": 0, "poor": 0.1}}


@pytest.fixture
def files(tmp_path: Path, tiny_base: str) -> Path:
    write_recipe(tmp_path, mixture=MIXTURE)
    write_config(tmp_path / "run.yaml", toy_config(tiny_base, training={"steps": 6}, gate={"min_gain": -1.0}))
    return tmp_path


def write_recipe(folder: Path, **more: Any) -> None:
    # Equal queries would have equal scores in both.
    others = [{**each, "query": each["query"].replace("what", "where")} for each in toy_rows("others", 3)]
    recipe = toy_recipe(folder / "data", [*toy_rows(), *others], **more)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")


def do(folder: Path, count: int, output: str = "out") -> Loop:
    return loop(str(folder / "recipe.yaml"), str(folder / "run.yaml"), count, str(folder / output), 1, QUIET)[1]


class Stopped(BaseException):
    """Ends a loop at a chosen place, as a kill would."""


def test_each_round_follows_the_scores_of_the_one_before_on_the_same_rows(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, done = stages.loop.train, []

    def train(job: Any, console: Any) -> Any:
        done.append(Path(job.folder).relative_to(files / "out").as_posix())
        if len(done) == 2:
            raise Stopped
        return real(job, console)

    monkeypatch.setattr(stages.loop, "train", train)
    with pytest.raises(Stopped):
        do(files, 2)
    assert len(do(files, 2).rounds) == 2
    found = do(files, 3)
    assert done == [f"round-{number}/run/one" for number in (1, 2, 2, 3)]

    recipe = Recipe.model_validate(yaml.safe_load((files / "recipe.yaml").read_text()))
    builds = [open_build(str(files / "out/builds/toys" / each.build)) for each in found.rounds]
    paths = [files / f"out/round-{number}/evaluation.json" for number in (1, 2, 3)]
    said = [load_evaluation(str(path), CATEGORIES) for path in paths]
    steps = [next(step for step in build.manifest.steps if step.name == "mix") for build in builds]
    available = {name: each["available"] for name, each in steps[0].notes["categories"].items()}
    for number, (each, build) in enumerate(zip(found.rounds, builds, strict=True)):
        moved = factors(said[number - 1], recipe.mixture.feedback) if number else {}
        weight = probabilities(available, 1.0, moved)
        for name, category in each.categories.items():
            assert category.factor == pytest.approx(moved.get(name, 1.0))
            assert category.weight == pytest.approx(weight[name], abs=1e-6)
        rows = allocate(available, recipe.mixture, (), moved or None).rows
        counted = dict(build.train.collect()["category"].value_counts().iter_rows())
        assert counted == rows == {name: category.rows for name, category in each.categories.items()}
        # Trained on this round's build, and measured on what all rounds hold out.
        run = json.loads((files / f"out/round-{number + 1}/run/run.json").read_text())
        assert run["stages"]["one"]["build"] == build.version
        assert build.validation.collect().equals(builds[0].validation.collect())
        assert not {*build.train.collect()["row_id"]} & {*builds[0].validation.collect()["row_id"]}
    assert found.rounds[0].categories["things"].share != found.rounds[1].categories["things"].share
    for name in CATEGORIES:
        scores = [each.categories[name].score for each in said]
        assert [each.categories[name].history for each in said] == [[], scores[:1], scores[:2]]
        assert [each.categories[name].score for each in found.rounds] == scores
    assert Loop.model_validate_json((files / "out/loop.json").read_text()) == found
    page = (files / "out/loop.html").read_text()
    assert all(f"{each.score:.4f}" in page for each in found.rounds)


def test_a_gate_that_a_round_does_not_pass_ends_the_loop_with_its_reason(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = stages.do

    def second_fails(config: Any, build: Any, output: str, console: Any) -> tuple[Run, Any]:
        if "round-2" in output:
            gate = config.stages[0].gate.model_copy(update={"min_gain": 2.0})
            config = config.model_copy(update={"stages": [config.stages[0].model_copy(update={"gate": gate})]})
        return real(config, build, output, console)

    monkeypatch.setattr(rounds.stages, "do", second_fails)
    with pytest.raises(BuildError, match=r"Stage 'one' was not passed: .+ its gate asks for \+2"):
        do(files, 3)
    found = Loop.model_validate_json((files / "out/loop.json").read_text())
    assert len(found.rounds) == 1
    assert found.stopped is not None
    assert found.stopped.startswith("Round 2: Stage 'one' was not passed")
    assert not (files / "out/round-3").exists()
    assert found.stopped.replace("'", "&#x27;") in (files / "out/loop.html").read_text()


def test_data_that_change_between_rounds_end_the_loop(files: Path) -> None:
    do(files, 1)
    write_recipe(files, mixture=MIXTURE, split={"validation": 0.2, "near_duplicate_threshold": 1.0})
    with pytest.raises(UserError, match="holds a run that differs in: build"):
        do(files, 2)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, "mixture.total"),
        ({"mixture": {"total": 9, "feedback": {"bound": 1.0}}}, "feedback.bound is 1"),
        ({"mixture": {"total": 9}, "split": {"validation": 0.0}}, "split.validation is 0"),
    ],
)
def test_a_loop_that_could_not_move_is_refused(more: dict[str, Any], said: str, files: Path) -> None:
    write_recipe(files, **more)
    with pytest.raises(UserError, match=said):
        do(files, 2)
    assert not (files / "out").exists()
