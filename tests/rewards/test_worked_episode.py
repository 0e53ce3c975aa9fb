"""The golden test: one group followed by hand from traces to critical steps, rewards, advantages and the loss.

Episode A          turn 0          turn 1     turn 2      A's orchestrator: 3 turns
                   |- 1: 2 turns   |- 3: 3    answer      critical steps 3 + max(2, 4) + 3 = 10
                   `- 2: 4 turns (truncated)              total steps 3 + 2 + 4 + 3 = 12
Episode B          answers at once
Episode C          turn 0 launches one subagent of 1 turn, turn 1 answers
Episode D          failed: no part in anything
"""

from __future__ import annotations

from typing import Any

import pytest

import parl_rewards  # noqa: F401  (registers the terms)
from parl.config.credit import Credit
from parl.config.reward import Reward, Schedule, Term
from parl.config.roles import Roles
from parl.core.types import AgentTrace, Episode, Sample, ScoredEpisode, Status
from parl.rewards.credit import assign, token_mass
from parl.rewards.scorer import Scorer
from tests.support.factories import make_episode, make_trace

STEP = 5
REWARD = Reward(
    terms={
        "outcome": Term(weight=1.0),
        "parallel": Term(weight=Schedule(start=0.5, end=0.0, to_step=10), cap=4),  # .25 at step 5
        "finish": Term(weight=Schedule(start=0.4, end=0.0, to_step=20)),  # .3 at step 5
    }
)


def agent(
    agent_id: str,
    num_turns: int,
    spawned_at: int = 0,
    status: Status = "completed",
    score: float | None = None,
) -> AgentTrace:
    """Prompt of 1 token, turns of 2 tokens, observations of 1 token."""
    return make_trace(
        agent_id,
        num_turns=num_turns,
        spawned_at=spawned_at,
        status=status,
        score=score,
        result="found" if status == "completed" else "",
        version=STEP,
    )


def episode(name: str, score: float, orchestrator: AgentTrace, *subagents: AgentTrace) -> Episode:
    return make_episode(
        score,
        orchestrator=orchestrator,
        subagents=subagents,
        name=name,
        step=STEP,
        status=orchestrator.status,
    )


A = episode(
    "A",
    0.8,
    agent("0", 3),
    agent("1", 2, score=1.0),
    agent("2", 4, status="truncated"),
    agent("3", 3, spawned_at=1),
)
B = episode("B", 0.5, agent("0", 1))
C = episode("C", 0.6, agent("0", 2), agent("1", 1))
D = episode("D", 0.0, agent("0", 0, status="failed"))


def score() -> list[ScoredEpisode]:
    return Scorer(REWARD).score([A, B, C, D], STEP, {})[0]


def samples() -> list[Sample]:
    return assign([score()], Credit(), Roles(), STEP)


def test_steps() -> None:
    assert (A.critical_steps, A.total_steps) == (10, 12)
    assert (B.critical_steps, B.total_steps) == (1, 1)
    assert (C.critical_steps, C.total_steps) == (3, 3)


def test_rewards() -> None:
    rewards = {s.episode.id: s.rewards for s in score()}
    assert sorted(rewards) == ["A", "B", "C"]
    assert rewards["A"]["0"].terms == {"outcome": 0.8, "parallel": 3 / 4, "finish": 2 / 3}
    assert rewards["A"]["0"].weights == pytest.approx(
        {"outcome": 1.0, "parallel": 0.25, "finish": 0.3}
    )
    totals = {(e, a): b.total for e, agents in rewards.items() for a, b in agents.items()}
    assert totals == pytest.approx(
        {
            ("A", "0"): 0.8 + 0.1875 + 0.2,
            ("A", "1"): 1.0,  # the environment's own subtask score
            ("A", "2"): 0.4,  # half of .8; truncated, so not valid
            ("A", "3"): 0.9,  # half of .8, and valid
            ("B", "0"): 0.5,
            ("C", "0"): 0.6 + 0.0625 + 0.3,
            ("C", "1"): 0.8,
        }
    )


def test_advantages_and_weights() -> None:
    # orchestrators: mean (1.1875 + .5 + .9625)/3 = 2.65/3
    # subagents: mean of episode means (2.3/3 + .8)/2 = 4.7/6
    got = {(s.episode, s.agent): (s.advantage, s.weight) for s in samples()}
    expected: dict[tuple[str, str], Any] = {
        ("A", "0"): (pytest.approx(0.9125 / 3), 1.0),
        ("A", "1"): (pytest.approx(1.3 / 6), 1 / 3),
        ("A", "2"): (pytest.approx(-2.3 / 6), 1 / 3),
        ("A", "3"): (pytest.approx(0.7 / 6), 1 / 3),
        ("B", "0"): (pytest.approx(-1.15 / 3), 1.0),
        ("C", "0"): (pytest.approx(0.2375 / 3), 1.0),
        ("C", "1"): (pytest.approx(0.1 / 6), 1.0),
    }
    assert got == expected


def test_advantages_by_the_other_rules() -> None:
    """Orchestrators .9125/3, -1.15/3, .2375/3 and subagents 1.3/6, -2.3/6, .7/6, .1/6 as above.

    role_normalized: orchestrators' variance ((.9125/3)^2 + (1.15/3)^2 + (.2375/3)^2)/3; subagents' mean 3.1/4 = .775,
    variance (.225^2 + .375^2 + .125^2 + .025^2)/4 = .051875. per_turn: A's turn 0 of 3 returns .25 * 1.1875, B's 1 of
    1 all of .5, C's 1 of 2 half of .9625. All tokens are alike here, so A's turn 1 (half of 1.1875) and C's (all of
    .9625) are taken in one state, too; A's turn 2 is alone.
    """

    def by_rule(**knobs: Any) -> dict[tuple[str, str], tuple[float, ...]]:
        made = assign([score()], Credit(**knobs), Roles(), STEP)
        return {
            (s.episode, s.agent): tuple(a for a, m in zip(s.advantages, s.mask, strict=True) if m)
            for s in made
        }

    whole = by_rule(type="trajectory")
    assert whole["A", "2"] == pytest.approx([0.9125 / 3] * 8)
    assert whole["C", "1"] == pytest.approx([0.2375 / 3] * 2)
    mixed = by_rule(type="hierarchical", episode_share=0.3)
    assert mixed["A", "2"] == pytest.approx([-2.3 / 6 + 0.3 * 0.9125 / 3] * 8)
    role = by_rule(type="role_normalized", std_floor=0.1)
    spread = ((0.9125**2 + 1.15**2 + 0.2375**2) / 27) ** 0.5
    assert role["B", "0"] == pytest.approx([-1.15 / 3 / (spread + 0.1)] * 2)
    assert role["A", "2"] == pytest.approx([-0.375 / (0.051875**0.5 + 0.1)] * 8)
    turns = by_rule(type="per_turn", discount=0.5, turn_weight=1.0)
    mean = (0.25 * 1.1875 + 0.5 + 0.5 * 0.9625) / 3
    second = (0.5 * 1.1875 + 0.9625) / 2
    a, c = 0.9125 / 3, 0.2375 / 3
    assert turns["A", "0"] == pytest.approx(
        [a + 0.25 * 1.1875 - mean] * 2 + [a + 0.5 * 1.1875 - second] * 2 + [a] * 2
    )
    assert turns["B", "0"] == pytest.approx([-1.15 / 3 + 0.5 - mean] * 2)
    assert turns["C", "0"] == pytest.approx(
        [c + 0.5 * 0.9625 - mean] * 2 + [c + 0.9625 - second] * 2
    )


def test_loss() -> None:
    """Off-policy on A's orchestrator only: log-ratios 0, .1, .6, -.7, .2, 0 of which .6 and -.7 are clipped.

    A's orchestrator  .9125/3 (2 + e^.1 + e^.5 + e^-.5 + e^.2) - .1 (.01 + .36 + .49 + .04)   =  1.911972
    A's subagents     1/3 (4 * 1.3/6 - 8 * 2.3/6 + 6 * .7/6)                                  =  -.5
    B                 2 * -1.15/3                                                             =  -.766667
    C                 4 * .2375/3 + 2 * .1/6                                                  =   .35
    N                 (6 + 2 + 4) orchestrators' + (4 + 8 + 6)/3 + 2 subagents'               =  20
    """
    torch = pytest.importorskip("torch")
    from parl.learner.loss import kimi_k2_5

    norm = token_mass([score()], Roles(), STEP)[0]["main"]
    assert norm == 20.0
    total = 0.0
    for sample in samples():
        old = torch.tensor(sample.logprobs)
        logp = old.clone()
        if (sample.episode, sample.agent) == ("A", "0"):
            logp[torch.tensor(sample.mask).bool()] += torch.tensor([0.0, 0.1, 0.6, -0.7, 0.2, 0.0])
        loss, _ = kimi_k2_5(
            logp,
            old,
            torch.full_like(old, sample.advantage),
            torch.tensor(sample.mask),
            alpha=-0.5,
            beta=0.5,
            tau=0.1,
            weights=torch.full_like(old, sample.weight),
            denominator=norm,
        )
        total += loss.item()
    assert total == pytest.approx(-0.0497653, abs=1e-6)
