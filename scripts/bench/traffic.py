"""Recorded traffic: the tokens of the expert's swarms, to be replayed on an engine.

The lengths are those of real episodes. The words are sampled again, since only their number costs
anything.
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
    """One turn of an agent."""

    fed: tuple[int, ...]
    """Ids before it: a prompt or observations."""
    new: int
    """Number of tokens that are written."""


def record(
    config: Config, env: AgentEnv, renderer: Renderer, num: int, parallel: float = 1.0
) -> list[Episode]:
    """Record episodes of the scripted expert, with the tokens of the quickstart's policy."""
    rng = np.random.default_rng(0)
    swarm = config.swarm.replace(critical_step_budget=None)
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
    turns = []
    position = 0
    for turn in trace.turns:
        turns.append(Turn(trace.token_ids[position : turn.start], turn.end - turn.start))
        position = turn.end
    return turns


async def play(engine: Any, session: str, turns: Sequence[Turn]) -> int:
    """Play an agent from its prompt to its last turn. Returns the number of tokens written.

    The engine must have no stop tokens: each turn has the length that was recorded.
    """
    ids: list[int] = []
    for k, turn in enumerate(turns):
        ids += turn.fed
        seed = hash((session, k)) % 2**32
        generation = await engine.generate(Request(session, tuple(ids), (), turn.new, 1.0, seed))
        ids += generation.token_ids
    engine.release(session)
    return sum(t.new for t in turns)


async def play_swarm(engine: Any, session: str, episode: Episode) -> int:
    """Play an orchestrator. A turn's subagents run together, after it and before the next one."""
    root = episode.orchestrator
    ids: list[int] = []
    written = 0
    for k, turn in enumerate(turns_of(root)):
        ids += turn.fed
        generation = await engine.generate(Request(session, tuple(ids), (), turn.new, 1.0, k))
        ids += generation.token_ids
        launched = []
        for trace in episode.subagents:
            if trace.spawned_at == k:
                launched.append(play(engine, f"{session}/{trace.id}", turns_of(trace)))
        written += turn.new + sum(await asyncio.gather(*launched))
    engine.release(session)
    return written
