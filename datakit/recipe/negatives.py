"""Hard negatives: who finds them, where, how many of each, and what is screened away."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from datakit.recipe.fields import Model
from datakit.recipe.screen import Screen
from datakit.recipe.sources import FilesSource, HuggingFaceSource


class Ranked(Model):
    """A miner that ranks the texts of a corpus for each query."""

    depth: int = Field(50, ge=1, description="Ranks that are looked at; more leave more to choose from after a screen.")
    ranks: tuple[int, int] | None = Field(
        None, description="First and last rank that may be taken, in place of `depth`: [50, 100] as KaLM-Embedding does it."
    )

    @model_validator(mode="after")
    def _window(self) -> Self:
        if self.ranks is not None:
            first, last = self.ranks
            if not 1 <= first <= last:
                raise ValueError(f"'ranks' is [{first}, {last}]: the first rank is at least 1, and the last one not below it")
            if "depth" in self.model_fields_set:
                raise ValueError("'ranks' says how deep to look; leave 'depth' out")
        return self

    @property
    def window(self) -> tuple[int, int]:
        """The first and the last rank that count, from 1."""
        return self.ranks or (1, self.depth)


class Bm25Miner(Ranked):
    """BM25+ : texts that share words with the query."""

    type: Literal["bm25"]
    engine: Literal["bm25s", "rank_bm25"] = Field("bm25s", description="rank_bm25 is the reference; it is slow.")
    k1: float = Field(1.5, gt=0)
    b: float = Field(0.75, ge=0, le=1)
    delta: float = Field(1.0, ge=0)


class DenseMiner(Ranked):
    """The nearest texts by the cosine of an encoder.

    Corpora of up to 50,000 texts are searched whole. Of larger ones each query sees the texts of the `probes` clusters whose
    centres are nearest to it, of about the square root of the corpus.
    """

    type: Literal["dense"]
    encoder: str
    search: Literal["auto", "exact", "clusters"] = Field("auto", description="`exact` and `clusters` whatever the size is.")
    probes: int = Field(16, ge=1)


class EntitiesMiner(Ranked):
    """Texts that share a rare key phrase with the query, and little else: the same subject with another intent.

    Key phrases are names in capitals, and words and identifiers that stand in at most `max_share` of the texts. Score:
    (idf of the shared phrases / idf of all phrases of the query) x (1 - share of the query's other words that the text has).
    Of 30 examples from MedQuAD, drawn at random and read, 23 were hard negatives, 3 answered the query in part (for the
    screen), and 4 shared a phrase by the way.
    """

    type: Literal["entities"]
    max_share: float = Field(0.005, gt=0, le=0.5, description="A phrase in more of the texts than this is not rare.")
    min_shared: float = Field(0.5, gt=0, le=1, description="Least part of the query's phrases, by idf, that a text has to share.")
    max_overlap: float = Field(0.5, ge=0, le=1, description="Most of the query's other words, by idf, that a text may share.")


class OtherClusterMiner(Ranked):
    """The texts nearest to the query that lie in other clusters than its positive: in the `clusters` nearest to it."""

    type: Literal["other_cluster"]
    encoder: str
    clusters: int = Field(4, ge=1)


class OtherLabelMiner(Model):
    """Where positives are classes: texts of other classes. These categories have no other miner, and need not be told so."""

    type: Literal["other_label"]


class RandomMiner(Model):
    """Texts drawn without looking, marked `random`. Nothing is drawn unless this miner is asked for."""

    type: Literal["random"]


class AdversarialMiner(Model):
    """Negatives that a language model writes for a query and its positive: on the same subject, and no answer.

    passages: a text that does not answer the query. queries: another query in nearly the same words that wants something else,
    and the text that answers it, which is the negative.
    """

    type: Literal["adversarial"]
    engine: str
    writes: list[Literal["passages", "queries"]] = Field(["passages"], min_length=1)
    share: float = Field(1.0, gt=0, le=1, description="Share of the queries that are asked about, drawn by the seed.")
    per_query: int = Field(1, ge=1, le=5, description="Texts that are asked for, of each kind.")
    small_model: bool = Field(False, description="Prompts for models of less than about a billion parameters.")
    max_characters: int = Field(2000, ge=100, description="What the model sees of a positive.")


AnyMiner = Annotated[
    Bm25Miner | DenseMiner | EntitiesMiner | OtherClusterMiner | OtherLabelMiner | RandomMiner | AdversarialMiner,
    Field(discriminator="type"),
]


class OutsideCorpus(Model):
    """Texts from outside that negatives may be: sources of documents, columns {document: ..., title: ...}.

    For a BEIR folder: {type: files, path: FOLDER/corpus.jsonl, columns: {document: text, title: title}}. Each text belongs to
    training or to validation, never to both: with its equal where it is a query or a positive, else by its digest.
    """

    sources: list[Annotated[FilesSource | HuggingFaceSource, Field(discriminator="type")]] = Field(min_length=1)

    @model_validator(mode="after")
    def _documents(self) -> Self:
        for source in self.sources:
            if source.mapping.document is None:
                raise ValueError("a source of a corpus names the column of its texts: columns: {document: text}")
        return self


class Negatives(Model):
    """Hard negatives of each row, found by several miners.

    `quota` says how many of the `per_query` each miner gives; where one has too few, the others give more, in turn.
    """

    miners: list[AnyMiner] = Field(min_length=1)
    per_query: int = Field(8, ge=1, le=64, description="Negatives of a row, those that the data had included.")
    quota: dict[str, Annotated[float, Field(ge=0)]] | None = Field(
        None, description="Of each miner, by its type: numbers or shares. Default: the same of each; `random` only fills up."
    )
    corpus: Literal["category", "mixture"] | OutsideCorpus = Field(
        "category", description="Whose texts may be negatives: those of the category, of all categories, or texts from outside."
    )
    screen: Screen | None = None

    @model_validator(mode="after")
    def _miners_fit(self) -> Self:
        types = [miner.type for miner in self.miners]
        if twice := sorted({name for name in types if types.count(name) > 1}):
            raise ValueError(f"there are two miners '{twice[0]}'; each type may stand there once")
        if self.quota is not None:
            for name in self.quota:
                if name not in types:
                    raise ValueError(f"quota names '{name}', and the miners are: {', '.join(types)}")
            if not any(self.quota.values()):
                raise ValueError("quota gives nothing to any miner")
        return self
