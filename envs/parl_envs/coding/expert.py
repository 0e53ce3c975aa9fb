"""The scripted expert of Coding: demonstrations for the cold start.

They are played through the swarm runtime. The expert writes an agent's next turn from the messages
of that agent. It reads what any policy reads and never the solution.

It works alone or gives one file to each subagent, which is decided once per episode. The tokens
that carry this decision can be kept out of the loss (decision masking).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from parl.core.messages import Message
from parl.env.demonstrations import Segment, written_call
from parl_envs.coding.functions import correct

SUBAGENT_SYSTEM = "fixer"
AGENT_NAME = "helper"
DONE = "done"


@dataclass
class CodingExpert:
    """Play the orchestrator and its subagents on one task.

    Args:
        delegate_prob: probability of delegating.
        train_decision_prob: probability that a delegating episode trains its decision tokens.
        give_up_prob: probability that a file is written as it was read, mistake included.
    """

    rng: np.random.Generator
    delegate_prob: float = 0.5
    train_decision_prob: float = 0.2
    give_up_prob: float = 0.0
    _delegates: bool = field(init=False)
    _trains_decision: bool = field(init=False)

    def __post_init__(self) -> None:
        self._delegates = bool(self.rng.random() < self.delegate_prob)
        self._trains_decision = bool(self.rng.random() < self.train_decision_prob)

    def __call__(self, messages: Sequence[Message], rng: np.random.Generator) -> Sequence[Segment]:
        """Write the next turn of the agent that has these messages."""
        if messages[0]["role"] == "system" and messages[0]["content"] == SUBAGENT_SYSTEM:
            file = messages[1]["content"]
            return self._fix(messages[1:], [file], rng)
        # The orchestrator's system prompt may be empty, and is then no message.
        while messages[0]["role"] != "user":
            messages = messages[1:]
        files = messages[0]["content"].removeprefix("fix : ").split(" ; ")
        if self._delegates:
            return self._orchestrate(messages, files)
        return self._fix(messages, files, rng)

    def _orchestrate(self, messages: Sequence[Message], files: Sequence[str]) -> Sequence[Segment]:
        """Launch one subagent for each file, merge, and say that it is done."""
        num_turns = _count(messages, "assistant")
        if num_turns == 0:
            create = written_call("create_subagent", name=AGENT_NAME, system_prompt=SUBAGENT_SYSTEM)
            launches = []
            for file in files:
                launches.append(written_call("assign_task", agent=AGENT_NAME, prompt=file))
            # The call that creates the subagent is the decision: what follows from it is skill.
            return [Segment(create, self._trains_decision), Segment(" ".join(launches))]
        if num_turns == 1:
            return [Segment(written_call("merge"))]
        return [Segment(DONE)]

    def _fix(
        self, messages: Sequence[Message], files: Sequence[str], rng: np.random.Generator
    ) -> Sequence[Segment]:
        """Read a file, write it, and so on.

        Args:
            messages: from the request on.
            files: such as `#2 f7.py`.
            rng: decides whether the mistake stays.
        """
        # Each file takes two calls: `read_file` and `write_file`.
        file_index, num_reads = divmod(_count(messages, "tool"), 2)
        if file_index == len(files):
            return [Segment(DONE)]
        # The number is said before a file is read, so that the place in the list is not lost.
        number, path = files[file_index].split()
        if num_reads == 0:
            return [Segment(f"{number} {written_call('read_file', path=path)}")]
        source = messages[-1]["content"]
        content = source if rng.random() < self.give_up_prob else correct(source)
        return [Segment(written_call("write_file", path=path, content=content))]


def _count(messages: Sequence[Message], role: str) -> int:
    return sum(message["role"] == role for message in messages)
