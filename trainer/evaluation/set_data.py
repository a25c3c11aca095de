"""The texts of local sets, read from their files and checked. Every error names file, line, and what to do."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from datakit import storage
from datakit.errors import UserError
from datakit.recipe import BeirSource, Columns, FilesSource, ParallelSource, Path
from datakit.schema import digest
from datakit.sources import beir, files, parallel
from datakit.sources.paths import Record, check_columns, look_up
from datakit.sources.records import Unreadable, rendered
from trainer.evaluation.bm25 import document_text, ranked
from trainer.evaluation.sets import (
    BitextSet,
    CandidatesFile,
    CorpusFile,
    File,
    LabelledFile,
    LabelledPairsFile,
    LocalSet,
    QrelsFile,
    QueriesFile,
    QuestionsFile,
    RerankingSet,
    ScoredPairsFile,
    Searched,
    SummariesFile,
)

Table = dict[str, list[Any]]  # columns of one length, as mteb calls them
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Searchable:
    """Queries and documents (title, text) by id; the grades of judged documents; for reranking the candidates of each query."""

    queries: dict[str, str]
    corpus: dict[str, tuple[str, str]]
    relevant: dict[str, dict[str, int]]
    candidates: dict[str, list[str]] | None = None


class Reader:
    """Reads the files of a set. `revision` is the digest of all that were read."""

    def __init__(self, local: LocalSet) -> None:
        self.local = local
        self._digests: list[str] = []

    @property
    def revision(self) -> str:
        return digest(*self._digests)

    def _at(self, path: str) -> str:
        return path if "://" in path else os.path.join(self.local.folder, os.path.expanduser(path))

    def records(self, file: File, columns: Sequence[str]) -> Iterator[tuple[str, Record]]:
        """The records of a file that has these columns, each with its place: file:line, or :position in JSON and Parquet."""
        source = FilesSource(
            type="files", path=Path(self._at(file.path)), format=None if file.format == "mapping" else file.format,
            header=file.header, delimiter=file.delimiter, quotes=file.quotes, columns=Columns(document="text"),
        )  # fmt: skip
        if file.format == "mapping":
            source = source.model_copy(update={"format": "json"})
        count, skipped = 0, list[str]()
        for found in files.find(source):
            self._digests.append(storage.file_digest(found.path))
            read = _mapping(found.path, columns) if file.format == "mapping" else files.records(found, source, columns)
            for number, record in read:
                count += 1
                place = f"{found.path}:{number}"
                if isinstance(record, Unreadable):
                    raise UserError(f"{place}: {record.reason}: {record.found}. Mend this record, or take it out.")
                if file.empty == "skip" and any(_empty(look_up(record, column)) for column in columns):
                    skipped.append(place)
                else:
                    yield place, record
        if skipped:
            log.warning(
                "%d of %d records have an empty column and are left out, the first is %s", len(skipped), count, skipped[0]
            )
        if count == len(skipped):
            raise UserError(f"'{self._at(file.path)}' holds no record. Give a file with the columns {', '.join(columns)}.")

    def searchable(self, declared: Searched) -> Searchable:
        if declared.pairs is not None:
            found = self._of_pairs(declared.pairs)
        else:
            corpus_file, queries_file, qrels_file = self._three(declared)
            corpus = self._corpus(corpus_file)
            queries, relevant = self._queries(queries_file)
            if qrels_file is not None:
                relevant = self._qrels(qrels_file)
            found = self._joined(queries, corpus, relevant)
        if not isinstance(declared, RerankingSet):
            return found
        candidates = self._candidates(declared, found)
        wanted = {document for each in candidates.values() for document in each}
        corpus = {key: document for key, document in found.corpus.items() if key in wanted}
        return Searchable(found.queries, corpus, found.relevant, candidates)

    def _three(self, declared: Searched) -> tuple[CorpusFile, QueriesFile, QrelsFile | None]:
        if declared.folder is None:
            assert declared.corpus is not None
            assert declared.queries is not None
            return declared.corpus, declared.queries, declared.qrels
        folder = self._at(declared.folder)
        found = beir.find(BeirSource(type="beir", path=Path(folder), split=declared.split), folder)
        if not found:
            raise UserError(
                f"'{folder}' is no BEIR folder: it needs corpus.jsonl, queries.jsonl and qrels/{declared.split}.tsv. "
                "For other files declare 'corpus', 'queries' and 'qrels'."
            )
        corpus, queries, qrels = (Path(each.path) for each in found)
        return CorpusFile(path=corpus, title="title"), QueriesFile(path=queries), QrelsFile(path=qrels, quotes=False)

    def _corpus(self, file: CorpusFile) -> dict[str, tuple[str, str]]:
        corpus: dict[str, tuple[str, str]] = {}
        for place, record in self.records(file, [file.id, file.text]):
            title = text(record, file.title, place, may_be_empty=True) if file.title else ""
            _add(corpus, text(record, file.id, place), (title, text(record, file.text, place, may_be_empty=True)), place)
        return corpus

    def _queries(self, file: QueriesFile) -> tuple[dict[str, str], dict[str, dict[str, int]]]:
        queries: dict[str, str] = {}
        relevant: dict[str, dict[str, int]] = {}
        for place, record in self.records(file, [file.id, file.text, *([file.relevant] if file.relevant else [])]):
            key = text(record, file.id, place)
            _add(queries, key, text(record, file.text, place), place)
            if file.relevant is not None:
                relevant[key] = dict.fromkeys(texts(record, file.relevant, place), 1)
        return queries, relevant

    def _qrels(self, file: QrelsFile) -> dict[str, dict[str, int]]:
        relevant: dict[str, dict[str, int]] = {}
        columns = [file.query, file.document, *([file.score] if file.score else [])]
        for place, record in self.records(file, columns):
            grade = number(record, file.score, place) if file.score else 1
            if grade != int(grade):
                raise UserError(f"{place}: the column '{file.score}' is {grade}; grades are whole numbers. Round or scale them.")
            relevant.setdefault(text(record, file.query, place), {})[text(record, file.document, place)] = int(grade)
        return relevant

    def _of_pairs(self, file: QuestionsFile) -> Searchable:
        queries: dict[str, str] = {}
        corpus: dict[str, tuple[str, str]] = {}
        relevant: dict[str, dict[str, int]] = {}
        for place, record in self.records(file, [file.query, file.document]):
            query, document = (
                digest(kind, text(record, column, place)) for kind, column in (("query", file.query), ("document", file.document))
            )
            queries[query] = text(record, file.query, place)
            corpus[document] = ("", text(record, file.document, place))
            relevant.setdefault(query, {})[document] = 1
        return Searchable(queries, corpus, relevant)

    def _joined(
        self, queries: dict[str, str], corpus: dict[str, tuple[str, str]], relevant: dict[str, dict[str, int]]
    ) -> Searchable:
        """The queries that are judged. A judged document that is not in the corpus counts as not found, as in mteb."""
        judged = {key: query for key, query in queries.items() if key in relevant}
        documents = {document for query in judged for document in relevant[query]}
        if not judged or not documents & corpus.keys():
            side, ids, there = ("corpus", documents, corpus) if judged else ("queries", set(relevant), queries)
            raise UserError(
                f"The set '{self.local.name}': no judgement names an id of its {side}. Judged is '{min(ids, default='')}', and "
                f"there is '{min(there)}': name the columns that hold the same ids."
            )
        for what, count in (("queries", len(relevant.keys() - queries.keys())), ("documents", len(documents - corpus.keys()))):
            if count:
                log.warning("The set '%s': %d judged %s are not there.", self.local.name, count, what)
        return Searchable(judged, corpus, {query: relevant[query] for query in judged})

    def _candidates(self, declared: RerankingSet, found: Searchable) -> dict[str, list[str]]:
        if declared.bm25 is not None:
            corpus = {key: document_text(*both) for key, both in found.corpus.items()}
            return {query: list(hits) for query, hits in ranked(found.queries, corpus, declared.bm25).items()}
        file: CandidatesFile | None = declared.candidates
        assert file is not None
        candidates: dict[str, dict[str, None]] = {query: {} for query in found.queries}
        for place, record in self.records(file, [file.query, file.documents]):
            named = texts(record, file.documents, place)
            if unknown := next((document for document in named if document not in found.corpus), None):
                raise UserError(f"{place}: the corpus has no document '{unknown}'. Add it there, or take it out here.")
            candidates.setdefault(text(record, file.query, place), {}).update(dict.fromkeys(named))
        if empty := next((query for query in found.queries if not candidates[query]), None):
            raise UserError(f"'{self._at(file.path)}' has no candidates for the judged query '{empty}'. Add them.")
        return {query: list(candidates[query]) for query in found.queries}

    def scored_pairs(self, file: ScoredPairsFile) -> Table:
        sentences = {"sentence1": (text, file.sentence1), "sentence2": (text, file.sentence2)}
        return self._table(file, {**sentences, "score": (number, file.score)})

    def labelled_pairs(self, file: LabelledPairsFile, positive: str | float | bool | None) -> Table:
        wanted = None if positive is None else rendered(positive)
        truth = {"1": 1, "true": 1, "0": 0, "false": 0}

        def label(record: Record, column: str, place: str) -> int:
            found = text(record, column, place)
            if wanted is not None:
                return int(found == wanted)
            if found.lower() not in truth:
                raise UserError(
                    f"{place}: the column '{column}' is '{found}'; allowed: 1, 0, true, false. For other labels give "
                    "'positive', the label of pairs that belong together."
                )
            return truth[found.lower()]

        sentences = {"sentence1": (text, file.sentence1), "sentence2": (text, file.sentence2)}
        table = self._table(file, {**sentences, "labels": (label, file.label)})
        if len(set(table["labels"])) == 1:
            raise UserError(f"'{self._at(file.path)}': all pairs have one label; pairs of both kinds are needed.")
        return table

    def labelled(self, file: LabelledFile, several: bool = True) -> Table:
        """Texts with their labels. Where `several` are needed, one alone is refused: nothing can be told apart by it."""
        table = self._table(file, {"text": (text, file.text), "label": (text, file.label)})
        if several and len(set(table["label"])) == 1:
            raise UserError(
                f"'{self._at(file.path)}': all texts have the label '{table['label'][0]}'; two labels or more are needed."
            )
        return table

    def summaries(self, file: SummariesFile) -> Table:
        table = self._table(
            file,
            {
                "text": (text, file.text),
                "machine_summaries": (texts, file.machine_summaries),
                "human_summaries": (texts, file.human_summaries),
                "relevance": (numbers, file.relevance),
            },
        )
        for place, (machine, relevance) in enumerate(zip(table["machine_summaries"], table["relevance"], strict=True), 1):
            if len(machine) != len(relevance):
                raise UserError(
                    f"'{self._at(file.path)}', record {place}: {len(machine)} machine summaries and {len(relevance)} numbers of "
                    "relevance; each summary needs one."
                )
        return table

    def _table(self, file: File, columns: dict[str, tuple[Callable[[Record, str, str], Any], str]]) -> Table:
        table: Table = {name: [] for name in columns}
        for place, record in self.records(file, [column for _, column in columns.values()]):
            for name, (read, column) in columns.items():
                table[name].append(read(record, column, place))
        return table

    def bitext(self, declared: BitextSet) -> dict[str, Table]:
        """The sentences of each pair of files, by its name; `default` where there is one pair without a name."""
        if declared.files is not None:
            return {"default": self._aligned(declared.files)}
        return {name: self._aligned(pair) for name, pair in (declared.pairs or {}).items()}

    def _aligned(self, pair: tuple[Path, Path]) -> Table:
        first, second = (Path(self._at(path)) for path in pair)
        source = ParallelSource(type="parallel", paths=(first, second), languages=("und", "und"))
        found = parallel.find(source)
        self._digests += [storage.file_digest(each.path) for each in found]
        table: Table = {"sentence1": [], "sentence2": []}
        for line, record in parallel.records(source, found):
            place = f"{first} and {second}, line {line}"
            if isinstance(record, Unreadable):
                raise UserError(f"{place}: {record.reason}: {record.found}. Mend the line, or take it out of both files.")
            for name, column in (("sentence1", "query"), ("sentence2", "positive")):
                table[name].append(text(record, column, place))
        if not table["sentence1"]:
            raise UserError(f"'{first}' and '{second}' are empty. Give files with a sentence in each line.")
        return table


def text(record: Record, column: str, place: str, may_be_empty: bool = False) -> str:
    """A column's value as a text."""
    try:
        value = rendered(look_up(record, column)) or ""
    except Unreadable as error:
        raise UserError(f"{place}: the column '{column}' holds {error.found}; a text is needed.") from None
    if not may_be_empty and not value.strip():
        raise UserError(
            f"{place}: the column '{column}' is empty. Fill it, or take the record out; 'empty: skip' of a declared file does it."
        )
    return value


def _empty(value: Any) -> bool:
    return value is None or value == [] or (isinstance(value, str) and not value.strip())


def number(record: Record, column: str, place: str) -> float:
    value = text(record, column, place)
    try:
        found = float(value)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise UserError(f"{place}: the column '{column}' is '{value}'; a number is needed.")
    return found


def texts(record: Record, column: str, place: str) -> list[str]:
    """A column's list of texts; a single one counts as a list."""
    return [text({column: item}, column, place) for item in _items(record, column, place)]


def numbers(record: Record, column: str, place: str) -> list[float]:
    return [number({column: item}, column, place) for item in _items(record, column, place)]


def _items(record: Record, column: str, place: str) -> list[Any]:
    value = look_up(record, column)
    items = value if isinstance(value, list) else [value]
    if not items:
        raise UserError(f"{place}: the column '{column}' is an empty list. Fill it, or take the record out.")
    return items


def _add(known: dict[str, Any], key: str, value: Any, place: str) -> None:
    if key in known:
        raise UserError(f"{place}: the id '{key}' stands here a second time. Ids must differ; rename one, or take it out.")
    known[key] = value


def _mapping(path: str, columns: Sequence[str]) -> Iterator[tuple[int, Record]]:
    try:
        value = orjson.loads(storage.read_bytes(path))
    except orjson.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: this is no JSON: {error.msg}.") from error
    if not isinstance(value, dict):
        raise UserError(f"'{path}' is no JSON object, as 'format: mapping' needs. Give 'format: json' or jsonl.")
    check_columns(columns, ["key", "value"], path)
    yield from ((place, {"key": key, "value": item}) for place, (key, item) in enumerate(value.items(), 1))
