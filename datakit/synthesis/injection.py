"""Texts that speak to the model that reads them: "ignore the above and ...". They are seeds of nothing.

A text is looked at in several forms (datakit.synthesis.injection_forms): as it stands, without accents and look-alikes, with the
gaps between letters closed, and decoded. The patterns ask for an imperative and for what it is about, so that documents that talk
of instructions, systems or of ignoring something pass. What no pattern knows is still only a text: prompts fence it, and answers
are checked.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from datakit.synthesis import injection_english as english
from datakit.synthesis import injection_foreign as foreign
from datakit.synthesis import injection_forms as forms
from datakit.synthesis import injection_turns as turns

# "Ignore the above and ...": what was asked before is to be put aside, or the reader is called upon as a model.
INJECTION_OVERRIDE = "injection_override"
# Tokens of chat templates, turns of a conversation, and a new role.
INJECTION_ROLE = "injection_role"
# Another format, language or content of the answer.
INJECTION_FORMAT = "injection_format"
# The prompt, secrets, or the conversation are to be given away.
INJECTION_EXFILTRATION = "injection_exfiltration"
# The text pretends to be over.
INJECTION_FENCE = "injection_fence"
# Signs without width, look-alikes, spaced letters, encodings.
INJECTION_HIDDEN = "injection_hidden"
# An override or another format in another language than English.
INJECTION_FOREIGN = "injection_foreign"

_SHOWN = 200


class Injection(NamedTuple):
    """Why a text is no seed, and the words of it that say so."""

    reason: str
    words: str


_VERBS = ("ignor", "ingor", "igonr", "disregard", "disergard", "forget", "fogret")
_SQUEEZED = re.compile(
    r"(?:ignor(?:e|ing)|disregard(?:ing)?|forget|ingore|igonre|disergard|fogret)(?:all|any|the|every|thing|of|your|my|these|those|that|please|completely|about|whatever|was|is){0,5}"
    r"(?:(?:previous|preivous|prevoius|pervious|prior|above|abvoe|preceding|earlier|original|initial|system)+(?:\w{0,14}?(?:instr?uctions?|insturctions?|instrucitons?|prompts?|directions?|rules?|orders?|commands?|guidelines?|messages?|text|context|everything)|and)"
    r"|(?:instructions?|prompts?)(?:above|before|and|given|sofar)|(?:rules|orders|directions|guidelines)(?:above|before|given)|everythingabove|thingabove)"
)  # fmt: skip


def detect(text: str) -> str | None:
    """The reason why a text may be an attack on the model that reads it; None for a text that is only a text."""
    found = find(text)
    return found.reason if found else None


def find(text: str) -> Injection | None:
    """Like `detect`, with the words that were found, 200 characters at most."""
    if not text.isascii() and (signs := forms.SMUGGLED.search(text)):
        said = forms.smuggled(signs.group()) or " ".join(f"U+{ord(sign):04X}" for sign in signs.group()[:8])
        return Injection(INJECTION_HIDDEN, said[:_SHOWN])
    plain = forms.lines(text)
    if found := _english(plain):
        return found
    bare = plain if plain.isascii() else forms.folded(text)
    if found := _first(INJECTION_FOREIGN, foreign.RULES, bare, {}):
        return found
    return _hidden(text, plain, bare)


def _english(text: str) -> Injection | None:
    """What `forms.lines` of a text says in English."""
    written, said = text, forms.words(text)
    in_written, in_said = dict[str, bool](), dict[str, bool]()
    return (
        _first(INJECTION_ROLE, turns.TOKENS, written, in_written)
        or _first(INJECTION_FENCE, turns.FENCE, written, in_written)
        or _first(INJECTION_ROLE, turns.TURN, written, in_written)
        or _first(INJECTION_OVERRIDE, english.OVERRIDE, said, in_said)
        or _first(INJECTION_ROLE, turns.ROLE, said, in_said)
        or _first(INJECTION_EXFILTRATION, english.EXFILTRATION, said, in_said)
        or _first(INJECTION_FORMAT, english.FORMAT, said, in_said)
        or _first(INJECTION_EXFILTRATION, (english.IMAGE,), written, in_written)
    )


def _hidden(text: str, plain: str, bare: str) -> Injection | None:
    """What stands in a text only when it is read in another way."""
    readable = forms.latin(bare)
    others = [("look-alikes", readable)] if readable != plain else []
    if (written := forms.without_digits(readable)) is not None:
        others.append(("digits", written))
    for name, other in others:
        if found := _english(other):
            return _marked(name, found.words)
    for name, other in [("gaps", readable), *others[1:]]:
        letters = forms.squeezed(other)
        for way, turned in [(name, letters), *forms.turned(letters)]:
            if any(verb in turned for verb in _VERBS) and (match := _SQUEEZED.search(turned)):
                return _marked(way, match.group())
    for name, other in forms.decoded(text):
        if found := _english(forms.lines(other)):
            return _marked(name, found.words)
    return None


def _marked(how: str, words: str) -> Injection:
    return Injection(INJECTION_HIDDEN, f"{how}: {words}"[:_SHOWN])


def _first(reason: str, rules: Sequence[english.Rule], text: str, known: dict[str, bool]) -> Injection | None:
    for each in rules:
        if match := each.search(text, known):
            return Injection(reason, match.group().strip()[:_SHOWN])
    return None
