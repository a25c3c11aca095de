"""The vllm engine as far as it goes without vLLM, which benchmarks/vllm_run.py runs for real; and with it, where it is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from datakit.errors import UserError
from datakit.recipe import VllmEngine
from datakit.synthesis.engines import REFUSED, Answer, Conversation, Engine, Message, make
from datakit.synthesis.engines import vllm as engine_module
from datakit.synthesis.engines.vllm import load

INSTALLED = importlib.util.find_spec("vllm") is not None


def engine(**options: Any) -> Engine:
    return make("e", VllmEngine.model_validate({"type": "vllm", "model": "/a/model", "batch_size": 4, **options}), "digest", 0)


def conversations(count: int) -> list[Conversation]:
    return [Conversation((Message("user", "word " * (number % 3 + 1) + str(number)),), 3) for number in range(count)]


def keys(made: Engine, asked: Sequence[Conversation]) -> list[list[str]]:
    return [[request.key for request in batch] for batch in made.batches(asked)]


def test_batches_are_fixed_by_all_that_is_asked_and_by_what_decides_an_answer() -> None:
    ten = keys(engine(), conversations(10))
    assert [len(batch) for batch in ten] == [4, 4, 2]
    assert ten == keys(engine(), conversations(10))
    assert len({key for batch in ten for key in batch}) == 10
    # A text that it samples changes with its neighbours, so that another list has other keys.
    assert not {key for batch in ten for key in batch} & {key for batch in keys(engine(), conversations(9)) for key in batch}
    for other in (
        {"structured": "json_schema"},
        {"temperature": 0},
        {"max_tokens": 9},
        {"dtype": "float32"},
        {"options": {"quantization": "fp8"}},
    ):
        assert keys(engine(**other), conversations(10)) != ten


class Kept:
    """A desk that keeps all it is told."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}

    def may_ask(self, count: int) -> bool:
        return True

    def has_answers(self) -> bool:
        return bool(self.answers)

    def answered(self, answers: Any) -> None:
        self.answers.update(answers)

    def failed(self, key: str, kind: str) -> None:
        raise AssertionError("nothing fails in process")


def generating(monkeypatch: pytest.MonkeyPatch, longest: int) -> list[tuple[int, int]]:
    """A vLLM that refuses a batch for a prompt that is too long; what it is asked: prompts at once, and tokens of an answer."""
    calls: list[tuple[int, int]] = []

    def generate(_: Any, config: VllmEngine, asked: Sequence[Conversation], seeds: Sequence[int]) -> list[Answer]:
        calls.append((len(asked), config.max_tokens))
        texts = [each.messages[0].content for each in asked]
        for text in texts:
            if len(text) > longest:
                raise ValueError(f"The decoder prompt (length {len(text)}) is too long.\nMore.")
        return [Answer(f"{text} with {seed}", "stop", 1, 1) for text, seed in zip(texts, seeds, strict=True)]

    monkeypatch.setattr(engine_module, "generate", generate)
    monkeypatch.setattr(engine_module, "load", lambda *_: object())
    return calls


def answers(made: Engine, lengths: Sequence[int], desk: Kept) -> list[Answer]:
    """The answers to prompts of these lengths, in one batch at most."""
    asked = [Conversation((Message("user", chr(97 + number) * length),), 3) for number, length in enumerate(lengths)]
    (batch,) = made.batches(asked)
    made.ask([batch], desk)
    found = {request.number: desk.answers[request.key] for request in batch}
    return [found[number] for number in range(len(lengths))]


def test_a_prompt_that_is_too_long_is_refused_alone_and_the_others_are_answered_at_their_places(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = generating(monkeypatch, longest=1000)
    all_short = answers(engine(), [5, 6, 8], Kept())
    calls.clear()
    found = answers(engine(), [5, 2000, 8], Kept())
    assert [answer.finish_reason for answer in found] == ["stop", REFUSED, "stop"]
    assert found[1] == Answer("The decoder prompt (length 2000) is too long", REFUSED, 0, 0)
    assert calls == [(3, 256), (1, 1), (1, 1), (1, 1), (2, 256)], "tried with one token each"
    assert found == answers(engine(), [5, 2000, 8], Kept())
    # The seed of a request is that of its place in the whole batch.
    seeds = [int(answer.text.rpartition(" ")[2]) for answer in found if answer.finish_reason == "stop"]
    assert seeds[1] - seeds[0] == 1
    assert all(answer.finish_reason == "stop" for answer in all_short)


def test_where_all_prompts_are_too_long_the_person_is_told_unless_others_were_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    generating(monkeypatch, longest=1000)
    with pytest.raises(UserError, match=r"vLLM refuses a request: The decoder prompt \(length 1500\) is too long"):
        answers(engine(), [1500, 2000], desk := Kept())
    assert not desk.answers
    desk.answered([("earlier", Answer("so", "stop", 1, 1))])
    assert [answer.finish_reason for answer in answers(engine(), [1500, 2000], desk)] == [REFUSED] * 2


@pytest.mark.skipif(not INSTALLED, reason="vLLM is not installed")
def test_a_folder_that_is_not_there_is_named_before_vllm_looks_for_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load("e", VllmEngine.model_validate({"type": "vllm", "model": str(tmp_path / "nowhere")}))
