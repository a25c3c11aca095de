"""Engines, and what they are asked to write."""

from __future__ import annotations

import itertools
import math
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, WithJsonSchema, model_validator

from datakit.recipe.fields import Language, Model, Path, SecretField, deciding, operational


class Price(Model):
    """Money for a million tokens."""

    input: float = Field(ge=0)
    output: float = Field(ge=0)
    currency: str = "USD"


class Engine(Model):
    """What all engines share: the model, and how it samples."""

    model: str
    revision: str | None = Field(None, description="Tells two models of one name apart.")
    temperature: float = Field(0.7, ge=0)
    top_p: float = Field(0.95, gt=0, le=1)
    max_tokens: int = Field(256, ge=1)


def _plain_address(url: str) -> str:
    """The URL, if it is an address and nothing more. Else a ValueError: a recipe is published, with all that its URLs hold."""
    host = url.partition("://")[2].partition("/")[0]
    secret = "a query ('?')" if "?" in url else "a user or a password ('@')" if "@" in host else None
    if secret is not None:
        raise ValueError(
            f"found {secret} in an address, which would be published with the recipe; allowed: the address alone. A key belongs "
            "into 'api_key', as ${VAR}"
        )
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # half an IPv6 address, or a port that is none
        sound = False
    if not sound or "#" in url or any(letter.isspace() for letter in url):
        raise ValueError(f"found '{url}'; allowed: an address such as http://127.0.0.1:8000/v1")
    return url


BaseUrl = Annotated[
    str, AfterValidator(_plain_address), WithJsonSchema({"type": "string", "pattern": r"^https?://[^@?#/\s]+[^?#\s]*$"})
]


class OpenAIEngine(Engine):
    """Any server that speaks OpenAI's chat API."""

    type: Literal["openai"]
    base_url: BaseUrl = operational("https://api.openai.com/v1")
    api_key: SecretField = operational(None)
    structured: Literal["lines", "json_schema"] = Field(
        "lines", description="Numbered plain lines, or a JSON schema where the server has it."
    )
    concurrency: int = operational(16, ge=1)
    extra_body: dict[str, Any] = Field(
        {}, description="Further fields of a request, such as {seed: 1}; null leaves a field out, such as {max_tokens: null}."
    )
    timeout: float = operational(60.0, gt=0, description="Seconds for one attempt.")
    attempts: int = operational(10, ge=1, description="Attempts for one request, with growing pauses between them.")
    price: Price | None = operational(None, description="What is paid. Without it no money is counted.")


class TransformersEngine(Engine):
    """A model in this process: a folder, a GGUF file in a folder, or "package:NAME" for one that a package carries."""

    type: Literal["transformers"]
    model: Path
    gguf: str | None = Field(None, description="Name of the GGUF file in the folder.")
    batch_size: int = Field(32, ge=1, description="Decides the output: a sampled text changes with its neighbours.")
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    top_k: int = Field(50, ge=0)
    repetition_penalty: float = Field(1.0, gt=0)
    chat_template_kwargs: dict[str, Any] = Field(
        {}, description="What the model's chat template may be told, such as {enable_thinking: false}."
    )


class VllmEngine(Engine):
    """vLLM in this process (extra `vllm`): LLM.chat in batches."""

    type: Literal["vllm"]
    model: Path
    structured: Literal["lines", "json_schema"] = Field(
        "lines", description="Numbered plain lines, or a JSON schema that the decoding is held to."
    )
    batch_size: int = Field(256, ge=1)
    dtype: str = "auto"
    max_model_len: int | None = None
    options: dict[str, Any] = Field(
        {}, description="Further arguments of vllm.LLM, such as {tensor_parallel_size: 4} or {enforce_eager: true}."
    )
    chat_template_kwargs: dict[str, Any] = Field(
        {}, description="What the model's chat template may be told, such as {enable_thinking: false}."
    )


AnyEngine = Annotated[OpenAIEngine | TransformersEngine | VllmEngine, Field(discriminator="type")]


def _told_apart(engines: dict[str, AnyEngine]) -> dict[str, AnyEngine]:
    """The engines. A ValueError where two servers would be taken for one: an address is no part of what decides an answer."""
    servers = [(name, engine) for name, engine in engines.items() if isinstance(engine, OpenAIEngine)]
    for (name, one), (other_name, other) in itertools.combinations(servers, 2):
        if one.base_url.rstrip("/") != other.base_url.rstrip("/") and deciding(one) == deciding(other):
            raise ValueError(
                f"'{name}' and '{other_name}' differ in nothing but 'base_url', and answers of one would be taken for those of "
                "the other. Give each a 'revision' of its own, in any words that tell the two models apart"
            )
    return engines


Engines = Annotated[dict[str, AnyEngine], AfterValidator(_told_apart)]


class Writing(Model):
    """How a category is written from texts: which prompt, in what style, and what counts as a positive."""

    prompt: str = Field(
        "questions",
        description="A prompt of datakit by name: it decides what is written (queries for a document, documents for a query, "
        "both, paraphrases, labels, translations, ...). A recipe may name a Jinja file.",
    )
    style: str = Field("", description='What is written, as in "questions that patients ask"; completes "Write ...".')
    positive: str = Field("", description='What counts as a positive, as in "the passage that answers the question".')
    languages: list[Language] = Field([], description="BCP 47 codes of what is written. Default: the language of the text.")
    labels: list[str] = Field([], description="Classes that a model may choose from, where the prompt asks for a class.")
    instruction: str = Field("", description="Of written rows, where these are another task than those of the sources.")
    other_language: bool = Field(False, description="What is written is never in the language of the text.")


Length = Literal["keywords", "phrase", "sentence", "long"]
Complexity = Literal["simple", "joined"]
Register = Literal["plain", "formal", "casual", "terse"]


class Shares(Model):
    """How often queries of each kind are asked for. Each of the three sums to 1."""

    length: dict[Length, float] = Field(
        {"keywords": 0.2, "phrase": 0.2, "sentence": 0.4, "long": 0.2},
        description="Keywords, a phrase, a sentence, or more than 14 words.",
    )
    complexity: dict[Complexity, float] = Field(
        {"simple": 0.8, "joined": 0.2}, description="`joined` needs two facts of the text put together."
    )
    formality: dict[Register, float] = Field({}, description="Default: as each persona writes.")

    @model_validator(mode="after")
    def _sums(self) -> Self:
        for name in type(self).model_fields:
            shares: dict[str, float] = getattr(self, name)
            if any(share < 0 for share in shares.values()) or (
                shares and not math.isclose(sum(shares.values()), 1, abs_tol=1e-6)
            ):
                raise ValueError(f"the shares of '{name}' should be at least 0 and sum to 1 (here: {sum(shares.values()):g})")
        return self


class RandomSelect(Model):
    """Passages are drawn by the digests of their texts; a document gives its second when all have given their first."""

    type: Literal["random"] = "random"


class ClusterSelect(Model):
    """Passages are drawn evenly from clusters of their vectors, so that no subject fills the set with its near copies."""

    type: Literal["clusters"]
    encoder: str
    clusters: int | None = Field(None, ge=2, description="Default: one for each passage that is drawn, 1,024 at most.")
    candidates: int | None = Field(
        None, ge=1, description="Encodes only so many passages, drawn at random. Default: all; each takes 2 bytes a dimension."
    )


AnySelect = Annotated[RandomSelect | ClusterSelect, Field(discriminator="type")]


class Quota(Model):
    """How many of the passages come from each domain, as the column `domain` of a source of documents gives it."""

    shares: dict[str, float] | Literal["equal"] = Field(
        {}, description="By domain; what they leave of 1 is for the other domains, by their sizes. `equal`: the same for each."
    )
    floor: int = Field(0, ge=0, description="Least number of passages of each domain, as far as it has them.")

    @model_validator(mode="after")
    def _sums(self) -> Self:
        if self.shares != "equal":
            total = sum(self.shares.values())
            if any(share < 0 for share in self.shares.values()) or total > 1 + 1e-6:
                raise ValueError(f"shares of domains should be at least 0 and sum to 1 at most (here: {total:g})")
        return self


class Synthesis(Model):
    """Texts that a model writes as personas would. What is written follows the category, where the recipe does not say it."""

    engine: str
    documents: int | None = Field(
        None,
        ge=1,
        description="Number of passages, drawn over all documents. Default: all. Where nothing is read, the number of tasks that "
        "are thought of; default: 100.",
    )
    select: AnySelect = Field(RandomSelect(), description="Which passages are drawn.")
    quota: Quota | None = Field(None, description="How many passages are drawn of each domain. Default: as it comes.")
    min_words: int = Field(40, ge=1, description="A shorter passage is joined to its neighbour.")
    max_words: int = Field(160, ge=8, description="Passages end at a sentence or paragraph before this many words.")
    personas: Path | None = Field(
        None, description="A YAML file of personas, or JSONL with a `persona` field. Default: the library of datakit."
    )
    persona_fields: list[str] = Field(
        [], description="Draws only from personas of these fields, such as [health, care]. Default: all."
    )
    personas_per_document: int = Field(2, ge=1)
    distinct_personas: int | None = Field(None, ge=1, description="Draws from the first so many personas only. Default: all.")
    queries: int = Field(4, ge=3, le=5, description="Texts for each passage and persona, where a prompt writes several.")
    shares: Shares = Shares()
    small_model: bool = Field(
        False, description="For models below about a billion parameters: worked examples and few instructions."
    )
    prompt: Path | None = Field(None, description="A prompt of datakit by name, or a Jinja file. Default: the category's.")
    style: str | None = Field(None, description="Default: the category's.")
    positive: str | None = Field(None, description="Default: the category's.")
    languages: list[Language] | None = Field(None, description="BCP 47 codes of what is written. Default: the category's.")
    labels: list[str] | None = Field(None, description="Classes that a model may choose from. Default: the category's.")

    @model_validator(mode="after")
    def _number_to_select(self) -> Self:
        for name, chosen in (("select", isinstance(self.select, ClusterSelect)), ("quota", self.quota is not None)):
            if chosen and self.documents is None:
                raise ValueError(f"'{name}' needs 'documents': how many passages are to be drawn")
        return self


class Budget(Model):
    """Stops the build cleanly when it is spent. A larger budget resumes it."""

    money: float | None = Field(None, gt=0)
    tokens: int | None = Field(None, gt=0)
    requests: int | None = Field(None, gt=0)
