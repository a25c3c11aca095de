"""Screening of mined negatives for false ones: by an encoder, and by a cross-encoder or a language model that relabels."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from datakit.recipe.fields import Model, Path


class Relabel(Model):
    """What all who relabel have in common. Three outcomes for a negative (RLHN, arXiv 2505.16967): keep, drop, relabel."""

    candidates: int = Field(
        16, ge=1, description="Negatives of a row that are asked about, best first; `per_query` of those that are kept are taken."
    )


class CrossEncoderRelabel(Relabel):
    """A cross-encoder of sentence-transformers reads query and text together. Scores lie in [0, 1].

    Counted: relabelled_positive (score >= `positive`: a row of its own, the query with this text), judged_relevant (score >=
    `drop`: dropped). Which scores say so depends on the model: look at known positives first.
    """

    type: Literal["cross_encoder"]
    model: Path = Field(description="A folder, the name of a model on the Hub, or package:NAME/FOLDER.")
    revision: str | None = None
    drop: float = Field(0.5, ge=0, le=1)
    positive: float | None = Field(0.9, ge=0, le=1, description="null: no text becomes a positive.")
    max_length: int = Field(512, ge=8, description="Tokens of query and text together.")
    batch_size: int = Field(32, ge=1)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        _check_order(self.drop, self.positive)
        return self


class JudgeRelabel(Relabel):
    """A language model scores each query and text from 1 to 5, as the filter `judge` does for relevance.

    Counted: relabelled_positive (score >= `positive`: a row of its own, the query with this text), judged_relevant (score >=
    `drop`), judge_injection (the text speaks to the model), judge_unparsable (no score there). The last three are dropped.
    """

    type: Literal["judge"]
    engine: str = Field(description="A judge repeats itself best at temperature 0.")
    drop: int = Field(3, ge=1, le=5)
    positive: int | None = Field(5, ge=1, le=5, description="null: no text becomes a positive.")
    max_characters: int = Field(2000, ge=100, description="Of a longer text the judge sees the beginning.")
    small_model: bool = Field(False, description="For models below about a billion parameters.")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        _check_order(self.drop, self.positive)
        return self


def _check_order(drop: float, positive: float | None) -> None:
    if positive is not None and positive < drop:
        raise ValueError(f"'positive' is {positive} and 'drop' is {drop}; a text that becomes a positive scores at least as high")


AnyRelabel = Annotated[CrossEncoderRelabel | JudgeRelabel, Field(discriminator="type")]


class Screen(Model):
    """Drops mined negatives that are likely positives, by an encoder. A negative n of query q is compared with all known
    positives of the query; the least similar of them, p, decides. The first rule that holds is counted by its reason:

    equal_to_positive; paraphrase (cosine of n and a positive >= `paraphrase`); above_margin (s(q, n) >= s(q, p) - |s(q, p)|
    (1 - margin), NV-Retriever, arXiv 2407.15831); above_absolute_margin (s(q, n) >= s(q, p) - absolute_margin); above_ceiling
    (s(q, n) >= ceiling); outside_ranks (KaLM-Embedding takes ranks 50 to 100). A rule that is null is left out.

    Margins hang on one similarity: where the known positive is unlike the query they drop nearly all, and where it is very like
    it, little. Ranks do not. With 200 candidates each of BM25 and of a dense miner (MiniLM) and one known positive, the default
    drops 60 % of the unknown positives of SciFact and 5 % of the rest; `{margin: null, ranks: [31, 400]}`, chosen on Cranfield,
    96 % and 9 % (benchmarks/README.md).
    """

    encoder: str
    margin: float | None = Field(0.95, gt=0, le=1, description="Share of the similarity of the positive; smaller drops more.")
    absolute_margin: float | None = Field(None, ge=0, le=2, description="Cosine below that of the positive.")
    ceiling: float | None = Field(None, ge=-1, le=1, description="Cosine to the query that no negative may reach.")
    ranks: tuple[int, int] | None = Field(
        None,
        description="First and last rank to take, among the candidates of the row, by s(q, n) + positive_weight s(p, n).",
    )
    positive_weight: float = Field(
        0.5, ge=0, le=4, description="Of the most similar known positive in the rank (Rocchio); 0: the query alone."
    )
    paraphrase: float | None = Field(0.95, gt=0, le=1, description="Cosine to a positive from which on a text says the same.")
    source: bool = Field(False, description="Also the negatives that the data had; otherwise by equality alone.")
    relabel: AnyRelabel | None = Field(None, description="Who looks at those that pass.")

    @model_validator(mode="after")
    def _window(self) -> Self:
        if self.ranks is not None and not 1 <= self.ranks[0] <= self.ranks[1]:
            raise ValueError(f"'ranks' is {list(self.ranks)}: the first rank is at least 1, and the last one not below it")
        return self
