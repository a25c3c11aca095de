"""Texts that whoever serves a model does not take: no negative is written for them, and none is relabelled by the server's words."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from asking import Fault, openai_engine, serving
from corpora import random_records, split
from stepping import run_step
from test_relabel_judge import by_words, steps, texts_of

from datakit.assets import Assets
from datakit.negatives.adversarial import adversarial_step, written
from datakit.recipe import AdversarialMiner, Budget
from datakit.synthesis.desk import asking

REFUSAL = Fault(400, body=json.dumps({"error": {"message": "This prompt is not answered."}}).encode())


def test_no_negative_is_written_for_a_pair_that_is_refused(tmp_path: Path) -> None:
    records = random_records(1, count=30)
    words = {records[4]["query"], records[9]["query"]}

    def script(number: int, body: dict[str, Any]) -> Fault | None:
        said = str(body["messages"][-1]["content"])
        return REFUSAL if any(f"\n{each}\n" in said for each in words) else None

    miner = AdversarialMiner(type="adversarial", engine="e")
    with serving(script, lambda body: "Bees make wax.") as server:
        asks = asking("e", openai_engine(server), Budget(), 0, (), Assets(str(tmp_path)))
        output = run_step(adversarial_step(miner, asks, split(records)), str(tmp_path))
    notes = output.report.notes
    refused = notes["refused"]["request_refused"]
    assert refused == sum(each["query"] in words for each in records)
    assert notes["written"] == notes["answers"] - refused
    frames = [pl.read_parquet(file) for file in written(output).files]
    reasons = Counter(pl.concat(frames).get_column("reason").to_list())
    assert reasons == {None: notes["written"], "request_refused": refused}


@pytest.mark.parametrize("words", ["This prompt is not answered.", "5"])
def test_a_text_that_is_refused_has_no_score_whatever_the_server_says(tmp_path: Path, words: str) -> None:
    def script(number: int, body: dict[str, Any]) -> Fault | None:
        return Fault(400, body=json.dumps({"error": {"message": words}}).encode()) if "w7" in texts_of(body)[1].split() else None

    records = random_records(1, count=60)
    with serving(script, lambda body: "Score: 1" if "w7" in texts_of(body)[1] else by_words(body)) as server:
        counts = run_step(steps(records, tmp_path, openai_engine(server)), str(tmp_path)).report.notes["miners"]["bm25"]
    assert counts["judge_unparsable"] > 0
