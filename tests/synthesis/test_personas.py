"""The persona library, and who of it asks."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import pytest

from datakit.errors import UserError
from datakit.recipe import Synthesis
from datakit.synthesis import personas


def library(**options: object) -> list[personas.Persona]:
    return personas.load(Synthesis.model_validate({"engine": "e", **options}))[0]


def test_the_library_has_at_least_thirty_personas_that_differ() -> None:
    people = library()
    assert len(people) >= 30
    assert len({person.description for person in people}) == len({person.style for person in people}) == len(people)
    assert {person.register_ for person in people} == {"plain", "formal", "casual", "terse"}
    assert {person.expertise for person in people} == {"none", "some", "expert"}
    words = [set(person.description.split()) for person in people]
    assert max(len(a & b) / len(a | b) for a, b in itertools.combinations(words, 2)) < 0.5


def test_personas_are_drawn_without_replacement_and_all_alike() -> None:
    people = library()
    drawn = [personas.draw(people, 3, 7, f"passage {number}") for number in range(2000)]
    assert all(len({person.name for person in some}) == 3 for some in drawn)
    counts = Counter(person.name for some in drawn for person in some)
    mean = 2000 * 3 / len(people)
    assert set(counts) == {person.name for person in people}
    assert 0.7 * mean < min(counts.values()) <= max(counts.values()) < 1.3 * mean
    assert drawn[:50] == [personas.draw(people, 3, 7, f"passage {number}") for number in range(50)]
    assert drawn[:50] != [personas.draw(people, 3, 8, f"passage {number}") for number in range(50)]


def test_a_persona_that_is_added_changes_few_draws() -> None:
    people = library()
    before = [personas.draw(people[:-1], 2, 0, str(number)) for number in range(1000)]
    after = [personas.draw(people, 2, 0, str(number)) for number in range(1000)]
    changed = sum(a != b for a, b in zip(before, after, strict=True))
    assert changed == sum(people[-1] in some for some in after)
    assert changed < 2.0 * 1000 * 2 / len(people)


def test_a_file_of_ones_own_is_read_and_errors_name_the_line(tmp_path: Path) -> None:
    path = tmp_path / "people.yaml"
    path.write_text("personas:\n  - {name: a, description: an actor}\n  - {name: b, description: a baker, register: terse}\n")
    assert [person.name for person in library(personas=str(path))] == ["a", "b"]
    path.write_text("personas:\n  - name: a\n    description: an actor\n    register: shouting\n")
    with pytest.raises(UserError, match=r"people.yaml:4: personas.0.register: found 'shouting'"):
        library(personas=str(path))
    path.write_text("personas:\n  - {name: a, description: an actor}\n  - {name: a, description: a baker}\n")
    with pytest.raises(UserError, match="two personas are called 'a'"):
        library(personas=str(path))


def test_more_personas_than_there_are_is_refused() -> None:
    assert len(library(distinct_personas=5)) == 5
    with pytest.raises(UserError, match="asks for 4 personas for each passage, and there are 3"):
        library(distinct_personas=3, personas_per_document=4)
