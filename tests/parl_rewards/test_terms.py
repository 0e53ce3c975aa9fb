"""The shipped reward terms, apart from those with a file of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from parl.core.abstention import Question, tally
from parl.core.errors import ConfigError
from parl.core.types import Episode
from parl.rewards import terms
from parl.rewards.terms import finished
from parl_rewards.calibration import calibration
from parl_rewards.outcome import outcome
from parl_rewards.parallelism import contradictions, critical_steps, finish, parallel, total_steps
from parl_rewards.tokens import overlong, tokens
from tests.support.factories import make_episode, make_trace


def swarm(refused: int = 0, facts: Mapping[str, Any] | None = None) -> Episode:
    kids = [
        make_trace("1", 4),
        make_trace("2", 4, status="truncated"),
        make_trace("3", 4, result=" "),
        make_trace("4", 4, score=0.25),
    ]
    return make_episode(0.6, 10, kids, num_refused=refused, facts=facts)


def test_finished_is_what_the_episode_counts() -> None:
    e = swarm()
    assert [finished(t) for t in e.subagents] == [True, False, False, True]
    assert e.num_finished == 2


def test_outcomes_reach_both_roles() -> None:
    e = swarm()
    assert outcome(e) == pytest.approx({"0": 0.6, "1": 0.8, "2": 0.3, "3": 0.3, "4": 0.25})
    assert outcome(e, metric="item_f1")["0"] == 0.3
    with pytest.raises(ConfigError, match="Did you mean 'item_f1'"):
        outcome(e, metric="item_f")


def test_parallelism_terms() -> None:
    e = swarm(refused=3, facts={"num_parts": 5})
    assert parallel(e) == 4 / 8
    assert parallel(e, cap=3) == 1.0
    assert parallel(e, cap=3, count="raw") == 7 / 3
    assert parallel(e, form="parts") == 4 / 5
    assert parallel(swarm(facts={"num_parts": 2}), form="parts") == 1.0
    assert finish(e) == 0.5
    assert finish(make_episode()) == 0.0
    assert critical_steps(e) == -2 / 100
    assert total_steps(e, per=10) == -0.5
    with pytest.raises(ConfigError, match="form: cap"):
        parallel(swarm(), form="parts")


def test_contradictions_cost() -> None:
    found = [contradictions(swarm(facts={"contradictions": ["a"] * n})) for n in (0, 1, 4, 9)]
    assert found == [0.0, -0.25, -1.0, -1.0]
    assert contradictions(swarm(facts={"contradictions": ["a"]}), per=2) == -0.5
    with pytest.raises(
        ConfigError, match="parl/Test-v0 does not say what messages of subagents state"
    ):
        contradictions(swarm())


RIGHT, WRONG, OUT = (
    Question(True, "answer", 1.0),
    Question(True, "answer"),
    Question(True, "nothing"),
)
HONEST, NEEDLESS, INVENTED = (
    Question(False, "unknown"),
    Question(True, "unknown"),
    Question(False, "answer"),
)


@pytest.mark.parametrize(
    "questions, knobs, value",
    [
        # by default x = 1, -1, 0.5, 0 and the term is the mean of (x + 1) / 2
        ([RIGHT], {}, 1.0),
        ([WRONG], {}, 0.0),
        ([INVENTED], {}, 0.0),
        ([HONEST], {}, 0.75),
        ([NEEDLESS], {}, 0.5),
        ([OUT], {}, 0.0),
        ([RIGHT, WRONG, HONEST, NEEDLESS, OUT], {}, (1 + 0 + 0.75 + 0.5 + 0) / 5),
        ([Question(True, "answer", 0.25), HONEST], {}, (0.25 + 0.75) / 2),
        # x = 1, -3, 1, 0 and (x + 3) / 4
        (
            [RIGHT, WRONG, HONEST, NEEDLESS],
            {"abstention": 1.0, "wrong": 3.0},
            (1 + 0 + 1 + 0.75) / 4,
        ),
        ([], {}, 0.0),
    ],
)
def test_calibration_pays_for_answers_and_honest_abstentions(
    questions: list[Question], knobs: dict[str, float], value: float
) -> None:
    assert calibration(
        make_episode(facts={"calibration": tally(questions)}), **knobs
    ) == pytest.approx(value)


def test_the_laziest_policies_earn_less_than_an_honest_one() -> None:
    """One of four questions has no answer. To abstain always, or to guess, or to say nothing, is not the best."""

    def term(*questions: Question) -> float:
        return calibration(make_episode(facts={"calibration": tally(questions)}))

    honest = term(RIGHT, RIGHT, RIGHT, HONEST)
    assert honest > term(RIGHT, RIGHT, RIGHT, INVENTED) > term(NEEDLESS, NEEDLESS, NEEDLESS, HONEST)
    assert term(WRONG, WRONG, WRONG, INVENTED) == term(OUT, OUT, OUT, OUT) == 0.0


def test_calibration_needs_an_environment_that_counts() -> None:
    with pytest.raises(
        ConfigError,
        match=r"parl/Test-v0 leaves no counts of abstentions.*env\.kwargs\.unanswerable",
    ):
        calibration(make_episode())


def test_token_terms() -> None:
    e = swarm()  # 10 tokens of the orchestrator, 4 x 4 of its subagents
    assert tokens(e) == -0.01
    assert tokens(e, tree=True) == -0.026
    ramp = [
        overlong(make_episode(tokens=n), max_tokens=100, ramp=40) for n in (60, 70, 90, 100, 500)
    ]
    assert ramp == [0.0, -0.25, -0.75, -1.0, -1.0]
    assert overlong(e, max_tokens=26, ramp=13, tree=True) == -1.0


def test_the_shipped_terms_are_registered_with_their_roles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the real registry
    shipped = {
        n: t
        for n, t in terms.registered().items()
        if t.function.__module__.startswith("parl_rewards.")
    }
    assert set(shipped) >= {
        *("outcome", "parallel", "finish", "critical_steps", "total_steps", "contradictions"),
        *("tokens", "overlong", "judge", "calibration"),
    }
    assert {n for n, t in shipped.items() if "subagent" in t.roles} == {"outcome"}
    assert {n for n, t in shipped.items() if t.outcome} == {"outcome", "judge", "calibration"}
