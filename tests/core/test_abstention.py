"""Counts and rates of answers and abstentions."""

from __future__ import annotations

import pytest

from parl.core.abstention import Question, rates, tally

RIGHT = Question(True, "answer", 1.0)
WRONG = Question(True, "answer", 0.0)
INVENTED = Question(False, "answer", 1.0)  # nothing that is said to it can be right
NEEDLESS = Question(True, "unknown")
HONEST = Question(False, "unknown", 1.0)
LEFT_OUT = Question(False, "nothing", 1.0)


def test_counts() -> None:
    counts = tally([RIGHT, RIGHT, WRONG, INVENTED, NEEDLESS, HONEST, HONEST, LEFT_OUT])
    assert counts == {
        "questions": 8,
        "unanswerable": 4,
        "answered": 4,
        "answered_right": 2,
        "abstained": 3,
        "abstained_right": 2,
    }
    assert tally([]) == dict.fromkeys(counts, 0)


def test_a_graded_answer_counts_as_much_as_it_is_right() -> None:
    assert tally([Question(True, "answer", 0.25), RIGHT])["answered_right"] == 1.25


def test_rates_are_over_the_questions_of_all_episodes() -> None:
    """Not means of the episodes' rates: 1 of 1 and 1 of 3 answers are 2 of 4."""
    got = rates([tally([RIGHT, HONEST]), tally([RIGHT, WRONG, INVENTED, NEEDLESS, LEFT_OUT])])
    assert got == pytest.approx(
        {"accuracy_answered": 2 / 4, "abstention_precision": 1 / 2, "abstention_recall": 1 / 3}
    )


@pytest.mark.parametrize(
    "questions, named",
    [
        ([], set()),
        ([RIGHT], {"accuracy_answered"}),
        ([NEEDLESS], {"abstention_precision"}),
        ([LEFT_OUT], {"abstention_recall"}),
        ([INVENTED], {"accuracy_answered", "abstention_recall"}),
    ],
)
def test_a_rate_without_a_case_is_left_out(questions: list[Question], named: set[str]) -> None:
    assert set(rates([tally(questions)])) == named
