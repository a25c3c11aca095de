"""Checkpoints: exact, whole, and checked."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from trainer import checkpoint


def make(seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2))
    model[0].weight.requires_grad_(False)
    trained = [value for value in model.parameters() if value.requires_grad]
    return model, torch.optim.AdamW([{"params": trained[:2]}, {"params": trained[2:], "weight_decay": 0.0}], lr=0.1, fused=True)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    generator = torch.Generator().manual_seed(number)
    optimizer.zero_grad()
    model(torch.randn(8, 4, generator=generator)).square().sum().backward()
    optimizer.step()


def equal(one: nn.Module, two: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def saved(folder: Path, until: int, keep: int = 2) -> tuple[nn.Module, torch.optim.Optimizer]:
    model, optimizer = make()
    for number in range(until):
        step(model, optimizer, number)
        checkpoint.save(str(folder), number + 1, model, optimizer, keep)
    return model, optimizer


def test_a_restored_state_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    model, optimizer = saved(tmp_path, 5)
    again, other = make()
    assert checkpoint.restore(str(tmp_path), again, other) == 5
    assert equal(model, again)
    for number in range(5, 9):
        step(model, optimizer, number)
        step(again, other, number)
    assert equal(model, again)


def test_the_last_k_are_kept_and_nothing_is_pickled(tmp_path: Path) -> None:
    saved(tmp_path, 5, keep=3)
    assert [number for number, _ in checkpoint.steps(str(tmp_path))] == [5, 4, 3]
    files = {file.name for file in tmp_path.rglob("*") if file.is_file()}
    assert files == {"model.safetensors", "optimizer.safetensors", "state.json"}


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("harm", ["truncated", "one bit", "missing", "empty"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(
    tmp_path: Path, name: str, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    saved(tmp_path, 3)
    file = tmp_path / "step-0000003" / name
    content = bytearray(file.read_bytes())
    if harm == "missing":
        file.unlink()
    elif harm == "one bit" and name != "state.json":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif harm == "one bit":
        state = json.loads(content)
        state["digests"]["model.safetensors"] = "0" * 32
        file.write_text(json.dumps(state))
    else:
        file.write_bytes(b"" if harm == "empty" else content[: len(content) // 2])
    model, optimizer = make(1)
    with caplog.at_level(logging.WARNING):
        assert checkpoint.restore(str(tmp_path), model, optimizer) == 2
    assert "step-0000003' is damaged" in caplog.text
    whole, other = make()
    for number in range(2):
        step(whole, other, number)
    assert all(torch.equal(a, b) for a, b in zip(list(whole.parameters())[1:], list(model.parameters())[1:], strict=True))


def test_without_a_whole_checkpoint_a_run_starts_at_the_beginning(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    (tmp_path / "step-0000001" / "model.safetensors").write_bytes(b"")
    assert checkpoint.restore(str(tmp_path), *make()) == 0
    assert checkpoint.restore(str(tmp_path / "none"), *make()) == 0


def test_what_a_killed_writer_left_is_no_checkpoint_and_is_cleared(tmp_path: Path) -> None:
    saved(tmp_path, 2)
    (tmp_path / "step-0000002").rename(tmp_path / "step-0000003.tmp")
    assert checkpoint.restore(str(tmp_path), *make()) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-0000001"]


def test_a_checkpoint_of_another_model_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saved(tmp_path, 1)
    other = nn.Sequential(nn.Linear(4, 6))
    assert checkpoint.restore(str(tmp_path), other, torch.optim.AdamW(other.parameters())) == 0
    assert "holds other parameters" in caplog.text
