"""The synthesise step: what personas would ask about documents, or what else a category is written as, becomes rows."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from datakit import storage
from datakit.assets import Assets
from datakit.encoders import encode
from datakit.errors import UserError
from datakit.recipe import AnyEngine, Budget, Encoder, OpenAIEngine, Synthesis
from datakit.registry import Category
from datakit.step import Output, Step, Work, is_cached, load
from datakit.synthesis import budget as budgets
from datakit.synthesis import passages, request_cache, seeds, shares
from datakit.synthesis.brainstorm import write_tasks
from datakit.synthesis.desk import Asking, StepDesk, asking, spent_on
from datakit.synthesis.engines import Answer, Batch, Engine, engine_packages
from datakit.synthesis.passages import Part, Passage
from datakit.synthesis.request_cache import RequestCache
from datakit.synthesis.rows import Facts, Writer
from datakit.synthesis.wishes import (
    Material,
    Synthesising,
    conversation,
    material,
    requests,
    task_requests,
    task_units,
    tasks_wanted,
    wishes,
    writing,
)

__all__ = ["Size", "Synthesising", "planned", "size", "synthesise_step"]

VERSION = 2

log = logging.getLogger(__name__)

# Words of a sentence that is asked about: fewer say too little, more are no sentence to say again in other words.
SENTENCE_WORDS = (4, 40)

# How a unit tells how many of its answers were cut, and the share of them from which on a person is told.
CUT, CUT_SHARE = "cut_answers", 0.1


def synthesise_step(
    name: str,
    category: str,
    entry: Category,
    synthesis: Synthesis,
    engine: AnyEngine,
    engine_name: str,
    budget: Budget,
    seed: int,
    documents: Step | None,
    assets: Assets,
    shard_rows: int,
    earlier: Sequence[Step] = (),
    language: str | None = None,
    encoder: Encoder | None = None,
) -> Step:
    """A step that asks `engine` what the category is written as, about passages of the documents of the step `documents`.

    Without documents the prompt has to be one that thinks of tasks first; `language` is that of their rows. `earlier` are the
    synthesise steps that run before it in the same build: the budget is one for all of them. `encoder` is the one that
    `synthesis.select` names. Raises a UserError for a file of
    personas, a prompt or shares that are wrong, and for a budget that cannot be counted.
    """
    how = writing(entry, synthesis)
    made_of = material(synthesis, how)
    prompt = made_of.prompt
    if (prompt.head.writes == "pairs") != (documents is None):
        raise UserError(
            f"The category '{category}' has sources, and the prompt '{how.prompt}' reads nothing. Write 'sources: []'."
            if documents
            else f"The category '{category}' has no sources, and the prompt '{how.prompt}' is asked about texts. Give it sources "
            "of documents, or 'prompt: brainstorm'."
        )
    if documents is None and not how.languages and len(entry.languages) > 1:
        how = how.model_copy(update={"languages": entry.languages})
    facts = Facts(
        category=category,
        task=entry.task,
        instruction=how.instruction or entry.instruction,
        document_instruction="" if how.instruction else entry.document_instruction,
        in_batch_negatives=entry.in_batch_negatives,
        language=language or (entry.languages[0] if len(entry.languages) == 1 else None),
        description=entry.description or entry.instruction or category.replace("-", " "),
        writing=how,
    )
    parameters = Synthesising(facts=facts, synthesis=synthesis, engine=engine, seed=seed, shard_rows=shard_rows, encoder=encoder)
    # What is wrong with a prompt comes out here, and not after the documents were read.
    for wish in wishes(parameters, made_of, Passage("", "A text.", "", None, "en", None)):
        conversation(parameters, made_of, wish)
    _warn_of_room(engine_name, parameters, made_of)
    asks = asking(engine_name, engine, budget, seed, earlier, assets)
    return Step(
        name=name,
        version=VERSION,
        work=_Work(asks),
        parameters=parameters,
        side=(documents,) if documents else (),
        assets={
            asks.model: asks.model_digest,
            f"prompt {prompt.label}": prompt.digest,
            "personas": made_of.people_digest,
            **({"encoder": assets.digest(encoder.model, encoder.revision)} if encoder else {}),
        },
        packages=("jinja2", *engine_packages(engine), *(encode.PACKAGES if encoder else ())),
    )


@dataclass(frozen=True)
class Seeds:
    """What is asked about: files of passages, which rows of them are drawn, and what the step notes of that.

    `units` are the passages of each unit of rows.
    """

    units: list[list[Part]]
    notes: dict[str, Any]


@dataclass(frozen=True)
class _Work:
    """The work of a synthesise step."""

    asking: Asking

    def __call__(self, work: Work) -> None:
        parameters = _parameters(work.step)
        made_of = _made_of(parameters)
        reads = made_of.prompt.head.writes != "pairs"
        thinking = [] if reads else task_units(parameters, made_of)
        drawn_seeds, cut = self._cut(work, parameters, made_of) if reads else (None, [])
        units = len(drawn_seeds.units) if drawn_seeds else -(-tasks_wanted(parameters) // _seeds_at_once(parameters, made_of))
        drawn = drawn_seeds.notes["drawn"] if drawn_seeds else tasks_wanted(parameters)
        total = drawn * made_of.per_seed(parameters.synthesis) + sum(map(len, thinking))
        with self.asking.desk(work, {"tasks": len(thinking), "rows": units}, total) as (engine, desk):
            asks = _Asks(work.step.name, parameters, made_of, engine, desk, self.asking.model)
            thought = work.map("tasks", asks.tasks, thinking, exclusive=True)
            if drawn_seeds is None:
                files = [work.files("tasks", number, passages.FILE) for number in range(len(thinking))]
                drawn_seeds = _drawn(files, parameters, made_of, {"tasks": sum(result["tasks"] for result in thought)})
            results = work.map("rows", asks.rows, drawn_seeds.units, exclusive=True)
        for what, each in (("lists of tasks", thought), ("texts", results)):
            self._warn_of_cut(work.step, what, each)
        kinds = shares.merged([result["kinds"] for result in results])
        work.notes |= {
            **drawn_seeds.notes,
            "forms": kinds.get("form", {}),
            "shares": shares.got(kinds, shares.applied(made_of.prompt.head.forms, parameters.synthesis.shares)),
            **_total([*thought, *results]).priced(parameters.engine).notes(),
        }
        work.finish("rows", results, also={"passages": cut, "tasks": thought})

    def _warn_of_cut(self, step: Step, what: str, results: Sequence[dict[str, Any]]) -> None:
        """Says it where so many answers were cut that the engine's max_tokens is too low, and not the model too talkative."""
        cut, answers = sum(result[CUT] for result in results), sum(result["requests"] for result in results)
        if cut > CUT_SHARE * answers:
            log.warning(
                "%s: %.0f %% of the answers with %s (%d of %d) were cut off at %d tokens, and what was cut is lost. Raise "
                "engines.%s.max_tokens; all of its answers are asked for anew then.",
                step.name, 100 * cut / answers, what, cut, answers, _parameters(step).engine.max_tokens, self.asking.name,
            )  # fmt: skip

    def _cut(self, work: Work, parameters: Synthesising, made_of: Material) -> tuple[Seeds, list[dict[str, Any]]]:
        """Cuts the documents and draws passages; also gives what came of each file."""
        files = _documents(work.side[0])
        cut = work.map("passages", _cut(work.step, made_of), files)
        index = passages.index([work.files("passages", number, passages.FILE) for number in range(len(files))])
        positions, notes = seeds.select(work, index, parameters.synthesis, parameters.encoder, parameters.seed)
        counts = {name: sum(result[name] for result in cut) for name in ("passages", "refused")}
        found = _units(index, positions, parameters, made_of, {"passages": counts["passages"]})
        found.notes.update({"refused_passages": counts["refused"], **notes})
        return found, cut


def _drawn(files: Sequence[str], parameters: Synthesising, made_of: Material, notes: dict[str, Any]) -> Seeds:
    """Draws seeds from files of passages."""
    index = passages.index(files)
    if made_of.prompt.head.writes == "pairs":
        positions = index.ordered(index.first)[: tasks_wanted(parameters)]
    else:
        positions, _ = seeds.at_random(index, parameters.synthesis)
    return _units(index, positions, parameters, made_of, notes)


def _units(
    index: passages.Index, positions: passages.Array, parameters: Synthesising, made_of: Material, notes: dict[str, Any]
) -> Seeds:
    units = list(passages.slices(index.files, index.rows(positions), _seeds_at_once(parameters, made_of)))
    return Seeds(units, {**notes, f"repeated_{next(iter(notes))}": index.repeated, "drawn": len(positions)})


@dataclass(frozen=True)
class _Asks:
    """Asks, and writes what is answered."""

    step: str
    parameters: Synthesising
    made_of: Material
    engine: Engine
    desk: StepDesk
    model: str

    def rows(self, parts: list[Part], folder: str) -> dict[str, Any]:
        """Asks about some passages, and writes the rows."""
        asked, batches = requests(self.parameters, self.made_of, self.engine, passages.read(parts))
        answers = self.desk.answers(self.engine, batches)
        writer = Writer(self.step, self.parameters.facts, self.model, self.made_of.prompt, self.parameters.seed)
        return {**writer.write(folder, asked, answers), **_told(answers.values())}

    def tasks(self, numbers: range, folder: str) -> dict[str, Any]:
        """Asks for tasks, and writes them as passages."""
        asked, batches = task_requests(self.parameters, self.made_of, self.engine, numbers)
        answers = self.desk.answers(self.engine, batches)
        facts, prompt, seed = self.parameters.facts, self.made_of.prompt, self.parameters.seed
        result = write_tasks(folder, self.step, facts, self.model, prompt, seed, asked, answers)
        return {**result, **_told(answers.values())}


def _told(answers: Iterable[Answer]) -> dict[str, Any]:
    """What a unit tells of its answers: what they took, and how many of them were cut."""
    found = list(answers)
    return {**spent_on(found).notes(), CUT: sum(answer.finish_reason == "length" for answer in found)}


# Tokens of a written text, about, by field: a line of a list, a class, a sentence, a passage, a task that was thought of.
_LINE, _CLASS, _SENTENCE, _PASSAGE, _TASK = 16, 6, 32, 120, 25
# Prompts ask for passages of up to 120 words, which are so many tokens in English.
_LONG_PASSAGE = 160


def _tokens(parameters: Synthesising, made_of: Material, passage: int = _PASSAGE) -> int:
    """What an answer is about as long as, where a passage takes so many tokens and nothing cuts it."""
    head = made_of.prompt.head
    long = _SENTENCE if head.seed == "sentence" else passage
    lengths = {"query": _SENTENCE, "positive": long, "negative": long, "score": _CLASS, "label": _CLASS}
    one = sum(lengths[name] for name in head.fields) or _LINE
    return one * head.asked(parameters.synthesis.queries)


def _warn_of_room(name: str, parameters: Synthesising, made_of: Material) -> None:
    """Says it where the engine `name` has no room for what the prompt asks for: half an answer is often none."""
    head, room = made_of.prompt.head, _room(parameters.engine)
    written = {"an answer": _tokens(parameters, made_of, _LONG_PASSAGE)}
    if head.writes == "pairs":
        written["a list of tasks"] = head.tasks * _TASK
    what, needed = max(written.items(), key=lambda each: each[1])
    if room is not None and needed > room:
        log.warning(
            "%s: %s to the prompt '%s' takes up to about %d tokens, and engines.%s.max_tokens is %d: what is longer is cut off, "
            "and lost. Raise engines.%s.max_tokens.",
            parameters.facts.category, what, parameters.facts.writing.prompt, needed, name, room, name,
        )  # fmt: skip


def _room(engine: AnyEngine) -> int | None:
    """Tokens of an answer at most; None where a request to a server sets the limit in its own words, or none."""
    if isinstance(engine, OpenAIEngine) and {"max_tokens", "max_completion_tokens"} & engine.extra_body.keys():
        return None
    return engine.max_tokens


def planned(step: Step, cache: str) -> dict[str, int] | None:
    """What a synthesise step would ask: requests that are not answered yet, about how many tokens they take, and those that are.

    `seeds` are the passages or tasks that are drawn, `texts` those that are asked for about them: the most rows that may come.
    None while its documents have not been read. Sends nothing. Where tasks are to be thought of first, all of them are taken to
    come, and to be as long as a short one. Passages that would be drawn from clusters are drawn at random here: as many, and
    about as long.
    """
    if step.side and not is_cached(step.side[0], cache):
        return None
    parameters = _parameters(step)
    made_of = _made_of(parameters)
    assert isinstance(step.work, _Work)
    engine = step.work.asking.engine()
    counts = {"requests": 0, "prompt_tokens": 0, "completion_tokens": 0, "answered": 0, "seeds": 0}
    most = parameters.engine.max_tokens
    tokens = min(most, _tokens(parameters, made_of))
    answers = RequestCache(cache) if request_cache.is_there(cache) else None

    def count(batches: Sequence[Batch], tokens: int) -> None:
        asked = [request for batch in batches for request in batch]
        known = answers.answers([request.key for request in asked]) if answers else {}
        for request in asked:
            if request.key in known:
                counts["answered"] += 1
                continue
            counts["requests"] += 1
            counts["prompt_tokens"] += sum(len(message.content) for message in request.conversation.messages) // 4
            counts["completion_tokens"] += tokens

    with tempfile.TemporaryDirectory() as folder:
        files = []
        if step.side:
            for number, file in enumerate(_documents(load(step.side[0], cache))):
                files.append(storage.join(folder, str(number), passages.FILE))
                _cut(step, made_of)(file, storage.join(folder, str(number)))
        else:
            for unit, numbers in enumerate(task_units(parameters, made_of)):
                listed = min(most, made_of.prompt.head.tasks * _TASK)
                count(task_requests(parameters, made_of, engine, numbers)[1], listed)
                files.append(storage.join(step.folder(cache), "tasks", f"{unit:05d}", passages.FILE))
        if step.side or all(map(storage.exists, files)):
            for parts in _drawn(files, parameters, made_of, {"passages": 0}).units:
                drawn = passages.read(parts)
                counts["seeds"] += len(drawn)
                count(requests(parameters, made_of, engine, drawn)[1], tokens)
        else:
            task = Passage("", "Given a question of somebody, find the passage that answers it.", "", None, None, None)
            said = [conversation(parameters, made_of, wish) for wish in wishes(parameters, made_of, task)]
            times = tasks_wanted(parameters)
            counts["seeds"] += times
            counts["requests"] += times * len(said)
            counts["prompt_tokens"] += times * sum(len(message.content) // 4 for each in said for message in each.messages)
            counts["completion_tokens"] += times * len(said) * tokens
    if answers:
        answers.close()
    return {**counts, "texts": _size(parameters, made_of).rows(counts["seeds"])}


@dataclass(frozen=True)
class Size:
    """What is asked about one passage or task: so many requests, of each so many texts. `seeds` are those that the recipe wants;
    None where it wants all that there are."""

    seeds: int | None
    requests: int
    texts: int

    def rows(self, seeds: int) -> int:
        """The most rows that so many passages or tasks give."""
        return seeds * self.requests * self.texts


def size(step: Step) -> Size:
    """How much a synthesise step asks for, as its prompt has it: some write one text, and some know no personas."""
    parameters = _parameters(step)
    return _size(parameters, _made_of(parameters))


def _size(parameters: Synthesising, made_of: Material) -> Size:
    synthesis, head = parameters.synthesis, made_of.prompt.head
    seeds = tasks_wanted(parameters) if head.writes == "pairs" else synthesis.documents
    return Size(seeds, made_of.per_seed(synthesis), head.asked(synthesis.queries))


def _parameters(step: Step) -> Synthesising:
    assert isinstance(step.parameters, Synthesising)
    return step.parameters


def _made_of(parameters: Synthesising) -> Material:
    return material(parameters.synthesis, parameters.facts.writing)


def _documents(output: Output) -> list[str]:
    return [storage.join(output.folder, name) for name in output.report.notes["files"]]


def _cut(step: Step, made_of: Material) -> passages.Cut:
    parameters = _parameters(step)
    unit, synthesis = made_of.prompt.head.seed, parameters.synthesis
    words = SENTENCE_WORDS if unit == "sentence" else (synthesis.min_words, synthesis.max_words)
    return passages.Cut(*words, parameters.seed, unit, step.name, parameters.facts)


def _seeds_at_once(parameters: Synthesising, made_of: Material) -> int:
    """Seeds of one unit, so that its rows are about a shard."""
    texts = made_of.prompt.head.asked(parameters.synthesis.queries)
    return max(1, parameters.shard_rows // (made_of.per_seed(parameters.synthesis) * texts))


def _total(results: Sequence[dict[str, Any]]) -> budgets.Spent:
    total = budgets.Spent()
    for result in results:
        total = total.plus(budgets.from_notes(result))
    return total
