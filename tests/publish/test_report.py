"""The report: right figures, nothing from a network, no text of a row that runs, readable on a phone."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from collections import Counter
from html import unescape
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from publishing import Settings, small_build

from datakit.opened import Build, open_build
from datakit.publish import figures, report

HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\"> {{ 7*7 }} <b>&amp; <!--"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    chosen = Settings(drawn=40, texts={"garden": HOSTILE})
    return open_build(small_build(str(tmp_path_factory.mktemp("report")), chosen).path)


@pytest.fixture(scope="module")
def page(build: Build) -> str:
    return Path(build.path, "report.html").read_text()


def dom(page: Path, folder: Path, width: int = 1280) -> str:
    """The page as Chromium has it after its script ran."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed here")
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder}", f"--window-size={width},900", "--dump-dom", f"file://{page}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    return done.stdout


def test_the_same_build_gives_the_same_report(build: Build, page: str) -> None:
    assert report.render(build) == page


def test_the_report_asks_nothing_of_a_network(page: str) -> None:
    outside = re.sub(r'<script type="application/json".*?</script>', "", page, flags=re.S)
    assert not re.findall(r"(?:src|href)=\"(?!#|data:)[^\"]*\"", outside)
    assert "@import" not in page
    assert "url(" not in page
    assert "default-src 'none'" in page


def test_no_text_of_a_row_becomes_markup(page: str) -> None:
    assert HOSTILE not in page
    assert page.count("<script") == 2
    assert page.count("</script>") == 2
    assert "<img" not in page
    assert "49" not in re.findall(r"(\d+) &lt;b&gt;", page), "a template in a text was run"
    rows = re.search(r'<script type="application/json" id="rows-data">(.*?)</script>', page, flags=re.S)
    assert rows is not None
    assert any(row["query"].startswith(HOSTILE) for row in json.loads(rows.group(1)))


def test_hostile_texts_are_shown_and_do_not_run(build: Build, page: str, tmp_path: Path) -> None:
    # Without the content security policy, which alone would stop them.
    bare = tmp_path / "bare.html"
    bare.write_text(re.sub(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", "", page))
    for number, path in enumerate((bare, Path(build.path, "report.html"))):
        after = dom(path, tmp_path / f"profile-{number}")
        assert f"<title>{build.name} {build.version}</title>" in after
        assert "<img" not in after
        shown = re.search(r'<div id="rows-list">(.*)', after, flags=re.S)
        assert shown is not None
        assert HOSTILE in unescape(shown.group(1)), "the script of the page ran, and showed the rows as text"


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_a_phone_and_a_desktop(page: str, tmp_path: Path, width: int) -> None:
    probe = "<script>document.title = `fits ${document.documentElement.scrollWidth} in ${innerWidth}`</script></body>"
    copy = tmp_path / "probe.html"
    copy.write_text(re.sub(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", "", page).replace("</body>", probe))
    found = re.search(r"<title>fits (\d+) in (\d+)</title>", dom(copy, tmp_path / "profile", width))
    assert found is not None
    assert int(found.group(1)) <= int(found.group(2))


def test_the_funnel_follows_the_counts_and_ends_with_the_kept_rows(build: Build) -> None:
    stages = report.stages(build.manifest.steps)
    assert [(stage.name, stage.steps) for stage in stages] == [
        ("read", 3), ("filter-0-length", 1), ("dedup-0-minhash", 1), ("split", 1), ("mix", 1),
    ]  # fmt: skip
    assert stages[0].after == build.manifest.totals.created
    assert stages[-1].after == build.manifest.totals.kept
    for one, next_one in itertools.pairwise(stages):
        assert next_one.before == one.after
        assert next_one.before - next_one.dropped == next_one.after


def test_every_reason_has_its_rows_and_examples(build: Build) -> None:
    rejections = report.rejections(build)
    counts = dict(build.rejected.collect().get_column("reason").value_counts().iter_rows())
    assert {item.reason: item.rows for item in rejections} == counts
    for item in rejections:
        assert sum(item.categories.values()) == sum(item.steps.values()) == item.rows
        assert len(item.examples) == 3
        assert all(row["reason"] == item.reason for row in item.examples)
    near = next(item for item in rejections if item.reason == "near_duplicate")
    assert all(row["other"]["query"] == row["query"] for row in near.examples)


def test_lengths_agree_with_counting_words_one_by_one(build: Build) -> None:
    rows = pl.concat([build.train, build.validation]).collect()
    for category, columns in figures.lengths(build).items():
        for column, found in columns.items():
            words = sorted(len(text.split()) for text in rows.filter(category=category).get_column(column))
            bins = Counter(min(max(number, 1).bit_length() - 1, figures.BINS - 1) for number in words)
            assert found.bins == tuple(bins[number] for number in range(figures.BINS))
            assert found.median == words[(len(words) + 1) // 2 - 1]
            assert sum(number <= found.p95 for number in words) >= 0.95 * len(words)


def test_the_sample_is_fair_and_does_not_depend_on_the_files(build: Build, tmp_path: Path) -> None:
    sample = figures.sample(build, 9)
    assert Counter(row["category"] for row in sample) == dict.fromkeys(("bakery", "dairy", "garden"), 3)
    rows = pl.concat([build.train, build.validation]).collect()
    for category in ("bakery", "dairy", "garden"):
        lowest = rows.filter(category=category).get_column("row_id").sort().head(3).to_list()
        assert [row["row_id"] for row in sample if row["category"] == category] == lowest
    validation = set(build.validation.collect().get_column("row_id"))
    assert all((row["row_id"] in validation) == (row["part"] == "validation") for row in figures.sample(build))


def test_a_report_stays_small_whatever_the_rows(tmp_path: Path) -> None:
    build = open_build(small_build(str(tmp_path), Settings(texts={"one": "字 <&" * 3000}), {"one": 330, "two": 300}).path)
    size = Path(build.path, "report.html").stat().st_size
    assert size < 2_000_000
    assert size > 200_000


@settings(max_examples=40, deadline=None)
@given(st.recursive(st.text() | st.none() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_embedded_json_reads_back_and_cannot_end_its_element(value: object) -> None:
    text = str(report.embedded(value))
    assert json.loads(text) == value
    assert not set("<>&\u2028\u2029") & set(text)


@given(st.integers(0, 10**7), st.integers(1, 10**7))
def test_a_percentage_is_never_all_or_nothing_where_it_is_not(part: int, whole: int) -> None:
    part = min(part, whole)
    said = report.percent(part, whole)
    assert (said == "0\u00a0%") == (part == 0)
    assert (said == "100\u00a0%") == (part == whole)
