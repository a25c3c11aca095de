"""What a build would do, before anything runs; and what a target of pairs would take, as far as earlier runs tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from rich.console import Group, RenderableType
from rich.table import Table

from datakit.errors import UserError
from datakit.measured import Measured, Sizes, Yield, latest, measured, sizes, yields
from datakit.pipeline import plan
from datakit.planning_of_rows import AboutRows, about_rows
from datakit.recipe import AnyEngine, OpenAIEngine, Price, Recipe
from datakit.step import Step, is_cached, load
from datakit.synthesis.engines import at_once
from datakit.synthesis.synthesise import Size, Synthesising, planned, size

REFERENCE = (
    "For comparison, the guide that datakit follows gives 200-500 GB for a pre-training set of 100M-500M pairs, and 20-100 GB "
    "for a fine-tuning set of 5M-20M."
)


@dataclass(frozen=True)
class Wanted:
    """What the recipe asks of one engine.

    `requests` are not answered yet, with their tokens; None while the documents of a step have not been read. `steps` counts the
    steps that ask it. `texts` are asked for in one request, and so many requests are made for one passage (or task): means over
    all requests and passages, or over what the recipe says of them where they cannot be counted yet.
    """

    name: str
    engine: AnyEngine
    steps: int
    texts: float
    per_passage: float
    requests: int | None
    answered: int
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Taken:
    """What some requests take. None where nothing tells."""

    requests: int
    prompt_tokens: float | None
    completion_tokens: float | None
    hours: float | None
    money: float | None


def taken(requests: int, prompt: float | None, completion: float | None, rate: float | None, price: Price | None) -> Taken:
    """What `requests` take, at so many tokens a request and `rate` requests a second."""
    money = None
    if price is not None and prompt is not None and completion is not None:
        money = requests * (prompt * price.input + completion * price.output) / 1e6
    return Taken(
        requests,
        None if prompt is None else requests * prompt,
        None if completion is None else requests * completion,
        None if not rate else requests / rate / 3600,
        money,
    )


def shares(wanted: Sequence[Wanted]) -> list[float]:
    """Each engine's share of all requests: as the recipe plans them, or by steps where it cannot be known yet."""
    counts: list[float] = [(each.requests or 0) + each.answered for each in wanted]
    if any(each.requests is None for each in wanted) or not sum(counts):
        counts = [each.steps for each in wanted]
    return [count / sum(counts) for count in counts]


def for_target(pairs: int, parts: Sequence[float], rows: Sequence[float]) -> list[int]:
    """Requests of each engine for `pairs` rows in all: `parts` are its shares of requests, `rows` those kept of one request."""
    a_request = sum(part * kept for part, kept in zip(parts, rows, strict=True))
    if a_request <= 0:
        raise UserError("No row was kept of the earlier build, so that nothing says how many requests a target takes.")
    return [_ceiling(pairs * part / a_request) for part in parts]


def _ceiling(value: float) -> int:
    return -int(-value // 1)


def count(text: str) -> int:
    """A number as a person writes it: 100M, 1.5B, 250k, 2_000_000, 5e8. Raises UserError for what is none."""
    factor = {"k": 1e3, "m": 1e6, "b": 1e9}.get(text[-1:].lower())
    try:
        value = float(text[:-1] if factor else text) * (factor or 1)
        if not 1 <= value <= 1e12:
            raise ValueError
        return round(value)
    except ValueError as error:
        raise UserError(f"'{text}' is no number of pairs. Write it as 250k, 100M or 1.5B; at least 1, at most 1000B.") from error


def about(value: float | None, unit: str = "") -> str:
    """Two significant digits, with K, M, B or T (bytes: KB, MB, GB, TB; powers of ten): an estimate is no more exact."""
    if value is None:
        return "not measured"
    names = ("", "K", "M", "B", "T") if unit != "B" else ("", "K", "M", "G", "T")
    power = 0
    while power < len(names) - 1 and float(f"{value:.1e}") >= 1000:
        value, power = value / 1000, power + 1
    number = float(f"{value:.1e}")
    if number < 1:
        text = f"{Decimal(f'{number:.2g}'):f}"
    else:
        text = f"{number:.1f}" if number < 10 and (power or number != int(number)) else f"{number:,.0f}"
    return f"{text}{' ' if unit else ''}{names[power]}{unit}"


def wanted(recipe: Recipe, steps: Sequence[Step], asked: Mapping[str, Mapping[str, int] | None]) -> list[Wanted]:
    """What the synthesise steps ask, by engine, in the order of the recipe. `asked` is what each of them does, by its name."""
    found: dict[str, list[Step]] = {}
    for step in steps:
        if isinstance(step.parameters, Synthesising):
            found.setdefault(step.parameters.synthesis.engine, []).append(step)
    result = []
    for name, those in found.items():
        counts = [each for step in those if (each := asked[step.name]) is not None]
        names = ("requests", "answered", "prompt_tokens", "completion_tokens", "seeds", "texts")
        total = {key: sum(each[key] for each in counts) for key in names}
        known = len(counts) == len(those)
        if known and total["seeds"]:
            every = total["requests"] + total["answered"]
            texts, per_passage = total["texts"] / every, every / total["seeds"]
        else:
            texts, per_passage = _by_the_recipe([size(step) for step in those])
        result.append(
            Wanted(
                name=name,
                engine=recipe.engines[name],
                steps=len(those),
                texts=texts,
                per_passage=per_passage,
                requests=total["requests"] if known else None,
                answered=total["answered"],
                prompt_tokens=total["prompt_tokens"],
                completion_tokens=total["completion_tokens"],
            )
        )
    return result


def _by_the_recipe(sizes: Sequence[Size]) -> tuple[float, float]:
    """Texts of a request, and requests of a passage, over all of these: by the numbers of passages, where each has one."""
    weights = [each.seeds for each in sizes if each.seeds is not None]
    if len(weights) < len(sizes):
        weights = [1] * len(sizes)
    requests = [weight * each.requests for weight, each in zip(weights, sizes, strict=True)]
    texts = sum(number * each.texts for number, each in zip(requests, sizes, strict=True))
    return texts / sum(requests), sum(requests) / sum(weights)


def _asked(recipe: Recipe, steps: Sequence[Step]) -> dict[str, dict[str, int] | None]:
    """What each synthesise step asks, by its name; None where its documents have not been read. Cuts those that have."""
    return {step.name: _asked_by(step, recipe.cache) for step in steps if isinstance(step.parameters, Synthesising)}


def _asked_by(step: Step, cache: str) -> dict[str, int] | None:
    if not is_cached(step, cache):
        return planned(step, cache)
    notes = load(step, cache).report.notes
    answered, seeds = int(notes["requests"]), int(notes["drawn"])
    done = {"requests": 0, "prompt_tokens": 0, "completion_tokens": 0, "answered": answered}
    return {**done, "seeds": seeds, "texts": size(step).rows(seeds)}


def report(recipe: Recipe, pairs: int | None, gpus: int) -> Group:
    """The tables of a plan: its steps; what its language models take, for the recipe as it is or for `pairs` rows; storage.

    `gpus` are those behind the engines. Raises UserError where a target is given and nothing is synthesised.
    """
    steps = plan(recipe).steps
    counts = _asked(recipe, steps)
    asked = wanted(recipe, steps, counts)
    parts: list[RenderableType] = [_steps_table(recipe, steps)]
    written = {name: each["texts"] for name, each in counts.items() if each is not None}
    parts += _of_rows(about_rows(steps, recipe.cache, written), gpus)
    if not asked:
        if pairs is not None:
            raise UserError(f"'{recipe.name}' has no category with 'synthesis': no number of pairs can be asked for.")
        return Group(*parts)
    known = {each.name: measured(recipe.cache, each.engine) for each in asked}
    build = latest(recipe)
    kept = yields(build, recipe.engines) if build else {}
    rows = [_rows(each, known[each.name], kept.get(each.name)) for each in asked]
    requests: list[int | None] = [each.requests for each in asked]
    if pairs is not None:
        requests = [*for_target(pairs, shares(asked), rows)]
    parts.append(_engines_table(asked, requests, known, pairs, gpus))
    parts += [_basis(each, known[each.name], kept.get(each.name)) for each in asked]
    everything = [
        None if number is None else number + (each.answered if pairs is None else 0)
        for number, each in zip(requests, asked, strict=True)
    ]
    if all(number is not None for number in everything):
        counted = [number or 0 for number in everything]
        if pairs is None:
            pairs = round(sum(number * row for number, row in zip(counted, rows, strict=True)))
        parts += _storage(pairs, sum(counted), sizes(build, recipe.cache) if build else None)
    return Group(*parts)


def _rows(asked: Wanted, known: Measured | None, kept: Yield | None) -> float:
    """Rows of one request: kept by an earlier build, else as written, else as many as are asked for."""
    if kept is not None:
        return kept.rows
    return asked.texts if known is None else known.rows


def _steps_table(recipe: Recipe, steps: Sequence[Step]) -> Table:
    table = Table(title=f"{recipe.name}: what a build would do", title_justify="left")
    for heading in ("step", "state", "rows"):
        table.add_column(heading, justify="right" if heading == "rows" else "left")
    for step in steps:
        cached = is_cached(step, recipe.cache)
        rows = f"{load(step, recipe.cache).report.counts.out:,}" if cached else ""
        table.add_row(step.name, "cached" if cached else "to run", rows)
    return table


def _engines_table(
    asked: Sequence[Wanted],
    requests: Sequence[int | None],
    known: Mapping[str, Measured | None],
    pairs: int | None,
    gpus: int,
) -> Table:
    what = "what is left to ask" if pairs is None else f"{pairs:,} pairs: what there is to ask"
    table = Table(title=f"Language models, {what}", title_justify="left")
    for heading in ("engine", "answered", "requests", "passages", *_COST):
        table.add_column(heading, justify="left" if heading == "engine" else "right")
    for each, number in zip(asked, requests, strict=True):
        answered = f"{each.answered:,}" if pairs is None else ""
        if number is None:
            table.add_row(each.name, answered, "known after the documents are read")
            continue
        measure = known[each.name]
        price = _price(each.engine)
        prompt, completion = tokens(each, measure)
        cost = taken(number, prompt, completion, measure.rate if measure else None, price)
        table.add_row(
            each.name,
            answered,
            f"{number:,}" if pairs is None else about(number),
            about(number / each.per_passage),
            *_cost(cost, price, gpus),
        )
    return table


_COST = ("prompt tokens", "completion tokens", "hours", "GPU hours", "money")


def _cost(cost: Taken, price: Price | None, gpus: int) -> list[str]:
    """The cells under _COST."""
    hours = None if cost.hours is None else cost.hours * gpus
    money = "no price" if price is None else "not known" if cost.money is None else f"{about(cost.money)} {price.currency}"
    return [about(cost.prompt_tokens), about(cost.completion_tokens), about(cost.hours), about(hours), money]


def _price(engine: AnyEngine) -> Price | None:
    return engine.price if isinstance(engine, OpenAIEngine) else None


def _of_rows(asking: Sequence[AboutRows], gpus: int) -> list[RenderableType]:
    """What is left to ask about rows. Not part of a target of pairs."""
    table = Table(title="Judges and written negatives, what is left to ask", title_justify="left")
    for heading in ("step", "engine", "answered", "requests", *_COST):
        table.add_column(heading, justify="left" if heading in ("step", "engine") else "right")
    for each in asking:
        if each.requests is None:
            table.add_row(each.step, each.name, "", f"known after {each.source}")
            continue
        price = _price(each.engine)
        cost = taken(each.requests, each.prompt_tokens, each.completion_tokens, each.rate, price)
        number = f"{each.requests:,}" if each.exact else f"at most {each.requests:,}"
        table.add_row(each.step, each.name, f"{each.answered:,}", number, *_cost(cost, price, gpus))
    return [table, *(each.basis for each in asking if each.basis)] if asking else []


def tokens(asked: Wanted, known: Measured | None) -> tuple[float | None, float | None]:
    """Prompt and completion tokens of one request: as measured, else as estimated from the texts that would be sent."""
    if known is not None:
        return known.prompt_tokens, known.completion_tokens
    if asked.requests:
        return asked.prompt_tokens / asked.requests, asked.completion_tokens / asked.requests
    return None, None


def _basis(asked: Wanted, known: Measured | None, kept: Yield | None) -> str:
    """Where the figures of an engine come from."""
    if known is None:
        said = f"{asked.name}: nothing was measured; the cache has no finished step of this engine."
        if asked.requests:
            said += (
                " Tokens: a quarter of the characters of the prompts; of an answer 6 for a class, 16 for a line of a list, 32 "
                "for a sentence, 120 for a passage, and no more than max_tokens."
            )
    else:
        said = f"{asked.name}: tokens as measured over {known.requests:,} requests"
        if known.rate is None:
            said += "; no speed was measured, all answers came from the cache."
        else:
            said += f"; {known.rate:.3g} requests/s over {known.sent:,} requests, {_listed(known.at_once)} at once"
            now = at_once(asked.engine)
            said += "." if known.at_once == (now,) else f" (the recipe asks {now:,} at once, which may be faster or slower)."
    if kept is not None:
        return f"{said} {kept.rows:.3g} rows kept of a request, over the {kept.requests:,} of build {kept.build}."
    if known is not None:
        return f"{said} {known.rows:.3g} rows of a request before filters; no build of this recipe tells how many are kept."
    every = "" if asked.requests is None else f", {round((asked.requests + asked.answered) * asked.texts):,} in all"
    return f"{said} Rows: as many as are asked for ({asked.texts:.3g} of a request{every}), which is the most there can be."


def _listed(numbers: Sequence[int]) -> str:
    return " or ".join(f"{number:,}" for number in numbers)


def _storage(pairs: int, requests: int, known: Sizes | None) -> list[RenderableType]:
    if known is None:
        return ["Storage: nothing was measured; no build of this recipe is published.", REFERENCE]
    table = Table(title=f"Storage for {pairs:,} pairs", title_justify="left")
    for heading in ("what", "bytes a row", "in all"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    for what, each in (
        ("published rows (train, validation)", known.published),
        ("rejected rows beside them", known.rejected),
        ("steps in the cache", known.steps),
    ):
        table.add_row(what, about(each), about(None if each is None else each * pairs, "B"))
    answers = None if known.answer is None else known.answer * requests
    table.add_row("answers in the cache", about(None if answers is None else answers / max(1, pairs)), about(answers, "B"))
    return [table, f"Bytes as measured over the {known.rows:,} rows of build {known.build}.", REFERENCE]
