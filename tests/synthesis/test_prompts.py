"""Prompts: what is said to a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from datakit.errors import UserError
from datakit.recipe import Shares, Writing
from datakit.schema import digest
from datakit.synthesis import prompts, shares
from datakit.synthesis.engines import Conversation
from datakit.synthesis.leaks import nonce
from datakit.synthesis.parsing import parse
from datakit.synthesis.passages import Passage
from datakit.synthesis.personas import Persona
from datakit.synthesis.prompts import BUNDLED, Prompt, Wish, ending, load, schema

PERSONA = Persona(name="p", description="a pilot", register="terse", style="short")
WRITING = Writing(style="the style of it", positive="what it is", labels=["warm", "cold"])
PASSAGE = Passage("id", "Water boils at {{ 7 * 7 }} degrees.", "d", "On water", "de", "s")
HEAD = "---\nname: mine\nversion: 3\nforms: {short: a short one}\n---\n"


def prompt_file(folder: Path, body: str, head: str = HEAD) -> str:
    path = folder / "mine.jinja"
    path.write_text(head + body)
    return str(path)


def said(prompt: Prompt, structured: str = "lines", persona: Persona = PERSONA, queries: int = 4, **wish: Any) -> Conversation:
    forms = tuple(list(prompt.head.forms)[: prompt.head.asked(queries)])
    asked = Wish(PASSAGE, persona if prompt.head.persona else None, wish.pop("forms", forms), **wish)
    return prompt.conversation(asked, WRITING, "Questions about water.", 0, structured)


@pytest.mark.parametrize("name", BUNDLED)
@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("structured", ["lines", "json_schema"])
def test_a_bundled_prompt_can_be_asked_and_its_examples_answer_as_they_should(name: str, small: bool, structured: str) -> None:
    prompt = load(name, small)
    assert prompt.label == f"{name}{'-small' if small else ''}@1"
    conversation = said(prompt, structured, language="fr")
    roles = [message.role for message in conversation.messages]
    assert roles == ["system", *["user", "assistant"] * (len(roles) // 2 - 1), "user"]
    assert (len(roles) > 2) == small, "small models follow examples"
    last = conversation.messages[-1].content
    assert PASSAGE.text in last, "a passage is text, never a template"
    assert prompt.head.writes == "labels" or "French" in last
    if prompt.head.persona:
        assert "a pilot" in "".join(message.content for message in conversation.messages)
    if not small:
        assert prompt.head.writes == "labels" or name == "translations" or "the style of it" in last
        assert (nonce(0, PASSAGE.text) in last) == (name != "brainstorm"), "what was read stands in a fence"
    for message in conversation.messages:
        if message.role == "assistant":
            parsed = parse(message.content, conversation.queries, conversation.fields)
            assert [item.reason for item in parsed.items] == [None] * conversation.queries
            if structured == "lines":
                assert ending(conversation).search(message.content + "\n")
                assert not ending(conversation).search(message.content)


@pytest.mark.parametrize("small", [False, True])
def test_tasks_are_thought_of_before_anything_is_written_for_them(small: bool) -> None:
    prompt = load("brainstorm", small)
    wish = Wish(PASSAGE, PERSONA, ("short-long",), round=2)
    conversation = prompt.task_conversation(wish, WRITING, "Questions about water.", "lines")
    last = conversation.messages[-1].content
    assert conversation.queries == prompt.head.tasks
    assert "Questions about water." in last
    assert "2" in last.split(str(prompt.head.tasks), 1)[1], "a second list is not the first one"
    for message in conversation.messages:
        if message.role == "assistant":
            assert len(parse(message.content, prompt.head.tasks).items) == prompt.head.tasks


def test_the_small_prompt_for_questions_says_what_it_said_when_its_questions_were_judged() -> None:
    prompt = load("questions", small=True)
    weights = shares.weights(prompt.head.forms, Shares(), "questions")
    everything = []
    for register in ("plain", "formal", "casual", "terse"):
        for n in range(50):
            facts = {"name": f"p{n}", "description": f"somebody {n}", "register": register, "style": "short"}
            persona = Persona.model_validate(facts)
            passage = Passage(f"id{n}", f"Text {n} says something.", "d", "On water" if n % 2 else None, "en", "s")
            forms = shares.draw_forms(weights, 3 + n % 3, n, passage.id, persona.name)
            everything.append(prompt.conversation(Wish(passage, persona, tuple(forms)), Writing(), "", n, "lines").as_dicts())
    assert digest(json.dumps(everything)) == "fa605433b9b284e00f0d13811d5087d6"


def test_the_example_of_a_personas_register_goes_before_in_the_form_of_an_answer() -> None:
    prompt = load("questions", small=True)
    answers = {}
    for register in ("plain", "formal", "casual", "terse"):
        persona = Persona.model_validate({"name": "p", "description": "d", "register": register})
        conversation = said(prompt, persona=persona, queries=3)
        assert [message.role for message in conversation.messages] == ["system", "user", "assistant", "user"]
        answers[register] = conversation.messages[2].content
        assert answers[register].startswith("1. ")
        assert answers[register].count("\n") == 2
    assert len(set(answers.values())) == 4


def test_an_example_is_in_its_own_language_and_has_each_form_once() -> None:
    prompt = load("questions", small=True)
    conversation = said(prompt, forms=("question", "question", "phrase", "question"), language="fr")
    _, asked, answer, last = (message.content for message in conversation.messages)
    assert "French" not in asked
    assert "Write 2 questions" in asked
    assert [line[:2] for line in answer.splitlines()] == ["1.", "2."]
    assert "Write 4 questions in French" in last


def test_an_example_for_a_form_is_shown_with_that_form() -> None:
    prompt = load("brainstorm", small=True)
    short, long = (said(prompt, forms=(form,)).messages[2].content for form in ("short-short", "short-long"))
    assert short != long
    assert [len(said(prompt, forms=(form,)).messages) for form in ("short-short", "short-long")] == [4, 4]


def test_what_stands_in_every_request_is_known_as_instruction() -> None:
    assert "you write search queries for a data set that trains text retrieval" in load("questions").instructions
    assert "never mention the fence" in load("questions").instructions, "also what is included"
    assert "that this text answers" in load("questions", small=True).instructions
    assert all(len(line.split()) >= 4 for name in BUNDLED for line in load(name).instructions), "less may come by chance"


def test_the_schema_of_an_answer_is_that_of_its_fields() -> None:
    labels = schema(said(load("labels")))
    assert labels["properties"]["label"]["enum"] == ["warm", "cold"]
    pairs = schema(said(load("brainstorm"), forms=("short-long",)))
    assert list(pairs["properties"]) == pairs["required"] == ["query", "positive", "negative"]
    queries = schema(said(load("questions")))["properties"]["queries"]
    assert (queries["minItems"], queries["maxItems"]) == (4, 4)


def test_a_name_that_is_not_given_is_an_error_and_not_nothing(tmp_path: Path) -> None:
    path = prompt_file(tmp_path, "{% block system %}x{% endblock %}{% block user %}{{ pasage }}{% endblock %}")
    with pytest.raises(UserError, match=r"mine.jinja: the block 'user' cannot be filled in: 'pasage' is undefined"):
        said(load(path), forms=("short",))


def test_a_template_cannot_reach_out(tmp_path: Path) -> None:
    body = "{% block system %}x{% endblock %}{% block user %}{{ ''.__class__.__mro__ }}{{ passage }}{% endblock %}"
    with pytest.raises(UserError, match="unsafe"):
        said(load(prompt_file(tmp_path, body)), forms=("short",))


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
        ("x", "---\nname: m\nversion: 1\nwrites: pairs\nforms: {a: b}\n---\n", "writes pairs has 'query' among its fields"),
        ("x", "---\nname: m\nversion: 1\nwrites: graded\nforms: {a: b}\n---\n", "has a score from 0 to 1"),
        ("x", "---\nname: m\nversion: 1\nwrites: labels\nforms: {a: b}\n---\n", "has 'label' among its fields"),
    ],
)
def test_a_file_that_is_no_prompt_is_refused_with_its_place(tmp_path: Path, body: str, head: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load(prompt_file(tmp_path, body, head))


def test_a_prompt_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(UserError, match=r"'question' does not exist.*questions, claims"):
        load("question")


def test_the_digest_is_that_of_the_file(tmp_path: Path) -> None:
    body = "{% block system %}x{% endblock %}{% block user %}y{% endblock %}"
    first = load(prompt_file(tmp_path, body)).digest
    assert load(prompt_file(tmp_path, body + " ")).digest != first
    assert load(prompt_file(tmp_path, body)).digest == first
    assert prompts.load(prompt_file(tmp_path, body)).label == "mine@3"


def test_the_digest_covers_what_is_included(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = '{% block system %}{% include "_rules.jinja" %}{% endblock %}{% block user %}y{% endblock %}'
    first = load(prompt_file(tmp_path, body)).digest
    monkeypatch.setattr(prompts, "_shared", lambda name: "other rules")
    assert load(prompt_file(tmp_path, body)).digest != first


def test_a_prompt_includes_no_file_of_the_machine(tmp_path: Path) -> None:
    (tmp_path / "_own.jinja").write_text("secret")
    for name in (str(tmp_path / "_own.jinja"), "_own.jinja", "../prompts.py", "questions.jinja"):
        body = f'{{% block system %}}{{% include "{name}" %}}{{% endblock %}}{{% block user %}}y{{% endblock %}}'
        with pytest.raises(UserError, match="cannot be filled in"):
            said(load(prompt_file(tmp_path, body)), forms=("short",))


def test_small_model_is_for_prompts_of_datakit(tmp_path: Path) -> None:
    path = prompt_file(tmp_path, "{% block system %}x{% endblock %}{% block user %}y{% endblock %}")
    with pytest.raises(UserError, match="is a file"):
        load(path, small=True)
