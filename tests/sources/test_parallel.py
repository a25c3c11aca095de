"""Translations in two files, line by line."""

from __future__ import annotations

from pathlib import Path

import pytest
from reading import COMPRESS, output, rejected, rows, step

from datakit.errors import UserError
from datakit.recipe import ParallelSource

GERMAN = ["eins", "zwei", "", "vier", "fünf"]
DANISH = ["en", "to", "tre", " ", "fem"]


def source(tmp_path: Path, first: bytes, second: bytes, suffix: str = "", **options: object) -> ParallelSource:
    paths = [tmp_path / f"corpus.de{suffix}", tmp_path / f"corpus.da{suffix}"]
    for path, data in zip(paths, (first, second), strict=True):
        path.write_bytes(COMPRESS[suffix](data))
    given = {"type": "parallel", "paths": [str(path) for path in paths], "languages": ["de", "da"], **options}
    return ParallelSource.model_validate(given)


def lines(texts: list[str]) -> bytes:
    return "".join(f"{text}\n" for text in texts).encode()


@pytest.mark.parametrize("suffix", sorted(COMPRESS))
def test_lines_side_by_side_are_pairs_with_their_languages(tmp_path: Path, suffix: str) -> None:
    result = output(source(tmp_path, lines(GERMAN), lines(DANISH), suffix), tmp_path / "cache")
    assert [(row["query"], row["positive"], row["language"], row["positive_language"]) for row in rows(result)] == [
        (german, danish, "de", "da") for german, danish in zip(GERMAN, DANISH, strict=True) if german and danish.strip()
    ]
    assert {row["source"] for row in rows(result)} == {f"corpus.de{suffix},corpus.da{suffix}"}
    assert [(row["reason"], row["positive"], row["language"]) for row in rejected(result)] == [
        ("empty_field", "tre", "de"), ("empty_field", None, "de"),
    ]  # fmt: skip
    assert rejected(result)[0]["detail"].endswith(":3: query: nothing in column 'query'")


def test_files_of_different_lengths_are_refused_with_both(tmp_path: Path) -> None:
    said = r"corpus.de' has 5 lines, and '.*corpus.da' has 3\."
    with pytest.raises(UserError, match=said):
        output(source(tmp_path, lines(GERMAN), lines(DANISH[:3])), tmp_path / "cache")
    with pytest.raises(UserError, match=r"corpus.da' has 5 lines, and '.*corpus.de' has 0\."):
        output(source(tmp_path, b"", lines(DANISH)), tmp_path / "cache")
    limited = output(source(tmp_path, lines(GERMAN), lines(DANISH[:3]), limit=2), tmp_path / "cache")
    assert len(rows(limited)) == 2


def test_a_line_that_cannot_be_read_spoils_its_own_pair_only(tmp_path: Path) -> None:
    german = b"eins\nzw\xffei\r\ndrei\nvi\0er\n" + b"x" * 200 + b"\nsechs"
    danish = b"en\nto\ntre\nfire\nfem\nseks\n"
    result = output(source(tmp_path, german, danish, max_record_bytes=100, max_bad_fraction=1), tmp_path / "cache")
    assert [(row["query"], row["positive"]) for row in rows(result)] == [("eins", "en"), ("drei", "tre"), ("sechs", "seks")]
    assert result.report.counts.rejected == {"invalid_utf8": 1, "nul_bytes": 1, "record_too_long": 1}


def test_the_key_follows_both_files(tmp_path: Path) -> None:
    before = step(source(tmp_path, b"a\n", b"b\n"), tmp_path).key
    assert step(source(tmp_path, b"a\n", b"b\n"), tmp_path).key == before
    assert step(source(tmp_path, b"a\n", b"c\n"), tmp_path).key != before


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    given = {"type": "parallel", "paths": [str(tmp_path / "a"), str(tmp_path / "b")], "languages": ["de", "da"]}
    with pytest.raises(UserError, match="does not exist"):
        step(ParallelSource.model_validate(given), tmp_path)
