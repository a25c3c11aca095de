"""What holds for all filters: names, keys, hostile texts, and the balance of rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from filter_rows import row, table
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stepping import read, rows_step, run_step

from datakit import schema
from datakit.assets import Assets
from datakit.filters import REASONS, filter_step, language, length, quality, toxicity
from datakit.recipe import LanguageFilter, LengthFilter, QualityFilter, ToxicityFilter
from datakit.step import Step

FILTERS: list[Any] = [
    LengthFilter(type="length", query=(1, 20), document=(2, 100)),
    LanguageFilter(type="language", allowed=["en"], unknown="reject"),
    ToxicityFilter(type="toxicity"),
    QualityFilter(type="quality"),
]

HOSTILE = [
    "", " ", "\x00\x01\x02", "\u202e\u202dtfel ot thgir\u202c", "🙂" * 500, "👩‍👩‍👧‍👦" * 50, "\ufeff\ufffe\uffff", "a\u0301" * 300,
    "<div onclick='x()'>" * 40, "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVo=" * 20, "x" * 1_000_000, "z\u0335\u0336\u0337" * 200,
    "ﷺ" * 100, "\u2028\u2029\u0085", "no_spaces_" * 1000, "\U000e0041" * 20, "𝒯𝒽𝑒 𝒽𝑒𝒶𝓇𝓉", "%s%n{}\\" * 30, "مرحبا بالعالم " * 10,
]  # fmt: skip

TEXTS = st.sampled_from(HOSTILE) | st.text(max_size=60) | st.text(alphabet="ab ,.\n", max_size=200)
ROWS = st.builds(
    row,
    TEXTS,
    TEXTS,
    task=st.sampled_from(["retrieval", "code_search", "classification", "paraphrase", None]),
    label=st.sampled_from([None, "", "label"]),
    in_batch_negatives=st.sampled_from([True, False, None]),
)


def judge(filter: Any, rows: pa.Table) -> pa.Table:
    match filter:
        case LengthFilter():
            return length.judge(rows, filter)
        case LanguageFilter():
            return language.annotate(rows, filter)[1]
        case ToxicityFilter():
            return toxicity.judge_embedded(rows, filter)
        case _:
            return quality.annotate(rows, filter)[1]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.lists(ROWS, max_size=6))
def test_hostile_texts_get_at_most_one_known_reason_and_a_finite_value(records: list[dict[str, Any]]) -> None:
    rows = table(*records)
    for filter in FILTERS:
        found = judge(filter, rows)
        assert found.schema.equals(schema.REASONS)
        numbers = found.column("row").to_pylist()
        assert numbers == sorted(set(numbers))
        assert all(0 <= number < len(records) for number in numbers)
        assert set(found.column("reason").to_pylist()) <= set(REASONS[filter.type])
        assert all(value is not None and 0 <= value < 10**7 for value in found.column("value").to_pylist())
        assert judge(filter, rows).equals(found)


@pytest.mark.parametrize("text", HOSTILE)
def test_each_hostile_text_alone_is_judged(text: str) -> None:
    for filter in FILTERS:
        assert judge(filter, table(row(text, text), row("", text))).num_rows <= 2


def test_missing_texts_and_columns_are_judged_too() -> None:
    rows = schema.rows([{"row_id": "a", "category": "c"}, {"row_id": "b", "category": "c", "query": "what is it"}])
    for filter in FILTERS:
        assert judge(filter, rows).schema.equals(schema.REASONS)
    assert judge(FILTERS[0], rows).num_rows == 2


def chain(tmp_path: Path, tables: list[pa.Table], filters: list[Any]) -> list[Step]:
    rows, assets = rows_step(tables), Assets(str(tmp_path))
    steps: list[Step] = []
    for number, filter in enumerate(filters):
        rows = filter_step(number, filter, (rows,), None, None, assets)
        steps.append(rows)
    return steps


def test_step_names_are_unique_and_numbered_only_for_a_second_of_a_kind(tmp_path: Path) -> None:
    steps = chain(tmp_path, [], [FILTERS[0], FILTERS[3], FILTERS[0], FILTERS[0]])
    assert [step.name for step in steps] == ["filter-length", "filter-quality", "filter-length-2", "filter-length-3"]


def test_a_changed_threshold_changes_the_key_of_its_step_and_of_those_after_it(tmp_path: Path) -> None:
    before = [step.key for step in chain(tmp_path, [], FILTERS)]
    changed = [*FILTERS[:2], ToxicityFilter(type="toxicity", threshold=0.5), FILTERS[3]]
    after = [step.key for step in chain(tmp_path, [], changed)]
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, True, False, False]
    assert all(step.assets or step.packages for step in chain(tmp_path, [], FILTERS))


def test_all_filters_balance_and_give_the_same_bytes_for_one_and_two_workers_and_after_a_stop(tmp_path: Path) -> None:
    texts = ["How does the heart pump blood?", "you are a stupid idiot", "Wie pumpt das Herz das Blut durch den Körper?", "???"]
    records = [row(f"{texts[n % 4]} {n if n % 4 == 0 else ''}".strip(), positive=texts[n % 3] * (n % 5)) for n in range(60)]
    tables = [table(*records[:25]), table(*records[25:])]
    outputs = {}
    for workers in (1, 2):
        steps = chain(tmp_path, tables, FILTERS)
        output = run_step(steps[-1], str(tmp_path / str(workers)), workers)
        outputs[workers] = {
            path.relative_to(tmp_path / str(workers)): path.read_bytes()
            for path in (tmp_path / str(workers)).rglob("*")
            if path.is_file()
        }
        total = sum(sum(run_step(step, str(tmp_path / str(workers))).report.counts.rejected.values()) for step in steps)
        assert output.report.counts.out + total == 60
        assert 0 < output.report.counts.out < 40
    assert outputs[1] == outputs[2]
    folder = Path(output.folder)
    (folder / "step.json").unlink()
    (folder / "rows/00001/unit.json").unlink()
    run_step(steps[-1], str(tmp_path / "2"))
    again = {path.relative_to(tmp_path / "2"): path.read_bytes() for path in (tmp_path / "2").rglob("*") if path.is_file()}
    assert again == outputs[1]
    kept = read(output.shards)
    assert kept.column("quality").null_count == 0
    assert set(kept.column("language").to_pylist()) == {"en"}
