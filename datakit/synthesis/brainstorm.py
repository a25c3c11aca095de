"""Tasks that a model thinks of, where nothing is read: they stand in the place of passages (E5-Mistral, arXiv 2401.00368)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from datakit import schema, storage
from datakit.schema import digest, text_id
from datakit.step import write_rows
from datakit.synthesis.engines import REFUSED, Answer
from datakit.synthesis.leaks import PROMPT_LEAK, leaks
from datakit.synthesis.parsing import REQUEST_REFUSED, TEXT, Parsed, folded, parse
from datakit.synthesis.passages import FILE, PASSAGE
from datakit.synthesis.prompts import Prompt
from datakit.synthesis.rows import Asked, Facts

# What the column `source` says of rows that were made of such tasks.
SOURCE = "brainstorm"


def write_tasks(
    folder: str,
    step: str,
    facts: Facts,
    model: str,
    prompt: Prompt,
    seed: int,
    asked: Sequence[Asked],
    answers: dict[str, Answer],
) -> dict[str, Any]:
    """Writes the tasks as passages, and a rejected row for each that is none and each answer that has none."""
    tasks: list[dict[str, Any]] = []
    refused: list[dict[str, Any]] = []
    said: list[dict[str, Any]] = []
    for request in asked:
        answer, wish = answers[request.key], request.wish
        if answer.finish_reason == REFUSED:
            parsed = Parsed(reason=REQUEST_REFUSED)
        else:
            parsed = parse(answer.text, prompt.head.tasks, cut=answer.finish_reason == "length", examples=prompt.example_texts)
        found: list[tuple[str | None, str | None]] = [(item.texts[TEXT], item.reason) for item in parsed.items]
        for position, (text, reason) in enumerate(found or [(None, parsed.reason)]):
            if reason is None and text is not None and leaks(text, "[[[", prompt.instructions):
                reason = PROMPT_LEAK
            if reason is None and text is not None:
                # The same task in other letters is the same.
                identity = text_id(folded(text))
                rank = int(digest("draw", str(seed), identity, size=8), 16)
                task = {"passage_id": identity, "document_id": identity, "text": text, "source": SOURCE}
                tasks.append({**task, "round": 0, "rank": rank, "language": facts.language, "title": None})
                continue
            said.append({"row": len(refused), "reason": reason, "detail": answer.text})
            persona = wish.persona.name if wish.persona else None
            refused.append(
                {
                    "row_id": digest("task", facts.category, wish.seed.id, str(position)),
                    "category": facts.category,
                    "task": facts.task,
                    "source": SOURCE,
                    "language": facts.language,
                    "query": text,
                    "provenance": {
                        "persona": persona,
                        "model": model,
                        "template": prompt.label,
                        "request_id": request.key,
                        "parents": [],
                    },
                }
            )
    storage.write_table(storage.join(folder, FILE), pa.Table.from_pylist(tasks, schema=PASSAGE))
    rejected = schema.rejected_rows(schema.rows(refused), step, schema.reasons(said))
    created = {facts.category: len(refused)} if refused else {}
    return {**write_rows(folder, kept=[], rejected=rejected, created=created), "tasks": len(tasks)}
