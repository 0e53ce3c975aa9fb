"""Recorded traffic: what the expert's swarms fed and wrote, to be replayed on an engine.

The lengths are those of real episodes; the words are sampled anew, since only their number costs anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from parl.config import Config
from parl.core.types import AgentTrace, Episode
from parl.env.base import AgentEnv
from parl.policy.base import PolicyHandle, Renderer, Request
from parl.policy.engines.scripted import ScriptedEngine
from parl.rollout.swarm import SwarmRunner


@dataclass(frozen=True)
class Turn:
    """Fed ids before it (a prompt or observations), and how many tokens are written."""

    fed: tuple[int, ...]
    new: int


def record(
    config: Config, env: AgentEnv, renderer: Renderer, num: int, parallel: float = 1.0
) -> list[Episode]:
    """Episodes of the scripted expert, through the runtime, with the tokens of the quickstart's policy."""
    rng = np.random.default_rng(0)
    swarm = config.swarm.model_copy(update={"critical_step_budget": None})
    episodes = []
    for i in range(num):
        demo: Any = env.demonstrate("episode", rng, delegate_prob=parallel, give_up_prob=0.0)
        handle = PolicyHandle("expert", renderer, ScriptedEngine(demo.script, renderer), False)
        runner = SwarmRunner(
            {"orchestrator": handle, "subagent": handle}, config.roles, swarm, config.clock
        )
        run = runner.run(
            demo.env, demo.task, episode_id=f"r{i}", group=f"r{i}", step=0, seed=f"r{i}"
        )
        episodes.append(asyncio.run(run))
    assert all(e.status == "completed" for e in episodes)
    return episodes


def turns_of(trace: AgentTrace) -> list[Turn]:
    starts = [0, *(t.end for t in trace.turns)]
    return [
        Turn(trace.token_ids[a : t.start], t.end - t.start)
        for a, t in zip(starts, trace.turns, strict=False)
    ]


async def play(engine: Any, session: str, turns: Sequence[Turn]) -> int:
    """One agent from its prompt to its last turn; the number of tokens written. The engine needs no stop tokens."""
    ids: list[int] = []
    for k, turn in enumerate(turns):
        ids += turn.fed
        made = await engine.generate(
            Request(session, tuple(ids), (), turn.new, 1.0, hash((session, k)) % 2**32)
        )
        ids += made.token_ids
    engine.release(session)
    return sum(t.new for t in turns)


async def play_swarm(engine: Any, session: str, episode: Episode) -> int:
    """An orchestrator; the subagents of a turn run after it, together, before the next one."""
    root = episode.orchestrator
    ids: list[int] = []
    written = 0
    for k, turn in enumerate(turns_of(root)):
        ids += turn.fed
        made = await engine.generate(Request(session, tuple(ids), (), turn.new, 1.0, k))
        ids += made.token_ids
        launched = [t for t in episode.subagents if t.spawned_at == k]
        written += turn.new + sum(
            await asyncio.gather(
                *(play(engine, f"{session}/{t.id}", turns_of(t)) for t in launched)
            )
        )
    engine.release(session)
    return written
