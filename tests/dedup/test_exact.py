"""Exact duplicates against plain grouping."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from duplicated import rank, row, tables
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stepping import read, rows_step, run_step

from datakit.dedup import dedup_step, exact
from datakit.dedup.exact import EXACT_DUPLICATE, normalised, row_keys
from datakit.recipe import ExactDedup
from datakit.schema import rows
from datakit.step import Output

TEXT = st.lists(st.sampled_from(["one", "One", "two", "two!", "three ", "C#", "C"]), min_size=1, max_size=2).map(" ".join)
RECORDS = st.lists(st.tuples(TEXT, TEXT, st.sampled_from("ab"), st.sampled_from([None, 0.5, 1.0])), max_size=14)


def run(records: list[dict[str, Any]], dedup: ExactDedup, cache: Path, shards: int = 1, workers: int = 1) -> Output:
    return run_step(dedup_step(0, dedup, (rows_step(tables(records, shards)),)), str(cache), workers)


def form(text: str) -> str:
    return " ".join(text.casefold().replace("!", " ").split())


def survivors_of(records: list[dict[str, Any]], dedup: ExactDedup) -> dict[str, str]:
    """For each dropped row the row that was kept instead."""

    def key(record: dict[str, Any]) -> tuple[str, ...]:
        sides = [form(record[side]) for side in ("query", "positive") if dedup.on in (side, "pair")]
        return (record["category"] if dedup.within == "category" else "", *sides)

    lost = {}
    for _, group in itertools.groupby(sorted(records, key=lambda record: (key(record), rank(record))), key=key):
        best, *others = group
        lost.update({other["row_id"]: best["row_id"] for other in others})
    return lost


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    RECORDS, st.sampled_from(["query", "positive", "pair"]), st.sampled_from(["category", "all"]), st.randoms(), st.integers(1, 4)
)
def test_survivors_are_those_of_plain_grouping_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, said: list[Any], on: Any, within: Any, draw: random.Random, shards: int
) -> None:
    records = [row(q, p, category=c, number=i, quality=s) for i, (q, p, c, s) in enumerate(said)]
    dedup = ExactDedup(type="exact", on=on, within=within)
    wanted = survivors_of(records, dedup)
    draw.shuffle(records)
    output = run(records, dedup, tmp_path_factory.mktemp("exact"), shards)
    rejected = read(output.rejected)
    if output.rejected:
        assert dict(zip(rejected.column("row_id").to_pylist(), rejected.column("other_id").to_pylist(), strict=True)) == wanted
        assert set(rejected.column("reason").to_pylist()) == {EXACT_DUPLICATE}
    else:
        assert not wanted
    kept = read(output.shards).column("row_id").to_pylist()
    assert kept == [record["row_id"] for record in records if record["row_id"] not in wanted]


def test_partitions_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [row(f"q {i % 7}", f"p {i % 5}", number=i) for i in range(100)]
    whole = run(records, ExactDedup(type="exact"), tmp_path / "whole", shards=3)
    monkeypatch.setattr(exact, "PARTITION_ROWS", 9)
    parts = run(records, ExactDedup(type="exact"), tmp_path / "parts", shards=3)
    assert read(parts.shards).equals(read(whole.shards))
    assert read(parts.rejected).equals(read(whole.rejected))
    assert parts.report.counts.rejected == {EXACT_DUPLICATE: 65}


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ("Hello, World!", " hello   WORLD ", True),
        ("Straße", "STRASSE", True),
        ("I’m", "I'm", True),
        ("1.5", "15", False),
        ("C", "C#", False),
        ("C", "C++", False),
        ("50%", "50", False),
        ("a*b", "a/b", False),
        ("???", "!", False),
        ("...", "...", True),
    ],
)
def test_what_is_equal(left: str, right: str, same: bool) -> None:
    one, other = normalised(pa.chunked_array([[left, right]]))
    assert (one == other) is same


def test_a_query_with_several_positives_is_kept_by_pair_and_dropped_by_query(tmp_path: Path) -> None:
    records = [row("what is it", f"answer {i}", number=i) for i in range(3)]
    assert run(records, ExactDedup(type="exact"), tmp_path).report.counts.out == 3
    assert run(records, ExactDedup(type="exact", on="query"), tmp_path).report.counts.out == 1


def test_sides_of_a_pair_do_not_run_together() -> None:
    keys = row_keys(rows([row("a b", "c"), row("a", "b c"), row("a", "b  C")]), ExactDedup(type="exact"))
    assert keys[0] != keys[1]
    assert keys[1] == keys[2]


def test_rows_of_one_label_are_no_duplicates_on_their_positive(tmp_path: Path) -> None:
    records = [row(f"turn it up {i % 3}", "volume", number=i, in_batch_negatives=False, label="volume") for i in range(6)]
    assert run(records, ExactDedup(type="exact", on="positive"), tmp_path).report.counts.out == 3


def test_rows_without_the_text_are_not_compared(tmp_path: Path) -> None:
    records = [row("", f"p {i}", number=i) | {"query": None} for i in range(3)]
    assert run(records, ExactDedup(type="exact", on="query"), tmp_path).report.counts.out == 3


def test_names_are_unique_in_a_build() -> None:
    first = dedup_step(0, ExactDedup(type="exact"), (rows_step([]),))
    second = dedup_step(1, ExactDedup(type="exact", within="all"), (first,))
    assert (first.name, second.name) == ("dedup-exact-pair", "dedup-exact-pair-1")
