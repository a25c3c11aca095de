"""Who asks: a library of personas, and who of them asks about a passage."""

from __future__ import annotations

import functools
import gzip
import json
import logging
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Literal, Self, get_args

from pydantic import Field, model_validator

from datakit import recipe_file, storage
from datakit.errors import UserError
from datakit.recipe import Model, Register, Synthesis
from datakit.schema import digest

log = logging.getLogger(__name__)

REGISTERS: tuple[Register, ...] = get_args(Register)

# A file of personas with one of these endings is JSON Lines; any other is YAML.
LINES = (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")
# What a line calls its persona: PersonaHub's lists, and the personas beside its instructions.
MEMBERS = ("persona", "input persona")

# Up to so many personas, each draws a number for each passage. Beyond, that would take longer than to write the prompt.
FEW = 64


class Persona(Model):
    """Somebody who asks. `description` completes "questions that ... would ask"."""

    name: str = Field(min_length=1)
    description: str = Field(min_length=1)
    expertise: Literal["none", "some", "expert"] = "some"
    register_: Register = Field("plain", alias="register")
    age: Literal["child", "teen", "young", "adult", "older"] | None = None
    field: str | None = Field(
        None, min_length=1, description="The walk of life, such as health; a recipe's persona_fields draw by it."
    )
    locale: str | None = Field(
        None,
        pattern=r"^[a-z]{2,3}(-[A-Z][a-z]{3})?(-([A-Z]{2}|[0-9]{3}))?$",
        description="BCP 47: where the person comes from. It does not decide the language that is written.",
    )
    style: str = ""


class Library(Model):
    """A YAML file of personas."""

    personas: list[Persona] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        seen: set[str] = set()
        for persona in self.personas:
            if persona.name in seen:
                raise ValueError(f"two personas are called '{persona.name}'; each needs a name of its own")
            seen.add(persona.name)
        return self


def library_path(synthesis: Synthesis) -> str:
    """The file of personas that a recipe names, else the one of datakit."""
    return synthesis.personas or str(resources.files(__package__) / "personas.yaml")


def load(synthesis: Synthesis) -> tuple[list[Persona], str]:
    """The personas to draw from, and the digest of their file. Raises UserError where the file is wrong or has too few."""
    path = library_path(synthesis)
    try:
        found = storage.file_digest(path)
    except FileNotFoundError as error:
        raise UserError(f"The file '{path}' does not exist.") from error
    except IsADirectoryError as error:
        raise UserError(f"'{path}' is a folder; a file of personas is needed here.") from error
    everybody = _read(path, found)
    personas = _of_fields(everybody, synthesis.persona_fields, path)[: synthesis.distinct_personas]
    if len(personas) < synthesis.personas_per_document:
        raise UserError(
            f"The recipe asks for {synthesis.personas_per_document} personas for each passage, and there are {len(personas)} to "
            f"draw from ('{path}'). Lower personas_per_document, raise distinct_personas, or add personas."
        )
    return list(personas), found


@functools.lru_cache(maxsize=2)
def _read(path: str, _digest: str) -> Sequence[Persona]:
    """Everybody in a file. The same for the same bytes, so that the many categories of a recipe read it once."""
    if path.lower().endswith(LINES):
        return _read_lines(path)
    return recipe_file.load_model(path, Library).personas


def _of_fields(personas: Sequence[Persona], fields: Sequence[str], path: str) -> Sequence[Persona]:
    if not fields:
        return personas
    known = Counter(persona.field for persona in personas if persona.field)
    if wrong := [field for field in fields if field not in known]:
        allowed = ", ".join(sorted(known)) or "none, for no persona there has a 'field'"
        raise UserError(f"persona_fields: no persona in '{path}' has the field '{wrong[0]}'. There are: {allowed}.")
    return [persona for persona in personas if persona.field in fields]


def _read_lines(path: str) -> list[Persona]:
    """The personas of a JSON Lines file, one a line, which has a description in `persona` (or `input persona`) and nothing more.

    The name is a digest of the description, and so is the register, so that a library of bare descriptions has all four. Other
    members of a line are not read. A description that comes again is the same persona.
    """
    people: dict[str, Persona] = {}
    number = 0
    for number, line in enumerate(_lines(path), start=1):
        description = _description(line, f"{path}:{number}")
        name = digest("persona", description, size=8)
        register = REGISTERS[int(name[-4:], 16) % len(REGISTERS)]
        people.setdefault(name, Persona(name=name, description=description, register=register))
    if not people:
        raise UserError(f"{path}: there is no persona in this file. Each line is an object such as {_EXAMPLE}.")
    if number > len(people):
        log.warning(
            "%s: %d of %d lines repeat a persona that came before; each is used once.", path, number - len(people), number
        )
    return list(people.values())


_EXAMPLE = '{"persona": "A nurse who works at night."}'


def _lines(path: str) -> Iterable[bytes]:
    data = storage.read_bytes(path)
    if path.lower().endswith(".gz"):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{path}: this is no whole gzip file ({error}). Copy it again.") from error
    return data.removesuffix(b"\n").split(b"\n") if data else []


def _description(line: bytes, where: str) -> str:
    """The description on a line, as a part of a sentence: "A nurse who works at night." becomes "a nurse who works at night"."""
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: byte {error.start} of the line is not UTF-8. Save the file as UTF-8.") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: this is not valid JSON: {error.msg}. Each line is an object such as {_EXAMPLE}.") from error
    if not isinstance(record, dict):
        raise UserError(f"{where}: found {str(record)[:60]!r}. Each line is an object such as {_EXAMPLE}.")
    member = next((name for name in MEMBERS if name in record), None)
    if member is None:
        found = ", ".join(sorted(record)[:6]) or "nothing"
        raise UserError(f"{where}: the member 'persona' (or 'input persona') is missing; found: {found}.")
    text = record[member]
    description = " ".join(text.split()).rstrip(".") if isinstance(text, str) else ""
    if not description:
        raise UserError(f"{where}: {member}: found {str(text)[:60]!r}; a description of a person is needed.")
    first, space, rest = description.partition(" ")
    # JSON may hold half of a surrogate pair, which no other file can.
    return (f"{first.lower() if first in ('A', 'An', 'The') else first}{space}{rest}").encode("utf-8", "replace").decode()


def draw(personas: Sequence[Persona], count: int, seed: int, passage_id: str) -> list[Persona]:
    """The `count` personas that ask about a passage, without replacement.

    All are used alike, and a persona that is added at the end of the library takes the place of few: with few personas each draws
    a number for each passage, and the lowest ones ask. With many, the passage draws places in the library, so that the time does
    not grow with it.
    """
    if len(personas) <= FEW:
        return sorted(personas, key=lambda persona: digest("persona", str(seed), passage_id, persona.name))[:count]
    chosen: dict[int, None] = {}
    turn = 0
    while len(chosen) < min(count, len(personas)):
        chosen[_place(int(digest("persona", str(seed), passage_id, str(turn), size=8), 16), len(personas))] = None
        turn += 1
    return [personas[place] for place in chosen]


def _place(key: int, places: int) -> int:
    """One of `places` places, all equally likely; when a place is added, a key stays where it is or moves to the new one.

    Jump consistent hash (Lamping and Veach 2014, "A Fast, Minimal Memory, Consistent Hash Algorithm", figure 1): its generator
    and its jumps, which take about log(places) turns.
    """
    place, following = -1, 0
    while following < places:
        place = following
        key = (key * 2862933555777941757 + 1) & 0xFFFFFFFFFFFFFFFF
        following = int((place + 1) * ((1 << 31) / ((key >> 33) + 1)))
    return place
