"""report.html of a run: figures of the log, nothing from a network, no text that becomes markup, readable on a phone."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from trainer import curves
from trainer.evaluation.retrieval import CategoryResult, Result
from trainer.report import Attempt, Metrics, StageMetrics, decisions

HOSTILE = "<img src=x onerror=\"document.title='taken'\"></pre><script>document.title='taken'</script> & {{ 7*7 }}"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


def result(score: float) -> Result:
    return Result(score=score, categories={"things": CategoryResult(score=score, rows=3)})


def metrics() -> Metrics:
    before, first, second = ({8: result(score), 4: result(score - 0.1)} for score in (0.2, 0.4, 0.5))
    attempts = [
        Attempt(learning_rate=1e-3, before=0.4, after=0.3, needed=0.01, decision="repeat"),
        Attempt(learning_rate=5e-4, before=0.4, after=0.5, needed=0.01, decision="go on"),
    ]
    stages = [
        StageMetrics(name="pairs", steps=30, after=first),
        StageMetrics(name="hard", steps=9, after=second, attempts=attempts),
    ]
    return Metrics(
        name="toy", version="v", build="b", queries=3, documents=9, skipped=0, before=before, stages=stages, after=second,
        beside={"BM25": result(0.3)},
    )  # fmt: skip


def log_lines(steps: int, **more: float) -> str:
    lines = [
        {
            "step": step, "loss": 4 / math.sqrt(step), "loss_8": 4 / math.sqrt(step), "loss_4": 5 / math.sqrt(step), "rate": 1e-3 / step,
            "temperature": 0.05, "masked": 0.1, "gradient_norm": 1.5, "tokens": 1000.0, "tokens_per_second": 900.0 + step, **more,
        }
        for step in range(1, steps + 1)
    ]  # fmt: skip
    return "".join(json.dumps(line) + "\n" for line in lines)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    for name, text in (("pairs", log_lines(30)), ("hard", log_lines(9, difficulty=0.7, novel=2.0))):
        (folder / name).mkdir(parents=True)
        (folder / name / "log.jsonl").write_text(text)
    (folder / "metrics.json").write_text(metrics().model_dump_json())
    config = {"name": "toy", "model": {"base": HOSTILE}, "stages": [{"name": "pairs"}, {"name": "hard"}]}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def written(folder: Path) -> str:
    curves.write(str(folder))
    return (folder / "report.html").read_text()


def test_equal_files_give_an_equal_report_that_asks_nothing_of_a_network(run: Path) -> None:
    page = written(run)
    assert written(run) == page
    assert not re.findall(r"(?:src|href)=\"", page)
    assert "@import" not in page
    assert "url(" not in page
    assert "default-src 'none'" in page
    assert "<script" not in page
    assert "<img" not in page


def test_every_statistic_of_the_log_is_drawn_with_its_last_value_in_the_order_of_the_config(run: Path) -> None:
    page = written(run)
    legends = dict(re.findall(r"</i>(\w+): ([^<]*)<", page))
    last = json.loads((run / "hard" / "log.jsonl").read_text().splitlines()[-1])
    assert legends == {name: f"{value:.4g}" for name, value in last.items() if name not in ("step", "tokens")}
    loss = re.search(r"<h3>Loss</h3>.*?</figure>", page, flags=re.S)
    assert loss is not None
    assert [len(points.split()) for points in re.findall(r'points="([^"]*)"', loss[0])] == [30, 9]
    assert re.findall(r">(pairs|hard)</text>", loss[0]) == ["pairs", "hard"]
    novel = re.search(r"<h3>novel</h3>.*?</figure>", page, flags=re.S)
    assert novel is not None
    assert [len(points.split()) for points in re.findall(r'points="([^"]*)"', novel[0])] == [9], "the first stage has none"


def test_the_page_has_the_results_by_dimension_and_stage_and_what_the_gates_decided(run: Path) -> None:
    page = written(run)
    rows = [re.findall(r">([^<>]+)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", page)]
    assert ["after pairs", "0.4000", "0.3000"] in rows
    assert ["after hard", "0.5000", "0.4000"] in rows
    assert ["kept of the widest", "100.0%", "80.0%"] in rows
    assert ["BM25", "0.3000"] in rows
    assert len(decisions(metrics())) == 2
    assert re.findall(r"<li>(.*?)</li>", page) == decisions(metrics())
    assert decisions(metrics())[0].endswith("0.4000 to 0.3000 (-0.1000, needed +0.0100): repeat.")


def test_names_and_ends_of_short_stages_do_not_run_into_those_beside_them() -> None:
    steps = {
        name: [{"step": float(count), "loss": 1.0}] for name, count in (("contrastive", 150), ("hard", 20), ("distillation", 600))
    }
    figure = curves.chart("Loss", {"loss": [[(0.0, 1.0), (770.0, 2.0)]]}, "", steps)
    found = re.findall(r'<text x="([\d.]+)" y="([\d.]+)"( text-anchor="end")?>([^<]*)</text>', figure)
    assert [text for _, y, _, text in found if float(y) < curves.TOP] == ["contrastive", "", "distillation"]
    assert [text for _, y, _, text in found if float(y) > curves.HEIGHT - curves.BOTTOM + 5] == ["170", "770"]


def test_what_is_absent_or_cut_is_left_out(run: Path) -> None:
    (run / "metrics.json").unlink()
    with (run / "hard" / "log.jsonl").open("a") as file:
        file.write('{"step": 10, "loss": 1.')
    page = written(run)
    assert "not finished" in page
    assert "hard 9 steps" in page
    (run / "config.yaml").unlink()
    assert "pairs 30 steps" in written(run)
    shutil.rmtree(run)
    run.mkdir()
    assert "No step is logged yet" in written(run)


def test_repeats_of_a_stage_stand_after_its_first_attempt_in_their_order(run: Path) -> None:
    for attempt in ("pairs-10", "pairs-2"):
        shutil.copytree(run / "pairs", run / attempt)
    assert "pairs 30 steps, pairs-2 30 steps, pairs-10 30 steps, hard 9 steps" in written(run)


def test_a_loss_that_is_not_finite_leaves_a_report(run: Path) -> None:
    with (run / "hard" / "log.jsonl").open("a") as file:
        file.write('{"step": 10, "loss": NaN, "loss_8": Infinity}\n')
    assert "nan" not in written(run).lower().replace("tenant", "")


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=2000))
@example([0.0])
def test_a_thinned_line_keeps_its_ends_its_order_and_its_mean(values: list[float]) -> None:
    line = [(float(step), value) for step, value in enumerate(values)]
    thin = curves.thinned(line)
    assert len(thin) <= curves.MOST_POINTS
    assert [x for x, _ in thin] == sorted(x for x, _ in thin)
    if len(values) <= curves.MOST_POINTS:
        assert thin == line
    elif len(values) % curves.MOST_POINTS == 0:
        assert sum(y for _, y in thin) / len(thin) == pytest.approx(sum(values) / len(values), abs=1e-6)
    assert min(values) <= min(y for _, y in thin) + 1e-6
    assert max(values) >= max(y for _, y in thin) - 1e-6


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
@example(0.0, 0.0)
@example(1e-5, 0.0)
@example(0.05, 1e-9)
def test_ticks_hold_the_values_between_them_and_are_few(low: float, span: float) -> None:
    marks = curves.ticks(low, low + span)
    slack = 1e-6 * (span + abs(low) + 1e-12)
    assert marks[0] <= low + slack
    assert marks[-1] >= low + span - slack
    assert 2 <= len(marks) <= 7
    assert marks == sorted(set(marks))


def chromium(run: Path, *arguments: str) -> str:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed here")
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={run}/profile", *arguments, f"file://{run}/report.html"]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def test_a_browser_draws_the_curves_and_runs_no_text(run: Path) -> None:
    page = written(run)
    # Without the content security policy, which alone would stop a script.
    (run / "report.html").write_text(re.sub(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", "", page))
    after = chromium(run, "--dump-dom")
    assert "<title>toy: training</title>" in after
    assert len(re.findall(r"<polyline ", after)) == len(re.findall(r"<polyline ", page)) > 10
    assert "<img" not in after


def test_nothing_is_wider_than_a_phone(run: Path) -> None:
    page = written(run)
    probe = "<script>document.title = String(document.documentElement.scrollWidth <= innerWidth)</script></body>"
    bare = re.sub(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", "", page)
    (run / "report.html").write_text(bare.replace("</body>", probe))
    assert "<title>true</title>" in chromium(run, "--window-size=500,900", "--dump-dom")
