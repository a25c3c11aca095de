"""Small builds for tests: a handful of steps that make, filter, deduplicate, split and sample rows, published for real."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from datakit import storage
from datakit.executor.local import LocalExecutor
from datakit.progress import QUIET
from datakit.publish.publish import Finished, PublishedBuild, publish
from datakit.recipe import Encoder, Model, Path, Recipe
from datakit.registry import Category
from datakit.schema import content_id, digest, reasons, rows, text_id
from datakit.step import Step, Work, count_categories, judged, part_of, run, write_rows

TEXT = (
    "The {n}th way to keep bread fresh is to wrap it in cloth, and to leave it in a cool and dry place of the kitchen, "
    "where neither the sun nor the oven can warm it. It keeps for {n} days there, and longer in winter."
)


class Settings(Model):
    """What decides the small build."""

    min_words: int = 3
    duplicates: bool = True
    drawn: int = 1_000_000
    validation_every: int = 5
    texts: dict[str, str] = Field({})


def example(category: str, number: int, **fields: Any) -> dict[str, Any]:
    """A whole row, as it is after mining."""
    query = fields.pop("query", f"How do I keep {number + 2} loaves of bread fresh in a {category} kitchen?")
    positive = fields.pop("positive", TEXT.format(n=number + 2))
    row_id = digest("row", category, str(number))
    return {
        "row_id": row_id,
        "content_id": content_id(category, query, positive),
        "query_id": text_id(query),
        "positive_id": text_id(positive),
        "document_id": digest("document", category, str(number // 2)),
        "category": category,
        "task": "question_answering",
        "source": f"{category} notes",
        "language": "en",
        "positive_language": "en",
        "instruction": "Given a question, retrieve the passage that answers it",
        "document_instruction": "",
        "query": query,
        "positive": positive,
        "negatives": [
            {"id": text_id(f"n{i}"), "text": f"Passage {i} tells of cheese. " + TEXT.format(n=i + 40), "miner": "bm25",
             "score": 9.5 - i, "difficulty": 0.9 - i / 10}
            for i in range(4)
        ],
        "in_batch_negatives": True,
        "batch_group": category,
        "quality": 0.5 + number % 50 / 100,
        "provenance": {"persona": "baker", "model": "smol", "template": "questions-1", "request_id": f"r{number}", "parents": []},
        **fields,
    }  # fmt: skip


def a_table(category: str, count: int, settings: Settings) -> pa.Table:
    """`count` rows: every 11th query has two words, every 7th repeats the one before it."""
    records = []
    for number in range(count):
        fields: dict[str, Any] = {}
        if number % 11 == 10:
            fields["query"] = f"bread {number}"
        if settings.duplicates and number % 7 == 6:
            fields |= {"query": records[-1]["query"], "positive": records[-1]["positive"]}
        if category in settings.texts and number % 7 != 6 and number % 11 != 10:
            fields["query"] = f"{settings.texts[category]} {number}"
        records.append(example(category, number, **fields))
    return rows(records)


def too_short(table: pa.Table, settings: Settings) -> pa.Table:
    words = [len(query.split()) for query in table.column("query").to_pylist()]
    return reasons(
        [
            {"row": row, "reason": "query_too_short", "value": count, "threshold": settings.min_words}
            for row, count in enumerate(words)
            if count < settings.min_words
        ]
    )


def repeated(table: pa.Table, settings: Settings) -> pa.Table:
    first: dict[str, str] = {}
    said = []
    for row, (content, row_id) in enumerate(zip(*(table.column(c).to_pylist() for c in ("content_id", "row_id")), strict=True)):
        if first.setdefault(content, row_id) != row_id:
            said.append({"row": row, "reason": "near_duplicate", "value": 1.0, "threshold": 0.8, "other_id": first[content]})
    return reasons(said)


def _made(category: str, count: int) -> Callable[[Work], None]:
    def work(work: Work) -> None:
        def write(unit: int, folder: str) -> dict[str, Any]:
            table = a_table(category, count, work.step.parameters)
            return write_rows(folder, kept=[("rows", table)], created=count_categories(table))

        work.notes.update(requests=count, prompt_tokens=100 * count, completion_tokens=10 * count, money={"USD": 0.01})
        work.finish("rows", work.map("rows", write, [0]))

    return work


def _split(work: Work) -> None:
    def write(shard: str, folder: str) -> dict[str, Any]:
        table = storage.read_table(shard)
        every = work.step.parameters.validation_every
        chosen = [bool(every) and int(name[:8], 16) % every == 0 for name in table.column("document_id").to_pylist()]
        parts = [
            ("train", table.filter(pc.invert(pa.array(chosen, pa.bool_())))),
            ("validation", table.filter(pa.array(chosen, pa.bool_()))),
        ]
        return write_rows(folder, kept=parts, rows_in=count_categories(table))

    work.finish("rows", work.map("rows", write, work.shards))


def _mix(work: Work) -> None:
    def write(shard: str, folder: str) -> dict[str, Any]:
        table = storage.read_table(shard)
        drawn = table.num_rows if part_of(shard) == "validation" else work.step.parameters.drawn
        kept = [(part_of(shard), table.slice(0, drawn))]
        return write_rows(folder, kept=kept, not_sampled=table.slice(drawn), rows_in=count_categories(table))

    work.finish("rows", work.map("rows", write, work.shards))


def small_steps(categories: dict[str, int], settings: Settings) -> list[Step]:
    """The steps of the small build, in order."""
    made = [Step(f"read-{name}", 1, _made(name, count), settings, packages=("pyarrow",)) for name, count in categories.items()]
    length = Step("filter-0-length", 1, lambda work: judged(work, too_short), settings, tuple(made))
    dedup = Step("dedup-0-minhash", 1, lambda work: judged(work, repeated), settings, (length,))
    vectors = Step(
        "embed-small",
        1,
        lambda work: work.finish(None),
        Encoder(model=Path("package:smol")),
        side=(dedup,),
        assets={"encoder": digest("smol")},
    )
    split = Step("split", 1, _split, settings, (dedup,))
    return [*made, length, dedup, vectors, split, Step("mix", 1, _mix, settings, (split,))]


def small_recipe(output: str, categories: dict[str, int], settings: Settings, **changes: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "small",
            "description": f"Bread, {settings.min_words} words and more.",
            "output": output,
            "categories": {
                name: {"define": {"task": "question_answering"}, "sources": [
                    {"type": "files", "path": f"{name}.jsonl", "licence": "CC-BY-4.0", "columns": {"query": "q", "positive": "p"}}
                ]}
                for name in categories
            },
            "encoders": {"small": {"model": "package:smol"}},
            "filters": [{"type": "length", "query": [settings.min_words, 512]}],
            **changes,
        }
    )  # fmt: skip


def entries(categories: dict[str, int]) -> dict[str, Category]:
    return {
        name: Category(key=name, family="test", task="question_answering", description=f"Questions of a {name}.")
        for name in categories
    }


CATEGORIES = {"bakery": 90, "dairy": 60, "garden": 25}


def finished_steps(folder: str, settings: Settings, categories: dict[str, int]) -> list[Finished]:
    """The steps of the small build, run or taken from the cache in `folder`."""
    executor = LocalExecutor(1)
    return [(step, *run(step, f"{folder}/cache", executor, QUIET)) for step in small_steps(categories, settings)]


def small_build(
    folder: str, settings: Settings | None = None, categories: dict[str, int] | None = None, **changes: Any
) -> PublishedBuild:
    """Runs and publishes the small build into `folder`/datasets."""
    settings, categories = settings or Settings(), categories or CATEGORIES
    recipe = small_recipe(f"{folder}/datasets", categories, settings, **changes)
    done = finished_steps(folder, settings, categories)
    return publish(recipe, done, done[-1][1], entries(categories), {"workers": 1, "started": "2026-01-01T00:00:00+00:00"})
