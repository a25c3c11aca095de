"""Rows with planted duplicates, and what must hold for the survivors, worked out the slow and plain way."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from datakit.schema import content_id, digest, rows, text_id

WORDS = [a + b + c for a in ("ba", "ke", "li", "mo", "nu") for b in ("ra", "te", "si", "do", "gu") for c in ("n", "s", "t", "l")]


def row(query: str, positive: str, *, category: str = "a", number: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "row_id": digest("row", str(number), category, query, positive),
        "content_id": content_id(category, query, positive),
        "query_id": text_id(query),
        "positive_id": text_id(positive),
        "document_id": text_id(positive),
        "category": category,
        "query": query,
        "positive": positive,
        "in_batch_negatives": True,
    } | more


def sentence(random: random.Random, words: int) -> list[str]:
    return [random.choice(WORDS) for _ in range(words)]


def changed(random: random.Random, words: Sequence[str], edits: int) -> list[str]:
    """The words with some of them replaced."""
    copy = list(words)
    for _ in range(edits):
        copy[random.randrange(len(copy))] = random.choice(WORDS)
    return copy


def duplicated_rows(seed: int, families: int, *, words: int = 24, members: int = 6) -> list[dict[str, Any]]:
    """Families of texts, each a few edits from its first member; the categories a and b, and qualities with ties and gaps."""
    draw = random.Random(seed)
    made = []
    for family in range(families):
        original = sentence(draw, words + draw.randrange(12))
        for member in range(1 + draw.randrange(members)):
            query = " ".join(changed(draw, original, draw.randrange(3)))
            made.append(
                row(
                    query,
                    f"answer {family} {member}",
                    category=draw.choice("ab"),
                    number=len(made),
                    quality=draw.choice([None, 0.25, 0.5, 1.0]),
                )
            )
    draw.shuffle(made)
    return made


def rows_alike(seed: int, families: int, *, words: int = 6) -> list[dict[str, Any]]:
    """Rows of which queries, positives, both or neither are nearly the same; some with a label in the place of the positive."""
    draw = random.Random(seed)
    records = duplicated_rows(seed, families, words=words)
    positives = [record["query"] for record in duplicated_rows(seed + 1, families, words=words)]
    for number, record in enumerate(records):
        if number and draw.random() < 0.3:
            # Nearly the row before it, on both sides.
            before = records[number - 1]
            query = " ".join(changed(draw, before["query"].split(), draw.randrange(2)))
            labelled = {name: before[name] for name in ("label", "in_batch_negatives") if name in before}
            kept = {"category": draw.choice("aab"), "number": number, "quality": record["quality"]}
            records[number] = row(query, before["positive"], **kept, **labelled)
            continue
        more = {"label": draw.choice(["yes", "no"]), "in_batch_negatives": False} if draw.random() < 0.3 else {}
        positive = more.get("label") or draw.choice(positives[: max(3, len(positives) // 2)])
        query = draw.choice(records)["query"] if draw.random() < 0.2 else record["query"]
        kept = {"category": record["category"], "number": number, "quality": record["quality"]}
        records[number] = row(query, positive, **kept, **more)
    return records


def tables(records: Sequence[dict[str, Any]], shards: int) -> list[pa.Table]:
    """The records in so many shards."""
    size = max(1, -(-len(records) // shards))
    return [rows(records[first : first + size]) for first in range(0, max(1, len(records)), size)]


def kind_of(letter: str) -> str:
    """How a character counts: "" separates words, "letter" makes them, "word" is one."""
    if letter >= "\U00010000" or unicodedata.category(letter)[0] == "S" or letter in "#%&*/@\\":
        return "word"
    if unicodedata.category(letter)[0] not in "LMN" and letter != "_":
        return ""
    return "word" if "\u0e00" <= letter <= "\u0eff" or "\u3040" <= letter <= "\u9fff" else "letter"


def folded(letter: str) -> str:
    if kind_of(letter) != "letter":
        return letter
    return next(form for form in (letter.casefold(), letter.lower(), letter) if len(form) == 1)


def words_of(text: str) -> list[str]:
    spaced = "".join({"": " ", "letter": folded(letter), "word": f" {folded(letter)} "}[kind_of(letter)] for letter in text)
    return spaced.split(" ")


def shingle_set(text: str, size: int = 3) -> set[Any]:
    """Word shingles, as Python sets."""
    return _shingle_set([word for word in words_of(text) if word], size)


def character_set(text: str, size: int) -> set[Any]:
    """Character shingles, as Python sets."""
    plain = "".join(folded(letter) if kind_of(letter) else " " for letter in text)
    return _shingle_set(list(" ".join(word for word in plain.split(" ") if word)), size)


def _shingle_set(units: list[str], size: int) -> set[Any]:
    return {tuple(units[first : first + size]) for first in range(max(1, len(units) - size + 1))} if units else set()


def jaccard(left: set[Any], right: set[Any]) -> float:
    return len(left & right) / len(left | right)


def rank(record: dict[str, Any]) -> tuple[float, str, str]:
    """Sorts the row that must survive first."""
    quality = record["quality"]
    return (-quality if quality is not None else float("inf"), record["content_id"], record["row_id"])
