"""The environment contract: a Gymnasium environment whose actions are an assistant's messages.

In: an assistant `Message` (text and tool calls). Out: a list of tool messages, the reward, and the outcome in `info`.
Subclass `AgentEnv`, mark methods with `@tool`, register with Gymnasium, add one entry-point line: see
docs/how-to/write-an-environment.md. Tools that several environments want are a `Toolset`: see docs/how-to/add-tools.md.
"""

from __future__ import annotations

import copy
import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium
import numpy as np

from parl.core.errors import ConfigError
from parl.core.messages import Message
from parl.core.seeds import seed_for
from parl.core.types import Task
from parl.env.demonstrations import Script, Segment
from parl.env.spaces import MessageSpace, MessagesSpace
from parl.env.tools import Toolset, ToolSpec, _Tools

ANSWER_NOW = "The window is full. Answer now with what you have."
"""What an agent reads in place of an observation that does not fit (`limits.on_overflow: answer`)."""


@dataclass(frozen=True, slots=True)
class Demonstration:
    """An episode for the cold start: `script` plays every role on `task` in `env`, through the swarm runtime."""

    env: AgentEnv
    task: Task
    script: Script


class AgentEnv(_Tools, gymnasium.Env[list[Message], Message]):
    """Base of every environment.

    A subclass gives `generate_tasks`, `start` and `score`, and methods marked `@tool`. One instance holds one episode;
    `fork` makes the world of a subagent. `step` may be called with several tool calls: each is answered in order.
    """

    metadata: dict[str, Any] = {"render_modes": []}
    blocking: bool = False
    """True when its methods wait (subprocess, network): the runtime then calls each in a thread of its own."""
    merges: ClassVar[tuple[str, ...]] = ()
    """Tools by which an orchestrator takes over what its subagents did in their forks. All other tools must read the
    same whatever a fork does."""

    task: Task
    observation_space: gymnasium.spaces.Space[list[Message]]
    action_space: gymnasium.spaces.Space[Message]
    _toolsets: tuple[Toolset, ...] = ()

    def __init__(self) -> None:
        self.observation_space = MessagesSpace()
        self.action_space = MessageSpace("assistant", [s.name for s in self.tool_specs()])

    # --- what a subclass gives -------------------------------------------------------------------------------------

    @abstractmethod
    def generate_tasks(self, split: str, num: int, seed: int) -> list[Task]:
        """The environment's own tasks of a split (`train`, `validation`, `test`), the same for the same seed."""

    @abstractmethod
    def score(self, answer: str) -> Mapping[str, float]:
        """The outcome of a final answer; must hold `score` in 0..1, what the `outcome` reward reads."""

    def load_task(self, row: Mapping[str, Any]) -> Task:
        """A task from one row of the user's file. Raises ConfigError. Default: {id, prompt, data}."""
        missing = [k for k in ("id", "prompt") if k not in row]
        if missing:
            raise ConfigError(
                f"A task needs the fields id and prompt (missing: {', '.join(missing)}); got {dict(row)}"
            )
        data = row.get("data") or {}
        return Task(
            str(row["id"]),
            "",
            str(row["prompt"]),
            json.loads(data) if isinstance(data, str) else data,
        )

    def start(self, task: Task) -> None:
        """Prepare an episode of this task. `self.task` is set already, `self.np_random` is seeded."""

    def fork(self, subtask: str) -> AgentEnv:
        """The world of a subagent. Default: a shallow copy (shared read-only data) with a random stream of its own."""
        child = copy.copy(self)
        child.np_random = np.random.default_rng(seed_for(self.np_random_seed, subtask))
        return child

    def for_rehearsal(self) -> AgentEnv:
        """Return the environment that a run is rehearsed with before it starts. Default: a shallow copy.

        Override it where the environment remembers what it was asked (worlds that demonstrations draw, say): what a
        rehearsal leaves behind must not change the run.
        """
        return copy.copy(self)

    def check_result(self, message: str) -> bool:
        """Whether a subagent's message is acceptable in form (called on its fork). Default: not empty."""
        return bool(message.strip())

    def subtask_score(self, message: str) -> float | None:
        """Gold-informed success of a subagent in 0..1 (called on its fork), or None where it cannot be told."""
        return None

    def contributions(self, answer: str, messages: Sequence[str]) -> Sequence[float] | None:
        """What each subagent's message is worth: the answer's score minus its score without that message alone.

        Called after `score`, on the orchestrator's own environment; for `credit.type: leave_one_out`. A message that left
        no trace in the answer is worth 0. Default: None, it cannot be told.

        Args:
            messages: what the orchestrator read of each subagent, in the order of launch; "" of one that was stopped.
        """
        return None

    def claims(self, message: str) -> Mapping[str, str]:
        """What a subagent's message states: key (`entity attribute`) -> value. Not what it leaves open.

        Called after `score`, on the orchestrator's own environment. Where this is implemented, keys to which two
        messages give different values, case and blanks aside, are counted: `facts["contradictions"]`.
        """
        return {}

    def facts(self) -> Mapping[str, Any]:
        """What rewards may want to know and the score does not say (a judge's verdict, say)."""
        return {}

    def num_parts(self) -> int | None:
        """The task's number of independent parts, where it has one. Leaks the gold width: for diagnosis."""
        return None

    # --- for policies that start from nothing ------------------------------------------------------------------------

    def vocabulary(self) -> Sequence[str]:
        """Words of every text that an episode may hold: the vocabulary of a model built from scratch."""
        raise ConfigError(
            f"{type(self).__name__} has no vocabulary, which `model: tiny` needs; give policies.NAME.model a "
            "transformers folder, or implement vocabulary() and demonstrate()"
        )

    def demonstrate(
        self, kind: str, rng: np.random.Generator, **knobs: Any
    ) -> Demonstration | Sequence[Segment]:
        """One item of a cold start: an episode played by a scripted expert, or a text to practise on."""
        raise ConfigError(
            f"{type(self).__name__} has no demonstrations; remove cold_start or implement demonstrate()"
        )

    # --- Gymnasium ---------------------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[list[Message], dict[str, Any]]:
        """Start an episode of `options["task"]`; without one, of a generated train task drawn by the seed."""
        super().reset(seed=seed)
        task = (options or {}).get("task")
        if task is None:
            task = self.generate_tasks("train", 1, int(self.np_random.integers(2**31)))[0]
        self.task = task
        self._end_episode()
        self.start(task)
        return [{"role": "user", "content": task.prompt, "tool_calls": []}], {}

    def step(self, action: Message) -> tuple[list[Message], float, bool, bool, dict[str, Any]]:
        """Run the message's tool calls, or score it when it has none. Bad calls are answered as text, never raised."""
        if action["tool_calls"]:
            texts = [
                self.call(c.get("name", ""), c.get("arguments", {})) for c in action["tool_calls"]
            ]
            return (
                [{"role": "tool", "content": t, "tool_calls": []} for t in texts],
                0.0,
                False,
                False,
                {},
            )
        outcome = dict(self.score(action["content"]))
        if "score" not in outcome:
            raise ValueError(
                f"score() must give the key 'score' in 0..1 (it gave: {', '.join(outcome) or 'none'})"
            )
        facts = dict(self.facts())
        self._end_episode()
        return [], float(outcome["score"]), True, False, {"outcome": outcome, "facts": facts}

    def _end_episode(self) -> None:
        for toolset in self._toolsets:
            toolset.end_episode()

    # --- tools -------------------------------------------------------------------------------------------------------

    def add_tools(self, *toolsets: Toolset) -> None:
        """Give the agents further tools, beside the methods marked `@tool`. Call it after `super().__init__()`.

        Raises ConfigError when two tools have one name.
        """
        for toolset in toolsets:
            known = {spec.name for spec in self.tool_specs()}
            for spec in toolset.tool_specs():
                if spec.name in known:
                    raise ConfigError(
                        f"{type(self).__name__} has a tool '{spec.name}' already; leave out one of the two "
                        "(an MCP server's by `only`)."
                    )
            self._toolsets = (*self._toolsets, toolset)
            self.blocking = self.blocking or toolset.blocking
        self.action_space = MessageSpace("assistant", [s.name for s in self.tool_specs()])

    def tool_specs(self) -> tuple[ToolSpec, ...]:
        """The tools' names, descriptions and schemas: its own, then those that were added."""
        return (
            *self._specs,
            *(spec for toolset in self._toolsets for spec in toolset.tool_specs()),
        )

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Validate the arguments and run one tool; a wrong name or argument is answered with an error text."""
        for toolset in self._toolsets:
            if any(spec.name == name for spec in toolset.tool_specs()):
                return toolset.call(name, arguments)
        return super().call(name, arguments)
