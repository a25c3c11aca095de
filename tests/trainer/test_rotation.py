"""Rotation: whole vectors stay as alike as they were, and fewer dimensions hold more of that."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from test_merge import files
from tokenizers import pre_tokenizers
from toys import MakeBuild, row, save_base, tiny_config

from datakit.errors import BuildError, UserError
from datakit.opened import Build
from trainer.cli import main
from trainer.config import ModelConfig
from trainer.embedder import Embedder
from trainer.evaluation.retrieval import evaluate_encoder, load_task, unit
from trainer.export import export
from trainer.finished import rotation as module
from trainer.finished.rotation import TEMPERATURE, divergence, learned, rotate
from trainer.model import load_encoder

SIZES = [32, 16, 8]
TEXTS = ["what is red house", "the horse burns", "a Green table", "the river"]


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEPS", 20)


def model(folder: Path, base: str, **way: Any) -> str:
    encoder = load_encoder(ModelConfig.model_validate({"base": base, "layers": 2, "max_length": 24, **way}))
    width = encoder.dimension
    trained = [each for each in SIZES if each <= width]
    export(
        encoder,
        str(folder),
        {"query": "find ", "document": "", "things": "what "},
        "toy",
        "v1",
        trained,
        dict.fromkeys(trained, 0.5),
    )
    return str(folder)


def naive(whole: np.ndarray, turned: np.ndarray, dimensions: list[int]) -> float:
    """The definition, text by text, in float64."""
    n, total = len(whole), 0.0
    for dimension in dimensions:
        for one in range(n):
            others = [other for other in range(n) if other != one]
            p = np.exp([whole[one] @ whole[other] / TEMPERATURE for other in others])
            cut = turned[:, :dimension] / np.linalg.norm(turned[:, :dimension], axis=1, keepdims=True)
            q = np.exp([cut[one] @ cut[other] / TEMPERATURE for other in others])
            p, q = p / p.sum(), q / q.sum()
            total += float((p * np.log(p / q)).sum()) / n / len(dimensions)
    return total


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 9), st.integers(2, 12), st.integers(0, 99), st.data())
def test_the_divergence_is_that_of_the_definition(n: int, width: int, seed: int, data: st.DataObject) -> None:
    dimensions = data.draw(st.lists(st.integers(1, width), min_size=1, max_size=3, unique=True))
    draw = np.random.default_rng(seed)
    whole, turned = (unit(draw.normal(size=(n, width))).astype(np.float64) for _ in range(2))
    found = divergence(torch.from_numpy(whole), torch.from_numpy(turned), dimensions).item()
    assert found == pytest.approx(naive(whole, turned, dimensions), rel=1e-6, abs=1e-9)


def test_nothing_is_lost_with_all_dimensions() -> None:
    whole = torch.from_numpy(unit(np.random.default_rng(0).normal(size=(20, 6)))).double()
    turned = whole @ torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0]
    assert divergence(whole, turned, [6]).item() == pytest.approx(0, abs=1e-12)
    assert divergence(whole, turned, [3]).item() > 0.1


def scattered(n: int, seed: int) -> np.ndarray:
    """Vectors [n, 32] in 10 topics, each text with its own details, in directions that are no axes."""
    draw = np.random.default_rng(seed)
    turn = np.linalg.qr(np.random.default_rng(99).normal(size=(32, 32)))[0]
    topics = np.random.default_rng(98).normal(size=(10, 12))[draw.integers(10, size=n)]
    details = draw.normal(size=(n, 20)) * np.geomspace(0.6, 0.1, 20)
    return unit(np.concatenate([topics, details], 1) @ turn)


@pytest.mark.parametrize("seed", [0, 1])
def test_what_is_learned_is_a_rotation_that_keeps_more_of_other_texts_than_first_and_principal_axes(seed: int) -> None:
    texts, others = scattered(600, seed), torch.from_numpy(scattered(200, seed + 1))
    matrix = learned(texts, [16, 8], seed)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(32), atol=1e-5)
    axes = np.linalg.eigh(texts.T @ texts)[1][:, ::-1].astype(np.float32).copy()
    lost = [
        divergence(others, others @ torch.from_numpy(each), [16, 8]).item()
        for each in (np.eye(32, dtype=np.float32), axes, matrix)
    ]
    assert lost[2] < lost[1] < lost[0]


@pytest.mark.usefixtures("few_steps")
def test_few_texts_are_told(caplog: pytest.LogCaptureFixture) -> None:
    matrix = learned(scattered(5, 0), [8], 0)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(32), atol=1e-5)
    assert "5 texts are few to learn a rotation of 32 dimensions from" in caplog.text


WAYS: list[dict[str, Any]] = [
    {},
    {"layer_weights": [1, 2], "lowercase": True, "pooling": "weighted"},
    {"projection": 16, "pool_instruction": False},
    {"attention": {"local": {"layers": 0.5, "window": 2}}},
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.usefixtures("few_steps")
def test_whole_vectors_are_as_alike_as_before(way: dict[str, Any], tiny_base: str, toy_build: Build, tmp_path: Path) -> None:
    before = model(tmp_path / "model", tiny_base, **way)
    found = rotate(before, toy_build, str(tmp_path / "rotated"), [])
    one, other = (SentenceTransformer(str(folder), device="cpu") for folder in (before, tmp_path / "rotated"))
    for prompt in (None, "query", "things"):
        a, b = (each.encode(TEXTS, prompt_name=prompt) for each in (one, other))
        np.testing.assert_allclose(a @ a.T, b @ b.T, atol=2e-5)
        np.testing.assert_allclose(np.linalg.norm(b, axis=1), 1, atol=1e-5)
        assert np.abs(a - b).max() > 0.01
    width = one.get_embedding_dimension()
    assert Embedder.load(str(tmp_path / "rotated")).dimensions == [each for each in SIZES if each <= width]
    assert other.prompts == one.prompts
    assert other.max_seq_length == one.max_seq_length
    # What is told is what the folders have, and it is the same at all dimensions.
    for folder, told in ((before, found["before"]), (str(tmp_path / "rotated"), found["rotated"])):
        for dimension, each in evaluate_encoder(load_task(toy_build), folder, list(told)).items():
            assert told[dimension].score == pytest.approx(each.score, abs=2e-3)
    assert found["rotated"][width].score == pytest.approx(found["before"][width].score, abs=2e-3)


@pytest.mark.usefixtures("few_steps")
def test_a_rotated_model_reads_in_lower_case_where_its_tokenizer_alone_would_not(toy_build: Build, tmp_path: Path) -> None:
    alphabet = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = transformers.Qwen2Tokenizer(vocab={each: place for place, each in enumerate(alphabet)}, merges=[])
    base = save_base(tmp_path / "base", tokenizer, tiny_config("qwen3", head_dim=8, vocab_size=300))
    rotate(model(tmp_path / "model", base, lowercase=True), toy_build, str(tmp_path / "rotated"), [])
    one, other = SentenceTransformer(str(tmp_path / "rotated"), device="cpu").encode(["Red House", "red house"])
    np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.usefixtures("few_steps")
def test_a_model_that_knew_no_matryoshka_is_rotated_for_the_dimensions_that_are_named(
    tiny_base: str, toy_build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = model(tmp_path / "plain", tiny_base)
    (tmp_path / "plain" / "matryoshka.json").unlink()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=r"The dimensions are \[\]; give --dimension, once or more, from 1 to 31, as '.*plain' has 32"
    ):
        rotate(plain, toy_build, "none", [])
    arguments = ["trainer", "rotate", plain, "-d", toy_build.path, "-o", "rotated/", "--dimension", "4", "--dimension", "12"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    shown, noise = capsys.readouterr()
    assert "Writing model shards" not in noise
    found = evaluate_encoder(load_task(toy_build), "rotated", [32, 12, 4])
    line = next(line for line in shown.splitlines() if "rotated " in line)
    assert all(f"{each.score:.3f}" in line for each in found.values())
    assert json.loads(Path("rotated/matryoshka.json").read_text()) == {"dimensions": [32, 12, 4]}
    card = Path("rotated/README.md").read_text()
    assert all(each in card for each in (f"`{plain}`", f"`{toy_build.version}`", f"| {found[4].score:.3f} |", "# rotated"))


@pytest.mark.usefixtures("few_steps")
def test_the_same_model_texts_and_seed_give_the_same_bytes(tiny_base: str, toy_build: Build, tmp_path: Path) -> None:
    plain = model(tmp_path / "plain", tiny_base)
    written = []
    for place, seed, rows in (("a", 0, 60), ("b", 0, 60), ("c", 1, 60), ("d", 0, 50)):
        rotate(plain, toy_build, str(tmp_path / place / "rotated"), [], rows, seed)
        written.append(files(tmp_path / place / "rotated"))
    assert written[0] == written[1]
    dense = "2_Dense/model.safetensors"
    assert len({each[dense] for each in written}) == 3


@pytest.mark.usefixtures("few_steps")
def test_texts_of_graded_rows_are_learned_from_too(tiny_base: str, make_build: MakeBuild, tmp_path: Path) -> None:
    graded = [row(f"what is {each}", f"the {each}", score=0.5) for each in ("house", "horse", "river", "apple")]
    build = make_build(graded, [row("what is stone", "the stone", negatives=["the shirt"])])
    rotate(model(tmp_path / "plain", tiny_base), build, str(tmp_path / "rotated"), [])
    assert (tmp_path / "rotated" / "modules.json").is_file()


def test_what_cannot_be_rotated_is_refused_in_a_sentence_and_leaves_nothing(
    tiny_base: str, toy_build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, output = model(tmp_path / "plain", tiny_base), str(tmp_path / "rotated")
    for dimensions in ([32], [0, 8], [64]):
        with pytest.raises(UserError, match="from 1 to 31"):
            rotate(plain, toy_build, output, dimensions)
    with pytest.raises(UserError, match="is there already"):
        rotate(plain, toy_build, plain, [8])
    with pytest.raises(UserError, match="a part of this path is a file"):
        rotate(plain, toy_build, str(tmp_path / "plain" / "config.json" / "x"), [8])
    marker = tmp_path / "plain" / "matryoshka.json"
    told = marker.read_text()
    marker.write_text("{}")
    with pytest.raises(UserError, match=r"matryoshka\.json' holds {}; allowed"):
        rotate(plain, toy_build, output, [])
    marker.write_text(told)
    with pytest.raises(UserError, match="could not be loaded"):
        rotate(str(tmp_path / "nothing"), toy_build, output, [8])
    save_file({"heads.one.first.weight": torch.eye(32)}, tmp_path / "plain" / "heads.safetensors")
    with pytest.raises(UserError, match="has heads"):
        rotate(plain, toy_build, output, [8])
    (tmp_path / "plain" / "heads.safetensors").unlink()
    with monkeypatch.context() as patch, pytest.raises(BuildError, match="gives other vectors when it is opened"):
        patch.setattr(module, "appended", lambda given, _: given)
        rotate(plain, toy_build, output, [8])
    assert sorted(each.name for each in tmp_path.iterdir()) == ["build", "plain"]
