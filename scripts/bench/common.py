"""Parts of the benchmarks: scripted swarms, a table, and the JSON line at the end of each."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from parl.config import Config, load
from parl.core.machine import pin_threads
from parl.core.messages import Message
from parl.core.types import ToolCall
from parl.env import registry as plugins
from parl.env.base import AgentEnv
from parl.env.demonstrations import Segment
from parl.env.registry import make_env
from parl.learner.policies import PolicySet
from parl.policy.base import Generation, PolicyHandle, Renderer, Request
from parl.policy.engines.scripted import ScriptedEngine, call_text
from parl.rollout.pool.local import Job
from parl.rollout.swarm import SwarmRunner

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


def set_up(overrides: Sequence[str] = (), threads: int = 1) -> tuple[Config, AgentEnv, PolicySet]:
    """The quickstart with its untrained policy."""
    pin_threads(threads)
    plugins.load()
    config = load(QUICKSTART, ["baseline=null", *overrides])
    env = make_env(config.env)
    return config, env, PolicySet(config, env)


def jobs_of(env: AgentEnv, num: int) -> list[Job]:
    tasks = env.generate_tasks("train", num, 0)
    return [Job(task, f"e{i}", f"g{i}", 0, f"s{i}") for i, task in enumerate(tasks)]


@dataclass
class SwarmScript:
    """Play a swarm: the orchestrator launches `width` subagents at once and answers.

    Each subagent searches, opens a page and answers.
    """

    width: int
    seconds: float = 0.0
    """Time spent in the script, which is not the runtime's."""

    def __call__(self, messages: Sequence[Message], rng: np.random.Generator) -> Sequence[Segment]:
        began = time.perf_counter()
        text = self._next_turn(messages)
        self.seconds += time.perf_counter() - began
        return [Segment(text)]

    def _next_turn(self, messages: Sequence[Message]) -> str:
        turns = sum(m["role"] == "assistant" for m in messages)
        if messages[0]["role"] == "system" and messages[0]["content"] == "searcher":
            name = messages[1]["content"].split("#", 1)[0].strip()
            doc = messages[-1]["content"].split(" : ")[-1].split("\n")[0]
            return [_call("search", query=name), _call("open", doc=doc), f"#1 {name}"][turns]
        if turns:
            return "#1 done"
        calls = [_call("assign_task", agent="a", prompt=f"France #{i}") for i in range(self.width)]
        return "".join([_call("create_subagent", name="a", system_prompt="searcher"), *calls])


def _call(tool: str, /, **arguments: str) -> str:
    return call_text(ToolCall(tool, arguments))


@dataclass
class Gate:
    """An engine that holds every subagent at its first turn until all of them are there."""

    inner: ScriptedEngine
    num: int
    waiting: int = 0
    opened: asyncio.Event | None = None

    async def generate(self, request: Request) -> Generation:
        self.opened = self.opened or asyncio.Event()
        if request.messages[0]["content"] == "searcher" and len(request.messages) == 2:
            self.waiting += 1
            if self.waiting == self.num:
                self.opened.set()
            await self.opened.wait()
        return await self.inner.generate(request)

    def release(self, session: str) -> None: ...


def runner_of(config: Config, engine: Any, renderer: Renderer) -> SwarmRunner:
    handle = PolicyHandle("scripted", renderer, engine, False)
    # No limit may end an episode: the runtime is measured, not a policy.
    unlimited = 10**6
    roles = {}
    for role, settings in config.roles.items():
        roles[role] = settings.replace(
            limits=settings.limits.replace(context_tokens=unlimited),
            sampling=settings.sampling.replace(max_tokens=unlimited),
        )
    swarm = config.swarm.replace(max_subagents=unlimited, critical_step_budget=None)
    handles = {"orchestrator": handle, "subagent": handle}
    return SwarmRunner(handles, config.roles.replace(**roles), swarm, config.clock)


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print aligned columns."""
    lines = [list(header)]
    for row in rows:
        lines.append([f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        print("  ".join(cells).rstrip())


def finish(result: Mapping[str, Any]) -> None:
    """Print the last line: one JSON object."""
    rounded = {}
    for name, value in result.items():
        rounded[name] = round(value, 4) if isinstance(value, float) else value
    print(json.dumps(rounded))
