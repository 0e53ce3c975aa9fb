"""Factories of what tests need many of: configs, traces, episodes, rewards and samples, made without a run.

Everything has a default, so a test names only the values that it is about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from parl.config import Config, parse
from parl.core.types import (
    AgentTrace,
    Clock,
    Episode,
    RewardBreakdown,
    Role,
    Sample,
    ScoredEpisode,
    Status,
    Task,
    Turn,
)


def make_config(env: str = "x", **sections: Any) -> Config:
    """A config with the given sections; the environment is only a name."""
    return parse({"name": "r", "env": {"id": env}, **sections})


def make_trace(
    agent: str = "0",
    tokens: int = 2,
    *,
    num_turns: int = 1,
    spawned_at: int = 0,
    status: Status = "completed",
    score: float | None = None,
    policy: str = "main",
    result: str = "x",
    version: int = 0,
) -> AgentTrace:
    """A trace whose ids are all 5: a prompt of one token, turns of `tokens`, observations of one token.

    Args:
        agent: "0" is the orchestrator, every other id a subagent of it.
        tokens: tokens that each turn generates, with log-prob -1.
        spawned_at: the orchestrator's turn that started a subagent.
    """
    is_subagent = agent != "0"
    mask = [0]
    turns = []
    for i in range(num_turns):
        if i > 0:
            mask.append(0)  # the observation that ended the turn before
        start = len(mask)
        mask += [1] * tokens
        turns.append(Turn("x", (), (), start, len(mask), policy_versions=(version,)))
    return AgentTrace(
        id=agent,
        role="subagent" if is_subagent else "orchestrator",
        parent="0" if is_subagent else None,
        spawned_at=spawned_at if is_subagent else None,
        name=agent,
        prompt="p",
        policy=policy,
        turns=tuple(turns),
        status=status,
        stop_reason="answer",
        result=result,
        token_ids=(5,) * len(mask),
        mask=tuple(mask),
        logprobs=tuple(-1.0 * bit for bit in mask),
        score=score,
    )


def make_episode(
    score: float = 1.0,
    tokens: int = 10,
    subagents: Sequence[AgentTrace] = (),
    *,
    orchestrator: AgentTrace | None = None,
    name: str = "e",
    task: str = "t",
    step: int = 0,
    status: Status = "completed",
    num_refused: int = 0,
    facts: Mapping[str, Any] | None = None,
) -> Episode:
    """An episode with an outcome (`score`, and half of it as `item_f1`), of group `task`.

    Args:
        tokens: generated tokens of the orchestrator's only turn; unused where `orchestrator` is given.
        status: of the episode and its orchestrator. A failed episode has no outcome.
    """
    if orchestrator is None:
        orchestrator = make_trace("0", tokens, status=status)
    outcome = {"score": score, "item_f1": score / 2} if status != "failed" else {}
    return Episode(
        id=name,
        task=Task(task, "parl/Test-v0", "", {}),
        group=task,
        step=step,
        status=status,
        answer="",
        outcome=outcome,
        facts=facts or {},
        traces=(orchestrator, *subagents),
        num_assigned=len(subagents),
        num_refused=num_refused,
        clock=Clock(0.0, 0.0, ()),
    )


def with_rewards(episode: Episode, rewards: float | Mapping[str, float]) -> ScoredEpisode:
    """An episode with the reward of each agent named, or with one reward for all its agents."""
    if not isinstance(rewards, Mapping):
        rewards = dict.fromkeys((trace.id for trace in episode.traces), rewards)
    breakdowns = {
        agent: RewardBreakdown({"outcome": value}, {"outcome": 1.0})
        for agent, value in rewards.items()
    }
    return ScoredEpisode(episode, breakdowns)


def make_scored(
    name: str = "e",
    reward: float = 1.0,
    subagent_rewards: Sequence[float | None] = (),
    status: Status = "completed",
) -> ScoredEpisode:
    """An episode by its rewards: 3 tokens of the orchestrator, 2 of each subagent; None is a failed subagent."""
    subagents = []
    rewards = {"0": reward}
    for i, value in enumerate(subagent_rewards, 1):
        subagents.append(make_trace(str(i), status="failed" if value is None else "completed"))
        rewards[str(i)] = value or 0.0
    episode = make_episode(tokens=3, subagents=subagents, name=name, status=status)
    return with_rewards(episode, rewards)


def make_sample(
    token_ids: Sequence[int],
    mask: Sequence[int],
    logprobs: Sequence[float],
    advantage: float = 1.0,
    *,
    agent: str = "0",
    role: Role = "orchestrator",
    policy: str = "main",
    weight: float = 1.0,
    version: int = 0,
    per_token: Sequence[float] = (),
    images: Sequence[str] = (),
) -> Sample:
    """A trace as the learner gets it."""
    return Sample(
        episode="e",
        agent=agent,
        role=role,
        policy=policy,
        token_ids=tuple(token_ids),
        mask=tuple(mask),
        logprobs=tuple(logprobs),
        advantage=advantage,
        weight=weight,
        policy_versions=(version,),
        per_token=tuple(per_token),
        images=tuple(images),
    )
