"""What a person meets at the command line, above all when something is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from datakit.cli import app
from datakit.errors import run_command_line

Run = Callable[..., tuple[int, str, str]]

PAIRS = """\
name: {name}
output: {root}/out
cache: {root}/cache
categories:
  pairs:
    define: {{task: retrieval}}
    language: en
    sources:
      - type: files
        path: {path}
        columns: {{query: q, positive: p}}
split: {{validation: 0}}
"""


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("COLUMNS", "120")

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit_:
            run_command_line(lambda: app(list(arguments)), "datakit")
        captured = capsys.readouterr()
        code = exit_.value.code
        assert isinstance(code, int)
        return code, captured.out, captured.err

    return call


def write_pairs(path: Path, number: int = 30) -> Path:
    rows = [
        {
            "q": f"question number {i} about rivers",
            "p": f"answer {i}: the river {i * 7} runs past the old town and its mill to the sea",
        }
        for i in range(number)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recipe(tmp_path: Path, extra: str = "", path: str | None = None, name: str = "pairs") -> str:
    data = path or str(write_pairs(tmp_path / "pairs.jsonl"))
    file = tmp_path / "mixture.yaml"
    file.write_text(PAIRS.format(root=tmp_path, path=data, name=name) + extra)
    return str(file)


def nothing_published(tmp_path: Path) -> bool:
    return not any((tmp_path / "out").rglob("manifest.json"))


def test_build_inspect_explain_and_diff_tell_what_was_built(tmp_path: Path, run: Run) -> None:
    code, out, _ = run("build", recipe(tmp_path), "--workers", "1")
    assert code == 0
    assert "pairs" in out
    assert "Built " in out
    latest = tmp_path / "out" / "pairs" / "latest"
    row = pl.scan_parquet(latest / "train" / "*.parquet").head(1).collect().to_dicts()[0]
    code, out, _ = run("explain", row["row_id"], "--build", str(latest))
    assert code == 0
    assert row["query"] in out
    code, out, _ = run("inspect", str(latest))
    assert code == 0
    first = latest.resolve()
    code, out, _ = run("build", recipe(tmp_path, "filters: [{type: length, query: [6, 64]}]\n"), "--workers", "1")
    assert code == 1, "a build in which no row is left publishes nothing"
    code, out, _ = run("build", recipe(tmp_path, "filters: [{type: length, document: [13, 64]}]\n"), "--workers", "1")
    assert code == 0
    code, out, _ = run("diff", str(first), str(latest))
    assert code == 0
    assert "filters" in out


def test_plan_tells_what_is_cached(tmp_path: Path, run: Run) -> None:
    file = recipe(tmp_path)
    code, out, _ = run("plan", file)
    assert code == 0
    assert "to run" in out
    assert "cached" not in out.replace("what is cached", "")
    run("build", file, "--workers", "1")
    code, out, _ = run("plan", file)
    assert "cached" in out
    assert "to run" not in out


def test_init_writes_a_recipe_that_is_valid_and_never_writes_over_one(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "pairs.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    assert run("init")[0] == 0
    assert run("validate", "mixture.yaml")[0] == 0
    code, _, err = run("init")
    assert code == 2
    assert "is there already" in err
    assert run("init", "--force")[0] == 0


def test_init_makes_folders_and_tells_of_those_it_cannot_make(tmp_path: Path, run: Run) -> None:
    assert run("init", str(tmp_path / "a" / "b" / "c.yaml"))[0] == 0
    (tmp_path / "file").write_text("x")
    code, _, err = run("init", str(tmp_path / "file" / "c.yaml"))
    assert code == 2
    assert "a part of this path is a file" in err


def test_schema_is_json_that_names_every_key(run: Run) -> None:
    code, out, _ = run("schema")
    assert code == 0
    assert {"name", "categories", "filters", "mixture"} <= set(json.loads(out)["properties"])


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ("fliters: []\n", "unknown key 'fliters'. Did you mean 'filters'?"),
        ("shard_rows: many\n", "shard_rows: found 'many'; allowed: a valid integer"),
        ("engines: {a: {type: openai, model: m}, a: {type: openai, model: n}}\n", "the name 'a' stands here twice"),
        ("engines: {a: {type: openai, model: m, api_key: '${NO_SUCH_KEY}'}}\n", "variable NO_SUCH_KEY is not set"),
    ],
)
def test_a_broken_recipe_is_one_sentence_with_the_place_and_status_2(tmp_path: Path, run: Run, extra: str, expected: str) -> None:
    for command in ("build", "plan", "validate"):
        code, _, err = run(command, recipe(tmp_path, extra))
        assert code == 2
        assert expected in err
        assert "mixture.yaml:" in err
        assert "Traceback" not in err
    assert nothing_published(tmp_path)


def test_a_missing_file_names_the_path(tmp_path: Path, run: Run) -> None:
    code, _, err = run("build", recipe(tmp_path, path=str(tmp_path / "nothing-*.jsonl")))
    assert code == 2
    assert "nothing-*.jsonl" in err
    code, _, err = run("validate", recipe(tmp_path, path="nothing.jsonl"))
    assert code == 2
    assert f"'nothing.jsonl' does not exist in '{os.getcwd()}', where the command runs. It is a source of 'pairs'." in err


def test_a_build_of_empty_files_is_a_mistake_of_the_user(tmp_path: Path, run: Run) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    code, _, err = run("build", recipe(tmp_path, path=str(tmp_path / "empty.jsonl")), "--workers", "1")
    assert code == 2
    assert "No rows were read" in err
    assert nothing_published(tmp_path)


def test_a_missing_column_names_the_file_the_column_and_those_that_are_there(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "other.jsonl"
    path.write_text('{"question": "what is it", "p": "it is what it is"}\n' * 3)
    code, _, err = run("build", recipe(tmp_path, path=str(path)), "--workers", "1")
    assert code == 2
    assert "other.jsonl" in err
    assert "'q'" in err
    assert "question" in err
    assert nothing_published(tmp_path)


def test_a_truncated_parquet_file_is_named(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "cut.parquet"
    pl.DataFrame({"q": ["a"] * 1000, "p": ["b"] * 1000}).write_parquet(path)
    path.write_bytes(path.read_bytes()[:-20])
    code, _, err = run("build", recipe(tmp_path, path=str(path)), "--workers", "1")
    assert code == 2
    assert "cut.parquet" in err
    assert "Traceback" not in err
    assert nothing_published(tmp_path)


def test_an_output_path_that_is_a_file_is_refused(tmp_path: Path, run: Run) -> None:
    (tmp_path / "out").write_text("I am a file")
    code, _, err = run("build", recipe(tmp_path), "--workers", "1")
    assert code == 2
    assert str(tmp_path / "out") in err
    assert (tmp_path / "out").read_text() == "I am a file"


def test_a_cache_path_that_is_a_file_is_refused(tmp_path: Path, run: Run) -> None:
    (tmp_path / "cache").write_text("I am a file")
    code, _, err = run("build", recipe(tmp_path), "--workers", "1")
    assert code == 2
    assert "is a file" in err


def test_a_missing_package_is_one_sentence_with_the_command(tmp_path: Path, run: Run) -> None:
    extra = "filters: [{type: round_trip, encoder: e}]\nencoders: {e: {model: 'package:no_such_package/model'}}\n"
    code, _, err = run("build", recipe(tmp_path, extra), "--workers", "1")
    assert code == 2
    assert "pip install no-such-package" in err


def test_a_missing_extra_is_one_sentence_with_the_command(tmp_path: Path) -> None:
    blocked = (
        "import sys; sys.modules['ray'] = None\n"
        "from datakit.cli import app\nfrom datakit.errors import run_command_line\n"
        f"run_command_line(lambda: app(['build', {recipe(tmp_path)!r}, '--executor', 'ray']), 'datakit')"
    )
    done = subprocess.run([sys.executable, "-c", blocked], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'datakit[ray]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_folder_without_weights_is_refused(tmp_path: Path, run: Run) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    extra = f"filters: [{{type: round_trip, encoder: e}}]\nencoders: {{e: {{model: {folder}}}}}\n"
    code, _, err = run("build", recipe(tmp_path, extra), "--workers", "1")
    assert code == 2
    assert str(folder) in err
    assert "Traceback" not in err
    assert nothing_published(tmp_path)


def test_an_endpoint_that_does_not_answer_is_named(tmp_path: Path, run: Run) -> None:
    (tmp_path / "text.jsonl").write_text(json.dumps({"t": "A river is a stream of water that flows to the sea. " * 8}) + "\n")
    file = tmp_path / "mixture.yaml"
    file.write_text(
        PAIRS.format(root=tmp_path, path=tmp_path / "text.jsonl", name="asked").replace(
            "{query: q, positive: p}", "{document: t}"
        )
        + "engines: {llm: {type: openai, model: m, base_url: 'http://127.0.0.1:9/v1', api_key: x, attempts: 2, timeout: 2}}\n"
    )
    text = file.read_text().replace("    sources:", "    synthesis: {engine: llm}\n    sources:")
    file.write_text(text)
    code, _, err = run("build", str(file), "--workers", "1")
    assert code == 2
    assert "http://127.0.0.1:9/v1" in err
    assert "Traceback" not in err
    assert nothing_published(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
@pytest.mark.parametrize("where", ["cache", "out"])
def test_a_full_disk_is_one_sentence_and_status_1_and_the_build_goes_on_later(tmp_path: Path, run: Run, where: str) -> None:
    file = recipe(tmp_path, path=str(write_pairs(tmp_path / "many.jsonl", 20_000)))
    small = tmp_path / where
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(small)], check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        code, _, err = run("build", file, "--workers", "1")
        assert code == 1, err
        assert "The disk is full" in err
        assert "Traceback" not in err
        assert nothing_published(tmp_path)
        subprocess.run(["mount", "-o", "remount,size=100M", str(small)], check=True)
        assert run("build", file, "--workers", "1")[0] == 0
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_bad_records_are_rejected_with_a_reason_and_the_build_goes_on(tmp_path: Path, run: Run) -> None:
    good = write_pairs(tmp_path / "mixed.jsonl", 40).read_bytes()
    bad = [
        b'{"q": "latin \xe9", "p": "x"}',
        b'{"q": "broken',
        b"[1, 2]",
        b'{"q": "nul \x00 byte", "p": "an answer that is long enough to be kept by all"}',
        json.dumps({"q": "", "p": "an answer"}).encode(),
        json.dumps({"q": "long", "p": "x" * 50_000_000}).encode(),
    ]
    (tmp_path / "mixed.jsonl").write_bytes(good + b"\n".join(bad) + b"\n")
    file = recipe(tmp_path, path=str(tmp_path / "mixed.jsonl"))
    Path(file).write_text(Path(file).read_text().replace("columns:", "max_bad_fraction: 0.5\n        columns:"))
    assert run("build", file, "--workers", "1")[0] == 0
    rejected = pl.scan_parquet(tmp_path / "out" / "pairs" / "latest" / "rejected" / "*.parquet").collect()
    assert sorted(rejected["reason"]) == [
        "empty_field",
        "invalid_json",
        "invalid_utf8",
        "not_an_object",
        "nul_bytes",
        "record_too_long",
    ]
    assert all("mixed.jsonl" in detail for detail in rejected["detail"])


def test_too_many_bad_records_stop_the_build_with_their_places(tmp_path: Path, run: Run) -> None:
    path = write_pairs(tmp_path / "bad.jsonl", 10)
    path.write_text(path.read_text() + "{broken\n" * 10)
    code, _, err = run("build", recipe(tmp_path, path=str(path)), "--workers", "1")
    assert code == 2
    assert "bad.jsonl:11" in err
    assert nothing_published(tmp_path)


def test_wrong_arguments_are_refused_with_status_2(tmp_path: Path, run: Run) -> None:
    assert run("build")[0] == 2
    assert run("build", recipe(tmp_path), "--workers", "none")[0] == 2
    assert run("build", recipe(tmp_path), "--workers", "0")[0] == 2
    assert run("build", recipe(tmp_path), "--executor", "dask")[0] == 2
    code, _, err = run("inspect", str(tmp_path / "nowhere"))
    assert code == 2
    assert "nowhere" in err
