"""Real data sets, in the formats that they come in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from reading import files, output, rejected, rows
from stepping import read, run_step

from datakit.assets import Assets
from datakit.normalise import normalise_step
from datakit.registry import Category
from datakit.sources.read import read_step

CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], tuple[int, int, dict[str, int]]]] = {
    "medquad": (
        "medquad.jsonl", {"query": "question", "positive": "answer", "document_id": "id"}, {}, (16_407, 0, {}),
    ),
    "rqe": (
        "rqe.jsonl", {"query": "consumer_question", "positive": "faq"}, {"where": {"entails": True}}, (4_654, 3_933, {"empty_field": 1}),
    ),
    "hwu64": (
        "hwu64-*.csv", {"query": "text", "positive": "label", "label": "label"}, {}, (10_030, 0, {}),
    ),
    "python-api": ("python-api.jsonl", {"query": "intent", "positive": "snippet"}, {}, (12_958, 0, {})),
    "stsb": (
        "stsb-en-train.csv", {"query": "column_1", "positive": "column_2", "score": "column_3"}, {"header": False},
        (5_749, 0, {}),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_every_record_of_a_real_data_set_is_accounted_for(real_data: Path, tmp_path: Path, name: str) -> None:
    path, columns, options, (out, left_out, refused) = CASES[name]
    result = output(files(real_data / "train" / path, columns, **options), tmp_path, shard_rows=5000)
    counts = result.report.counts
    assert (counts.out, counts.not_sampled, counts.rejected) == (out, left_out, refused)
    found = rows(result)
    assert len({row["row_id"] for row in found}) == out
    if name == "stsb":
        assert (min(row["score"] for row in found), max(row["score"] for row in found)) == (0.0, 5.0)
    if name == "hwu64":
        assert len({row["label"] for row in found}) == 64


def test_real_data_is_normalised_without_a_loss(real_data: Path, tmp_path: Path) -> None:
    entry = Category(key="k", family="f", description="", task="question_answering")
    source = files(real_data / "train/medquad.jsonl", {"query": "question", "positive": "answer"})
    step = normalise_step((read_step("read", "c", entry, source, "en", 5000, Assets(str(tmp_path)), 0),))
    result = run_step(step, str(tmp_path))
    assert result.report.counts.out + len(rejected(result)) == 16_407
    assert result.report.counts.out > 16_000
    table = read(result.shards)
    assert not table["content_id"].null_count
    assert not table["document_id"].null_count
