"""What goes wrong, on the command line: damaged checkpoints, numbers that are none, and mistakes that may cost nothing."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import transformers
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from toys import MakeBuild, row, save_base, toy_config, toy_rows, write_config

from datakit.opened import Build, open_build
from trainer import checkpoint, loop
from trainer.cli import main
from trainer.config import CheckpointConfig, Config
from trainer.data import TrainingRows
from trainer.model import load_encoder
from trainer.run import claim, open_run, stage_seed

Trainer = Callable[..., tuple[int, str]]


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Trainer:
    """`trainer run` of a config: trainer(config, build, folder) -> (exit status, stderr)."""

    def run(config: Config, build: Build, folder: Path | None) -> tuple[int, str]:
        arguments = ["trainer", "run", write_config(tmp_path / "train.yaml", config), "--data", build.path]
        monkeypatch.setattr(sys, "argv", [*arguments, *(["--output", str(folder)] if folder else [])])
        torch.set_num_threads(1)
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        return int(stopped.value.code or 0), capsys.readouterr().err

    return run


def weights(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


def logged(folder: Path, stage: str = "one") -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (folder / stage / "log.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines]


def everything(folder: Path) -> dict[str, bytes | None]:
    """All files with their bytes, and all folders."""
    return {str(each.relative_to(folder)): each.read_bytes() if each.is_file() else None for each in folder.rglob("*")}


def halve(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def interrupted(patch: pytest.MonkeyPatch, after: int) -> None:
    """Ctrl-C in the middle of the step that follows on so many."""
    take, taken = loop.take_step, []

    def stop(*arguments: Any) -> Any:
        if len(taken) == after:
            raise KeyboardInterrupt
        taken.append(after)
        return take(*arguments)

    patch.setattr(loop, "take_step", stop)


def test_checkpoints_that_were_cut_after_a_stop_are_named_and_the_weights_come_out_the_same(
    trainer: Trainer, tiny_base: str, toy_build: Build, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = toy_config(tiny_base, training={"steps": 9}, checkpoint={"every": 2, "keep": 3})
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert trainer(config, toy_build, whole)[0] == 0
    with pytest.MonkeyPatch.context() as patch:
        interrupted(patch, after=7)
        status, shown = trainer(config, toy_build, stopped)
    assert status != 0
    assert "Interrupted. Finished work is kept: the same command goes on from here." in shown
    assert "Traceback" not in shown
    with open(stopped / "one" / "log.jsonl", "a") as file:
        file.write('{"step": 8, "los')
    for harmed, left in (([6], 4), ([6, 4, 2], 0)):
        folder = Path(shutil.copytree(stopped, tmp_path / str(len(harmed))))
        places = [checkpoint.place(str(folder / "one" / "checkpoints"), step) for step in harmed]
        for place in places:
            halve(place / "model.safetensors")
        caplog.clear()
        assert trainer(config, toy_build, folder)[0] == 0
        warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        for place in places:
            assert len([each for each in warned if f"The checkpoint '{place}' is damaged" in each]) == 1
        assert (f"Going on after step {left} of 9 of 'one'" in caplog.text) == (left > 0)
        assert weights(folder) == weights(whole)
        assert logged(folder) == logged(whole)
        for _, path in checkpoint.steps(str(folder / "one" / "checkpoints")):
            assert checkpoint.damage(path) is None
        for name in ("model.safetensors", "optimizer.safetensors"):
            last = Path("one", "checkpoints", "step-0000009", name)
            assert (folder / last).read_bytes() == (whole / last).read_bytes()


def test_a_cut_checkpoint_that_the_next_stage_begins_with_stops_the_run_until_its_stage_is_moved_away(
    trainer: Trainer, tiny_base: str, toy_build: Build, tmp_path: Path
) -> None:
    config = toy_config(tiny_base, [{"name": "first"}, {"name": "second"}], training={"steps": 4}, checkpoint={"every": 2})
    assert trainer(config, toy_build, tmp_path / "whole")[0] == 0
    folder = tmp_path / "stopped"
    with pytest.MonkeyPatch.context() as patch:
        interrupted(patch, after=7)
        assert trainer(config, toy_build, folder)[0] != 0
    halve(folder / "first" / "checkpoints" / "step-0000004" / "model.safetensors")
    before = everything(folder)
    status, shown = trainer(config, toy_build, folder)
    assert (status, "Traceback" in shown) == (1, False)
    assert f"The checkpoint '{folder}/first/checkpoints/step-0000004', which is needed to go on, is damaged" in shown
    assert f"Move '{folder}/first' away" in shown
    assert everything(folder) == before
    (folder / "first").rename(tmp_path / "away")
    assert trainer(config, toy_build, folder)[0] == 0
    assert weights(folder) == weights(tmp_path / "whole")
    assert [logged(folder, each) for each in ("first", "second")] == [
        logged(tmp_path / "whole", each) for each in ("first", "second")
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"loss": {"mixing": {"pairs": 0, "lists": False}}, "data": {"negatives": 2}}, "pairs is 0 and lists is false"),
        ({"loss": {"mixing": {}}}, "loss.mixing is of a row's mined negatives, and data.negatives is 1; allowed: from 2"),
        ({"loss": {"triangle": {}}, "data": {"negatives": 0}}, "loss.triangle is of a row's mined negatives"),
        ({"data": {"negatives": 0, "curriculum": {}}}, "curriculum is of mined negatives, and negatives: 0 draws none"),
        ({"loss": {"distillation": {"teacher": "t", "documents": "own"}}, "data": {"negatives": 0}}, "documents: own is of a"),
        ({"loss": {"contrastive": 0, "distillation": {"teacher": "t"}, "focal": {}}}, "so that focal would do nothing"),
        ({"loss": {"contrastive": 0, "distillation": {"teacher": "t"}, "form": "qwen3"}}, "so that form: qwen3 would do nothing"),
        ({"optimizer": {"betas": [1.5, 2.0]}}, "less than 1"),
        ({"seed": 2**70}, "less than"),
        ({"model": {"query_prefix": "{instruction.x}"}}, "has fields other than {instruction}"),
        ({"model": {"query_prefix": "{instruction[a]}"}}, "has fields other than {instruction}"),
        ({"model": {"heads": {}}}, "model.heads are of objectives, and no stage has some"),
    ],
)
def test_what_would_fail_later_or_do_nothing_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(said)):
        toy_config("base", **changes)


def test_an_objective_with_a_head_is_not_named_as_torch_names_its_own(
    trainer: Trainer, tiny_base: str, toy_build: Build, tmp_path: Path
) -> None:
    config = toy_config(tiny_base, model={"heads": {"layers": 2, "width": 1}}, objectives={"items": {"categories": ["things"]}})
    status, shown = trainer(config, toy_build, tmp_path / "run")
    assert (status, "an objective cannot be named 'items'" in " ".join(shown.split())) == (2, True)


def test_a_damaged_page_of_training_rows_is_told(trainer: Trainer, tiny_base: str, toy_build: Build, tmp_path: Path) -> None:
    file = next(Path(toy_build.path, "train").iterdir())
    group = pq.ParquetFile(file).metadata.row_group(0)
    column = next(group.column(at) for at in range(group.num_columns) if group.column(at).path_in_schema == "query")
    content = bytearray(file.read_bytes())
    for at in range(column.data_page_offset + 30, column.data_page_offset + column.total_compressed_size):
        content[at] ^= 0x5A
    file.write_bytes(bytes(content))
    status, shown = trainer(toy_config(tiny_base), toy_build, tmp_path / "run")
    assert (status, "Traceback" in shown) == (1, False)
    assert f"'{file}' cannot be read" in " ".join(shown.split())


def no_number_in(what: str, loss: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    """The loss with NaN in it; or as it was, with NaN in its gradient."""
    return loss * torch.nan if what == "loss" else loss + (queries * 0).sum().sqrt()


def test_nan_stops_the_run_with_its_rows_and_earlier_checkpoints_and_the_mended_run_goes_on(
    trainer: Trainer, tiny_base: str, toy_build: Build, tmp_path: Path
) -> None:
    config = toy_config(tiny_base, training={"steps": 7, "accumulate": 2}, checkpoint={"every": 2, "keep": 9})
    whole, folder = tmp_path / "whole", tmp_path / "run"
    assert trainer(config, toy_build, whole)[0] == 0
    stage = config.stages[0]
    rows = TrainingRows(toy_build, str(tmp_path), stage, stage_seed(config, stage))
    # 6 batches are 3 steps of an epoch: step 6 has the last two of the second epoch.
    batches = [rows.batch(1, number, load_encoder(config.model), 5 / 7) for number in (4, 5)]
    texts = {each["row_id"]: each for each in toy_build.train.collect().to_dicts()}
    real = loop.batch_loss
    # The second batch of step 6, from the start and from the checkpoint of step 4.
    for what, wrong, said in (("gradient", 12, "the norm of the gradient nan"), ("loss", 4, "the loss is nan")):
        calls = []

        def broken(queries: torch.Tensor, *arguments: Any, what: str = what, wrong: int = wrong, calls: list[str] = calls) -> Any:
            calls.append(what)
            loss, statistics = real(queries, *arguments)
            return (no_number_in(what, loss, queries) if len(calls) == wrong else loss), statistics

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "batch_loss", broken)
            status, shown = trainer(config, toy_build, folder)
        assert (status, len(calls), "Traceback" in shown) == (1, wrong, False)
        (sentence,) = (line for line in shown.splitlines() if line.startswith("trainer: "))
        assert "At step 6 of stage 'one' the loss is" in sentence
        assert said in sentence
        assert f"the rows are in '{folder}/one/failed-batch.json'" in sentence

        failed = json.loads((folder / "one" / "failed-batch.json").read_text())
        assert (failed["stage"], failed["step"], said in failed["reason"]) == ("one", 6, True)
        assert [each["row_id"] for each in failed["rows"]] == [row_id for batch in batches for row_id in batch.row_ids]
        for each in failed["rows"]:
            source = texts[each["row_id"]]
            assert (each["query"], each["positive"]) == (source["query"], source["positive"])
            assert len(each["negatives"]) == 1
            assert set(each["negatives"]) <= {negative["text"] for negative in source["negatives"]}
        (folder / "one" / "failed-batch.json").unlink()

        assert logged(folder) == logged(whole)[:5]
        kept = checkpoint.steps(str(folder / "one" / "checkpoints"))
        assert [step for step, _ in kept] == [4, 2]
        for _, path in kept:
            file = path / "model.safetensors"
            assert file.read_bytes() == (whole / file.relative_to(folder)).read_bytes()
    assert trainer(config, toy_build, folder)[0] == 0
    assert weights(folder) == weights(whole)
    assert logged(folder) == logged(whole)


def spoilt(base: str, folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> str:
    """A copy of a base with other weights."""
    copy = Path(shutil.copytree(base, folder))
    tensors = load_file(copy / "model.safetensors")
    change(tensors)
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    return str(copy)


def test_nan_in_the_weights_of_a_base_stops_at_the_first_batch_that_meets_it(
    trainer: Trainer, tiny_base: str, make_build: MakeBuild, tokenizer: Any, tmp_path: Path
) -> None:
    token = tokenizer.convert_tokens_to_ids("sings")
    base = spoilt(tiny_base, tmp_path / "base", lambda tensors: tensors["embed_tokens.weight"][token].fill_(torch.nan))
    plain = [each for each in toy_rows() if "sings" not in str(each)]
    build = make_build([*plain, row("what is grey stone", "the grey stone sings")], plain[:20])
    config = toy_config(base, checkpoint={"every": 1}, data={"batch_size": 4})
    status, shown = trainer(config, build, tmp_path / "run")
    failed = json.loads((tmp_path / "run" / "one" / "failed-batch.json").read_text())
    assert (status, "Traceback" in shown) == (1, False)
    assert f"At step {failed['step']} of stage 'one' the loss is nan" in shown
    assert "the grey stone sings" in {each["positive"] for each in failed["rows"]}
    assert failed["step"] > 1, "choose another seed"
    kept = checkpoint.steps(str(tmp_path / "run" / "one" / "checkpoints"))
    assert kept[0][0] == failed["step"] - 1
    assert all(
        tensor.isfinite().all() for name, tensor in load_file(kept[0][1] / "model.safetensors").items() if "embed" not in name
    )


def test_a_base_whose_weights_are_nan_is_not_said_to_be_causal(
    trainer: Trainer, tiny_base: str, toy_build: Build, tmp_path: Path
) -> None:
    base = spoilt(tiny_base, tmp_path / "base", lambda tensors: tensors["norm.weight"].fill_(torch.nan))
    status, shown = trainer(toy_config(base), toy_build, tmp_path / "run")
    assert (status != 0, "Traceback" in shown) == (True, False)
    assert "causal" not in shown


def with_schema(build: Build, file: str, version: str) -> None:
    """Rewrites what a file of a build says of its schema."""
    path = Path(build.path) / file
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"datakit.schema": version.encode()}), path)


MISTAKES = {
    "schema of a training file": r"train/00002\.parquet' has rows of schema version 7, and this trainer reads version 1\.",
    "schema of the validation file": r"validation/00000\.parquet' has rows of schema version 7, and this trainer reads version 1\.",
    "base that is not there": r"The base '.*/no-such-base' is not there\.",
    "name that is unknown": r"The base 'nobody/no-such-model' could not be loaded: ",
    "base that stays causal": r"The base '.*/mamba' \(mamba\) stays causal",
    "dimension above the model's": r"Stage 'two': loss\.dimensions holds 33; .* gives vectors of 32 dimensions",
    "teacher that is not there": r"The teacher '.*/no-such-teacher' could not be loaded: ",
    "encoder that is not there": r"The encoder '.*/no-such-encoder' could not be loaded: ",
    "rows that are all graded": r"has no row in 'train' that stage 'one' can be trained on\.",
}
Mistaken = Callable[[str], tuple[Config, Build]]


def right(base: str, folder: Path, widest: int = 32, **more: Any) -> Config:
    second = {"name": "two", "loss": {"dimensions": [widest, 8]}}
    return toy_config(base, [{"name": "one"}, second], training={"steps": 2}, output=str(folder / "models"), **more)


@pytest.fixture
def mistaken(tiny_base: str, toy_build: Build, make_build: MakeBuild, tokenizer: Any, tmp_path: Path) -> Mistaken:
    """A config and a build with one mistake; but for it they are `right` and `toy_build`."""

    def make(mistake: str) -> tuple[Config, Build]:
        config, build = right(tiny_base, tmp_path), toy_build
        if "schema" in mistake:
            build = open_build(str(shutil.copytree(toy_build.path, tmp_path / mistake)))
            with_schema(build, "train/00002.parquet" if "training" in mistake else "validation/00000.parquet", "7")
        elif "base that is not there" in mistake:
            config = right(str(tmp_path / "no-such-base"), tmp_path)
        elif "teacher" in mistake:
            config = right(tiny_base, tmp_path, loss={"distillation": {"teacher": str(tmp_path / "no-such-teacher")}})
        elif "encoder" in mistake:
            config = right(tiny_base, tmp_path, evaluation={"encoders": [str(tmp_path / "no-such-encoder")]})
        elif "graded" in mistake:
            build = make_build([row("a house", "a horse", score=0.5)], toy_rows()[:9], name=mistake)
        elif "unknown" in mistake:
            config = right("nobody/no-such-model", tmp_path)
        elif "causal" in mistake:
            mamba = transformers.MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4)
            config = right(save_base(tmp_path / "mamba", tokenizer, mamba), tmp_path)
        else:
            config = right(tiny_base, tmp_path, 33)
        return config, build

    return make


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_and_exit_status_2(mistake: str, mistaken: Mistaken, trainer: Trainer, tmp_path: Path) -> None:
    status, shown = trainer(*mistaken(mistake), tmp_path / "run")
    (sentence,) = shown.splitlines()
    assert re.match(f"trainer: .*{MISTAKES[mistake]}", sentence)
    assert status == 2


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_writes_nothing(mistake: str, mistaken: Mistaken, trainer: Trainer, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert trainer(*mistaken(mistake), folder)[0] == 2
    assert not folder.exists() or everything(folder) == {}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_after_a_mistake_is_mended_the_same_command_trains(
    mistake: str, mistaken: Mistaken, trainer: Trainer, tiny_base: str, toy_build: Build, tmp_path: Path
) -> None:
    assert trainer(*mistaken(mistake), tmp_path / "run")[0] == 2
    with pytest.MonkeyPatch.context() as patch:
        interrupted(patch, after=1)
        _, shown = trainer(right(tiny_base, tmp_path), toy_build, tmp_path / "run")
    assert "Interrupted" in shown
    assert len(logged(tmp_path / "run")) == 1


@pytest.mark.parametrize("mistake", MISTAKES)
def test_after_a_mistake_the_link_to_the_latest_run_is_where_it_was(
    mistake: str, mistaken: Mistaken, trainer: Trainer, tiny_base: str, toy_build: Build, tmp_path: Path
) -> None:
    earlier = open_run(right(tiny_base, tmp_path).model_copy(update={"seed": 6}), toy_build, None)
    claim(earlier)
    before = everything(tmp_path / "models")
    assert trainer(*mistaken(mistake), None)[0] == 2
    assert (tmp_path / "models" / "toy" / "latest").resolve() == Path(earlier.folder).resolve()
    assert everything(tmp_path / "models") == before


def test_a_mistake_takes_nothing_from_a_run_that_was_stopped(
    mistaken: Mistaken, trainer: Trainer, tiny_base: str, toy_build: Build, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    config = right(tiny_base, tmp_path).model_copy(update={"checkpoint": CheckpointConfig(every=1)})
    with pytest.MonkeyPatch.context() as patch:
        interrupted(patch, after=3)
        assert trainer(config, toy_build, folder)[0] != 0
    before = everything(folder)
    assert {name.split("/")[0] for name in before} >= {"one", "two", "model", "metrics.json"}
    for mistake in MISTAKES:
        status, shown = trainer(*mistaken(mistake), folder)
        assert (status, len(shown.splitlines())) == (2, 1), mistake
        assert everything(folder) == before, mistake
