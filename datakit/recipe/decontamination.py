"""Evaluation sets that no row may come from, and what counts as a hit."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from datakit.recipe.fields import Model, Path

# Which texts of a retrieval set: what is asked, what answers it (judged documents alone), or both.
Texts = Literal["queries", "documents", "both"]


class EvaluationSet(Model):
    """What all evaluation sets share."""

    name: str | None = Field(None, description="What reasons and the report call the set. Default: made from the path.")


class EvaluationFiles(EvaluationSet):
    """Parquet, JSONL, JSON, CSV or TSV files, also compressed; globs and fsspec URLs are allowed."""

    type: Literal["files"]
    path: Path | list[Path]
    columns: list[str] = Field(min_length=1, description="All columns that hold texts; lists of texts are read too.")
    id: str | None = Field(None, description="Column of the id of a record. Default: file and number of the record.")
    format: Literal["parquet", "jsonl", "json", "csv", "tsv"] | None = Field(None, description="Default: by the file's name.")
    header: bool = True
    delimiter: str | None = Field(None, min_length=1, max_length=1)
    quotes: bool = True


class EvaluationBeir(EvaluationSet):
    """A retrieval set as BEIR lays it out: a folder, or a data set of the Hub. Only what the split judges is read.

    Default: queries. The documents of an evaluation set are mostly public texts that many training sets rightly hold too: what
    must not be seen is which question finds which of them. `documents` are those judged relevant, never the whole corpus.
    """

    type: Literal["beir"]
    path: Path
    split: str = "test"
    texts: Texts = "queries"
    revision: str | None = None
    judgements: str = Field("default", description="On the Hub: the configuration that holds the judgements.")


class EvaluationHuggingFace(EvaluationSet):
    """A data set that `datasets.load_dataset` opens: a local folder, a name in the mirror, or one on the Hub (network)."""

    type: Literal["huggingface"]
    path: Path
    config: str | None = None
    split: str = "test"
    revision: str | None = None
    columns: list[str] = Field(min_length=1, description="All columns that hold texts; lists of texts are read too.")


class EvaluationMteb(EvaluationSet):
    """A task of mteb, by its name: its data set, revision, splits and columns come from mteb. Needs the extra `eval`."""

    type: Literal["mteb"]
    task: str
    texts: Texts = Field("queries", description="Of retrieval tasks.")


AnyEvaluation = Annotated[EvaluationFiles | EvaluationBeir | EvaluationHuggingFace | EvaluationMteb, Field(discriminator="type")]


class Containment(Model):
    """Reason: contaminated_ngram. Share of the n-grams of words of an evaluation text that stand in a text of the row.

    A text of k words has n-grams of min(n, k) words: a short query is one n-gram, and is found wherever it stands whole.
    Words of scripts without spaces are their characters.

    Measured on medquad, pubmedqa and disfl-qa against 800 queries of SciFact and CoSQA (benchmarks/README.md): of the pairs of n
    and threshold without a clean row hit, 3 and 0.6 catch most paraphrases. What stands whole in a text is caught in any case.
    """

    n: int = Field(3, ge=1, le=64)
    threshold: float = Field(0.6, gt=0, le=1)
    min_words: int = Field(
        4, ge=1, description="A shorter evaluation text stands in many texts by chance: only a text equal to it is a hit."
    )


class Likeness(Model):
    """Reason: contaminated_semantic. Cosine of a text of the row to an evaluation text.

    Measured with all-MiniLM-L6-v2 (benchmarks/README.md): at 0.8, 28 of 35 paraphrases that kept the meaning, and none of 31,317
    clean texts; at 0.9, 15 of 35.
    """

    encoder: str
    threshold: float = Field(0.8, gt=0, le=1, description="What is the same depends on the encoder.")


class Decontamination(Model):
    """Reasons: contaminated_exact (equal but for case, punctuation, white space and form of characters), contaminated_ngram,
    contaminated_semantic. Looked for in query, positive and negatives, in this order of levels; canaries are planted in each run.
    """

    sets: list[AnyEvaluation] = Field(min_length=1)
    ngram: Containment = Containment()
    semantic: Likeness | None = None
    negatives: Literal["drop", "reject"] = Field(
        "drop", description="What a hit in a negative does: drops that negative (counted in the notes), or rejects the row."
    )
