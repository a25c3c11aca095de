"""The openai engine against a real server on loopback that fails by a script."""

from __future__ import annotations

import asyncio
import email.utils
import json
import logging
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from asking import ChatServer, Fault, Script, openai_engine, rows, run_facts, serving, step, write_documents
from stepping import run_step

from datakit.errors import BuildError, UserError
from datakit.schema import digest
from datakit.synthesis.engines import REFUSED, Answer, Conversation, Message, make
from datakit.synthesis.engines import openai as engine_module
from datakit.synthesis.engines.openai import REFUSALS_IN_A_ROW, _retry_after


class Kept:
    """A desk that keeps all it is told."""

    def __init__(self, allowed: int = 10**9) -> None:
        self.answers: dict[str, Answer] = {}
        self.failures: Counter[str] = Counter()
        self.allowed = allowed

    def may_ask(self, count: int) -> bool:
        self.allowed -= count
        return self.allowed >= 0

    def has_answers(self) -> bool:
        return bool(self.answers)

    def answered(self, answers: Any) -> None:
        self.answers.update(answers)

    def failed(self, key: str, kind: str) -> None:
        self.failures[kind] += 1


def ask(server: ChatServer | str, count: int = 1, desk: Kept | None = None, **options: Any) -> Kept:
    desk = desk or Kept()
    engine = make("e", openai_engine(server, **options), "", 0)
    conversations = [Conversation((Message("user", f"Say {number}."),), 3) for number in range(count)]
    engine.ask(engine.batches(conversations), desk)
    return desk


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorter pauses; nothing else changes."""
    monkeypatch.setattr(engine_module, "FIRST_PAUSE", 0.01)


FAULTS = {
    "rate_limited": Fault(429, {"retry-after": "0.01"}, b'{"error": {"message": "slow down"}}'),
    "server_error": Fault(500, body=b"oops"),
    "timeout": Fault(stall=1.0),
    "connection": Fault(drop=True),
    "malformed": Fault(body=b'{"choices": [{"mess'),
}
STRANGE = [
    b"{}", b"null", b"[]", b'"text"', b"3", b"", b"<html>", b'{"choices": []}', b'{"choices": null}', b'{"choices": "x"}',
    b'{"choices": [null]}', b'{"choices": [{}]}', b'{"choices": [{"message": null}]}', b"\xff\xfe",
    b'{"choices": [{"message": {"content": 3}}]}', b'{"choices": [{"message": {"content": ["x"]}}]}', b'{"choices": {"0": 1}}',
]  # fmt: skip


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("kind", list(FAULTS))
def test_each_failure_is_counted_by_kind_and_the_request_is_made_again(kind: str) -> None:
    script: Script = lambda number, body: FAULTS[kind] if number <= 2 else None  # noqa: E731
    with serving(script) as server:
        ask(server, desk=(warm := Kept()), timeout=0.5)
        assert len(warm.answers) == 1
        assert warm.failures == {kind: 2}
        assert len(server.attempts) == 3


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 529])
def test_a_status_that_may_pass_is_tried_again(status: int) -> None:
    with serving(lambda number, body: Fault(status, body=b"{}") if number == 1 else None) as server:
        assert len(ask(server).answers) == 1


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("body", STRANGE)
def test_a_body_that_is_no_answer_is_malformed_and_nothing_else(body: bytes) -> None:
    with serving(lambda number, _: Fault(body=body) if number == 1 else None) as server:
        desk = ask(server)
    assert desk.failures == {"malformed": 1}
    assert len(desk.answers) == 1


def test_retry_after_is_honoured() -> None:
    with serving(lambda number, body: Fault(429, {"retry-after": "1"}, b"{}") if number == 1 else None) as server:
        ask(server)
        (_, first), (_, second) = server.attempts
    assert second - first >= 1.0


def test_retry_after_is_read_in_all_its_forms() -> None:
    assert _retry_after({"retry-after": "1.5"}) == 1.5
    assert _retry_after({"retry-after-ms": "250", "retry-after": "9"}) == 0.25
    date = email.utils.formatdate(time.time() + 30, usegmt=True)
    assert 28 < (_retry_after({"retry-after": date}) or 0) <= 30
    assert _retry_after({"retry-after": email.utils.formatdate(0)}) == 0
    assert _retry_after({"retry-after": "soon"}) is None
    assert _retry_after({}) is None


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("status", [401, 402, 403, 404])
def test_a_refusal_is_the_persons_to_mend_and_is_not_repeated(status: int) -> None:
    body = json.dumps({"error": {"message": "no such model"}}).encode()
    with serving(lambda number, _: Fault(status, body=body)) as server:
        with pytest.raises(UserError, match=rf"engines.e: .*{server.url}.*model 'm' \(HTTP {status}: no such model\)"):
            ask(server, concurrency=1, count=3)
        assert len(server.attempts) == 1


def refuses(*numbers: int, status: int = 400, code: str | None = None) -> Script:
    """A server that does not take the requests of these numbers."""
    fault = Fault(status, body=json.dumps({"error": {"message": "not  that\n" + "x" * 400, "code": code}}).encode())
    asked = {f"Say {number}." for number in numbers}
    return lambda _, body: fault if body["messages"][0]["content"] in asked else None


@pytest.mark.parametrize("status", [400, 413, 422])
@pytest.mark.parametrize("concurrency", [1, 8])
def test_a_prompt_that_is_refused_where_others_are_answered_is_an_answer_of_its_own(
    status: int, concurrency: int, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(refuses(0, 1, 7, 9, status=status)) as server:
        desk = ask(server, count=10, concurrency=concurrency)
        assert len(server.attempts) == 10, "a refusal is asked for once"
    refused = [answer for answer in desk.answers.values() if answer.finish_reason == REFUSED]
    assert refused == [Answer(f"HTTP {status}: " + ("not that " + "x" * 400)[:300], REFUSED, 0, 0)] * 4
    assert len(desk.answers) == 10
    assert not desk.failures
    assert sum("the server refuses a prompt" in record.message for record in caplog.records) == 1


def test_refusals_say_nothing_of_their_prompts_where_nothing_was_answered() -> None:
    everything = range(100)
    with serving(refuses(*everything)) as server:
        with pytest.raises(UserError, match=r"refuses requests for the model 'm' \(HTTP 400: not that x+\). Check base_url"):
            ask(server, count=100, concurrency=1, desk=(desk := Kept()))
        assert len(server.attempts) == REFUSALS_IN_A_ROW
        assert not desk.answers
        with pytest.raises(UserError, match="Check base_url"):
            ask(server, count=2, desk=desk)
        assert not desk.answers


def test_what_is_left_may_all_be_refused_where_an_earlier_run_has_answers() -> None:
    with serving(refuses(0, 1)) as server:
        desk = Kept()
        desk.answered([("earlier", Answer("1. so", "stop", 1, 1))])
        ask(server, count=2, desk=desk)
    assert [answer.finish_reason for answer in desk.answers.values()] == ["stop", REFUSED, REFUSED]


def test_a_server_that_takes_nothing_any_more_stops_the_build_and_its_refusals_are_not_kept() -> None:
    with serving(refuses(*range(5, 100))) as server:
        with pytest.raises(UserError, match="Check base_url"):
            ask(server, count=100, concurrency=1, desk=(desk := Kept()))
        assert len(server.attempts) == 5 + REFUSALS_IN_A_ROW
    assert [answer.finish_reason for answer in desk.answers.values()] == ["stop"] * 5


def test_a_refusal_that_is_about_the_account_or_the_model_stops_at_once() -> None:
    with serving(refuses(3, code="billing_hard_limit_reached")) as server:
        with pytest.raises(UserError, match="Check base_url"):
            ask(server, count=10, concurrency=1, desk=(desk := Kept()))
        assert len(desk.answers) == 3


def test_a_server_that_answered_an_earlier_step_is_waited_for(quick: None) -> None:
    with serving() as server:
        ask(server)
    with pytest.raises(BuildError, match="failed 5 times") as raised:
        ask(server, attempts=5)
    assert not isinstance(raised.value, UserError)


def test_what_the_environment_says_for_openai_goes_to_openai_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "an-organisation")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "a-project")
    with serving() as server:
        ask(server)
        (headers,) = server.headers
    assert not {"openai-organization", "openai-project"} & set(headers)
    assert "an-organisation" not in str(headers)
    with serving() as server:
        # The same client, told that the server is OpenAI's.
        monkeypatch.setattr(engine_module.OpenAIChat, "_headers", lambda _: {})
        ask(server)
        assert server.headers[0]["openai-organization"] == "an-organisation"
    monkeypatch.undo()
    assert engine_module.OpenAIChat("e", openai_engine("https://api.openai.com/v1"), {})._headers() == {}


def test_an_endpoint_that_nobody_serves_is_named_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    # Another test may have had an answer at this port.
    monkeypatch.setattr(engine_module, "_reached", set())
    with serving() as server:
        url = server.url
    started = time.monotonic()
    with pytest.raises(UserError, match=f"no server answers at '{url}' \\(3 attempts"):
        ask(url, count=40)
    assert time.monotonic() - started < 10


@pytest.mark.usefixtures("quick")
def test_a_request_that_fails_for_good_stops_the_build_and_what_was_finished_is_kept() -> None:
    def script(number: int, body: dict[str, Any]) -> Fault | None:
        return Fault(500, body=b"{}") if body["messages"][0]["content"] == "Say 5." else None

    desk = Kept()
    with serving(script) as server, pytest.raises(BuildError, match=r"failed 4 times .*server_error.*answers are kept") as raised:
        ask(server, count=10, desk=desk, attempts=4, concurrency=2)
    assert not isinstance(raised.value, UserError)
    assert desk.failures == {"server_error": 4}
    assert len(desk.answers) >= 5


def test_no_more_than_concurrency_requests_are_on_the_way() -> None:
    with serving(delay=0.05) as server:
        assert len(ask(server, count=24, concurrency=6).answers) == 24
        assert 4 <= server.most_at_once <= 6


def test_nothing_is_asked_when_the_desk_says_no() -> None:
    with serving() as server:
        assert len(ask(server, count=20, desk=Kept(allowed=7)).answers) == 7
        assert len(server.attempts) == 7


def test_what_is_sent_is_what_the_recipe_says(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "from the environment")
    monkeypatch.setenv("A_KEY", "secret-key")
    with serving(usage=False) as server, caplog.at_level(logging.WARNING):
        desk = ask(server, temperature=0, extra_body={"max_tokens": None, "max_completion_tokens": 9, "seed": 4})
        ask(server, structured="json_schema", api_key="${A_KEY}", max_tokens=5)
        plain, structured = server.bodies
        assert server.keys == ["Bearer none", "Bearer secret-key"]
    assert plain == {
        "model": "m", "messages": [{"role": "user", "content": "Say 0."}], "temperature": 0.0, "top_p": 0.95,
        "max_completion_tokens": 9, "seed": 4,
    }  # fmt: skip
    assert structured["max_tokens"] == 5
    assert structured["response_format"]["json_schema"]["schema"]["properties"]["queries"]["minItems"] == 3
    (answer,) = desk.answers.values()
    assert answer.prompt_tokens == len("Say 0.") // 4
    assert answer.completion_tokens == len(answer.text) // 4
    assert sum("tells no tokens" in record.message for record in caplog.records) == 2


def test_a_key_covers_what_decides_an_answer_and_nothing_else() -> None:
    def key(text: str = "x", queries: int = 3, **options: Any) -> str:
        engine = make("e", openai_engine("http://127.0.0.1:1/v1", **options), "", 0)
        return engine.batches([Conversation((Message("user", text),), queries)])[0][0].key

    price = {"input": 1, "output": 2}
    same = {key(), key(base_url="http://127.0.0.1:2/v1"), key(timeout=9), key(attempts=1), key(concurrency=1), key(price=price)}
    assert len(same) == 1
    others: list[dict[str, Any]] = [
        {"model": "n"}, {"revision": "2"}, {"temperature": 0.1}, {"top_p": 0.5}, {"max_tokens": 9}, {"structured": "json_schema"},
        {"extra_body": {"seed": 1}}, {"text": "y"}, {"queries": 4},
    ]  # fmt: skip
    assert len({key(**other) for other in others} | same) == len(others) + 1


def test_it_works_where_an_event_loop_runs_already() -> None:
    async def cell(server: ChatServer) -> Kept:
        return ask(server, count=3)

    with serving() as server:
        assert len(asyncio.run(cell(server)).answers) == 3


@pytest.mark.usefixtures("quick")
def test_a_build_with_a_third_of_all_attempts_failing_equals_one_without(tmp_path: Path) -> None:
    kinds = list(FAULTS)
    made: Counter[str] = Counter()

    def script(number: int, body: dict[str, Any]) -> Fault | None:
        # Some requests fail once, some twice, each in its own way.
        place = int(digest(json.dumps(body["messages"])), 16)
        if number > place % 3:
            return None
        kind = kinds[(place + number) % len(kinds)]
        made[kind] += 1
        # Longer than elsewhere, as on a busy machine other answers would come too late as well.
        return Fault(stall=4.0) if kind == "timeout" else FAULTS[kind]

    documents = write_documents(tmp_path, 20)
    with serving(script) as bad, serving() as good:
        failing = run_step(step(tmp_path / "a", documents, openai_engine(bad, timeout=3.0)), str(tmp_path / "a"))
        sound = run_step(step(tmp_path / "b", documents, openai_engine(good)), str(tmp_path / "b"))
    assert rows(failing) == rows(sound)
    assert failing.report == sound.report
    assert len(rows(failing)) == 120
    assert set(made) == set(kinds)
    counted = run_facts(failing)["failed_attempts"]
    for kind in ("rate_limited", "server_error", "malformed"):
        assert counted[kind] == made[kind]
    # A connection may also break, or time run out, before a request has reached the server.
    for kind in ("connection", "timeout"):
        assert counted[kind] >= made[kind]
    assert set(run_facts(sound)["failed_attempts"]) <= {"connection", "timeout"}


def answer_of(message: dict[str, Any], finish: str = "stop", **more: Any) -> bytes:
    """A body with this message."""
    return json.dumps({"choices": [{"index": 0, "finish_reason": finish, "message": message}], **more}).encode()


def test_what_a_model_thinks_is_no_part_of_its_answer(caplog: pytest.LogCaptureFixture) -> None:
    usage = {"usage": {"prompt_tokens": 5, "completion_tokens": 70, "completion_tokens_details": {"reasoning_tokens": 60}}}
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "1. so"}]
    bodies = {
        "Say 0.": answer_of({"role": "assistant", "content": "1. so", "reasoning_content": "1. hm"}, **usage),
        "Say 1.": answer_of({"role": "assistant", "content": "1. so", "reasoning": "1. hm"}, **usage),
        "Say 2.": answer_of({"role": "assistant", "content": parts}, **usage),
    }
    with serving(lambda number, body: Fault(body=bodies[body["messages"][0]["content"]])) as server:
        desk = ask(server, count=3)
    assert set(desk.answers.values()) == {Answer("1. so", "stop", 5, 70)}
    assert not desk.failures
    assert "no tokens are left" not in caplog.text


def test_a_model_that_only_thinks_gives_an_empty_answer_and_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    body = answer_of({"role": "assistant", "content": None, "reasoning_content": "hm, hm"}, "length", usage=None)
    with serving(lambda number, _: Fault(body=body)) as server, caplog.at_level(logging.WARNING):
        desk = ask(server, count=4)
    assert [(answer.text, answer.finish_reason) for answer in desk.answers.values()] == [("", "length")] * 4
    assert sum("no tokens are left to answer" in record.message for record in caplog.records) == 1


def test_fields_that_a_server_does_not_know_can_be_left_out() -> None:
    left_out = {"max_tokens": None, "temperature": None, "top_p": None, "max_completion_tokens": 64, "reasoning_effort": "low"}
    with serving() as server:
        ask(server, extra_body=left_out)
        (body,) = server.bodies
    assert body == {
        "model": "m", "messages": [{"role": "user", "content": "Say 0."}], "max_completion_tokens": 64, "reasoning_effort": "low",
    }  # fmt: skip


def test_more_requests_than_a_client_keeps_connections_for_are_on_the_way_at_once() -> None:
    together = threading.Barrier(130)

    def script(number: int, body: dict[str, Any]) -> None:
        together.wait(timeout=30)

    with serving(script) as server:
        assert len(ask(server, count=260, concurrency=130, timeout=40).answers) == 260
        assert server.most_at_once == 130
