"""`trainer evaluate --sets`: MTEB's families by mteb's evaluators, beside a naive computation in float64. No test has a network."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import naive_families as naive
import numpy as np
import pytest
import yaml
from toys import ACTS, COLOURS, THINGS

from datakit.errors import UserError
from datakit.schema import text_id
from trainer.config import ModelConfig
from trainer.evaluation.encoder import CachedEncoder, mteb_encoder
from trainer.evaluation.families import FAMILIES, evaluate_task, local_task, registry_tasks
from trainer.evaluation.scores import FamilyScores, TaskScores
from trainer.evaluation.set_data import Reader
from trainer.evaluation.sets import load_sets
from trainer.export import export
from trainer.model import load_encoder

needs_mteb = pytest.mark.skipif(find_spec("mteb") is None, reason="the extra 'eval' is not installed")
WIDTH, CUT = 32, 8


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What asked for a network, which none of them gets. Hugging Face's own switch for it is off."""
    attempts: list[Any] = []

    def refuse(*arguments: Any, **more: Any) -> Any:
        attempts.append(arguments)
        raise OSError("no network in tests")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    yield attempts
    assert not attempts


def vector(text: str) -> np.ndarray:
    """The sum of random vectors of the words, in float32 as models give it, not of length 1."""
    words = [np.random.default_rng(int(text_id(word)[:15], 16)).normal(size=WIDTH) for word in text.split() or [""]]
    return np.sum(words, 0).astype(np.float32)


class Words:
    """Stands in for a SentenceTransformer, and remembers what it was given."""

    default_prompt_name = None

    def __init__(self, **prompts: str) -> None:
        self.prompts = {"query": "", "document": "", **prompts}
        self.seen: list[str] = []

    def get_embedding_dimension(self) -> int:
        return WIDTH

    def encode(self, texts: Sequence[str], prompt: str | None = None, **more: Any) -> np.ndarray:
        self.seen += [f"{prompt or ''}{text}" for text in texts]
        return np.stack([vector(f"{prompt or ''}{text}") for text in texts])

    encode_query = encode_document = encode

    def similarity(self, first: Any, second: Any) -> Any:
        from mteb.similarity_functions import cos_sim

        return cos_sim(first, second)

    def similarity_pairwise(self, first: Any, second: Any) -> Any:
        from mteb.similarity_functions import pairwise_cos_sim

        return pairwise_cos_sim(first, second)


def write(folder: Path, name: str, records: Sequence[dict[str, Any]]) -> str:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    return name


def evaluated(folder: Path, declared: dict[str, Any], model: Words | None = None) -> TaskScores:
    """The scores of one set at 32 and 8 dimensions."""
    from mteb.models import ModelMeta

    (folder / "sets.yaml").write_text(yaml.safe_dump({"sets": {"one": declared}}))
    (local,) = load_sets(str(folder / "sets.yaml"))
    encoder = CachedEncoder(model or Words(), ModelMeta.create_empty(), {local.name: local.declared})
    return evaluate_task(encoder, local_task(local), [WIDTH, CUT], bm25=True)


def at(width: int, texts: Sequence[str]) -> np.ndarray:
    """Vectors in float64: at full width as the model gives them, else cut and of length 1."""
    vectors = np.stack([vector(text) for text in texts]).astype(np.float64)
    return vectors if width == WIDTH else naive.unit(vectors[:, :width])


def agrees(found: TaskScores, expected: dict[int, float]) -> None:
    assert list(found.scores) == [WIDTH, CUT]
    assert found.scores == pytest.approx(expected, abs=1e-4)
    # A score at the end of its range would say little.
    assert all(0.02 < score < 0.999 for score in expected.values()), expected


def sentence(number: int) -> str:
    return f"the {COLOURS[number % 8]} {THINGS[number * 3 % 8]} {ACTS[number % 6]} {THINGS[number * 5 % 8]} w{number % 11}"


QUERIES = {f"q{number}": f"what {sentence(number)} w{number + 3} w{number + 7}" for number in range(12)}
CORPUS = {f"d{number}": (f"t{number % 5}", sentence(number)) for number in range(40)} | {
    "d40": ("", sentence(7)),
    "d41": ("t2", ""),
}
GRADES = {
    key: {f"d{number}": 3, f"d{number + 9}": 1, "d40": 2, f"d{number + 5}": 0}
    for number, key in enumerate(QUERIES)
    if number != 4
}


def beir_folder(folder: Path) -> str:
    corpus = [{"_id": key, "title": title, "text": text} for key, (title, text) in CORPUS.items()]
    write(folder, "beir/corpus.jsonl", corpus)
    write(folder, "beir/queries.jsonl", [{"_id": key, "text": text} for key, text in QUERIES.items()])
    lines = [f"{query}\t{document}\t{grade}\n" for query, grades in GRADES.items() for document, grade in grades.items()]
    (folder / "beir/qrels").mkdir()
    (folder / "beir/qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    return "beir"


def naive_retrieval(width: int, candidates: dict[str, list[str]] | None = None) -> float:
    documents = at(width, [f"{title} {text}".strip() for title, text in CORPUS.values()])
    queries = at(width, [QUERIES[key] for key in GRADES])
    return naive.retrieval(queries, documents, list(GRADES), list(CORPUS), GRADES, candidates)


@needs_mteb
def test_retrieval_is_ndcg_of_graded_judgements_with_bm25_beside_it(tmp_path: Path) -> None:
    found = evaluated(tmp_path, {"type": "retrieval", "folder": beir_folder(tmp_path)})
    agrees(found, {width: naive_retrieval(width) for width in (WIDTH, CUT)})
    assert (found.family, found.metric, found.source) == ("Retrieval", "ndcg_at_10", "local")
    assert found.bm25 is not None
    assert 0.1 < found.bm25 < 1
    # d40 has the text of another document, and mteb breaks the tie by id.
    assert found.metrics[WIDTH]["recall_at_1000"] == 1.0


@needs_mteb
def test_retrieval_from_declared_files_gives_the_scores_of_the_same_beir_folder(tmp_path: Path) -> None:
    whole = evaluated(tmp_path, {"type": "retrieval", "folder": beir_folder(tmp_path)})
    (tmp_path / "corpus.csv").write_text("key;head;body\n" + "".join(f"{key};{a};{b}\n" for key, (a, b) in CORPUS.items()))
    (tmp_path / "queries.json").write_text(json.dumps([{"key": key, "q": {"text": text}} for key, text in QUERIES.items()]))
    rows = [{"q": query, "d": document, "g": grade} for query, grades in GRADES.items() for document, grade in grades.items()]
    write(tmp_path, "qrels.jsonl", rows)
    declared = {
        "type": "retrieval",
        "corpus": {"path": "corpus.csv", "delimiter": ";", "id": "key", "title": "head", "text": "body"},
        "queries": {"path": "queries.json", "id": "key", "text": "q.text"},
        "qrels": {"path": "qrels.jsonl", "query": "q", "document": "d", "score": "g"},
    }
    assert evaluated(tmp_path, declared).scores == whole.scores


def test_answers_come_from_a_column_of_the_queries_from_a_mapping_and_from_pairs(tmp_path: Path) -> None:
    (tmp_path / "code.json").write_text(json.dumps({"def a(): 1": 0, "def b(): 2": 1}))
    (tmp_path / "asked.json").write_text(json.dumps([{"id": 7, "doc": "one", "hit": 0}, {"id": 8, "doc": "two", "hit": [0, 1]}]))
    write(
        tmp_path,
        "pairs.jsonl",
        [{"query": "x", "document": "a"}, {"query": "y", "document": "a"}, {"query": "x", "document": "b"}],
    )
    sets = {
        "code": {
            "type": "retrieval",
            "corpus": {"path": "code.json", "format": "mapping", "id": "value", "text": "key"},
            "queries": {"path": "asked.json", "id": "id", "text": "doc", "relevant": "hit"},
        },
        "pairs": {"type": "retrieval", "pairs": "pairs.jsonl"},
    }
    (tmp_path / "sets.yaml").write_text(yaml.safe_dump({"sets": sets}))
    code, pairs = (Reader(local).searchable(local.declared) for local in load_sets(str(tmp_path / "sets.yaml")))  # type: ignore[arg-type]
    assert code.corpus == {"0": ("", "def a(): 1"), "1": ("", "def b(): 2")}
    assert (code.queries, code.relevant) == ({"7": "one", "8": "two"}, {"7": {"0": 1}, "8": {"0": 1, "1": 1}})
    assert (len(pairs.queries), len(pairs.corpus), sorted(map(len, pairs.relevant.values()))) == (2, 2, [1, 2])


@needs_mteb
def test_reranking_is_map_of_candidates_and_a_judged_document_that_is_none_counts(tmp_path: Path) -> None:
    folder = beir_folder(tmp_path)
    candidates = {
        key: [f"d{place * 7 % 40}" for place in range(number, number + 12)] + ["d40"] for number, key in enumerate(QUERIES)
    }
    rows = [{"query-id": key, "corpus-ids": documents} for key, documents in candidates.items()]
    found = evaluated(tmp_path, {"type": "reranking", "folder": folder, "candidates": write(tmp_path, "top.jsonl", rows)})
    agrees(found, {width: naive_retrieval(width, candidates) for width in (WIDTH, CUT)})
    assert (found.family, found.metric, found.bm25) == ("Reranking", "map_at_1000", None)


@needs_mteb
def test_candidates_of_bm25_are_named_in_the_task(tmp_path: Path) -> None:
    found = evaluated(tmp_path, {"type": "reranking", "folder": beir_folder(tmp_path), "bm25": 5})
    assert found.name == "one-bm25-top5"
    (local,) = load_sets(str(tmp_path / "sets.yaml"))
    candidates = Reader(local).searchable(local.declared).candidates  # type: ignore[arg-type]
    assert candidates is not None
    assert {len(each) for each in candidates.values()} == {5}
    agrees(found, {width: naive_retrieval(width, candidates) for width in (WIDTH, CUT)})


PAIRS = [(sentence(number), sentence(number + number % 4)) for number in range(48)]


@needs_mteb
def test_sts_is_spearman_of_cosines_without_a_header(tmp_path: Path) -> None:
    scores = [round(5 - number % 4 - (number % 7) / 5, 1) for number in range(48)]
    (tmp_path / "sts.csv").write_text("".join(f"{a},{b},{score}\n" for (a, b), score in zip(PAIRS, scores, strict=True)))
    file = {"path": "sts.csv", "header": False, "sentence1": "column_1", "sentence2": "column_2", "score": "column_3"}
    found = evaluated(tmp_path, {"type": "sts", "file": file})
    sides = [[pair[side] for pair in PAIRS] for side in (0, 1)]
    agrees(found, {width: naive.sts(*(at(width, side) for side in sides), scores) for width in (WIDTH, CUT)})


def test_records_with_an_empty_column_are_left_out_where_that_is_asked_for_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "sts.csv").write_text("sentence1,sentence2,score\na,b,1\n , c,2\nd,,3\ne,f,4\n")

    def read(**more: Any) -> Any:
        declared = {"type": "sts", "file": {"path": "sts.csv", **more}}
        (tmp_path / "sets.yaml").write_text(yaml.safe_dump({"sets": {"one": declared}}))
        (local,) = load_sets(str(tmp_path / "sets.yaml"))
        return Reader(local).scored_pairs(local.declared.file)

    with pytest.raises(UserError, match=r"sts\.csv:3: the column 'sentence1' is empty"):
        read()
    assert read(empty="skip") == {"sentence1": ["a", "e"], "sentence2": ["b", "f"], "score": [1.0, 4.0]}
    assert f"2 of 4 records have an empty column and are left out, the first is {tmp_path / 'sts.csv'}:3" in caplog.text
    (tmp_path / "sts.csv").write_text("sentence1,sentence2,score\na,,1\n")
    with pytest.raises(UserError, match="holds no record"):
        read(empty="skip")


@needs_mteb
@pytest.mark.parametrize("positive", [None, "entailment"])
def test_pair_classification_is_average_precision_of_the_best_similarity(positive: str | None, tmp_path: Path) -> None:
    labels = [int(number % 4 == 0 or number % 9 == 1) for number in range(48)]
    named = {None: [False, True], "entailment": ["neutral", "entailment"]}[positive]
    rows = [{"a": a, "b": b, "label": named[label]} for (a, b), label in zip(PAIRS, labels, strict=True)]
    declared = {
        "type": "pair_classification",
        "file": {"path": write(tmp_path, "p.jsonl", rows), "sentence1": "a", "sentence2": "b"},
    }
    found = evaluated(tmp_path, declared | ({"positive": positive} if positive else {}))
    sides = [[pair[side] for pair in PAIRS] for side in (0, 1)]
    agrees(found, {width: naive.pair_classification(*(at(width, side) for side in sides), labels) for width in (WIDTH, CUT)})


def labelled(count: int, start: int) -> list[dict[str, Any]]:
    """Texts about three things, of words by chance."""
    drawn = np.random.default_rng(start).integers(0, 40, (count, 8))
    return [
        {"text": " ".join([THINGS[place % 3], *(f"w{word}" for word in words)]), "label": THINGS[place % 3]}
        for place, words in enumerate(drawn)
    ]


@needs_mteb
def test_classification_is_accuracy_of_softmax_regression_on_ten_draws(tmp_path: Path) -> None:
    train, test = labelled(60, 1), labelled(45, 2)
    declared = {"type": "classification", "train": write(tmp_path, "a.jsonl", train), "test": write(tmp_path, "b.jsonl", test)}
    found = evaluated(tmp_path, declared)
    texts, labels = ([[row[name] for row in rows] for rows in (train, test)] for name in ("text", "label"))
    expected = {
        width: naive.classification(at(width, texts[0]), labels[0], at(width, texts[1]), labels[1]) for width in (WIDTH, CUT)
    }
    agrees(found, expected)


@needs_mteb
def test_clustering_is_v_measure_of_ten_draws_of_all_texts(tmp_path: Path) -> None:
    rows = labelled(30, 3)
    found = evaluated(tmp_path, {"type": "clustering", "file": write(tmp_path, "c.jsonl", rows)})
    texts, labels = [row["text"] for row in rows], [row["label"] for row in rows]
    agrees(found, {width: naive.clustering(at(width, texts), labels) for width in (WIDTH, CUT)})


@needs_mteb
def test_bitext_is_f1_of_the_nearest_and_each_pair_of_files_is_a_subset(tmp_path: Path) -> None:
    sides: dict[str, list[list[str]]] = {}
    for name, noise in (("deu-eng", 3), ("fra-eng", 9)):
        first = [f"{sentence(number)} v{number % 6}" for number in range(30)]
        second = [f"{text} {' '.join(f'x{number * 5 + each}' for each in range(noise))}" for number, text in enumerate(first)]
        sides[name] = [first, second]
        for place, lines in enumerate(sides[name]):
            (tmp_path / f"{name}.{place}").write_text("\n".join(lines) + "\n")
    declared = {"type": "bitext", "pairs": {name: [f"{name}.0", f"{name}.1"] for name in sides}}
    found = evaluated(tmp_path, declared)
    each = {
        name: {width: naive.bitext(*(at(width, lines) for lines in both)) for width in (WIDTH, CUT)}
        for name, both in sides.items()
    }
    for name, expected in each.items():
        assert found.subsets[name] == pytest.approx(expected, abs=1e-4)
    agrees(found, {width: float(np.mean([expected[width] for expected in each.values()])) for width in (WIDTH, CUT)})
    alone = evaluated(tmp_path, {"type": "bitext", "files": ["deu-eng.0", "deu-eng.1"]})
    assert (alone.scores, alone.subsets) == (found.subsets["deu-eng"], {})


@needs_mteb
def test_summarisation_is_spearman_with_the_nearest_human_summary(tmp_path: Path) -> None:
    rows = [
        {
            "text": sentence(number),
            "machine_summaries": [" ".join(sentence(number).split()[: 2 + place]) + f" z{place}" for place in range(4)],
            "human_summaries": [sentence(number + 1), sentence(number)],
            "relevance": [[1, 2, 4, 3], [2.5, 1, 3, 5], [3, 3, 3, 3]][number % 3],  # the last says nothing, and is left out
        }
        for number in range(9)
    ]
    found = evaluated(tmp_path, {"type": "summarisation", "file": write(tmp_path, "s.jsonl", rows)})
    expected = {}
    for width in (WIDTH, CUT):
        machine, human = ([at(width, row[name]) for row in rows] for name in ("machine_summaries", "human_summaries"))
        expected[width] = naive.summarisation(machine, human, [row["relevance"] for row in rows])
    agrees(found, expected)


# ---------------------------------------------------------------------------------------------------------------- prompts


@needs_mteb
@pytest.mark.parametrize(
    ("declared", "model", "expected"),
    [
        ({}, {"query": "Q: ", "document": "D: "}, {"query": "Q: ", "document": "D: "}),
        (
            {},
            {"query": "Q: ", "Retrieval": "R: "},
            {"query": "R: ", "document": "R: "},
        ),  # mteb's order: the family before the kind
        ({"category": "faq"}, {"query": "Q: ", "document": "D: ", "faq": "F: "}, {"query": "F: ", "document": "D: "}),
        ({"prompts": {"query": "own: "}, "category": "faq"}, {"document": "D: "}, {"query": "own: ", "document": "D: "}),
        ({"prompts": {"query": "", "document": "p: "}}, {"query": "Q: "}, {"query": "", "document": "p: "}),
    ],
    ids=["names", "family", "category", "own", "none"],
)
def test_prompts_stand_before_queries_and_documents(
    declared: dict[str, Any], model: dict[str, str], expected: dict[str, str], tmp_path: Path
) -> None:
    words = Words(**model)
    found = evaluated(tmp_path, {"type": "retrieval", "folder": beir_folder(tmp_path), **declared}, words)
    assert found.prompts == expected
    documents = {expected["document"] + f"{title} {text}".strip() for title, text in CORPUS.values()}
    assert set(words.seen) == documents | {f"{expected['query']}{QUERIES[key]}" for key in GRADES}


@needs_mteb
@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ({}, {"text": ""}),  # mteb says nothing of queries here, so that the model's prompt for them is none of this
        ({"prompts": {"query": "same: "}}, {"text": "same: "}),
        ({"category": "similar"}, {"text": "alike: "}),
        ({"prompts": {"query": "a: ", "document": "b: "}}, {"query": "a: ", "document": "b: "}),
    ],
    ids=["names", "one", "category", "two"],
)
def test_pairs_have_one_prompt_or_one_for_each_side(declared: dict[str, Any], expected: dict[str, str], tmp_path: Path) -> None:
    rows = [{"sentence1": a, "sentence2": b, "score": place % 5} for place, (a, b) in enumerate(PAIRS)]
    words = Words(query="Q: ", document="D: ", similar="alike: ")
    found = evaluated(tmp_path, {"type": "sts", "file": write(tmp_path, "s.jsonl", rows), **declared}, words)
    assert found.prompts == expected
    first, second = expected.get("query", expected.get("text")), expected.get("document", expected.get("text"))
    assert set(words.seen) == {f"{first}{a}" for a, _ in PAIRS} | {f"{second}{b}" for _, b in PAIRS}


@needs_mteb
def test_every_text_is_embedded_once_for_all_dimensions(tmp_path: Path) -> None:
    words = Words()
    evaluated(tmp_path, {"type": "retrieval", "folder": beir_folder(tmp_path)}, words)
    assert len(words.seen) == len(set(words.seen)) == len(GRADES) + len({"".join(document) for document in CORPUS.values()})


@needs_mteb
def test_a_category_without_a_prompt_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"category 'no', for which the model has no prompt. It has: query, document"):
        evaluated(tmp_path, {"type": "retrieval", "folder": beir_folder(tmp_path), "category": "no"})


# ----------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("a: {type: ranking, folder: b}", "sets.yaml:2: sets.a.type: found 'ranking'. Did you mean 'reranking'? Allowed: retrieval, "),
        ("a: {folder: b}", "sets.yaml:2: sets.a: the key 'type' is missing"),
        ("a: {type: retrieval}", "sets.yaml:2: sets.a: found none of them; allowed is one: 'folder' (BEIR), 'corpus' with 'queries'"),
        ("a: {type: retrieval, folder: b, pairs: c}", "found 'folder', 'pairs'; allowed is one"),
        ("a: {type: retrieval, corpus: b.csv, qrels: c.tsv}", "'corpus' and 'queries' are needed both"),
        ("a: {type: retrieval, corpus: b.csv, queries: c.csv}", "from 'qrels' or from the column 'queries.relevant'"),
        ("a: {type: reranking, folder: b}", "come from 'candidates' (a file) or 'bm25' (how many)"),
        ("a: {type: reranking, folder: b, bm25: 0}", "sets.yaml:2: sets.a.bm25: found '0'; allowed: greater than or equal to 1"),
        ("a:\n    type: sts\n    file: {pth: b.csv}", "sets.yaml:4: sets.a.file.pth: unknown key 'pth'. Did you mean 'path'?"),
        ("a:\n    type: sts\n    file: {header: false}", "sets.yaml:4: sets.a.file: the key 'path' is missing"),
        ("a: {type: clustering, file: b.csv, prompts: {document: x}}", "one kind of text, and 'prompts.query' is for it"),
        ("a: {type: bitext, files: [b]}", "sets.yaml:2: sets.a.files"),
        ("a: {type: bitext}", "from 'files' (two files) or 'pairs'"),
        ("a b: {type: bitext, files: [b, c]}", "sets.yaml:2: sets.a b: found 'a b'"),
        ("a: {type: sts, file: \"${NOT_SET}/b.csv\"}", "the environment variable NOT_SET is not set"),
    ],
)  # fmt: skip
def test_mistakes_in_the_yaml_file_are_sentences(lines: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "sets.yaml").write_text(f"sets:\n  {lines}\n")
    with pytest.raises(UserError) as raised:
        load_sets(str(tmp_path / "sets.yaml"))
    assert expected in str(raised.value)


def test_mistakes_in_the_data_name_file_and_line(tmp_path: Path) -> None:
    def said(declared: dict[str, Any], **contents: str) -> str:
        for name, content in contents.items():
            (tmp_path / name.replace("_", ".")).write_text(content)
        (tmp_path / "sets.yaml").write_text(yaml.safe_dump({"sets": {"one": declared}}))
        (local,) = load_sets(str(tmp_path / "sets.yaml"))
        with pytest.raises(UserError) as raised:
            reader, given = Reader(local), local.declared
            if given.type in ("retrieval", "reranking"):
                reader.searchable(given)  # type: ignore[arg-type]
            elif given.type == "sts":
                reader.scored_pairs(given.file)
            elif given.type == "pair_classification":
                reader.labelled_pairs(given.file, None)
            elif given.type == "bitext":
                reader.bitext(given)
            elif given.type == "summarisation":
                reader.summaries(given.file)
        return str(raised.value)

    sts = {"type": "sts", "file": "a.csv"}
    place = tmp_path / "a.csv"
    assert said(sts) == f"'{place}' does not exist."
    assert f"'{place}' has no column 'score'" in said(sts, a_csv="sentence1,sentence2,scor\na,b,1\n")
    assert f"{place}:3: the column 'score' is 'much'; a number is needed." == said(
        sts, a_csv="sentence1,sentence2,score\na,b,1\na,b,much\n"
    )
    assert f"{place}:2: the column 'sentence2' is empty." in said(sts, a_csv="sentence1,sentence2,score\na,,1\n")
    assert f"{place}:3: wrong_number_of_fields" in said(sts, a_csv="sentence1,sentence2,score\na,b,1\na,b\n")
    assert "holds no record" in said(sts, a_csv="sentence1,sentence2,score\n")
    pairs = {"type": "pair_classification", "file": "a.csv"}
    assert f"{place}:2: the column 'label' is 'maybe'; allowed: 1, 0" in said(
        pairs, a_csv="sentence1,sentence2,label\na,b,maybe\n"
    )
    assert "all pairs have one label" in said(pairs, a_csv="sentence1,sentence2,label\na,b,1\n")
    lines = {"type": "bitext", "files": ["a.txt", "b.txt"]}
    assert "has 2 lines, and" in said(lines, a_txt="one\ntwo\n", b_txt="eins\n")
    assert "line 2: the column 'positive' is empty" in said(lines, a_txt="one\ntwo\n", b_txt="eins\n\n")
    summary = '{"text": "a", "machine_summaries": ["b"], "human_summaries": ["c"], "relevance": [1, 2]}\n'
    assert "record 1: 1 machine summaries and 2 numbers" in said({"type": "summarisation", "file": "s.jsonl"}, s_jsonl=summary)
    files = {"corpus": "c.jsonl", "queries": "q.jsonl", "qrels": "r.tsv"}
    found = {
        "c_jsonl": '{"_id": "1", "text": "a"}\n{"_id": "2", "text": "b"}\n',
        "q_jsonl": '{"_id": "7", "text": "x"}\n',
        "r_tsv": "query-id\tcorpus-id\tscore\n7\t1\t1\n",
    }
    retrieval = {"type": "retrieval", **files}
    assert "r.tsv:2: the column 'score' is 0.5; grades are whole numbers" in said(
        retrieval, **found | {"r_tsv": "query-id\tcorpus-id\tscore\n7\t1\t0.5\n"}
    )
    assert "c.jsonl:2: the id '1' stands here a second time" in said(
        retrieval, **found | {"c_jsonl": '{"_id": "1", "text": "a"}\n' * 2}
    )
    assert "no judgement names an id of its corpus. Judged is '9'" in said(
        retrieval, **found | {"r_tsv": "query-id\tcorpus-id\tscore\n7\t9\t1\n"}
    )
    assert "no judgement names an id of its queries" in said(
        retrieval, **found | {"r_tsv": "query-id\tcorpus-id\tscore\n6\t1\t1\n"}
    )
    reranking = {"type": "reranking", **files, "candidates": {"path": "t.tsv", "documents": "corpus-id"}}
    assert "t.tsv:2: the corpus has no document '5'" in said(reranking, **found, t_tsv="query-id\tcorpus-id\n7\t5\n")
    assert "no candidates for the judged query '7'" in said(reranking, t_tsv="query-id\tcorpus-id\n6\t1\n")
    assert "is no BEIR folder" in said({"type": "retrieval", "folder": "."})


@needs_mteb
def test_one_label_tells_nothing_apart_and_is_refused(tmp_path: Path) -> None:
    several, one = write(tmp_path, "a.jsonl", labelled(6, 1)), write(tmp_path, "b.jsonl", [{"text": "x", "label": "y"}] * 4)

    def task(declared: dict[str, Any]) -> Any:
        (tmp_path / "sets.yaml").write_text(yaml.safe_dump({"sets": {"one": declared}}))
        return local_task(load_sets(str(tmp_path / "sets.yaml"))[0])

    for declared in ({"type": "clustering", "file": one}, {"type": "classification", "train": one, "test": several}):
        with pytest.raises(UserError, match=r"b.jsonl': all texts have the label 'y'; two labels or more are needed"):
            task(declared)
    assert task({"type": "classification", "train": several, "test": one}).data_loaded  # which may be of one label


@needs_mteb
def test_a_task_that_is_named_twice_counts_once() -> None:
    assert [task.metadata.name for task in registry_tasks(["STSBenchmark", "STSBenchmark"], None)] == ["STSBenchmark"]
    names = [task.metadata.name for task in registry_tasks(["STSBenchmark", "STS22"], "MTEB(eng, v2)")]
    assert (names.count("STSBenchmark"), names[0], len(names)) == (1, "STS22", 1 + len(registry_tasks([], "MTEB(eng, v2)")))


def test_means_are_of_the_dimensions_that_all_tasks_have() -> None:
    tasks = [
        TaskScores(name=f"{place}", family="STS", metric="m", source="local", revision="", prompts={}, metrics={}, scores=scores)
        for place, scores in enumerate(({32: 0.4, 16: 0.3, 8: 0.2}, {32: 0.6, 8: 0.4}))
    ]
    found = FamilyScores(model="m", revision="", mteb="2", width=32, tasks=tasks)
    assert found.mean_of_tasks == found.families["STS"] == pytest.approx({32: 0.5, 8: 0.3})


def test_the_sets_of_mixtures_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATAKIT_REAL_DATA", "/data")
    sets = load_sets(str(Path(__file__).parents[2] / "mixtures/evaluation-sets.yaml"))
    assert {each.declared.type for each in sets} == set(FAMILIES) - {"summarisation"}


# ------------------------------------------------------------------------------------------------------- the command line


@pytest.fixture
def exported(tiny_base: str, tmp_path: Path) -> str:
    """An untrained model as trainer exports it."""
    encoder = load_encoder(ModelConfig.model_validate({"base": tiny_base, "max_length": 24}), seed=4)
    prompts = {"faq": "find the horse ", "query": "find ", "document": ""}
    export(encoder, str(tmp_path / "model"), prompts, "toy", "v1", [WIDTH, CUT], {WIDTH: 0.5, CUT: 0.4})
    return str(tmp_path / "model")


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    from trainer.cli import main

    monkeypatch.setattr(sys, "argv", ["trainer", "evaluate", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    shown = capsys.readouterr()
    return int(stopped.value.code or 0), shown.out, shown.err


def some_sets(folder: Path) -> str:
    """Retrieval, and two of similarity."""
    rows = [{"sentence1": a, "sentence2": b, "score": place % 5} for place, (a, b) in enumerate(PAIRS)]
    sts = {"type": "sts", "file": write(folder, "s.jsonl", rows)}
    sets = {"ours": {"type": "retrieval", "folder": beir_folder(folder)}, "near": sts, "nearer": sts | {"category": "faq"}}
    (folder / "sets.yaml").write_text(yaml.safe_dump({"sets": sets}, sort_keys=False))
    return str(folder / "sets.yaml")


@needs_mteb
def test_an_exported_model_has_the_scores_that_mteb_gives_it_alone(
    exported: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import mteb
    from sentence_transformers import SentenceTransformer

    sets, output = some_sets(tmp_path), tmp_path / "out"
    status, shown, said = run(
        monkeypatch, capsys, exported, "--sets", sets, "--dimension", "8", "--dimension", "32", "--bm25", "-o", str(output)
    )
    assert status == 0, said
    found = FamilyScores.model_validate_json((output / "results.json").read_text())
    assert [(task.family, task.name) for task in found.tasks] == [("Retrieval", "ours"), ("STS", "near"), ("STS", "nearer")]
    assert [task.prompts for task in found.tasks] == [
        {"query": "find ", "document": ""},
        {"text": ""},
        {"text": "find the horse "},
    ]
    for word in ("ndcg_at_10", "cosine_spearman", "BM25", "mean of tasks", "mean of families", f"{found.tasks[0].scores[8]:.3f}"):
        assert word in shown
    for local, task in zip(load_sets(sets)[:2], found.tasks, strict=False):
        alone = mteb.evaluate(SentenceTransformer(exported, device="cpu"), local_task(local), cache=None, show_progress_bar=False)
        score = alone.task_results[0].scores["test"][0]["main_score"]
        assert task.scores[WIDTH] == pytest.approx(score, abs=1e-4)
    for width in (WIDTH, CUT):
        retrieval, near, nearer = (task.scores[width] for task in found.tasks)
        assert found.mean_of_tasks[width] == pytest.approx((retrieval + near + nearer) / 3)
        assert found.families["STS"][width] == pytest.approx((near + nearer) / 2)
        assert found.mean_of_families[width] == pytest.approx((retrieval + (near + nearer) / 2) / 2)
    # A set by its name, with nothing else.
    status, shown, _ = run(monkeypatch, capsys, exported, "--sets", sets, "--task", "near", "-o", str(output))
    (only,) = FamilyScores.model_validate_json((output / "results.json").read_text()).tasks
    assert (only.name, only.scores) == ("near", {WIDTH: found.tasks[1].scores[WIDTH]})


@needs_mteb
def test_the_facts_about_a_model_are_its_own(exported: str) -> None:
    encoder = mteb_encoder(exported)
    meta = encoder.mteb_model_meta
    assert (meta.embed_dim, meta.use_instructions, meta.similarity_fn_name.value) == (32, True, "cosine")
    assert meta.n_parameters == sum(each.numel() for each in encoder.model.parameters()) > meta.n_embedding_parameters > 0
    assert (meta.training_datasets, meta.license) == (None, None)
    assert meta.revision == mteb_encoder(exported).mteb_model_meta.revision


@needs_mteb
def test_mistakes_on_the_command_line_are_one_sentence_and_status_2(
    exported: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], asked: list[Any]
) -> None:
    sets = some_sets(tmp_path)
    status, _, said = run(monkeypatch, capsys, exported)
    assert (status, "Say what to measure on: --data BUILD, --sets FILE" in said) == (2, True)
    status, _, said = run(monkeypatch, capsys, exported, "--sets", sets, "--dimension", "64")
    assert (status, "Dimension 64 is not in the model" in said) == (2, True)
    status, _, said = run(monkeypatch, capsys, exported, "--sets", sets, "--task", "STSBenchmrk")
    assert (status, "Did you mean: 'STSBenchmark'?" in said) == (2, True)
    status, _, said = run(monkeypatch, capsys, exported, "--benchmark", "MTEB(eng, v9)")
    assert (status, "mteb has no such task or benchmark" in said) == (2, True)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "results.json").mkdir()
    status, _, said = run(monkeypatch, capsys, exported, "--sets", sets, "-o", str(tmp_path / "taken"))
    assert (status, "results.json' is a folder, and a file is to be written there" in said) == (2, True)
    status, _, said = run(monkeypatch, capsys, exported, "--sets", sets, "-o", f"{sets}/x")
    assert (status, f"'{sets}' is a file, and a folder is needed there for" in said) == (2, True)
    assert not asked
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # it would try five times
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    status, _, said = run(monkeypatch, capsys, exported, "--task", "STSBenchmark")
    assert (status, "which needs a network; local sets (--sets) need none" in said) == (2, True), said
    assert "Traceback" not in said
    asked.clear()


def test_without_mteb_a_sentence_names_the_extra(
    exported: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "mteb", None)
    status, _, said = run(monkeypatch, capsys, exported, "--sets", some_sets(tmp_path))
    assert status == 2
    assert "needs the package 'mteb', which is not installed. Install it with: pip install 'datakit[eval]'" in said
