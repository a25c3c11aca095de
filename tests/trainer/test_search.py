"""Search: two stages against loops in float64, passages and their places, kills, mistakes in one sentence."""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

pytest.importorskip("faiss", reason="the extra 'search' is not installed")

from trainer.cli import main
from trainer.search import Hits, Index, Options, build, stages
from trainer.search.passages import BLOCK, cut
from trainer.search.settings import Job, Settings

Array = np.ndarray[Any, Any]


def index_of(vectors: Array, **options: Any) -> Index:
    """An index of vectors alone, without passages and model."""
    chosen = Options.model_validate(options)
    job = Job(options=chosen, model="", model_digest="", files=0, files_digest="", packages={})
    found = stages.assemble(np.array_split(vectors, -(-len(vectors) // 100)), chosen)
    return Index(found, Settings(job=job, dimensions=vectors.shape[1], passages=len(vectors)), "")


def unit(vectors: Array) -> Array:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-12)


def gaussian(count: int, dimension: int, seed: int = 0) -> Array:
    """Unit vectors of an effective dimension of about 24, so that they have neighbours, as texts do."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(7).standard_normal((24, dimension))
    return unit(rng.standard_normal((count, 24)) @ mixing + 0.3 * rng.standard_normal((count, dimension))).astype(np.float32)


def naive_scores(vectors: Array, query: Array) -> list[float]:
    """Cosines, in float64, one product after the other."""

    def product(a: Array, b: Array) -> float:
        return sum(float(x) * float(y) for x, y in zip(a, b, strict=True))

    return [product(row, query) / max(1e-12, (product(row, row) * product(query, query)) ** 0.5) for row in vectors]


def naive_two_stages(vectors: Array, query: Array, dimensions: int, shortlist: int, top: int) -> list[int]:
    near = naive_scores(vectors[:, :dimensions], query[:dimensions])
    chosen = sorted(range(len(vectors)), key=lambda number: -near[number])[:shortlist]
    scores = naive_scores(vectors, query)
    return sorted(chosen, key=lambda number: -scores[number])[:top]


def recall(hits: Hits, best: Hits) -> float:
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(hits.ids.tolist(), best.ids.tolist(), strict=True)]))


# ------------------------------------------------------------------------------------------------------------------ vectors

small = st.integers(1, 12).flatmap(
    lambda d: st.tuples(
        arrays.arrays(np.int8, st.tuples(st.integers(1, 30), st.just(d)), elements=st.integers(-3, 3)),
        arrays.arrays(np.int8, st.tuples(st.integers(1, 3), st.just(d)), elements=st.integers(-3, 3)),
    )
)


@settings(deadline=None, max_examples=60)
@given(small, st.integers(1, 40), st.sampled_from(["exact", "hnsw"]), st.booleans())
def test_full_search_and_a_shortlist_of_all_are_a_double_loop_in_float64(
    values: tuple[Array, Array], top: int, method: str, full: bool
) -> None:
    vectors, queries = (unit(each.astype(np.float64)).astype(np.float32) for each in values)
    index = index_of(vectors, method=method, shortlist=max(1, vectors.shape[1] // 2))
    hits = index.search(queries, top=top, shortlist=max(top, len(vectors)), full=full)
    assert hits.ids.shape == hits.scores.shape == (len(queries), min(top, len(vectors)))
    for query, ids, scores in zip(queries, hits.ids.tolist(), hits.scores.tolist(), strict=True):
        naive = naive_scores(vectors, query)
        assert len(set(ids)) == len(ids)
        # Equal passages may change places only with each other: scores decide, and numbers among equal scores.
        np.testing.assert_allclose(scores, sorted(naive, reverse=True)[: len(ids)], atol=2e-6)
        np.testing.assert_allclose(scores, [naive[number] for number in ids], atol=2e-6)
        for before, after in itertools.pairwise(range(len(ids))):
            assert (-scores[before], ids[before]) < (-scores[after], ids[after])


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 1_000), st.integers(3, 24), st.integers(5, 60), st.integers(1, 5))
def test_the_shortlist_has_the_nearest_by_unit_vectors_of_the_first_dimensions(
    seed: int, dimensions: int, shortlist: int, top: int
) -> None:
    vectors, queries = gaussian(130, 24, seed), gaussian(2, 24, seed + 1)
    hits = index_of(vectors, shortlist=dimensions).search(queries, top, shortlist)
    for query, ids in zip(queries, hits.ids.tolist(), strict=True):
        assert ids == naive_two_stages(vectors, query, dimensions, shortlist, top)


def test_queries_alone_and_in_a_batch_find_the_same() -> None:
    index, queries = index_of(gaussian(900, 64), shortlist=16), gaussian(64, 64, 1)
    together = index.search(queries)
    alone = [index.search(queries[number : number + 1]) for number in range(64)]
    np.testing.assert_allclose(together.scores, np.concatenate([each.scores for each in alone]), atol=1e-6)
    assert np.mean(together.ids == np.concatenate([each.ids for each in alone])) > 0.99


@pytest.mark.parametrize(
    ("precision", "bytes_each", "least"),
    [("float32", 4 * (256 + 32), 1.0), ("int8", 256 + 32, 0.95), ("binary", 256 // 8 + 32, 0.6)],
)
@pytest.mark.parametrize("method", ["exact", "hnsw"])
def test_precisions_have_their_size_and_a_sane_recall_and_equal_bytes(
    precision: str, bytes_each: int, least: float, method: str, tmp_path: Path
) -> None:
    vectors, queries = gaussian(2_000, 256), gaussian(40, 256, 1)
    best = index_of(vectors).search(queries, full=True)
    index = index_of(vectors, precision=precision, method=method, shortlist=32)
    for number in range(2):
        stages.write(stages.assemble(np.array_split(vectors, 20), index.settings.job.options), str(tmp_path / f"{number}"))
    first, second = ((tmp_path / name).read_bytes() for name in "01")
    assert first == second
    links = 0 if method == "exact" else 2_000 * (2 * stages.LINKS * 4 + 16)
    assert bytes_each * 2_000 <= len(first) < bytes_each * 2_000 * 1.03 + links * 1.1 + 2_000
    assert recall(index.search(queries, full=True), best) >= least
    assert recall(index.search(queries, shortlist=400), best) >= least - 0.1
    if method == "hnsw":
        assert recall(index.search(queries, shortlist=400), index.search(queries, shortlist=400, exact=True)) > 0.95
    opened = Index(stages.read(str(tmp_path / "0")), index.settings, "")
    for full, exact in itertools.product([False, True], repeat=2):
        np.testing.assert_array_equal(
            opened.search(queries, full=full, exact=exact).ids, index.search(queries, full=full, exact=exact).ids
        )


def test_wrong_arguments_of_a_search_are_told() -> None:
    from datakit.errors import UserError

    index = index_of(gaussian(5, 8), shortlist=4)
    assert index.search(gaussian(1, 8), top=99, shortlist=99).ids.shape == (1, 5)
    assert index.search(gaussian(0, 8)).ids.shape == (0, 5)
    for arguments in ({"top": 0}, {"top": 20, "shortlist": 10}):
        with pytest.raises(UserError, match="allowed: 1 <= top <= shortlist"):
            index.search(gaussian(1, 8), **arguments)
    with pytest.raises(UserError, match=r"Vectors of 8 dimensions are needed, and the array is \(1, 9\)"):
        index.search(gaussian(1, 9))


# ----------------------------------------------------------------------------------------------------------------- passages


@given(st.text("ab.!\n ", max_size=300), st.integers(8, 20))
def test_a_passage_stands_at_its_line_and_no_word_is_lost(text: str, words: int) -> None:
    lines, found = text.split("\n"), list(cut(text, words))
    for line, passage in found:
        assert passage.split("\n")[0] in lines[line - 1]
    assert "".join(text.split()) == "".join("".join(passage.split()) for _, passage in found)


# ----------------------------------------------------------------------------------------------------------- the whole way


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tokenizer: transformers.PreTrainedTokenizerFast) -> str:
    """A mean of random vectors of words, 32 dimensions, said to be trained for 8 too."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    weights = np.random.default_rng(3).standard_normal((len(tokenizer), 32)).astype(np.float32)
    folder = tmp_path_factory.mktemp("models") / "static"
    SentenceTransformer(modules=[StaticEmbedding(tokenizer.backend_tokenizer, embedding_weights=weights)], device="cpu").save(
        str(folder), create_model_card=False
    )
    (folder / "matryoshka.json").write_text('{"dimensions": [32, 8]}')
    return str(folder)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Three kinds of files; with a record that is broken and one that is empty."""
    folder = tmp_path / "corpus"
    (folder / "deep").mkdir(parents=True)
    (folder / "long.txt").write_text(
        "the red house burns\n\n" + "a grey stone falls. " * 5 + "\n\n\nthe blue river\nsings what turns\n"
    )
    (folder / "deep" / "one.md").write_text("the green apple grows\n")
    (folder / "records.jsonl").write_text('{"text": "the black horse sings"}\n{"text": ""}\n{broken\n{"text": "a white table"}\n')
    return folder


OPTIONS = Options(shortlist=8, words=12)


def digest(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_passages_are_found_with_file_and_place(
    corpus: Path, model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = str(tmp_path / "index")
    with caplog.at_level(logging.INFO):
        done = build(model, [f"{corpus}/*.txt", f"{corpus}/**/*.md", f"{corpus}/*.jsonl"], output, OPTIONS)
    assert "1 records cannot be read and are left out. The first: records.jsonl, record 3: invalid_json" in caplog.text
    assert "Nothing says" not in caplog.text
    assert sorted(os.listdir(output)) == ["passages.parquet", "settings.json", "vectors.faiss"]
    index = Index.open(output)
    assert len(index) == done.passages >= 6
    expected = {
        "red house": "long.txt:1",
        "river blue sings": "long.txt:6",
        "apple green": "deep/one.md:1",
        "horse black": "records.jsonl, record 1",
        "table": "records.jsonl, record 4",
    }
    for text, place in expected.items():
        for full in (False, True):
            assert index.passages(index.search([text], top=1, shortlist=3, full=full).ids[0])[0].place == place
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert build(model, [f"{corpus}/*.txt", f"{corpus}/**/*.md", f"{corpus}/*.jsonl"], output, OPTIONS) == done
    assert "is this index already" in caplog.text
    (corpus / "deep" / "one.md").write_text("the pink shirt\n")
    build(model, [f"{corpus}/**/*.md"], output, OPTIONS.model_copy(update={"shortlist": 5}))
    assert "Nothing says that the model was trained for its first 5 dimensions" in caplog.text
    again = Index.open(output)
    assert again.search(["pink"], top=7).ids.tolist() == [[0]]
    assert again.passages([0])[0].text == "the pink shirt"


class StoppedError(Exception):
    """What a test puts in the place of a kill."""


ROWS = 3 * BLOCK + 70


@pytest.fixture
def many(tmp_path: Path) -> str:
    from toys import ACTS, COLOURS, THINGS

    words = itertools.islice(itertools.cycle(itertools.product(COLOURS, THINGS, ACTS)), ROWS)
    path = tmp_path / "many.jsonl"
    path.write_text("".join(json.dumps({"text": f"the {' '.join(each)} {number}"}) + "\n" for number, each in enumerate(words)))
    return str(path)


def told(function: Callable[..., Any], tell: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with `tell` called before it with its arguments."""

    def call(*arguments: Any) -> Any:
        tell(*arguments)
        return function(*arguments)

    return call


def stopping(function: Callable[..., Any], calls: int) -> Callable[..., Any]:
    """The function, until it is called for the `calls`-th time."""
    count = itertools.count(1)

    def tell(*arguments: Any) -> None:
        if next(count) == calls:
            raise StoppedError

    return told(function, tell)


def test_an_index_that_was_stopped_before_any_rename_has_the_same_bytes(
    many: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    options = OPTIONS.model_copy(update={"method": "hnsw", "precision": "int8"})
    build(model, [many], str(tmp_path / "whole"), options)
    encode = sys.modules["datakit.encoders.encode"]
    encoded: list[int] = []
    # Renames: settings, passages, four blocks, vectors, settings, the folder.
    for calls in range(1, 10):
        with monkeypatch.context() as patched, pytest.raises(StoppedError):
            patched.setattr(os, "replace", stopping(os.replace, calls))
            build(model, [many], str(tmp_path / "stopped"), options)
        assert not (tmp_path / "stopped").exists()
        encoded.clear()
        with monkeypatch.context() as patched:
            patched.setattr(encode, "encode", told(encode.encode, lambda encoder, role, texts: encoded.append(len(texts))))
            build(model, [many], str(tmp_path / "stopped"), options)
        assert sum(encoded) == ROWS - min(ROWS, max(0, calls - 3) * BLOCK)
        assert digest(tmp_path / "stopped") == digest(tmp_path / "whole")
        shutil.rmtree(tmp_path / "stopped")
    assert not list(tmp_path.glob(".*"))


KILLED = """
import os, signal, sys
import torch
torch.set_num_threads(1)
from trainer.search import build, Options
home = sys.modules["trainer.search.indexing"]
save, count = home.save_array, []
def killed(path, array):
    count.append(path)
    if len(count) == 3:
        for half in (path, os.path.join(os.path.dirname(path), "..", "vectors.faiss")):
            open(half + ".0123456789ab.tmp", "wb").write(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    save(path, array)
home.save_array = killed
build(sys.argv[1], [sys.argv[2]], sys.argv[3], Options.model_validate_json(sys.argv[4]))
"""


def test_a_kill_costs_one_block(many: str, model: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    arguments = [model, many, str(tmp_path / "killed"), OPTIONS.model_dump_json()]
    process = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, text=True)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert not (tmp_path / "killed").exists()
    assert len(list((tmp_path / ".killed.partial" / "blocks").glob("*.npy"))) == 2
    build(model, [many], str(tmp_path / "killed"), OPTIONS)
    build(model, [many], str(tmp_path / "whole"), OPTIONS)
    assert digest(tmp_path / "killed") == digest(tmp_path / "whole")


# ------------------------------------------------------------------------------------------------------- the command line


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["trainer", "search", *arguments])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stopped:
        main()
    shown = capsys.readouterr()
    return int(stopped.value.code or 0), shown.out, shown.err


def test_the_command_line_indexes_and_answers_arguments_and_lines(
    corpus: Path, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "index")
    status, shown, _ = run(
        monkeypatch, capsys, "index", model, f"{corpus}/*.txt", "-o", output, "--shortlist", "8", "--words", "12"
    )
    assert (status, f"{output}: 4 passages of 32 dimensions" in shown) == (0, True), shown
    status, shown, _ = run(monkeypatch, capsys, "query", output, "red house", "blue \udcff river", "--top", "2", "--compare")
    assert status == 0
    assert shown.splitlines()[0] == "red house"
    assert shown.splitlines()[1].split()[::2] == ["1", "long.txt:1"]
    assert "the red house burns" in shown
    assert "2 of the 2 that full search finds, in " in shown
    monkeypatch.setattr(sys, "stdin", io.StringIO("\nblue river\n   \nhouse"))
    status, shown, _ = run(monkeypatch, capsys, "query", output, "--top", "1", "--full")
    assert [line for line in shown.splitlines() if not line.startswith(" ")] == ["blue river", "house"]
    assert "long.txt:6" in shown


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["index", "MODEL", "CORPUS/nothing.txt", "-o", "NEW"], "nothing.txt' does not exist"),
        (["index", "MODEL", "CORPUS", "-o", "NEW"], "is a folder, and files are needed"),
        (
            ["index", "MODEL", "CORPUS/*.jsonl", "-o", "NEW", "--shortlist", "8", "--column", "txt"],
            "no column 'txt'; its columns are: 'text'",
        ),
        (["index", "MODEL", "CORPUS/empty.txt", "-o", "NEW", "--shortlist", "8"], "There is nothing to index"),
        (["index", "MODEL", "CORPUS/*.txt", "-o", "CORPUS"], "is a folder with something else in it"),
        (["index", "MODEL", "CORPUS/*.txt", "-o", "CORPUS/long.txt"], "is a file, and an index is a folder"),
        (["index", "MODEL", "CORPUS/*.txt", "-o", "NEW", "--shortlist", "33"], "--shortlist is 33; allowed: 1 to 32"),
        (["index", "/no/model", "CORPUS/*.txt", "-o", "NEW"], "'/no/model' does not exist"),
        (["index", "package:no_such/x", "CORPUS/*.txt", "-o", "NEW"], "which is not installed"),
        (["query", "NEW", "a"], "is no index: it has no settings.json"),
        (["query", "INDEX", ""], "A query is empty"),
        (["query", "INDEX", "a", "--model", "/no/model"], "which is not there any more"),
        (["query", "INDEX", "a", "--model", "CORPUS"], "its files have changed"),
        (["query", "DAMAGED", "a"], "vectors.faiss' is damaged"),
        (["query", "OTHER", "a"], "was not written by this version of trainer"),
        (["query", "UNREADABLE", "a"], "passages.parquet' is damaged, cut off or not there"),
        (["query", "CORPUS/long.txt", "a"], "is no index: it has no settings.json"),
        (["index", "MODEL", "CORPUS/*.txt", "-o", "CORPUS/long.txt/x"], "long.txt' is a file, and an index is a folder"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistakes_are_one_sentence_and_status_2(
    arguments: list[str],
    expected: str,
    corpus: Path,
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (corpus / "empty.txt").write_text(" \n")
    if arguments[0] == "query" and arguments[1] != "NEW":
        build(model, [f"{corpus}/*.txt"], str(tmp_path / "INDEX"), OPTIONS)
        for name in ("DAMAGED", "OTHER", "UNREADABLE"):
            shutil.copytree(tmp_path / "INDEX", tmp_path / name)
        (tmp_path / "UNREADABLE" / "passages.parquet").unlink()
        (tmp_path / "DAMAGED" / "vectors.faiss").write_bytes((tmp_path / "INDEX" / "vectors.faiss").read_bytes()[:300])
        (tmp_path / "OTHER" / "settings.json").write_text('{"other": 1}')
    places = {
        "MODEL": model,
        "CORPUS": str(corpus),
        **{name: str(tmp_path / name) for name in ("NEW", "INDEX", "DAMAGED", "OTHER", "UNREADABLE")},
    }
    filled = [functools.reduce(lambda text, name: text.replace(name, places[name]), places, each) for each in arguments]
    status, _, shown = run(monkeypatch, capsys, *filled)
    assert status == 2
    assert expected in shown
    assert "Traceback" not in shown
    assert not (tmp_path / "NEW").exists()


@pytest.mark.parametrize("name", ["vectors.faiss", "passages.parquet"])
@pytest.mark.parametrize("damage", [None, b"x"])
def test_a_damaged_index_is_made_again(name: str, damage: bytes | None, corpus: Path, model: str, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    build(model, [f"{corpus}/*.txt"], str(folder), OPTIONS)
    before = digest(folder)
    (folder / name).unlink() if damage is None else (folder / name).write_bytes(damage)
    build(model, [f"{corpus}/*.txt"], str(folder), OPTIONS)
    assert digest(folder) == before


def test_trained_dimensions_that_cannot_be_read_are_told(model: str, corpus: Path, tmp_path: Path) -> None:
    from datakit.errors import UserError

    mine = shutil.copytree(model, tmp_path / "model")
    (mine / "matryoshka.json").write_text("{}")
    with pytest.raises(UserError, match=r"matryoshka\.json"):
        build(str(mine), [f"{corpus}/*.txt"], str(tmp_path / "index"), OPTIONS)


def test_a_model_that_changed_is_told(model: str, corpus: Path, tmp_path: Path) -> None:
    from datakit.errors import UserError

    mine = str(shutil.copytree(model, tmp_path / "model"))
    build(mine, [f"{corpus}/*.txt"], str(tmp_path / "index"), OPTIONS)
    moved = str(shutil.move(mine, tmp_path / "moved"))
    with pytest.raises(UserError, match="which is not there any more"):
        Index.open(str(tmp_path / "index")).search(["red"])
    Index.open(str(tmp_path / "index"), model=moved).search(["red"])
    (tmp_path / "moved" / "matryoshka.json").write_text('{"dimensions": [32]}')
    with pytest.raises(UserError, match="its files have changed"):
        Index.open(str(tmp_path / "index"), model=moved).search(["red"])


def test_without_faiss_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from datakit.errors import MissingExtra

    monkeypatch.setitem(sys.modules, "faiss", None)
    for call in (lambda: build("m", ["x.txt"], str(tmp_path / "i"), OPTIONS), lambda: Index.open(str(tmp_path))):
        with pytest.raises(MissingExtra, match=r"'faiss-cpu'.*pip install 'datakit\[search\]'"):
            call()
