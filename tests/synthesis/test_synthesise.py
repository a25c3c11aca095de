"""The synthesise step as a whole: balance, budget, resumption, plan."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from asking import Fault, contents, openai_engine, questions, rejected, rows, run_facts, serving, step, write_documents
from stepping import run_step

from datakit import storage
from datakit.errors import BudgetExceeded, MissingExtra, UserError
from datakit.executor.local import LocalExecutor
from datakit.progress import QUIET
from datakit.recipe import Budget, VllmEngine
from datakit.schema import digest, text_id
from datakit.step import package_version, run
from datakit.synthesis.synthesise import planned


def test_each_passage_is_asked_about_by_its_personas_and_each_question_is_a_row(tmp_path: Path) -> None:
    documents = write_documents(tmp_path, 12)
    with serving() as server:
        output = run_step(step(tmp_path, documents, openai_engine(server), personas_per_document=3), str(tmp_path))
        assert len(server.answered) == len(set(server.answered)) == 36
    found = rows(output)
    assert len(found) == 12 * 3 * 3 == output.report.counts.created == output.report.counts.out
    assert len({row["row_id"] for row in found}) == len(found)
    for row in found:
        assert row["category"] == row["batch_group"] == "asked"
        assert row["language"] == row["positive_language"] == "en"
        assert row["instruction"] == "Find the answer"
        assert row["in_batch_negatives"] is True
        assert row["content_id"] is row["query_id"] is row["positive_id"] is None
        assert row["provenance"]["parents"] == [text_id(row["positive"])]
        assert row["provenance"]["template"] == "questions@1"
        assert row["provenance"]["model"] == "m"
    siblings = Counter((row["document_id"], row["provenance"]["persona"]) for row in found)
    assert set(siblings.values()) == {3}
    assert len({row["document_id"] for row in found}) == 12


@pytest.mark.parametrize("structured", ["lines", "json_schema"])
def test_workers_and_shards_change_no_row(tmp_path: Path, structured: str) -> None:
    documents = write_documents(tmp_path, 10)
    with serving() as server:
        engine = openai_engine(server, structured=structured)
        one = run_step(step(tmp_path / "a", documents, engine), str(tmp_path / "a"), workers=1)
        two = run_step(step(tmp_path / "b", documents, engine), str(tmp_path / "b"), workers=2)
        small = run_step(step(tmp_path / "c", documents, engine, shard_rows=12), str(tmp_path / "c"))
    assert contents(one) == contents(two)
    assert rows(one) == rows(small)
    assert len(small.shards) == 5
    assert len(rows(one)) == 60


def test_passages_are_drawn_over_all_documents_before_any_gives_a_second(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    paragraphs = [["".join(f"d{d}p{p}w{w} " for w in range(45)) + "." for p in range(6)] for d in range(10)]
    path.write_text("".join(json.dumps({"text": "\n\n".join(document)}) + "\n" for document in paragraphs))
    with serving() as server:
        engine = openai_engine(server)

        def drawn(count: int | None, seed: int = 0) -> Counter[str]:
            made = step(tmp_path, path, engine, documents=count, personas_per_document=1, seed=seed)
            output = run_step(made, str(tmp_path))
            assert output.report.notes["drawn"] == len({row["positive"] for row in rows(output)})
            assert output.report.notes["passages"] == 60
            return Counter({row["positive"]: row["document_id"] for row in rows(output)}.values())

        assert set(drawn(10).values()) == {1}
        assert sorted(drawn(15).values()) == [1] * 5 + [2] * 5
        assert sum(drawn(None).values()) == 60
        few = drawn(4)
        assert len(few) == 4
        assert few != drawn(4, seed=1)


def test_a_passage_that_stands_in_two_documents_is_asked_about_once(tmp_path: Path) -> None:
    path = tmp_path / "twice.jsonl"
    text = " ".join(f"w{number}" for number in range(50)) + "."
    path.write_text(json.dumps({"text": text}) + "\n" + json.dumps({"text": f"{text}\n\n{text.replace('w', 'v')}"}) + "\n")
    with serving() as server:
        output = run_step(step(tmp_path, path, openai_engine(server)), str(tmp_path))
        assert len(server.answered) == 4
    assert output.report.notes["repeated_passages"] == 1
    assert output.report.notes["drawn"] == 2


def test_what_is_no_question_is_a_rejection_with_the_raw_answer(tmp_path: Path) -> None:
    answers = [
        "I cannot help.",
        "",
        "1. the same\n2. The same!\n3. other",
        "1. one two\n2. three four\n3. five six\n4. seven eight",
    ]

    def answer(body: dict[str, Any]) -> str:
        return answers[int(digest(questions(body)), 16) % len(answers)]

    documents = write_documents(tmp_path, 20)
    with serving(answer=answer) as server:
        output = run_step(step(tmp_path, documents, openai_engine(server)), str(tmp_path))
    counts = output.report.counts
    assert counts.rejected.keys() == {"unparsable_answer", "empty_answer", "repeated_in_answer", "more_than_asked"}
    assert counts.created == counts.out + sum(counts.rejected.values())
    refused = rejected(output)
    assert len({row["row_id"] for row in [*refused, *rows(output)]}) == counts.created
    ids = {row["row_id"]: row for row in rows(output)}
    for row in refused:
        assert row["positive"]
        assert row["step"] == "synthesise-asked"
        assert row["detail"] in answers
        assert (row["query"] is None) == (row["reason"] in ("unparsable_answer", "empty_answer"))
        if row["reason"] == "repeated_in_answer":
            assert ids[row["other_id"]]["query"] == "the same"
    asked = {row["provenance"]["request_id"] for row in [*refused, *rows(output)]}
    assert len(asked) == 40


def test_half_a_surrogate_pair_in_an_answer_loses_nothing(tmp_path: Path) -> None:
    documents = write_documents(tmp_path, 2)
    with serving(answer=lambda body: "1. a \ud800 b\n2. c d\n3. e f") as server:
        output = run_step(step(tmp_path, documents, openai_engine(server)), str(tmp_path))
    assert [row["query"] for row in rows(output)][:3] == ["a ? b", "c d", "e f"]


PROGRAM = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[4:]
from asking import openai_engine, step
from stepping import run_step
run_step(step(Path(sys.argv[1]), Path(sys.argv[2]), openai_engine(sys.argv[3], concurrency=4), shard_rows=30), sys.argv[1])
"""


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_no_finished_request_is_sent_again_after_a_crash(tmp_path: Path, ending: signal.Signals) -> None:
    documents, cache = write_documents(tmp_path, 20), tmp_path / "cache"
    tests = Path(__file__).parent
    with serving(delay=0.03) as server:
        arguments = [str(cache), str(documents), server.url, str(tests), str(tests.parent)]
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments], stderr=subprocess.DEVNULL, env={**os.environ})
        while len(server.answered) < 17 and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(ending)
        assert process.wait(60) != 0
        time.sleep(0.2)
        before = set(server.answered)
        assert 17 <= len(before) < 40
        made = step(cache, documents, openai_engine(server), shard_rows=30)
        output = run_step(made, str(cache))
        repeated = [request for request, count in Counter(server.answered).items() if count > 1]
        # What was on its way when the process ended may come again: at most `concurrency` requests.
        assert len(repeated) <= 4
        fresh = run_step(step(tmp_path / "fresh", documents, openai_engine(server), shard_rows=30), str(tmp_path / "fresh"))
    assert contents(output) == contents(fresh)
    assert len(rows(output)) == 120


@pytest.mark.parametrize(
    ("limit", "enough", "most"),
    [
        ({"requests": 10}, {"requests": 24}, 10),
        ({"tokens": 1200}, {"tokens": 100_000}, 13),
        ({"money": 0.01}, {"money": 1.0}, 19),
    ],
)
def test_a_budget_stops_the_build_and_a_larger_one_goes_on(
    tmp_path: Path, limit: dict[str, Any], enough: dict[str, Any], most: int
) -> None:
    # An answer costs 120 tokens, and (100 * 4 + 20 * 10) / 1e6 = 0.0006 dollars.
    documents = write_documents(tmp_path, 12)
    with serving() as server:
        engine = openai_engine(server, concurrency=3, price={"input": 4, "output": 10})
        for _ in range(2):
            with pytest.raises(BudgetExceeded, match=r"The budget is spent: .* are (made|spent).*Raise 'budget'"):
                run_step(step(tmp_path, documents, engine, budget=Budget(**limit)), str(tmp_path))
        spent = len(server.answered)
        assert most - 3 <= spent <= most
        output = run_step(step(tmp_path, documents, engine, budget=Budget(**enough)), str(tmp_path))
        assert len(server.answered) == len(set(server.answered)) == 24
    notes = output.report.notes
    assert (notes["requests"], notes["prompt_tokens"], notes["completion_tokens"]) == (24, 2400, 480)
    assert notes["money"] == {"USD": 0.0144}
    assert (run_facts(output)["sent"], run_facts(output)["from_cache"]) == (24 - spent, spent)


def test_one_budget_is_for_all_steps_of_a_build(tmp_path: Path) -> None:
    documents = write_documents(tmp_path, 6)
    with serving() as server:
        first = step(tmp_path, documents, openai_engine(server), budget=Budget(requests=20))
        run_step(first, str(tmp_path))
        second = step(
            tmp_path, documents, openai_engine(server), budget=Budget(requests=20), seed=1, name="second", earlier=(first,)
        )
        with pytest.raises(BudgetExceeded, match="20 of 20 requests are made, and 4 requests of this part"):
            run_step(second, str(tmp_path))
        assert len(server.answered) == 20


def test_a_budget_of_money_needs_prices_in_one_currency(tmp_path: Path) -> None:
    documents = write_documents(tmp_path, 1)
    url, budget = "http://127.0.0.1:1/v1", Budget(money=1)
    with pytest.raises(UserError, match=r"budget\.money is set, and engines.e has no 'price'"):
        step(tmp_path, documents, openai_engine(url), budget=budget)
    price = {"input": 1, "output": 1}
    dollars = step(tmp_path, documents, openai_engine(url, price=price), budget=budget)
    euros = openai_engine(url, price={**price, "currency": "EUR"})
    with pytest.raises(UserError, match="prices in USD and EUR"):
        step(tmp_path, documents, euros, budget=budget, earlier=(dollars,))


def test_a_plan_tells_what_will_be_asked_and_what_is_answered(tmp_path: Path) -> None:
    documents = write_documents(tmp_path, 12)
    with serving() as server:
        made = step(tmp_path, documents, openai_engine(server), budget=Budget(requests=7), documents=8)
        assert planned(made, str(tmp_path)) is None
        run(made.side[0], str(tmp_path), LocalExecutor(1), QUIET)
        plan = planned(made, str(tmp_path))
        assert plan is not None
        assert (plan["requests"], plan["answered"]) == (16, 0)
        assert 16 * 100 < plan["prompt_tokens"] + plan["completion_tokens"] < 16 * 1000
        assert len(server.attempts) == 0
        with pytest.raises(BudgetExceeded):
            run_step(made, str(tmp_path))
        later = planned(made, str(tmp_path))
        assert later is not None
        assert (later["requests"], later["answered"]) == (9, 7)
    assert not storage.exists(storage.join(made.folder(str(tmp_path)), "step.json"))


def test_what_runs_how_changes_no_key_and_what_decides_does(tmp_path: Path) -> None:
    documents = write_documents(tmp_path, 1)

    def key(engine: dict[str, Any] | None = None, **options: Any) -> str:
        return step(tmp_path, documents, openai_engine("http://127.0.0.1:1/v1", **(engine or {})), **options).key

    people = tmp_path / "people.yaml"
    people.write_text("personas: [{name: a, description: b}, {name: c, description: d}]")
    same = [key(), key({"concurrency": 2}), key({"base_url": "http://127.0.0.1:9/v1"}), key(budget=Budget(requests=1))]
    same.append(key({"price": {"input": 1, "output": 1}}))
    assert len(set(same)) == 1
    others = [
        key({"model": "n"}), key({"temperature": 0}), key(seed=1), key(queries=4), key(documents=3), key(max_words=90),
        key(small_model=True), key(style="s"), key(prompt="claims"), key(shares={"formality": {"terse": 1}}), key(personas=str(people)),
    ]  # fmt: skip
    people.write_text("personas: [{name: a, description: b}, {name: c, description: e}]")
    others.append(key(personas=str(people)))
    assert len({*same, *others}) == len(others) + 1


def test_progress_counts_answers(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []

    class Watcher:
        def units(self, done: int, total: int, rows: int, phase: str) -> None:
            if phase == "answers":
                told.append((done, total))

    documents = write_documents(tmp_path, 6)
    with serving(lambda number, body: Fault(503, body=b"{}") if number == 1 else None) as server:
        made = step(tmp_path, documents, openai_engine(server), shard_rows=18)
        run(made.side[0], str(tmp_path), LocalExecutor(1), QUIET)
        run(made, str(tmp_path), LocalExecutor(1), Watcher())
    assert [done for done, _ in told if done] == sorted(done for done, _ in told if done)
    assert told[-1] == (12, 12)
    assert {total for _, total in told} == {12}


def test_no_documents_give_no_rows_and_no_error(tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text("")
    with serving() as server:
        output = run_step(step(tmp_path, path, openai_engine(server)), str(tmp_path))
    assert output.report.counts.created == 0
    assert output.report.notes["requests"] == 0


@pytest.mark.skipif(package_version("vllm") != "absent", reason="vllm is installed here")
def test_the_engine_vllm_without_vllm_names_the_extra(tmp_path: Path) -> None:
    documents = write_documents(tmp_path, 1)
    engine = VllmEngine.model_validate({"type": "vllm", "model": str(tmp_path)})
    with pytest.raises(MissingExtra, match=r"pip install 'datakit\[vllm\]'"):
        run_step(step(tmp_path, documents, engine), str(tmp_path))
