"""CPython's language reference, as `pydoc_data.topics` carries it: sections and definitions."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from datakit.sources.paragraphs import beginning

# Longer sections are cut at a paragraph.
WORDS = 300
_UNDERLINE = re.compile(r"([*=\-~^\"'])\1{2,}")
# "str.count(sub[, start[, end]])", "class pdb.Pdb(...)", "object.__slots__": a term, whose definition is indented below it.
_TERM = re.compile(r"(?:(?:class|async|coroutine|property) )?(?:[A-Za-z_][\w.]*\(.*\)(?: -> .+)?|[A-Za-z_]\w*(?:\.\w+)+)")


@dataclass(frozen=True)
class Section:
    """A piece of a topic: its title, the title above it (or ""), and its text without the definitions in it."""

    title: str
    above: str
    text: str


def ordered(topics: Mapping[str, str]) -> list[str]:
    """The topics, short ones first: many are parts of longer ones, and a text is given where it stands by itself."""
    return sorted(topics, key=lambda name: (len(topics[name]), name))


def pairs(topics: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Title <-> section, and term <-> definition. A text that stands in several topics is given once."""
    seen: set[str] = set()
    for name in ordered(topics):
        for section in sections(topics[name]):
            if section.text and section.text not in seen:
                seen.add(section.text)
                title = f"{section.above}: {section.title}" if section.above else section.title
                yield {"query": title, "positive": beginning(section.text, WORDS), "document_id": f"topic {name}"}


def documents(topics: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Whole topics, without the sections that stood in a shorter one."""
    seen: set[str] = set()
    for name in ordered(topics):
        parts = []
        for title, _, body in _parts(topics[name]):
            text = textwrap.dedent("\n".join(body)).strip()
            if text and text not in seen:
                seen.add(text)
                parts.append((title, text))
        if parts:
            text = "\n\n".join(f"{title}\n\n{text}" for title, text in parts)
            yield {"title": parts[0][0], "text": text, "document_id": f"topic {name}"}


def sections(topic: str) -> Iterator[Section]:
    """The sections of a topic in order, each followed by the definitions in it."""
    levels: list[str] = []
    titles: list[str] = []
    for title, mark, body in _parts(topic):
        levels = levels[: levels.index(mark)] if mark in levels else levels
        titles = titles[: len(levels)]
        above = titles[-1] if titles else ""
        levels, titles = [*levels, mark], [*titles, title]
        text, definitions = _without_definitions(body)
        yield Section(title, above, text)
        for term, definition in definitions:
            yield Section(term, title, definition)


def _parts(topic: str) -> Iterator[tuple[str, str, list[str]]]:
    """Title, the character that underlines it, and the lines below it, up to the next title."""
    lines = topic.rstrip().split("\n")
    starts = [number - 1 for number in range(1, len(lines)) if _is_heading(lines, number)]
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        yield lines[start].replace('"', "").strip(), lines[start + 1][0], lines[start + 2 : end]


def _is_heading(lines: list[str], number: int) -> bool:
    return len(lines[number]) == len(lines[number - 1]) and _UNDERLINE.fullmatch(lines[number]) is not None


def _without_definitions(lines: list[str]) -> tuple[str, list[tuple[str, str]]]:
    """The text of some lines without "term, blank line, indented block", and these as (term, block)."""
    text, definitions = list[str](), list[tuple[str, str]]()
    number = 0
    while number < len(lines):
        line = lines[number]
        indent = len(line) - len(line.lstrip())
        end = _end_of_block(lines, number + 1, indent + 3)
        if _TERM.fullmatch(line.strip()) and end > number + 2 and not lines[number + 1].strip():
            block = textwrap.dedent("\n".join(lines[number + 1 : end])).strip()
            inner, nested = _without_definitions(block.split("\n"))
            definitions += [(line.strip(), inner), *nested]
            number = end
        else:
            text.append(line)
            number += 1
    return textwrap.dedent("\n".join(text)).strip(), definitions


def _end_of_block(lines: list[str], start: int, indent: int) -> int:
    """The first line from `start` on that is not blank and is indented by less than `indent`."""
    for number in range(start, len(lines)):
        line = lines[number]
        if line.strip() and len(line) - len(line.lstrip()) < indent:
            return number
    return len(lines)
