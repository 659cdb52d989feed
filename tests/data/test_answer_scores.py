"""Scores of answers, by hand from the published scripts' definitions."""

import pytest

from baichuan_hf.data.answer_scores import choose_score, score_cmrc, score_squad


@pytest.mark.parametrize(
    ("prediction", "answers", "exact", "f1"),
    [
        pytest.param("光荣和ω-force", ["光荣和ω-force"], 1, 1, id="same"),
        pytest.param("《战国无双3》", ["战国无双3"], 1, 1, id="punctuation"),
        pytest.param("OMEGA", ["omega"], 1, 1, id="case"),
        # 4 characters in a row of 5 and 4.
        pytest.param("战国无双3", ["战国无双"], 0, 8 / 9, id="part"),
        # The longest run counts (2), not the bag of characters (4).
        pytest.param("北京上海", ["上海北京"], 0, 0.5, id="order"),
        # 4 segments each, as a number and a word are one: 2 in a row in common.
        pytest.param("约3.5公里", ["3.5 km公里"], 0, 4 / 8, id="mixed"),
        pytest.param("北京", ["上海", "北京市"], 0, 4 / 5, id="best-of-two"),
        pytest.param("", ["北京"], 0, 0, id="nothing-found"),
        pytest.param("北京", [""], 0, 0, id="unanswerable"),
        pytest.param("", [""], 1, 1, id="rightly-none"),
    ],
)
def test_cmrc(prediction, answers, exact, f1):
    assert score_cmrc(prediction, answers) == (exact, pytest.approx(f1))


@pytest.mark.parametrize(
    ("prediction", "answers", "exact", "f1"),
    [
        pytest.param("The Eiffel Tower.", ["eiffel tower"], 1, 1, id="articles-case-punctuation"),
        pytest.param("tower eiffel", ["Eiffel Tower"], 0, 1, id="bag-of-words"),
        pytest.param("in Paris", ["Paris", "France"], 0, 2 / 3, id="best-of-two"),
        pytest.param("", ["Paris"], 0, 0, id="nothing-found"),
        pytest.param("", [""], 1, 1, id="rightly-none"),
    ],
)
def test_squad(prediction, answers, exact, f1):
    assert score_squad(prediction, answers) == (exact, pytest.approx(f1))


def test_language_of_the_questions_decides():
    assert choose_score(["谁？", "哪里？", "Who?"]) is score_cmrc
    assert choose_score(["Where is 北京?", "Who?"]) is score_squad
