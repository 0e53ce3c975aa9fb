"""The verdicts of a judge as a term.

The environment asks the judge (`parl.env.judge`) and leaves the verdicts in the episode's facts. A
term only reads them: it is pure, so that stored episodes can be scored again without a judge.
"""

from __future__ import annotations

from statistics import fmean

from parl.core.errors import ConfigError, did_you_mean
from parl.core.types import Episode
from parl.rewards.terms import reward


@reward(outcome=True)
def judge(episode: Episode, *, rubric: str | None = None) -> float:
    """Return the judge's score of the final answer (Kimi K2.5, section 4.4.2). 0..1.

    Args:
        rubric: name of the rubric; null = the mean over all of them.
    Raises:
        ConfigError: the environment has no judge, or the judge no such rubric.
    """
    # An episode whose judge failed is a failed episode, so verdicts here are complete.
    verdicts = episode.facts.get("judge")
    if not verdicts:
        raise ConfigError(
            f"reward.terms.judge: {episode.task.env or 'the environment'} leaves no verdicts of a "
            "judge in its facts. Remove the term, or see docs/how-to/use-a-judge.md."
        )
    if rubric is None:
        return fmean(verdict["score"] for verdict in verdicts.values())
    if rubric not in verdicts:
        raise ConfigError(
            f"reward.terms.judge.rubric: there is no '{rubric}'.{did_you_mean(rubric, verdicts)}"
        )
    return float(verdicts[rubric]["score"])
