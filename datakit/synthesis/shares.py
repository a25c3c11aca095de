"""Declared shares: which kinds of text a request asks for, so that they hold over all requests, and what came of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from datakit.errors import UserError
from datakit.recipe import Model, Shares
from datakit.schema import digest
from datakit.synthesis.chunking import word_count


class Form(Model):
    """A kind of text that a prompt asks for. `length` and `complexity` are those of recipe.Shares; `score` is a degree of
    similarity in [0, 1]."""

    text: str
    length: str | None = None
    complexity: str | None = None
    score: float | None = None


_KINDS = ("length", "complexity")
_ROUNDS, _CLOSE = 1000, 1e-3


def applied(forms: Mapping[str, Form], shares: Shares) -> Shares:
    """The shares that hold for a prompt with these forms; a kind that does not is empty.

    A prompt whose forms say no length, or no complexity, has no shares of it; nor of defaults that its forms cannot give.
    """
    left_out: dict[str, dict[str, float]] = {}
    for kind in _KINDS:
        values = {getattr(form, kind) for form in forms.values()} - {None}
        asked_for = {name for name, share in getattr(shares, kind).items() if share}
        if not values or not (kind in shares.model_fields_set or asked_for <= values):
            left_out[kind] = {}
    return shares.model_copy(update=left_out)


def weights(forms: Mapping[str, Form], shares: Shares, place: str) -> dict[str, float]:
    """How often each form is asked for; they sum to 1.

    Starts from equal weights and scales them in turn to the declared shares of length and of complexity (iterative proportional
    fitting, Deming and Stephan 1940), so that forms stand in all combinations that a prompt has. Raises UserError for declared
    shares that its forms cannot give.
    """
    found = dict.fromkeys(forms, 1 / len(forms))
    holding = applied(forms, shares)
    declared: dict[str, Mapping[str, float]] = {kind: wanted for kind in _KINDS if (wanted := getattr(holding, kind))}
    for kind in _KINDS:
        if kind in shares.model_fields_set and getattr(shares, kind) and kind not in declared:
            raise UserError(f"synthesis.shares.{kind} is given, and the forms of the prompt '{place}' name no {kind}.")
    for _ in range(_ROUNDS if declared else 0):
        worst = 0.0
        for kind, wanted in declared.items():
            sums: dict[str | None, float] = {}
            for name, form in forms.items():
                sums[getattr(form, kind)] = sums.get(getattr(form, kind), 0.0) + found[name]
            worst = max([worst, *(abs(sums.get(value, 0.0) - share) for value, share in wanted.items())])
            for name, form in forms.items():
                value = getattr(form, kind)
                share = wanted.get(value, 0.0) if value is not None else 0.0
                found[name] = found[name] * share / sums[value] if sums[value] > 0 else 0.0
        if worst < 1e-9:
            break
    for kind, wanted in declared.items():
        for value, share in wanted.items():
            got = sum(found[name] for name, form in forms.items() if getattr(form, kind) == value)
            if abs(got - share) > _CLOSE:
                have = ", ".join(f"{form.length or '-'} and {form.complexity or '-'}" for form in forms.values())
                raise UserError(
                    f"synthesis.shares: the prompt '{place}' cannot give {share:g} of '{value}' ({kind}) together with the other "
                    f"shares. Its forms are: {have}. Change the shares, or the forms of a prompt of your own."
                )
    return found


def draw_forms(weighted: Mapping[str, float], count: int, seed: int, passage: str, persona: str) -> list[str]:
    """The names of `count` forms for one request, in the order of the prompt.

    Each form comes as often as the whole part of count * weight says; the rest is drawn without replacement with about the
    probabilities that are left (Pareto sampling, Rosén 1997), so that the weights hold over many requests.
    """
    counts, odds = dict[str, int](), dict[str, float]()
    for name, weight in weighted.items():
        expected = round(count * weight, 9)
        counts[name] = int(expected)
        left = expected - counts[name]
        if left > 0:
            # 52 bits are what a float holds; never 0 or 1.
            number = (int(digest("form", str(seed), passage, persona, name)[:13], 16) + 0.5) / 16**13
            odds[name] = (number / (1 - number)) / (left / (1 - left))
    for name in sorted(odds, key=lambda name: (odds[name], name))[: count - sum(counts.values())]:
        counts[name] += 1
    return [name for name in weighted for _ in range(counts[name])]


def draw_one(weighted: Mapping[str, float], *identity: str) -> str:
    """One of the names, with the probability of its weight, always the same for the same identity."""
    number = int(digest("share", *identity)[:13], 16) / 16**13 * sum(weighted.values())
    for name, weight in weighted.items():
        number -= weight
        if number < 0:
            return name
    return [name for name, weight in weighted.items() if weight][-1]


# Without one of these, a few words are keywords and no phrase.
_LINKS = frozenset(
    ["a", "an", "the", "of", "for", "to", "in", "on", "at", "by", "with", "from", "and", "or", "is", "are", "do", "does", "can"]
) | frozenset(["how", "what", "when", "where", "why", "which", "who"])
_ASKS = re.compile(r"[?？؟]\W*$")
_LONG, _PHRASE, _KEYWORDS = 15, 8, 5


def length_of(query: str) -> str:
    """The length of a query as it was written: long (15 words or more), sentence (asks with a mark, or has more than 8 words),
    keywords (up to 5 words, none of which links others, as English does with "of"), else phrase."""
    words = word_count(query)
    if words >= _LONG:
        return "long"
    if _ASKS.search(query) or words > _PHRASE:
        return "sentence"
    linked = any(word in _LINKS for word in re.findall(r"\w+", query.casefold()))
    return "keywords" if words <= _KEYWORDS and not linked else "phrase"


def merged(counts: Sequence[Mapping[str, Mapping[str, int]]]) -> dict[str, dict[str, int]]:
    """Counts by kind and value, summed over units."""
    total: dict[str, dict[str, int]] = {}
    for each in counts:
        for kind, values in each.items():
            for value, count in values.items():
                total.setdefault(kind, {})
                total[kind][value] = total[kind].get(value, 0) + count
    return {kind: dict(sorted(values.items())) for kind, values in sorted(total.items())}


def got(counts: Mapping[str, Mapping[str, int]], shares: Shares) -> dict[str, dict[str, dict[str, float]]]:
    """For length, complexity and formality: what was declared beside what the kept texts have, as shares of them.

    `shares` are those that hold for the prompt (`applied`).
    """
    result = {}
    for kind in Shares.model_fields:
        if values := counts.get(kind):
            total = sum(values.values())
            result[kind] = {
                "declared": dict(getattr(shares, kind)),
                "got": {value: round(count / total, 4) for value, count in values.items()},
            }
    return result
