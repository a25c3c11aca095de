"""The synthesise step: questions that personas ask about documents become rows."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datakit import storage
from datakit.assets import Assets
from datakit.recipe import AnyEngine, Budget, Model, OpenAIEngine, Synthesis
from datakit.registry import Category
from datakit.step import Output, Step, Work, is_cached, load
from datakit.synthesis import budget as budgets
from datakit.synthesis import passages, personas, prompts, request_cache
from datakit.synthesis.desk import StepDesk, spent_on
from datakit.synthesis.engines import Batch, Engine, engine_packages, make
from datakit.synthesis.passages import Part, Passage
from datakit.synthesis.personas import Persona
from datakit.synthesis.prompts import Prompt
from datakit.synthesis.request_cache import RequestCache
from datakit.synthesis.rows import Asked, Facts, Writer

VERSION = 1

log = logging.getLogger(__name__)


class Synthesising(Model):
    """All that decides what is written."""

    facts: Facts
    synthesis: Synthesis
    engine: AnyEngine
    seed: int
    shard_rows: int


def synthesise_step(
    name: str,
    category: str,
    entry: Category,
    synthesis: Synthesis,
    engine: AnyEngine,
    engine_name: str,
    budget: Budget,
    seed: int,
    documents: Step,
    assets: Assets,
    shard_rows: int,
    earlier: Sequence[Step] = (),
) -> Step:
    """A step that asks `engine` for questions about passages of the documents of the step `documents`.

    `earlier` are the synthesise steps that run before it in the same build: the budget is one for all of them. Raises a UserError
    for a file of personas or a prompt that is wrong, and for a budget that cannot be counted.
    """
    facts = Facts(
        category=category,
        task=entry.task,
        instruction=entry.instruction,
        document_instruction=entry.document_instruction,
        in_batch_negatives=entry.in_batch_negatives,
    )
    people, people_digest = personas.load(synthesis)
    prompt = prompts.load(synthesis.prompt)
    model_digest = assets.digest(engine.model, engine.revision)
    if isinstance(engine, OpenAIEngine):
        # A folder of that name on this machine is not what the server runs.
        model_digest = f"named:{engine.model}@{engine.revision or 'latest'}"
    # What is wrong with a prompt comes out here, and not after the documents were read.
    sample = Passage("", "A text.", "", None, "en", None)
    prompt.conversation(sample, people[0], synthesis.queries, seed, _structured(engine))
    budgets.check(budget, engine_name, engine, earlier)
    asking = Asking(engine_name, budget, model_digest, tuple(earlier))
    return Step(
        name=name,
        version=VERSION,
        work=asking.work,
        parameters=Synthesising(facts=facts, synthesis=synthesis, engine=engine, seed=seed, shard_rows=shard_rows),
        side=(documents,),
        assets={
            str(getattr(engine.model, "raw", engine.model)): model_digest,
            f"prompt {prompt.label}": prompt.digest,
            "personas": people_digest,
        },
        packages=("jinja2", *engine_packages(engine)),
    )


@dataclass(frozen=True)
class Asking:
    """How a step gets its answers; nothing here decides what comes out, beyond what the step's key covers."""

    engine_name: str
    budget: Budget
    model_digest: str
    earlier: tuple[Step, ...]

    def work(self, work: Work) -> None:
        parameters = _parameters(work.step)
        people, prompt = _who_and_how(parameters)
        files = _documents(work.side[0])
        cut = work.map("passages", _cut(parameters), files)
        cut_files = [work.files("passages", number, passages.FILE) for number in range(len(files))]
        drawn, repeated = passages.draw(cut_files, parameters.synthesis.documents)
        units = list(passages.slices(cut_files, drawn, _passages_at_once(parameters)))
        finished = [
            budgets.from_notes(storage.read_json(marker))
            for number in range(len(units))
            if storage.exists(marker := work.files("rows", number, "unit.json"))
        ]
        spent = budgets.spent_by(self.earlier, work.cache)
        for each in finished:
            spent = spent.plus(each.priced(parameters.engine))
        total = sum(map(len, drawn)) * parameters.synthesis.personas_per_document
        cache = RequestCache(work.cache)
        engine = make(self.engine_name, parameters.engine, self.model_digest, parameters.seed)
        started = time.monotonic()
        try:
            desk = StepDesk(
                cache,
                work.step.key,
                parameters.engine,
                self.budget,
                spent,
                sum(each.requests for each in finished),
                lambda done: work.watcher.units(done, total, 0, "answers"),
            )
            results = work.map("rows", _Rows(work.step.name, parameters, people, prompt, engine, desk), units, exclusive=True)
            failures = cache.failures(work.step.key)
        finally:
            engine.close()
            cache.close()
        work.notes |= {
            "passages": sum(result["passages"] for result in cut),
            "repeated_passages": repeated,
            "drawn": sum(map(len, drawn)),
            **_total(results).priced(parameters.engine).notes(),
        }
        facts = {"sent": desk.sent, "from_cache": desk.from_cache, "failed_attempts": failures}
        storage.write_json(storage.join(work.folder, "run.json"), {**facts, "seconds": round(time.monotonic() - started, 1)})
        work.finish("rows", results)


@dataclass(frozen=True)
class _Rows:
    """Asks about some passages, and writes the rows."""

    step: str
    parameters: Synthesising
    people: Sequence[Persona]
    prompt: Prompt
    engine: Engine
    desk: StepDesk

    def __call__(self, parts: list[Part], folder: str) -> dict[str, Any]:
        asked, batches = requests(self.parameters, self.people, self.prompt, self.engine, parts)
        answers = self.desk.answers(self.engine, batches)
        writer = Writer(
            step=self.step,
            facts=self.parameters.facts,
            model=str(getattr(self.parameters.engine.model, "raw", self.parameters.engine.model)),
            template=self.prompt.label,
            queries=self.parameters.synthesis.queries,
            examples=self.prompt.example_queries,
        )
        spent = spent_on(list(answers.values()))
        return {**writer.write(folder, asked, answers), **spent.notes()}


def requests(
    parameters: Synthesising, people: Sequence[Persona], prompt: Prompt, engine: Engine, parts: list[Part]
) -> tuple[list[Asked], list[Batch]]:
    """What is asked about some passages, in the order of their rows, and the batches that it is asked in."""
    synthesis, seed = parameters.synthesis, parameters.seed
    pairs = [
        (passage, persona)
        for passage in passages.read(parts)
        for persona in personas.draw(people, synthesis.personas_per_document, seed, passage.id)
    ]
    structured = _structured(parameters.engine)
    batches = engine.batches(
        [prompt.conversation(passage, persona, synthesis.queries, seed, structured) for passage, persona in pairs]
    )
    keys = {request.number: request.key for batch in batches for request in batch}
    return [Asked(passage, persona, keys[number]) for number, (passage, persona) in enumerate(pairs)], batches


# Words in a query, on average, and tokens in a word and its number: what an answer is about as long as.
_TOKENS_A_QUERY = 16


def planned(step: Step, cache: str) -> dict[str, int] | None:
    """What a synthesise step would ask: requests that are not answered yet, about how many tokens they take, and those that are.

    None while its documents have not been read. Sends nothing.
    """
    if not is_cached(step.side[0], cache):
        return None
    parameters = _parameters(step)
    people, prompt = _who_and_how(parameters)
    asking: Asking = step.work.__self__  # type: ignore[attr-defined]
    engine = make(asking.engine_name, parameters.engine, asking.model_digest, parameters.seed)
    counts = {"requests": 0, "tokens": 0, "answered": 0}
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for number, file in enumerate(_documents(load(step.side[0], cache))):
            files.append(storage.join(folder, str(number), passages.FILE))
            _cut(parameters)(file, storage.join(folder, str(number)))
        drawn, _ = passages.draw(files, parameters.synthesis.documents)
        answers = RequestCache(cache) if request_cache.is_there(cache) else None
        for parts in passages.slices(files, drawn, _passages_at_once(parameters)):
            _, batches = requests(parameters, people, prompt, engine, parts)
            known = answers.answers([request.key for batch in batches for request in batch]) if answers else {}
            for request in (request for batch in batches for request in batch):
                if request.key in known:
                    counts["answered"] += 1
                    continue
                characters = sum(len(message.content) for message in request.conversation.messages)
                expected = min(parameters.engine.max_tokens, _TOKENS_A_QUERY * parameters.synthesis.queries)
                counts["requests"] += 1
                counts["tokens"] += characters // 4 + expected
        if answers:
            answers.close()
    return counts


def _parameters(step: Step) -> Synthesising:
    assert isinstance(step.parameters, Synthesising)
    return step.parameters


def _who_and_how(parameters: Synthesising) -> tuple[list[Persona], Prompt]:
    return personas.load(parameters.synthesis)[0], prompts.load(parameters.synthesis.prompt)


def _documents(output: Output) -> list[str]:
    return [storage.join(output.folder, name) for name in output.report.notes["files"]]


def _cut(parameters: Synthesising) -> passages.Cut:
    return passages.Cut(parameters.synthesis.min_words, parameters.synthesis.max_words, parameters.seed)


def _passages_at_once(parameters: Synthesising) -> int:
    """Passages of one unit, so that its rows are about a shard."""
    return max(1, parameters.shard_rows // (parameters.synthesis.personas_per_document * parameters.synthesis.queries))


def _structured(engine: AnyEngine) -> str:
    return engine.structured if isinstance(engine, OpenAIEngine) else "lines"


def _total(results: Sequence[dict[str, Any]]) -> budgets.Spent:
    total = budgets.Spent()
    for result in results:
        total = total.plus(budgets.from_notes(result))
    return total
