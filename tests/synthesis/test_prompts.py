"""Prompts: what is said to a model."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from datakit.errors import UserError
from datakit.synthesis import prompts
from datakit.synthesis.passages import Passage
from datakit.synthesis.personas import Persona
from datakit.synthesis.prompts import BUNDLED, load

PERSONA = Persona(name="p", description="a pilot", register="terse", style="short")
PASSAGE = Passage("id", "Water boils at {{ 7 * 7 }} degrees.", "d", "On water", "de", "s")
HEAD = "---\nname: mine\nversion: 3\nforms: {short: a short one}\n---\n"


def prompt_file(folder: Path, body: str, head: str = HEAD) -> str:
    path = folder / "mine.jinja"
    path.write_text(head + body)
    return str(path)


@pytest.mark.parametrize("name", list(BUNDLED))
@pytest.mark.parametrize("structured", ["lines", "json_schema"])
def test_a_bundled_prompt_says_who_asks_how_many_and_about_what(name: str, structured: str) -> None:
    prompt = load(name)
    conversation = prompt.conversation(PASSAGE, PERSONA, 4, 0, structured)
    said = "\n".join(message.content for message in conversation.messages)
    assert "a pilot" in said
    assert "4" in conversation.messages[-1].content
    assert PASSAGE.text in conversation.messages[-1].content, "a passage is text, never a template"
    assert [message.role for message in conversation.messages][:1] == ["system"]
    assert conversation.messages[-1].role == "user"
    assert prompt.label == f"{name}@1"


def test_the_example_of_a_personas_register_goes_before_in_the_form_of_an_answer() -> None:
    prompt = load("questions-small")
    answers = {}
    for register in ("plain", "formal", "casual", "terse"):
        persona = Persona.model_validate({"name": "p", "description": "d", "register": register})
        conversation = prompt.conversation(PASSAGE, persona, 3, 0, "lines")
        assert [message.role for message in conversation.messages] == ["system", "user", "assistant", "user"]
        answers[register] = conversation.messages[2].content
        assert answers[register].startswith("1. ")
        assert answers[register].count("\n") == 2
    assert len(set(answers.values())) == 4


def test_forms_come_once_each_before_any_comes_again_and_all_are_used_alike() -> None:
    prompt = load("questions")
    assert sorted(prompt.forms(5, 0, "x", "p")) == sorted(prompt.head.forms)
    drawn = [prompt.forms(3, 0, str(number), "p") for number in range(1000)]
    assert all(len(set(forms)) == 3 for forms in drawn)
    counts = Counter(form for forms in drawn for form in forms)
    assert all(500 < count < 700 for count in counts.values())


def test_a_name_that_is_not_given_is_an_error_and_not_nothing(tmp_path: Path) -> None:
    path = prompt_file(tmp_path, "{% block system %}x{% endblock %}{% block user %}{{ pasage }}{% endblock %}")
    with pytest.raises(UserError, match=r"mine.jinja: the block 'user' cannot be filled in: 'pasage' is undefined"):
        load(path).conversation(PASSAGE, PERSONA, 3, 0, "lines")


def test_a_template_cannot_reach_out(tmp_path: Path) -> None:
    body = "{% block system %}x{% endblock %}{% block user %}{{ ''.__class__.__mro__ }}{{ passage }}{% endblock %}"
    with pytest.raises(UserError, match="unsafe"):
        load(prompt_file(tmp_path, body)).conversation(PASSAGE, PERSONA, 3, 0, "lines")


@pytest.mark.parametrize(
    ("body", "head", "said"),
    [
        ("{% block user %}x{% endblock %}", HEAD, "the block 'system' is missing"),
        ("{% block system %}x{% endblock %}\n{% if %}", HEAD, r"mine.jinja:7: this is not a valid Jinja template"),
        ("x", "", "a prompt begins with a head"),
        ("x", "---\nname: mine\nforms: {a: b}\n---\n", "the head is wrong at 'version'"),
        ("x", "---\nname: [\n---\n", "the head is not valid YAML"),
        (
            "x",
            "---\nname: m\nversion: 1\nforms: {a: b}\nexamples: [{register: plain, passage: p, queries: {}}]\n---\n",
            "the example for 'plain' has no query of the form 'a'",
        ),
    ],
)
def test_a_file_that_is_no_prompt_is_refused_with_its_place(tmp_path: Path, body: str, head: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load(prompt_file(tmp_path, body, head))


def test_a_prompt_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(UserError, match=r"'question' does not exist.*questions, questions-small"):
        load("question")


def test_the_digest_is_that_of_the_file(tmp_path: Path) -> None:
    body = "{% block system %}x{% endblock %}{% block user %}y{% endblock %}"
    first = load(prompt_file(tmp_path, body)).digest
    assert load(prompt_file(tmp_path, body + " ")).digest != first
    assert load(prompt_file(tmp_path, body)).digest == first
    assert prompts.load(prompt_file(tmp_path, body)).label == "mine@3"
