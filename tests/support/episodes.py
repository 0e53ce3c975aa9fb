"""Episodes by hand: a score, subagents with one turn each, nothing sampled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from parl.core.types import AgentTrace, Clock, Episode, Status, Task, Turn


def child(
    agent: str,
    tokens: int = 4,
    score: float | None = None,
    status: Status = "completed",
    result: str = "x",
) -> AgentTrace:
    return trace(agent, tokens, "subagent", score, status, result)


def trace(
    agent: str,
    tokens: int,
    role: Literal["orchestrator", "subagent"] = "orchestrator",
    score: float | None = None,
    status: Status = "completed",
    result: str = "x",
) -> AgentTrace:
    sub = role == "subagent"
    return AgentTrace(
        id=agent,
        role=role,
        parent="0" if sub else None,
        spawned_at=0 if sub else None,
        name=agent,
        prompt="",
        policy="main",
        turns=(Turn("", (), (), 1, 1 + tokens, 0),),
        status=status,
        stop_reason="",
        result=result,
        token_ids=(0,) * (1 + tokens),
        mask=(0,) + (1,) * tokens,
        logprobs=(0.0,) * (1 + tokens),
        score=score,
    )


def episode(
    score: float = 1.0,
    tokens: int = 10,
    children: Sequence[AgentTrace] = (),
    *,
    name: str = "e",
    task: str = "t",
    status: Status = "completed",
    refused: int = 0,
    facts: Mapping[str, Any] | None = None,
) -> Episode:
    return Episode(
        id=name,
        task=Task(task, "parl/Test-v0", "", {}),
        group=task,
        step=0,
        status=status,
        answer="",
        outcome={"score": score, "item_f1": score / 2},
        facts=facts or {},
        traces=(trace("0", tokens), *children),
        num_assigned=len(children),
        num_refused=refused,
        clock=Clock(0.0, 0.0, ()),
    )
