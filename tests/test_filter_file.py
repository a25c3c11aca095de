"""`datakit filter`: files of any kind through filters, with nothing lost."""

from __future__ import annotations

import datetime
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.main import get_command

from datakit.cli import app
from datakit.errors import run_command_line
from datakit.original import as_table, conform

Run = Callable[..., tuple[int, str, str]]

FILTERS = """\
filters:
  - {type: length, query: [2, 20], document: [2, 50]}
  - {type: quality}
dedup:
  - {type: exact, on: pair}
"""
LONG = "the river runs past the old town and its mill to the sea"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "filters.yaml").write_text(FILTERS)

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit_:
            run_command_line(lambda: app(list(arguments)), "datakit")
        captured = capsys.readouterr()
        assert isinstance(exit_.value.code, int)
        return exit_.value.code, captured.out, captured.err

    return call


def records() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {
            "q": f"question number {n} of rivers",
            "p": f"answer {n}: {LONG}",
            "day": f"2024-01-{n + 1:02d}",
            "tags": ["a", str(n)],
            "n": n,
        }
        for n in range(8)
    ]
    rows[2]["q"] = "one"
    # A lower quality than its double: it is the one that goes.
    rows[3] |= {"q": f"{rows[0]['q']} !!!", "p": rows[0]["p"]}
    rows[5]["p"] = ""
    rows[6]["nested"] = {"x": [{"y": None, "z": 2}]}
    return rows


def filtered(run: Run, *arguments: str, out: str = "out") -> tuple[pl.DataFrame, pl.DataFrame, str]:
    common = ("--filters", "filters.yaml", "-o", out, "--workers", "1")
    code, said, err = run("filter", *arguments, *common)
    assert code == 0, err
    return pl.read_parquet(f"{out}/kept.parquet"), pl.read_parquet(f"{out}/rejected.parquet"), said


def test_each_row_of_a_jsonl_file_comes_out_once_whole_in_order_and_with_its_reason(run: Run) -> None:
    lines = [json.dumps(record) for record in records()]
    lines.insert(4, '{"q": broken')
    lines.insert(6, "")
    Path("rows.jsonl").write_text("\n".join(lines) + "\n")
    kept, rejected, said = filtered(run, "rows.jsonl", "--query", "q", "--positive", "p")
    assert kept["row_id"].to_list() == ["rows.jsonl:1", "rows.jsonl:2", "rows.jsonl:6", "rows.jsonl:9", "rows.jsonl:10"]
    assert rejected.select("row_id", "step", "reason").rows() == [
        ("rows.jsonl:3", "filter-length", "query_too_short"),
        ("rows.jsonl:4", "dedup-exact-pair", "exact_duplicate"),
        ("rows.jsonl:5", "read", "invalid_json"),
        ("rows.jsonl:8", "read", "empty_field"),
    ]
    assert rejected["other_id"].to_list()[1] == "rows.jsonl:1"
    assert rejected["value"].to_list()[0] == 1
    originals = {
        f"rows.jsonl:{number}": json.loads(line) for number, line in enumerate(lines, 1) if line and "broken" not in line
    }
    for frame in (kept, rejected):
        for row in frame.iter_rows(named=True):
            for name, value in originals.get(row["row_id"], {}).items():
                assert row[name] == value
    assert kept.height + rejected.height == 9
    assert "9 rows: 5 kept (55.6%), 4 rejected." in said
    report = json.loads(Path("out/report.json").read_text())
    assert (report["rows_in"], report["kept"], report["rejected"]) == (9, 5, 4)
    assert [step["step"] for step in report["steps"]] == [
        "read",
        "normalise",
        "filter-length",
        "filter-quality",
        "dedup-exact-pair",
    ]


def test_parquet_keeps_its_types_and_csv_and_gzip_are_read_alike(run: Run) -> None:
    rows = [record for record in records() if "nested" not in record]
    frame = pl.DataFrame(rows).with_columns(
        pl.col("day").str.to_date(), pl.col("n").cast(pl.Int16), at=pl.lit(datetime.timedelta(5))
    )
    frame.write_parquet("rows.parquet")
    frame.drop("tags", "at").write_csv("rows.csv")
    Path("rows.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    answers = {}
    for name in ("rows.parquet", "rows.csv", "rows.jsonl.gz"):
        kept, rejected, _ = filtered(run, name, "--query", "q", "--positive", "p", out=f"out-{name}")
        answers[name] = (kept["q"].to_list(), rejected["reason"].to_list())
        if name == "rows.parquet":
            assert kept.select(frame.columns).schema == frame.schema == rejected.select(frame.columns).schema
            assert kept.select(frame.columns).rows() == [row for row in frame.rows() if row[0] in kept["q"].to_list()]
    assert answers["rows.parquet"] == answers["rows.csv"] == answers["rows.jsonl.gz"]


def test_several_shards_and_files_give_what_one_gives_for_any_number_of_workers(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, part in (("a", records()[:5]), ("b", records()[5:])):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in part))
    whole = filtered(run, "a.jsonl", "b.jsonl", "--query", "q", "--positive", "p", out="whole")[:2]
    monkeypatch.setattr("datakit.filter_file.SHARD_ROWS", 2)
    code, _, err = run(
        "filter", "?.jsonl", "--query", "q", "--positive", "p", "--filters", "filters.yaml", "-o", "parts", "--workers", "2",
        "--cache", "other",
    )  # fmt: skip
    assert code == 0, err
    for place, name in enumerate(("kept", "rejected")):
        frame = pl.read_parquet(f"parts/{name}.parquet")
        assert frame.equals(whole[place])


def test_masked_texts_and_negatives_stand_in_the_files_and_no_value_is_left(run: Run) -> None:
    pytest.importorskip("phonenumbers", reason="the package 'phonenumbers' is not installed")
    Path("filters.yaml").write_text("filters: [{type: personal_data, kinds: {phone: drop}}, {type: length, document: [2, 9]}]")
    mail, phone = "jane@institute.org", "(212) 736-5000"
    rows = [
        {"query": f"who is {mail}", "positive": "nobody knows her", "bad": f"ask {mail}", "id": 1},
        {"query": "who has it", "positive": f"call {phone}", "bad": "nobody", "id": 2},
        {"query": f"write to {mail} now", "positive": "much too long " * 9, "bad": None, "id": 3},
    ]
    Path("rows.jsonl").write_text("".join(json.dumps(record) + "\n" for record in rows))
    kept, rejected, said = filtered(run, "rows.jsonl", "--negative", "bad")
    assert kept.rows() == [("who is <EMAIL>", "nobody knows her", 1, ["ask <EMAIL>"], "rows.jsonl:1")]
    assert rejected["reason"].to_list() == ["personal_data", "document_too_long"]
    assert "masked: query email 2" in said
    for path in (*Path("out").iterdir(), *Path(".datakit/steps").glob("filter-*/**/*.parquet")):
        text = str(pl.read_parquet(path).rows()) if path.suffix == ".parquet" else path.read_text()
        assert mail not in text
        assert phone not in text


def test_single_texts_and_templates_of_nested_columns(run: Run) -> None:
    Path("texts.tsv").write_text("body\tlang\nIs this a sentence of some words\ten\nshort\ten\n")
    kept, rejected, _ = filtered(run, "texts.tsv", "--text", "body")
    assert kept.columns == ["body", "lang", "row_id", "quality"]
    assert rejected["reason"].to_list() == ["query_too_short"]
    nested = {"a": {"q": "what is it that runs", "p": LONG}, "row_id": "mine", "step": 4}
    Path("nested.jsonl").write_text(json.dumps(nested) + "\n" + json.dumps({"a": {"q": "no", "p": LONG}}))
    kept, rejected, _ = filtered(run, "nested.jsonl", "--query", "a.q", "--positive", "a.p", out="nested")
    assert kept.select("a", "row_id", "step", "query", "datakit_row_id").rows() == [
        (nested["a"], "mine", 4, "what is it that runs", "nested.jsonl:1")
    ]
    assert rejected.select("datakit_step", "reason").rows() == [("filter-length", "query_too_short")]


def test_a_whole_recipe_names_filters_too_and_a_second_run_comes_from_the_cache(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    Path("rows.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records()))
    recipe = (
        "name: a\ncategories: {c: {define: {task: nli}, sources: [{type: files, path: x, columns: {query: q, positive: p}}]}}\n"
    )
    Path("recipe.yaml").write_text(recipe + FILTERS)
    first = filtered(run, "rows.jsonl", "--query", "q", "--positive", "p")
    caplog.clear()
    arguments = ("rows.jsonl", "--query", "q", "--positive", "p", "--filters", "recipe.yaml", "-o", "out2", "--workers", "1")
    assert run("filter", *arguments)[0] == 0
    assert caplog.text.count("(cached)") == 5
    assert pl.read_parquet("out2/kept.parquet").equals(first[0])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("absent.jsonl",), "'absent.jsonl' does not exist"),
        (("rows.jsonl",), "has no column 'query'; its columns are: 'q', 'p'"),
        (("rows.jsonl", "--query", "qq", "--positive", "p"), "Did you mean 'q'?"),
        (("rows.jsonl", "--text", "q", "--query", "q"), "without --query"),
        (("rows.jsonl", "--task", "retreival"), "--task is 'retreival'. Allowed: retrieval"),
        (("rows.jsonl", "--query", "q", "--positive", "p", "--language", "english"), "--language: found 'english'; allowed: a BCP 47 code"),
        (("rows.jsonl", "--format", "xml"), "--format is 'xml'; allowed: 'parquet'"),
        (("rows.jsonl", "--filters", "absent.yaml"), "'absent.yaml' does not exist"),
        (("rows.jsonl", "--filters", "empty.yaml"), "there is nothing to do"),
        (("rows.jsonl", "--filters", "unknown.yaml"), "filters.0.encoder: is 'minilm'"),
        (("rows.jsonl", "--filters", "bounds.yaml", "--query", "q", "--positive", "p"), "names 'code', and the rows are of the category 'rows'"),
        (("filters.yaml",), "format of"),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence_and_status_2(run: Run, arguments: tuple[str, ...], sentence: str) -> None:
    Path("rows.jsonl").write_text('{"q": "what is it", "p": "nothing"}\n')
    Path("empty.yaml").write_text("filters: []\n")
    Path("unknown.yaml").write_text("filters: [{type: consistency, encoder: minilm, threshold: 0.5}]\n")
    Path("bounds.yaml").write_text("filters: [{type: length, categories: {code: {query: [1, 2]}}}]\n")
    common = () if "--filters" in arguments else ("--filters", "filters.yaml")
    code, _, err = run("filter", *arguments, *common, "-o", "out", "--workers", "1")
    assert code == 2
    assert sentence in err.replace("\n", " ")
    assert not Path("out").exists()


def test_what_is_there_is_not_written_over_without_force(run: Run) -> None:
    Path("rows.jsonl").write_text('{"query": "what is it", "positive": "nothing of note"}\n')
    filtered(run, "rows.jsonl")
    code, _, err = run("filter", "rows.jsonl", "--filters", "filters.yaml", "-o", "out", "--workers", "1")
    assert code == 2
    assert "--force" in err
    assert run("filter", "rows.jsonl", "--filters", "filters.yaml", "-o", "out", "--workers", "1", "--force")[0] == 0
    Path("none.jsonl").write_text("")
    assert filtered(run, "none.jsonl", out="none")[0].height == 0
    Path("broken.jsonl").write_text("1\n[]\n{\n")
    kept, rejected, _ = filtered(run, "broken.jsonl", out="broken")
    assert (kept.height, rejected["row_id"].to_list()) == (0, ["broken.jsonl:1", "broken.jsonl:2", "broken.jsonl:3"])


VALUES = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text() | st.binary(max_size=4)
NESTED = st.recursive(VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.dictionaries(st.sampled_from(["a", "b", "c"]), NESTED, max_size=3), min_size=1, max_size=5))
def test_records_of_any_values_become_a_table_of_all_their_columns(rows: list[dict[str, Any]]) -> None:
    table = as_table(rows, {})
    assert table.num_rows == len(rows)
    assert set(table.column_names) == {name for row in rows for name in row}
    for name in table.column_names:
        assert [value is None for value in table.column(name).to_pylist()] == [row.get(name) is None for row in rows]
    if table.num_columns:
        assert conform(table, table.schema).equals(table) or "nan" in str(rows)


def test_the_help_of_text_says_which_bounds_hold() -> None:
    for name in ("filter", "calibrate"):
        command = get_command(app).commands[name]  # type: ignore[attr-defined]
        assert "bounds of `query` hold" in next(each.help for each in command.params if each.name == "text")
