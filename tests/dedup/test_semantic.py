"""Rows that mean the same: the survivors are those of all comparisons, whatever the order of the rows, the shards and the workers."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from duplicated import rank, row, rows_alike, tables
from embedded import embedded_step, vector
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stepping import read, rows_step, run_step

from datakit.dedup import dedup_step, nearby, nodes, semantic
from datakit.dedup.semantic import SEMANTIC_DUPLICATE
from datakit.errors import UserError
from datakit.recipe import SemanticDedup
from datakit.step import Output


def settings_for(**more: Any) -> SemanticDedup:
    return SemanticDedup(type="semantic", encoder="test", **more)


def run(records: list[dict[str, Any]], dedup: SemanticDedup, cache: Path, shards: int = 1, workers: int = 1) -> Output:
    step = dedup_step(0, dedup, (rows_step(tables(records, shards)),), embedded_step(sorted(records, key=str)))
    return run_step(step, str(cache), workers)


def dropped(output: Output) -> dict[str, tuple[str, float]]:
    """For each dropped row the kept one that it names, and the similarity."""
    if not output.rejected:
        return {}
    table = read(output.rejected)
    assert set(table.column("reason").to_pylist()) == {SEMANTIC_DUPLICATE}
    names = (table.column(name).to_pylist() for name in ("row_id", "other_id", "value"))
    return {row_id: (other, value) for row_id, other, value in zip(*names, strict=True)}


def similarity(one: dict[str, Any], other: dict[str, Any], on: str) -> float:
    """The lowest cosine of what is compared; -1 for rows that are not."""
    labels = [record["positive"] if record.get("label") else None for record in (one, other)]
    if on != "query" and labels[0] != labels[1]:
        return -1.0
    sides = ["query"] if on == "positive" and labels[0] else {"pair": ["query", "positive"]}.get(on, [on])
    found = []
    for side in sides:
        a, b = (vector(record[side]).astype(np.float64) for record in (one, other))
        same = one[side] == other[side]
        found.append(1.0 if same else min(float(a @ b / np.sqrt((a @ a) * (b @ b))), 1.0))
    return min(found)


def greedy(records: list[dict[str, Any]], threshold: float, within: str, on: str) -> dict[str, tuple[str, float]]:
    """The same, by all comparisons. Rows of the same texts share the fate of the best of them."""
    kept: list[dict[str, Any]] = []
    lost: dict[str, tuple[str, float]] = {}
    fate: dict[Any, tuple[str, float]] = {}
    for record in sorted(records, key=rank):
        label = record["positive"] if record.get("label") and on != "query" else None
        texts = [record[side] for side in ("query", "positive") if on in (side, "pair") or (side == "query" and label)]
        said = (record["category"] if within == "category" else "", label, *texts)
        if said in fate:
            lost[record["row_id"]] = fate[said]
            continue
        others = [other for other in kept if within == "all" or other["category"] == record["category"]]
        like = [(-similarity(record, other, on), rank(other), other["row_id"]) for other in others]
        if like and -min(like)[0] >= threshold:
            lost[record["row_id"]] = fate[said] = (min(like)[2], -min(like)[0])
        else:
            kept.append(record)
    return lost


def same(found: dict[str, tuple[str, float]], wanted: dict[str, tuple[str, float]]) -> bool:
    return {k: v[0] for k, v in found.items()} == {k: v[0] for k, v in wanted.items()} and all(
        abs(found[key][1] - wanted[key][1]) < 1e-12 for key in found
    )


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, 10**6),
    st.sampled_from([0.6, 0.8, 0.95, 1.0]),
    st.sampled_from(["category", "all"]),
    st.sampled_from(["query", "positive", "pair"]),
    st.integers(1, 5),
)
def test_survivors_are_those_of_all_comparisons_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, seed: int, threshold: float, within: Any, on: Any, shards: int
) -> None:
    records = rows_alike(seed, 12)
    dedup = settings_for(threshold=threshold, within=within, on=on)
    wanted = greedy(records, threshold, within, on)
    random.Random(seed).shuffle(records)
    output = run(records, dedup, tmp_path_factory.mktemp("semantic"), shards)
    assert same(dropped(output), wanted)
    assert read(output.shards).column("row_id").to_pylist() == [r["row_id"] for r in records if r["row_id"] not in wanted]


@pytest.fixture
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many tiles, groups and files, as large data have them."""
    monkeypatch.setattr(nearby, "TILE", 16)
    monkeypatch.setattr(semantic, "GROUP_NODES", 8)
    monkeypatch.setattr(nodes, "VECTORS", 13)


@pytest.mark.usefixtures("small_units")
@pytest.mark.parametrize("on", ["query", "positive", "pair"])
def test_tiles_groups_and_files_change_nothing(tmp_path: Path, on: Any) -> None:
    records = rows_alike(3, 40)
    output = run(records, settings_for(threshold=0.8, on=on), tmp_path, shards=3)
    assert len(list(Path(output.folder, "link").iterdir())) >= 8
    assert len(list(Path(output.folder, "compare").iterdir())) > 1
    wanted = greedy(records, 0.8, "category", on)
    assert wanted
    assert same(dropped(output), wanted)


@pytest.fixture
def clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scopes of more than 20 are searched by clusters."""
    monkeypatch.setattr(nearby, "EXACT", 20)
    monkeypatch.setattr(nodes, "VECTORS", 37)


@pytest.mark.usefixtures("clusters")
@pytest.mark.parametrize("on", ["query", "pair"])
def test_clusters_find_nearly_all_and_never_drop_what_is_not_alike(tmp_path: Path, on: Any) -> None:
    records = rows_alike(5, 150)
    by_id = {record["row_id"]: record for record in records}
    wanted = greedy(records, 0.9, "all", on)
    assert len(wanted) > 20
    output = run(records, settings_for(threshold=0.9, within="all", probes=3, on=on), tmp_path / "a")
    assert output.report.notes["searched_by_clusters"] > 100
    lost = dropped(output)
    kept = set(read(output.shards).column("row_id").to_pylist())
    for row_id, (other, value) in lost.items():
        assert other in kept
        assert rank(by_id[other]) < rank(by_id[row_id])
        assert similarity(by_id[row_id], by_id[other], on) == pytest.approx(value, abs=1e-12)
        assert value >= 0.9
    assert len(lost.keys() & wanted.keys()) >= 0.97 * len(wanted)
    random.Random(1).shuffle(records)
    assert dropped(run(records, settings_for(threshold=0.9, within="all", probes=3, on=on), tmp_path / "b", shards=4)) == lost


@pytest.mark.usefixtures("clusters")
def test_all_clusters_probed_are_all_comparisons(tmp_path: Path) -> None:
    records = rows_alike(6, 60)
    lost = dropped(run(records, settings_for(threshold=0.8, within="all", probes=1000), tmp_path))
    assert same(lost, greedy(records, 0.8, "all", "query"))


def files_of(folder: str) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


def test_workers_do_not_change_a_byte(tmp_path: Path) -> None:
    records = rows_alike(7, 40)
    one = run(records, settings_for(on="pair", threshold=0.7), tmp_path / "one", shards=3, workers=1)
    two = run(records, settings_for(on="pair", threshold=0.7), tmp_path / "two", shards=3, workers=2)
    assert one.report.counts.rejected
    assert files_of(one.folder) == files_of(two.folder)


def test_a_row_that_is_like_a_dropped_row_alone_stays(tmp_path: Path) -> None:
    words = [f"w{i}" for i in range(30)]
    chain = [" ".join(words[i : i + 20]) for i in range(0, 12, 4)]
    records = [row(text, "p", number=i, quality=1 - i / 10) for i, text in enumerate(chain)]
    near, far = similarity(records[0], records[1], "query"), similarity(records[0], records[2], "query")
    threshold = min(near, similarity(records[1], records[2], "query")) - 1e-9
    assert far < threshold
    lost = dropped(run(records, settings_for(threshold=threshold), tmp_path))
    assert list(lost) == [records[1]["row_id"]]
    assert lost[records[1]["row_id"]][0] == records[0]["row_id"]


def test_several_questions_of_one_document_stay_apart_as_pairs(tmp_path: Path) -> None:
    draw = random.Random(2)
    document = " ".join(draw.choice("abcdefghijk") for _ in range(20))
    records = [row(f"question {draw.random()}", document, number=i) for i in range(6)]
    assert not dropped(run(records, settings_for(on="pair", threshold=0.999), tmp_path))
    assert run(records, settings_for(on="positive"), tmp_path).report.counts.out == 1


def test_rows_without_a_text_are_kept_and_counted(tmp_path: Path) -> None:
    records = [row("a b", "p", number=0), row("a b", "p", number=1), row("", "p", number=2), row("", "p", number=3)]
    records.append({**row("x", "p", number=4), "query": None, "query_id": None})
    output = run(records, settings_for(), tmp_path)
    assert output.report.notes["without_text"] == 3
    assert output.report.counts.out == 4


def test_nothing_at_all(tmp_path: Path) -> None:
    assert run([], settings_for(), tmp_path).report.counts.out == 0
    output = run_step(dedup_step(0, settings_for(), (rows_step([]),), embedded_step([])), str(tmp_path))
    assert output.shards == []


def test_without_vectors_there_is_a_sentence() -> None:
    with pytest.raises(UserError, match="needs the encoder 'test'"):
        dedup_step(0, settings_for(), (rows_step([]),))


def test_every_parameter_decides_the_key() -> None:
    source = rows_step([])
    more: list[dict[str, Any]] = [{}, {"threshold": 0.7}, {"on": "pair"}, {"within": "all"}, {"probes": 2}]
    assert len({dedup_step(0, settings_for(**each), (source,), embedded_step([])).key for each in more}) == 5
