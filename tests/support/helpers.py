"""What several test files share: a character renderer, a small environment, and a runner of scripted episodes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from parl.config import Config
from parl.config.env import EnvConfig
from parl.config.roles import ClockConfig, Limits, RoleConfig, Roles, Sampling, Swarm
from parl.core.messages import Message
from parl.core.types import AgentTrace, Episode, Task, ToolCall
from parl.env.base import AgentEnv
from parl.env.demonstrations import Segment
from parl.env.tools import ToolSpec, tool
from parl.policy.base import PolicyHandle
from parl.policy.engines.scripted import ScriptedEngine
from parl.rollout.pool.local import Job
from parl.rollout.swarm import SwarmRunner

ROOT = Path(__file__).parents[2]
END = "\0"
TASK = Task("t", "test/Words-v0", "say the word", {"word": "blue"})


class Characters:
    """One token a character. A call is a line `@{"name": ..., "arguments": {...}}`; `@` before no JSON is malformed."""

    stop_ids = (ord(END),)

    def start(self, system: str, tools: Sequence[ToolSpec], user: str) -> list[int]:
        return self.encode("".join(f"<{t.name}>" for t in tools) + f"[{system}|{user}]")

    def observe(self, observations: Sequence[str], turn_ids: Sequence[int] = ()) -> list[int]:
        return self.encode("".join(f"[{o}]" for o in observations))

    def parse(self, token_ids: Sequence[int]) -> tuple[str, tuple[ToolCall, ...]]:
        text = "".join(map(chr, token_ids)).rstrip(END)
        return text, tuple(
            self._call(line[1:]) for line in text.split("\n") if line.startswith("@")
        )

    def encode(self, text: str) -> list[int]:
        return list(map(ord, text))

    def show(self, text: str) -> list[int]:
        return self.encode(text)

    def images(self, text: str) -> tuple[str, ...]:
        return ()

    def _call(self, text: str) -> ToolCall:
        try:
            raw = json.loads(text)
        except ValueError:
            return ToolCall("", {}, "error: not JSON")
        if not isinstance(raw["arguments"], dict):
            return ToolCall(raw["name"], {}, "error: arguments must be an object")
        return ToolCall(raw["name"], raw["arguments"])


def env_section(config: Config) -> EnvConfig:
    """The config's only environment."""
    assert isinstance(config.env, EnvConfig)
    return config.env


def call(name: str, /, **arguments: Any) -> str:
    return "@" + json.dumps({"name": name, "arguments": arguments})


def create(name: str, system: str = "worker") -> str:
    return call("create_subagent", name=name, system_prompt=system)


def assign(agent: str, prompt: str) -> str:
    return call("assign_task", agent=agent, prompt=prompt)


def turns(*calls: str) -> str:
    """One turn with several calls."""
    return "\n".join(calls)


def answers(trace: AgentTrace, turn: int = 0) -> tuple[str, ...]:
    """The observations that answered a turn."""
    return trace.turns[turn].observations


class WordsEnv(AgentEnv):
    """Say the task's word. A subagent's message scores 1 if it is its prompt in capitals; `junk` is not accepted."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def generate_tasks(self, split: str, num: int, seed: int) -> list[Task]:
        return [
            Task(f"{split}-{i}", "test/Words-v0", "say the word", {"word": f"w{i}"})
            for i in range(num)
        ]

    def start(self, task: Task) -> None:
        self.seen, self.subtask = [], ""

    def fork(self, subtask: str) -> AgentEnv:
        child = super().fork(subtask)
        assert isinstance(child, WordsEnv)
        child.seen, child.subtask = [], subtask
        return child

    def score(self, answer: str) -> Mapping[str, float]:
        return {"score": float(answer == self.task.data["word"])}

    def facts(self) -> Mapping[str, Any]:
        return {"seen": list(self.seen)}

    def check_result(self, message: str) -> bool:
        return message != "junk"

    def subtask_score(self, message: str) -> float:
        return float(message == self.subtask.upper())

    @tool
    def peek(self, at: str) -> str:
        """Look somewhere; returns all the places that this agent has seen."""
        self.seen.append(at)
        return ",".join(self.seen)


def script(
    orchestrator: Sequence[str], **subagents: Sequence[str]
) -> Callable[..., Sequence[Segment]]:
    """Turns by agent: the orchestrator's, and a subagent's by its prompt (`other`: any prompt not named)."""

    def play(messages: Sequence[Message], rng: np.random.Generator) -> Sequence[Segment]:
        turn = sum(m["role"] == "assistant" for m in messages)
        prompt = next(m["content"] for m in messages if m["role"] == "user")
        turns = (
            orchestrator if prompt == TASK.prompt else subagents.get(prompt, subagents.get("other"))
        )
        assert turns is not None, f"the script has no turns for {prompt!r}"
        return [Segment(turns[turn])]

    return play


def roles(
    orchestrator: Limits | None = None, subagent: Limits | None = None, max_tokens: int = 10_000
) -> Roles:
    """Roles with wide limits, but for those given."""
    wide = Limits(turns=50, context_tokens=100_000)
    sampling = Sampling(max_tokens=max_tokens)
    return Roles(
        orchestrator=RoleConfig(sampling=sampling, limits=orchestrator or wide),
        subagent=RoleConfig(sampling=sampling, limits=subagent or wide),
    )


def runner(
    play: Callable[..., Sequence[Segment]], swarm: Swarm | None = None, who: Roles | None = None
) -> SwarmRunner:
    renderer = Characters()
    handle = PolicyHandle("main", renderer, ScriptedEngine(play, renderer))
    policies = {"orchestrator": handle, "subagent": handle}
    return SwarmRunner(policies, who or roles(), swarm or Swarm(), ClockConfig())


def run(
    play: Callable[..., Sequence[Segment]],
    swarm: Swarm | None = None,
    who: Roles | None = None,
    env: AgentEnv | None = None,
) -> Episode:
    """One episode of TASK."""
    made = runner(play, swarm, who).run(
        env or WordsEnv(), TASK, episode_id="e", group="g", step=0, seed="s"
    )
    return asyncio.run(made)


def jobs(num: int) -> list[Job]:
    """Episodes of the one task, each with a seed of its own."""
    return [Job(TASK, f"e{i}", "g", 3, f"seed/{i}") for i in range(num)]
