"""Who asks: a library of personas, and who of them asks about a passage."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from typing import Literal, Self

from pydantic import Field, model_validator

from datakit import recipe_file, storage
from datakit.errors import UserError
from datakit.recipe import Model, Synthesis
from datakit.schema import digest


class Persona(Model):
    """Somebody who asks. `description` completes "questions that ... would ask"."""

    name: str = Field(min_length=1)
    description: str = Field(min_length=1)
    expertise: Literal["none", "some", "expert"] = "some"
    register_: Literal["plain", "formal", "casual", "terse"] = Field("plain", alias="register")
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
    personas = recipe_file.load_model(path, Library).personas[: synthesis.distinct_personas]
    if len(personas) < synthesis.personas_per_document:
        raise UserError(
            f"The recipe asks for {synthesis.personas_per_document} personas for each passage, and there are {len(personas)} to "
            f"draw from ('{path}'). Lower personas_per_document, raise distinct_personas, or add personas."
        )
    return personas, storage.file_digest(path)


def draw(personas: Sequence[Persona], count: int, seed: int, passage_id: str) -> list[Persona]:
    """The `count` personas that ask about a passage, without replacement.

    Each persona draws a number for each passage and the lowest ones ask, so that all are used alike, and a persona that is added
    to the library takes the place of few.
    """
    return sorted(personas, key=lambda persona: digest("persona", str(seed), passage_id, persona.name))[:count]
