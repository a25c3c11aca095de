"""A recipe is read whole or refused with the place of everything that is wrong with it."""

from __future__ import annotations

import json
import pickle
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datakit.errors import UserError
from datakit.recipe import MinHashDedup, OpenAIEngine, Recipe, Secret, deciding, resolved
from datakit.recipe_file import json_schema, load_model, parse

MIXTURES = Path(__file__).parent.parent / "mixtures"

GOOD = """\
name: demo
categories:
  pairs:
    define: {task: retrieval}
    sources:
      - type: files
        path: data.jsonl
        columns: {query: q, positive: p}
"""


def load(tmp_path: Path, text: str) -> Recipe:
    file = tmp_path / "mixture.yaml"
    file.write_text(text)
    return load_model(str(file), Recipe)


def refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(UserError) as error:
        load(tmp_path, text)
    return str(error.value).replace(str(tmp_path), "")


@pytest.mark.parametrize(
    ("addition", "expected"),
    [
        ("sed: 3\n", "/mixture.yaml:9: sed: unknown key 'sed'. Did you mean 'seed'? Allowed: name, "),
        ("seed: x\n", "/mixture.yaml:9: seed: found 'x'; allowed: a valid integer"),
        ("seed: 1\nseed: 2\n", "/mixture.yaml:10: seed: the name 'seed' stands here twice (first in line 9)"),
        ("mixture: {temperature: 0}\n", "/mixture.yaml:9: mixture.temperature: found '0'; allowed: greater than 0"),
        ("filters:\n  - type: lenght\n", "/mixture.yaml:10: filters.0.type: found 'lenght'. Did you mean 'length'? Allowed: length, "),
        ("filters:\n  - {query: [1, 2]}\n", "/mixture.yaml:10: filters.0: the key 'type' is missing"),
        ("filters:\n  - type: length\n    qery: [1, 2]\n", "/mixture.yaml:11: filters.0.qery: unknown key 'qery'. Did you mean 'query'?"),
        ("filters:\n  - {type: round_trip, encoder: e5}\n", "/mixture.yaml:10: filters.0.encoder: is 'e5', and 'encoders' has no"),
        ("mixture: {caps: {pears: 3}}\n", "mixture.caps: names 'pears', which is no category (there are: pairs)"),
        ("cache: ${NOT_SET_ANYWHERE}/x\n", "/mixture.yaml:9: cache: the environment variable NOT_SET_ANYWHERE is not set"),
        ("filters:\n  - {type: length, query: [1, 2, 3]}\n", "filters.0.query: found a list of 3; allowed: at most 2"),
        ("filters:\n  - {type: length, query: [1]}\n", "filters.0.query: item 2 is missing"),
        ("filters:\n  - {type: language, allowed: []}\n", "filters.0.allowed: found a list of 0; allowed: at least 1"),
        ("seed: 1e30\n", "seed: found '1e+30'; allowed: a smaller whole number"),
        ("cache: {a: ${HERE}/b}\n", "Put what has a ${VARIABLE} into quotes"),
        ("seed: [1\n", "is not valid YAML"),
        ("seed: 1\rseeds: 2\rseeds: [1\r", "/mixture.yaml:12:1: this is not valid YAML"),
        ("name: 'a\u2028b'\nseed: [1", "is not valid YAML"),
        ("# \x85# \u2029cache: {a: ${HERE}/b}", "Put what has a ${VARIABLE} into quotes"),
        ("  a: {sources: {type: files}}\n", "a.sources: found a mapping; allowed: a valid list, or public"),
        ("seed: !!python/object/apply:os.system [ls]\n", "is not valid YAML"),
    ],
)  # fmt: skip
def test_every_mistake_is_named_with_file_line_key_and_what_is_allowed(tmp_path: Path, addition: str, expected: str) -> None:
    assert expected in refusal(tmp_path, GOOD + addition)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("path:", "pth:", ["categories.pairs.sources.0: the key 'path' is missing", "unknown key 'pth'. Did you mean 'path'?"]),
        ("columns:", "limit: 0\n        columns:", ["categories.pairs.sources.0.limit: found '0'; allowed: greater than"]),
    ],
)  # fmt: skip
def test_a_mistake_inside_a_source_is_told_and_not_that_the_list_is_no_word(
    tmp_path: Path, old: str, new: str, expected: list[str]
) -> None:
    lines = refusal(tmp_path, GOOD.replace(old, new)).splitlines()
    assert len(lines) == len(expected)
    assert all(sentence in line for sentence, line in zip(expected, lines, strict=True))


def test_a_language_is_a_code(tmp_path: Path) -> None:
    for code in ("en", "zh-Hant-TW", "pt_BR", "arz"):
        assert load(tmp_path, GOOD.replace("define:", f"language: {code}\n    define:")).categories["pairs"].language == code
    said = refusal(tmp_path, GOOD.replace("define:", "language: English\n    define:"))
    assert "categories.pairs.language: found 'English'; allowed: a BCP 47 code, such as en" in said


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    lines = refusal(tmp_path, "nam: x\n" + GOOD + "sed: 3\nshard_rows: 0\n").splitlines()
    assert [line.split(":")[1] for line in lines] == ["1", "10", "11"]


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_model(str(tmp_path / "no.yaml"), Recipe)
    with pytest.raises(UserError, match="is a folder"):
        load_model(str(tmp_path), Recipe)


def test_words_that_old_yaml_reads_as_booleans_stay_words() -> None:
    value, _ = parse("on: no\nrate: 1e-5\nday: 2024-01-01\nnone: ~\nyes: true\ncode: 012\n", "x")
    assert value == {"on": "no", "rate": 1e-5, "day": "2024-01-01", "none": None, "yes": True, "code": "012"}


def test_a_source_of_documents_needs_synthesis(tmp_path: Path) -> None:
    assert "a source of documents needs 'synthesis'" in refusal(
        tmp_path, GOOD.replace("{query: q, positive: p}", "{document: t}")
    )


def test_variables_are_taken_from_the_environment_for_paths_and_secrets_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHERE", "/data")
    monkeypatch.setenv("KEY", "hunter2")
    text = GOOD.replace("data.jsonl", "${WHERE}/a.jsonl") + (
        "description: costs ${KEY}\nengines:\n  llm: {type: openai, model: m, api_key: '${KEY}'}\n"
    )
    recipe = load(tmp_path, text)
    source, engine = recipe.categories["pairs"].sources[0], recipe.engines["llm"]
    assert source.path == "/data/a.jsonl"  # type: ignore[union-attr]
    assert isinstance(engine, OpenAIEngine)
    assert engine.api_key.reveal() == "hunter2"
    assert recipe.description == "costs ${KEY}"
    written = json.dumps(resolved(recipe)) + repr(recipe) + str(recipe) + json.dumps(deciding(recipe))
    assert "hunter2" not in written
    assert "${WHERE}/a.jsonl" in written


def test_a_secret_that_stands_in_the_recipe_is_never_shown() -> None:
    assert "sk-123" not in repr(Secret("sk-123"))
    assert "sk-123" not in OpenAIEngine(type="openai", model="m", api_key="sk-123").model_dump_json()


def test_a_recipe_travels_to_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHERE", "/data")
    recipe = load(tmp_path, GOOD.replace("data.jsonl", "${WHERE}/a.jsonl"))
    assert resolved(pickle.loads(pickle.dumps(recipe))) == resolved(recipe)


@given(threshold=st.floats(0.01, 1), other=st.floats(0.01, 1))
def test_parameters_that_differ_have_different_deciding_values(threshold: float, other: float) -> None:
    a, b = MinHashDedup(type="minhash", threshold=threshold), MinHashDedup(type="minhash", threshold=other)
    assert (deciding(a) == deciding(b)) == (threshold == other)


def test_where_and_how_fast_a_request_is_sent_does_not_decide_its_answer() -> None:
    near = OpenAIEngine(type="openai", model="m", base_url="http://a", concurrency=1, timeout=1, attempts=1)
    far = OpenAIEngine(type="openai", model="m", base_url="http://b", concurrency=9, timeout=9, attempts=9)
    assert deciding(near) == deciding(far)
    assert deciding(near) != deciding(far.model_copy(update={"temperature": 0.1}))


SERVER = "type: openai, model: m, base_url"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://h/v1?key=hush", "found a query ('?') in an address, which would be published with the recipe; allowed: the address"),
        ("https://me:hush@h/v1", "found a user or a password ('@') in an address, which would be published"),
        ("https://me:hush@h:port/v1", "found a user or a password ('@')"),
        ("ftp://h/v1", "found 'ftp://h/v1'; allowed: an address such as http://127.0.0.1:8000/v1"),
        ("h:8000/v1", "allowed: an address such as"),
        ("http://h:port/v1", "allowed: an address such as"),
        ("http:///v1", "allowed: an address such as"),
        ("http://h/v1#a", "allowed: an address such as"),
        ("http://h/a b", "allowed: an address such as"),
    ],
)  # fmt: skip
def test_a_base_url_is_an_address_and_holds_no_secret(tmp_path: Path, url: str, said: str) -> None:
    text = refusal(tmp_path, f"{GOOD}engines:\n  llm: {{{SERVER}: '{url}'}}\n")
    assert said in text
    assert text.startswith("/mixture.yaml:10: engines.llm.base_url: ")
    assert "hush" not in text
    for sound in ("https://gateway.example/@team/v1", "http://[::1]:8000/v1", "http://localhost:1"):
        load(tmp_path, f"{GOOD}engines:\n  llm: {{{SERVER}: '{sound}'}}\n")


def test_two_servers_that_would_be_taken_for_one_are_refused(tmp_path: Path) -> None:
    def engines(*options: str) -> str:
        return GOOD + "engines:\n" + "".join(f"  e{number}: {{{SERVER}: {each}}}\n" for number, each in enumerate(options))

    text = refusal(tmp_path, engines("http://a/v1", "http://c/v1, top_p: 0.5", "http://b/v1, concurrency: 3"))
    assert text.startswith("/mixture.yaml:9: engines: 'e0' and 'e2' differ in nothing but 'base_url'")
    assert "Give each a 'revision' of its own" in text
    for told_apart in (
        ("http://a/v1, revision: here", "http://b/v1, revision: there"),
        ("http://a/v1", "http://b/v1, temperature: 0"),
        ("http://a/v1", "http://a/v1/, concurrency: 3"),
    ):
        assert len(load(tmp_path, engines(*told_apart)).engines) == 2


def test_the_schema_in_mixtures_is_the_one_that_the_code_has() -> None:
    written = json.loads((MIXTURES / "mixture.schema.json").read_text())
    assert written == json_schema(Recipe), "run: datakit schema > mixtures/mixture.schema.json"


@pytest.mark.parametrize("name", ["labelled-sets", "quickstart"])
def test_shipped_recipes_are_valid(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATAKIT_REAL_DATA", "/data")
    assert load_model(str(MIXTURES / f"{name}.yaml"), Recipe).name == name


def test_the_starter_that_init_writes_is_valid() -> None:
    assert load_model(str(resources.files("datakit") / "starter.yaml"), Recipe)
