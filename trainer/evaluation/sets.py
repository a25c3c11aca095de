"""sets.yaml: local sets to evaluate a model on, with one model for each of MTEB's families, and nothing else.

Files have the formats that `datakit` reads. Relative paths begin at the folder of the YAML file; `${VAR}` is taken from the
environment.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from datakit.recipe import Model, Path
from datakit.recipe_file import load_model

# ------------------------------------------------------------------------------------------------------------------ files


class File(Model):
    """A file of records, given as its path or as a mapping that also says how it is written and what its columns are called."""

    path: Path
    format: Literal["parquet", "jsonl", "json", "csv", "tsv", "mapping"] | None = Field(
        None, description="Default: by the file's name. mapping: a JSON object; its columns are called `key` and `value`."
    )
    header: bool = Field(True, description="False: the columns of a CSV or TSV file are called column_1, column_2, ...")
    delimiter: str | None = Field(None, min_length=1, max_length=1, description='Default: "," or a tab, by the format.')
    quotes: bool = Field(True, description='CSV and TSV: whether " quotes a field.')
    empty: Literal["refuse", "skip"] = Field(
        "refuse", description="Where a text is missing. skip: the record is left out, and the log counts such records."
    )

    @model_validator(mode="before")
    @classmethod
    def _a_path_alone(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value


class CorpusFile(File):
    id: str = "_id"
    text: str = "text"
    title: str | None = Field(None, description="Stands before the text, with a space between them, as in mteb.")


class QueriesFile(File):
    id: str = "_id"
    text: str = "text"
    relevant: str | None = Field(None, description="The id, or the list of ids, of the answers; in place of `qrels`.")


class QrelsFile(File):
    """Judgements: which document answers which query, and how well (a whole number; 0 and less is not at all)."""

    query: str = "query-id"
    document: str = "corpus-id"
    score: str | None = "score"


class QuestionsFile(File):
    """A query and a document that answers it in each record. The corpus are the different documents."""

    query: str = "query"
    document: str = "document"


class CandidatesFile(File):
    """Documents to rank for each query: an id in each record, or all of a query's ids as a list."""

    query: str = "query-id"
    documents: str = "corpus-ids"


class LabelledFile(File):
    text: str = "text"
    label: str = "label"


class ScoredPairsFile(File):
    sentence1: str = "sentence1"
    sentence2: str = "sentence2"
    score: str = "score"


class LabelledPairsFile(File):
    sentence1: str = "sentence1"
    sentence2: str = "sentence2"
    label: str = "label"


class SummariesFile(File):
    """A text with lists of summaries by machines and by people, and the relevance of each of the former."""

    text: str = "text"
    machine_summaries: str = "machine_summaries"
    human_summaries: str = "human_summaries"
    relevance: str = "relevance"


# ------------------------------------------------------------------------------------------------------------------- sets


class Prompts(Model):
    """What stands before texts. Families without queries and documents have one kind of text, for which `query` is."""

    query: str | None = None
    document: str | None = None


class Set(Model):
    """What all sets share. Without prompts of its own a set has those of the model, by the names that mteb looks for."""

    prompts: Prompts = Prompts()
    category: str | None = Field(
        None, description="Name of a prompt of the model, as trainer exports one for each category. It stands before queries."
    )


class Searched(Set):
    """Queries, a corpus, and judgements: as a BEIR folder, as files with declared columns, or as pairs."""

    folder: Path | None = Field(None, description="A BEIR folder: corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv.")
    split: str = "test"
    corpus: CorpusFile | None = None
    queries: QueriesFile | None = None
    qrels: QrelsFile | None = None
    pairs: QuestionsFile | None = None

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        files = [name for name in ("corpus", "queries", "qrels") if getattr(self, name) is not None]
        given = [*(name for name in ("folder", "pairs") if getattr(self, name) is not None), *(files[:1])]
        if len(given) != 1:
            found = ", ".join(f"'{name}'" for name in given) or "none of them"
            raise ValueError(f"found {found}; allowed is one: 'folder' (BEIR), 'corpus' with 'queries', or 'pairs'")
        if files:
            if self.corpus is None or self.queries is None:
                raise ValueError("'corpus' and 'queries' are needed both: give the one that is missing")
            if (self.qrels is None) == (self.queries.relevant is None):
                raise ValueError("the answers come from 'qrels' or from the column 'queries.relevant': give one of the two")
        return self


class RetrievalSet(Searched):
    """nDCG@10 of the whole corpus, ranked by similarity with each query."""

    type: Literal["retrieval"]


class RerankingSet(Searched):
    """MAP of each query's candidates. A judged document that is no candidate counts as not found."""

    type: Literal["reranking"]
    candidates: CandidatesFile | None = None
    bm25: int | None = Field(None, ge=1, description="In place of a file: so many best documents by BM25+. The name says so.")

    @model_validator(mode="after")
    def _candidates_from_one_place(self) -> Self:
        if (self.candidates is None) == (self.bm25 is None):
            raise ValueError("the documents to rank come from 'candidates' (a file) or 'bm25' (how many): give one of the two")
        return self


class StsSet(Set):
    """Spearman's correlation of cosines with scores. With `prompts.document` the second sentence is a document."""

    type: Literal["sts"]
    file: ScoredPairsFile


class PairClassificationSet(Set):
    """Average precision of similarities, as in mteb the largest of several. `prompts.document` is as for sts."""

    type: Literal["pair_classification"]
    file: LabelledPairsFile
    positive: str | float | bool | None = Field(
        None, description="The label of pairs that belong together; all others do not. Default: labels are 1, 0, true, false."
    )


class OneKind(Set):
    """Sets whose texts are all of one kind."""

    @model_validator(mode="after")
    def _no_documents(self) -> Self:
        if self.prompts.document is not None:
            raise ValueError("this family has one kind of text, and 'prompts.query' is for it: take 'prompts.document' out")
        return self


class ClassificationSet(OneKind):
    """Accuracy of logistic regression on eight texts of each label, the mean of ten draws, as in mteb."""

    type: Literal["classification"]
    train: LabelledFile
    test: LabelledFile


class ClusteringSet(OneKind):
    """V-measure of mini-batch k-means, the mean of ten draws, as in mteb; all texts are embedded."""

    type: Literal["clustering"]
    file: LabelledFile


class BitextSet(OneKind):
    """F1 of the nearest sentence in the other language, in one pair of line-aligned files or the mean of several."""

    type: Literal["bitext"]
    files: tuple[Path, Path] | None = None
    pairs: dict[str, tuple[Path, Path]] | None = Field(None, min_length=1, description="By name, as in {deu-eng: [a, b]}.")

    @model_validator(mode="after")
    def _files_or_pairs(self) -> Self:
        if (self.files is None) == (self.pairs is None):
            raise ValueError("the texts come from 'files' (two files) or 'pairs' (two files for each name): give one of the two")
        return self


class SummarisationSet(OneKind):
    """Spearman's correlation of relevance with the largest cosine to a human summary, the mean of all texts."""

    type: Literal["summarisation"]
    file: SummariesFile


AnySet = Annotated[
    RetrievalSet
    | RerankingSet
    | StsSet
    | PairClassificationSet
    | ClassificationSet
    | ClusteringSet
    | BitextSet
    | SummarisationSet,
    Field(discriminator="type"),
]
Name = Annotated[str, Field(pattern=r"^[\w.-]+$")]


class Sets(Model):
    """The sets by name."""

    sets: dict[Name, AnySet] = Field(min_length=1)


@dataclass(frozen=True)
class LocalSet:
    """A set with its name, and the folder at which its relative paths begin."""

    name: str
    declared: AnySet
    folder: str


def load_sets(path: str) -> list[LocalSet]:
    """The sets of a YAML file. Raises a UserError that names line, key, what was found and what is allowed."""
    folder = os.path.dirname(os.path.abspath(path))
    return [LocalSet(_name(name, declared), declared, folder) for name, declared in load_model(path, Sets).sets.items()]


def _name(name: str, declared: AnySet) -> str:
    """Candidates of BM25 decide what can be reached: the name tells of them."""
    bm25 = declared.bm25 if isinstance(declared, RerankingSet) else None
    return name if bm25 is None else f"{name}-bm25-top{bm25}"
