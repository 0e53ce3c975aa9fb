"""The environment contract: a Gymnasium environment whose actions are an assistant's messages.

An action is an assistant `Message` with text and tool calls. An observation is a list of tool
messages. A message without tool calls is the final answer: it ends the episode, and `info` holds
the outcome.

To write an environment, subclass `AgentEnv`, mark methods with `@tool`, register it with Gymnasium,
and add one entry-point line: see docs/how-to/write-an-environment.md. Tools that several
environments share are a `Toolset`: see docs/how-to/add-tools.md.
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
from parl.env.tools import ToolOwner, Toolset, ToolSpec

ANSWER_NOW = "The window is full. Answer now with what you have."
"""Replaces an observation that does not fit the window (`limits.on_overflow: answer`)."""


class AgentEnv(ToolOwner, gymnasium.Env[list[Message], Message]):
    """Base class of every environment.

    A subclass implements `generate_tasks` and `score`, usually `start`, and methods marked `@tool`.
    All other methods have a default. One instance runs one episode at a time, and is used again for
    the next; `fork` makes the environment of a subagent.

    Example:
        ```python
        class Dice(AgentEnv):
            def generate_tasks(self, split: str, num: int, seed: int) -> list[Task]:
                ids = [f"{split}-{seed}-{i}" for i in range(num)]
                return [Task(task_id, "dice/Dice-v0", "Roll a six.", {}) for task_id in ids]

            @tool
            def roll(self, sides: Annotated[int, Field(description="Sides of the die.")]) -> str:
                \"\"\"Roll a die.\"\"\"
                return str(self.np_random.integers(1, sides + 1))

            def score(self, answer: str) -> Mapping[str, float]:
                return {"score": float("6" in answer)}
        ```
    """

    metadata: dict[str, Any] = {"render_modes": []}
    # A thread per call, since a pool has 6 threads on 2 cores: six environments that hang would
    # stop all others.
    blocking: bool = False
    """True when its methods wait (subprocess, network). The runtime then runs each call in a thread
    of its own."""
    merges: ClassVar[tuple[str, ...]] = ()
    """Names of the tools by which an orchestrator takes over what its subagents did in their forks.
    All other tools must answer the same whatever a fork does."""

    task: Task
    """The task of the episode, set by `reset`."""
    observation_space: gymnasium.spaces.Space[list[Message]]
    action_space: gymnasium.spaces.Space[Message]
    _toolsets: tuple[Toolset, ...] = ()

    def __init__(self) -> None:
        self.observation_space = MessagesSpace()
        self.action_space = MessageSpace("assistant", _names(self.tool_specs()))

    # --- tasks and scores: what a subclass implements --------------------------------------------

    @abstractmethod
    def generate_tasks(self, split: str, num: int, seed: int) -> list[Task]:
        """Return tasks of a split.

        The same arguments give the same tasks in every process, and no task is in two splits.

        Args:
            split: `train`, `validation` or `test`.
            num: number of tasks.
            seed: seed of the generator, `env.tasks.SPLIT.seed` of a config.
        """

    def load_task(self, row: Mapping[str, Any]) -> Task:
        """Make a task from one row of the user's file (`env.tasks.SPLIT.path`).

        Args:
            row: columns by name. The default takes `id`, `prompt` and, optionally, `data`: a
                mapping, or its JSON.

        Raises:
            ConfigError: the row lacks a field.
        """
        missing = [field for field in ("id", "prompt") if field not in row]
        if missing:
            raise ConfigError(
                f"A task needs the fields id and prompt (missing: {', '.join(missing)}); "
                f"got {dict(row)}"
            )
        data = row.get("data") or {}
        if isinstance(data, str):
            # A Parquet file has one type a column, so mappings with different keys are stored as
            # JSON.
            data = json.loads(data)
        return Task(str(row["id"]), "", str(row["prompt"]), data)

    def start(self, task: Task) -> None:
        """Prepare an episode of this task.

        `reset` calls it. `self.task` is set already and `self.np_random` is seeded. Set here
        whatever an episode changes, since the instance is used again. The default does nothing.
        """

    @abstractmethod
    def score(self, answer: str) -> Mapping[str, float]:
        """Return the outcome of a final answer.

        Args:
            answer: the text of the orchestrator's last message.

        Returns:
            The key `score`, in 0..1, which the reward term `outcome` reads, and any further
            numbers. The keys are always the same; each becomes a metric `outcome/KEY`.
        """

    def facts(self) -> Mapping[str, Any]:
        """Return what rewards may need beyond the score, such as a judge's verdicts.

        Called after `score`. The facts become `episode.facts` and are stored with the episode, so
        they have to be JSON.
        """
        return {}

    def num_parts(self) -> int | None:
        """Return the task's number of independent parts, or None where it has no such number.

        It leaks how wide the gold solution is: for diagnosis, never for the policy.
        """
        return None

    # --- subagents -------------------------------------------------------------------------------

    def fork(self, subtask: str) -> AgentEnv:
        """Return the environment of a subagent.

        The default is a shallow copy with a random stream of its own. It shares all data, which is
        right and fast for what nobody changes (an index). What tools change needs a copy per fork:
        override this, and begin with `child = super().fork(subtask)`.

        Args:
            subtask: the prompt of the subagent.
        """
        child = copy.copy(self)
        # The stream depends on the subtask and not on the order of launch, so that an episode
        # repeats when its subagents run side by side.
        child.np_random = np.random.default_rng(seed_for(self.np_random_seed, subtask))
        return child

    def check_result(self, message: str) -> bool:
        """Return whether a subagent's message is acceptable in form.

        The gold answer plays no part in it. Called on the subagent's fork; the reward term `finish`
        counts it. The default accepts any text that is not blank.
        """
        return bool(message.strip())

    def subtask_score(self, message: str) -> float | None:
        """Return how right a subagent's message is, 0..1, or None (the default) if unknown.

        Called on the subagent's fork. It may look at the gold answer, and becomes the subagent's
        outcome.
        """
        return None

    def contributions(self, answer: str, messages: Sequence[str]) -> Sequence[float] | None:
        """Return the worth of each subagent's message, or None (the default) if unknown.

        The worth is the answer's score minus its score without that message alone, so a message
        that left no trace in the answer is worth 0. Called after `score`, on the orchestrator's
        environment, for `credit.type: leave_one_out`.

        Args:
            answer: the final answer.
            messages: what the orchestrator read of each subagent, in the order of launch; "" of one
                that was stopped.
        """
        return None

    def claims(self, message: str) -> Mapping[str, str]:
        """Return what a subagent's message states: key, such as `entity attribute`, -> value.

        What the message leaves open is not in it. Called after `score`, on the orchestrator's
        environment. Keys to which two messages give different values (case and blanks aside) are
        counted in `facts["contradictions"]`. The default claims nothing, and then nothing is
        counted.
        """
        return {}

    # --- policies that start from nothing, and the rehearsal -------------------------------------

    def vocabulary(self) -> Sequence[str]:
        """Return the words of every text that an episode may hold: the vocabulary of `model: tiny`.

        Raises:
            ConfigError: the environment has none (the default).
        """
        raise ConfigError(
            f"{type(self).__name__} has no vocabulary, which `model: tiny` needs; give "
            "policies.NAME.model a transformers folder, or implement vocabulary() and demonstrate()"
        )

    def demonstrate(
        self, kind: str, rng: np.random.Generator, **knobs: Any
    ) -> Demonstration | Sequence[Segment]:
        """Draw one item for the cold start.

        Args:
            kind: a key of `cold_start.stages[].data`, such as `episode`.
            rng: the source of all randomness.
            knobs: `cold_start.demonstrator` of the config, for episodes.

        Returns:
            An episode for a scripted expert to play, or a text to practise on, in segments.

        Raises:
            ConfigError: the kind is unknown, or the environment has no demonstrations (the
                default).
        """
        raise ConfigError(
            f"{type(self).__name__} has no demonstrations; remove cold_start or implement "
            "demonstrate()"
        )

    def for_rehearsal(self) -> AgentEnv:
        """Return the environment with which a run is rehearsed before it starts.

        The default is a shallow copy. Override it where the environment remembers earlier calls
        (worlds that demonstrations draw, say): whatever a rehearsal leaves behind must not change
        the run.
        """
        return copy.copy(self)

    # --- tools -----------------------------------------------------------------------------------

    def add_tools(self, *toolsets: Toolset) -> None:
        """Add tools to the methods marked `@tool`. Call it after `super().__init__()`.

        Example:
            ```python
            def __init__(self) -> None:
                super().__init__()
                self.add_tools(Calculator())
            ```

        Raises:
            ConfigError: two tools have the same name.
        """
        for toolset in toolsets:
            known = _names(self.tool_specs())
            for name in _names(toolset.tool_specs()):
                if name in known:
                    raise ConfigError(
                        f"{type(self).__name__} has a tool '{name}' already; leave out one of the "
                        "two (an MCP server's by `only`)."
                    )
            self._toolsets = (*self._toolsets, toolset)
            self.blocking = self.blocking or toolset.blocking
        self.action_space = MessageSpace("assistant", _names(self.tool_specs()))

    def tool_specs(self) -> tuple[ToolSpec, ...]:
        """Return the tools as the model sees them: the environment's, then those of `add_tools`."""
        specs = list(self._specs)
        for toolset in self._toolsets:
            specs += toolset.tool_specs()
        return tuple(specs)

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Validate the arguments and run one tool.

        A wrong name or argument is answered with an error text.
        """
        for toolset in self._toolsets:
            if name in _names(toolset.tool_specs()):
                return toolset.call(name, arguments)
        return super().call(name, arguments)

    # --- Gymnasium: leave these as they are ------------------------------------------------------

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[list[Message], dict[str, Any]]:
        """Start an episode.

        Args:
            seed: seed of `self.np_random`.
            options: `{"task": Task}`. Without it a train task is generated, drawn by the seed.

        Returns:
            One user message, the task's prompt, and an empty `info`.
        """
        super().reset(seed=seed)
        task = (options or {}).get("task")
        if task is None:
            task_seed = int(self.np_random.integers(2**31))
            task = self.generate_tasks("train", 1, task_seed)[0]
        self.task = task
        # The episode before may have been cut off, and then no final answer has ended it.
        self._end_episode()
        self.start(task)
        return [{"role": "user", "content": task.prompt, "tool_calls": []}], {}

    def step(self, action: Message) -> tuple[list[Message], float, bool, bool, dict[str, Any]]:
        """Run the tool calls of a message in order, or score it when it has none.

        A wrong call is answered with an error text, never raised: what an agent writes cannot fail
        an episode.

        Returns:
            Gymnasium's five values. After tool calls: one tool message for each call, and nothing
            ends. After a final answer: no message, the score as the reward, terminated, and `info`
            with `outcome` and `facts`.
        """
        if action["tool_calls"]:
            observations: list[Message] = []
            for call in action["tool_calls"]:
                text = self.call(call.get("name", ""), call.get("arguments", {}))
                observations.append({"role": "tool", "content": text, "tool_calls": []})
            return observations, 0.0, False, False, {}
        outcome = dict(self.score(action["content"]))
        if "score" not in outcome:
            raise ValueError(
                "score() must give the key 'score' in 0..1 "
                f"(it gave: {', '.join(outcome) or 'none'})"
            )
        facts = dict(self.facts())
        self._end_episode()
        return [], float(outcome["score"]), True, False, {"outcome": outcome, "facts": facts}

    def _end_episode(self) -> None:
        for toolset in self._toolsets:
            toolset.end_episode()


@dataclass(frozen=True, slots=True)
class Demonstration:
    """An episode for the cold start, played through the swarm runtime."""

    env: AgentEnv
    task: Task
    script: Script
    """It plays every role."""


def _names(specs: Sequence[ToolSpec]) -> list[str]:
    return [spec.name for spec in specs]
