"""Knowing what one does not know, as a term: answers, and abstentions on questions without an answer.

In: an `Episode` whose facts hold `calibration` (`parl.core.abstention.tally`). Out: 0..1, for the
orchestrator.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from parl.core.errors import ConfigError
from parl.core.types import Episode
from parl.rewards.terms import reward


@reward(outcome=True)
def calibration(
    episode: Episode,
    *,
    abstention: Annotated[float, Field(ge=0, le=1)] = 0.5,
    wrong: Annotated[float, Field(gt=0)] = 1.0,
) -> float:
    """Pays for right answers and right abstentions, and charges for wrong answers. 0..1.

    The mean over the questions of x = 1 for a right answer, `abstention` for a right abstention, 0
    for a needless one and -`wrong` for a wrong answer, taken to 0..1 by (x + wrong) / (1 + wrong).
    What is left out counts as wrong. Where an agent holds a question to have no answer with
    probability u, answering pays if its answer is right with more than (wrong + u abstention) / (1
    + wrong).

    Args:
        abstention: what a right abstention earns, 0..1.
        wrong: what a wrong answer costs.
    Raises:
        ConfigError: the environment does not count abstentions.
    """
    counts = episode.facts.get("calibration")
    if counts is None:
        raise ConfigError(
            f"reward.terms.calibration: {episode.task.env or 'the environment'} leaves no counts of abstentions in its "
            "facts. Remove the term, or let it ask questions without an answer (of parl/WideSearch-v0: "
            "env.kwargs.unanswerable)."
        )
    if not counts["questions"]:
        return 0.0
    right, abstained, honest = (
        counts["answered_right"],
        counts["abstained"],
        counts["abstained_right"],
    )
    earned = right * (1 + wrong) + honest * (abstention + wrong) + (abstained - honest) * wrong
    return float(earned / ((1 + wrong) * counts["questions"]))
