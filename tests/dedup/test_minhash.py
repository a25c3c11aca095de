"""Near duplicates: what must hold for survivors, whatever the order of the rows, the shards and the workers."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from duplicated import changed, duplicated_rows, jaccard, rank, row, rows_alike, sentence, shingle_set, tables
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stepping import read, rows_step, run_step

from datakit.dedup import candidates, dedup_step
from datakit.dedup.minhash import NEAR_DUPLICATE
from datakit.dedup.pairs import near_duplicate_pairs
from datakit.executor.local import LocalExecutor
from datakit.progress import QUIET
from datakit.recipe import MinHashDedup
from datakit.step import Output
from datakit.step import run as run_one


def settings_for(**more: Any) -> MinHashDedup:
    return MinHashDedup(type="minhash", **more)


def run(records: list[dict[str, Any]], dedup: MinHashDedup, cache: Path, shards: int = 1, workers: int = 1) -> Output:
    return run_step(dedup_step(0, dedup, (rows_step(tables(records, shards)),)), str(cache), workers)


def dropped(output: Output) -> dict[str, tuple[str, float]]:
    """For each dropped row the kept one that it names, and the similarity."""
    if not output.rejected:
        return {}
    table = read(output.rejected)
    assert set(table.column("reason").to_pylist()) == {NEAR_DUPLICATE}
    names = (table.column(name).to_pylist() for name in ("row_id", "other_id", "value"))
    return {row_id: (other, value) for row_id, other, value in zip(*names, strict=True)}


def greedy(records: list[dict[str, Any]], threshold: float, within: str) -> dict[str, tuple[str, float]]:
    """The same, by all comparisons."""
    kept: list[dict[str, Any]] = []
    lost = {}
    sets = {record["row_id"]: shingle_set(record["query"]) for record in records}
    for record in sorted(records, key=rank):
        others = [other for other in kept if within == "all" or other["category"] == record["category"]]
        like = [(-jaccard(sets[record["row_id"]], sets[other["row_id"]]), rank(other), other["row_id"]) for other in others]
        if like and -min(like)[0] >= threshold:
            lost[record["row_id"]] = (min(like)[2], -min(like)[0])
        else:
            kept.append(record)
    return lost


def similarity(one: dict[str, Any], other: dict[str, Any], on: str) -> float:
    """The lowest Jaccard similarity of what is compared; -1 for rows that are not."""
    labels = [record["positive"] if record.get("label") else None for record in (one, other)]
    if on == "positive" and labels[0] != labels[1]:
        return -1.0
    sides = ["query"] if on == "positive" and labels[0] else {"pair": ["query", "positive"]}.get(on, [on])
    return min(jaccard(shingle_set(one[side]), shingle_set(other[side])) for side in sides)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, 10**6),
    st.sampled_from([0.6, 0.8, 0.9]),
    st.sampled_from(["category", "all"]),
    st.sampled_from(["query", "positive", "pair"]),
    st.integers(1, 5),
)
def test_survivors_hold_what_they_must_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, seed: int, threshold: float, within: Any, on: Any, shards: int
) -> None:
    records = rows_alike(seed, 20, words=24)
    by_id = {record["row_id"]: record for record in records}
    dedup = settings_for(threshold=threshold, within=within, on=on)
    output = run(records, dedup, tmp_path_factory.mktemp("near"))
    lost = dropped(output)
    kept = set(read(output.shards).column("row_id").to_pylist())
    assert lost, "there is something to drop"
    assert kept | set(lost) == set(by_id)
    assert not kept & set(lost)
    for row_id, (other, value) in lost.items():
        one, survivor = by_id[row_id], by_id[other]
        assert other in kept, "a dropped row names a row that is kept"
        assert rank(survivor) < rank(one), "the better one survives"
        assert within == "all" or one["category"] == survivor["category"]
        assert value == similarity(one, survivor, on) >= threshold
    random.Random(seed).shuffle(records)
    again = run(records, dedup, tmp_path_factory.mktemp("near"), shards)
    assert dropped(again) == lost
    assert read(again.shards).column("row_id").to_pylist() == [r["row_id"] for r in records if r["row_id"] in kept]


@pytest.mark.parametrize("engine", ["rensa", "datasketch"])
@pytest.mark.parametrize("within", ["category", "all"])
def test_both_engines_choose_the_survivors_of_all_comparisons(tmp_path: Path, engine: Any, within: Any) -> None:
    records = duplicated_rows(7, 120)
    lost = dropped(run(records, settings_for(engine=engine, within=within), tmp_path, shards=2))
    wanted = greedy(records, 0.8, within)
    assert len(wanted) > 60
    # What no band finds (1.5 % of the pairs exactly at the threshold, fewer above it) may change a choice.
    assert len(lost.items() ^ wanted.items()) <= 0.03 * len(wanted)


def test_a_row_that_is_like_a_dropped_row_alone_stays(tmp_path: Path) -> None:
    words = [f"w{i}" for i in range(30)]
    chain = [words[i : i + 20] for i in range(0, 6, 2)]  # each like the next (16 of 20 shingles), no other
    records = [row(" ".join(part), "p", number=i, quality=1 - i / 10) for i, part in enumerate(chain)]
    threshold = jaccard(shingle_set(records[0]["query"]), shingle_set(records[1]["query"]))
    assert jaccard(shingle_set(records[0]["query"]), shingle_set(records[2]["query"])) < threshold
    lost = dropped(run(records, settings_for(threshold=threshold, permutations=256), tmp_path))
    assert lost == {records[1]["row_id"]: (records[0]["row_id"], threshold)}


def files_of(folder: str) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


@pytest.fixture
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many groups and ranges of keys, as large data have them."""
    monkeypatch.setattr(candidates, "GROUP_BYTES", 8_000)
    monkeypatch.setattr(candidates, "PARTITION_KEYS", 150)


def test_groups_and_ranges_of_keys_change_nothing(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    records = duplicated_rows(3, 80)
    whole = run(records, settings_for(), tmp_path / "whole", shards=3)
    request.getfixturevalue("small_units")
    parts = run(records, settings_for(), tmp_path / "parts", shards=3)
    assert len(list(Path(parts.folder, "compare").iterdir())) > 3
    assert len(list(Path(parts.folder, "meet").iterdir())) > 18
    assert dropped(parts) == dropped(whole) != {}
    assert parts.report == whole.report


def test_workers_do_not_change_a_byte(tmp_path: Path) -> None:
    records = duplicated_rows(5, 40)
    one = run(records, settings_for(on="pair"), tmp_path / "one", shards=3, workers=1)
    two = run(records, settings_for(on="pair"), tmp_path / "two", shards=3, workers=2)
    assert Path(one.folder, "compare").is_dir()
    assert files_of(one.folder) == files_of(two.folder)


class Stopped(Exception):
    """What ends a build in the middle."""


class Stopping(LocalExecutor):
    """Does two units, and stops."""

    def map(self, function: Callable[[Any], Any], units: Iterable[Any], *, exclusive: bool = False) -> Iterator[Any]:
        for done, result in enumerate(super().map(function, units, exclusive=exclusive)):
            if done == 1:
                raise Stopped
            yield result


@pytest.mark.usefixtures("small_units")
def test_resume_in_any_phase_gives_identical_bytes(tmp_path: Path) -> None:
    records = duplicated_rows(9, 20)
    undisturbed = run(records, settings_for(), tmp_path / "whole", shards=3)
    source = rows_step(tables(records, 3))
    run_step(source, str(tmp_path / "stopped"))
    step = dedup_step(0, settings_for(), (source,))
    phases = set()
    while True:
        try:
            output, _, _ = run_one(step, str(tmp_path / "stopped"), Stopping(1), QUIET)
            break
        except Stopped:
            # The last unit has written its files, and was stopped before it could say so.
            marker = max(
                Path(tmp_path, "stopped", "steps").glob("dedup*/*/*/unit.json"), key=lambda path: path.stat().st_mtime_ns
            )
            phases.add(marker.parts[-3])
            marker.unlink()
    assert phases >= {"sign", "meet", "send", "compare", "rows"}
    assert files_of(output.folder) == files_of(undisturbed.folder)


def test_thousands_of_rows_that_are_all_alike_are_quick(tmp_path: Path) -> None:
    draw = random.Random(1)
    original = sentence(draw, 80)
    records = [row(" ".join(changed(draw, original, 1)), f"p{i}", number=i) for i in range(20_000)]
    source = rows_step([pa.concat_tables(tables(records, 2))])
    run_step(source, str(tmp_path))
    started = time.process_time()
    output = run_step(dedup_step(0, settings_for(), (source,)), str(tmp_path))
    assert time.process_time() - started < 15
    assert output.report.notes["largest_component"] > 19_000
    assert output.report.counts.out < 100


def test_several_questions_of_one_document_are_no_near_duplicates_as_pairs(tmp_path: Path) -> None:
    draw = random.Random(2)
    document = " ".join(sentence(draw, 100))
    records = [row(" ".join(sentence(draw, 8)), document, number=i) for i in range(5)]
    records.append(row(records[0]["query"], document + " again", number=5))
    lost = dropped(run(records, settings_for(on="pair"), tmp_path))
    assert len(lost) == 1
    assert set(lost) < {records[0]["row_id"], records[5]["row_id"]}
    assert run(records, settings_for(on="positive"), tmp_path).report.counts.out == 1


def test_rows_of_one_label_are_compared_by_their_queries(tmp_path: Path) -> None:
    draw = random.Random(3)
    query = " ".join(sentence(draw, 20))
    said = [(query, "a"), (query + " please", "a"), (query, "b"), (" ".join(sentence(draw, 20)), "a")]
    records = [row(q, label, number=i, label=label, in_batch_negatives=False) for i, (q, label) in enumerate(said)]
    for on in ("positive", "pair"):
        lost = dropped(run(records, settings_for(on=on), tmp_path))
        assert len(lost) == 1
        assert set(lost) < {records[0]["row_id"], records[1]["row_id"]}


def test_texts_without_words_are_kept_and_counted(tmp_path: Path) -> None:
    records = [row(text, "p", number=i) for i, text in enumerate(["???", "???", "", "a b c", "A, b c!"])]
    output = run(records, settings_for(), tmp_path)
    assert output.report.notes["without_words"] == 3
    assert output.report.counts.out == 4


def test_nothing_at_all(tmp_path: Path) -> None:
    assert run([], settings_for(), tmp_path).report.counts.out == 0
    output = run_step(dedup_step(0, settings_for(), (rows_step([]),)), str(tmp_path))
    assert output.shards == []


def test_every_parameter_decides_the_key() -> None:
    source = rows_step([])
    keys = {
        dedup_step(0, settings_for(**more), (source,)).key
        for more in ({}, {"engine": "datasketch"}, {"threshold": 0.7}, {"shingle_size": 2}, {"within": "all"}, {"seed": 2})
    }
    assert len(keys) == 6


@pytest.mark.parametrize("name", ["articles_100", "articles_1000"])
def test_planted_pairs_of_articles_are_found(real_data: Path, name: str) -> None:
    folder = real_data / "filters" / "near-duplicates"
    lines = (folder / f"{name}.train").read_text().splitlines()
    ids, texts = zip(*(line.split(" ", 1) for line in lines), strict=True)
    planted = {frozenset(line.split()) for line in (folder / f"{name}.truth").read_text().splitlines()}
    table = near_duplicate_pairs(pa.array(texts), settings_for(threshold=0.7))
    left, right = table.column("left").to_pylist(), table.column("right").to_pylist()
    assert {frozenset((ids[i], ids[j])) for i, j in zip(left, right, strict=True)} == planted
    assert min(table.column("jaccard").to_pylist()) >= 0.7
