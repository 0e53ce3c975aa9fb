"""Test a reward term: its values on episodes written by hand, its registration, its knobs."""

from __future__ import annotations

import pytest
from brevity_reward import brevity

from parl import ConfigError, Episode, Task
from parl.config.reward import Reward
from parl.core.types import Clock
from parl.env import registry as plugins
from parl.rewards import scorer, terms


def make_episode(answer: str) -> Episode:
    return Episode(
        id="e",
        task=Task("t", "calc/Calc-v0", "What is 3 + 4?", {}),
        group="t",
        step=0,
        status="completed",
        answer=answer,
        outcome={"score": 1.0},
        facts={},
        traces=(),
        num_assigned=0,
        num_refused=0,
        clock=Clock(0.0, 0.0, ()),
    )


@pytest.mark.parametrize(
    "answer, value",
    [("", 0.0), ("  ", 0.0), ("x", 0.9), ("xxxxx", 0.5), ("x" * 10, 0.0), ("x" * 99, 0.0)],
)
def test_values(answer: str, value: float) -> None:
    assert brevity(make_episode(answer), limit=10) == pytest.approx(value)


def test_the_plugin_is_found() -> None:
    plugins.load()
    assert terms.get("brevity").roles == ("orchestrator",)


def test_knobs_are_checked_when_the_config_loads() -> None:
    plugins.load()
    right = Reward.model_validate({"terms": {"brevity": {"weight": 0.1, "limit": 50}}})
    scorer.validate(right)

    misspelt = Reward.model_validate({"terms": {"brevity": {"weight": 0.1, "limt": 50}}})
    with pytest.raises(ConfigError, match="Did you mean 'limit'"):
        scorer.validate(misspelt)
