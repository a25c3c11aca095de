"""The learning rate."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.schedule import rate


@given(steps=st.integers(1, 500), warmup=st.floats(0, 0.99), floor=st.floats(0, 1))
def test_it_rises_once_to_the_peak_and_falls_to_the_floor(steps: int, warmup: float, floor: float) -> None:
    values = [rate(step, steps, warmup, floor) for step in range(steps)]
    peak = max(values)
    top = values.index(peak)
    assert all(0 < value <= 1 + 1e-9 for value in values[:-1])
    assert values[: top + 1] == sorted(values[: top + 1])
    assert all(one >= two - 1e-12 for one, two in zip(values[top:], values[top + 1 :], strict=False))
    assert peak == pytest.approx(1.0)
    if steps > round(warmup * steps) + 1:
        assert values[-1] == pytest.approx(floor, abs=1e-9)


def test_half_way_down_the_cosine_is_half_way_between_peak_and_floor() -> None:
    assert rate(10 + 45, 101, 0.1, 0.0) == pytest.approx(0.5)
    assert rate(10 + 45, 101, 0.1, 0.5) == pytest.approx(0.75)
    assert [rate(step, 100, 0.1, 0.0) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
