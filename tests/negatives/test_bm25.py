"""BM25+: the engines agree with rank-bm25, and a document that shares no term is no hit."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rank_bm25 import BM25Plus

from datakit.negatives.bm25 import Bm25sIndex, Excluded, build, load_piece, save_piece, tokens
from datakit.negatives.terms import Statistics
from datakit.recipe import Bm25Miner

WORDS = st.sampled_from(["a", "b", "c", "dd", "Straße", "漢", "字", "x1", "get_user", "!", ""])
TEXTS = st.lists(WORDS, max_size=8).map(" ".join)
ENGINES = ("bm25s", "rank_bm25")


def words_of(text: str) -> list[str]:
    return tokens(pl.Series([text])).to_list()[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Cat's  naïve café", ["the", "cat", "s", "naïve", "café"]),
        ("get_user_name(user_id)", ["get", "user", "name", "user", "id"]),
        ("getUserName HTTPServer2Go", ["get", "user", "name", "http", "server2", "go"]),
        ("漢字かなカナ한국어 abc字d", ["漢", "字", "か", "な", "カ", "ナ", "한국어", "abc", "字", "d"]),
        ("Überstraße ПРИВЕТ", ["überstraße", "привет"]),
        ("— … !?", []),
        (None, []),
    ],
)
def test_tokens_are_words_in_lower_case_parts_of_identifiers_and_single_ideographs(text, expected):
    assert words_of(text) == expected


@settings(max_examples=40, deadline=None)
@given(
    st.lists(TEXTS, min_size=1, max_size=25),
    st.lists(TEXTS, min_size=1, max_size=5),
    st.integers(1, 30),
    st.sampled_from([(1.5, 0.75, 1.0), (0.9, 0.4, 0.5), (1.2, 1.0, 0.0)]),
)
def test_both_engines_give_the_scores_and_the_order_of_rank_bm25(corpus, queries, k, parameters):
    k1, b, delta = parameters
    found = [
        build(pl.Series(corpus), Bm25Miner(type="bm25", engine=engine, k1=k1, b=b, delta=delta)).top(pl.Series(queries), k)
        for engine in ENGINES
    ]
    documents = [words_of(text) for text in corpus]
    oracle = BM25Plus(documents, k1=k1, b=b, delta=delta) if any(documents) else None
    for row, query in enumerate(queries):
        asked = words_of(query)
        sharing = [place for place, document in enumerate(documents) if set(document) & set(asked)]
        with np.errstate(invalid="ignore"):
            scores = oracle.get_scores(asked) if oracle else np.zeros(len(corpus))
        best = sorted((scores[place] for place in sharing), reverse=True)[:k]
        for hits in found:
            places = hits.documents[row][hits.documents[row] >= 0]
            assert len(places) == len(set(places)) == len(best)
            assert set(places) <= set(sharing)
            np.testing.assert_allclose(hits.scores[row][: len(best)], best, rtol=1e-9)
            np.testing.assert_allclose(scores[places], best, rtol=1e-9)


@pytest.mark.parametrize("engine", ENGINES)
def test_equal_scores_come_in_the_order_of_the_corpus(engine):
    index = build(pl.Series(["x a", "b x", "y", "x c", "d x", "x e"]), Bm25Miner(type="bm25", engine=engine))
    assert index.top(pl.Series(["x"]), 3).documents.tolist() == [[0, 1, 3]]
    assert index.top(pl.Series(["x"]), 9).documents.tolist() == [[0, 1, 3, 4, 5, -1, -1, -1, -1]]


@pytest.mark.parametrize("engine", ENGINES)
def test_excluded_documents_make_room_for_the_next_ones(engine):
    index = build(pl.Series(["x a", "b x", "y", "x c", "d x", "x e"]), Bm25Miner(type="bm25", engine=engine))
    excluded = Excluded(np.array([0, 3, 1]), np.array([0, 2, 3]))
    assert index.top(pl.Series(["x", "y x"]), 2, excluded).documents.tolist() == [[1, 4], [2, 0]]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("corpus", [["!", ""], ["a"]])
def test_a_query_without_known_terms_has_no_hits(engine, corpus):
    index = build(pl.Series(corpus), Bm25Miner(type="bm25", engine=engine))
    assert index.top(pl.Series(["zzz", "", None], dtype=pl.String), 2).documents.tolist() == [[-1, -1]] * 3


@settings(max_examples=40, deadline=None)
@given(
    st.lists(TEXTS, min_size=1, max_size=25),
    st.lists(TEXTS, min_size=1, max_size=5),
    st.integers(1, 30),
    st.integers(1, 9),
    st.data(),
)
def test_an_index_in_pieces_gives_the_hits_of_one_to_the_bit(corpus, queries, k, piece, data):
    starts = np.arange(len(queries) + 1)
    barred = np.array([data.draw(st.integers(0, len(corpus) - 1)) for _ in queries], np.int64)
    whole, pieces = (
        build(pl.Series(corpus), Bm25Miner(type="bm25"), size).top(pl.Series(queries), k, Excluded(barred, starts))
        for size in (None, piece)
    )
    assert (whole.documents == pieces.documents).all()
    assert (whole.scores == pieces.scores).all()


def test_a_saved_piece_gives_the_same_hits(tmp_path):
    corpus = pl.Series([f"word{n % 7} word{n % 11} other{n}" for n in range(200)])
    queries = pl.Series(["word1 word2", "word3 other5", "nothing"])
    index = build(corpus, Bm25Miner(type="bm25"), 60)
    assert isinstance(index, Bm25sIndex)
    for number, piece in enumerate(index.pieces):
        save_piece(str(tmp_path / str(number)), piece)
    index.statistics.save(str(tmp_path))
    pieces = [load_piece(str(tmp_path / str(number))) for number in range(len(index.pieces))]
    again = Bm25sIndex(Statistics.load(str(tmp_path)), index.floors, pieces)
    one, other = index.top(queries, 20), again.top(queries, 20)
    assert len(pieces) == 4
    assert (one.documents == other.documents).all()
    assert (one.scores == other.scores).all()


def test_engines_agree_on_real_text(real_data):
    medquad = pl.read_ndjson(real_data / "train" / "medquad.jsonl").head(2000)
    answers = medquad.get_column("answer").unique(maintain_order=True)
    queries = medquad.get_column("question").gather_every(100)
    one, other = (build(answers, Bm25Miner(type="bm25", engine=engine)).top(queries, 100) for engine in ENGINES)
    np.testing.assert_allclose(one.scores, other.scores, rtol=1e-5)
    assert (one.documents >= 0).sum() > 1000
