"""What a step asks for: who is asked about which seed, in which forms and which language."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from datakit.errors import UserError
from datakit.recipe import AnyEngine, Encoder, Model, OpenAIEngine, Synthesis, VllmEngine, Writing
from datakit.registry import Category
from datakit.schema import digest
from datakit.synthesis import personas, prompts, shares
from datakit.synthesis.engines import Batch, Conversation, Engine
from datakit.synthesis.passages import Passage
from datakit.synthesis.personas import Persona
from datakit.synthesis.prompts import Prompt, Wish
from datakit.synthesis.rows import Asked, Facts

log = logging.getLogger(__name__)

# Tasks that are thought of where the recipe does not say how many.
TASKS = 100


class Synthesising(Model):
    """All that decides what is written."""

    facts: Facts
    synthesis: Synthesis
    engine: AnyEngine
    seed: int
    shard_rows: int
    encoder: Encoder | None = None


@dataclass(frozen=True)
class Material:
    """What requests are made of. `weights` are those of the forms."""

    people: Sequence[Persona]
    people_digest: str
    prompt: Prompt
    weights: Mapping[str, float]

    def per_seed(self, synthesis: Synthesis) -> int:
        """Requests for each seed."""
        return synthesis.personas_per_document if self.prompt.head.persona else 1


def writing(entry: Category, synthesis: Synthesis) -> Writing:
    """How a category is written: as the recipe says, else as the category does."""
    names = Writing.model_fields.keys() & Synthesis.model_fields.keys()
    said = {name: getattr(synthesis, name) for name in names if getattr(synthesis, name) is not None}
    return entry.writing.model_copy(update=said)


def material(synthesis: Synthesis, how: Writing) -> Material:
    """Raises UserError for personas, a prompt or shares that do not fit, and for a prompt that lacks what it needs."""
    prompt = prompts.load(how.prompt, synthesis.small_model)
    if prompt.head.writes == "labels" and len(how.labels) < 2:
        raise UserError(f"The prompt '{how.prompt}' chooses among classes. Give 'synthesis.labels' at least two of them.")
    if prompt.head.needs_languages and not how.languages:
        raise UserError(f"The prompt '{how.prompt}' needs to know the language. Give 'synthesis.languages', such as [de, fr].")
    for name, variable in (("style", "style"), ("positive", "positive"), ("languages", "language"), ("labels", "labels")):
        if getattr(synthesis, name) and variable not in prompt.uses:
            log.warning("synthesis.%s is given, and the prompt '%s' does not use it.", name, prompt.head.name)
    people, people_digest = personas.load(synthesis)
    weights = shares.weights(prompt.head.forms, synthesis.shares, how.prompt)
    return Material(people, people_digest, prompt, weights)


def wishes(parameters: Synthesising, made_of: Material, seed: Passage) -> list[Wish]:
    """What is asked about one seed."""
    synthesis, number = parameters.synthesis, parameters.seed
    people: list[Persona | None] = [None]
    if made_of.prompt.head.persona:
        people = [*personas.draw(made_of.people, synthesis.personas_per_document, number, seed.id)]
    languages = _languages(parameters, made_of, seed)
    first = int(digest("language", str(number), seed.id, size=8), 16)
    found = []
    for place, persona in enumerate(people):
        name = persona.name if persona else ""
        forms = shares.draw_forms(made_of.weights, made_of.prompt.head.asked(synthesis.queries), number, seed.id, name)
        language = languages[(first + place) % len(languages)] if languages else ""
        found.append(Wish(seed, persona and _spoken(parameters, persona, seed), tuple(forms), language))
    return found


def _languages(parameters: Synthesising, made_of: Material, seed: Passage) -> list[str]:
    writing = parameters.facts.writing
    languages = writing.languages
    if made_of.prompt.head.needs_languages or writing.other_language:
        # A translation into the language of the text is none. German of Austria is no other language than German.
        own = (seed.language or "").partition("-")[0]
        return [language for language in languages if language.partition("-")[0] != own] or languages
    return languages


def _spoken(parameters: Synthesising, persona: Persona, seed: Passage) -> Persona:
    """The persona, in the register that the declared shares of formality draw. Its own style goes with its own register."""
    formality = parameters.synthesis.shares.formality
    if not formality:
        return persona
    register = shares.draw_one(
        {str(name): share for name, share in formality.items()}, str(parameters.seed), seed.id, persona.name
    )
    return persona if register == persona.register_ else persona.model_copy(update={"register_": register, "style": ""})


def structured(engine: AnyEngine) -> str:
    return engine.structured if isinstance(engine, OpenAIEngine | VllmEngine) else "lines"


def requests(
    parameters: Synthesising, made_of: Material, engine: Engine, seeds: Sequence[Passage]
) -> tuple[list[Asked], list[Batch]]:
    """What is asked about some seeds, in the order of their rows, and the batches that it is asked in."""
    asked = [wish for seed in seeds for wish in wishes(parameters, made_of, seed)]
    return _keyed(asked, engine, [conversation(parameters, made_of, wish) for wish in asked])


def conversation(parameters: Synthesising, made_of: Material, wish: Wish) -> Conversation:
    facts = parameters.facts
    return made_of.prompt.conversation(wish, facts.writing, facts.description, parameters.seed, structured(parameters.engine))


def task_requests(parameters: Synthesising, made_of: Material, engine: Engine, numbers: range) -> tuple[list[Asked], list[Batch]]:
    """The requests for tasks with these numbers: each persona thinks of a list before any thinks of a second one."""
    order = sorted(made_of.people, key=lambda persona: digest("tasks", str(parameters.seed), persona.name))
    facts = parameters.facts
    form = next(iter(made_of.prompt.head.forms))
    asked = []
    for number in numbers:
        nothing = Passage(f"tasks-{number}", "", "", None, facts.language, None)
        languages = facts.writing.languages
        language = languages[number % len(languages)] if languages else ""
        asked.append(Wish(nothing, order[number % len(order)], (form,), language, number // len(order) + 1))
    how = structured(parameters.engine)
    said = [made_of.prompt.task_conversation(wish, facts.writing, facts.description, how) for wish in asked]
    return _keyed(asked, engine, said)


def _keyed(asked: Sequence[Wish], engine: Engine, said: Sequence[Conversation]) -> tuple[list[Asked], list[Batch]]:
    batches = engine.batches(said)
    keys = {request.number: request.key for batch in batches for request in batch}
    return [Asked(wish, keys[number]) for number, wish in enumerate(asked)], batches


def tasks_wanted(parameters: Synthesising) -> int:
    return parameters.synthesis.documents or TASKS


def task_units(parameters: Synthesising, made_of: Material) -> list[range]:
    """The numbers of the requests for tasks, by unit."""
    size = 64
    count = -(-tasks_wanted(parameters) // made_of.prompt.head.tasks)
    return [range(start, min(start + size, count)) for start in range(0, count, size)]
