"""An episode as JSON and back: the public format of a run's episodes/.

docs/reference/episode-record.md describes the keys.

A record holds the episode, its rewards and its advantages as plain values, and the episode can be
made from it again exactly. Derived values (critical steps, a reward's total) are written for other
readers and never read here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from parl.core.types import (
    AgentTrace,
    Clock,
    Episode,
    RewardBreakdown,
    ScoredEpisode,
    Span,
    Task,
    ToolCall,
    Turn,
)

Advantages = Mapping[tuple[str, str], Sequence[float]]
"""(episode id, agent id) -> the advantage of each token of its trace, [tokens]. An agent without an
entry was not trained on."""


# --- to a record ---------------------------------------------------------------------------------


def episode_record(scored: ScoredEpisode, advantages: Advantages) -> dict[str, Any]:
    """Return the record of an episode.

    Args:
        scored: the episode and the rewards of its agents.
        advantages: those of the agents that were trained on.
    """
    episode = scored.episode
    task: dict[str, Any] = {
        "id": episode.task.id,
        "env": episode.task.env,
        "prompt": episode.task.prompt,
        "data": dict(episode.task.data),
    }
    if episode.task.ability:
        task["ability"] = episode.task.ability
    return {
        # First, so that an episode is found in a file without parsing the others.
        "id": episode.id,
        "task": task,
        "group": episode.group,
        "step": episode.step,
        "status": episode.status,
        "failure": episode.failure,
        "answer": episode.answer,
        "outcome": dict(episode.outcome),
        "facts": dict(episode.facts),
        "critical_steps": episode.critical_steps,
        "total_steps": episode.total_steps,
        "num_assigned": episode.num_assigned,
        "num_refused": episode.num_refused,
        "clock": {
            "critical_path_s": episode.clock.critical_path_s,
            "serial_s": episode.clock.serial_s,
        },
        "rewards": {agent: _reward_record(reward) for agent, reward in scored.rewards.items()},
        "traces": [_trace_record(trace, episode, advantages) for trace in episode.traces],
        "siblings": [_trace_record(trace, episode, advantages) for trace in episode.siblings],
    }


def _reward_record(reward: RewardBreakdown) -> dict[str, Any]:
    return {
        "terms": dict(reward.terms),
        "weights": dict(reward.weights),
        "factors": dict(reward.factors),
        "total": reward.total,
    }


def _trace_record(trace: AgentTrace, episode: Episode, advantages: Advantages) -> dict[str, Any]:
    spans = {span.turn: span for span in episode.clock.spans if span.agent == trace.id}
    turns = []
    for index, turn in enumerate(trace.turns):
        # Siblings are not on the clock.
        span = spans[index] if spans else None
        turns.append(_turn_record(turn, span))
    token_advantages = advantages.get((episode.id, trace.id))
    if token_advantages is None:
        token_advantages = [0.0] * len(trace.mask)
    record: dict[str, Any] = {
        "id": trace.id,
        "role": trace.role,
        "parent": trace.parent,
        "spawned_at": trace.spawned_at,
        "name": trace.name,
        "prompt": trace.prompt,
        "status": trace.status,
        "stop_reason": trace.stop_reason,
        "policy": trace.policy,
        "result": trace.result,
        "accepted": trace.accepted,
        "score": trace.score,
        "contribution": trace.contribution,
        "turns": turns,
        "token_ids": list(trace.token_ids),
        "mask": list(trace.mask),
        "logprobs": list(trace.logprobs),
        "advantages": list(token_advantages),
    }
    if trace.images:
        record["images"] = list(trace.images)
    return record


def _turn_record(turn: Turn, span: Span | None) -> dict[str, Any]:
    tool_calls = []
    for call in turn.tool_calls:
        # `asdict` copies a mapping as its own class; JSON knows only dict.
        tool_calls.append(asdict(call) | {"arguments": dict(call.arguments)})
    return {
        "text": turn.text,
        "tool_calls": tool_calls,
        "observations": list(turn.observations),
        "policy_versions": list(turn.policy_versions),
        "env_calls": turn.env_calls,
        "start": turn.start,
        "end": turn.end,
        "t_start": None if span is None else span.start_s,
        "t_end": None if span is None else span.end_s,
    }


# --- from a record -------------------------------------------------------------------------------


def task_of(record: Mapping[str, Any]) -> Task:
    """Return the task of a record. Without a mix of environments its ability is ""."""
    task = record["task"]
    return Task(task["id"], task["env"], task["prompt"], task["data"], task.get("ability", ""))


def episode_of(record: Mapping[str, Any]) -> Episode:
    """Return the episode of a record.

    Raises:
        KeyError: the record is not of the public format.
    """
    traces = tuple(_trace_of(trace) for trace in record["traces"])
    spans = []
    for trace in record["traces"]:
        for index, turn in enumerate(trace["turns"]):
            spans.append(Span(trace["id"], index, turn["t_start"], turn["t_end"]))
    # Older records have no siblings.
    siblings = tuple(_trace_of(trace) for trace in record.get("siblings", ()))
    clock = record["clock"]
    return Episode(
        id=record["id"],
        task=task_of(record),
        group=record["group"],
        step=record["step"],
        status=record["status"],
        answer=record["answer"],
        outcome=record["outcome"],
        facts=record["facts"],
        traces=traces,
        num_assigned=record["num_assigned"],
        num_refused=record["num_refused"],
        clock=Clock(clock["critical_path_s"], clock["serial_s"], tuple(spans)),
        siblings=siblings,
        failure=record["failure"],
    )


def rewards_of(record: Mapping[str, Any]) -> dict[str, RewardBreakdown]:
    """Return agent id -> its reward when the episode was trained on; {} for a failed episode."""
    rewards: dict[str, RewardBreakdown] = {}
    for agent, reward in record["rewards"].items():
        rewards[agent] = RewardBreakdown(reward["terms"], reward["weights"], reward["factors"])
    return rewards


def advantages_of(record: Mapping[str, Any]) -> dict[str, float]:
    """Return agent id -> the advantage of its trained tokens, see `advantage_of`."""
    traces = (*record["traces"], *record.get("siblings", ()))
    return {trace["id"]: advantage_of(trace) for trace in traces}


def advantage_of(trace: Mapping[str, Any]) -> float:
    """Return the mean advantage of a trace's trained tokens; 0 without any."""
    trained = []
    for advantage, mask in zip(trace["advantages"], trace["mask"], strict=True):
        if mask:
            trained.append(advantage)
    if not trained:
        return 0.0
    # A mean of equal numbers may differ from them in its last bit.
    return trained[0] if len(set(trained)) == 1 else fmean(trained)


def _trace_of(record: Mapping[str, Any]) -> AgentTrace:
    turns = tuple(_turn_of(turn) for turn in record["turns"])
    return AgentTrace(
        id=record["id"],
        role=record["role"],
        parent=record["parent"],
        spawned_at=record["spawned_at"],
        name=record["name"],
        prompt=record["prompt"],
        policy=record["policy"],
        turns=turns,
        status=record["status"],
        stop_reason=record["stop_reason"],
        result=record["result"],
        token_ids=tuple(record["token_ids"]),
        mask=tuple(record["mask"]),
        logprobs=tuple(record["logprobs"]),
        accepted=record["accepted"],
        score=record["score"],
        contribution=record.get("contribution"),
        images=tuple(record.get("images", ())),
    )


def _turn_of(record: Mapping[str, Any]) -> Turn:
    calls = []
    for call in record["tool_calls"]:
        calls.append(ToolCall(call["name"], call["arguments"], call["error"]))
    return Turn(
        text=record["text"],
        tool_calls=tuple(calls),
        observations=tuple(record["observations"]),
        start=record["start"],
        end=record["end"],
        policy_versions=tuple(record["policy_versions"]),
        # Older records do not have it.
        env_calls=record.get("env_calls", 0),
    )
