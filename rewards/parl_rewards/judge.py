"""The verdicts of a judge as a term. The environment asks the judge (`parl.env.judge`); this only reads what it left.

In: an `Episode` whose facts hold verdicts. Out: 0..1, for the orchestrator.
"""

from __future__ import annotations

from statistics import fmean

from parl.core.errors import ConfigError, did_you_mean
from parl.core.types import Episode
from parl.rewards.terms import reward


@reward(outcome=True)
def judge(episode: Episode, *, rubric: str | None = None) -> float:
    """The judge's score of the final answer: of one rubric, or the mean over all of them (Kimi K2.5, section 4.4.2).

    Args:
        rubric: name of the rubric; null = the mean.
    Raises:
        ConfigError: the environment has no judge, or the judge no such rubric.
    """
    verdicts = episode.facts.get("judge")
    if not verdicts:
        raise ConfigError(
            f"reward.terms.judge: {episode.task.env or 'the environment'} leaves no verdicts of a judge in its facts. "
            "Remove the term, or see docs/how-to/use-a-judge.md."
        )
    if rubric is None:
        return fmean(v["score"] for v in verdicts.values())
    if rubric not in verdicts:
        raise ConfigError(
            f"reward.terms.judge.rubric: there is no '{rubric}'.{did_you_mean(rubric, verdicts)}"
        )
    return float(verdicts[rubric]["score"])
