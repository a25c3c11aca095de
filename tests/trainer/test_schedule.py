"""The learning rate, the temperature, and losses that grow."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.config_loss import Annealing
from trainer.schedule import WINDOW, State, diverged, measured, rate, with_loss


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


ANNEALING = Annealing(factor=0.5, floor=0.02, patience=2, min_gain=0.01)


def temperatures(metrics: list[float], annealing: Annealing | None = ANNEALING) -> list[float]:
    state, seen = State(0.1), []
    for number, metric in enumerate(metrics):
        state = measured(state, number, metric, annealing)
        seen.append(state.temperature)
    return seen


def test_the_temperature_falls_after_as_many_measurements_that_are_no_better_and_not_below_the_floor() -> None:
    assert temperatures([0.1, 0.2, 0.3, 0.4]) == [0.1] * 4
    assert temperatures([0.3, 0.3, 0.4, 0.4, 0.4]) == [0.1, 0.1, 0.1, 0.1, 0.05]
    # Better by less than min_gain is no better.
    assert temperatures([0.3, 0.305, 0.308]) == [0.1, 0.1, 0.05]
    assert temperatures([0.3] * 9) == [0.1, 0.1, 0.05, 0.05, 0.025, 0.025, 0.02, 0.02, 0.02]
    assert temperatures([0.3] * 9, None) == [0.1] * 9
    # A start below the floor is no reason to rise.
    assert measured(measured(State(0.01, 0.3, 1, 1), 2, 0.3, ANNEALING), 3, 0.3, ANNEALING).temperature == 0.01


@given(st.lists(st.sampled_from([0.1, 0.2, 0.205, 0.3, 0.302]), min_size=1, max_size=12))
def test_the_best_is_the_first_of_the_highest(metrics: list[float]) -> None:
    state = State(0.1)
    for number, metric in enumerate(metrics):
        state = measured(state, number, metric, ANNEALING)
    assert (state.best, state.best_step) == (max(metrics), metrics.index(max(metrics)))


def test_a_loss_has_diverged_where_its_median_is_so_many_times_the_smallest_and_one_above_it() -> None:
    def after(losses: list[float], limit: float | None = 3.0) -> bool:
        state = State(0.1)
        for loss in losses:
            state = with_loss(state, loss)
        return diverged(state, limit)

    low = [1.0] * WINDOW
    assert not after(low)
    # One loss, or fewer than half, is noise.
    assert not after([*low, 1e9])
    assert not after([*low, *[1e9] * (WINDOW // 2 - 1)])
    assert after([*low, *[3.1] * (WINDOW // 2 + 1)])
    assert not after([*low, *[2.9] * WINDOW])
    assert not after([*[0.01] * WINDOW, *[1.0] * WINDOW])
    assert after([*[0.01] * WINDOW, *[1.02] * WINDOW])
    assert not after([*low, *[1e9] * WINDOW], None)


def test_another_temperature_starts_the_comparison_of_losses_anew() -> None:
    state = State(0.1)
    for _ in range(WINDOW):
        state = with_loss(state, 1.0)
    for number in range(3):
        state = measured(state, number, 0.5, ANNEALING)
    assert state.temperature == 0.05
    for _ in range(WINDOW):
        state = with_loss(state, 9.0)
        assert not diverged(state, 3.0)
