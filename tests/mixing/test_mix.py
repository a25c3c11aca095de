"""The mix step: which rows are drawn, their order, and that neither depends on where they stood."""

from __future__ import annotations

import logging
import random
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from stepping import read, rows_step, run_step

from datakit import step, storage
from datakit.errors import BuildError, UserError
from datakit.executor.local import LocalExecutor
from datakit.mixing import mix as module
from datakit.mixing.mix import mix_step
from datakit.progress import QUIET
from datakit.recipe import Mixture
from datakit.schema import content_id, digest, rows, text_id
from datakit.step import Output, Step


def examples(counts: dict[str, int], start: int = 0, words: int = 3) -> list[dict]:
    records = []
    for category, count in counts.items():
        for number in range(start, start + count):
            query, positive = f"{category} query {number}", f"{category} positive {number} " + "word " * words
            records.append(
                {
                    "row_id": digest("row", query),
                    "content_id": content_id(category, query, positive),
                    "query_id": text_id(query),
                    "positive_id": text_id(positive),
                    "category": category,
                    "query": query,
                    "positive": positive,
                    "negatives": [{"id": text_id("n"), "text": "n", "miner": "source"}] * (number % 3),
                }
            )
    return records


def tables(records: list[dict], shards: int) -> list[pa.Table]:
    return [rows(records[number::shards]) for number in range(shards)]


def mixed(
    mixture: Mixture, train: list[pa.Table], validation: list[pa.Table] = (), *, seed: int = 7, shard_rows: int = 64
) -> Step:
    inputs = (rows_step(train, "train"), rows_step(validation, "validation"))
    return mix_step(mixture, seed, shard_rows, inputs)


def bytes_of(output: Output) -> dict[str, str]:
    names = [*output.report.shards, *output.report.not_sampled, "step.json"]
    digests = {name: storage.file_digest(storage.join(output.folder, name)) for name in names[:-1]}
    report = output.report.model_dump(exclude={"key"})
    return {**digests, "report": digest(str(report))}


COUNTS = {"big": 400, "middle": 100, "small": 20}


def test_every_category_gives_its_allocation_and_the_rest_is_not_sampled(tmp_path):
    mixture = Mixture(temperature=2.0, total=200, caps={"middle": 30})
    output = run_step(mixed(mixture, tables(examples(COUNTS), 3)), str(tmp_path))
    counts = Counter(read(output.part("train")).column("category").to_pylist())
    assert counts == {name: note["rows"] for name, note in output.report.notes["categories"].items()}
    assert sum(counts.values()) == 200
    assert counts["middle"] == 30
    assert counts["small"] == 20
    kept = set(read(output.part("train")).column("row_id").to_pylist())
    left = set(pa.concat_tables([storage.read_table(path) for path in output.not_sampled]).column("row_id").to_pylist())
    assert not kept & left
    assert kept | left == {record["row_id"] for record in examples(COUNTS)}
    assert output.report.counts.not_sampled == len(left) == 320


def test_rows_in_another_order_and_other_shards_on_other_workers_give_the_same_bytes(tmp_path):
    records, held = examples(COUNTS), examples({"big": 30}, start=1000)
    mixture = Mixture(temperature=3.0, total=300, max_epochs=2.5)
    plain = run_step(mixed(mixture, tables(records, 2), tables(held, 1)), str(tmp_path), 1)
    random.Random(1).shuffle(records)
    random.Random(2).shuffle(held)
    permuted = run_step(mixed(mixture, tables(records, 5), tables(held, 3)), str(tmp_path), workers=2)
    assert plain.folder != permuted.folder
    assert bytes_of(plain) == bytes_of(permuted)


def test_a_smaller_total_draws_a_part_of_the_same_rows(tmp_path):
    train = tables(examples({"big": 300}), 2)
    drawn = [
        set(read(run_step(mixed(Mixture(total=total), train), str(tmp_path)).shards).column("row_id").to_pylist())
        for total in (40, 150)
    ]
    assert len(drawn[0]) == 40
    assert drawn[0] < drawn[1]
    other = read(run_step(mixed(Mixture(total=40), train, seed=8), str(tmp_path)).shards).column("row_id").to_pylist()
    assert set(other) != drawn[0]


def test_repeated_rows_are_even_and_have_ids_of_their_own(tmp_path):
    mixture = Mixture(total=470, temperature=1e9, max_epochs=5)
    output = run_step(mixed(mixture, tables(examples({"a": 1000, "b": 60}), 2)), str(tmp_path))
    table = read(output.shards)
    times = Counter(
        content
        for content, category in zip(table.column("content_id").to_pylist(), table.column("category").to_pylist(), strict=True)
        if category == "b"
    )
    assert sum(times.values()) == 235
    assert len(times) == 60
    assert set(times.values()) == {3, 4}
    assert len(set(table.column("row_id").to_pylist())) == 470
    assert output.report.categories["b"].created == 235 - 60
    assert output.report.categories["a"].created == 0


def test_the_order_mixes_all_categories_even_where_one_was_sampled(tmp_path):
    output = run_step(mixed(Mixture(caps={"big": 200}), tables(examples({"big": 2000, "other": 800}), 1)), str(tmp_path))
    order = read(output.shards).column("category").to_pylist()
    places = [place for place, category in enumerate(order) if category == "big"]
    assert len(places) == 200
    assert abs(sum(places) / 200 / 1000 - 0.5) < 0.1


def test_shards_have_about_the_number_of_rows_that_was_asked_for(tmp_path):
    output = run_step(mixed(Mixture(), tables(examples({"a": 1000}), 3), shard_rows=250), str(tmp_path))
    assert len(output.shards) == 4
    assert all(180 < rows < 320 for rows in output.report.shard_rows)


def test_shards_of_long_texts_have_fewer_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHARD_BYTES", 100_000)
    output = run_step(mixed(Mixture(), tables(examples({"a": 200}, words=400), 2), shard_rows=1000), str(tmp_path))
    assert len(output.shards) == 5


def test_validation_goes_on_whole_whatever_the_mixture_says(tmp_path):
    held = examples({"big": 90}, start=5000)
    mixture = Mixture(total=10, caps={"big": 5})
    output = run_step(mixed(mixture, tables(examples(COUNTS), 1), tables(held, 2)), str(tmp_path))
    table = read(output.part("validation"))
    assert sorted(table.column("row_id").to_pylist()) == sorted(record["row_id"] for record in held)
    assert table.column("row_id").to_pylist() != [record["row_id"] for record in held]


def test_rows_are_unchanged_but_for_their_batch_group(tmp_path):
    records = examples({"a": 50})
    output = run_step(mixed(Mixture(), tables(records, 2)), str(tmp_path))
    by_id = {row["row_id"]: row | {"batch_group": "a"} for row in rows(records).to_pylist()}
    assert read(output.shards).to_pylist() == [by_id[name] for name in read(output.shards).column("row_id").to_pylist()]


def test_equal_contents_are_told_apart_by_their_row_id(tmp_path):
    twins = [{**record, "row_id": digest(str(number))} for number in range(20) for record in examples({"a": 1})]
    one = run_step(mixed(Mixture(total=7), [rows(twins)]), str(tmp_path))
    other = run_step(mixed(Mixture(total=7), [rows(twins[::-1])]), str(tmp_path))
    assert read(one.shards).num_rows == 7
    assert bytes_of(one) == bytes_of(other)


def test_a_total_out_of_reach_stops_where_the_recipe_says_so(tmp_path):
    with pytest.raises(UserError, match=r"mixture.total is 900 rows, and the 520 training rows give 520 at most"):
        run_step(mixed(Mixture(total=900, shortfall="stop"), tables(examples(COUNTS), 1)), str(tmp_path))


def test_a_total_out_of_reach_gives_what_there_is_and_says_so(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        output = run_step(mixed(Mixture(total=900), tables(examples(COUNTS), 1)), str(tmp_path))
    assert output.report.counts.out == 520
    assert "520 rows are taken" in caplog.text


def test_no_rows_give_no_rows(tmp_path):
    output = run_step(mixed(Mixture(), []), str(tmp_path))
    assert output.shards == []
    assert output.report.counts.balanced()


def test_rows_that_were_not_split_are_refused(tmp_path):
    with pytest.raises(BuildError, match="in none of the parts"):
        run_step(mix_step(Mixture(), 0, 10, (rows_step(tables(examples(COUNTS), 1)),)), str(tmp_path))


class Interrupted(LocalExecutor):
    """Stops after so many units, as a kill would: what was written stays."""

    def __init__(self, units: int) -> None:
        super().__init__(1)
        self.left = units

    def map(self, function, units, *, exclusive=False):
        for unit in units:
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            yield function(unit)


def test_resume_after_a_stop_at_any_unit_gives_identical_bytes(tmp_path):
    mixture = Mixture(total=300, temperature=4.0, max_epochs=3)
    build = mixed(mixture, tables(examples(COUNTS), 3))
    whole = run_step(build, str(tmp_path / "whole"))
    units = len(list(Path(whole.folder).glob("*/*/unit.json")))
    assert units > 10
    for stop in range(0, units, 3):
        cache = str(tmp_path / str(stop))
        for given in build.inputs:
            run_step(given, cache)
        with pytest.raises(KeyboardInterrupt):
            step.run(build, cache, Interrupted(stop), QUIET)
        assert bytes_of(run_step(build, cache)) == bytes_of(whole)
