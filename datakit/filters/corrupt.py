"""Ways in which a good row is spoilt, to train and to test a quality classifier.

Each is a small pure function of a pair, of another pair of the same category, and of a source of numbers that the row's id seeds.
Where it cannot spoil a pair (a single word cannot be shuffled), it gives the pair back as it is, and the pair is left out.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Pair(NamedTuple):
    query: str
    positive: str


class Draw(random.Random):
    """Numbers drawn from a seed. Rows that are held out get phrases that no other row gets: no list of them is learnt."""

    def __init__(self, seed: str, held_out: bool = False) -> None:
        super().__init__(seed)
        self.held_out = held_out

    def phrase(self, phrases: Sequence[str]) -> str:
        return self.choice(phrases[int(self.held_out) :: 2])


Corruption = Callable[[Pair, Pair, Draw], Pair]

_NEIGHBOURS = {
    "q": "wa", "w": "qes", "e": "wrd", "r": "etf", "t": "ryg", "y": "tuh", "u": "yij", "i": "uok", "o": "ipl", "p": "o[",
    "a": "qsz", "s": "adw", "d": "sfe", "f": "dgr", "g": "fht", "h": "gjy", "j": "hku", "k": "jli", "l": "k;o", "z": "xa",
    "x": "zcs", "c": "xvd", "v": "cbf", "b": "vng", "n": "bmh", "m": "n,j",
}  # fmt: skip
_BOILERPLATE = (
    "Home | About | Contact | Log in | Sign up",
    "We use cookies to improve your experience. Accept all cookies",
    "Share on Facebook Share on Twitter Share by e-mail",
    "Click here to read more ...",
    "© 2024 All rights reserved. Terms of use",
    "Subscribe to our newsletter and never miss an update!",
    "Skip to main content Menu Search Close",
    "Please enable JavaScript",
    "Related articles You may also like Previous Next",
    "Page 1 of 12 Next > Last >>",
    "Advertisement Continue reading below",
    "Your session has expired. Please log in again.",
)
_LEAKS = (
    "Here are three questions about the passage: 1.",
    "Sure, here is a search query:",
    "As an AI language model, I",
    "Query:",
    "You are a teacher. Write a question that the passage answers:",
    "Question 1:",
    "The passage says that",
    "Based on the text above,",
    "Persona: a student. Question:",
    "Please provide the text, and I will write",
    "Assistant: Certainly! A possible query is",
    'Output: {"query":',
    "Write one question. Do not explain.",
)
_EMPTY = (
    "What is the main idea?",
    "What does it say about this?",
    "Tell me more about it",
    "What is the purpose of the text?",
    "What is [topic]?",
    "How does this work in general?",
    "Can you explain the following?",
    "What should I know?",
    "What is the most important thing here?",
    "Why is this so?",
)

_ASKED = (
    "How do I {}?",
    "How can I {}?",
    "How to {}",
    "Is there a way to {}?",
    "What do I need to {}?",
    "I want to {}. How does that work?",
    "Can it {}?",
    "Which function can {}?",
    "Does it {}?",
    "how do you {}",
    "Why would I {}?",
    "When should one {}?",
)
_ASKED_OF = (
    "What is {}?",
    "What are {}?",
    "What is (are) {} ?",
    "How does {} work?",
    "Where is {} used?",
    "Do you have information about {}",
    "What does {} mean?",
    "Why is {} needed?",
    "Who needs {}?",
    "What are the options of {} ?",
    "Is {} what I need?",
    "When is {} used?",
)


def shuffled_query(pair: Pair, other: Pair, draw: Draw) -> Pair:
    """The words of the query in another order."""
    return pair._replace(query=_shuffled(pair.query, draw))


def shuffled_positive(pair: Pair, other: Pair, draw: Draw) -> Pair:
    """The words of the positive in another order."""
    return pair._replace(positive=_shuffled(pair.positive, draw))


def wrong_positive(pair: Pair, other: Pair, draw: Draw) -> Pair:
    """The positive of another row of the category."""
    return pair._replace(positive=other.positive)


def truncated_query(pair: Pair, other: Pair, draw: Draw) -> Pair:
    """The query breaks off in the middle of a word."""
    if len(pair.query.split()) < 3:
        return pair
    return pair._replace(query=_cut(pair.query, draw, 0.25, 0.75))


def truncated_positive(pair: Pair, other: Pair, draw: Draw) -> Pair:
    """Of the positive only the beginning is left, and breaks off in the middle of a word."""
    if len(pair.positive.split()) < 12:
        return pair
    return pair._replace(positive=_cut(pair.positive, draw, 0.05, 0.3))


def repeated_query(pair: Pair, other: Pair, draw: Draw) -> Pair:
    """The query says some of its words again and again."""
    return pair._replace(query=_looped(pair.query, draw, 3))


def repeated_positive(pair: Pair, other: Pair, draw: Draw) -> Pair:
    """The positive gets stuck in a loop."""
    return pair._replace(positive=_looped(pair.positive, draw, 6))


def boilerplate(pair: Pair, other: Pair, draw: Draw) -> Pair:
    """What surrounds a text on a web page is in the positive, before, within and after it."""
    words = pair.positive.split(" ")
    for _ in range(draw.randint(2, 4)):
        words.insert(draw.choice((0, len(words), draw.randint(0, len(words)))), draw.phrase(_BOILERPLATE))
    return pair._replace(positive=" ".join(words))


def mojibake(pair: Pair, other: Pair, draw: Draw) -> Pair:
    """UTF-8 was read as if it were Windows-1252; plain quotes and dashes were typographic ones."""
    return Pair(_misread(pair.query, draw), _misread(pair.positive, draw))


def keyboard_noise(pair: Pair, other: Pair, draw: Draw) -> Pair:
    """Every seventh letter of the query or so is a neighbour on the keyboard, is missing, or has changed places."""
    letters = list(pair.query)
    for at in range(len(letters)):
        if letters[at].lower() in _NEIGHBOURS and draw.random() < 0.14:
            way = draw.randrange(3)
            if way == 0:
                letters[at] = draw.choice(_NEIGHBOURS[letters[at].lower()])
            elif way == 1:
                letters[at] = ""
            elif at + 1 < len(letters):
                letters[at], letters[at + 1] = letters[at + 1], letters[at]
    return pair._replace(query="".join(letters))


def prompt_leak(pair: Pair, other: Pair, draw: Draw) -> Pair:
    """The query begins with what was said to the model that wrote it, or with what it said."""
    return pair._replace(query=f"{draw.phrase(_LEAKS)} {pair.query}")


def empty_query(pair: Pair, other: Pair, draw: Draw) -> Pair:
    """A query that could be asked of any text."""
    return pair._replace(query=draw.phrase(_EMPTY))


def markup(pair: Pair, other: Pair, draw: Draw) -> Pair:
    """Tags and entities of a web page were left in the positive."""
    words = pair.positive.split(" ")
    for at in range(len(words)):
        if draw.random() < 0.12:
            tag = draw.choice(("div", "span", "p", "b", "li", "td"))
            words[at] = draw.choice(
                (f"<{tag}>{words[at]}</{tag}>", f"&nbsp;{words[at]}", f"{words[at]}&amp;", f'<{tag} class="x">')
            )
    return pair._replace(positive=" ".join(words))


def varied(pair: Pair, draw: Draw) -> Pair:
    """The pair as others would have put it, and as good: the query as a question, in lower case, without a full stop; the
    positive on one line. Documentation asks nothing, so without this a model learns that a question mark is a fault."""
    query, positive = pair.query.strip(), pair.positive
    bare = query.rstrip(" .:")
    words = bare.split(" ")
    if draw.random() < 0.6 and len(words) > 1 and re.fullmatch(r"[A-Z][a-z]+", words[0]):
        small = " ".join([words[0].lower(), *words[1:]])
        query = draw.choice(_ASKED).format(small, small)
    elif draw.random() < 0.4 and len(words) < 6:
        query = draw.choice(_ASKED_OF).format(bare)
    elif draw.random() < 0.5:
        query = bare
    if draw.random() < 0.15:
        query = query.lower()
    if draw.random() < 0.5:
        positive = " ".join(positive.split())
    return Pair(query, positive)


CORRUPTIONS: dict[str, Corruption] = {
    function.__name__: function
    for function in (
        shuffled_query, shuffled_positive, wrong_positive, truncated_query, truncated_positive, repeated_query, repeated_positive,
        boilerplate, mojibake, keyboard_noise, prompt_leak, empty_query, markup,
    )
}  # fmt: skip


def _shuffled(text: str, draw: Draw) -> str:
    words = text.split()
    order = list(words)
    draw.shuffle(order)
    return " ".join(order) if order != words else text


def _cut(text: str, draw: Draw, least: float, most: float) -> str:
    """A beginning of the text, of that share of it, which ends inside a word."""
    at = max(2, int(len(text) * draw.uniform(least, most)))
    inside = [match.start() for match in re.finditer(r"(?<=\w)(?=\w)", text)]
    return text[: min(inside, key=lambda place: abs(place - at))].rstrip() if inside else text


def _looped(text: str, draw: Draw, span: int) -> str:
    words = text.split(" ")
    if len(words) < 2:
        return text
    size = min(span, len(words))
    start = draw.randint(0, len(words) - size)
    return " ".join([*words[: start + size], *(words[start : start + size] * draw.randint(3, 6)), *words[start + size :]])


def _misread(text: str, draw: Draw) -> str:
    typographic = {"'": "’", '"': "“", "-": "–", "...": "…", ". ": ".\u00a0"}
    for plain, better in typographic.items():
        text = text.replace(plain, better)
    vowels = {"e": "é", "a": "à", "o": "ö", "u": "ü", "i": "í"}
    text = "".join(vowels[each] if each in vowels and draw.random() < 0.05 else each for each in text)
    return text.encode("utf-8", "replace").decode("cp1252", "replace")
