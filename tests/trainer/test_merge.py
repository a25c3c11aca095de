"""Merging: soup and SLERP by their formulas, whole folders or none, and refusals that name what differs."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
from toys import toy_config

from datakit import storage
from datakit.errors import UserError
from datakit.opened import Build
from trainer import Embedder
from trainer.cli import main
from trainer.config import ModelConfig
from trainer.evaluation.retrieval import evaluate_encoder, load_task
from trainer.export import export
from trainer.finished import merge as module
from trainer.finished.merge import PARALLEL, merge, slerp, soup
from trainer.model import load_encoder
from trainer.stages import do

Make = Callable[[str, int], str]


@pytest.fixture(scope="module")
def exported(tiny_base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    encoder = load_encoder(ModelConfig(base=tiny_base, layers=2, max_length=24))
    folder = tmp_path_factory.mktemp("merge") / "model"
    export(encoder, str(folder), {"query": "", "document": ""}, "toy", "v1", [32, 8], {32: 0.5, 8: 0.25})
    return folder


@pytest.fixture
def variant(exported: Path, tmp_path: Path) -> Make:
    """A model like the exported one with other weights: they differ by noise that the seed decides."""

    def make(name: str, seed: int) -> str:
        folder = tmp_path / name
        shutil.copytree(exported, folder)
        generator = torch.Generator().manual_seed(seed)
        tensors = {
            key: value + 0.1 * torch.randn(value.shape, generator=generator)
            for key, value in load_file(folder / "model.safetensors").items()
        }
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return str(folder)

    return make


def tensors(folder: str | Path) -> dict[str, np.ndarray]:
    return {key: value.double().numpy() for key, value in load_file(Path(folder) / "model.safetensors").items()}


def files(folder: Path) -> dict[str, str]:
    return {str(each.relative_to(folder)): storage.file_digest(str(each)) for each in sorted(folder.rglob("*")) if each.is_file()}


@pytest.mark.parametrize("count", [2, 3])
def test_the_soup_of_a_model_with_itself_is_itself(count: int, variant: Make, tmp_path: Path) -> None:
    one = variant("one", 1)
    merge([one] * count, str(tmp_path / "merged"))
    found, expected = tensors(tmp_path / "merged"), tensors(one)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[key], expected[key]) for key in expected)


def test_a_soup_is_the_weighted_mean_in_float64_and_weights_go_with_their_models(variant: Make, tmp_path: Path) -> None:
    models = [variant(f"m{seed}", seed) for seed in (1, 2, 3)]
    merge(models, str(tmp_path / "mean"))
    merge(models, str(tmp_path / "weighted"), weights=[1, 2, 5])
    merge(models[::-1], str(tmp_path / "turned"), weights=[5, 2, 1])
    sources = [tensors(each) for each in models]
    mean, weighted, turned = (tensors(tmp_path / name) for name in ("mean", "weighted", "turned"))
    for key in sources[0]:
        stacked = np.stack([source[key] for source in sources])
        assert np.array_equal(mean[key], stacked.mean(0).astype(np.float32))
        expected = (stacked * np.array([1, 2, 5]).reshape(3, *[1] * (stacked.ndim - 1)) / 8).sum(0)
        np.testing.assert_array_max_ulp(weighted[key].astype(np.float32), expected.astype(np.float32), 1)
        np.testing.assert_array_max_ulp(turned[key].astype(np.float32), expected.astype(np.float32), 1)
    assert any(not np.allclose(weighted[key], mean[key]) for key in mean)


def test_numbers_of_16_bits_are_averaged_in_float64() -> None:
    ones = torch.ones(1, dtype=torch.bfloat16)
    small = torch.full((1,), 2.0**-9, dtype=torch.bfloat16)  # is lost where it is added to 1 in bfloat16
    assert soup([ones, small, small], [1, 1, 1]).item() == pytest.approx((1 + 2 * 2.0**-9) / 3, rel=1e-12)


def test_slerp_at_its_ends_gives_the_ends(variant: Make, tmp_path: Path) -> None:
    one, other = variant("one", 1), variant("other", 2)
    for weights, end in (([1.0, 0.0], one), ([0.0, 1.0], other)):
        folder = tmp_path / f"end-{weights[1]:g}"
        merge([one, other], str(folder), "slerp", weights)
        found, expected = tensors(folder), tensors(end)
        assert all(np.array_equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_slerp_has_the_angle_and_the_norm_of_the_formula(share: float) -> None:
    one, other = (torch.randn(6, 7, generator=torch.Generator().manual_seed(seed)).double() for seed in (1, 2))
    found, linear = slerp(one, other, share)
    assert not linear
    a, b, c = (each.numpy().ravel() for each in (one, other, found))

    def angle(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.arccos(x @ y / np.linalg.norm(x) / np.linalg.norm(y)))

    theta = angle(a, b)
    expected = (np.sin((1 - share) * theta) * a + np.sin(share * theta) * b) / np.sin(theta)
    np.testing.assert_allclose(c, expected, rtol=1e-12, atol=1e-14)
    # Of tensors of one length the length is kept, and the angle is divided as asked.
    unit = slerp(one / one.norm(), other / other.norm(), share)[0].numpy().ravel()
    assert np.linalg.norm(unit) == pytest.approx(1, abs=1e-12)
    assert angle(a, unit) == pytest.approx(share * theta, abs=1e-9)


def test_slerp_is_linear_for_nearly_parallel_and_for_zero_tensors() -> None:
    one, across = torch.tensor([1.0, 0.0]).double(), torch.tensor([0.0, 1.0]).double()
    for cosine, linear in ((PARALLEL + 1e-5, True), (PARALLEL - 1e-5, False), (-PARALLEL - 1e-5, True), (1.0, True)):
        other = cosine * one + (1 - cosine**2) ** 0.5 * across
        found, was = slerp(one, other, 0.5)
        assert was is linear
        if linear:
            assert torch.equal(found, (one + other) / 2)
    assert torch.equal(slerp(one, 0 * one, 0.25)[0], 0.75 * one)


def test_the_folder_opens_and_says_what_it_is_and_its_bytes_are_the_same_again(variant: Make, tmp_path: Path) -> None:
    one, other = variant("one", 1), variant("other", 2)
    (Path(other) / "matryoshka.json").write_text('{"dimensions": [32]}')
    (Path(one) / "pytorch_model.bin").write_bytes(b"a pickle")
    for place in ("first", "second"):
        (tmp_path / place).mkdir()
        found = merge([one, other], str(tmp_path / place / "merged"), "slerp", [1, 3])
    folder = tmp_path / "first" / "merged"
    assert files(folder) == files(tmp_path / "second" / "merged")
    assert set(files(folder)) == set(files(Path(one))) - {"pytorch_model.bin"}
    assert json.loads((folder / "matryoshka.json").read_text()) == {"dimensions": [32]}
    card = (folder / "README.md").read_text()
    assert all(word in card for word in (f"`{one}` | 1 |", f"`{other}` | 3 |", "--method slerp", f"of {found.tensors} tensors"))
    vectors = SentenceTransformer(str(folder), device="cpu").encode(["the red house"])
    assert np.linalg.norm(vectors) == pytest.approx(1, abs=1e-5)
    assert not np.allclose(vectors, SentenceTransformer(one, device="cpu").encode(["the red house"]), atol=1e-3)


def test_a_merge_that_is_stopped_leaves_nothing_and_the_next_one_is_whole(
    variant: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, output = [variant("one", 1), variant("other", 2)], tmp_path / "merged"

    def stop(*_: object, **__: object) -> None:
        assert not output.exists()
        raise KeyboardInterrupt

    for name in ("save_file", "load_task"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(module, name, stop)
            merge(models, str(output), build=object())  # type: ignore[arg-type]
        assert sorted(each.name for each in tmp_path.iterdir()) == ["one", "other"]
    (tmp_path / "merged.trainer.tmp").mkdir()  # what a kill leaves
    (tmp_path / "merged.trainer.tmp" / "half").touch()
    (tmp_path / "merged.tmp").mkdir()  # somebody's own
    merge(models, str(output))
    assert not (output / "half").exists()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["merged", "merged.tmp", "one", "other"]


def test_models_that_share_no_dimension_make_one_that_opens(
    variant: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    models = [variant("one", 1), variant("other", 2)]
    for model, dimension in zip(models, (32, 8), strict=True):
        (Path(model) / "matryoshka.json").write_text(json.dumps({"dimensions": [dimension]}))
    merge(models, str(tmp_path / "merged"))
    found = Embedder.load(str(tmp_path / "merged"))
    assert found.dimensions == []
    assert found.encode(["the red house"], dim=8).shape == (1, 8)
    assert "Dimension 8 was not trained; those that were: none." in caplog.text


def test_what_cannot_be_merged_is_refused_in_a_sentence(variant: Make, tmp_path: Path) -> None:
    one, other = variant("one", 1), variant("other", 2)
    output = str(tmp_path / "merged")
    for models, method, weights, expected in (
        ([one, other, one], "slerp", [], "slerp merges two models, as the order of more would matter: see soup; found 3"),
        ([one], "soup", [], "soup merges two models or more; found 1"),
        ([one, other], "soup", [1.0], "once for each of 2 models"),
        ([one, other], "soup", [2.0, -1.0], "from 0"),
        ([one, other], "soup", [1.0, float("nan")], "finite"),
        ([one, other], "soup", [float("inf"), 1.0], "finite"),
        ([one, str(tmp_path)], "soup", [], "is no exported model"),
    ):
        with pytest.raises(UserError, match=expected):
            merge(models, output, method, weights)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="is there already"):
        merge([one, other], one)
    changed = load_file(Path(other) / "model.safetensors")
    narrow = {**changed, "layers.1.mlp.up_proj.weight": torch.zeros(40, 32), "norm.weight": torch.zeros(8)}
    fewer = {key: value for key, value in changed.items() if key != "layers.0.mlp.up_proj.weight"}
    for tensors_, expected in (
        (narrow, r"first in the tensor 'layers.1.mlp.up_proj.weight': \[48, 32\] in '.*one', \[40, 32\] in '.*other'"),
        (fewer, r"first in the tensor 'layers.0.mlp.up_proj.weight': \[48, 32\] in '.*one', absent in '.*other'"),
    ):
        save_file(tensors_, Path(other) / "model.safetensors")
        with pytest.raises(UserError, match=expected):
            merge([one, other], output)
    save_file(changed, Path(other) / "model.safetensors")
    config = json.loads((Path(other) / "config.json").read_text())
    (Path(other) / "config.json").write_text(json.dumps({**config, "is_causal": True}))
    with pytest.raises(UserError, match="differ in is_causal: False in"):
        merge([one, other], output)
    assert not Path(output).exists()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("model.safetensors", None, "The weights '.*other/model.safetensors' cannot be read"),
        ("modules.json", '[{"path": ""}]', "other/modules.json' holds .*; a list of modules is needed"),
        ("modules.json", '{"type": "a"', "other/modules.json' is no JSON"),
        ("config.json", "[1, 2]", r"other/config.json' holds \[1, 2\]; a JSON object is needed"),
        ("matryoshka.json", "{}", "other/matryoshka.json' holds {}; allowed: an object with 'dimensions'"),
        ("tokenizer.json", "{}", "The tokenizer '.*other/tokenizer.json' cannot be read"),
    ],
)
def test_a_damaged_model_is_named_and_not_the_output(
    name: str, content: str | None, expected: str, variant: Make, tmp_path: Path
) -> None:
    one, other = variant("one", 1), variant("other", 2)
    file = Path(other) / name
    file.write_bytes(file.read_bytes()[:100] if content is None else content.encode())
    with pytest.raises(UserError, match=expected):
        merge([one, other], str(tmp_path / "merged"))
    assert sorted(each.name for each in tmp_path.iterdir()) == ["one", "other"]


def test_models_of_other_words_are_not_merged_and_those_that_cut_texts_elsewhere_are(variant: Make, tmp_path: Path) -> None:
    one, other = variant("one", 1), variant("other", 2)
    file = Path(other) / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.enable_truncation(7)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(file))
    merge([one, other], str(tmp_path / "merged"))
    file.write_text(file.read_text().replace('"house"', '"mouse"'))
    with pytest.raises(UserError, match=r"The models differ in tokenizer\.json: .*'.*one', .*'.*other'"):
        merge([one, other], str(tmp_path / "no"))


def test_models_that_read_or_pool_in_other_ways_are_not_merged(tiny_base: str, tmp_path: Path) -> None:
    folders = []
    for number, way in enumerate(
        [
            {},
            {"layer_weights": [1, 2]},
            {"layer_weights": [1, 3]},
            {"layer_weights": [1, 2], "pooling": "last"},
            {"lowercase": True},
        ]
    ):
        encoder = load_encoder(ModelConfig.model_validate({"base": tiny_base, "layers": 2, "max_length": 24, **way}))
        folders.append(str(tmp_path / str(number)))
        export(encoder, folders[-1], {"query": "", "document": ""}, "toy", "v1", [32], {32: 0.5})
    for one, other, expected in (
        (0, 1, "layer_weights': absent"),
        (1, 2, "differ in layer weights"),
        (1, 3, "differ in pooling"),
        (0, 4, "differ in lower case: False in"),
    ):
        with pytest.raises(UserError, match=expected):
            merge([folders[one], folders[other]], str(tmp_path / "merged"))


def test_checkpoints_of_a_run_are_merged_and_measured(
    tiny_base: str, toy_build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = {"layers": 1, "projection": 16, "embeddings": "frozen"}
    config = toy_config(
        tiny_base, model=model, loss={"dimensions": [16, 8]}, training={"steps": 2}, checkpoint={"every": 1},
        optimizer={"warmup": 0.0, "learning_rate": 0.02, "floor": 0.5},
    )  # fmt: skip
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    run, _ = do(config, toy_build, "run", Console(quiet=True))
    first, last = (run.path("one", "checkpoints", f"step-000000{step}") for step in (1, 2))
    # The last checkpoint is what was exported.
    merge([last, run.path("one", "model")], str(tmp_path / "same"))
    for part in ("model.safetensors", "2_Dense/model.safetensors"):
        same, export_ = (load_file(Path(folder) / part) for folder in (tmp_path / "same", run.path("one", "model")))
        assert all(torch.equal(same[key], export_[key]) for key in export_)

    output = Path("merged")
    options = ["-o", "merged", "--weight", "1", "--weight", "3", "-d", toy_build.path]
    monkeypatch.setattr(sys, "argv", ["trainer", "merge", first, last, *options])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    shown = capsys.readouterr().out
    scores = evaluate_encoder(load_task(toy_build), str(output), [16, 8])
    line = next(line for line in shown.splitlines() if "soup: merged" in line)
    assert all(f"{each.score:.3f}" in line for each in scores.values())
    assert all(each in shown for each in (first, last, "16", "8"))
    found = load_file(output / "2_Dense" / "model.safetensors")["linear.weight"]
    one, other = (load_file(Path(each) / "model.safetensors")["projection.weight"].double() for each in (first, last))
    assert torch.equal(found, (0.25 * one + 0.75 * other).float())
    assert not torch.equal(one, other)
    shutil.rmtree(run.path("one", "model"))
    with pytest.raises(UserError, match="its stage is not finished"):
        merge([first, last], str(tmp_path / "no"))
