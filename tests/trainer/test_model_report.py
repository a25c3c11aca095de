"""report.html of a model: its numbers are those of the files, its neighbours those of a plain ranking, its texts stay text."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from toys import MakeBuild, row, toy_rows

from datakit.errors import UserError
from datakit.opened import Build
from trainer.config import ModelConfig
from trainer.evaluation.retrieval import load_task
from trainer.evaluation.scores import FamilyScores, TaskScores
from trainer.export import export
from trainer.finished import model_report
from trainer.model import load_encoder
from trainer.studies.ablation import Report
from trainer.studies.ablation_report import forest

HOSTILE = "<img src=x onerror=\"document.title='taken'\"></p><script>document.title='taken'</script> & {{ 7*7 }}"


def removed(name: str, mean: float, low: float, high: float) -> dict[str, Any]:
    found = {"measure": "dev", "full": [0.5, 0.5], "without": [0.5 - mean, 0.5 - mean], "mean": mean, "interval": [low, high]}
    return {"name": name, "build": "b", "train": 9, "queries": 9, "shared": [], "same": False, "differences": [found]}


COMPONENTS = [
    removed("hard", 0.0123, 0.0041, 0.0204),
    removed(HOSTILE, -0.003, -0.01, 0.004),
    removed("focal", 0.0311, 0.02, 0.04),
]
ABLATION = {"name": "toy", "seeds": [0, 1], "gates": False, "components": COMPONENTS}


def task(name: str, family: str, wide: float, narrow: float, **more: Any) -> TaskScores:
    return TaskScores(
        name=name, family=family, metric="main", source="local", revision="r", prompts={}, scores={32: wide, 8: narrow},
        metrics={}, **more,
    )  # fmt: skip


def family_scores(**more: Any) -> FamilyScores:
    tasks = [
        task("one", "Retrieval", 0.8, 0.6, bm25=0.5555), task("two", "Retrieval", 0.4, 0.1), task("three", "STS", 0.7, 0.77),
        task("four", "Odd", -0.2, 0.1),
    ]  # fmt: skip
    return FamilyScores(**{"model": "toy", "revision": "r", "mteb": "2", "width": 32, "tasks": tasks, **more})


def with_scores(*scores: dict[int, float]) -> str:
    """results.json with a task for each of these."""
    tasks = [task("one", "STS", 0, 0).model_copy(update={"scores": each}) for each in scores]
    return family_scores(tasks=tasks).model_dump_json(by_alias=True, exclude={"families", "mean_of_tasks", "mean_of_families"})


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    path = tmp_path / "results.json"
    path.write_text(json.dumps(family_scores().model_dump(mode="json", by_alias=True), sort_keys=True))
    return path


@pytest.fixture
def ablation(tmp_path: Path) -> Path:
    path = tmp_path / "ablation.json"
    path.write_text(json.dumps(ABLATION))
    return path


@pytest.fixture(scope="module")
def model(tiny_base: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("model") / "model")
    prompts = {"things": "Instruct: find\nQuery: ", "query": "Query: ", "document": "Document: "}
    encoder = load_encoder(ModelConfig(base=tiny_base, layers=1, max_length=64))
    export(encoder, folder, prompts, "toy", "v", [32, 8], {32: 0.5})
    return folder


def written(tmp_path: Path, scores: Path, ablation: Path | None = None, model: str = "toy", build: Build | None = None) -> str:
    model_report.write(model, str(scores), str(tmp_path / "report.html"), str(ablation) if ablation else None, build)
    return (tmp_path / "report.html").read_text()


def rows(page: str, section: str) -> list[list[str]]:
    (part,) = re.findall(rf'<section id="{section}">(.*?)</section>', page, flags=re.S)
    return [
        [unescape(cell) for cell in re.findall(r"<t[hd]>(.*?)</t[hd]>", line)] for line in re.findall(r"<tr>(.*?)</tr>", part)
    ]


def test_every_score_of_the_file_is_in_the_table_with_the_means_of_families(tmp_path: Path, scores: Path) -> None:
    assert rows(written(tmp_path, scores), "scores") == [
        ["family", "task", "metric", "32", "8", "BM25+"],
        ["Retrieval", "one", "main", "0.8000", "0.6000", "0.5555"],
        ["Retrieval", "two", "main", "0.4000", "0.1000", ""],
        ["Retrieval", "mean", "", "0.6000", "0.3500", ""],
        ["STS", "three", "main", "0.7000", "0.7700", ""],
        ["Odd", "four", "main", "-0.2000", "0.1000", ""],
        ["mean of tasks", "", "", "0.4250", "0.3925", ""],
        ["mean of families", "", "", f"{(0.6 + 0.7 - 0.2) / 3:.4f}", f"{(0.35 + 0.77 + 0.1) / 3:.4f}", ""],
    ]


def test_retention_is_the_share_of_the_widest_and_is_drawn_as_it_is_written(tmp_path: Path, scores: Path) -> None:
    page = written(tmp_path, scores)
    expected = {"Retrieval": 0.35 / 0.6, "STS": 1.1, "mean of tasks": 0.3925 / 0.425}  # a negative score keeps no share
    assert rows(page, "retention")[1:] == [[name, "100.0%", f"{share:.1%}"] for name, share in expected.items()]
    lines = [[tuple(map(float, point.split(","))) for point in line.split()] for line in re.findall(r'points="([^"]*)"', page)]
    assert len(lines) == 3
    # The places of the marks say which height is which share: a straight line through two of them.
    marks = [(float(y), float(share)) for y, share in re.findall(r'y="([\d.]+)" text-anchor="end">([\d.]+)<', page)]
    slope = (marks[-1][1] - marks[0][1]) / (marks[-1][0] - marks[0][0])
    for line, share in zip(lines, expected.values(), strict=True):
        for (_, y), value in zip(line, (1.0, share), strict=True):
            assert marks[0][1] + slope * (y + 4 - marks[0][0]) == pytest.approx(value, abs=2e-3)
        assert line[0][0] > line[1][0], "wide dimensions are at the right"


def test_one_dimension_has_no_retention(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    tasks = [task("one", "STS", 0.5, 0.4).model_copy(update={"scores": {32: 0.5}})]
    path.write_text(family_scores(tasks=tasks).model_dump_json(by_alias=True))
    page = written(tmp_path, path)
    assert 'id="retention"' not in page
    assert ["STS", "one", "main", "0.5000"] in rows(page, "scores")


def test_the_ablation_is_the_figure_and_the_sentences_of_its_file(tmp_path: Path, scores: Path, ablation: Path) -> None:
    (part,) = re.findall(r'<section id="ablation">(.*?)</section>', written(tmp_path, scores, ablation), flags=re.S)
    assert forest("dev", Report.model_validate(ABLATION)) in part
    said = [unescape(each) for each in re.findall(r"<li>(.*?)</li>", part)]
    assert [each.partition(",")[0] for each in said] == ["hard", HOSTILE, "focal"]
    assert ["not supported" in each for each in said] == [False, True, False]
    assert "+0.0311, 95 % interval +0.0200 to +0.0400" in said[2]
    assert 'id="ablation"' not in written(tmp_path, scores)


def test_neighbours_are_those_of_a_plain_ranking_at_both_dimensions(
    tmp_path: Path, scores: Path, model: str, make_build: MakeBuild
) -> None:
    others = [row(f"where is {number}", f"a apple {number}", category="others") for number in range(5)]
    build = make_build(toy_rows()[:1], [*toy_rows()[:40], *others])
    page = written(tmp_path, scores, model=model, build=build)
    opened, asked = SentenceTransformer(model, device="cpu"), load_task(build, model_report.QUERIES, model_report.DOCUMENTS)
    corpus = [text for text, _ in asked.documents]
    assert len(asked.queries) == 20
    documents = opened.encode(corpus, prompt="Document: ")
    cards = re.findall(r"<article.*?</article>", page, flags=re.S)
    assert len(cards) == 20
    for card, (query, _), category, relevant in zip(cards, asked.queries, asked.categories, asked.relevant, strict=True):
        assert f'<p class="text query">{query}</p>' in card
        prompt = "Instruct: find\nQuery: " if category == "things" else "Query: "
        vector = opened.encode(query, prompt=prompt)
        lists = re.findall(r"<h3>(\d+) dimensions</h3><ol>(.*?)</ol>(.*?)</div>", card, flags=re.S)
        assert [dimension for dimension, _, _ in lists] == ["32", "8"]
        for dimension, items, below in lists:
            d = int(dimension)
            cosines = documents[:, :d] @ vector[:d] / np.linalg.norm(documents[:, :d], axis=1) / np.linalg.norm(vector[:d])
            order = np.argsort(-cosines, kind="stable")
            found = re.findall(r"<li( class=\"positive\")?>(.*?) <span[^>]*>\((✓ positive, )?([-\d.]+)\)", items)
            np.testing.assert_allclose([float(each[3]) for each in found], cosines[order[:5]], atol=6e-4)
            places = [corpus.index(each[1]) for each in found]
            np.testing.assert_allclose(cosines[places], cosines[order[:5]], atol=1e-5)  # equal ones in either order
            assert [bool(each[0]) and bool(each[2]) for each in found] == [place in relevant for place in places]
            best = cosines[relevant].max()
            nearer, as_near = int((cosines > best + 1e-6).sum()), int((cosines > best - 1e-6).sum())
            assert ("first positive is at rank" in below) == (not any(each[0] for each in found))
            if below:
                assert nearer < int(below.split("rank ")[1].split(".")[0]) <= as_near


def test_texts_are_shown_as_text(tmp_path: Path, model: str, ablation: Path, make_build: MakeBuild) -> None:
    path = tmp_path / "hostile.json"
    tasks = [task(HOSTILE, HOSTILE, 0.5, 0.4)]
    path.write_text(family_scores(model=HOSTILE, mteb=HOSTILE, tasks=tasks).model_dump_json(by_alias=True))
    build = make_build(toy_rows()[:1], [row(HOSTILE, HOSTILE + "!", category=HOSTILE, negatives=[HOSTILE + "?"])])
    page = written(tmp_path, path, ablation, model=model, build=build)
    assert "<script" not in page
    assert "<img" not in page
    assert page.count("&lt;script&gt;") >= 9  # model, mteb, family twice, task, component, category, query, neighbours
    assert "default-src 'none'" in page
    assert not re.findall(r"(?:src|href)=\"", page)
    assert written(tmp_path, path, ablation, model=model, build=build) == page


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "is not there"),
        ("{", "cannot be read as JSON"),
        ('{"model": "x"}', "is not results.json of `trainer evaluate"),
        (json.dumps({**family_scores().model_dump(mode="json", by_alias=True), "tasks": []}), "has no task"),
        (with_scores({32: 0.5}, {8: 0.4}), "its tasks have no dimension in common"),
        (with_scores({}, {}), "its tasks have no dimension in common"),
    ],
)
def test_a_file_that_is_no_scores_is_told(tmp_path: Path, text: str | None, expected: str) -> None:
    path = tmp_path / "bad.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=re.escape(expected)):
        written(tmp_path, path)
    assert not (tmp_path / "report.html").exists()


def test_dimensions_that_not_all_tasks_have_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "two.json").write_text(with_scores({32: 0.5, 16: 0.45, 8: 0.4}, {32: 0.7, 8: 0.6}))
    found = rows(written(tmp_path, tmp_path / "two.json"), "scores")
    assert found[0] == ["family", "task", "metric", "32", "8"]
    assert ["STS", "mean", "", "0.6000", "0.5000"] in found


def test_a_folder_in_place_of_the_page_is_refused_first(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder, and a file is to be written there"):
        model_report.write("toy", str(tmp_path / "nothing.json"), str(tmp_path), None, None)


@pytest.mark.parametrize("value", [{**ABLATION, "components": [{"name": "hard"}]}, {**ABLATION, "components": None}])
def test_a_file_that_is_no_ablation_is_told(tmp_path: Path, scores: Path, value: dict[str, Any]) -> None:
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(value))
    with pytest.raises(UserError, match="is not the JSON of `trainer ablate`: components"):
        written(tmp_path, scores, path)
