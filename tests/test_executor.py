"""Executors give results in order, whatever the number of workers, and leave nobody behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from datakit.errors import BuildError, MissingExtra, UserError
from datakit.executor import make
from datakit.executor.local import LocalExecutor


def slow_when_small(number: int) -> int:
    time.sleep(0.05 if number < 2 else 0)
    return number * number


def fail_at_three(number: int) -> int:
    if number == 3:
        raise UserError("three is not allowed")
    return number


def lack(number: int) -> int:
    raise MissingExtra("The quality model", "fasttext-community", "quality")


def die(number: int) -> int:
    os._exit(9)


def pid(number: int) -> int:
    return os.getpid()


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_results_come_in_the_order_of_the_units(workers: int) -> None:
    executor = LocalExecutor(workers)
    try:
        assert list(executor.map(slow_when_small, range(9))) == [n * n for n in range(9)]
    finally:
        executor.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_in_a_worker_arrives_as_it_was(workers: int) -> None:
    executor = LocalExecutor(workers)
    try:
        with pytest.raises(UserError, match="three is not allowed"):
            list(executor.map(fail_at_three, range(6)))
        with pytest.raises(MissingExtra, match=r"The quality model needs .* 'fasttext-community'.* 'datakit\[quality\]'"):
            list(executor.map(lack, [1]))
        assert list(executor.map(slow_when_small, [5])) == [25]
    finally:
        executor.close()


def test_units_are_taken_as_they_are_needed_so_that_memory_is_bounded() -> None:
    taken = []

    def units() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    executor = LocalExecutor(2)
    try:
        results = executor.map(slow_when_small, units())
        next(results)
        assert len(taken) <= 5
    finally:
        executor.close()


def test_exclusive_work_stays_in_this_process() -> None:
    executor = LocalExecutor(2)
    try:
        assert set(executor.map(pid, range(3), exclusive=True)) == {os.getpid()}
        assert os.getpid() not in set(executor.map(pid, range(3)))
    finally:
        executor.close()


def test_a_worker_that_is_killed_is_told_in_a_sentence_and_the_next_call_works() -> None:
    executor = LocalExecutor(2)
    try:
        with pytest.raises(BuildError, match="A worker process ended abruptly"):
            list(executor.map(die, range(3)))
        assert list(executor.map(slow_when_small, [3])) == [9]
    finally:
        executor.close()


def test_workers_end_when_the_build_is_killed(tmp_path: Path) -> None:
    script = (
        f"import sys, time; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_executor import pid\nfrom datakit.executor.local import LocalExecutor\n"
        "if __name__ == '__main__':\n"
        "    e = LocalExecutor(2)\n    print(*set(e.map(pid, range(8))), flush=True)\n    time.sleep(60)\n"
    )
    file = tmp_path / "script.py"
    file.write_text(script)
    process = subprocess.Popen([sys.executable, str(file)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    workers = [int(word) for word in process.stdout.readline().split()]
    assert workers
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any(Path(f"/proc/{worker}").exists() for worker in workers):
        time.sleep(0.05)
    assert not [worker for worker in workers if Path(f"/proc/{worker}").exists()]


def test_unknown_executors_and_settings_are_refused() -> None:
    with pytest.raises(UserError, match="Allowed: local, ray"):
        make("dask")
    with pytest.raises(UserError, match="at least 1"):
        make("local", workers=0)
    with pytest.raises(UserError, match="local executor"):
        make("local", address="auto")
