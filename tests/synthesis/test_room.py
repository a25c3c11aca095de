"""Where the engine's max_tokens leave no room for what a prompt asks for, a person is told: before, and of answers that were cut."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from asking import ENTRY, Fault, openai_engine, serving, step, write_documents
from stepping import run_step

from datakit.assets import Assets
from datakit.pipeline import plan
from datakit.recipe import Budget, Recipe, Synthesis
from datakit.recipe_file import load_model
from datakit.synthesis.synthesise import synthesise_step

NOWHERE = "http://127.0.0.1:1/v1"
MIXTURES = Path(__file__).parents[2] / "mixtures"


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was said of max_tokens."""
    found = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    return [text for text in found if "max_tokens" in text]


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "needed"),
    [("documents", 256, 320), ("documents", 320, None), ("questions", 256, None), ("questions", 40, 48), ("summaries", 40, None)],
)
def test_a_prompt_that_writes_more_than_the_engine_may_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, prompt: str, max_tokens: int, needed: int | None
) -> None:
    step(tmp_path, write_documents(tmp_path, 2), openai_engine(NOWHERE, max_tokens=max_tokens), prompt=prompt)
    said = warnings(caplog)
    assert len(said) == (0 if needed is None else 1)
    for text in said:
        assert text.startswith(f"asked: an answer to the prompt '{prompt}' takes up to about {needed} tokens")
        assert f"engines.e.max_tokens is {max_tokens}" in text


@pytest.mark.parametrize(("max_tokens", "needed"), [(256, "a list of tasks"), (400, "a list of tasks"), (500, None)])
def test_a_list_of_tasks_needs_room_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, max_tokens: int, needed: str | None
) -> None:
    how = Synthesis.model_validate({"engine": "e", "prompt": "brainstorm"})
    engine = openai_engine(NOWHERE, max_tokens=max_tokens)
    synthesise_step("synthesise-asked", "asked", ENTRY, how, engine, "e", Budget(), 0, None, Assets(str(tmp_path)), 1000)
    said = warnings(caplog)
    assert [text.split(": ")[1].split(" to the")[0] for text in said] == ([] if needed is None else [needed])


def test_a_server_that_is_told_its_limit_in_other_words_is_not_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = openai_engine(NOWHERE, extra_body={"max_tokens": None, "max_completion_tokens": 900})
    step(tmp_path, write_documents(tmp_path, 2), engine, prompt="documents")
    assert not warnings(caplog)


def cut_off(text: str) -> bytes:
    message = {"index": 0, "finish_reason": "length", "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
    answer: dict[str, Any] = {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [message],
        "usage": usage,
    }
    return json.dumps(answer).encode()


@pytest.mark.parametrize(("cut", "told"), [(0, False), (2, False), (5, True)])
def test_a_step_with_many_answers_that_were_cut_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, cut: int, told: bool
) -> None:
    """Of 20 answers, some are cut; a tenth of them is let pass."""
    left = [cut_off("1. what is it\n2. what is")] * cut
    documents = write_documents(tmp_path, 20)
    with serving(lambda number, body: Fault(body=left.pop()) if left else None) as server:
        made = step(tmp_path, documents, openai_engine(server, concurrency=1), personas_per_document=1)
        output = run_step(made, str(tmp_path))
    assert output.report.notes["requests"] == 20
    assert warnings(caplog) == [
        "synthesise-asked: 25 % of the answers with texts (5 of 20) were cut off at 256 tokens, and what was cut is lost. Raise "
        "engines.e.max_tokens; all of its answers are asked for anew then."
    ] * told  # fmt: skip


@pytest.mark.parametrize("name", ["domain.yaml", "quickstart.yaml"])
def test_recipes_of_ours_have_room_for_what_they_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    (tmp_path / "one.txt").write_text("A text of one's own.")
    monkeypatch.setenv("DATAKIT_DOCUMENTS", str(tmp_path))
    made = load_model(str(MIXTURES / name), Recipe)
    assert made.engines
    plan(made.model_copy(update={"cache": str(tmp_path / "cache"), "output": str(tmp_path / "out")}))
    assert not warnings(caplog)
