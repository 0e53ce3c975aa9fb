"""Knowing what one does not know: questions that were answered, and questions on which the agent abstained.

In: what came of each question of an episode. Out: counts, which an environment leaves in `facts["calibration"]`, and
the rates over the counts of many episodes.

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
"""Each rate is one count over another."""


class Question(NamedTuple):
    """One question of a task (a cell of a table, say) and what the final answer says to it."""

    answerable: bool
    """What the agent could see holds the answer."""
    said: Literal["answer", "unknown", "nothing"]
    """`unknown`: it abstained, by the word that the task has for it. `nothing`: left out, which is no abstention."""
    right: float = 0.0
    """How right an answer is, 0..1. Read only of answers to answerable questions: no other answer is right."""


def tally(questions: Iterable[Question]) -> dict[str, float]:
    """Counts over questions; an environment returns them in its `facts()`, under `calibration`."""
    asked = list(questions)
    answers = [q for q in asked if q.said == "answer"]
    abstentions = [q for q in asked if q.said == "unknown"]
    return {
        "questions": len(asked),
        "unanswerable": sum(not q.answerable for q in asked),
        "answered": len(answers),
        "answered_right": sum(q.right for q in answers if q.answerable),
        "abstained": len(abstentions),
        "abstained_right": sum(not q.answerable for q in abstentions),
    }


def rates(counts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Rates over the summed counts of episodes, each 0..1; one without a single case is left out.

    `accuracy_answered`: of what was answered, the share that is right. `abstention_precision`: of the abstentions, the
    share on questions without an answer. `abstention_recall`: of the questions without an answer, the share on which
    the agent abstained.
    """
    tallies = list(counts)
    sums = {key: sum(tally[key] for tally in tallies) for pair in RATES.values() for key in pair}
    return {name: sums[part] / sums[whole] for name, (part, whole) in RATES.items() if sums[whole]}
