"""Personal data and secrets: what is found, what is not, and that no value gets out."""

from __future__ import annotations

import json
import os
import random
import string
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from filter_rows import row, said, table
from hypothesis import given, settings
from hypothesis import strategies as st
from stepping import read, rows_step, run_step

from datakit import schema
from datakit.assets import Assets
from datakit.errors import UserError
from datakit.filters import filter_step, personal_data
from datakit.filters.personal_data_patterns import KINDS, TOKENS, find, luhn
from datakit.normalise import normalise_step
from datakit.recipe import PersonalDataFilter

pytest.importorskip("phonenumbers", reason="the package 'phonenumbers' is not installed")

REGIONS = ["US", "GB", "DE"]


def drawn(alphabet: str, length: int, seed: int = 7) -> str:
    return "".join(random.Random(seed).choices(alphabet, k=length))


ALNUM = string.ascii_letters + string.digits
# Written in parts, so that no scanner takes these tests for a leak. None of them is or was in use.
FINDINGS: list[tuple[str, str]] = [
    ("email", "jane.doe+news@mail.institute-berlin.de"),
    ("phone", "+49 30 901820"),
    ("phone", "(212) 736-5000"),
    ("phone", "0121 234 5678"),
    ("credit_card", "4539 1488 0343 6467"),
    ("credit_card", next(number for number in (f"60110009901397{check:02d}" for check in range(100)) if luhn(number))),
    ("iban", "DE75 5121 0800 1245 1261 99"),
    ("iban", "NO8330001234567"),
    ("ip_address", "93.184.216.34"),
    ("ip_address", "2606:2800:220:1:248:1893:25c8:1946"),
    ("aws_key", "AKIA" + drawn("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", 16)),
    ("github_token", "ghp_" + drawn(ALNUM, 36)),
    ("gitlab_token", "glpat-" + drawn(ALNUM, 20)),
    ("slack_token", "xoxb-" + "123456789012-123456789012-" + drawn(ALNUM, 24)),
    ("stripe_key", "sk_live_" + drawn(ALNUM, 24)),
    ("openai_key", "sk-" + drawn(ALNUM, 20) + "T3BlbkFJ" + drawn(ALNUM, 20, 8)),
    ("anthropic_key", "sk-ant-api03-" + drawn(ALNUM, 93)),
    ("huggingface_token", "hf_" + drawn(string.ascii_letters, 34)),
    ("google_key", "AIza" + drawn(ALNUM, 35)),
    ("npm_token", "npm_" + drawn(ALNUM, 36)),
    ("pypi_token", "pypi-AgE" + drawn(ALNUM, 90)),
    ("sendgrid_key", "SG." + drawn(ALNUM, 22) + "." + drawn(ALNUM, 43)),
    ("mailchimp_key", drawn("0123456789abcdef", 32) + "-us12"),
    ("twilio_key", "SK" + drawn("0123456789abcdef", 32)),
    ("telegram_token", "123456789:AA" + drawn(ALNUM, 33)),
    ("jwt", f"eyJ{drawn(ALNUM, 33)}.eyJ{drawn(ALNUM, 40)}.{drawn(ALNUM, 43)}"),
]  # fmt: skip
INSIDE: list[tuple[str, str, str]] = [
    ("azure_key", "DefaultEndpointsProtocol=https;AccountKey={};", drawn(ALNUM, 86) + "=="),
    ("url_password", "postgres://admin:{}@db.institute.org:5432/live", "hT7x9Qz2"),
    ("assigned_secret", 'api_key = "{}"', drawn(ALNUM, 32)),
    ("private_key", "{}", "-----BEGIN RSA PRIVATE " + f"KEY-----\n{drawn(ALNUM, 200)}\n-----END RSA PRIVATE KEY-----"),
]
EXAMPLES = [
    "user@example.com", "a.b@mail.example.org", "root@localhost.localdomain.local", "git@github.com:owner/repo.git", "@app.route('/')",
    "555-0123", "(212) 555-0142", "+1 212 555 0199", "+44 7700 900123", "1-800-438-4380", "127.0.0.1", "192.168.1.20", "10.0.0.1",
    "203.0.113.9", "8.8.8.8", "0.0.0.0", "2001:db8::1", "std::vector", "a[1::2]", "version 1.20.300.4", "EC 1.14.16.2", "12:30:45",
    "4242 4242 4242 4242", "4111111111111111", "1234567812345678", "0000 0000 0000 0000", "GB29 NWBK 6016 1331 9268 19",
    "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "https://user:password@host.com", "http://localhost:8080/a@b",
    'password = "changeme12345"', 'token = "<your token here>"', 'secret: "${SECRET_FROM_ENV}"', "sk_test_4eC39HqLyjWDarjtT1zdp7dc",
    "-----BEGIN PRIVATE KEY----- is the first line of the file", "2024-01-15 10:22:33", "PMID 20256543", "ISBN 978-3-16-148410-0",
    "3.14159265358979", "0x1234567890abcdef", "1,234,567,890", "d41d8cd98f00b204e9800998ecf8427e", "10.1038/s41586-020-2649-2",
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), FINDINGS)
def test_each_kind_is_found_whole_in_a_sentence_and_alone(name: str, value: str) -> None:
    for text in (value, f"Please note: {value}.", f"({value}) and more", f"前 {value} 后"):
        found = find(text, list(KINDS), REGIONS)
        assert [(each.name, text[each.start : each.end]) for each in found] == [(name, value)]


@pytest.mark.parametrize(("name", "text", "value"), INSIDE)
def test_of_a_secret_that_stands_in_something_the_secret_alone_is_taken(name: str, text: str, value: str) -> None:
    whole = f"see {text.format(value)} here"
    assert [(each.name, whole[each.start : each.end]) for each in find(whole, list(KINDS), REGIONS)] == [(name, value)]


@pytest.mark.parametrize("text", EXAMPLES)
def test_examples_of_documentation_and_other_numbers_are_no_alarm(text: str) -> None:
    assert find(f"For example {text} in the manual", list(KINDS), REGIONS) == []
    assert find(text, list(KINDS), REGIONS) == []


def test_the_quick_look_misses_nothing_that_the_finders_find() -> None:
    texts = [value for _, value in FINDINGS] + [text.format(value) for _, text, value in INSIDE]
    for text in texts:
        rows = personal_data.findings(pl.Series([f"a {text} b"]), list(KINDS), REGIONS)
        assert len(rows) == 1, text
    assert {name for name, _ in TOKENS} - {name for name, *_ in [*FINDINGS, *INSIDE]} <= {"discord_token"}


def filter_of(**fields: Any) -> PersonalDataFilter:
    return PersonalDataFilter.model_validate({"type": "personal_data", **fields})


def rows() -> Any:
    mail, key = FINDINGS[0][1], FINDINGS[10][1]
    negative = {"text": f"ask {mail}", "id": schema.text_id(f"ask {mail}"), "miner": "source"}
    return table(
        row(f"Who is {mail}?", f"She has the number {FINDINGS[1][1]}"),
        row("What is a key?", f"Something like {key}"),
        row("What is asked?", "An answer without a name", negatives=[{"text": "plain", "id": schema.text_id("plain")}, negative]),
        row(f"Who is {mail}?", "Another answer"),
        row("Nothing here", "nor here"),
    )


def test_masked_texts_have_placeholders_and_the_ids_that_normalise_gives_such_texts(tmp_path: Path) -> None:
    step = filter_step(0, filter_of(), (normalise_step((rows_step([rows()]),)),), None, None, Assets(str(tmp_path)))
    run_step(step.inputs[0], str(tmp_path))
    output = run_step(step, str(tmp_path))
    kept = read(output.shards)
    assert kept.column("query").to_pylist()[:2] == ["Who is <EMAIL>?", "What is a key?"]
    assert kept.column("positive").to_pylist()[:2] == ["She has the number <PHONE>", "Something like <SECRET>"]
    assert kept.column("negatives").to_pylist()[2][1]["text"] == "ask <EMAIL>"
    again = read(run_step(normalise_step((rows_step([kept]),)), str(tmp_path / "again")).shards)
    for name in ("query_id", "positive_id", "content_id", "negatives"):
        assert kept.column(name).to_pylist() == again.column(name).to_pylist()
    assert kept.column("document_id").to_pylist() == kept.column("positive_id").to_pylist()
    assert kept.column("query_id")[0] == kept.column("query_id")[3]
    expected = {"query email": 2, "positive phone": 1, "positive aws_key": 1, "negative email": 1}
    assert output.report.notes == {"masked": dict(sorted(expected.items())), "found_in_rejected": {}}


def test_dropped_rows_say_the_kind_and_side_and_no_value_reaches_any_file(tmp_path: Path) -> None:
    wanted = filter_of(action="drop", kinds={"phone": "keep"})
    found = personal_data.annotate(rows(), wanted)[1]
    assert said(found) == [(0, "personal_data"), (1, "secret"), (2, "personal_data"), (3, "personal_data")]
    assert found.column("detail").to_pylist() == ["query: email", "positive: aws_key", "negative: email", "query: email"]
    output = run_step(filter_step(0, wanted, (rows_step([rows()]),), None, None, Assets(str(tmp_path))), str(tmp_path))
    shown = json.dumps(output.report.model_dump()) + str(read(output.rejected).to_pylist()) + str(read(output.shards).to_pylist())
    for _, value in FINDINGS:
        if value != FINDINGS[1][1]:
            assert value not in shown
    assert FINDINGS[1][1] in shown
    assert output.report.counts.rejected == {"personal_data": 3, "secret": 1}


def test_masking_is_done_once_and_for_all() -> None:
    first, _, counts = personal_data.annotate(rows(), filter_of())
    second, _, none = personal_data.annotate(first, filter_of())
    assert second.equals(first)
    assert counts.total() == 5
    assert not none


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([value for _, value in FINDINGS]) | st.text(max_size=30), max_size=8))
def test_findings_lie_in_the_text_apart_and_in_order(parts: list[str]) -> None:
    text = " ".join(parts)
    found = find(text, list(KINDS), REGIONS)
    ends = [0, *(each.end for each in found)]
    assert all(end <= each.start < each.end <= len(text) for end, each in zip(ends, found, strict=False))
    assert len(personal_data.masked(text, found)) == len(text) + sum(
        len(each.kind) + 2 - (each.end - each.start) for each in found
    )


@pytest.mark.parametrize(
    "text", ["a" * 1_000_000 + "@", "1" * 1_000_000, "1 2-3 " * 17_000, "AB12" * 250_000, "a@" * 500_000, "eyJ" * 330_000, "1.2." * 250_000,
             ":a" * 500_000, "-----BEGIN PRIVATE KEY-----" * 40_000, "://a:b" * 160_000, "key='" * 200_000],
)  # fmt: skip
def test_a_megabyte_of_one_kind_takes_seconds_not_minutes(text: str) -> None:
    started = time.process_time()
    personal_data.findings(pl.Series([text]), list(KINDS), REGIONS)
    assert time.process_time() - started < 20


def test_an_unknown_region_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Atlantis"):
        filter_step(0, filter_of(phone_regions=["Atlantis"]), (), None, None, Assets(str(tmp_path)))


def test_on_real_answers_findings_are_few_and_hotlines_are_none(real_data: Path) -> None:
    with open(real_data / "train/medquad.jsonl", encoding="utf-8") as file:
        texts = [json.loads(line)["answer"] for line in file]
    found = [each.name for _, _, many in personal_data.findings(pl.Series(texts), list(KINDS), ["US"]) for each in many]
    assert os.environ["DATAKIT_REAL_DATA"]
    assert found.count("email") == 13
    assert set(found) == {"email", "phone"}
    assert 20 < found.count("phone") < 50
