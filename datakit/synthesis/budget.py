"""What was spent, and whether more may be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from datakit.errors import UserError
from datakit.recipe import AnyEngine, Budget, OpenAIEngine
from datakit.step import Step, load


@dataclass(frozen=True)
class Spent:
    """Requests, tokens, and money by currency."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    money: Mapping[str, float] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def plus(self, other: Spent) -> Spent:
        currencies = sorted({*self.money, *other.money})
        return Spent(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            {currency: self.money.get(currency, 0.0) + other.money.get(currency, 0.0) for currency in currencies},
        )

    def priced(self, engine: AnyEngine) -> Spent:
        """With the money that its tokens cost at the engine's price."""
        price = engine.price if isinstance(engine, OpenAIEngine) else None
        if price is None:
            return replace(self, money={})
        amount = (self.prompt_tokens * price.input + self.completion_tokens * price.output) / 1e6
        return replace(self, money={price.currency: amount})

    def notes(self) -> dict[str, Any]:
        """As a step notes it for the manifest."""
        return {
            "requests": self.requests,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "money": {currency: round(amount, 6) for currency, amount in self.money.items()},
        }


def from_notes(notes: Mapping[str, Any]) -> Spent:
    """What a finished step, or a finished unit of one, noted."""
    requests, prompt, completion = (int(notes.get(name, 0)) for name in ("requests", "prompt_tokens", "completion_tokens"))
    return Spent(requests, prompt, completion, notes.get("money", {}))


def check(budget: Budget, name: str, engine: AnyEngine, earlier: Sequence[Step]) -> None:
    """A UserError for a budget of money that cannot be counted."""
    if budget.money is None or not isinstance(engine, OpenAIEngine):
        return
    if engine.price is None:
        raise UserError(f"budget.money is set, and engines.{name} has no 'price'. Give it {{input: ..., output: ...}}.")
    for step in earlier:
        other = getattr(getattr(step.parameters, "engine", None), "price", None)
        if other is not None and other.currency != engine.price.currency:
            raise UserError(
                f"budget.money is one sum, and the engines have prices in {other.currency} and {engine.price.currency}. "
                "Give all prices in one currency."
            )


def spent_by(steps: Sequence[Step], cache: str) -> Spent:
    """What the finished steps of this build spent, whenever that was."""
    total = Spent()
    for step in steps:
        total = total.plus(from_notes(load(step, cache).report.notes))
    return total


def refusal(budget: Budget, spent: Spent, more: int) -> str | None:
    """Why `more` requests may not be made, as a sentence; None where they may.

    Tokens and money are known only afterwards: what is on its way when they run out is still paid.
    """
    money = sum(spent.money.values())
    currency = " ".join(spent.money)
    if budget.requests is not None and spent.requests + more > budget.requests:
        return f"{spent.requests:,} of {budget.requests:,} requests are made"
    if budget.tokens is not None and spent.tokens >= budget.tokens:
        return f"{spent.tokens:,} of {budget.tokens:,} tokens are spent"
    if budget.money is not None and money >= budget.money:
        return f"{money:.4f} of {budget.money:.4f} {currency} are spent"
    return None
