"""A term for knowing what one does not know: answers, and abstentions where there is no answer.

It reads `calibration` of an episode's facts (`parl.core.abstention.tally`).
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
    """Pay for right answers and right abstentions, charge for wrong answers. 0..1.

    The mean over the questions of x = 1 for a right answer, `abstention` for a right abstention, 0
    for a needless one and -`wrong` for a wrong answer, mapped to 0..1 by (x + wrong) / (1 + wrong).
    A question that is left out counts as wrong.

    For an agent that believes with probability u that a question has no answer, answering pays if
    its answer is right with a probability above (wrong + u abstention) / (1 + wrong).

    Args:
        abstention: what a right abstention earns, 0..1.
        wrong: what a wrong answer costs.
    Raises:
        ConfigError: the environment does not count abstentions.
    """
    # Facts, not the score: 0 there may be a wrong answer or an abstention.
    counts = episode.facts.get("calibration")
    if counts is None:
        raise ConfigError(
            f"reward.terms.calibration: {episode.task.env or 'the environment'} leaves no counts "
            "of abstentions in its facts. Remove the term, or let it ask questions without an "
            "answer (of parl/WideSearch-v0: env.kwargs.unanswerable)."
        )
    if not counts["questions"]:
        return 0.0
    num_right = counts["answered_right"]
    num_honest = counts["abstained_right"]
    num_needless = counts["abstained"] - num_honest
    # Each question's x + wrong; for a wrong answer that is 0.
    earned = num_right * (1 + wrong) + num_honest * (abstention + wrong) + num_needless * wrong
    return float(earned / ((1 + wrong) * counts["questions"]))
