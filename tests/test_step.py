"""Steps: keys, cache, resume, balance."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stepping import Given, read, rows_step, run_step

from datakit import storage
from datakit.errors import BuildError
from datakit.recipe import LengthFilter, MinHashDedup
from datakit.schema import EXAMPLE, digest, reasons, rows
from datakit.step import Counts, Step, Work, is_cached, judged, write_rows


def some_rows(number: int, category: str = "c") -> pa.Table:
    return rows([{"row_id": f"{category}{i:05d}", "category": category, "query": f"question {i}"} for i in range(number)])


def drop_odd(table: pa.Table, parameters: Any) -> pa.Table:
    return reasons([{"row": i, "reason": "odd", "value": float(i)} for i in range(1, table.num_rows, 2)])


def drop_twice(table: pa.Table, parameters: Any) -> pa.Table:
    return reasons([{"row": 0, "reason": "a"}, {"row": 0, "reason": "b"}])


def filtering(judge: Any, source: Step, name: str = "filter-odd") -> Step:
    return Step(name, 1, lambda work: judged(work, judge), Given(contents=[]), inputs=(source,))


def test_a_filter_keeps_the_order_and_publishes_what_it_drops(tmp_path: Path) -> None:
    source = rows_step([some_rows(5), some_rows(4, "d")])
    output = run_step(filtering(drop_odd, source), str(tmp_path))
    assert read(output.shards).column("row_id").to_pylist() == ["c00000", "c00002", "c00004", "d00000", "d00002"]
    rejected = read(output.rejected)
    assert rejected.column("row_id").to_pylist() == ["c00001", "c00003", "d00001", "d00003"]
    assert set(rejected.column("step").to_pylist()) == {"filter-odd"}
    assert rejected.column("query").to_pylist()[0] == "question 1"
    assert output.report.counts == Counts(rows_in=9, out=5, rejected={"odd": 4})
    assert output.report.categories["d"] == Counts(rows_in=4, out=2, rejected={"odd": 2})


def test_two_reasons_for_one_row_are_a_defect(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="two reasons for one row"):
        run_step(filtering(drop_twice, rows_step([some_rows(2)])), str(tmp_path))


def test_a_row_that_disappears_stops_the_build(tmp_path: Path) -> None:
    def lose_one(work: Work) -> None:
        table = storage.read_table(work.shards[0])
        folder = storage.join(work.folder, "rows", "00000")
        result = write_rows(folder, kept=[("rows", table.slice(1))], rows_in={"c": table.num_rows - 1})
        work.finish("rows", [result])

    step = Step("lossy", 1, lose_one, Given(contents=[]), inputs=(rows_step([some_rows(3)]),))
    with pytest.raises(BuildError, match="does not balance"):
        run_step(step, str(tmp_path))
    assert not is_cached(step, str(tmp_path))


def test_a_unit_that_does_not_balance_stops_the_build(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="do not balance"):
        write_rows(str(tmp_path), kept=[("rows", some_rows(3))], rows_in={"c": 4})


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50), st.integers(0, 50)), min_size=1))
def test_counts_add_up_and_keep_their_balance(parts: list[tuple[int, int, int, int]]) -> None:
    total = Counts()
    for out, short, long, left in parts:
        reason = {name: number for name, number in (("short", short), ("long", long)) if number}
        total = total.plus(Counts(rows_in=out + short + long + left, out=out, rejected=reason, not_sampled=left))
    assert total.balanced()
    assert sum(total.rejected.values()) == sum(part[1] + part[2] for part in parts)


def test_the_key_changes_with_everything_that_decides_the_output_and_with_nothing_else() -> None:
    source = rows_step([some_rows(2)])
    base = Step("s", 1, lambda work: None, LengthFilter(type="length"), inputs=(source,), assets={"m": "1"}, packages=("numpy",))
    same = Step("s", 1, lambda work: None, LengthFilter(type="length"), inputs=(source,), assets={"m": "1"}, packages=("numpy",))
    others = [
        Step("t", 1, base.work, base.parameters, base.inputs, (), base.assets, base.packages),
        Step("s", 2, base.work, base.parameters, base.inputs, (), base.assets, base.packages),
        Step("s", 1, base.work, LengthFilter(type="length", query=(3, 512)), base.inputs, (), base.assets, base.packages),
        Step("s", 1, base.work, base.parameters, (rows_step([some_rows(3)]),), (), base.assets, base.packages),
        Step("s", 1, base.work, base.parameters, base.inputs, (source,), base.assets, base.packages),
        Step("s", 1, base.work, base.parameters, base.inputs, (), {"m": "2"}, base.packages),
        Step("s", 1, base.work, base.parameters, base.inputs, (), base.assets, ("numpy", "pyarrow")),
    ]
    assert base.key == same.key
    assert len({base.key, *(step.key for step in others)}) == 8


def test_every_field_of_a_parameter_model_is_part_of_the_key() -> None:
    base = MinHashDedup(type="minhash")
    changed = {
        "on": "pair",
        "threshold": 0.7,
        "shingle": "character",
        "shingle_size": 4,
        "permutations": 64,
        "within": "all",
        "seed": 2,
    }
    for name, value in changed.items():
        other = base.model_copy(update={name: value})
        assert Step("s", 1, lambda work: None, other).key != Step("s", 1, lambda work: None, base).key, name


def tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): storage.file_digest(str(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "stamp" not in path.name
    }


def test_the_number_of_workers_does_not_change_a_byte(tmp_path: Path) -> None:
    trees = []
    for workers in (1, 2, 3):
        cache = tmp_path / str(workers)
        source = rows_step([some_rows(40 + i) for i in range(5)])
        step = Step("filter-odd", 1, _judge_odd, Given(contents=[]), inputs=(source,))
        run_step(step, str(cache), workers)
        trees.append(tree(cache))
    assert trees[0] == trees[1] == trees[2]


def _judge_odd(work: Work) -> None:
    judged(work, drop_odd)


def test_a_killed_step_goes_on_at_the_shard_and_gives_the_same_bytes(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import os, signal, sys
        sys.path.insert(0, {tests!r})
        from stepping import Given, rows_step, run_step
        from test_step import some_rows, drop_odd
        from datakit.step import Step, judged

        def judge(table, parameters):
            with open({log!r}, "a") as log:
                log.write(str(table.num_rows) + "\\n")
            if {kill} and table.num_rows == 13:
                os.kill(os.getpid(), signal.SIGKILL)
            return drop_odd(table, parameters)

        source = rows_step([some_rows(10 + i) for i in range(6)])
        run_step(Step("filter-odd", 1, lambda work: judged(work, judge), Given(contents=[]), inputs=(source,)), {cache!r})
        """
    )

    def run(cache: str, log: str, kill: bool) -> int:
        text = script.format(tests=str(Path(__file__).parent), cache=str(tmp_path / cache), log=str(tmp_path / log), kill=kill)
        return subprocess.run([sys.executable, "-c", text], check=False).returncode

    assert run("killed", "first", kill=True) == -9
    assert run("killed", "second", kill=False) == 0
    assert run("whole", "third", kill=False) == 0
    assert (tmp_path / "first").read_text().split() == ["10", "11", "12", "13"]
    assert (tmp_path / "second").read_text().split() == ["13", "14", "15"]
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole")


def test_a_finished_step_is_not_run_again(tmp_path: Path) -> None:
    calls = []

    def work(work: Work) -> None:
        calls.append(1)
        work.finish(None)

    step = Step("once", 1, work, Given(contents=[]))
    run_step(step, str(tmp_path))
    run_step(step, str(tmp_path))
    assert len(calls) == 1


@given(st.lists(st.text(max_size=5), max_size=4), st.lists(st.text(max_size=5), max_size=4))
def test_digests_of_different_parts_differ(a: list[str], b: list[str]) -> None:
    assert (digest(*a) == digest(*b)) == (a == b)


def test_tables_are_written_in_the_schema_of_an_example(tmp_path: Path) -> None:
    output = run_step(rows_step([some_rows(2)]), str(tmp_path))
    table = read(output.shards)
    assert table.schema.equals(EXAMPLE)
    assert table.schema.metadata[b"datakit.schema"] == b"1"
