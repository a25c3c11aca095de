"""The command line: help, and mistakes in one sentence with their exit status."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from toys import MakeBuild, row, toy_config, write_config

from datakit.errors import UserError
from datakit.opened import Build
from datakit.schema import EXAMPLE, Evaluation
from trainer.cli import main


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["trainer", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    shown = capsys.readouterr()
    return int(stopped.value.code or 0), shown.out, shown.err


def test_help_names_what_a_person_needs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    status, shown, _ = run(monkeypatch, capsys, "run", "--help")
    assert status == 0
    for word in ("CONFIG", "--data", "--output", "--dry-run", "goes on where a run was stopped", "evaluation.json"):
        assert word in shown
    status, shown, _ = run(monkeypatch, capsys, "--help")
    assert all(word in shown for word in ("run", "train"))
    assert "evaluate" in shown


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"model": {"layer": 2}}, "train.yaml:{line}: model.layer: unknown key 'layer'. Did you mean 'layers'?"),
        ({"training": {"steps": "many"}}, "train.yaml:{line}: stages.0.training.steps: found 'many'"),
        ({"training": {"epochs": 1}}, "steps and epochs: give one of the two"),
        (
            {"loss": {"dimensions": [64, 32]}},
            "Stage 'one': loss.dimensions holds 64; the base '{base}' gives vectors of 32 dimensions",
        ),
        ({"loss": {"dimensions": [8, 8]}}, "different whole numbers"),
        ({"loss": {"weights": [1.0]}}, "weights has 1 values for 2 dimensions"),
        ({"model": {"layers": 7}}, "has 3 layers"),
        ({"model": {"base": "/no/such/folder"}}, "'/no/such/folder' is not there"),
        ({"model": {"query_prefix": "{task}: "}}, "{{instruction}}"),
        ({"data": {"max_length": 99}}, "allowed: up to model.max_length, which is 24"),
        ({"evaluation": {"encoders": ["package:no_such_package/x"]}}, "not installed"),
    ],
)
def test_mistakes_in_the_file_are_one_sentence_and_status_2(
    change: dict[str, Any],
    expected: str,
    tiny_base: str,
    toy_build: Build,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    value = toy_config(tiny_base).model_dump(mode="json")
    for name, part in change.items():
        (value["stages"][0] if name in value["stages"][0] else value)[name].update(part)
    file = tmp_path / "train.yaml"
    file.write_text(yaml.safe_dump(value))
    key = next(iter(next(iter(change.values()))))
    place = next(number for number, line in enumerate(file.read_text().splitlines(), 1) if line.strip().startswith(f"{key}:"))
    output = tmp_path / "run"
    status, _, shown = run(monkeypatch, capsys, "train", str(file), "--data", toy_build.path, "--output", str(output))
    assert status == 2, shown
    assert expected.format(line=place, base=tiny_base) in shown
    assert "Traceback" not in shown
    assert not list(output.rglob("step-*"))


def test_missing_files_and_builds_are_status_2(
    tiny_base: str,
    toy_build: Build,
    make_build: MakeBuild,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = write_config(tmp_path / "train.yaml", toy_config(tiny_base))
    output = str(tmp_path / "run")
    status, _, shown = run(monkeypatch, capsys, "train", str(tmp_path / "none.yaml"), "--data", toy_build.path)
    assert (status, "does not exist" in shown) == (2, True)
    status, _, shown = run(monkeypatch, capsys, "train", file, "--data", str(tmp_path / "none"), "--output", output)
    assert (status, "There is no build at" in shown) == (2, True)
    other = make_build([row("q", "p")], [row("q", "p")], schema=EXAMPLE.with_metadata({"datakit.schema": "2"}), name="other")
    status, _, shown = run(monkeypatch, capsys, "train", file, "--data", other.path, "--output", output)
    assert (status, "schema version 2" in shown) == (2, True)


def test_a_failure_is_status_1(
    tiny_base: str, toy_build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = toy_config(tiny_base, optimizer={"learning_rate": 1e25, "warmup": 0.0})
    file = write_config(tmp_path / "train.yaml", config)
    status, _, shown = run(monkeypatch, capsys, "train", file, "--data", toy_build.path, "--output", str(tmp_path / "run"))
    assert status == 1
    assert "the loss is nan" in shown
    assert "Traceback" not in shown


def test_train_prints_a_table_and_evaluate_repeats_its_numbers(
    tiny_base: str, toy_build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rich.console.Console.is_terminal", property(lambda console: True))
    training = {"steps": 3, "precision": "float32"}  # in bfloat16 a stage is measured in that too
    file = write_config(tmp_path / "train.yaml", toy_config(tiny_base, training=training, evaluation={"bm25": True}))
    output = tmp_path / "run[a]"
    monkeypatch.setattr(sys, "argv", ["trainer", "train", file, "--data", toy_build.path, "--output", str(output)])
    with pytest.raises(SystemExit):
        main()
    shown = capsys.readouterr().out
    metrics = json.loads((output / "metrics.json").read_text())
    words = ("before training", "after one", "BM25", "others", f"{metrics['after']['8']['score']:.3f}", str(output / "model"))
    for word in words:
        assert word in shown
    scores = tmp_path / "scores.json"
    arguments = ("evaluate", str(output / "model"), "--data", toy_build.path, "--dimension", "32", "--bm25", "--output")
    status, shown, _ = run(monkeypatch, capsys, *arguments, str(scores))
    assert status == 0
    assert "BM25" in shown
    assert f"{metrics['beside']['BM25']['score']:.3f}" in shown
    found = Evaluation.model_validate_json(scores.read_text())
    assert found.categories["others"].score == pytest.approx(metrics["after"]["32"]["categories"]["others"]["score"], abs=1e-3)
    status, shown, said = run(monkeypatch, capsys, *arguments, str(tmp_path))
    assert (status, shown) == (2, "")
    assert f"'{tmp_path}' is a folder, and a file is to be written there" in said

    def full(path: str, value: object) -> None:
        raise UserError("there is no room")

    monkeypatch.setattr("datakit.storage.write_json", full)
    status, shown, said = run(monkeypatch, capsys, *arguments, str(scores))
    assert (status, "others" in shown, "there is no room" in said) == (2, True, True)
