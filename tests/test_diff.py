"""What changed between two builds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from publishing import Settings, small_build

import datakit.diff
from datakit.diff import Change, Difference, changes, diff
from datakit.opened import Build, open_build


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> tuple[Build, Build]:
    folder = str(tmp_path_factory.mktemp("diff"))
    categories = {"bakery": 90, "dairy": 60, "garden": 25}
    first = small_build(folder, Settings(drawn=40, texts={"garden": "In the garden of a friend"}), categories)
    second = small_build(folder, Settings(drawn=30, min_words=8, texts={"garden": "In the garden of a friend"}), categories)
    return open_build(first.path), open_build(second.path)


def states(build: Build) -> tuple[dict[str, str], dict[str, tuple[str, str]]]:
    """By hand: row_id -> state, and content_id -> (its row_id, its category) for kept rows."""
    by_row, contents = {}, {}
    for part in ("train", "validation"):
        for row in build.frame(part).collect().iter_rows(named=True):
            by_row[row["row_id"]] = part
            contents[row["content_id"]] = (row["row_id"], row["category"])
    for row in build.rejected.collect().iter_rows(named=True):
        by_row[row["row_id"]] = f"rejected: {row['reason']}"
    for row in build.not_sampled.collect().iter_rows(named=True):
        by_row[row["row_id"]] = "not sampled"
    return by_row, contents


def test_rows_are_counted_as_by_hand(builds: tuple[Build, Build]) -> None:
    (a_rows, a_kept), (b_rows, b_kept) = states(builds[0]), states(builds[1])
    difference = diff(*builds)
    expected: Counter[tuple[str, str, str]] = Counter()
    for content in a_kept.keys() | b_kept.keys():
        row_id, category = a_kept.get(content) or b_kept[content]
        before = a_rows[row_id] if content not in a_kept else a_rows[a_kept[content][0]]
        after = b_rows[row_id] if content not in b_kept else b_rows[b_kept[content][0]]
        expected[category, before, after] += 1
    found = {
        (category, before, after): rows
        for category, before, after, rows in difference.transitions.iter_rows()
        if {before, after} & {"train", "validation"}
    }
    assert found == dict(expected)
    sums = {(category, part): (only_a, only_b, both) for category, part, only_a, only_b, both in difference.rows.iter_rows()}
    assert sum(only_a + both for only_a, _, both in sums.values()) == len(a_kept)
    assert sum(only_b + both for _, only_b, both in sums.values()) == len(b_kept)
    moved = {(category, before, after) for category, before, after, _ in difference.moved.iter_rows()}
    assert ("garden", "train", "rejected: query_too_short") in moved
    assert all(before != after for _, before, after in moved)


def test_slices_of_the_ids_change_no_count(builds: tuple[Build, Build], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = diff(*builds).transitions
    for most in (20, 2):
        monkeypatch.setattr(datakit.diff, "ROWS_AT_ONCE", most)
        assert diff(*builds).transitions.equals(whole)


def test_a_build_and_itself_do_not_differ(builds: tuple[Build, Build]) -> None:
    same = diff(builds[0], builds[0])
    assert same.same
    assert (same.recipe, same.models, same.packages, same.steps) == ([], [], [], [])
    assert same.moved.height == 0
    assert same.rows.select("only_a", "only_b").sum().row(0) == (0, 0)
    assert "The same version" in str(same)


def test_there_and_back_mirror_each_other(builds: tuple[Build, Build]) -> None:
    there, back = diff(*builds), diff(builds[1], builds[0])
    mirrored = {(category, after, before): rows for category, before, after, rows in back.transitions.iter_rows()}
    found = {(category, before, after): rows for category, before, after, rows in there.transitions.iter_rows()}
    kept = {key for key in found if {"train", "validation"} & set(key)}
    assert kept
    assert {key: found[key] for key in kept} == {key: mirrored[key] for key in kept}


def test_it_reads_as_text(builds: tuple[Build, Build]) -> None:
    text = str(diff(*builds))
    assert f"small {builds[0].version} -> small {builds[1].version}" in text
    assert "filters[length].query" in text
    assert "[3, 512]" in text
    assert "[8, 512]" in text
    assert "Models: the same." in text
    assert "mix" in text
    assert "rejected: query_too_short" in text
    assert "only in the first" in text
    assert "&lt;" not in diff(*builds)._repr_html_().replace("-&gt;", "")


def test_builds_of_different_recipes_are_told_apart(tmp_path: Path, builds: tuple[Build, Build]) -> None:
    other = open_build(small_build(str(tmp_path), categories={"harbour": 20}).path)
    difference = diff(builds[0], other)
    assert isinstance(difference, Difference)
    rows = difference.rows
    assert set(rows.filter(category="harbour").get_column("only_a")) == {0}
    assert rows.filter(category="harbour").get_column("only_b").sum() == other.manifest.totals.kept
    assert any(change.key.startswith("categories.bakery") and change.after is None for change in difference.recipe)


def test_a_filter_that_moved_in_the_list_goes_by_its_type() -> None:
    before = {"filters": [{"type": "length", "query": [2, 512]}, {"type": "quality", "x": 1}]}
    after = {"filters": [{"type": "toxicity"}, {"type": "length", "query": [3, 512]}, {"type": "quality", "x": 1}]}
    assert changes(before, after) == [
        Change("filters[length].query", [2, 512], [3, 512]),
        Change("filters[toxicity].type", None, "toxicity"),
    ]


# Without null: a key that is null and a key that is absent are the same.
VALUES = st.recursive(
    st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", min_size=1, max_size=2), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES, VALUES)
def test_changes_are_none_exactly_for_equal_values(before: object, after: object) -> None:
    assert changes({"k": before}, {"k": before}) == []
    assert (changes({"k": before}, {"k": after}) == []) == (before == after)
