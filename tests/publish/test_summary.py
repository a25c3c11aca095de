"""The table that the command line ends with."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from publishing import Settings, small_build
from rich.console import Console

import datakit
from datakit.opened import Build, open_build
from datakit.publish.reasons import WORDS, in_words
from datakit.publish.summary import summary


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    return open_build(small_build(str(tmp_path_factory.mktemp("summary")), Settings(drawn=40)).path)


def lines(build: Build, width: int) -> list[str]:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(summary(build))
    return capture.get().splitlines()


def test_it_is_whole_at_100_columns(build: Build) -> None:
    text = lines(build, 100)
    assert max(len(line) for line in text) <= 100
    assert "…" not in "".join(text)
    for name, entry in build.manifest.categories.items():
        row = next(line for line in text if line.strip().startswith(name))
        numbers = [int(word) for word in re.findall(r"(?<=\s)\d+(?=\s|$)", row)]
        assert numbers == [
            entry.created, sum(entry.rejected.values()), entry.not_sampled, entry.train, entry.validation,
        ]  # fmt: skip
    total = next(line for line in text if line.strip().startswith("all "))
    assert str(build.manifest.totals.created) in total
    flat = re.sub(r"\s+", " ", " ".join(text))
    for reason, rows in build.manifest.categories["bakery"].rejected.items():
        assert f"{reason} {rows}" in flat


def test_it_says_where_the_report_is(build: Build) -> None:
    assert f"{build.path}/report.html" in "".join(line.strip() for line in lines(build, 100))
    assert Path(build.path, "report.html").exists()


def test_every_reason_reads_as_a_sentence_with_and_without_numbers() -> None:
    for reason in WORDS:
        for text in (in_words(reason), in_words(reason, 3.0, 2.0, "line 4"), in_words(reason, 0.12345)):
            assert text[0].isupper()
            assert text.endswith(".")
            assert "{" not in text
    assert in_words("query_too_short", 1.0, 2.0) == "The query is too short (length 1, and at least 2 is asked for)."
    assert "0.30004 of its words are repeated, and 0.3 is allowed" in in_words("repetitive", 0.30004, 0.3)
    assert "does not allow (it, with confidence 0.578)." in in_words("wrong_language", 0.578, 0.5, "it")
    assert in_words("near_duplicate", 0.8765, 0.8).endswith("(similarity 0.876, and 0.8 makes a duplicate).")


def test_every_reason_of_datakit_has_words() -> None:
    folder = Path(datakit.__file__).parent
    files = [
        *folder.glob("filters/*.py"),
        *folder.glob("dedup/*.py"),
        folder / "sources" / "records.py",
        folder / "normalise.py",
        folder / "split.py",
    ]
    places = {
        reason: file.name
        for file in files
        for name, reason in re.findall(r"^([A-Z_]+) = \"([a-z_0-9]+)\"$", file.read_text(), flags=re.M)
        if name.lower() == reason
    }
    assert {"near_duplicate", "query_too_short", "invalid_json", "wrong_language"} <= places.keys()
    assert {reason: place for reason, place in places.items() if reason not in WORDS} == {}


def test_the_reason_of_a_users_own_filter_is_said_as_it_is() -> None:
    assert in_words("my_reason", 2.0, 1.0, "because") == "my_reason (value 2, threshold 1; because)."
