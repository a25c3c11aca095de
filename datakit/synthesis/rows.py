"""Answers become rows, and rejected rows where they cannot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datakit import schema
from datakit.recipe import Model
from datakit.step import write_rows
from datakit.synthesis.engines import Answer
from datakit.synthesis.parsing import REPEATED_IN_ANSWER, folded, parse
from datakit.synthesis.passages import Passage
from datakit.synthesis.personas import Persona


class Facts(Model):
    """What all rows of one step share."""

    category: str
    task: str
    instruction: str
    document_instruction: str
    in_batch_negatives: bool


@dataclass(frozen=True)
class Asked:
    """One request: who was asked about what, and the key of the answer."""

    passage: Passage
    persona: Persona
    key: str


@dataclass(frozen=True)
class Writer:
    """Writes the rows of a unit. `examples` are queries that the prompt showed, which an answer should not repeat."""

    step: str
    facts: Facts
    model: str
    template: str
    queries: int
    examples: Sequence[str]

    def write(self, folder: str, asked: Sequence[Asked], answers: dict[str, Answer]) -> dict[str, Any]:
        """Writes one row for each question, and a rejected one for each that is no question and each answer that has none."""
        kept: list[dict[str, Any]] = []
        refused: list[dict[str, Any]] = []
        said: list[dict[str, Any]] = []
        for request in asked:
            answer = answers[request.key]
            parsed = parse(answer.text, self.queries, cut=answer.finish_reason == "length", examples=self.examples)
            if parsed.reason is not None:
                said.append({"row": len(refused), "reason": parsed.reason, "detail": answer.text})
                refused.append(self._row(request, 0, None))
            ids: dict[str, str] = {}
            for position, (question, reason) in enumerate(parsed.questions):
                row = self._row(request, position, question)
                if reason is None:
                    kept.append(row)
                    ids[folded(question)] = row["row_id"]
                else:
                    other = ids.get(folded(question)) if reason == REPEATED_IN_ANSWER else None
                    said.append({"row": len(refused), "reason": reason, "other_id": other, "detail": answer.text})
                    refused.append(row)
        rejected = schema.rejected_rows(schema.rows(refused), self.step, schema.reasons(said))
        created = {self.facts.category: len(kept) + len(refused)} if kept or refused else {}
        return write_rows(folder, kept=[("rows", schema.rows(kept))] if kept else [], rejected=rejected, created=created)

    def _row(self, request: Asked, position: int, question: str | None) -> dict[str, Any]:
        passage, facts = request.passage, self.facts
        identity = (facts.category, passage.source or "", passage.id, request.persona.name, str(position))
        return {
            "row_id": schema.digest("synthesised", *identity),
            "document_id": passage.document_id,
            "category": facts.category,
            "task": facts.task,
            "source": passage.source,
            "language": passage.language,
            "positive_language": passage.language,
            "instruction": facts.instruction,
            "document_instruction": facts.document_instruction,
            "query": question,
            "positive": passage.text,
            "in_batch_negatives": facts.in_batch_negatives,
            "batch_group": facts.category,
            "provenance": {
                "persona": request.persona.name,
                "model": self.model,
                "template": self.template,
                "request_id": request.key,
                "parents": [passage.id],
            },
        }
