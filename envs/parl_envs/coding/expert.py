"""The scripted expert of Coding: demonstrations for the cold start, written through the swarm runtime.

In: the messages of one agent. Out: its next turn. It reads what any policy reads, never the solution. It works alone
or delegates one file to each subagent; which of the two is decided once per episode, and the tokens that carry that
decision may be kept out of the loss (decision masking).
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
    """Plays the orchestrator and its subagents on one task.

    Args:
        delegate_prob: probability of delegating.
        train_decision_prob: probability that a delegating episode trains its decision tokens.
        give_up_prob: probability that a file is written as it was found, mistake included.
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
        if messages[0]["role"] == "system" and messages[0]["content"] == SUBAGENT_SYSTEM:
            return self._fix(messages[1:], [messages[1]["content"]], rng)
        at = next(i for i, m in enumerate(messages) if m["role"] == "user")
        files = messages[at]["content"].removeprefix("fix : ").split(" ; ")
        if self._delegates:
            return self._orchestrate(messages[at:], files)
        return self._fix(messages[at:], files, rng)

    def _orchestrate(self, messages: Sequence[Message], files: Sequence[str]) -> Sequence[Segment]:
        if len(messages) == 1:
            launches = [
                written_call("assign_task", agent=AGENT_NAME, prompt=file) for file in files
            ]
            head = written_call("create_subagent", name=AGENT_NAME, system_prompt=SUBAGENT_SYSTEM)
            return [Segment(head, self._trains_decision), Segment(" ".join(launches))]
        merged = sum(m["role"] == "assistant" for m in messages) > 1
        return [Segment(DONE if merged else written_call("merge"))]

    def _fix(
        self, messages: Sequence[Message], files: Sequence[str], rng: np.random.Generator
    ) -> Sequence[Segment]:
        """Read a file, write it, and so on; `messages` begin with the request, `files` are such as `#2 f7.py`."""
        place, writes = divmod(sum(m["role"] == "tool" for m in messages), 2)
        if place == len(files):
            return [Segment(DONE)]
        number, path = files[place].split()
        if not writes:
            return [Segment(f"{number} {written_call('read_file', path=path)}")]
        found = messages[-1]["content"]
        return [
            Segment(
                written_call(
                    "write_file",
                    path=path,
                    content=found if rng.random() < self.give_up_prob else correct(found),
                )
            )
        ]
