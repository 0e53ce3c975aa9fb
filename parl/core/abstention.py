"""Abstentions: on which questions an agent answered, and on which it said that it does not know.

An environment counts the questions of an episode with `tally` and leaves the counts in
`facts["calibration"]`; `rates` sums the counts of many episodes.

Example: a right answer, a wrong one to a question without an answer, and a right abstention
    tally([Question(True, "answer", 1.0), Question(False, "answer"), Question(False, "unknown")])
        == {"questions": 3, "unanswerable": 2, "answered": 2, "answered_right": 1.0,
            "abstained": 1, "abstained_right": 1}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

RATES = {
    "accuracy_answered": ("answered_right", "answered"),
    "abstention_precision": ("abstained_right", "abstained"),
    "abstention_recall": ("abstained_right", "unanswerable"),
}
"""Rate -> the two counts whose quotient it is."""


class Question(NamedTuple):
    """One question of a task (a cell of a table, say) and the final answer's reply to it."""

    answerable: bool
    """Whether the text that the agent could see holds the answer."""
    reply: Literal["answer", "unknown", "nothing"]
    """`unknown`: it abstained, by the word that the task has for it. `nothing`: it left the
    question out, which is no abstention."""
    right: float = 0.0
    """How right an answer is, 0..1. It counts for answerable questions only: no answer to another
    one is right."""


def tally(questions: Iterable[Question]) -> dict[str, float]:
    """Return counts over questions, for an environment's `facts()["calibration"]`."""
    all_questions = list(questions)
    answers = [question for question in all_questions if question.reply == "answer"]
    abstentions = [question for question in all_questions if question.reply == "unknown"]
    return {
        "questions": len(all_questions),
        "unanswerable": sum(not question.answerable for question in all_questions),
        "answered": len(answers),
        # An answer to a question without one cannot be right, whatever the environment says of it.
        "answered_right": sum(question.right for question in answers if question.answerable),
        "abstained": len(abstentions),
        "abstained_right": sum(not question.answerable for question in abstentions),
    }


def rates(counts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return rates over the summed counts of episodes, 0..1 each.

    `accuracy_answered` is the share of right ones among the answers, `abstention_precision` the
    share of abstentions on questions without an answer, `abstention_recall` the share of questions
    without an answer on which the agent abstained. A rate without a single case is left out.
    """
    tallies = list(counts)
    sums: dict[str, float] = {}
    for names in RATES.values():
        for name in names:
            sums[name] = sum(tally[name] for tally in tallies)
    shares = {}
    for rate, (part, total) in RATES.items():
        if sums[total]:
            shares[rate] = sums[part] / sums[total]
    return shares
