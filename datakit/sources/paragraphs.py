"""Paragraphs of plain text."""

from __future__ import annotations

import re


def beginning(text: str, words: int) -> str:
    """The first paragraphs of a text, as many as have at most `words` words together; at least one."""
    paragraphs = re.split(r"\n\s*\n", text)
    taken = list[str]()
    count = 0
    for paragraph in paragraphs:
        count += len(paragraph.split())
        if taken and count > words:
            break
        taken.append(paragraph)
    return "\n\n".join(taken).strip()
