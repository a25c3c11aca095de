"""Estimates held against what is counted: FLOPs, activations, steps, checkpoints; and against the brief's table (pytest -s)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode
from toys import MakeBuild, row, tiny_config, toy_config, write_config

from datakit.errors import UserError
from datakit.opened import Build
from datakit.recipe_file import load_model
from trainer import checkpoint, gradcache, loop, stages
from trainer.cli import main
from trainer.config import Config, ModelConfig
from trainer.data import TrainingRows
from trainer.estimate import (
    ACTIVATIONS,
    HARDWARE,
    Amount,
    StageCost,
    amount_of,
    cost,
    counted,
    estimate,
    hardware_of,
    shape_of,
    teacher_shape,
)
from trainer.evaluation.retrieval import Task
from trainer.losses import Statistics
from trainer.model import load_encoder
from trainer.run import stage_seed

MIXTURES = Path(__file__).parents[2] / "mixtures"
# Days of the brief on 8 A100 by stage, its fewest rows, and this file's epochs.
BRIEF_DAYS = {1e9: (3, 2, 1), 3e9: (7, 4, 2), 7e9: (14, 7, 3)}
BRIEF_ROWS = (100_000_000, 5_000_000, 1_000_000)
QWEN = {
    "vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
    "num_key_value_heads": 2,
}  # fmt: skip


def test_parameters_of_qwen2_5_1_5b_are_those_of_its_card(tmp_path: Path) -> None:
    transformers.AutoConfig.for_model("qwen2", **QWEN).save_pretrained(tmp_path)
    shape, _ = shape_of(ModelConfig(base=str(tmp_path)), None)
    assert (shape.matrices, shape.matrices + shape.embeddings) == (1_310_340_608, 1_543_714_304)  # 1.31B and 1.54B
    assert (shape.layers, shape.hidden, shape.attention, shape.feed_forward) == (28, 1536, 1536, 8960)
    half, _ = shape_of(ModelConfig(base=str(tmp_path), layers=14), None)
    assert half.matrices == pytest.approx(shape.matrices / 2, rel=1e-3)
    with pytest.raises(UserError, match=r"model.layers is 29; the base .* has 28 layers"):
        shape_of(ModelConfig(base=str(tmp_path), layers=29), None)


def test_the_rule_for_a_number_of_parameters_is_near_known_models() -> None:
    for parameters, layers, hidden in ((1e9, 16, 2048), (3e9, 28, 3072), (7e9, 32, 4096)):  # Llama 3.2 1B and 3B, Llama 2 7B
        shape, _ = shape_of(ModelConfig(base="nowhere"), parameters)
        assert shape.layers == pytest.approx(layers, rel=0.12)
        assert shape.hidden == pytest.approx(hidden, rel=0.08)
    assert teacher_shape("Qwen/Qwen3-Embedding-8B").matrices == 8_000_000_000  # type: ignore[union-attr]
    assert teacher_shape("intfloat/e5-335m-v2").matrices == 335_000_000  # type: ignore[union-attr]
    assert teacher_shape("nobody/bge-base") is None


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_flops_are_those_that_torch_counts_in_a_batch(
    cached: bool, checkpointed: bool, lora: dict[str, int] | None, tmp_path: Path, tokenizer: transformers.PreTrainedTokenizerFast
) -> None:
    settings = tiny_config("llama", hidden_size=64, intermediate_size=160, _attn_implementation="eager")
    transformers.AutoModel.from_config(settings).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    # A chunk for each text, so that caching computes three of four twice.
    training = {"steps": 1, "gradient_cache": cached, "activation_checkpointing": checkpointed, "chunk_tokens": 20}
    parts: dict[str, Any] = {"training": training, "loss": {"dimensions": [64, 8]}, "data": {"batch_size": 2}}
    config = toy_config(str(tmp_path), model={"lora": lora}, **parts)
    encoder = stages.prepared(config, config.stages[0])
    encoder.base.config._attn_implementation = "eager"
    words = 20
    texts = [
        encoder.query_text(" ".join([f"{first} {second}"] * (words // 2)), None)
        for first in ("red", "blue")
        for second in ("house", "river")
    ]
    tokens = encoder.tokenize(texts)
    assert tokens.count == 4 * words

    def objective(vectors: torch.Tensor) -> tuple[torch.Tensor, Statistics]:
        return vectors[:, 0].sum(), {}

    encoder.train()
    with FlopCounterMode(display=False) as counter:
        gradcache.backward(encoder, tokens, 0, objective, cached)
    shape, _ = shape_of(config.model, None)
    amount = Amount(1, 2, 4, tokens.count, words, tokens.count)
    found = cost(config, config.stages[0], shape, None, amount, HARDWARE["cpu"], 1).figures["FLOPs"]
    found -= 6 * 2 * 2 * 64  # there is no product of queries and documents here
    # Of what activation checkpointing computes again, torch leaves out the last product of each layer: here a quarter of it.
    assert found == pytest.approx(counter.get_total_flops(), rel=0.07 if checkpointed or lora else 0.03)


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_activations_are_those_that_llama_keeps(kind: str) -> None:
    kept: dict[tuple[int, int], int] = {}
    settings = {"hidden_size": 128, "intermediate_size": 320, "vocab_size": 64}
    for layers in (1, 2):
        base = transformers.AutoModel.from_config(tiny_config("llama", num_hidden_layers=layers, **settings)).train()
        owned = {each.untyped_storage().data_ptr() for each in base.parameters()}
        for texts in (2, 4):
            seen: dict[int, torch.Tensor] = {}

            def pack(tensor: torch.Tensor, seen: dict[int, torch.Tensor] = seen, owned: set[int] = owned) -> torch.Tensor:
                if (place := tensor.untyped_storage().data_ptr()) not in owned:
                    seen[place] = tensor
                return tensor

            ids = torch.arange(texts * 16).reshape(texts, 16) % 64
            mask = torch.ones_like(ids)
            mask[0, -3:] = 0
            with (
                torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
                torch.autocast("cpu", torch.bfloat16, enabled=kind == "bfloat16"),
            ):
                base(input_ids=ids, attention_mask=mask, use_cache=False)
            kept[layers, texts] = sum(each.untyped_storage().nbytes() for each in seen.values())
    measured = ((kept[2, 4] - kept[2, 2]) - (kept[1, 4] - kept[1, 2])) / 32
    assert ACTIVATIONS[kind][0] * 128 + ACTIVATIONS[kind][1] * 320 == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize("training", [{"epochs": 3, "steps": None}, {"epochs": 2, "steps": None, "accumulate": 2}, {"steps": 5}])
def test_steps_are_those_of_the_trainer_and_tokens_those_of_the_tokenizer(
    training: dict[str, int | None], tiny_base: str, toy_build: Build, tmp_path: Path
) -> None:
    config = toy_config(tiny_base, training=training)
    stage = config.stages[0]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_base)
    encoder = load_encoder(config.model)
    rows = TrainingRows(toy_build, str(tmp_path), stage, stage_seed(config, stage))
    job = loop.Job(config, stage, str(tmp_path), encoder, rows, None, Task([], [], [], [], [], 0, None), [])
    amount = amount_of(config, stage, toy_build, None, None, tokenizer)
    assert amount.steps == job.steps
    assert amount.texts == 3 * amount.rows
    frame = toy_build.train.collect()
    texts = [*frame["query"], *frame["positive"], *(negatives[0]["text"] for negatives in frame["negatives"].to_list())]
    assert amount.once == pytest.approx(encoder.tokenize([encoder.query_text(text, None) for text in texts]).count)
    thrice = amount_of(config, stage, toy_build, 3 * len(frame), None, tokenizer)
    assert thrice.tokens / thrice.rows == pytest.approx(amount.tokens / amount.rows)
    if "epochs" in training:
        assert thrice.rows == pytest.approx(3 * amount.rows)


def test_instructions_and_limits_count(tiny_base: str, make_build: MakeBuild) -> None:
    rows = [row("red " * 9, "blue " * 90, instruction="find the stone", negatives=[]) for _ in range(4)]
    config = toy_config(tiny_base, training={"steps": None, "epochs": 1}, data={"batch_size": 2, "negatives": 8})
    amount = amount_of(
        config, config.stages[0], make_build(rows, rows), None, None, transformers.AutoTokenizer.from_pretrained(tiny_base)
    )
    assert (amount.steps, amount.texts) == (2, 8)  # there are no negatives to draw
    assert amount.tokens / 4 == 24 + 9 + len(["Instruct", ":", "find", "the", "stone", "Query", ":"])


@pytest.mark.parametrize("model", [{}, {"embeddings": "frozen"}, {"embeddings": "sparse"}, {"lora": {"rank": 4}}])
def test_a_checkpoint_is_as_large_as_said(
    model: dict[str, object], tmp_path: Path, tokenizer: transformers.PreTrainedTokenizerFast
) -> None:
    base = tmp_path / "base"
    transformers.AutoModel.from_config(
        tiny_config("qwen2", hidden_size=128, intermediate_size=512, vocab_size=512)
    ).save_pretrained(base)
    tokenizer.save_pretrained(base)
    config = toy_config(str(base), model=model)
    encoder = load_encoder(config.model)
    optimizers = loop.make_optimizers(encoder, config.stages[0].optimizer)
    for parameter in encoder.parameters():
        if parameter.requires_grad:
            sparse = parameter is encoder.embedding_parameter and config.model.embeddings == "sparse"
            parameter.grad = torch.zeros_like(parameter).to_sparse(1) if sparse else torch.zeros_like(parameter)
    for optimizer in optimizers:
        optimizer.step()
    checkpoint.save(str(tmp_path / "c"), 1, encoder, optimizers, {}, 1, None)
    size = sum(file.stat().st_size for file in (tmp_path / "c").rglob("*.safetensors"))
    found = estimate(config, "cpu").storage
    assert next(iter(found.values())) == pytest.approx(size, rel=0.15 if model.get("lora") else 0.04)  # headers


def test_memory_is_dealt_and_chunks_that_fit_are_told(tmp_path: Path) -> None:
    config = load_model(str(MIXTURES / "brief-train.yaml"), Config)
    found = estimate(config, "a100x8", rows=BRIEF_ROWS, parameters=7e9)
    stage = found.stages[0]
    assert stage.memory["weights"] + stage.memory["gradients"] + stage.memory["Adam's moments"] == 7e9 * 18
    assert found.used(stage, 8) < found.used(stage, 1) - 7e9 * 15
    assert found.used(stage, 1) > 80e9

    def changed(**training: object) -> StageCost:
        value = config.model_dump(mode="json")
        for each in value["stages"]:
            each["training"] |= training
        return estimate(Config.model_validate(value), "a100x8", rows=BRIEF_ROWS, parameters=7e9).stages[0]

    assert found.used(changed(chunk_tokens=found.fits(stage)), 8) == pytest.approx(0.9 * 80e9, rel=0.01)
    assert changed(activation_checkpointing=True).memory["activations"] < 0.11 * stage.memory["activations"]
    # 2,048 rows of two texts of 128 tokens, on 8 devices.
    whole = changed(chunk_tokens=2048 * 2 * 128 // 8)
    assert changed(gradient_cache=False).memory["activations"] == pytest.approx(whole.memory["activations"])
    cpus, _ = hardware_of("cpux2")
    assert (cpus.peak, cpus.memory) == (2 * HARDWARE["cpu"].peak, 2 * HARDWARE["cpu"].memory)


def test_what_is_not_known_is_asked_for_in_a_sentence(tiny_base: str) -> None:
    config = toy_config(tiny_base, training={"steps": None, "epochs": 1})
    for hardware in ("b200x8", "a100x0", "a100x", "8xa100", ""):
        with pytest.raises(UserError, match="known: a100, h100, h200, l4, rtx4090, cpu; several as NAMExCOUNT, as a100x8"):
            estimate(config, hardware, rows=[100])
    with pytest.raises(UserError, match="Stage 'one' goes by epochs: give --data BUILD, or --rows"):
        estimate(config, "l4")
    with pytest.raises(UserError, match="--rows is given 2 times; give it once, or once for each of 1 stages"):
        estimate(config, "l4", rows=[1, 2])
    with pytest.raises(UserError, match=r"is not on this machine\. Give its size"):
        estimate(load_model(str(MIXTURES / "brief-train.yaml"), Config), "a100x8", rows=[100])


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [({name: value}, f"--{option} is {value:g}") for option, name in (
        ("mfu", "share"), ("tokens-per-text", "tokens"), ("parameters", "parameters")
    ) for value in (0.0, -1.0, float("nan"), float("inf"))]
    + [({"share": 7.0}, "--mfu is 7; allowed: a share above 0 and not above 1"), ({"rows": [0]}, "--rows is 0; allowed: numbers from 1")],
    ids=str,
)  # fmt: skip
def test_numbers_out_of_range_are_refused(numbers: dict[str, Any], expected: str, tiny_base: str) -> None:
    with pytest.raises(UserError, match=expected):
        estimate(toy_config(tiny_base), "l4", **numbers)


def test_every_device_is_known_alone_and_by_count() -> None:
    for name, device in HARDWARE.items():
        assert hardware_of(name) == (device, 1)
    assert hardware_of("rtx4090x2") == (HARDWARE["rtx4090"], 2)


def test_every_run_file_that_ships_is_estimated(capsys: pytest.CaptureFixture[str]) -> None:
    for file in sorted(MIXTURES.glob("*-train.yaml")):
        found = estimate(load_model(str(file), Config), "h200", rows=[1_000_000], parameters=6e8)
        Console(width=120).print(found.tables())
        assert all(stage.figures["days"] > 0 for stage in found.stages)
        assert "Assumed:" in capsys.readouterr().out


def test_the_command_prints_figures_and_assumptions(
    tiny_base: str, toy_build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_config(tmp_path / "train.yaml", toy_config(tiny_base, [{}, {"name": "two", "training": {"steps": 7}}]))
    arguments = [
        "estimate",
        file,
        "--hardware",
        "cpux2",
        "--data",
        toy_build.path,
        "--mfu",
        "0.5",
        "--rows",
        "1k",
        "--rows",
        "2M",
    ]
    monkeypatch.setattr(sys, "argv", ["trainer", *arguments])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    shown = capsys.readouterr().out
    for word in (
        "one",
        "two",
        "all",
        "19",
        "FLOPs",
        "days",
        "Adam's moments",
        "50% of it reached",
        "tokenized",
        "a checkpoint",
        "EPYC",
    ):
        assert word in shown


def test_the_table_of_the_brief_follows_from_its_fewest_rows() -> None:
    """Ours beside the brief's days; and, all else the same, the tokens of a text or the rows that would make them equal."""
    config = load_model(str(MIXTURES / "brief-train.yaml"), Config)
    print(
        "\n| parameters | stage | rows | days | the brief | equal at tokens of a text | equal at rows |\n|---|---|---|---|---|---|---|"
    )
    for parameters, theirs in BRIEF_DAYS.items():
        found = estimate(config, "a100x8", rows=BRIEF_ROWS, parameters=parameters)
        for stage, rows, days in zip(found.stages, BRIEF_ROWS, theirs, strict=True):
            ours = stage.figures["days"]
            print(
                f"| {parameters / 1e9:.0f}B | {stage.name} | {rows / 1e6:.0f}M | {ours:.2g} | {days} | {128 * days / ours:.0f} "
                f"| {rows * days / ours / 1e6:.3g}M |"
            )
            if stage.name != "distillation":  # of which the brief gives neither length nor batch
                assert 0.5 < ours / days < 2.5
        one = found.storage
        print(
            f"| {parameters / 1e9:.0f}B | a checkpoint: {one[next(iter(one))] / 1e9:.0f} GB, weights in bfloat16 {one['its weights in bfloat16'] / 1e9:.0f} GB; the brief: 5-30 GB |"
        )
    assert counted(tiny_config("llama")).layers == 3
