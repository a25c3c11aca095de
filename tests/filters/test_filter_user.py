"""Filters that a user writes: what they may answer, and what they are told when it is wrong."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest
from filter_rows import row, table
from stepping import read, rows_step, run_step

from datakit.assets import Assets
from datakit.errors import UserError
from datakit.filters import filter_step
from datakit.recipe import UserFilter
from datakit.step import Step

SHOUTING = """
import polars as pl
from datakit.filters.user import polars_filter

@polars_filter
def no_shouting(rows: pl.DataFrame, share: float = 0.5) -> pl.Series:
    return rows["query"].str.count_matches(r"\\p{Lu}") <= share * rows["query"].str.len_chars()
"""
ROWS = [row("HOW DOES IT WORK"), row("how does it work"), row("WHY"), row("why, how and when?")]


def plugin(tmp_path: Path, source: str, name: str = "mine.py") -> str:
    path = tmp_path / name
    path.write_text(textwrap.dedent(source))
    return str(path)


def step(tmp_path: Path, function: str, **fields: Any) -> Step:
    wanted = UserFilter.model_validate({"type": "user", "function": function, **fields})
    return filter_step(0, wanted, (rows_step([table(*ROWS[:3]), table(*ROWS[3:])]),), None, None, Assets(str(tmp_path)))


def rejected(tmp_path: Path, function: str, workers: int = 1, **fields: Any) -> list[tuple[str, str]]:
    output = run_step(step(tmp_path, function, **fields), str(tmp_path / "cache"), workers)
    found = read(output.rejected)
    assert output.report.counts.balanced()
    if not found.num_rows:
        return []
    return list(zip(found.column("query").to_pylist(), found.column("reason").to_pylist(), strict=True))


def test_false_rejects_a_row_with_the_name_of_the_function_as_reason_in_worker_processes_too(tmp_path: Path) -> None:
    path = plugin(tmp_path, SHOUTING)
    expected = [("HOW DOES IT WORK", "no_shouting"), ("WHY", "no_shouting")]
    assert rejected(tmp_path, f"{path}:no_shouting", workers=2) == expected
    assert rejected(tmp_path, f"{path}:no_shouting", parameters={"share": 0.9}) == [("WHY", "no_shouting")]


def test_a_module_is_found_in_the_folder_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plugin(tmp_path, SHOUTING, "module_of_mine.py")
    assert len(rejected(tmp_path, "module_of_mine:no_shouting", workers=2)) == 2
    package = tmp_path / "package_of_mine"
    package.mkdir()
    (package / "__init__.py").write_text("LIMIT = 10")
    plugin(package, SHOUTING.replace("import polars as", "from package_of_mine import LIMIT\nimport polars as"), "inner.py")
    assert len(rejected(tmp_path, "package_of_mine.inner:no_shouting", workers=2)) == 2


def test_reasons_values_and_the_plain_contract(tmp_path: Path) -> None:
    path = plugin(
        tmp_path,
        """
        import polars as pl, pyarrow as pa
        from datakit.filters.user import polars_filter
        @polars_filter
        def reasons(rows):
            return pl.Series(["loud" if query.isupper() else None for query in rows["query"]], dtype=pl.String)
        @polars_filter
        def frame(rows):
            return rows.select(reason=pl.when(pl.col("query").str.len_chars() < 5).then(pl.lit("short")), value=pl.col("query").str.len_chars())
        def plain(table, parameters):
            return pa.table({"row": [0], "reason": [parameters["word"]]})
        """,
    )
    assert rejected(tmp_path, f"{path}:reasons") == [("HOW DOES IT WORK", "loud"), ("WHY", "loud")]
    assert rejected(tmp_path, f"{path}:frame") == [("WHY", "short")]
    output = run_step(step(tmp_path, f"{path}:frame"), str(tmp_path / "cache"))
    assert read(output.rejected).column("value").to_pylist() == [3.0]
    assert rejected(tmp_path, f"{path}:plain", parameters={"word": "first"}) == [
        ("HOW DOES IT WORK", "first"), ("why, how and when?", "first"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("return 5", "returned a int"),
        ("return pa.table({'reason': ['a']})", "needs row and reason"),
        ("return pa.table({'row': [0], 'reason': ['a'], 'mood': [1]})", "columns row, reason, mood"),
        ("return pa.table({'row': ['x'], 'reason': ['a']})", "wrong types"),
        ("return pa.table({'row': [0], 'reason': pa.nulls(1, pa.string())})", "wrong types|reason"),
        ("return pa.table({'row': [0, 0], 'reason': ['a', 'b']})", "two reasons for row 0"),
        ("return pa.table({'row': [99], 'reason': ['a']})", "row 99; there are 3 rows"),
        ("return pa.table({'row': [-1], 'reason': ['a']})", "row -1"),
        ("return pa.table({'row': [0], 'reason': ['much too long a story']})", "short constant"),
        ("return 1 / 0", r"ZeroDivisionError: division by zero, line 3 of '.*mine.py'"),
    ],
)
def test_a_wrong_answer_is_one_sentence_that_names_the_function(tmp_path: Path, body: str, sentence: str) -> None:
    path = plugin(tmp_path, f"import pyarrow as pa\ndef wrong(table, parameters):\n    {body}\n")
    with pytest.raises(UserError, match=sentence) as error:
        rejected(tmp_path, f"{path}:wrong")
    assert f"{path}:wrong" in str(error.value)


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ("rows['query'].head(1)", "answered for 1 rows"),
        ("rows['query'].is_in(['why']).replace(False, None)", "neither true nor false"),
        ("rows.select('query')", "without the column 'reason'"),
        ("'yes'", "polars Series or DataFrame is needed"),
    ],
)
def test_a_wrong_answer_of_a_polars_function_too(tmp_path: Path, answer: str, sentence: str) -> None:
    source = f"from datakit.filters.user import polars_filter\n@polars_filter\ndef wrong(rows):\n    return {answer}\n"
    with pytest.raises(UserError, match=sentence):
        rejected(tmp_path, f"{plugin(tmp_path, source)}:wrong")


def test_what_cannot_be_found_or_imported_or_called_is_refused_before_anything_runs(tmp_path: Path) -> None:
    path = plugin(tmp_path, SHOUTING)
    broken = plugin(tmp_path, "import no_such_package_anywhere\n", "broken.py")
    for function, sentence in (
        ("no_such_module_here:f", "no module 'no_such_module_here'"),
        (f"{tmp_path}/absent.py:f", "cannot be read"),
        (f"{path}:absent", "no function 'absent'"),
        (f"{broken}:f", "No module named 'no_such_package_anywhere'"),
    ):
        with pytest.raises(UserError, match=sentence):
            step(tmp_path, function)
    with pytest.raises(UserError, match="unexpected keyword argument 'shar'"):
        step(tmp_path, f"{path}:no_shouting", parameters={"shar": 1})
    with pytest.raises(UserError, match=r"absent\.txt.*does not exist"):
        step(tmp_path, f"{path}:no_shouting", files=[f"{tmp_path}/absent.txt"])


def test_source_parameters_and_files_are_part_of_the_key_and_the_new_source_is_what_runs(tmp_path: Path) -> None:
    path = plugin(tmp_path, SHOUTING)
    words = tmp_path / "words.txt"
    words.write_text("one")

    def key(**fields: Any) -> str:
        return step(tmp_path, f"{path}:no_shouting", files=[str(words)], **fields).key

    keys = [key(), key(parameters={"share": 0.1})]
    words.write_text("one two")
    keys.append(key())
    plugin(tmp_path, SHOUTING.replace("<=", "<"))
    keys.append(key())
    assert len(set(keys)) == 4
    before = rejected(tmp_path, f"{path}:no_shouting", parameters={"share": 1.0})
    plugin(tmp_path, SHOUTING.replace("<=", ">"))
    after = rejected(tmp_path, f"{path}:no_shouting", parameters={"share": 1.0})
    assert (len(before), len(after)) == (1, 4)
