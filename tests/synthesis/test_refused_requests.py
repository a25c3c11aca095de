"""Prompts that a server does not take: each is a rejection with the server's words, and the build goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from asking import ChatServer, Fault, Script, contents, openai_engine, rejected, rows, serving, step, write_documents
from stepping import run_step

from datakit.assets import Assets
from datakit.errors import BudgetExceeded, UserError
from datakit.recipe import Budget, Synthesis, Writing
from datakit.registry import Category
from datakit.step import Output
from datakit.synthesis.synthesise import synthesise_step

WORDS = "the answer is 4. It is 1. what is\n2. what was"


def refuses(words: str) -> Script:
    fault = Fault(400, body=json.dumps({"error": {"message": WORDS, "code": "content_filter"}}).encode())
    return lambda _, body: fault if words in str(body["messages"][-1]["content"]) else None


def built(cache: Path, documents: Path, server: ChatServer, **options: Any) -> Output:
    return run_step(step(cache, documents, openai_engine(server), **options), str(cache))


def test_a_passage_that_is_refused_is_a_rejection_and_the_same_command_goes_on(tmp_path: Path) -> None:
    documents = write_documents(tmp_path, 10)
    with serving(refuses("Subject 3 ")) as server:
        output = built(tmp_path / "a", documents, server)
        attempts = len(server.attempts)
        assert contents(built(tmp_path / "a", documents, server)) == contents(output)
        assert len(server.attempts) == attempts == 20
        # With less of a budget on the way the same rows come out.
        with pytest.raises(BudgetExceeded):
            built(tmp_path / "b", documents, server, budget=Budget(requests=9))
        assert contents(built(tmp_path / "b", documents, server)) == contents(output)
        assert len(server.attempts) == 40
    refused = rejected(output)
    assert [each["reason"] for each in refused] == ["request_refused"] * 2
    assert {each["detail"] for each in refused} == {"HTTP 400: " + " ".join(WORDS.split())}
    assert all("Subject 3 " in each["positive"] and each["query"] is None for each in refused)
    assert len(rows(output)) == 3 * 18
    notes = output.report.notes
    assert (notes["requests"], notes["prompt_tokens"]) == (20, 1800), "what is refused has no tokens"


def test_where_every_passage_is_refused_nothing_is_kept_and_the_person_is_told(tmp_path: Path) -> None:
    documents = write_documents(tmp_path, 4)
    with serving(refuses("Subject")) as server, pytest.raises(UserError, match="Check base_url, model"):
        built(tmp_path, documents, server)
    with serving() as server:
        assert len(rows(built(tmp_path, documents, server))) == 4 * 2 * 3


def test_a_step_of_an_engine_that_answered_an_earlier_one_may_be_refused_as_a_whole(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    documents = write_documents(tmp_path / "first", 2)
    other = tmp_path / "second" / "documents.jsonl"
    other.write_text(documents.read_text().splitlines()[0].replace("Subject 0", "Something unspeakable") + "\n")
    with serving(refuses("unspeakable")) as server:
        engine = openai_engine(server)
        first = step(tmp_path, documents, engine, name="synthesise-first")
        run_step(first, str(tmp_path))
        second = run_step(step(tmp_path, other, engine, name="synthesise-second", earlier=(first,)), str(tmp_path))
    assert not rows(second)
    assert [each["reason"] for each in rejected(second)] == ["request_refused"] * 2


def test_a_request_for_tasks_that_is_refused_is_a_rejection(tmp_path: Path) -> None:
    asked: list[str] = []

    def script(number: int, body: dict[str, Any]) -> Fault | None:
        said = str(body["messages"][-1]["content"])
        if "The category:" not in said:
            return None
        asked.append(said)
        return Fault(422, body=json.dumps({"error": {"message": WORDS}}).encode()) if len(asked) == 2 else None

    def answer(body: dict[str, Any]) -> str:
        tasks = [f"{number}. Given the bee {number}, find its hive." for number in range(1, 20)]
        return (
            "\n".join(tasks) if "The category:" in str(body["messages"][-1]["content"]) else "Query: a\nPositive: b\nNegative: c"
        )

    entry = Category(
        key="asked", family="test", description="Bees.", task="question_answering", instruction="Find the answer",
        writing=Writing(prompt="brainstorm"),
    )  # fmt: skip
    settings = Synthesis.model_validate({"engine": "e", "personas_per_document": 2, "queries": 3, "documents": 60})
    with serving(script, answer) as server:
        engine = openai_engine(server, concurrency=1)
        made = synthesise_step(
            "synthesise-asked", "asked", entry, settings, engine, "e", Budget(), 0, None, Assets(str(tmp_path)), 1000
        )
        output = run_step(made, str(tmp_path))
    refused = [each for each in rejected(output) if each["reason"] == "request_refused"]
    assert [each["detail"] for each in refused] == ["HTTP 422: " + " ".join(WORDS.split())]
    assert output.report.notes["tasks"] == 19 * (len(asked) - 1)
