"""Who writes the answers. An engine turns conversations into answers, and tells a desk of each one as soon as it is there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from datakit.recipe import AnyEngine, OpenAIEngine, TransformersEngine, deciding
from datakit.schema import digest
from datakit.step import package_version

TRANSFORMERS_PACKAGES = ("accelerate", "gguf", "tokenizers", "torch", "transformers")
VLLM_PACKAGES = ("torch", "transformers", "vllm")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class Conversation:
    """What is said to a model, and how many texts it is asked for.

    `fields` are what each of them consists of, such as a positive and a negative; none where the answer is a numbered list.
    `choices` are the values that its one field may have, where they are given.
    """

    messages: tuple[Message, ...]
    queries: int
    fields: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()

    def as_dicts(self) -> list[dict[str, str]]:
        return [{"role": message.role, "content": message.content} for message in self.messages]


@dataclass(frozen=True)
class Request:
    """A conversation, its place among those that were given, and its key: the digest of everything that decides the answer."""

    number: int
    key: str
    conversation: Conversation


# The `finish_reason` of an answer that is none: the model, or who serves it, would not take this prompt.
REFUSED = "refused"


@dataclass(frozen=True)
class Answer:
    """What a model wrote. `finish_reason` is "stop", or "length" where it was cut off; lengths are in tokens.

    With REFUSED, `text` says why the prompt was not taken, and is nothing that a model wrote.
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


# Requests that are answered together: one for a server; for a model in process a fixed batch, since a text that it samples
# changes with its neighbours.
Batch = Sequence[Request]


class Desk(Protocol):
    """Where an engine asks and reports. Called from one thread at a time."""

    def may_ask(self, count: int) -> bool:
        """Whether `count` more requests may be made; False when the budget is spent. True counts them as made."""
        ...

    def answered(self, answers: Sequence[tuple[str, Answer]]) -> None:
        """Keeps the answers of one batch, by key: from here on they are never asked for again."""
        ...

    def has_answers(self) -> bool:
        """Whether the model has answered anything in this build, now or in an earlier run: then a refusal is about its prompt."""
        ...

    def failed(self, key: str, kind: str) -> None:
        """Counts a failed attempt. Kinds: rate_limited, server_error, connection, timeout, malformed."""
        ...


class Engine(Protocol):
    """A language model, wherever it runs. `loading_seconds` are those that its model took to load so far; none for a server."""

    loading_seconds: float

    def batches(self, conversations: Sequence[Conversation]) -> list[Batch]:
        """The conversations as requests, in the batches that they are asked in."""
        ...

    def ask(self, batches: Sequence[Batch], desk: Desk) -> None:
        """Asks for all of `batches`, or until the desk says no more. Raises UserError or BuildError where it cannot go on."""
        ...

    def close(self) -> None:
        """Frees what the engine holds."""
        ...


def request_key(identity: Mapping[str, Any], conversation: Conversation, **more: Any) -> str:
    """The digest of everything that decides an answer: the engine's identity, what is said, and what else the engine names."""
    parts = {"engine": identity, "messages": conversation.as_dicts(), "queries": conversation.queries, **more}
    if conversation.fields:
        parts |= {"fields": conversation.fields, "choices": conversation.choices}
    return digest("request", json.dumps(parts, sort_keys=True, ensure_ascii=False))


def speed_digest(engine: AnyEngine) -> str:
    """Says whether two engines may be taken for equally fast: the same model at the same server, or in process alike."""
    names = {"type", "model", "revision", "base_url", "gguf", "dtype"}
    return digest("speed", json.dumps(engine.model_dump(mode="json", include=names), sort_keys=True))


def at_once(engine: AnyEngine) -> int:
    """Requests that are answered at the same time."""
    return engine.concurrency if isinstance(engine, OpenAIEngine) else engine.batch_size


def engine_packages(engine: AnyEngine) -> tuple[str, ...]:
    """The packages whose versions decide the answers of an engine; none for a server, which has its own."""
    if isinstance(engine, OpenAIEngine):
        return ()
    if isinstance(engine, TransformersEngine):
        return TRANSFORMERS_PACKAGES
    return VLLM_PACKAGES


def make(name: str, engine: AnyEngine, model_digest: str, seed: int) -> Engine:
    """The engine that the recipe calls `name`. Loads no model and opens no connection yet.

    `model_digest` and `seed` are part of what decides the answers of a model in process.
    """
    identity = deciding(engine)
    if isinstance(engine, OpenAIEngine):
        from datakit.synthesis.engines.openai import OpenAIChat

        return OpenAIChat(name, engine, identity)
    versions = {package: package_version(package) for package in engine_packages(engine)}
    identity = {**identity, "model_digest": model_digest, "seed": seed, "packages": versions}
    if isinstance(engine, TransformersEngine):
        from datakit.synthesis.engines.transformers import TransformersChat

        return TransformersChat(name, engine, identity)
    from datakit.synthesis.engines.vllm import VllmChat

    return VllmChat(name, engine, identity)
