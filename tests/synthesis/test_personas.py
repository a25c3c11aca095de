"""The persona library, files of one's own, and who of them asks."""

from __future__ import annotations

import gzip
import itertools
import json
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from datakit.errors import UserError
from datakit.recipe import Synthesis
from datakit.schema import digest
from datakit.synthesis import personas
from datakit.synthesis.personas import Persona


def library(**options: object) -> list[Persona]:
    return personas.load(Synthesis.model_validate({"engine": "e", **options}))[0]


def crowd(count: int) -> list[Persona]:
    return [Persona.model_construct(name=f"p{number}", description=f"person {number}") for number in range(count)]


def words(text: str) -> set[str]:
    return set("".join(letter if letter.isalnum() else " " for letter in text.lower()).split())


# The library that datakit carries


def test_the_library_has_at_least_220_personas_that_differ() -> None:
    people = library()
    assert len(people) >= 220
    for of in ("name", "description", "style"):
        assert len({getattr(person, of) for person in people}) == len(people)
    assert all(person.style and person.age and person.field and person.locale for person in people)
    for of in ("description", "style"):
        some = [words(getattr(person, of)) for person in people]
        assert max(len(a & b) / len(a | b) for a, b in itertools.combinations(some, 2)) < 0.6


@pytest.mark.parametrize(
    ("of", "kinds", "least", "most"),
    [
        ("expertise", 3, 0.15, 0.45),
        ("register_", 4, 0.15, 0.35),
        ("age", 5, 0.04, 0.65),
        ("field", 20, 0.02, 0.10),
        ("locale", 80, 0.0, 0.08),
    ],
)
def test_the_library_is_spread_widely(of: str, kinds: int, least: float, most: float) -> None:
    people = library()
    counts = Counter(getattr(person, of) for person in people)
    assert len(counts) >= kinds
    assert least <= min(counts.values()) / len(people) <= max(counts.values()) / len(people) <= most


def test_the_library_comes_from_many_languages() -> None:
    languages = Counter(str(person.locale).split("-")[0] for person in library())
    assert len(languages) >= 40
    assert max(languages.values()) <= 0.3 * languages.total()


@pytest.mark.parametrize("of", ["age", "field"])
def test_no_age_and_no_field_says_what_a_person_knows(of: str) -> None:
    people = library()
    groups = {getattr(person, of) for person in people}
    for group in groups:
        levels = {person.expertise for person in people if getattr(person, of) == group}
        assert "expert" in levels, group
        assert len(levels) >= 2, group
        assert len({person.register_ for person in people if getattr(person, of) == group}) >= 3, group


def test_the_first_personas_are_as_they_were() -> None:
    # Recipes with `distinct_personas` keep the answers that they paid for.
    first = library(distinct_personas=40)
    said = [(each.name, each.description, each.expertise, each.register_, each.style) for each in first]
    assert first[0].name == "programming-student"
    assert first[39].name == "quiz-writer"
    assert digest(json.dumps(said)) == "8508712d0b420105f7fdd31c28ff4250"


# Files of one's own


def test_a_file_of_ones_own_is_read_and_errors_name_the_line(tmp_path: Path) -> None:
    path = tmp_path / "people.yaml"
    path.write_text("personas:\n  - {name: a, description: an actor}\n  - {name: b, description: a baker, register: terse}\n")
    assert [person.name for person in library(personas=str(path))] == ["a", "b"]
    path.write_text("personas:\n  - name: a\n    description: an actor\n    register: shouting\n")
    with pytest.raises(UserError, match=r"people.yaml:4: personas.0.register: found 'shouting'"):
        library(personas=str(path))
    path.write_text("personas:\n  - name: a\n    description: an actor\n    locale: English\n")
    with pytest.raises(UserError, match=r"people.yaml:4: personas.0.locale"):
        library(personas=str(path))
    path.write_text("personas:\n  - {name: a, description: an actor}\n  - {name: a, description: a baker}\n")
    with pytest.raises(UserError, match="two personas are called 'a'"):
        library(personas=str(path))


LINES = [
    {"persona": "A Political Analyst specialized in El Salvador's political landscape."},
    {"input persona": "The mother of twins", "synthesized text": "...", "description": "math problem"},
    {"persona": "  IT   auditor\n for hospitals. ", "general domain (top 1 percent)": "Audit"},
    {"persona": "a shepherd"},
]


@pytest.mark.parametrize("name", ["persona.jsonl", "persona.jsonl.gz"])
def test_lines_as_personahub_publishes_them_are_personas(tmp_path: Path, name: str) -> None:
    data = "".join(json.dumps(line) + "\n" for line in LINES).encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    people = library(personas=str(tmp_path / name))
    assert [person.description for person in people] == [
        "a Political Analyst specialized in El Salvador's political landscape",
        "the mother of twins",
        "IT auditor for hospitals",
        "a shepherd",
    ]
    assert all(len(person.name) == 16 and int(person.name, 16) >= 0 for person in people)
    assert people == library(personas=str(tmp_path / name))


def test_a_name_is_that_of_the_description_wherever_it_stands(tmp_path: Path) -> None:
    for name, lines in (("one.jsonl", LINES), ("two.jsonl", LINES[::-1])):
        (tmp_path / name).write_text("\n".join(json.dumps(line) for line in lines))
    one, two = (library(personas=str(tmp_path / name)) for name in ("one.jsonl", "two.jsonl"))
    assert one == two[::-1]


def test_bare_descriptions_get_all_registers(tmp_path: Path) -> None:
    path = tmp_path / "many.jsonl"
    path.write_text("".join(json.dumps({"persona": f"a person of kind {number}"}) + "\n" for number in range(400)))
    counts = Counter(person.register_ for person in library(personas=str(path)))
    assert set(counts) == set(personas.REGISTERS)
    assert min(counts.values()) > 60


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"persona": "A nurse"', "this is not valid JSON"),
        (b"", "this is not valid JSON"),
        (b'["A nurse"]', "found .*Each line is an object such as"),
        (b'{"person": "A nurse"}', r"the member 'persona' \(or 'input persona'\) is missing; found: person"),
        (b'{"persona": " . "}', "persona: found ' . '; a description of a person is needed"),
        (b'{"persona": null}', "persona: found 'None'"),
        (b'{"persona": "caf\xe9"}', "byte 16 of the line is not UTF-8"),
    ],
)
def test_a_bad_line_is_an_error_that_names_it(tmp_path: Path, line: bytes, said: str) -> None:
    path = tmp_path / "people.jsonl"
    path.write_bytes(b'{"persona": "a"}\n{"persona": "b"}\n' + line + b'\n{"persona": "c"}\n')
    with pytest.raises(UserError, match=rf"people\.jsonl:3: {said}"):
        library(personas=str(path))


def test_files_that_are_no_personas_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_bytes(b"")
    with pytest.raises(UserError, match="there is no persona in this file"):
        library(personas=str(tmp_path / "empty.jsonl"))
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"persona": "a"}\n')[:-6])
    with pytest.raises(UserError, match="no whole gzip file"):
        library(personas=str(tmp_path / "cut.jsonl.gz"))
    with pytest.raises(UserError, match=r"missing\.jsonl' does not exist"):
        library(personas=str(tmp_path / "missing.jsonl"))


def test_a_file_that_changed_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "people.jsonl"
    for description in ("a nurse", "a baker"):
        path.write_text(json.dumps({"persona": description}))
        assert [person.description for person in library(personas=str(path), personas_per_document=1)] == [description]


def test_a_line_that_comes_again_is_one_persona_and_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "people.jsonl"
    path.write_text('{"persona": "A nurse."}\n{"persona": "a nurse"}\n{"persona": "A baker"}\n')
    assert [person.description for person in library(personas=str(path))] == ["a nurse", "a baker"]
    assert "1 of 3 lines repeat a persona" in caplog.text


def test_personas_can_be_drawn_by_field() -> None:
    some = library(persona_fields=["health", "care"])
    assert {person.field for person in some} == {"health", "care"}
    assert some == [person for person in library() if person.field in ("health", "care")]
    assert library(persona_fields=["health"], distinct_personas=3) == [each for each in some if each.field == "health"][:3]
    with pytest.raises(UserError, match=r"has the field 'medicine'. There are: agriculture, arts, care"):
        library(persona_fields=["medicine"])


def test_more_personas_than_there_are_is_refused() -> None:
    assert len(library(distinct_personas=5)) == 5
    with pytest.raises(UserError, match="asks for 4 personas for each passage, and there are 3"):
        library(distinct_personas=3, personas_per_document=4)


# Who asks


def uneven(counts: Counter[str], people: int) -> float:
    """Pearson's chi-square of counts against equal use, in standard deviations from what chance gives."""
    expected = counts.total() / people
    chi = sum((count - expected) ** 2 for count in counts.values()) / expected + (people - len(counts)) * expected
    return (chi - (people - 1)) / (2 * (people - 1)) ** 0.5


@pytest.mark.parametrize(
    ("people", "each", "passages"), [(12, 2, 3000), (64, 3, 3000), (65, 3, 3000), (272, 3, 4000), (2000, 2, 20000)]
)
def test_personas_are_drawn_without_replacement_and_all_alike(people: int, each: int, passages: int) -> None:
    some = crowd(people)
    drawn = [[person.name for person in personas.draw(some, each, 7, f"passage {number}")] for number in range(passages)]
    assert all(len(set(names)) == each for names in drawn)
    assert abs(uneven(Counter(name for names in drawn for name in names), people)) < 5
    # Also in the first place, and for the passages of one small category.
    assert uneven(Counter(names[0] for names in drawn), people) < 5
    assert drawn[:50] == [[one.name for one in personas.draw(some, each, 7, f"passage {number}")] for number in range(50)]
    assert drawn[:50] != [[one.name for one in personas.draw(some, each, 8, f"passage {number}")] for number in range(50)]


def test_the_library_of_datakit_is_used_alike_in_each_field_and_register() -> None:
    people = library()
    drawn = Counter(person for number in range(6000) for person in map(id, personas.draw(people, 2, 3, str(number))))
    for of in ("field", "register_", "age", "expertise"):
        for kind, members in Counter(getattr(person, of) for person in people).items():
            used = sum(drawn[id(person)] for person in people if getattr(person, of) == kind)
            assert 0.8 < used / drawn.total() / (members / len(people)) < 1.25, (of, kind)


@pytest.mark.parametrize("people", [40, 64, 66, 300])
def test_a_persona_that_is_added_changes_few_draws(people: int) -> None:
    some = crowd(people)
    before = [[one.name for one in personas.draw(some[:-1], 2, 0, str(number))] for number in range(2000)]
    after = [[one.name for one in personas.draw(some, 2, 0, str(number))] for number in range(2000)]
    changed = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
    assert all(some[-1].name in b for _, b in changed)
    assert len(changed) == sum(some[-1].name in names for names in after) > 0
    assert len(changed) < 2.0 * 2000 * 2 / people


def test_a_small_library_draws_as_it_always_did() -> None:
    drawn = [person.name for number in range(6) for person in personas.draw(library(distinct_personas=12), 2, 17, str(number))]
    assert digest(*drawn) == "7bf615ff9a5742edec866cb3eda083b3"


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(0, 2**64 - 1))
def test_a_place_stays_or_moves_to_the_new_one(places: int, key: int) -> None:
    before, after = personas._place(key, places), personas._place(key, places + 1)
    assert 0 <= before < places
    assert after in (before, places)


def test_all_of_a_library_can_be_asked_for_each_passage() -> None:
    some = crowd(70)
    assert {person.name for person in personas.draw(some, 70, 0, "p")} == {person.name for person in some}


def test_the_time_of_a_draw_does_not_grow_with_the_library() -> None:
    def seconds(people: int) -> float:
        some = crowd(people)
        best = float("inf")
        for _ in range(5):
            started = time.perf_counter()
            for number in range(300):
                personas.draw(some, 2, 0, str(number))
            best = min(best, time.perf_counter() - started)
        return best

    assert seconds(200_000) < 5 * seconds(100)


def test_the_file_is_plain_yaml_for_others() -> None:
    path = personas.library_path(Synthesis.model_validate({"engine": "e"}))
    assert len(yaml.safe_load(Path(path).read_text())["personas"]) == len(library())
