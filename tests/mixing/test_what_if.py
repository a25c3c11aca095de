"""A whole build with a mixture, what `datakit mix --what-if` says of it, an evaluation that moves it, and a trainer's batches."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from datakit import storage
from datakit.cli import app
from datakit.errors import UserError, run_command_line
from datakit.executor.local import LocalExecutor
from datakit.mixing.feedback import load_evaluation
from datakit.mixing.what_if import TEMPERATURES, what_if
from datakit.mixing.what_if_plot import write
from datakit.opened import Build, open_build
from datakit.pipeline import build
from datakit.progress import Quiet
from datakit.publish.mixture import noted
from datakit.recipe import Recipe
from datakit.recipe_file import load_model

RECIPE = """\
name: mixed
seed: 3
output: {root}/datasets
cache: {root}/cache
categories:
  search: {{define: {{task: retrieval}}, sources: [{{type: files, path: "{root}/search.jsonl", columns: {columns}}}]}}
  faq: {{define: {{task: question_answering}}, sources: [{{type: files, path: "{root}/faq.jsonl", columns: {columns}}}]}}
  bitext: {{define: {{task: bitext}}, sources: [{{type: files, path: "{root}/bitext.jsonl", columns: {columns}}}]}}
mixture:
  temperature: 2
  language_temperature: 3
  total: 240
  quotas: [{{task: bitext, share: 0.2}}]
  batch_groups: language
"""
COLUMNS = "{query: q, positive: p, document_id: d, language: l, positive_language: m}"
COUNTS = {"search": {"en": 300}, "faq": {"en": 60, "de": 20}, "bitext": {"en>de": 90, "en>sw": 10}}
SCORES = {
    "search": {"score": 0.8, "rows": 900, "history": [0.8, 0.8]},
    "faq": {"score": 0.3, "rows": 900, "history": [0.2]},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixed")
    for name, languages in COUNTS.items():
        lines = []
        for language, count in languages.items():
            query, _, positive = language.partition(">")
            for number in range(count):
                key = f"{name} {language} {number}"
                text = f"the {number * 7} answers of {key} tell of rivers, towers and {number} gardens"
                lines.append(json.dumps({"q": f"what of {key}", "p": text, "d": key, "l": query, "m": positive or query}))
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "recipe.yaml").write_text(RECIPE.format(root=folder, columns=COLUMNS))
    (folder / "evaluation.json").write_text(
        json.dumps({"schema": 1, "model": "small", "build": "x", "metric": "nDCG@10", "categories": SCORES})
    )
    return folder


@pytest.fixture(scope="module")
def recipe(root: Path) -> Recipe:
    return load_model(str(root / "recipe.yaml"), Recipe)


def built(recipe: Recipe, feedback: str | None = None) -> Build:
    executor = LocalExecutor(1)
    try:
        evaluation = None if feedback is None else load_evaluation(feedback, recipe.categories)
        return open_build(build(recipe, executor, Quiet(), evaluation).path)
    finally:
        executor.close()


@pytest.fixture(scope="module")
def plain(recipe: Recipe) -> Build:
    with pytest.raises(UserError, match=r"Nothing was counted yet.*Run `datakit build`"):
        what_if(recipe, {})
    return built(recipe)


@pytest.fixture(scope="module")
def moved(recipe: Recipe, plain: Build, root: Path) -> Build:
    return built(recipe, str(root / "evaluation.json"))


def test_what_if_says_what_the_build_then_gives(recipe: Recipe, plain: Build) -> None:
    found = what_if(recipe, {})
    assert found.where == "The cache"
    assert found.notes == noted(plain.manifest.steps)
    counts = Counter(plain.train.collect().get_column("category").to_list())
    assert {name: each["rows"] for name, each in found.notes["categories"].items()} == counts
    assert counts["bitext"] == 48


def test_what_if_of_another_temperature_is_what_such_a_build_gives(recipe: Recipe, plain: Build) -> None:
    found = what_if(recipe, {"temperature": 7.0, "total": 150})
    other = recipe.model_copy(update={"mixture": recipe.mixture.model_copy(update={"temperature": 7.0, "total": 150})})
    assert found.notes == noted(built(other).manifest.steps)
    for name, shares in found.over.items():
        assert shares[TEMPERATURES.index(7.0)] == pytest.approx(found.notes["categories"][name]["share"], abs=1e-6)


def test_what_if_with_feedback_is_what_such_a_build_gives(recipe: Recipe, moved: Build, root: Path) -> None:
    evaluation = load_evaluation(str(root / "evaluation.json"), recipe.categories)
    assert what_if(recipe, {}, evaluation).notes == noted(moved.manifest.steps)


def test_without_a_cache_the_counts_are_those_of_a_build(recipe: Recipe, plain: Build, tmp_path: Path) -> None:
    elsewhere = recipe.model_copy(update={"cache": type(recipe.cache)(str(tmp_path))})
    expected = what_if(recipe, {}).notes
    assert what_if(elsewhere, {}, build=plain).notes == expected
    newest = what_if(elsewhere, {})
    assert newest.where.startswith("The build ")
    assert newest.notes == expected


def test_feedback_moves_rows_and_is_told_in_manifest_report_and_card(plain: Build, moved: Build) -> None:
    assert moved.version != plain.version
    before, after = noted(plain.manifest.steps)["categories"], noted(moved.manifest.steps)["categories"]
    assert after["faq"]["rows"] > before["faq"]["rows"]
    assert after["search"]["rows"] < before["search"]["rows"]
    assert after["bitext"]["rows"] == before["bitext"]["rows"]
    said = noted(moved.manifest.steps)["feedback"]["categories"]
    assert said["faq"]["factor"] > 1 > said["search"]["factor"] > 0.5
    assert said["search"]["history"] == [0.8, 0.8]
    assert said["bitext"]["factor"] == 1
    report, card = ((Path(moved.path) / name).read_text() for name in ("report.html", "README.md"))
    for text in (report, card):
        assert "below the mean: raised" in text
        assert "on a plateau: lowered" in text
        assert f"{before['faq']['rows']:,} to {after['faq']['rows']:,}" in text
    assert "Feedback" not in (Path(plain.path) / "report.html").read_text()
    assert "--feedback feedback.json" in card
    moved.verify()


def test_a_build_with_feedback_can_be_made_again_from_what_it_publishes(recipe: Recipe, moved: Build, tmp_path: Path) -> None:
    shutil.copy(Path(moved.path) / "feedback.json", tmp_path / "feedback.json")
    assert built(recipe, str(tmp_path / "feedback.json")).version == moved.version
    assert moved.manifest.files["feedback.json"].digest == storage.file_digest(str(Path(moved.path) / "feedback.json"))


def test_a_trainer_makes_batches_of_one_batch_group(plain: Build, tmp_path: Path) -> None:
    data = pytest.importorskip("trainer.data")
    from trainer.config import Stage

    stage = Stage.model_validate({"name": "one", "data": {"batch_size": 16}, "training": {"steps": 1}})
    rows = data.TrainingRows(plain, str(tmp_path), stage, 0)
    assert [group for group, _ in rows.groups] == ["bitext/en>de", "bitext/en>sw", "faq/de", "faq/en", "search/en"]
    by_id = dict(plain.train.select("row_id", "batch_group").collect().iter_rows())
    seen = 0
    for group, start, stop in rows.plan(0):
        records = rows.take(rows._shuffled(0, group)[start:stop]).to_pylist()
        assert {by_id[record["row_id"]] for record in records} == {rows.groups[group][0]}
        seen += len(records)
    assert seen == 240


@pytest.mark.parametrize("name", ["plot.svg", "plot.html"])
def test_the_plot_has_a_line_for_each_category(recipe: Recipe, plain: Build, tmp_path: Path, name: str) -> None:
    write(what_if(recipe, {}), str(tmp_path / name))
    text = (tmp_path / name).read_text()
    assert text.count("<polyline") == len(COUNTS)
    assert all(f">{category}</text>" in text for category in COUNTS)
    with pytest.raises(UserError, match=r"Allowed: \.svg, \.html"):
        write(what_if(recipe, {}), str(tmp_path / "plot.png"))


# ------------------------------------------------------------------------------------------------------- the command line


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as exit_:
        run_command_line(lambda: app(list(arguments)), "datakit")
    captured = capsys.readouterr()
    return int(str(exit_.value.code)), captured.out, captured.err


def test_the_command_prints_counts_and_shares(
    root: Path, plain: Build, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    code, out, _ = call(capsys, "mix", str(root / "recipe.yaml"), "--what-if", "--total", "100", "--plot", str(root / "p.svg"))
    assert code == 0
    assert "mixed: 100 of 100 rows" in out
    assert "quota of task bitext" in out
    assert "T=100" in out
    assert (root / "p.svg").is_file()


def test_wrong_arguments_are_told_in_one_sentence(root: Path, plain: Build, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "mix", str(root / "absent.yaml"), "--what-if", "--plot", "p.png")
    assert code == 2
    assert "'p.png' ends in no known format" in err, "before anything is read"
    recipe = str(root / "recipe.yaml")
    wrong = root / "wrong.json"
    wrong.write_text((root / "evaluation.json").read_text().replace('"faq"', '"fag"'))
    for arguments, said in (
        (["mix", recipe], "add --what-if"),
        (["mix", recipe, "--what-if", "--temperature", "-1"], "temperature"),
        (["mix", recipe, "--what-if", "--shortfall", "never"], "shortfall"),
        (["mix", recipe, "--what-if", "--feedback", str(wrong)], "'fag'"),
        (["build", recipe, "--feedback", str(wrong)], "'fag'"),
        (["mix", recipe, "--what-if", "--total", "9000", "--shortfall", "stop"], "9000 rows"),
    ):
        code, _, error = call(capsys, *arguments)
        assert code == 2, arguments
        assert said in error
        assert "Traceback" not in error
