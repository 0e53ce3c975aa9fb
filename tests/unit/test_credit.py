"""Advantages and loss weights per role."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from parl.config.objective import Credit
from parl.config.phases import Phase
from parl.config.schema import RoleConfig, Roles
from parl.credit import assign, token_mass
from parl.types import AgentTrace, Clock, Episode, RewardBreakdown, Sample, ScoredEpisode, Status, Task, Turn

TASK = Task("t", "parl/Test-v0", "prompt", {})
BOTH = Roles()


def trace(agent: str, tokens: int = 2, status: Status = "completed", policy: str = "main") -> AgentTrace:
    """One turn of `tokens` generated tokens after a prompt of one."""
    child = agent != "0"
    return AgentTrace(
        id=agent,
        role="subagent" if child else "orchestrator",
        parent="0" if child else None,
        spawned_at=0 if child else None,
        name=agent,
        prompt="p",
        policy=policy,
        turns=(Turn("x", (), (), 1, 1 + tokens, policy_versions=(7,)),),
        status=status,
        stop_reason="answer",
        result="x",
        token_ids=(5,) * (1 + tokens),
        mask=(0,) + (1,) * tokens,
        logprobs=(0.0,) + (-1.0,) * tokens,
    )


def scored(
    name: str, reward: float, children: Sequence[float | None] = (), status: Status = "completed"
) -> ScoredEpisode:
    """An episode by its rewards; a child that is None has failed."""
    kids = [trace(str(i + 1), status="failed" if r is None else "completed") for i, r in enumerate(children)]
    traces = (trace("0", tokens=3, status=status), *kids)
    values = {"0": reward} | {str(i + 1): r or 0.0 for i, r in enumerate(children)}
    rewards = {k: RewardBreakdown({"outcome": v}, {"outcome": 1.0}) for k, v in values.items()}
    episode = Episode(name, TASK, "g", 0, status, "a", {}, {}, traces, len(kids), 0, Clock(0.0, 0.0, ()), None)
    return ScoredEpisode(episode, rewards)


def advantages(samples: Sequence[Sample]) -> dict[tuple[str, str], float]:
    return {(s.episode, s.agent): s.advantage for s in samples}


def test_orchestrators_are_compared_with_their_group_only() -> None:
    first = [scored("a", 1.0), scored("b", 0.0)]
    second = [scored("c", 5.0), scored("d", 3.0)]
    got = advantages(assign([first, second], Credit(), BOTH, 0))
    assert got == {("a", "0"): 0.5, ("b", "0"): -0.5, ("c", "0"): 1.0, ("d", "0"): -1.0}


def test_a_failed_episode_is_in_no_mean_and_no_sample() -> None:
    group = [scored("a", 1.0), scored("b", 0.5), scored("x", 0.0, [0.0], status="failed")]
    got = advantages(assign([group], Credit(), BOTH, 0))
    assert got == {("a", "0"): 0.25, ("b", "0"): -0.25}


def test_a_truncated_episode_is_trained() -> None:
    group = [scored("a", 1.0), scored("b", 0.0, status="truncated")]
    assert advantages(assign([group], Credit(), BOTH, 0))["b", "0"] == -0.5


def test_a_wide_episode_does_not_set_the_subagents_baseline() -> None:
    group = [scored("wide", 0.0, [1.0] * 9), scored("narrow", 0.0, [0.0]), scored("serial", 0.0)]
    got = advantages(assign([group], Credit(), BOTH, 0))
    assert got["wide", "3"] == 0.5  # against .1 with a mean over all ten subagents
    assert got["narrow", "1"] == -0.5


def test_subagents_compared_within_their_episode() -> None:
    group = [scored("a", 0.0, [1.0, 0.5]), scored("b", 0.0, [0.0, 0.0])]
    got = advantages(assign([group], Credit(subagent_group="episode"), BOTH, 0))
    assert got == {("a", "1"): 0.25, ("a", "2"): -0.25}


def test_a_failed_child_is_left_out_and_not_counted() -> None:
    group = [scored("a", 0.0, [1.0, 0.5, None]), scored("b", 0.0, [0.0])]
    samples = assign([group], Credit(), BOTH, 0)
    assert advantages(samples) == {("a", "1"): 0.625, ("a", "2"): 0.125, ("b", "1"): -0.375}
    assert {s.weight for s in samples if s.episode == "a"} == {0.5}


def test_normalised_by_the_deviation_within_role() -> None:
    group = [scored("a", 1.0, [3.0, 1.0]), scored("b", 0.0, [0.0])]
    got = advantages(assign([group], Credit(normalize_std=True, std_floor=0.05), BOTH, 0))
    assert got["a", "0"] == pytest.approx(0.5 / 0.55)
    # subagents: mean (2 + 0)/2 = 1, variance ((4 + 0)/2 + 1)/2 = 1.5
    assert got["a", "1"] == pytest.approx(2.0 / (math.sqrt(1.5) + 0.05))
    assert got["b", "1"] == pytest.approx(-1.0 / (math.sqrt(1.5) + 0.05))


def test_width_adds_no_gradient_mass() -> None:
    group = [scored("wide", 1.0, [1.0] * 8), scored("narrow", 0.0, [0.0])]
    samples = assign([group], Credit(), BOTH, 0)
    mass = {
        name: sum(s.weight * sum(s.mask) for s in samples if s.episode == name and s.role == "subagent")
        for name in ("wide", "narrow")
    }
    assert mass == {"wide": 2.0, "narrow": 2.0}
    assert all(s.weight == 1.0 for s in samples if s.role == "orchestrator")


def test_a_frozen_role_gives_no_samples_until_its_phase() -> None:
    schedule = (Phase(until=10, value=False), Phase(value=True))
    roles = Roles(subagent=RoleConfig(trainable=schedule))
    group = [scored("a", 1.0, [1.0]), scored("b", 0.0, [0.0])]
    assert {s.role for s in assign([group], Credit(), roles, 9)} == {"orchestrator"}
    assert {s.role for s in assign([group], Credit(), roles, 10)} == {"orchestrator", "subagent"}
    assert token_mass([group], roles, 9) == [{"main": 6.0}]


def test_equal_rewards_give_no_samples_but_count_in_the_denominator() -> None:
    group = [scored("a", 0.3, [0.1, 0.1]), scored("b", 0.3, [0.1])]
    assert assign([group], Credit(), BOTH, 0) == []
    assert token_mass([group], BOTH, 0) == [{"main": 3 + 3 + (2 + 2) / 2 + 2}]


def test_a_sample_is_its_trace() -> None:
    sample = assign([[scored("a", 1.0), scored("b", 0.0)]], Credit(), BOTH, 0)[0]
    assert sample == Sample(
        episode="a",
        agent="0",
        role="orchestrator",
        policy="main",
        token_ids=(5, 5, 5, 5),
        mask=(0, 1, 1, 1),
        logprobs=(0.0, -1.0, -1.0, -1.0),
        advantage=0.5,
        weight=1.0,
        policy_versions=(7,),
    )


def test_nothing_in_nothing_out() -> None:
    assert assign([[], [scored("x", 0.0, status="failed")]], Credit(), BOTH, 0) == []
    assert token_mass([[]], BOTH, 0) == [{}]
