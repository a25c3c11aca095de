"""The language filter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from filter_rows import row, said, table

from datakit.assets import Assets
from datakit.errors import UserError
from datakit.filters import filter_step, language
from datakit.filters.language_codes import covered, tag
from datakit.filters.language_model import load
from datakit.recipe import LanguageFilter

GERMAN = "Das Herz pumpt das Blut durch den Körper, und die Klappen verhindern den Rückfluss."
ENGLISH = "The heart pumps blood through the whole body, and its valves keep it from flowing back."


def rule(**fields: Any) -> LanguageFilter:
    return LanguageFilter.model_validate({"type": "language", "allowed": ["en"], **fields})


def test_a_query_and_a_positive_in_another_language_are_named_apart() -> None:
    rows = table(row(GERMAN, ENGLISH), row(ENGLISH, GERMAN), row(GERMAN, GERMAN), row(ENGLISH, ENGLISH))
    _, reasons = language.annotate(rows, rule())
    assert said(reasons) == [
        (0, language.WRONG_LANGUAGE),
        (1, language.WRONG_POSITIVE_LANGUAGE),
        (2, language.WRONG_LANGUAGE),
    ]
    assert reasons.column("detail").to_pylist() == ["de"] * 3
    assert set(reasons.column("threshold").to_pylist()) == {0.9}
    assert all(0.9 <= value <= 1 for value in reasons.column("value").to_pylist())
    assert said(language.annotate(rows, rule(allowed=["de", "en"]))[1]) == []


def test_too_short_and_unsure_texts_are_unknown_and_handled_as_the_recipe_says() -> None:
    rows = table(row("Herz", ENGLISH), row("xq zk 77 bb qq", ENGLISH), row(ENGLISH, "12 34 56 78 90"))
    filled, kept = language.annotate(rows, rule(pair_prior=False))
    assert said(kept) == []
    assert filled.column("language").to_pylist() == [None, None, "en"]
    _, reasons = language.annotate(rows, rule(pair_prior=False, unknown="reject"))
    assert said(reasons) == [(0, language.UNKNOWN_LANGUAGE), (1, language.UNKNOWN_LANGUAGE), (2, language.UNKNOWN_LANGUAGE)]
    first, second, third = reasons.to_pylist()
    assert (first["value"], first["threshold"], first["detail"]) == (1, 2, "query: too short to tell")
    assert (second["threshold"], third["threshold"]) == (0.9, 0.9)
    assert third["detail"].startswith("positive: ")


def test_language_columns_are_filled_where_they_are_null_in_kept_and_rejected_rows() -> None:
    rows = table(row(ENGLISH, GERMAN), row(ENGLISH, ENGLISH, language="en-GB", positive_language="en-GB"))
    filled, _ = language.annotate(rows, rule())
    assert filled.column("language").to_pylist() == ["en", "en-GB"]
    assert filled.column("positive_language").to_pylist() == ["de", "en-GB"]


def test_class_labels_and_source_code_are_not_checked() -> None:
    source = "def herz(blut, koerper):\n    return [k for k in koerper if k.blut(blut) and not k.leer]\n"
    rows = table(
        row(ENGLISH, "das herz und die klappen abspielen", label="x", task="classification"),
        row(ENGLISH, source, task="code_search"),
        row(source, ENGLISH, task="code_search"),
        row(ENGLISH, GERMAN, task="code_search"),
    )
    _, reasons = language.annotate(rows, rule(unknown="reject"))
    assert said(reasons) == [(3, language.WRONG_POSITIVE_LANGUAGE)]


def test_capitals_and_line_breaks_do_not_change_the_language() -> None:
    for text in (GERMAN.upper(), GERMAN.replace(" ", "\n"), GERMAN.replace(" ", " \x00\u2028")):
        tags, confidence = language.identify(pl.Series([text]), load(rule().model))
        assert tags == ["de"]
        assert confidence[0] > 0.8


def test_codes_of_the_model_are_told_as_bcp_47() -> None:
    assert [tag("__label__" + code) for code in ("als", "bh", "no", "de")] == ["gsw", "bho", "no", "de"]
    assert covered("nb") == ("no",)
    assert covered("zh-Hant-TW") == covered("zh") == ("zh", "wuu", "yue")
    assert covered("EN_us") == ("en",)
    norwegian = "Hjertet pumper blod gjennom hele kroppen, og klaffene hindrer at det renner tilbake igjen."
    assert said(language.annotate(table(row(norwegian, norwegian)), rule(allowed=["nb"]))[1]) == []


def test_a_language_the_model_cannot_tell_and_a_file_that_is_no_model_are_refused_before_anything_runs(tmp_path: Path) -> None:
    assets = Assets(str(tmp_path))
    with pytest.raises(UserError, match=r"allows 'sn'.*cannot tell.*It knows: .*\bde\b"):
        filter_step(0, rule(allowed=["en", "sn"]), (), None, None, assets)
    (tmp_path / "model.ftz").write_bytes(b"no model")
    with pytest.raises(UserError, match="not a fastText model"):
        filter_step(0, rule(model=str(tmp_path / "model.ftz")), (), None, None, assets)
    with pytest.raises(UserError, match="there is no file"):
        filter_step(0, rule(model=str(tmp_path / "absent.ftz")), (), None, None, assets)


def test_one_side_speaks_for_the_other_but_not_against_a_sure_one_and_not_in_bitext() -> None:
    short = "Herz Insuffizienz Medikament"
    rows = table(row(short, GERMAN), row(short, GERMAN, task="bitext"))

    def confidence(parameters: LanguageFilter) -> list[float]:
        _, reasons = language.annotate(rows, parameters)
        return [each["value"] for each in reasons.to_pylist()]

    unsure = LanguageFilter(type="language", allowed=["en"], min_confidence=0.0)
    with_other = confidence(unsure)
    without = confidence(unsure.model_copy(update={"pair_prior": False}))
    assert with_other[0] > without[0]
    assert with_other[1] == without[1]
    assert said(language.annotate(table(row(ENGLISH, GERMAN)), rule())[1]) == [(0, language.WRONG_POSITIVE_LANGUAGE)]


def test_a_text_in_two_languages_is_code_switched_but_in_the_categories_that_allow_it() -> None:
    switched = "Bu konuda ne düşünüyorsun bilmiyorum, aber ich glaube, dass wir morgen darüber sprechen sollten"
    rows = table(
        row(switched, GERMAN), row(GERMAN, switched), row(GERMAN, GERMAN), row(switched, GERMAN, category="chat", row_id="chat")
    )
    fields = {"allowed": ["de", "tr"], "pair_prior": False}
    assert said(language.annotate(rows, rule(**fields))[1]) == []
    _, reasons = language.annotate(rows, rule(**fields, allow_code_switch=["chat"]))
    assert said(reasons) == [(0, language.CODE_SWITCHED), (1, language.CODE_SWITCHED)]
    for each in reasons.to_pylist():
        assert each["threshold"] == 0.1 < each["value"] < 1
        assert {"de", "tr"} == set(each["detail"].split(": ")[1].split(" and "))
    assert len(language.annotate(rows, rule(**fields, allow_code_switch=False))[1]) == 3
    assert said(language.annotate(rows, rule(**fields, allow_code_switch=True))[1]) == []


def test_whole_sentences_of_ten_languages_are_told_apart(real_data: Path) -> None:
    identifier = load(rule().model)
    for code in ("en", "de", "fr", "es", "ru", "ja", "ko", "ar", "tr", "hi"):
        lines = (real_data / "filters/language-id/sentences" / f"{code}.txt").read_text(encoding="utf-8").splitlines()[:200]
        tags, confidence = language.identify(pl.Series(lines), identifier)
        right = language.np.array([each is not None and each in covered(code) for each in tags])
        assert right.mean() > 0.97
        assert right[confidence >= 0.9].mean() > 0.99
