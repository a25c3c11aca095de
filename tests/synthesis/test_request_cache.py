"""The file of answers: nothing that was finished is lost."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from datakit.errors import BuildError, UserError
from datakit.synthesis.engines import Answer
from datakit.synthesis.request_cache import NAME, RequestCache, is_there

ANSWER = Answer("1. zwölf\x00木", "stop", 7, 3)


def test_answers_come_back_as_they_were_and_the_first_one_stays(tmp_path: Path) -> None:
    assert not is_there(str(tmp_path))
    cache = RequestCache(str(tmp_path))
    cache.keep([("a", ANSWER), ("b", Answer("", "length", 0, 0))])
    cache.keep([("a", Answer("another", "stop", 1, 1))])
    cache.close()
    again = RequestCache(str(tmp_path))
    assert again.answers(["a", "b", "c"]) == {"a": ANSWER, "b": Answer("", "length", 0, 0)}
    again.keep([(str(number), ANSWER) for number in range(2000)])
    assert len(again.answers([str(number) for number in range(3000)])) == 2000
    again.close()
    assert is_there(str(tmp_path))


def test_a_batch_is_kept_whole_or_not_at_all(tmp_path: Path) -> None:
    cache = RequestCache(str(tmp_path))
    broken = Answer("\ud800", "stop", 1, 1)
    with pytest.raises(UnicodeEncodeError):
        cache.keep([("a", ANSWER), ("b", broken)])
    assert cache.answers(["a", "b"]) == {}
    cache.keep([("a", ANSWER)])
    cache.close()


def test_failures_are_counted_by_step_and_kind_over_runs(tmp_path: Path) -> None:
    for _ in range(2):
        cache = RequestCache(str(tmp_path))
        for kind in ("timeout", "connection", "timeout"):
            cache.count_failure("step", kind)
        cache.count_failure("other", "timeout")
        cache.close()
    cache = RequestCache(str(tmp_path))
    assert cache.failures("step") == {"connection": 2, "timeout": 4}
    cache.close()


def test_what_was_kept_survives_a_kill(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "from datakit.synthesis.engines import Answer\n"
        "from datakit.synthesis.request_cache import RequestCache\n"
        "cache = RequestCache(sys.argv[1])\n"
        "for number in range(50): cache.keep([(str(number), Answer('text', 'stop', 1, 1))])\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    cache = RequestCache(str(tmp_path))
    assert len(cache.answers([str(number) for number in range(60)])) == 50
    cache.close()


def test_a_remote_cache_and_a_damaged_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="keeps its answers in a local folder"):
        RequestCache("memory://bucket/cache")
    (tmp_path / NAME).write_bytes(b"no database" * 1000)
    with pytest.raises(BuildError, match=r"requests.sqlite' is damaged"):
        RequestCache(str(tmp_path))
