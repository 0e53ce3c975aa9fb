"""An episode as JSON and back: the public format of a run's episodes/ (docs/reference/metrics.md).

In: a `ScoredEpisode` and its advantages. Out: a dict of plain values; and from such a dict the episode, exactly.
What is derived (critical steps, a reward's total) is written for other readers, and never read here.
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
"""(episode id, agent id) -> the advantage of each token of its trace. An agent that is not there has none."""


def episode_record(scored: ScoredEpisode, advantages: Advantages) -> dict[str, Any]:
    """An episode as it stands on disk (the public format)."""
    episode = scored.episode
    return {
        "id": episode.id,
        "task": {
            "id": episode.task.id,
            "env": episode.task.env,
            "prompt": episode.task.prompt,
            "data": dict(episode.task.data),
            **({"ability": episode.task.ability} if episode.task.ability else {}),
        },
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
        "rewards": {
            agent: {
                "terms": dict(r.terms),
                "weights": dict(r.weights),
                "factors": dict(r.factors),
                "total": r.total,
            }
            for agent, r in scored.rewards.items()
        },
        "traces": [_trace_record(t, episode, advantages) for t in episode.traces],
        "siblings": [_trace_record(t, episode, advantages) for t in episode.siblings],
    }


def _trace_record(trace: AgentTrace, episode: Episode, advantages: Advantages) -> dict[str, Any]:
    spans = {s.turn: s for s in episode.clock.spans if s.agent == trace.id}
    turns = [
        {
            "text": t.text,
            "tool_calls": [asdict(c) | {"arguments": dict(c.arguments)} for c in t.tool_calls],
            "observations": list(t.observations),
            "policy_versions": list(t.policy_versions),
            "env_calls": t.env_calls,
            "start": t.start,
            "end": t.end,
            "t_start": spans[i].start_s if spans else None,  # siblings are not on the clock
            "t_end": spans[i].end_s if spans else None,
        }
        for i, t in enumerate(trace.turns)
    ]
    return {
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
        "advantages": list(advantages.get((episode.id, trace.id), [0.0] * len(trace.mask))),
        **({"images": list(trace.images)} if trace.images else {}),
    }


# --- and back --------------------------------------------------------------------------------------------------------


def task_of(record: Mapping[str, Any]) -> Task:
    """The task of a record; of one environment, it has no ability."""
    task = record["task"]
    return Task(task["id"], task["env"], task["prompt"], task["data"], task.get("ability", ""))


def episode_of(record: Mapping[str, Any]) -> Episode:
    """The episode of a record. Raises KeyError for one that is not of the public format."""
    traces = tuple(_trace_of(t) for t in record["traces"])
    spans = tuple(
        Span(t["id"], i, turn["t_start"], turn["t_end"])
        for t in record["traces"]
        for i, turn in enumerate(t["turns"])
    )
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
        clock=Clock(clock["critical_path_s"], clock["serial_s"], spans),
        siblings=tuple(_trace_of(t) for t in record.get("siblings", ())),  # not in older records
        failure=record["failure"],
    )


def rewards_of(record: Mapping[str, Any]) -> dict[str, RewardBreakdown]:
    """Agent id -> its reward as it was when the episode was trained on; {} of a failed episode."""
    return {
        a: RewardBreakdown(r["terms"], r["weights"], r["factors"])
        for a, r in record["rewards"].items()
    }


def advantages_of(record: Mapping[str, Any]) -> dict[str, float]:
    """Agent id -> the advantage of its trained tokens, see `advantage_of`."""
    return {t["id"]: advantage_of(t) for t in (*record["traces"], *record.get("siblings", ()))}


def advantage_of(trace: Mapping[str, Any]) -> float:
    """The mean advantage of a trace's trained tokens (exactly theirs, if they are equal); 0 of one without any."""
    trained = [a for a, m in zip(trace["advantages"], trace["mask"], strict=True) if m]
    return trained[0] if len(set(trained)) == 1 else fmean(trained or [0.0])


def _trace_of(record: Mapping[str, Any]) -> AgentTrace:
    turns = tuple(
        Turn(
            text=t["text"],
            tool_calls=tuple(
                ToolCall(c["name"], c["arguments"], c["error"]) for c in t["tool_calls"]
            ),
            observations=tuple(t["observations"]),
            start=t["start"],
            end=t["end"],
            policy_versions=tuple(t["policy_versions"]),
            env_calls=t.get("env_calls", 0),  # not in records that were written before it was
        )
        for t in record["turns"]
    )
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
