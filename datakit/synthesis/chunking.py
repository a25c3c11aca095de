"""Documents are cut into passages, at the ends of paragraphs and sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator

# Han, kana, and the scripts of Thailand, Laos, Burma and Cambodia are written without spaces: two of their characters count as
# one word. A run of other characters is one word for every 32 of them, so that no passage hides a page in one "word".
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_UNSPACED}]{{1,2}}|[^\s{_UNSPACED}]{{1,32}}")
_PARAGRAPH = re.compile(r"[ \t]*\r?\n(?:[ \t]*\r?\n)+")
# A sentence ends at a mark and a space before anything but a small letter, or at a mark of East Asia.
_SENTENCE = re.compile(r"[.!?…][\"'”’)\]]*\s+(?![a-z])|[。！？][」』”’）]*\s*")
# These end in a full stop, and the sentence goes on.
_ABBREVIATION = re.compile(r"(?:\b(?:[A-Za-z]|e\.g|i\.e|cf|vs|Dr|Mr|Mrs|Ms|Prof|St|No|Fig|Eq|Sec|al|approx))\.[\"'”’)\]]*\s+$")

_ENDED = re.compile(r"[.!?…。！？][\"'”’)\]」』）]*$")

# What a passage costs: for each missing word, for an end inside a paragraph, and for itself.
_MISSING, _INSIDE, _PASSAGE, _WORST = 1 << 48, 1 << 24, -1, 1 << 96

Span = tuple[int, int]


def word_count(text: str) -> int:
    """Words of a text; for scripts without spaces, half the number of its characters."""
    return sum(1 for _ in _WORD.finditer(text))


def passages(text: str, min_words: int, max_words: int) -> list[str]:
    """The passages of a text, in order. Together they hold all of its words.

    Of all ways to end passages at sentences, the one is taken that has the fewest words missing to `min_words`, then the fewest
    passages that end inside a paragraph, then the most passages. No passage has more than `max_words`: a sentence that is longer
    is cut at its line breaks, and where that is not enough between two words. A text with fewer than `min_words` is one passage.
    """
    pieces = list(_pieces(text, max_words))
    found = [text[start:end].strip() for start, end in _joined(pieces, min_words, max_words)]
    return [passage for passage in found if passage]


def sentences(text: str, min_words: int, max_words: int) -> list[str]:
    """The sentences of a text that have so many words, in order, each on one line.

    What ends without a mark (a heading, an item of a list, code) is none, unless the text is nothing else.
    """
    found = []
    for span in _split(text, (0, len(text)), _PARAGRAPH):
        for start, end in _sentences(text, span):
            sentence = " ".join(text[start:end].split())
            alone = sentence == " ".join(text.split())
            if min_words <= word_count(sentence) <= max_words and (alone or _ENDED.search(sentence)):
                found.append(sentence)
    return found


def _joined(pieces: list[tuple[Span, int, bool]], min_words: int, max_words: int) -> Iterator[Span]:
    """Spans of the passages that `pieces` (span, words, ends a paragraph) are put together to."""
    # best[j]: the cheapest way to put the first j pieces into passages, and where its last passage begins. The three parts of a
    # cost are one number, so that a book does not take minutes; no text has 2^24 pieces.
    costs, begins = [0], [0]
    for end in range(1, len(pieces) + 1):
        inside = 0 if pieces[end - 1][2] else _INSIDE
        words, best, begin = 0, _WORST, end - 1
        for start in range(end - 1, -1, -1):
            words += pieces[start][1]
            if words > max_words and start < end - 1:
                break
            cost = costs[start] + inside + _PASSAGE
            if words < min_words:
                cost += (min_words - words) * _MISSING
            if cost <= best:
                best, begin = cost, start
        costs.append(best)
        begins.append(begin)
    ends, end = [], len(pieces)
    while end:
        ends.append((begins[end], end))
        end = begins[end]
    for start, end in reversed(ends):
        yield pieces[start][0][0], pieces[end - 1][0][1]


def _pieces(text: str, max_words: int) -> Iterator[tuple[Span, int, bool]]:
    """Sentences, and the parts of sentences that are too long: span, words, and whether a paragraph ends there."""
    for start, end in _split(text, (0, len(text)), _PARAGRAPH):
        parts = [part for sentence in _sentences(text, (start, end)) for part in _cut(text, sentence, max_words)]
        for number, part in enumerate(parts):
            yield part, word_count(text[slice(*part)]), number == len(parts) - 1


def _sentences(text: str, span: Span) -> Iterator[Span]:
    start = span[0]
    for match in _SENTENCE.finditer(text, *span):
        if not _ABBREVIATION.search(text, max(start, match.start() - 8), match.end()):
            yield start, match.end()
            start = match.end()
    if start < span[1]:
        yield start, span[1]


def _cut(text: str, span: Span, max_words: int) -> Iterator[Span]:
    if word_count(text[slice(*span)]) <= max_words:
        yield span
        return
    for start, end in _split(text, span, re.compile(r"\n")):
        marks = [match.start() for match in _WORD.finditer(text, start, end)]
        first = 0
        while len(marks) - first > max_words:
            cut = first + max_words
            while cut > first and not _between_words(text, marks[cut]):
                cut -= 1
            # One run of characters without a space, longer than a whole passage: it is cut where the passage is full.
            cut = cut if cut > first else first + max_words
            yield start, marks[cut]
            start, first = marks[cut], cut
        yield start, end


def _between_words(text: str, position: int) -> bool:
    return text[position - 1].isspace() or re.match(rf"[{_UNSPACED}]", text[position]) is not None


def _split(text: str, span: Span, separator: re.Pattern[str]) -> Iterator[Span]:
    """The parts of a span, each with the separator that ends it."""
    start = span[0]
    for match in separator.finditer(text, *span):
        yield start, match.end()
        start = match.end()
    if start < span[1]:
        yield start, span[1]
