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
from datakit.mixing.draw import languages
from datakit.mixing.mix import mix_step
from datakit.progress import QUIET
from datakit.recipe import Mixture
from datakit.schema import CategoryScore, Evaluation, content_id, digest, rows, text_id
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


# ------------------------------------------------------------------------------------ languages, groups, order, feedback


def spoken(category: str, languages: dict[str, int]) -> list[dict]:
    records, start = [], 0
    for language, count in languages.items():
        query, _, positive = language.partition(">")
        for record in examples({category: count}, start):
            known = {} if language == "und" else {"language": query, "positive_language": positive or query}
            records.append(record | known)
        start += count
    return records


def spoken_of(table: pa.Table) -> Counter[tuple[str, str]]:
    return Counter(zip(table.column("category").to_pylist(), languages(table).to_pylist(), strict=True))


SPOKEN = [
    *spoken("web", {"en": 300, "de": 60, "und": 40}),
    *spoken("pairs", {"en>de": 200, "en>sw": 20}),
    *spoken("one", {"en": 30}),
]


def test_languages_within_a_category_are_drawn_by_their_temperature(tmp_path):
    mixture = Mixture(temperature=1.0, total=325, language_temperature=1e9)
    output = run_step(mixed(mixture, tables(SPOKEN, 3)), str(tmp_path))
    found = spoken_of(read(output.part("train")))
    assert found == {
        ("web", "en"): 100, ("web", "de"): 60, ("web", "und"): 40,
        ("pairs", "en>de"): 90, ("pairs", "en>sw"): 20, ("one", "en"): 15,
    }  # fmt: skip
    noted = output.report.notes["categories"]["web"]["languages"]
    assert noted == {name: {"available": n, "rows": m} for name, n, m in (("de", 60, 60), ("en", 300, 100), ("und", 40, 40))}


def test_without_a_language_temperature_rows_are_drawn_as_before(tmp_path):
    records = examples(COUNTS)
    for number, record in enumerate(records):
        record["language"] = "en" if number % 3 else "de"
    plain = [{key: value for key, value in record.items() if key != "language"} for record in records]
    drawn = [
        read(run_step(mixed(Mixture(total=200), tables(each, 2)), str(tmp_path)).shards).column("row_id").to_pylist()
        for each in (records, plain)
    ]
    assert drawn[0] == drawn[1]


def test_languages_quotas_repeats_and_feedback_give_the_same_bytes_for_any_order_and_workers(tmp_path):
    records, held = list(SPOKEN), spoken("web", {"en": 30})[:25]
    fields = {"temperature": 2.0, "total": 700, "language_temperature": 3.0, "shortfall": "repeat", "batch_groups": "language"}
    mixture = Mixture(**fields, quotas=[{"category": "pairs", "share": 0.4}])
    scores = {"web": CategoryScore(score=0.4, rows=90), "one": CategoryScore(score=0.8, rows=90, history=[0.8, 0.8])}
    found = Evaluation(model="m", build="b", metric="nDCG@10", categories=scores)
    outputs = []
    for shards, workers in ((1, 1), (4, 2), (7, 2)):
        random.Random(shards).shuffle(records)
        inputs = (rows_step(tables(records, shards), "train"), rows_step(tables(held, 1), "validation"))
        outputs.append(run_step(mix_step(mixture, 7, 64, inputs, [["pairs"]], found), str(tmp_path), workers))
    assert bytes_of(outputs[0]) == bytes_of(outputs[1]) == bytes_of(outputs[2])
    assert read(outputs[0].part("train")).num_rows == 700
    assert any(entry["epochs"] > 1 for entry in outputs[0].report.notes["categories"].values())


def test_feedback_is_part_of_the_key_and_moves_rows(tmp_path):
    train = tables(examples({"a": 300, "b": 300}), 2)
    scores = {"a": CategoryScore(score=0.2, rows=5000), "b": CategoryScore(score=0.8, rows=5000)}
    found = Evaluation(model="m", build="b", metric="nDCG@10", categories=scores)
    inputs = (rows_step(train, "train"),)
    plain, moved = mix_step(Mixture(total=200), 7, 64, inputs), mix_step(Mixture(total=200), 7, 64, inputs, (), found)
    assert plain.key != moved.key
    output = run_step(moved, str(tmp_path))
    counts = Counter(read(output.shards).column("category").to_pylist())
    assert counts["a"] > 125
    noted = output.report.notes["feedback"]["categories"]["a"]
    assert noted["rows_before"] == 100
    assert noted["factor"] > 1.9
    assert noted["why"] == "below the mean: raised"


def test_feedback_that_cannot_change_anything_says_so(tmp_path, caplog):
    scores = {"a": CategoryScore(score=0.2, rows=5000), "b": CategoryScore(score=0.8, rows=5000)}
    found = Evaluation(model="m", build="b", metric="x", categories=scores)
    with caplog.at_level(logging.WARNING):
        run_step(
            mix_step(Mixture(), 7, 64, (rows_step(tables(examples({"a": 9, "b": 9}), 1), "train"),), (), found), str(tmp_path)
        )
    assert "the evaluation changes nothing here" in caplog.text


def test_a_category_that_runs_out_stops_where_the_recipe_says_so(tmp_path):
    mixture = Mixture(temperature=1e9, total=90, shortfall="stop")
    with pytest.raises(UserError, match=r"Categories run out with 'max_epochs' 1: 'small' \(20 rows, its share is 30\)"):
        run_step(mixed(mixture, tables(examples(COUNTS), 1)), str(tmp_path))


@pytest.mark.parametrize(("by", "groups"), [("category", {"web", "pairs", "one"}), ("language", None)])
def test_batch_groups_are_categories_or_categories_and_languages(tmp_path, by, groups):
    output = run_step(mixed(Mixture(batch_groups=by), tables(SPOKEN, 2), tables(spoken("web", {"fr": 5}), 1)), str(tmp_path))
    found = set(read(output.part("train")).column("batch_group").to_pylist())
    assert found == (groups or {"web/en", "web/de", "web/und", "pairs/en>de", "pairs/en>sw", "one/en"})
    held = set(read(output.part("validation")).column("batch_group").to_pylist())
    assert held == {"web" if by == "category" else "web/fr"}


def test_copies_of_a_row_are_in_different_parts_of_the_order(tmp_path):
    mixture = Mixture(temperature=1e9, total=2000, max_epochs=100)
    table = read(run_step(mixed(mixture, tables(examples({"big": 1500, "small": 400}), 2)), str(tmp_path)).shards)
    places: dict[str, list[int]] = {}
    for place, (content, category) in enumerate(
        zip(table.column("content_id").to_pylist(), table.column("category").to_pylist(), strict=True)
    ):
        if category == "small":
            places.setdefault(content, []).append(place)
    epochs = 1000 / 400
    assert {len(each) for each in places.values()} == {2, 3}
    for each in places.values():
        pieces = [place / 2000 * epochs for place in each]
        # One copy in each piece of the order; the edges are blurred by what chance gives the other category.
        assert all(abs(piece - (number + 0.5)) < 0.62 for number, piece in enumerate(pieces))
    small = sorted(place for each in places.values() for place in each)
    assert all(abs(place - 2000 * number / 1000) < 120 for number, place in enumerate(small))


def test_each_window_of_the_order_has_about_the_proportions_of_the_mixture(tmp_path):
    counts = {"a": 4000, "b": 2000, "c": 1000, "d": 100}
    order = read(run_step(mixed(Mixture(), tables(examples(counts), 2), shard_rows=2000), str(tmp_path)).shards)
    categories = order.column("category").to_pylist()
    window = 1000
    for start in range(0, len(categories) - window + 1, window):
        found = Counter(categories[start : start + window])
        for name, count in counts.items():
            share = count / 7100
            assert abs(found[name] - window * share) < 4 * (window * share * (1 - share)) ** 0.5
