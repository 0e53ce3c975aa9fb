"""What answers about images are worth: cases computed by hand."""

from __future__ import annotations

import pytest

from parl_envs.visual import scores


@pytest.mark.parametrize(
    "answer, gold, worth",
    [
        ("7", "7", 1),
        (" Nairobi. ", "nairobi", 1),
        ("I see it. Answer: 7", "7", 1),
        ("#1 7", "7", 1),
        ("8", "7", 0),
        ("", "7", 0),
        ("7 8", "7", 0),
        ("answer: 7 answer: 8", "7", 0),
        ("unknown", "7", 0),
    ],
)
def test_reading_is_exact(answer: str, gold: str, worth: float) -> None:
    assert scores.exact(answer, gold) == worth


@pytest.mark.parametrize(
    "answer, gold, worth",
    [
        ("4", "4", 1),
        ("3", "4", 0.75),
        ("6", "4", 0.5),
        ("9", "4", 0),
        ("0", "0", 1),
        ("1", "0", 0),
        ("four", "4", 0),
        ("", "4", 0),
        ("-4", "4", 0),
        ("nan", "4", 0),
        ("1e9", "4", 0),
        ("4.0", "4", 1),
    ],
)
def test_counting_is_one_minus_the_relative_error(answer: str, gold: str, worth: float) -> None:
    assert scores.count(answer, gold) == pytest.approx(worth)


def test_iou() -> None:
    assert scores.iou((0, 0, 10, 10), (0, 0, 10, 10)) == 1
    assert scores.iou((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(1 / 3)
    assert scores.iou((0, 0, 10, 10), (10, 0, 20, 10)) == 0
    assert scores.iou((0, 0, 10, 10), (0, 0, 5, 5)) == pytest.approx(0.25)
    assert scores.iou((5, 5, 5, 5), (5, 5, 5, 5)) == 0  # of nothing, nothing is found


@pytest.mark.parametrize(
    "answer, worth",
    [
        ("0 0 10 10 ; 50 50 60 60", 1.0),
        ("50 50 60 60 ; 0 0 10 10", 1.0),  # in any order
        ("[[0, 0, 10, 10], [50, 50, 60, 60]]", 1.0),
        ("0 0 10 10", 2 * 1 / 3),  # one of two: precision 1, recall 1/2
        ("0 0 10 10 ; 50 50 60 60 ; 80 80 90 90", 2 * 2 / 5),
        ("5 0 15 10 ; 50 50 60 60", (1 / 3 + 1) / 2),
        ("0 0 10 10 ; 0 0 10 10", 2 * 1 / 4),  # a box is matched once
        ("0 0 10", 0.0),
        ("the box at 0 0 10 10", 0.0),
        ("", 0.0),
    ],
)
def test_locating_several_is_f1_of_the_best_matching(answer: str, worth: float) -> None:
    assert scores.locate(answer, [[0, 0, 10, 10], [50, 50, 60, 60]]) == pytest.approx(worth)


def test_the_matching_is_the_best_not_the_first() -> None:
    gold = [[0, 0, 10, 10], [4, 0, 14, 10]]
    found = [
        [2, 0, 12, 10],
        [0, 0, 10, 10],
    ]  # the first fits both equally; only the second gold box is left for it
    assert scores.soft_f1(found, gold) == pytest.approx((1 + 80 / 120) / 2)


def test_transcribing_is_one_minus_the_normalised_edit_distance() -> None:
    assert scores.transcribe("Kenya KES .ke", "kenya  kes .ke") == 1
    assert scores.transcribe("kitten", "sitting") == pytest.approx(1 - 3 / 7)
    assert scores.transcribe("", "abc") == 0
    assert scores.transcribe("abc", "") == 0
    assert scores.transcribe("a" * 5000, "a") == 0
    assert scores.listing("#1 7 #2 3 #3 5", "7 3 5") == 1
    assert scores.listing("7 4 5", "7 3 5") == pytest.approx(2 / 3)
    assert scores.listing("7 5", "7 3 5") == pytest.approx(2 / 3)


def test_abstaining_is_one_word() -> None:
    assert scores.abstains("Unknown.")
    assert scores.abstains("It cannot be read. Answer: unknown")
    assert not scores.abstains("unknown 7")
    assert not scores.abstains("")
