"""What is planned for a judge that relabels, against what it then asks."""

from __future__ import annotations

from pathlib import Path

from asking import openai_engine, serving
from corpora import random_records
from stepping import run_step
from test_relabel_judge import by_words, steps

from datakit.executor.local import LocalExecutor
from datakit.planning_of_rows import about_rows
from datakit.progress import QUIET
from datakit.step import run


def test_a_judge_that_relabels_asks_for_no_more_than_its_plan_says(tmp_path: Path) -> None:
    cache = str(tmp_path)
    with serving(answer=by_words) as server:
        step = steps(random_records(2, count=40), tmp_path, openai_engine(server))
        screening = step.inputs[0]
        mining = screening.inputs[0]
        for before in (*mining.inputs, mining, *screening.side):
            run(before, cache, LocalExecutor(1), QUIET)
        (early,) = about_rows([step], cache, {})
        assert early.requests == 40 * 8, "up to eight negatives of each row"
        run(screening, cache, LocalExecutor(1), QUIET)
        (late,) = about_rows([step], cache, {})
        assert not server.attempts, "a plan asks nobody"
        output = run_step(step, cache)
    asked = output.report.notes["requests"]
    assert 0 < len(server.answered) <= asked <= (late.requests or 0) <= (early.requests or 0)
    assert late.requests == sum(counts["asked"] for counts in output.report.notes["miners"].values())
    assert not late.exact
    sent = [sum(len(message["content"]) for message in body["messages"]) / 4 for body in server.bodies]
    assert late.prompt_tokens is not None
    assert abs(late.prompt_tokens / (sum(sent) / len(sent)) - 1) < 0.05
    (done,) = about_rows([step], cache, {})
    assert (done.answered, done.requests, done.exact, done.basis) == (asked, 0, True, "")
