"""Answers become rows, and rejected rows where they cannot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datakit import schema
from datakit.recipe import Model, Writing
from datakit.schema import text_id
from datakit.step import write_rows
from datakit.synthesis.engines import REFUSED, Answer
from datakit.synthesis.leaks import PROMPT_LEAK, leaks, nonce
from datakit.synthesis.parsing import (
    MORE_THAN_ASKED,
    REPEATED_IN_ANSWER,
    REQUEST_REFUSED,
    TEXT,
    Item,
    Parsed,
    chosen,
    folded,
    parse,
    score,
)
from datakit.synthesis.prompts import Prompt, Wish
from datakit.synthesis.shares import length_of

# Reasons for one item of an answer, beside those of parsing.py and leaks.py.
COPIED_FROM_SEED = "copied_from_seed"
NEGATIVE_IS_POSITIVE = "negative_is_positive"
UNKNOWN_LABEL = "unknown_label"

# The miner of hard negatives that a model wrote, and of the classes that it did not choose.
MINER = "written"


class Facts(Model):
    """What all rows of one step share. `description` and `writing` say what is asked for; `language` is that of rows for which
    nothing is read."""

    category: str
    task: str
    instruction: str
    document_instruction: str
    in_batch_negatives: bool
    language: str | None
    description: str
    writing: Writing


@dataclass(frozen=True)
class Asked:
    """One request: what was asked for, and the key of the answer."""

    wish: Wish
    key: str


@dataclass(frozen=True)
class Writer:
    """Writes the rows of a unit."""

    step: str
    facts: Facts
    model: str
    prompt: Prompt
    seed: int

    def write(self, folder: str, asked: Sequence[Asked], answers: dict[str, Answer]) -> dict[str, Any]:
        """Writes one row for each text, and a rejected one for each that is none and each answer that has none.

        "kinds" of what comes back counts the kept texts by form, and queries by length, complexity and formality.
        """
        head = self.prompt.head
        examples = self.prompt.example_texts
        kept: list[dict[str, Any]] = []
        refused: list[dict[str, Any]] = []
        said: list[dict[str, Any]] = []
        kinds: dict[str, Counter[str]] = {}
        for request in asked:
            answer = answers[request.key]
            count, cut = len(request.wish.forms), answer.finish_reason == "length"
            if answer.finish_reason == REFUSED:
                parsed = Parsed(reason=REQUEST_REFUSED)
            else:
                parsed = parse(answer.text, count, head.fields, cut=cut, examples=examples)
            if parsed.reason is not None:
                said.append({"row": len(refused), "reason": parsed.reason, "detail": answer.text})
                refused.append(self._row(request, 0, {}))
            ids: dict[str, str] = {}
            for position, item in enumerate(parsed.items):
                row = self._row(request, position, self._texts(request.wish, item))
                reason = item.reason or self._objection(request.wish, item, row)
                letters = " | ".join(map(folded, item.texts.values()))
                if reason is None:
                    kept.append(row)
                    ids[letters] = row["row_id"]
                    self._count(kinds, request.wish, item, row)
                else:
                    other = ids.get(letters) if reason == REPEATED_IN_ANSWER else None
                    said.append({"row": len(refused), "reason": reason, "other_id": other, "detail": answer.text})
                    refused.append(row)
        rejected = schema.rejected_rows(schema.rows(refused), self.step, schema.reasons(said))
        created = {self.facts.category: len(kept) + len(refused)} if kept or refused else {}
        result = write_rows(folder, kept=[("rows", schema.rows(kept))] if kept else [], rejected=rejected, created=created)
        return {**result, "kinds": {kind: dict(sorted(counts.items())) for kind, counts in sorted(kinds.items())}}

    def _texts(self, wish: Wish, item: Item) -> dict[str, Any]:
        """The columns of a row that an item fills."""
        head, texts = self.prompt.head, item.texts
        found: dict[str, Any] = {name: texts[name] for name in ("query", "positive") if name in texts}
        if TEXT in texts:
            found["query" if head.writes == "queries" else "positive"] = texts[TEXT]
        if texts.get("negative"):
            found["negatives"] = [_negative(texts["negative"])]
        if "score" in texts:
            found["score"] = score(texts["score"])
        if head.writes == "graded" and item.number <= len(wish.forms):
            found["score"] = head.forms[wish.forms[item.number - 1]].score
        if head.writes == "labels" and "label" in texts:
            labels = self.facts.writing.labels
            label = chosen(texts["label"], labels)
            found |= {"positive": label or texts["label"], "label": label}
            if label:
                found["negatives"] = [_negative(other) for other in labels if other != label]
        return found

    def _objection(self, wish: Wish, item: Item, row: dict[str, Any]) -> str | None:
        """What is said against an item that could be read."""
        head = self.prompt.head
        fence = nonce(self.seed, wish.seed.text)
        if any(leaks(text, fence, self.prompt.instructions) for text in item.texts.values()):
            return PROMPT_LEAK
        if head.writes == "labels":
            return None if row["label"] else UNKNOWN_LABEL
        if head.writes == "graded" and row.get("score") is None:
            return MORE_THAN_ASKED  # no form is left that would say how alike it is
        query, positive = folded(row["query"]), folded(row["positive"])
        if query == positive:
            return COPIED_FROM_SEED if head.writes != "pairs" else REPEATED_IN_ANSWER
        if any(folded(negative["text"]) in (query, positive) for negative in row.get("negatives") or ()):
            return NEGATIVE_IS_POSITIVE
        return None

    def _count(self, kinds: dict[str, Counter[str]], wish: Wish, item: Item, row: dict[str, Any]) -> None:
        """Counts a kept text: the length as it was written, the others as they were asked for."""
        if item.number > len(wish.forms):
            return
        name = wish.forms[item.number - 1]
        form = self.prompt.head.forms[name]
        kinds.setdefault("form", Counter())[name] += 1
        if wish.persona is not None:
            kinds.setdefault("formality", Counter())[wish.persona.register_] += 1
        if form.length is not None:
            kinds.setdefault("length", Counter())[length_of(row["query"])] += 1
        if form.complexity is not None:
            kinds.setdefault("complexity", Counter())[form.complexity] += 1

    def _row(self, request: Asked, position: int, texts: dict[str, Any]) -> dict[str, Any]:
        wish, seed, facts, head = request.wish, request.wish.seed, self.facts, self.prompt.head
        persona = wish.persona.name if wish.persona else None
        identity = (facts.category, seed.source or "", seed.id, persona or "", str(position))
        language = wish.language or seed.language
        sides: dict[str, Any] = {}
        if head.writes == "queries":
            sides = {"positive": seed.text, "language": language, "positive_language": seed.language}
        elif head.writes == "labels":
            sides = {"query": seed.text, "language": seed.language, "positive_language": seed.language}
        elif head.writes == "pairs":
            sides = {"language": language, "positive_language": language}
        else:
            sides = {"query": seed.text, "language": seed.language, "positive_language": language}
        return {
            "row_id": schema.digest("synthesised", *identity),
            "document_id": seed.document_id,
            "category": facts.category,
            "task": facts.task,
            "source": seed.source,
            "instruction": facts.instruction,
            "document_instruction": facts.document_instruction,
            "query": None,
            "positive": None,
            "label": None,
            "in_batch_negatives": facts.in_batch_negatives,
            "batch_group": facts.category,
            "provenance": {
                "persona": persona,
                "model": self.model,
                "template": self.prompt.label,
                "request_id": request.key,
                "parents": [seed.id],
            },
            **texts,
            **sides,
        }


def _negative(text: str) -> dict[str, Any]:
    return {"id": text_id(text), "text": text, "miner": MINER}
