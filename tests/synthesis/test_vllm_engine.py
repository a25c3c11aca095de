"""The vllm engine as far as it goes without vLLM, which benchmarks/vllm_run.py runs for real; and with it, where it is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from datakit.errors import UserError
from datakit.recipe import VllmEngine
from datakit.synthesis.engines import Conversation, Engine, Message, make
from datakit.synthesis.engines.vllm import load

INSTALLED = importlib.util.find_spec("vllm") is not None


def engine(**options: Any) -> Engine:
    return make("e", VllmEngine.model_validate({"type": "vllm", "model": "/a/model", "batch_size": 4, **options}), "digest", 0)


def conversations(count: int) -> list[Conversation]:
    return [Conversation((Message("user", "word " * (number % 3 + 1) + str(number)),), 3) for number in range(count)]


def keys(made: Engine, asked: Sequence[Conversation]) -> list[list[str]]:
    return [[request.key for request in batch] for batch in made.batches(asked)]


def test_batches_are_fixed_by_all_that_is_asked_and_by_what_decides_an_answer() -> None:
    ten = keys(engine(), conversations(10))
    assert [len(batch) for batch in ten] == [4, 4, 2]
    assert ten == keys(engine(), conversations(10))
    assert len({key for batch in ten for key in batch}) == 10
    # A text that it samples changes with its neighbours, so that another list has other keys.
    assert not {key for batch in ten for key in batch} & {key for batch in keys(engine(), conversations(9)) for key in batch}
    for other in (
        {"structured": "json_schema"},
        {"temperature": 0},
        {"max_tokens": 9},
        {"dtype": "float32"},
        {"options": {"quantization": "fp8"}},
    ):
        assert keys(engine(**other), conversations(10)) != ten


@pytest.mark.skipif(not INSTALLED, reason="vLLM is not installed")
def test_a_folder_that_is_not_there_is_named_before_vllm_looks_for_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load("e", VllmEngine.model_validate({"type": "vllm", "model": str(tmp_path / "nowhere")}))
