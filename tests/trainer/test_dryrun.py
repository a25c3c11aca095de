"""Dry runs: nothing is written, what a run would be refused for is refused, and the run files that ship pass."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import transformers
from toys import MakeBuild, row, save_base, tiny_config, toy_config, toy_rows

from datakit.errors import UserError
from datakit.opened import Build
from datakit.recipe_file import load_model
from trainer.config import Config
from trainer.dryrun import check

MIXTURES = Path(__file__).parents[2] / "mixtures"
FILES = sorted(MIXTURES.glob("*-train.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_run_files_that_ship_go_through_a_dry_run_on_a_small_base(
    file: Path, toy_build: Build, tmp_path: Path, tokenizer: transformers.PreTrainedTokenizerFast
) -> None:
    config = load_model(str(file), Config)
    # The same file on a small base of the same kind: widths shrink with it.
    kind = "qwen3" if "qwen3" in file.name else "qwen2"
    base = save_base(tmp_path / "base", tokenizer, tiny_config(kind))
    widths = sorted({each for stage in config.stages for each in stage.loss.dimensions}, reverse=True)
    small = dict(zip(widths, (32, 16, 8, 4, 2, 1), strict=False))
    value = config.model_dump(mode="json")
    value["model"] |= {
        "base": base,
        "gguf": None,
        "layers": None,
        "layer_weights": None if value["model"]["layer_weights"] is None else [1.0] * 3,
        "lora": None if value["model"]["lora"] is None else {"rank": 2},
    }
    for stage in value["stages"]:
        stage["loss"]["dimensions"] = [small[each] for each in stage["loss"]["dimensions"]]
        stage["data"]["build"] = None
    before = sorted(tmp_path.rglob("*"))
    said = "\n".join(check(Config.model_validate(value), toy_build, None))
    for stage in config.stages:
        assert f"{stage.name}: tried a batch of" in said
    assert sorted(tmp_path.rglob("*")) == before


def test_a_base_that_is_not_here_is_said_and_nothing_else_stops() -> None:
    for file in FILES:
        if "quickstart" in file.name:
            continue  # its base is here
        said = "\n".join(check(load_model(str(file), Config), None, None))
        assert "no build is given" in said
        assert "is no folder here" in said


def test_what_a_run_would_be_refused_for_is_refused(tiny_base: str, toy_build: Build, make_build: MakeBuild) -> None:
    with pytest.raises(UserError, match="gives vectors of 32 dimensions"):
        list(check(toy_config(tiny_base, loss={"dimensions": [64]}), toy_build, None))
    with pytest.raises(UserError, match="There is no stage 'two'"):
        list(check(toy_config(tiny_base), toy_build, "two"))
    with pytest.raises(UserError, match=r"one: the teacher './no/teacher' is not there"):
        list(check(toy_config(tiny_base, loss={"distillation": {"teacher": "./no/teacher"}}), toy_build, None))
    with pytest.raises(UserError, match=r"evaluation.encoders: '~/no/encoder' is not there"):
        list(check(toy_config(tiny_base, evaluation={"encoders": ["some/name", "~/no/encoder"]}), toy_build, None))
    with pytest.raises(UserError, match="Two things of the run would have the name 'model'"):
        list(check(toy_config(tiny_base, [{"name": "model"}]), None, None))
    with pytest.raises(UserError, match="empty' has no rows in 'validation'"):
        list(check(toy_config(tiny_base), make_build(toy_rows(), [], name="empty"), None))
    scored = make_build([row("a", "b", score=0.5)], [], name="scored")
    for build, said in (("./no/build", "no/build"), (scored.path, "scored' has no row in 'train' that stage 'one'")):
        with pytest.raises(UserError, match=said):
            list(check(toy_config(tiny_base, consolidation={"strength": 1.0, "build": build}), toy_build, None))
    for base in ("./nowhere", "/nowhere", "~/nowhere", "no/owner/name", "no name"):
        with pytest.raises(UserError, match=f"The base '{base}' is not there. Give a folder, a name on the hub"):
            list(check(toy_config(base), toy_build, None))


def test_a_stage_with_a_build_of_its_own_needs_no_other(tiny_base: str, toy_build: Build) -> None:
    stages = [{"data": {"build": toy_build.path}}, {"name": "two"}]
    said = "\n".join(check(toy_config(tiny_base, stages), None, None))
    assert "one: tried a batch of 16 rows" in said
    assert "two: no build is given (--data)" in said


def test_the_command_prints_it(
    tiny_base: str, toy_build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from toys import write_config

    from trainer.cli import main

    file = write_config(tmp_path / "train.yaml", toy_config(tiny_base))
    monkeypatch.setattr(sys, "argv", ["trainer", "run", file, "--data", toy_build.path, "--dry-run"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    assert "one: tried a batch of 16 rows" in capsys.readouterr().out
