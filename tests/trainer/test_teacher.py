"""What a teacher says: the values of sentence-transformers, each beside its text, computed once and in the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from toys import COLOURS, THINGS, MakeBuild, row, toy_rows

from datakit.errors import BuildError, UserError
from datakit.opened import Build
from trainer import loop, teacher
from trainer.batch import Batch
from trainer.config import ModelConfig, Stage
from trainer.config_loss import Distillation
from trainer.data import TrainingRows
from trainer.model import Encoder, load_encoder
from trainer.teacher import Teacher

PROMPTS = {"query": "find ", "document": "the "}


@pytest.fixture(scope="module")
def bert(tokenizer: transformers.PreTrainedTokenizerFast) -> Callable[[Path, type], str]:
    """A folder with a random BERT of 16 dimensions: bert(folder, AutoModel or another class)."""
    padded = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, unk_token="<unk>", eos_token="<end>", pad_token="<end>"
    )
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=64, num_labels=1, pad_token_id=1, initializer_range=0.5,
    )  # fmt: skip

    def save(folder: Path, kind: Any, labels: int = 1) -> str:
        torch.manual_seed(1)
        config.num_labels = labels
        kind.from_config(config).save_pretrained(folder)
        padded.save_pretrained(folder)
        return str(folder)

    return save


@pytest.fixture(scope="module")
def vectors_model(bert: Callable[[Path, type], str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """An encoder with prompts of its own, whose vectors have other lengths than 1."""
    folder = tmp_path_factory.mktemp("encoder")
    inner = Transformer(bert(folder / "inner", transformers.AutoModel), max_seq_length=32)
    model = SentenceTransformer(modules=[inner, Pooling(16, pooling_mode="mean")], prompts=PROMPTS, device="cpu")
    model.save(str(folder / "saved"))
    return str(folder / "saved")


@pytest.fixture(scope="module")
def scores_model(bert: Callable[[Path, type], str], tmp_path_factory: pytest.TempPathFactory) -> str:
    return bert(tmp_path_factory.mktemp("cross"), transformers.AutoModelForSequenceClassification)


@pytest.fixture(scope="module")
def encoder(tiny_base: str) -> Encoder:
    return load_encoder(ModelConfig(base=tiny_base))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher, "BLOCK_ITEMS", 7)


def distillation(model: str, kind: str) -> Distillation:
    return Distillation.model_validate({"teacher": model, "kind": kind, "documents": "own"})


def opened(build: Build, folder: Path, loss: dict[str, Any] | None = None, **data: Any) -> TrainingRows:
    value = {"name": "only", "data": {"batch_size": 6, "negatives": 2, **data}, "loss": loss or {}, "training": {"steps": 1}}
    return TrainingRows(build, str(folder), Stage.model_validate(value), 0)


def batches(rows: TrainingRows, encoder: Encoder, epochs: int = 2) -> list[Batch]:
    return [rows.batch(epoch, number, encoder, 0.0) for epoch in range(epochs) for number in range(rows.batches_per_epoch)]


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def uneven_rows() -> list[dict[str, Any]]:
    """Rows with no negatives, one and more; texts that stand in several rows, and one that is a query and a document."""
    train = [
        row(
            f"{colour} {thing}",
            f"the {thing} is {colour}",
            instruction="find it",
            document_instruction="Document",
            negatives=[f"a {thing} is {other}" for other in COLOURS[: (one + two) % 4]],
        )
        for one, thing in enumerate(THINGS[:4])
        for two, colour in enumerate(COLOURS[4:8])
    ]
    return [
        *train,
        row("red house", "black house", negatives=["red river", "green river"]),
        row("black house", "red house", negatives=["red river"]),
        {**row("red house", "blue house"), "negatives": None},
    ]


@pytest.fixture
def uneven_build(make_build: MakeBuild) -> Build:
    return make_build(uneven_rows(), [])


def test_vectors_are_those_of_sentence_transformers_with_the_teachers_own_prompts(
    uneven_build: Build, vectors_model: str, tmp_path: Path, encoder: Encoder
) -> None:
    rows = opened(uneven_build, tmp_path)
    found = Teacher.open(distillation(vectors_model, "embeddings"), rows, str(tmp_path / "teacher"))
    model = SentenceTransformer(vectors_model, device="cpu")
    read: set[tuple[str, str]] = set()
    prefixes = set()
    for batch in batches(rows, encoder):
        for role, texts, vectors in zip(PROMPTS, (batch.queries, batch.documents), found.vectors(batch), strict=True):
            expected = model.encode([PROMPTS[role] + each.text for each in texts], normalize_embeddings=True)
            np.testing.assert_allclose(vectors, expected, atol=1e-5)
            read |= {(role, each.text) for each in texts}
            prefixes |= {each.prefix for each in texts}
    # The student's own prefixes are not the teacher's, and a text is another item as a query than as a document.
    assert len(prefixes) == 3
    assert {(role, text) for role in PROMPTS for text in ("red house", "black house")} <= read


def test_scores_are_those_of_a_cross_encoder_for_the_positive_and_each_drawn_negative(
    uneven_build: Build, scores_model: str, tmp_path: Path, encoder: Encoder
) -> None:
    rows = opened(uneven_build, tmp_path)
    found = Teacher.open(distillation(scores_model, "scores"), rows, str(tmp_path / "teacher"))
    model = CrossEncoder(scores_model, device="cpu")
    lacking = set()
    for batch in batches(rows, encoder):
        scores = found.scores(batch)
        assert scores.shape == (len(batch.queries), 3)
        for number, query in enumerate(batch.queries):
            places = np.array([batch.positive[number], *batch.own[number]])
            asked = [(query.text, batch.documents[place].text) for place in places[places >= 0]]
            np.testing.assert_allclose(scores[number, places >= 0], model.predict(asked, show_progress_bar=False), atol=1e-5)
            assert np.isnan(scores[number, places < 0]).all()
            lacking.add(int((places < 0).sum()))
    assert lacking == {0, 1, 2}


def test_a_teacher_reads_no_more_tokens_than_it_is_told_and_both_readings_are_kept(
    uneven_build: Build, vectors_model: str, scores_model: str, tmp_path: Path, encoder: Encoder
) -> None:
    rows = opened(uneven_build, tmp_path)
    batch = rows.batch(0, 0, encoder, 0.0)
    short = {"max_length": 4}
    cut = SentenceTransformer(vectors_model, device="cpu")
    cut.max_seq_length = 4
    expected = cut.encode([PROMPTS["document"] + each.text for each in batch.documents], normalize_embeddings=True)
    for _ in range(2):  # the second time from the files
        config = distillation(vectors_model, "embeddings")
        whole = Teacher.open(config, rows, str(tmp_path)).vectors(batch)[1]
        found = Teacher.open(config.model_copy(update=short), rows, str(tmp_path)).vectors(batch)[1]
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert np.abs(found - whole).max() > 0.01
    crossed = CrossEncoder(scores_model, device="cpu", max_length=4)
    asked = [(query.text, batch.documents[place].text) for query, place in zip(batch.queries, batch.positive, strict=True)]
    scores = Teacher.open(distillation(scores_model, "scores").model_copy(update=short), rows, str(tmp_path)).scores(batch)
    np.testing.assert_allclose(scores[:, 0], crossed.predict(asked, show_progress_bar=False), atol=1e-5)


def test_without_negatives_only_queries_and_positives_are_read(
    uneven_build: Build, vectors_model: str, scores_model: str, tmp_path: Path, encoder: Encoder
) -> None:
    rows, records = opened(uneven_build, tmp_path, negatives=0), uneven_rows()
    sides = {("query", each["query"]) for each in records} | {("document", each["positive"]) for each in records}
    assert len(Teacher.open(distillation(vectors_model, "embeddings"), rows, str(tmp_path)).keys) == len(sides)
    scores = Teacher.open(distillation(scores_model, "scores"), rows, str(tmp_path))
    assert len(scores.keys) == len({(each["query"], each["positive"]) for each in records})
    assert all(scores.scores(batch).shape == (len(batch.row_ids), 1) for batch in batches(rows, encoder))


class Stopped(BaseException):
    """Ends the reading at a chosen place, as a kill would."""


@pytest.mark.parametrize("kind", ["embeddings", "scores"])
def test_reading_goes_on_after_a_stop_to_the_same_bytes(
    kind: str, uneven_build: Build, vectors_model: str, scores_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = distillation(vectors_model if kind == "embeddings" else scores_model, kind)
    rows = opened(uneven_build, tmp_path)
    whole = Teacher.open(config, rows, str(tmp_path / "whole"))
    expected = files(tmp_path / "whole")
    count = len(whole.blocks)
    assert count == len(expected) == -(-len(whole.keys) // 7) > 3
    calls: list[int] = []
    compute, save = teacher.computed, np.save

    def counted(*arguments: Any) -> np.ndarray:
        calls.append(len(calls))
        return compute(*arguments)

    def cut(file: Any, values: np.ndarray) -> None:
        if len(calls) == 3:
            file.write(b"half")
            raise Stopped
        save(file, values)

    monkeypatch.setattr(teacher, "computed", counted)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(np, "save", cut)
        Teacher.open(config, rows, str(tmp_path / "stopped"))
    assert files(tmp_path / "stopped") == {name: expected[name] for name in sorted(expected)[:2]}
    (place,) = (tmp_path / "stopped").iterdir()
    (place / "00002.npy.0123456789ab.tmp").write_bytes(b"half")
    calls.clear()
    Teacher.open(config, rows, str(tmp_path / "stopped"))
    assert (files(tmp_path / "stopped"), len(calls)) == (expected, count - 2)
    # Whatever blocks are gone: those alone are computed again.
    for gone in ([count - 1], [0, 2]):
        calls.clear()
        for number in gone:
            (place / f"{number:05d}.npy").unlink()
        Teacher.open(config, rows, str(tmp_path / "stopped"))
        assert (files(tmp_path / "stopped"), len(calls)) == (expected, len(gone))


def test_the_bytes_do_not_depend_on_how_a_stage_makes_its_batches_and_another_stage_reads_nothing_again(
    uneven_build: Build, vectors_model: str, tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Teacher.open(distillation(vectors_model, "embeddings"), opened(uneven_build, tmp_path), str(tmp_path / "teacher"))
    before = files(tmp_path / "teacher")

    def never(*arguments: Any) -> None:
        raise AssertionError("the teacher was asked again")

    monkeypatch.setattr(teacher, "load", never)
    monkeypatch.setattr(teacher, "computed", never)
    rows = opened(uneven_build, tmp_path, batch_size=4, negatives=1, curriculum={})
    config = distillation(vectors_model, "embeddings").model_copy(update={"weight": 3.0, "teacher_temperature": 0.7})
    second = Teacher.open(config, rows, str(tmp_path / "teacher"))
    assert files(tmp_path / "teacher") == before
    batch = rows.batch(0, 0, encoder, 0.0)
    for one, other in zip(first.vectors(batch), second.vectors(batch), strict=True):
        np.testing.assert_array_equal(one, other)


def test_other_rows_another_kind_and_another_teacher_are_kept_apart(
    make_build: MakeBuild, bert: Callable[[Path, type], str], scores_model: str, vectors_model: str, tmp_path: Path
) -> None:
    train = uneven_rows()
    one, other = (opened(make_build(part, [], name=str(len(part))), tmp_path) for part in (train, train[:-3]))
    again = tmp_path / "again"
    bert(again, transformers.AutoModelForSequenceClassification)
    weights = load_file(again / "model.safetensors")
    save_file({**weights, "classifier.bias": weights["classifier.bias"] + 1}, again / "model.safetensors", {"format": "pt"})
    folder = tmp_path / "teacher"
    for number, (model, kind, rows) in enumerate(
        [
            (scores_model, "scores", one),
            (scores_model, "scores", other),
            (str(again), "scores", one),
            (vectors_model, "embeddings", one),
        ]
    ):
        before = files(folder) if number else {}
        Teacher.open(distillation(model, kind), rows, str(folder))
        assert len(list(folder.iterdir())) == number + 1
        assert before.items() <= files(folder).items()


def test_there_are_no_more_files_than_may_be_open(
    uneven_build: Build, vectors_model: str, tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, rows = distillation(vectors_model, "embeddings"), opened(uneven_build, tmp_path)
    many = Teacher.open(config, rows, str(tmp_path / "many"))
    monkeypatch.setattr(teacher, "MOST_BLOCKS", 3)
    few = Teacher.open(config, rows, str(tmp_path / "few"))
    assert len(files(tmp_path / "few")) == 3
    for batch in batches(rows, encoder, 1):
        for one, other in zip(many.vectors(batch), few.vectors(batch), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)


def test_graded_rows_have_no_part(make_build: MakeBuild, vectors_model: str, tmp_path: Path, encoder: Encoder) -> None:
    graded = [row(f"pink {thing}", f"grey {thing}", score=0.5, negatives=["a green shirt"]) for thing in THINGS]
    plain = toy_rows()[:9]
    rows = opened(make_build([*graded, *plain], []), tmp_path, {"similarity": {}})
    found = Teacher.open(distillation(vectors_model, "embeddings"), rows, str(tmp_path / "teacher"))
    read = {("query", each["query"]) for each in plain} | {("document", each["positive"]) for each in plain}
    assert len(found.keys) == len(read | {("document", text["text"]) for each in plain for text in each["negatives"]})
    for batch in batches(rows, encoder, 1):
        targets = loop.targets_of(batch, found, torch.device("cpu"))
        assert (targets.teacher_vectors is None) == (batch.scores is not None)
        if batch.scores is not None:
            with pytest.raises(BuildError, match="has not read all texts of this batch"):
                found.vectors(batch)


def test_where_all_rows_are_graded_the_teacher_is_not_even_loaded(make_build: MakeBuild, tmp_path: Path) -> None:
    rows = opened(make_build([row("a house", "a horse", score=0.5)], []), tmp_path, {"similarity": {}})
    assert Teacher.open(distillation("/no/such/folder", "embeddings"), rows, str(tmp_path / "teacher")).blocks == []


def test_a_text_that_was_never_read_is_an_error_and_not_the_value_of_another(
    make_build: MakeBuild, vectors_model: str, scores_model: str, tmp_path: Path, encoder: Encoder
) -> None:
    train = toy_rows()[:6]
    known = opened(make_build(train, [], name="known"), tmp_path)
    asked = [
        [row("a stone", train[0]["positive"])],
        [row(train[0]["query"], "a stone")],
        [row(train[0]["query"], train[0]["positive"], negatives=["a stone"])],
        # Each text was read, but not in this role, or not as this pair.
        [row(train[0]["positive"], train[1]["positive"])],
    ]
    others = [opened(make_build(each, [], name=str(number)), tmp_path) for number, each in enumerate(asked)]
    for model, kind, ask in ((vectors_model, "embeddings", Teacher.vectors), (scores_model, "scores", Teacher.scores)):
        found = Teacher.open(distillation(model, kind), known, str(tmp_path / "teacher"))
        ask(found, known.batch(0, 0, encoder, 0.0))  # type: ignore[operator]
        for rows in others:
            with pytest.raises(BuildError, match=f"The teacher '{model}' has not read all texts of this batch"):
                ask(found, rows.batch(0, 0, encoder, 0.0))  # type: ignore[operator]


def test_teachers_of_another_kind_are_refused_in_one_sentence(
    make_build: MakeBuild, bert: Callable[..., str], vectors_model: str, scores_model: str, tmp_path: Path
) -> None:
    rows = opened(make_build(toy_rows()[:4], []), tmp_path)
    bare = bert(tmp_path / "bare", transformers.AutoModel)
    saved = str(tmp_path / "saved")
    CrossEncoder(scores_model, device="cpu").save_pretrained(saved)
    two = bert(tmp_path / "two", transformers.AutoModelForSequenceClassification, 2)
    for model, kind, sentence in [
        (bare, "embeddings", "holds no modules.json"),
        (scores_model, "embeddings", "holds no modules.json"),
        (saved, "embeddings", "is a cross-encoder .*set kind: scores"),
        (vectors_model, "scores", "is no cross-encoder with one output .*needs kind: embeddings"),
        (bare, "scores", "is no cross-encoder with one output"),
        (two, "scores", "is no cross-encoder with one output"),
        (str(tmp_path / "none"), "scores", "could not be loaded"),
        ("nobody/no-such-model", "embeddings", "could not be loaded"),
        ("package:no_such_package/model", "scores", "not installed"),
    ]:
        with pytest.raises(UserError, match=sentence) as caught:
            Teacher.open(distillation(model, kind), rows, str(tmp_path / "teacher"))
        assert model in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
    assert files(tmp_path / "teacher") == {}


@pytest.mark.parametrize("kind", ["embeddings", "scores"])
def test_a_teacher_that_gives_no_numbers_is_refused_with_a_text_and_its_values_are_not_kept(
    kind: str, make_build: MakeBuild, bert: Callable[..., str], vectors_model: str, tokenizer: Any, tmp_path: Path
) -> None:
    rows = opened(make_build([row("red house", "the house is red"), row("blue shirt", "a pink shirt")], []), tmp_path)
    folder = tmp_path / "broken"
    if kind == "scores":
        bert(folder, transformers.AutoModelForSequenceClassification)
    else:
        SentenceTransformer(vectors_model, device="cpu").save(str(folder))
    name = next(each for each in load_file(folder / "model.safetensors") if each.endswith("word_embeddings.weight"))
    weights = load_file(folder / "model.safetensors")
    weights[name][tokenizer.convert_tokens_to_ids("pink")] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(BuildError, match=f"The teacher '{folder}' gives what is no number, as for 'a pink shirt'"):
        Teacher.open(distillation(str(folder), kind), rows, str(tmp_path / "teacher"))
    assert files(tmp_path / "teacher") == {}
