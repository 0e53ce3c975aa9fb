"""The effort budget: beyond tau * b0(x) tokens of the whole tree, the outcome counts -1."""

from __future__ import annotations

from typing import Any

import pytest

from parl.config.reward import EffortBudget, Modifiers, Reward, Schedule, Term, Toggle
from parl.core.errors import ConfigError
from parl.core.types import Episode
from parl.rewards.scorer import Scorer, validate
from parl_rewards import outcome, parallelism  # noqa: F401  (registers the terms)
from tests.support.factories import make_config, make_episode, make_trace

TERMS = {"outcome": Term(weight=2.0), "parallel": Term(weight=0.5, cap=4)}
FALLING = Schedule(start=2.0, end=1.0, from_step=2, to_step=6)


def scorer(toggle: Toggle | None = None, **knobs: Any) -> Scorer:
    effort = EffortBudget(**{"tau": FALLING, "start_step": 2, **knobs})
    return Scorer(Reward(terms=TERMS, modifiers=Modifiers(effort_budget=effort, toggle=toggle)))


def episode(tokens: int, score: float = 1.0, subagent_tokens: tuple[int, ...] = ()) -> Episode:
    """An episode by the tokens of its agents; each subagent scores 0.75."""
    subagents = [make_trace(str(i), n, score=0.75) for i, n in enumerate(subagent_tokens, 1)]
    return make_episode(score, tokens, subagents)


def totals(
    scorer: Scorer, group: list[Episode], step: int, budgets: dict[str, float]
) -> list[float]:
    return [s.rewards["0"].total for s in scorer.score(group, step, budgets)[0]]


def test_an_episode_over_the_annealed_budget_counts_minus_one() -> None:
    """tau is 2 at step 2, 1.5 at step 4 and 1 from step 6 on; b0 = 40."""
    group = [episode(30), episode(50), episode(70), episode(90)]
    by_step = {step: totals(scorer(), group, step, {"t/effort": 40.0}) for step in (1, 2, 4, 6, 60)}
    assert by_step == {
        1: [2.0, 2.0, 2.0, 2.0],  # before start_step
        2: [2.0, 2.0, 2.0, -1.0],
        4: [2.0, 2.0, -1.0, -1.0],
        6: [2.0, -1.0, -1.0, -1.0],
        60: [2.0, -1.0, -1.0, -1.0],
    }


def test_exactly_the_budget_is_within_it() -> None:
    assert totals(scorer(tau=1.0), [episode(40), episode(41)], 2, {"t/effort": 40.0}) == [2.0, -1.0]


def test_the_whole_tree_counts_and_answers_for_it_and_shaping_stays() -> None:
    (scored,), _ = scorer(tau=1.0).score(
        [episode(20, subagent_tokens=(15, 6))], 2, {"t/effort": 40.0}
    )  # 41 tokens
    root = scored.rewards["0"]
    assert root.terms == {"outcome": 1.0, "parallel": 0.5, "effort_budget": -1.0}
    assert root.factors == {"outcome": 0.0}
    assert root.total == pytest.approx(-1.0 + 0.5 * 0.5)
    assert [scored.rewards[a].total for a in "12"] == [-1.0, -1.0]
    (within,), _ = scorer(tau=1.0).score(
        [episode(20, subagent_tokens=(14, 6))], 2, {"t/effort": 40.0}
    )
    assert [within.rewards[a].total for a in "012"] == pytest.approx([2.0 + 0.25, 1.5, 1.5])
    assert within.rewards["0"].terms["effort_budget"] == 0.0


def test_b0_is_taken_once_from_correct_responses() -> None:
    group = [episode(n) for n in (10, 20, 30)] + [
        episode(5, subagent_tokens=(35,)),
        episode(1, score=0.9),
    ]
    who = scorer(tau=1.0, percentile=0.5)
    assert who.score(group, 1, {})[1] == {}
    assert who.score(group[:1], 2, {})[1] == {}  # one correct response is too few
    scored, budgets = who.score(group, 2, {})
    assert budgets == {"t/effort": 25.0}  # the median of 10, 20, 30 and 40
    assert [s.rewards["0"].terms["effort_budget"] for s in scored] == [0.0, 0.0, -1.0, -1.0, 0.0]
    assert who.score([episode(3), episode(3)], 3, budgets)[1] == budgets


def test_a_task_without_a_budget_is_left_as_it_is() -> None:
    assert totals(scorer(tau=1.0), [episode(9, 0.5), episode(99, 0.5)], 2, {"u/effort": 1.0}) == [
        1.0,
        1.0,
    ]


def test_beside_toggle_each_has_its_own_budget() -> None:
    toggle = Toggle(period=1, accuracy_threshold=0.5, start_step=0)
    group = [episode(10), episode(30)]
    scored, budgets = scorer(toggle, tau=1.2).score(group, 2, {})
    assert budgets == {"t": 20.0, "t/effort": 20.0}
    assert [s.rewards["0"].total for s in scored] == [2.0, -1.0]
    given = {"t": 20.0, "t/effort": 99.0}
    assert [s.rewards["0"].total for s in scorer(toggle, tau=1.2).score(group, 2, given)[0]] == [
        2.0,
        0.0,
    ]


@pytest.mark.parametrize(
    "terms, effort, message",
    [
        (
            {"parallel": {}},
            {},
            "reward.modifiers.effort_budget gates on the outcome.*Add one of: .*outcome",
        ),
        ({"outcome": {}}, {"tau": {"start": 1.0, "to_step": 9}}, "give a start and an end above 0"),
        ({"outcome": {}}, {"tau": 0}, "greater than 0"),
    ],
)
def test_a_wrong_config_is_refused(
    terms: dict[str, Any], effort: dict[str, Any], message: str
) -> None:
    reward = {"terms": terms, "modifiers": {"effort_budget": effort}}
    with pytest.raises(ConfigError, match=message):
        validate(make_config(reward=reward).reward)
