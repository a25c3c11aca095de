"""Records that cannot be read are rejected with a reason and a place, and reading goes on; files that cannot be read stop it."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reading import COMPRESS, files, output, rejected, rows, step

from datakit.errors import UserError
from datakit.schema import REJECTED
from datakit.sources.records import READABLE

GOOD = b'{"question": "q", "answer": "a"}'
NEEDED = {"query": "question", "positive": "answer"}


def refused(tmp_path: Path, name: str, data: bytes, columns: dict[str, Any] | None = None, **options: Any) -> list[Any]:
    """(reason, detail) of what a file's records are refused for; the rows that go on are counted in the balance."""
    (tmp_path / name).write_bytes(data)
    result = output(files(tmp_path / name, columns, max_bad_fraction=1, **options), tmp_path / "cache")
    counts = result.report.counts
    assert counts.created == counts.out + sum(counts.rejected.values()) + counts.not_sampled
    assert counts.out == len(rows(result))
    return [(item["reason"], item["detail"]) for item in rejected(result)]


@pytest.mark.parametrize(
    ("line", "reason", "found"),
    [
        (b'{"question": "caf\xe9", "answer": "a"}', "invalid_utf8", "byte 18 of the record"),
        (b'{"question": "q\0", "answer": "a"}', "nul_bytes", "byte 16 of the record"),
        (b"\0\0\0\0", "nul_bytes", "byte 1 of the record"),
        (b'{"question": "q", "answer": "a"', "invalid_json", "unexpected end of data at character 33"),
        (b'{"question": "\\ud800", "answer": "a"}', "invalid_json", "surrogate"),
        (b'{"question": NaN, "answer": "a"}', "invalid_json", "at character 14"),
        (b'["q", "a"]', "not_an_object", 'a JSON array: ["q", "a"]'),
        (b"null", "not_an_object", "a JSON null: null"),
        (b'{"question": "", "answer": "a"}', "empty_field", "query: nothing in column 'question'"),
        (b'{"question": "q", "answer": null}', "empty_field", "positive: nothing in column 'answer'"),
        (b'{"question": "q"}', "empty_field", "positive: nothing in column 'answer'"),
        (b'{"question": "q", "answer": " \\n "}', "empty_field", "positive: nothing in column 'answer'"),
        (b'{"question": ["q"], "answer": "a"}', "not_text", "column 'question' has a list: ['q']"),
        (b'{"question": "q", "answer": {"text": "a"}}', "not_text", "column 'answer' has a dict"),
        (b'{"question": "' + b"x" * 200 + b'", "answer": "a"}', "record_too_long", "232 bytes, and max_record_bytes allows 200"),
    ],
)
def test_a_bad_json_line_is_rejected_and_the_others_are_read(tmp_path: Path, line: bytes, reason: str, found: str) -> None:
    ((said, detail),) = refused(tmp_path, "a.jsonl", b"\n".join([GOOD, line, GOOD]) + b"\n", max_record_bytes=200)
    assert said == reason
    assert detail.startswith("a.jsonl:2: ")
    assert found in detail
    assert detail.isprintable()


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([b"q,a,extra"], [("wrong_number_of_fields", "a.csv:3: 3 fields, and 2 are needed: q,a,extra\\n")]),
        ([b"q"], [("wrong_number_of_fields", "a.csv:3: 1 fields, and 2 are needed: q\\n")]),
        ([b"caf\xe9,a"], [("invalid_utf8", "a.csv:3: byte 4 of the record: caf\\xe9,a\\n")]),
        ([b"q\0,a"], [("nul_bytes", "a.csv:3: byte 2 of the record: q\\x00,a\\n")]),
        ([b",a"], [("empty_field", "a.csv:3: query: nothing in column 'question'")]),
        ([b'"q"x,a'], [("invalid_csv", "a.csv:3: ',' expected after '\"': \"q\"x,a\\n")]),
        ([b'"not closed,a', b"r,b"], [("invalid_csv", 'a.csv:3: unexpected end of data: "not closed,a\\n')]),
        ([b'"one', b"caf\xe9" + b'",a'], [("invalid_utf8", 'a.csv:3: byte 9 of the record: "one\\ncaf\\xe9",a\\n')]),
        ([b"x" * 201 + b",a"], [("record_too_long", f"a.csv:3: 204 bytes, and max_record_bytes allows 200: {'x' * 200}...")]),
    ],
)
def test_a_bad_csv_record_spoils_itself_only(tmp_path: Path, lines: list[bytes], said: list[Any]) -> None:
    data = b"\n".join([b"question,answer", b"first,a", *lines, b"last,z"]) + b"\n"
    assert refused(tmp_path, "a.csv", data, max_record_bytes=200) == said
    found = rows(output(files(tmp_path / "a.csv", max_bad_fraction=1, max_record_bytes=200), tmp_path / "cache"))
    expected = ["first", "r", "last"] if b"r,b" in lines else ["first", "last"]
    assert [row["query"] for row in found] == expected


def test_a_quote_that_is_never_closed_does_not_swallow_the_records_after_it(tmp_path: Path) -> None:
    lines = [b'"stray,a', *(b"q%d,a%d" % (i, i) for i in range(100)), b'"good, one",a']
    said = refused(tmp_path, "a.csv", b"question,answer\n" + b"\n".join(lines) + b"\n", max_record_bytes=300)
    assert [reason for reason, _ in said] == ["invalid_csv"]
    found = rows(output(files(tmp_path / "a.csv", max_bad_fraction=1, max_record_bytes=300), tmp_path / "cache"))
    assert [row["query"] for row in found] == [*(f"q{i}" for i in range(100)), "good, one"]


def test_a_score_must_be_a_number(tmp_path: Path) -> None:
    columns = NEEDED | {"score": "score"}
    values = [b"1", b'"2.5"', b"true", b'"high"', b"null", b"[1]", b'"inf"']
    data = b"\n".join(b'{"question": "q", "answer": "a", "score": %s}' % value for value in values)
    said = refused(tmp_path, "a.jsonl", data, columns)
    assert [reason for reason, _ in said] == ["not_a_number"] * 5
    assert said[1] == ("not_a_number", "a.jsonl:4: score: column 'score' has 'high'")
    found = rows(output(files(tmp_path / "a.jsonl", columns, max_bad_fraction=1), tmp_path / "cache"))
    assert [row["score"] for row in found] == [1.0, 2.5]


def test_a_parquet_string_that_is_no_utf_8_is_rejected(tmp_path: Path) -> None:
    raw = pa.array([b"fine", b"caf\xe9", b"good"], pa.binary())
    broken = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    pq.write_table(pa.table({"question": broken, "answer": ["a", "b", "c"]}), tmp_path / "a.parquet")
    result = output(files(tmp_path / "a.parquet", max_bad_fraction=0.5), tmp_path / "cache")
    assert [row["query"] for row in rows(result)] == ["fine", "good"]
    (said,) = rejected(result)
    assert (said["reason"], said["positive"]) == ("invalid_utf8", "b")
    assert said["detail"] == "a.parquet:2: column 'question' has byte 4 of caf\\xe9"


def test_records_of_parquet_and_json_have_an_upper_size_too(tmp_path: Path) -> None:
    table = pa.table({"question": ["q", "r"], "answer": ["a", "ä" * 2000]})
    pq.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "a.json").write_text('[{"question": "q", "answer": "a"}, {"question": "r", "answer": "%s"}, 7]' % ("ä" * 2000))
    for name, extra in (("a.parquet", []), ("a.json", ["not_an_object"])):
        result = output(files(tmp_path / name, max_record_bytes=3000, max_bad_fraction=1), tmp_path / "cache")
        found = rejected(result)
        assert [item["reason"] for item in found] == ["record_too_long", *extra]
        assert found[0]["value"] > found[0]["threshold"] == 3000
        assert found[0]["positive"] is None


def test_text_files_are_rejected_as_documents(tmp_path: Path) -> None:
    contents = {"bad.txt": b"caf\xe9", "nul.txt": b"a\0b", "long.txt": b"x" * 101, "empty.txt": b" \n", "good.txt": b"Hello."}
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    source = files(tmp_path / "*.txt", {"document": "text"}, max_record_bytes=100, max_bad_fraction=0.6)
    result = output(source, tmp_path / "cache", documents=True)
    assert {item["detail"].split(":")[0]: item["reason"] for item in rejected(result)} == {
        "bad.txt": "invalid_utf8", "nul.txt": "nul_bytes", "long.txt": "record_too_long", "empty.txt": "empty_field",
    }  # fmt: skip
    assert result.report.notes["documents"] == 1
    assert result.report.counts.created == 4


def test_rejected_rows_are_whole_and_have_an_id(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"question": "q", "answer": ""}\n{bad\n' + GOOD)
    result = output(files(tmp_path / "a.jsonl", max_bad_fraction=0.5), tmp_path / "cache", language="en")
    table = rejected(result)
    assert set(table[0]) == set(REJECTED.names)
    assert [(item["query"], item["positive"]) for item in table] == [("q", None), (None, None)]
    assert {(item["category"], item["source"], item["step"], item["task"]) for item in table} == {
        ("c", "a.jsonl", "read-c", "retrieval")
    }
    assert len({item["row_id"] for item in table} | {row["row_id"] for row in rows(result)}) == 3


def test_too_many_unreadable_records_stop_the_build_and_empty_ones_do_not(tmp_path: Path) -> None:
    assert {"empty_field"} == READABLE
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([GOOD] * 16 + [b"{bad", b"also bad", b"[]", b"{}"]) + b"\n")
    with pytest.raises(UserError) as raised:
        output(files(tmp_path / "a.jsonl", max_bad_fraction=0.1), tmp_path / "cache")
    assert "3 of 20 records of 'a.jsonl' cannot be read (15.00%), and max_bad_fraction allows 10.00%" in str(raised.value)
    for place in ("a.jsonl:17: invalid_json", "a.jsonl:18: invalid_json", "a.jsonl:19: not_an_object"):
        assert place in str(raised.value)
    assert not list((tmp_path / "cache").rglob("step.json"))
    kept = output(files(tmp_path / "a.jsonl", max_bad_fraction=0.15), tmp_path / "cache")
    assert kept.report.counts.rejected == {"empty_field": 1, "invalid_json": 2, "not_an_object": 1}


TOO_LONG = """
import sys
sys.path[:0] = {path!r}
from pathlib import Path
from reading import files, output
result = output(files(Path({file!r}), max_bad_fraction=0.5), Path({cache!r}))
# Unlike ru_maxrss, this does not count what the parent held when it forked.
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(result.report.counts.out, result.report.counts.rejected, int(peak) // 1024)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="peak memory is read from /proc")
def test_a_line_of_50_mb_is_skipped_without_being_held(tmp_path: Path) -> None:
    def peak(name: str, suffix: str, size: int) -> tuple[str, int]:
        path = tmp_path / (name + suffix)
        line = b'{"question": "' + b"x" * size + b'", "answer": "a"}'
        path.write_bytes(COMPRESS[suffix](b"\n".join([GOOD, line, GOOD])))
        here = Path(__file__).parent
        code = TOO_LONG.format(path=[str(here), str(here.parent)], file=str(path), cache=str(tmp_path / "cache" / path.name))
        printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        said, _, megabytes = printed.rpartition(" ")
        return said, int(megabytes)

    small, least = peak("small.jsonl", "", 10)
    assert small == "3 {}"
    for suffix in ("", ".zst"):
        large, most = peak("large.jsonl", suffix, 50_000_000)
        assert large == "2 {'record_too_long': 1}"
        assert most < least + 45, "the allowed 10 MB of the line, a few times"


# -------------------------------------------------------------------------------------------------- files that cannot be read


def stops(tmp_path: Path, name: str, data: bytes, columns: dict[str, Any] | None = None, **options: Any) -> str:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError) as raised:
        output(files(tmp_path / name, columns, **options), tmp_path / "cache")
    assert name in str(raised.value)
    assert not list((tmp_path / "cache").rglob("step.json"))
    return str(raised.value)


def test_a_header_in_one_piece_is_told_with_its_separator(tmp_path: Path) -> None:
    said = stops(tmp_path, "semi.csv", b"question;answer\nwhat is it;it is this\n")
    assert "its columns are: 'question;answer'. If its fields are separated by ';', give that as the delimiter." in said


def test_a_missing_file_and_a_pattern_without_match_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.jsonl' does not exist"):
        step(files(tmp_path / "nothing.jsonl"), tmp_path)
    with pytest.raises(UserError, match=r"No file matches '.*\*\.jsonl'"):
        step(files(tmp_path / "*.jsonl"), tmp_path)
    with pytest.raises(UserError, match=r"is a folder, and files are needed"):
        step(files(tmp_path), tmp_path)
    with pytest.raises(UserError, match=r"'nosuch://x' cannot be opened"):
        step(files("nosuch://x"), tmp_path)
    (tmp_path / "a.dat").write_bytes(GOOD)
    with pytest.raises(UserError, match=r"a\.dat' is not known by its name\. Give the source 'format:'"):
        step(files(tmp_path / "a.dat"), tmp_path)
    assert len(rows(output(files(tmp_path / "a.dat", format="jsonl"), tmp_path / "cache"))) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(GOOD)
    (tmp_path / "a.jsonl").chmod(0)
    with pytest.raises(UserError, match=r"a\.jsonl' cannot be (read|opened): [Pp]ermission denied"):
        output(files(tmp_path / "a.jsonl"), tmp_path / "cache")


def test_a_truncated_parquet_file_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"question": ["q"] * 1000, "answer": [str(i) for i in range(1000)]}), tmp_path / "whole.parquet")
    whole = (tmp_path / "whole.parquet").read_bytes()
    assert "is damaged, cut off or not what its name says" in stops(tmp_path, "cut.parquet", whole[: len(whole) // 2])
    assert "is damaged" in stops(tmp_path, "empty.parquet", b"")
    # The footer is whole, but a page in the middle is not.
    middle = bytearray(whole)
    middle[100:400] = bytes(300)
    assert "is damaged" in stops(tmp_path, "page.parquet", bytes(middle))


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".zst"])
def test_a_truncated_or_wrong_compressed_file_is_named(tmp_path: Path, suffix: str) -> None:
    whole = COMPRESS[suffix](b"\n".join(b'{"question": "%d", "answer": "a"}' % i for i in range(3000)))
    for data in (whole[:-3], whole[: len(whole) // 2], b"", GOOD):
        assert "is damaged, cut off or not what its name says" in stops(tmp_path, "a.jsonl" + suffix, data)


def test_a_missing_column_is_named_with_the_nearest(tmp_path: Path) -> None:
    columns = {"query": "qestion", "positive": "answer"}
    table = pa.table({"question": ["q"], "answer": ["a"]})
    pq.write_table(table, tmp_path / "made.parquet")
    contents = {
        "a.jsonl": GOOD, "a.json": b"[" + GOOD + b"]", "a.csv": b"question,answer\nq,a\n",
        "a.parquet": (tmp_path / "made.parquet").read_bytes(),
    }  # fmt: skip
    for name, data in contents.items():
        said = stops(tmp_path, name, data, columns)
        assert "has no column 'qestion'; its columns are: 'question', 'answer'. Did you mean 'question'?" in said
    assert "no column 'entails'" in stops(tmp_path, "b.jsonl", GOOD, where={"entails": True})
    assert "no column 'body'" in stops(
        tmp_path, "c.jsonl", GOOD, {"query": {"template": "{question} {body}"}, "positive": "answer"}
    )


def test_a_json_file_that_holds_no_records_is_explained(tmp_path: Path) -> None:
    assert "is no JSON: " in stops(tmp_path, "a.json", GOOD + b"\n" + GOOD)
    assert "give the source 'format: jsonl'" in stops(tmp_path, "a.json", GOOD + b"\n" + GOOD)
    assert "holds a JSON object with the keys 'rows'" in stops(tmp_path, "b.json", b'{"rows": 3}')
    assert "holds a JSON string" in stops(tmp_path, "c.json", b'"text"')


def test_a_header_that_cannot_be_read_is_explained(tmp_path: Path) -> None:
    assert "has the column 'answer' twice" in stops(tmp_path, "a.csv", b"answer,answer\nq,a\n")
    assert "The header of" in stops(tmp_path, "b.csv", b"question,answ\xe9r\nq,a\n")


def test_a_compressed_parquet_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet.gz").write_bytes(gzip.compress(b"x"))
    with pytest.raises(UserError, match=r"Decompress it first"):
        step(files(tmp_path / "a.parquet.gz"), tmp_path)


def test_an_empty_file_has_no_rows_and_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.csv").write_bytes(b"")
    (tmp_path / "a.jsonl").write_bytes(b"\n\n")
    for name in ("a.csv", "a.jsonl"):
        assert output(files(tmp_path / name), tmp_path / "cache").report.counts.created == 0
        assert f"The source '{name}' of the category 'c' has no records." in caplog.text
