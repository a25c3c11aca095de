"""The card: a head that the Hub reads, and a body that says what is in the data set."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from publishing import CATEGORIES, Settings, small_build

from datakit.opened import Build, open_build
from datakit.publish import card
from datakit.publish.manifest import SourceEntry


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    settings = Settings(drawn=40, texts={"dairy": "a | b ``` </td>\n---\n"})
    return open_build(small_build(str(tmp_path_factory.mktemp("card")), settings).path)


def head_of(build: Build) -> dict[str, object]:
    text = Path(build.path, "README.md").read_text()
    assert text.startswith("---\n")
    loaded = yaml.safe_load(text.split("---\n")[1])
    assert isinstance(loaded, dict)
    return loaded


def test_the_head_declares_both_configs_and_what_the_hub_asks_for(build: Build) -> None:
    head = head_of(build)
    assert head["configs"] == [
        {
            "config_name": "default",
            "default": True,
            "data_files": [
                {"split": "train", "path": "train/*.parquet"},
                {"split": "validation", "path": "validation/*.parquet"},
            ],
        },
        {"config_name": "rejected", "data_files": [{"split": "rejected", "path": "rejected/*.parquet"}]},
    ]
    assert head["license"] == "cc-by-4.0"
    assert head["language"] == ["en"]
    assert head["task_categories"] == ["question-answering"]
    assert head["size_categories"] == ["n<1K"]


def test_norwegian_stays_a_text_in_the_head(build: Build) -> None:
    entries = {name: entry.model_copy(update={"languages": ["no", "und"]}) for name, entry in build.manifest.categories.items()}
    changed = Build(build.path, build.manifest.model_copy(update={"categories": entries}))
    assert yaml.safe_load(card.render(changed).split("---\n")[1])["language"] == ["no"]


@pytest.mark.parametrize(
    ("licences", "expected"),
    [
        (["MIT", "mit"], ["mit"]),
        (["CC-BY-4.0", None], ["cc-by-4.0", "unknown"]),
        (["PSF-2.0", "Apache-2.0"], ["apache-2.0", "other"]),
        ([], ["unknown"]),
    ],
)
def test_licences_are_given_as_the_hub_knows_them(licences: list[str | None], expected: list[str]) -> None:
    assert card._licence([SourceEntry(name="a", licence=licence) for licence in licences]) == expected


def test_texts_from_outside_bring_their_licences(tmp_path: Path) -> None:
    outside = {"type": "files", "path": "corpus.jsonl", "columns": {"document": "text"}, "licence": "CC-BY-NC-4.0"}
    negatives = {"miners": [{"type": "bm25"}], "corpus": {"sources": [outside]}}
    found = open_build(small_build(str(tmp_path), negatives=negatives).path)
    assert head_of(found)["license"] == ["cc-by-4.0", "cc-by-nc-4.0"]
    assert "| (negatives) | corpus.jsonl | CC-BY-NC-4.0 |" in Path(found.path, "README.md").read_text()
    page = Path(found.path, "report.html").read_text()
    assert '<td>(negatives)</td><td class="long">corpus.jsonl</td><td>CC-BY-NC-4.0</td>' in page


@pytest.mark.parametrize(
    ("rows", "expected"), [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (10**6, "1M<n<10M"), (10**12, "n>1T")]
)
def test_sizes_are_given_as_the_hub_knows_them(rows: int, expected: str) -> None:
    assert card._size(rows) == expected


def test_the_body_has_the_numbers_and_no_text_breaks_it(build: Build) -> None:
    text = Path(build.path, "README.md").read_text()
    for name, entry in build.manifest.categories.items():
        assert f"| {name} | question_answering | {entry.created:,} |" in text
        assert f"| {name} | {name}.jsonl | CC-BY-4.0 |" in text
    for reason in ("near_duplicate", "query_too_short"):
        assert f"| {reason} |" in text
    assert text.count("\n```json\n") == 1
    assert text.count("\n```\n") == 2
    assert len(CATEGORIES) == 3
