"""Checkpoints: exact, whole, and checked."""

from __future__ import annotations

import errno
import json
import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from datakit.errors import BuildError, UserError
from trainer import checkpoint

Optimizers = list[torch.optim.Optimizer]


def make(seed: int = 0) -> tuple[nn.Module, Optimizers]:
    """A model with sparse embeddings and a frozen matrix, and the two optimizers that the loop has for such a one."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.EmbeddingBag(9, 4, sparse=True), nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2))
    model[1].weight.requires_grad_(False)
    trained = [value for value in model[1:].parameters() if value.requires_grad]
    groups = [{"params": trained[:2]}, {"params": trained[2:], "weight_decay": 0.0}]
    return model, [torch.optim.AdamW(groups, lr=0.1, fused=True), torch.optim.SparseAdam(list(model[0].parameters()), lr=0.1)]


def step(model: nn.Module, optimizers: Optimizers, number: int) -> None:
    generator = torch.Generator().manual_seed(number)
    ids = torch.randint(9, (8, 2), generator=generator)
    for optimizer in optimizers:
        optimizer.zero_grad()
    model(ids).square().sum().backward()
    for optimizer in optimizers:
        optimizer.step()


def equal(one: nn.Module, two: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def saved(folder: Path, until: int, keep: int = 2, best: int | None = None) -> tuple[nn.Module, Optimizers]:
    model, optimizers = make()
    for number in range(until):
        step(model, optimizers, number)
        state = {"temperature": 0.1 / (number + 1), "losses": [1 / 3, number], "best": None}
        checkpoint.save(str(folder), number + 1, model, optimizers, state, keep, best)
    return model, optimizers


def test_a_restored_state_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    model, optimizers = saved(tmp_path, 5)
    again, others = make()
    assert checkpoint.restore(str(tmp_path), again, others) == (5, {"temperature": 0.1 / 5, "losses": [1 / 3, 4], "best": None})
    assert equal(model, again)
    for number in range(5, 9):
        step(model, optimizers, number)
        step(again, others, number)
    assert equal(model, again)


def test_the_last_k_and_the_best_are_kept_and_nothing_is_pickled(tmp_path: Path) -> None:
    saved(tmp_path / "last", 5, keep=3)
    assert [number for number, _ in checkpoint.steps(str(tmp_path / "last"))] == [5, 4, 3]
    saved(tmp_path / "best", 5, keep=1, best=2)
    assert [number for number, _ in checkpoint.steps(str(tmp_path / "best"))] == [5, 2]
    files = {file.name for file in tmp_path.rglob("*") if file.is_file()}
    assert files == {"model.safetensors", "optimizer.safetensors", "state.json"}


def test_damaged_checkpoints_do_not_push_out_the_whole_ones_that_are_made_after_them(tmp_path: Path) -> None:
    saved(tmp_path, 5)
    for number in (4, 5):
        (tmp_path / f"step-{number:07d}" / "model.safetensors").write_bytes(b"")
    model, optimizers = make()
    checkpoint.save(str(tmp_path), 1, model, optimizers, {}, 2, None)
    assert checkpoint.restore(str(tmp_path), model, optimizers) == (1, {})


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
    model, optimizers = make(1)
    with caplog.at_level(logging.WARNING):
        assert checkpoint.restore(str(tmp_path), model, optimizers)[0] == 2
    assert "step-0000003' is damaged" in caplog.text
    whole, others = make()
    for number in range(2):
        step(whole, others, number)
    assert all(torch.equal(checkpoint.trained(whole)[each], value) for each, value in checkpoint.trained(model).items())


def test_without_a_whole_checkpoint_a_run_starts_at_the_beginning(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    (tmp_path / "step-0000001" / "model.safetensors").write_bytes(b"")
    assert checkpoint.restore(str(tmp_path), *make()) == (0, {})
    assert checkpoint.restore(str(tmp_path / "none"), *make()) == (0, {})


def test_what_a_killed_writer_left_is_no_checkpoint_and_is_cleared(tmp_path: Path) -> None:
    saved(tmp_path, 2)
    (tmp_path / "step-0000002").rename(tmp_path / "step-0000003.tmp")
    assert checkpoint.restore(str(tmp_path), *make())[0] == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-0000001"]


def test_a_checkpoint_of_another_model_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saved(tmp_path, 1)
    other = nn.Sequential(nn.Linear(4, 6))
    assert checkpoint.restore(str(tmp_path), other, [torch.optim.AdamW(other.parameters())]) == (0, {})
    assert "holds other parameters" in caplog.text


def test_weights_alone_are_loaded_or_refused_with_what_to_do(tmp_path: Path) -> None:
    model, _ = saved(tmp_path / "pairs" / "checkpoints", 2)
    place = checkpoint.place(str(tmp_path / "pairs" / "checkpoints"), 2)
    again, _ = make()
    checkpoint.load_weights(place, again)
    assert equal(model, again)
    before = [value.clone() for value in again.parameters()]
    (place / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(BuildError, match=r"step-0000002'.*is damaged \(the digest of model.*Move '.*/pairs' away"):
        checkpoint.load_weights(place, again)
    assert all(torch.equal(one, two) for one, two in zip(before, again.parameters(), strict=True))


def test_a_folder_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    output, scratch = tmp_path / "sub" / "model", tmp_path / "sub" / "model.trainer.tmp"
    scratch.mkdir(parents=True)
    (scratch / "half").touch()  # what a kill leaves
    for stop, wanted in ((KeyboardInterrupt(), KeyboardInterrupt), (OSError(errno.ENOSPC, "full"), BuildError)):
        with pytest.raises(wanted), checkpoint.written(f"{output}/") as folder:
            assert not Path(folder).exists()
            Path(folder).mkdir()
            raise stop
        assert not list(scratch.parent.iterdir())
    with checkpoint.written(str(output)) as folder:
        Path(folder).mkdir()
        (Path(folder) / "file").touch()
        assert not output.exists()
    assert [each.name for each in scratch.parent.iterdir()] == ["model"]
    for place, words in ((output, "is there already"), (output / "file" / "x", "a part of this path is a file")):
        with pytest.raises(UserError, match=words), checkpoint.written(str(place)):
            raise AssertionError("there was work to lose")
