"""One row's whole story."""

from __future__ import annotations

import shutil
from pathlib import Path

import polars as pl
import pytest
from publishing import CATEGORIES, Settings, small_build

from datakit import storage
from datakit.errors import UserError
from datakit.explain import explain
from datakit.negatives.relabel import TEMPLATE
from datakit.opened import Build, open_build
from datakit.schema import digest, rows


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    return open_build(small_build(str(tmp_path_factory.mktemp("explain")), Settings(drawn=40)).path)


def some_id(frame: pl.LazyFrame, **wanted: str) -> str:
    return str(frame.filter(**wanted).select("row_id").head(1).collect().item())


def test_every_row_of_a_build_has_a_story(build: Build) -> None:
    fates = {"train": "train", "validation": "validation", "rejected": "rejected", "not_sampled": "not sampled"}
    told = 0
    for part, fate in fates.items():
        for row_id, category in build.frame(part).select("row_id", "category").collect().iter_rows():
            if told % 7 == 0 or part == "not_sampled":
                story = explain(build, row_id)
                assert (story.row_id, story.fate, story.category) == (row_id, fate, category)
                assert row_id in str(story)
            told += 1
    assert told == sum(CATEGORIES.values())


def test_a_kept_row_tells_its_texts_its_origin_and_its_way(build: Build) -> None:
    story = build.explain(some_id(build.train))
    text = " ".join(str(story).split())
    assert story.row is not None
    assert story.row["query"] in text
    assert story.row["positive"] in text
    assert "written by smol as baker with the template questions-1" in text
    assert "bm25, score 9.5, difficulty 0.9" in text
    assert [passed.step for passed in story.passed] == ["filter-0-length", "dedup-0-minhash", "split", "mix"]
    assert story.passed[2].said == "passed; to train"
    assert story.passed[0].said.endswith("rows of this category")


def test_a_row_that_relabelling_made_has_passed_what_comes_after_it(build: Build, tmp_path: Path) -> None:
    parent = build.train.head(1).collect().row(0, named=True)
    origin = {**parent["provenance"], "template": TEMPLATE, "parents": [parent["row_id"]]}
    path = str(shutil.copytree(build.path, tmp_path / "build"))
    name = build.files("train")[0]
    made = rows([{**parent, "row_id": digest("made"), "provenance": origin}])
    storage.write_table(str(Path(path, Path(name).relative_to(build.path))), made)
    steps = list(build.manifest.steps)
    place = next(number for number, step in enumerate(steps) if step.name == "mix")
    steps.insert(place, steps[place].model_copy(update={"name": "relabel"}))
    story = explain(Build(path, build.manifest.model_copy(update={"steps": steps})), digest("made"))
    assert [passed.step for passed in story.passed] == ["relabel", "mix"]
    assert story.passed[0].said == f"made it of a negative of {parent['row_id']}, which passed the steps before"


def test_a_filtered_row_tells_value_and_threshold(build: Build) -> None:
    story = build.explain(some_id(build.rejected, reason="query_too_short"))
    assert (story.step, story.reason, story.value, story.threshold) == ("filter-0-length", "query_too_short", 2.0, 3.0)
    assert "Rejected by filter-0-length as query_too_short: The query is too short (length 2, and at least 3" in story.why
    assert [passed.step for passed in story.passed] == ["filter-0-length"]
    assert story.passed[0].said == "stopped here"
    assert story.other is None


def test_a_duplicate_tells_the_other_row_and_what_became_of_it(build: Build) -> None:
    fates = {}
    for row_id in build.rejected.filter(reason="near_duplicate").collect().get_column("row_id"):
        story = build.explain(row_id)
        assert story.other is not None
        fates[story.other.fate] = story
    assert {"kept, in train", "kept, in validation"} <= set(fates)
    story = fates["kept, in train"]
    assert story.other is not None
    assert story.other.row is not None
    assert story.row is not None
    assert story.other.row["query"] == story.row["query"]
    assert f"The other row: {story.other.row_id} (kept, in train)" in str(story)


def test_a_duplicate_of_a_row_that_was_not_sampled_says_so(tmp_path: Path) -> None:
    build = open_build(small_build(str(tmp_path), Settings(drawn=2)).path)
    others = [build.explain(row_id).other for row_id in build.rejected.filter(reason="near_duplicate").collect()["row_id"]]
    left_out = [other for other in others if other is not None and other.fate == "kept then, and not sampled later"]
    assert left_out
    assert all(other.row is None for other in left_out)


def test_a_row_that_was_not_sampled_names_the_step_and_the_room(build: Build) -> None:
    story = build.explain(some_id(build.not_sampled))
    counts = next(step for step in build.manifest.steps if step.name == "mix").categories[story.category]
    assert f"left out {counts.not_sampled} rows of this category and took {counts.out}" in story.why
    assert story.row is None
    assert story.passed[-1].step == "mix"


def test_the_first_characters_of_an_id_will_do(build: Build) -> None:
    row_id = some_id(build.train)
    assert build.explain(row_id[:10]).row_id == row_id
    assert build.explain(f" {row_id.upper()} ").row_id == row_id


def test_an_id_that_is_none_or_several_is_the_persons_mistake(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="at least its first 6 characters"):
        build.explain("abc")
    with pytest.raises(UserError, match=r"No row of .* has the id 'zzzzzz'"):
        build.explain("zzzzzz")
    monkeypatch.setattr("datakit.explain.SHORTEST_ID", 1)
    ids = pl.concat([build.frame(p).select("row_id") for p in ("train", "validation", "rejected", "not_sampled")]).collect()
    expected = sorted(name for name in ids.get_column("row_id") if name.startswith("a"))
    assert len(expected) > 1
    with pytest.raises(UserError, match=rf"{len(expected)} rows have an id that begins with 'a': {expected[0]} \("):
        build.explain("a")


def test_a_notebook_shows_texts_and_no_markup(tmp_path: Path) -> None:
    build = open_build(small_build(str(tmp_path), Settings(texts={"garden": "<img src=x> [bold]not markup[/bold]"})).path)
    story = build.explain(some_id(build.train, category="garden"))
    assert "<img" not in story._repr_html_()
    assert "&lt;img src=x&gt; [bold]not markup[/bold]" in story._repr_html_()
