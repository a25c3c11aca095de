"""Where rows and documents come from, and how columns become fields of an example."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from datakit.recipe.fields import Language, Model, Path


class Constant(Model):
    """The same value for every row."""

    constant: str | float | bool


class Template(Model):
    """A value made of columns, as in "{title}\\n{text}"; {{ and }} stand for braces. It is empty where one of them is empty."""

    template: str

    @model_validator(mode="after")
    def _names_columns(self) -> Self:
        if not any(name for _, name in self.parts()):
            raise ValueError("a template names a column, as in '{title}: {text}'; for a fixed text use 'constant'")
        return self

    def parts(self) -> list[tuple[str, str]]:
        """The template as (literal text, name of the column after it or "")."""
        pieces = re.split(r"(\{\{|\}\}|\{[^{}]+\}|[{}])", self.template)
        parts, text = [], ""
        for piece in pieces:
            if piece in ("{", "}"):
                raise ValueError(f"the template {self.template!r} has a single '{piece}'; write '{piece * 2}' for a brace")
            if piece in ("{{", "}}"):
                text += piece[0]
            elif piece.startswith("{"):
                parts.append((text, piece[1:-1]))
                text = ""
            else:
                text += piece
        return [*parts, (text, "")]


Column = str | Constant | Template


def used(column: Column | None) -> list[str]:
    """The names of the columns that a mapping reads."""
    if isinstance(column, Template):
        return [name for _, name in column.parts() if name]
    return [column] if isinstance(column, str) else []


class Columns(Model):
    """Where each field of an example comes from: the name of a column, a constant, or a template."""

    query: Column | None = None
    positive: Column | None = None
    negative: Column | list[Column] | None = Field(None, description="Hard negatives that the data already has.")
    document: Column | None = Field(None, description="The text that synthesis asks questions about.")
    document_id: Column | None = Field(None, description="Groups rows of one document, for the split. Default: the positive.")
    title: Column | None = Field(None, description="Of a document.")
    domain: Column | None = Field(None, description="Of a document: its subject, which `synthesis.quota` goes by.")
    score: Column | None = Field(None, description="Graded similarity, a number.")
    label: Column | None = Field(None, description="Class, for classification and clustering.")
    language: Column | None = None
    positive_language: Column | None = None

    def used(self) -> list[str]:
        """The names of all columns that a record must have, in order, each once."""
        names: list[str] = []
        for field in type(self).model_fields:
            value = getattr(self, field)
            for column in value if isinstance(value, list) else [value]:
                names.extend(used(column))
        return list(dict.fromkeys(names))

    @model_validator(mode="after")
    def _something_to_read(self) -> Self:
        if self.document is None and (self.query is None or self.positive is None):
            raise ValueError("columns need 'query' and 'positive' (for pairs) or 'document' (for synthesis)")
        texts = [self.query, self.positive] if self.document is None else [self.document]
        if all(isinstance(column, Constant) for column in texts):
            raise ValueError("every text is a constant: at least one of them must come from a column")
        return self


Scalar = str | float | bool


class Range(Model):
    """Numbers from `at_least` to `at_most`; one of them may be left out."""

    at_least: float | None = None
    at_most: float | None = None

    @model_validator(mode="after")
    def _has_a_bound(self) -> Self:
        if self.at_least is None and self.at_most is None:
            raise ValueError("a range needs 'at_least', 'at_most', or both")
        return self


Where = dict[str, Scalar | list[Scalar] | Range]

# ---------------------------------------------------------------------------------------------------------------- reshaping
# What is done to records before columns are mapped, where renaming is not enough. A name that is no column, as in `answers.text`,
# is a path into objects; through a list of objects it gives a list.


class Unpack(Model):
    """One record for each item of a list. Lists of several columns are unpacked side by side, and must be of one length.

    Conditions of `where` on these columns hold for the items; `first` keeps the first item that they leave. A record whose list
    is empty is rejected.
    """

    type: Literal["unpack"]
    columns: list[str] = Field(min_length=1)
    keep: Literal["all", "first"] = "all"


class Group(Model):
    """Texts that share a key (duplicates, captions of one picture, answers to one question) become pairs: query, positive.

    Each text of a group is paired with the next one, in an order drawn from the seed, and the last with the first: n texts give n
    pairs, two give one. A text that is alone, or comes again, gives no row and is counted as not sampled.
    """

    type: Literal["group"]
    by: str = Field(description="Column of the key.")
    text: str


class Nli(Model):
    """Inference sets become triples: premise, a hypothesis that follows, and those that contradict it as hard negatives.

    Records of one premise are taken together. Each hypothesis that follows gives a row; the other records are counted as not
    sampled.
    """

    type: Literal["nli"]
    premise: str = "premise"
    hypothesis: str = "hypothesis"
    label: str = "label"
    entailment: Scalar = "entailment"
    contradiction: Scalar = "contradiction"


class Labelled(Model):
    """Labelled texts become pairs: the positive is of the same class, the negatives are of other classes.

    names: the positive is the name of the class. exemplars: the positive is another text of the class (KaLM-Embedding-V2,
    arXiv 2506.20923). Classes and texts are drawn from the seed. All texts of a row are on one side of the split: a text that is
    alone of its class there gives no row, and is counted as not sampled.
    """

    type: Literal["labels"]
    text: str = "text"
    label: str = "label"
    documents: Literal["names", "exemplars"] = "names"
    names: dict[str, str] = Field({}, description="What classes are called, by label. Default: the label.")
    negatives: int = Field(7, ge=0, le=64)

    @field_validator("names", mode="before")
    @classmethod
    def _numbers_are_labels(cls, names: object) -> object:
        return {str(label): name for label, name in names.items()} if isinstance(names, dict) else names


Grouping = Group | Nli | Labelled
AnyReshape = Annotated[Unpack | Group | Nli | Labelled, Field(discriminator="type")]
# What Group, Nli and Labelled give; other columns of the records are gone.
RESHAPED = {
    "group": ("query", "positive"),
    "nli": ("query", "positive", "negative"),
    "labels": ("query", "positive", "negative", "label"),
}


class Source(Model):
    """What all sources share."""

    name: str | None = Field(
        None, description="Origin of the rows, as the column `source` gives it. Default: made from the path."
    )
    licence: str | None = Field(None, description="SPDX identifier or a sentence; it goes into the manifest and the card.")
    limit: int | None = Field(
        None, ge=1, description="Reads the first so many records and no more: those after them are not counted anywhere."
    )
    max_bad_fraction: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Stops the build when more of the records than this cannot be read. An empty field does not count.",
    )
    max_record_bytes: int = Field(10_000_000, ge=1, description="A record above this is rejected as `record_too_long`.")


class TableSource(Source):
    """What sources of records share: which records, what is done to them, and what their columns mean."""

    where: Where = Field(
        {},
        description="Reads only records whose columns have these values (one, one of a list, or a range as {at_least: 4}); "
        "others are counted as not sampled.",
    )
    reshape: list[AnyReshape] = Field([], description="Done in this order, after `where` and before `columns`.")
    columns: Columns | None = Field(None, description="Default, where reshape ends in group, nli or labels: what that gives.")

    @model_validator(mode="after")
    def _columns_or_shape(self) -> Self:
        grouping = [number for number, shape in enumerate(self.reshape) if not isinstance(shape, Unpack)]
        if grouping not in ([], [len(self.reshape) - 1]):
            raise ValueError("'group', 'nli' and 'labels' come last in 'reshape', and only one of them")
        if self.columns is None and not grouping:
            raise ValueError("'columns' is missing: it says what the query and the positive are")
        if self.columns is not None and self.grouping is not None:
            given = RESHAPED[self.grouping.type]
            if self.columns.document is not None:
                raise ValueError(f"'{self.grouping.type}' gives pairs, and 'columns' names a document")
            for name in self.columns.used():
                if name not in given:
                    raise ValueError(f"'columns' names '{name}', and after '{self.grouping.type}' there are: {', '.join(given)}")
            negative = self.columns.negative
            texts = [self.columns.query, self.columns.positive, *(negative if isinstance(negative, list) else [negative])]
            exemplars = isinstance(self.grouping, Labelled) and self.grouping.documents == "exemplars"
            if exemplars and any(text not in (None, *given[:3]) for text in texts):
                raise ValueError(
                    "'columns' makes new texts of exemplars, and for the split rows are kept together by the texts as they are "
                    f"read; allowed for query, positive and negative: {', '.join(given[:3])}"
                )
        return self

    @property
    def unpacking(self) -> list[Unpack]:
        return [shape for shape in self.reshape if isinstance(shape, Unpack)]

    @property
    def grouping(self) -> Grouping | None:
        """What is done to the records as a whole, if anything."""
        last = self.reshape[-1] if self.reshape else None
        return None if isinstance(last, Unpack) else last

    @property
    def mapping(self) -> Columns:
        """What the columns mean, also where the recipe leaves it to the reshaping."""
        if self.columns is not None:
            return self.columns
        assert self.grouping is not None
        return Columns.model_validate({name: name for name in RESHAPED[self.grouping.type]})


class FilesSource(TableSource):
    """Parquet, JSONL, JSON, CSV, TSV or plain text files, also .gz, .zst and .bz2; globs and fsspec URLs are allowed.

    Files are read piece by piece, except JSON (an array, or {"data": [...]}) and plain text, which are read whole. A plain text
    file is one document with the columns `title` (the file's name without suffixes) and `text`. Texts are UTF-8.
    """

    type: Literal["files"]
    path: Path | list[Path]
    format: Literal["parquet", "jsonl", "json", "csv", "tsv", "text"] | None = Field(
        None, description="Default: by the file's name."
    )
    header: bool = Field(True, description="False: the columns of a CSV or TSV file are called column_1, column_2, ...")
    delimiter: str | None = Field(
        None, min_length=1, max_length=1, description='CSV and TSV: what separates fields. Default: "," or a tab, by the format.'
    )
    quotes: bool = Field(
        True, description='CSV and TSV: whether " quotes a field. False: it is an ordinary character, as in many TSV files.'
    )


class HuggingFaceSource(TableSource):
    """A data set that `datasets.load_dataset` opens: a name on the Hub (asks the network) or a local folder.

    A local folder holds Parquet, JSONL or CSV files, or is one that `save_to_disk` wrote. Class labels are read as their names.
    """

    type: Literal["huggingface"]
    path: Path
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    streaming: bool = False


class PythonDocsSource(Source):
    """Documentation that every Python carries. Nothing is imported or run: sources are read as text and parsed.

    topics: CPython's language reference (`pydoc_data.topics`), title <-> section.
    docstrings: first paragraph of a docstring <-> source of the function or class, without the docstring.
    signatures: qualified name and signature <-> docstring.
    summaries: first paragraph of a docstring <-> the rest of it.
    packages: summary <-> description of installed distributions.

    Packages take turns, and their modules come in an order drawn from the seed, so that a `limit` takes some of each.
    """

    type: Literal["python-docs"]
    part: Literal["topics", "docstrings", "signatures", "summaries", "packages"]
    packages: list[str] = Field(
        [],
        description="docstrings, signatures, summaries: importable packages; `stdlib` is the standard library, and the default. "
        "packages: distributions; default: all that are installed.",
    )
    documents: bool = Field(
        False, description="Gives texts for synthesis, not pairs: whole topics, docstrings, or descriptions of packages."
    )


class BeirSource(Source):
    """A retrieval set as BEIR lays it out: a corpus, queries, and judgements of which document answers which query.

    A folder holds corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv; a data set of the Hub holds the configurations `corpus`,
    `queries`, and one for the judgements (`default`), with the columns _id, title, text; _id, text; query-id, corpus-id, score.
    Each judgement of at least `min_score` is a row; documents judged below it are hard negatives of their query.
    """

    type: Literal["beir"]
    path: Path
    split: str = "train"
    revision: str | None = None
    judgements: str = Field("default", description="On the Hub: the configuration that holds the judgements.")
    min_score: float = Field(1.0, description="Least score of a positive.")


class ParallelSource(Source):
    """Translations in two text files, line by line: the query is in the first language, the positive in the second."""

    type: Literal["parallel"]
    paths: tuple[Path, Path]
    languages: tuple[Language, Language] = Field(description="BCP 47 codes of the two files.")


AnySource = Annotated[
    FilesSource | HuggingFaceSource | BeirSource | ParallelSource | PythonDocsSource, Field(discriminator="type")
]
