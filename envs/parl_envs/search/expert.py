"""The scripted expert of WideSearch: demonstrations for the cold start, written through the swarm runtime.

In: the messages of one agent. Out: its next turn. It reads what any policy reads (prompt and observations), never the
gold. It can work alone or delegate; which of the two is decided once per episode, and the tokens that carry that
decision may be kept out of the loss (decision masking: the skill of delegating without the inclination).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from parl.core.messages import Message
from parl.core.types import Task
from parl.env.base import ANSWER_NOW
from parl.env.demonstrations import Segment, written_call

SUBAGENT_SYSTEM = "searcher"
AGENT_NAME = "scout"


@dataclass
class Expert:
    """Plays the orchestrator and its subagents on one task.

    Args:
        delegate_prob: probability of delegating.
        train_decision_prob: probability that a delegating episode trains its decision tokens.
        give_up_prob: probability that a subagent skips its last look-up and answers `unknown`.
        width_limit: delegate all rows up to here, and each further row with probability `continue_p`.
    """

    task: Task
    rng: np.random.Generator
    delegate_prob: float = 0.5
    train_decision_prob: float = 0.2
    give_up_prob: float = 0.1
    width_limit: int = 1000
    continue_p: float = 1.0
    _delegates: bool = field(init=False)
    _trains_decision: bool = field(init=False)
    _width: int = field(init=False)

    def __post_init__(self) -> None:
        self._delegates = bool(self.rng.random() < self.delegate_prob)
        self._trains_decision = bool(self.rng.random() < self.train_decision_prob)
        num = len(self.task.data["gold"])
        self._width = min(num, self.width_limit)
        while self._width < num and self.rng.random() < self.continue_p:
            self._width += 1

    def __call__(self, messages: Sequence[Message], rng: np.random.Generator) -> Sequence[Segment]:
        if messages[0]["role"] == "system" and messages[0]["content"] == SUBAGENT_SYSTEM:
            return self._subagent(messages, rng)
        prompt = next(m["content"] for m in messages if m["role"] == "user")
        columns, names = _parse_question(prompt)
        if self._delegates:
            return self._orchestrator(messages, columns, names)
        return self._alone(messages, columns, names, rng)

    def _orchestrator(
        self, messages: Sequence[Message], columns: str, names: Sequence[str]
    ) -> Sequence[Segment]:
        if messages[-1]["role"] == "user":
            head = written_call("create_subagent", name=AGENT_NAME, system_prompt=SUBAGENT_SYSTEM)
            launches = [
                written_call("assign_task", agent=AGENT_NAME, prompt=f"{name} : {columns}")
                for name in names[: self._width]
            ]
            return [Segment(head, self._trains_decision), Segment(" ".join(launches))]
        results = [m["content"] for m in messages if m["role"] == "tool"][1:]
        return [Segment(" ".join(results))]

    def _subagent(self, messages: Sequence[Message], rng: np.random.Generator) -> Sequence[Segment]:
        prompt = next(m["content"] for m in messages if m["role"] == "user")
        name, _, columns = prompt.partition(" : ")
        said = self._row(messages, name, columns, rng)
        last = columns.split()[-1]
        if "<tool_call>" not in said[0].text and rng.random() < self.give_up_prob:
            return [Segment(f"{said[0].text.rsplit(f' {last} ', 1)[0]} {last} unknown")]
        return said

    def _alone(
        self,
        messages: Sequence[Message],
        columns: str,
        names: Sequence[str],
        rng: np.random.Generator,
    ) -> Sequence[Segment]:
        """One row after the other; the turn that has read a row's last page notes its cells."""
        per_row = 4 if " > " in columns else 2
        tools = sum(m["role"] == "tool" for m in messages)
        done, at = divmod(tools, per_row)
        notes = [
            m["content"].split("<tool_call>")[0].strip()
            for m in messages
            if m["role"] == "assistant"
        ]
        if messages[-1]["content"] == ANSWER_NOW:
            return [Segment(" ".join(n for n in notes if n))]
        if at == 0 and done > 0:
            note = _cells(messages, names[done - 1], columns)
            if done == len(names):
                return [Segment(" ".join([*(n for n in notes if n), note]))]
            return [Segment(note + " " + written_call("search", query=_entity(names[done])))]
        return self._row(messages[-2 * at :] if at else [], names[done], columns, rng)

    def _row(
        self, messages: Sequence[Message], name: str, columns: str, rng: np.random.Generator
    ) -> Sequence[Segment]:
        observations = [m["content"] for m in messages if m["role"] == "tool"]
        step = len(observations)
        if step == 0:
            return [Segment(written_call("search", query=_entity(name)))]
        hop = " > " in columns
        last = observations[-1]
        if step % 2 == 1:
            query = _entity(name) if step == 1 else _read(observations[1], "capital")
            return [Segment(written_call("open", doc=_find(last, query)))]
        if hop and step == 2:
            return [Segment(written_call("search", query=_read(last, "capital")))]
        return [Segment(_cells(messages, name, columns))]


def _parse_question(prompt: str) -> tuple[str, list[str]]:
    """'find capital , currency for : #1 Kenya ; #2 Togo' -> ('capital , currency', ['#1 Kenya', '#2 Togo'])."""
    head, _, tail = prompt.partition(" for : ")
    return head.removeprefix("find "), [part.strip() for part in tail.split(";")]


def _entity(name: str) -> str:
    return name.split(" ", 1)[1]


def _find(results: str, title: str) -> str:
    """The id of the result with this title; of the first result when none has it."""
    lines = [line.rsplit(" : ", 1) for line in results.split("\n") if " : " in line]
    ids = dict(reversed(lines))
    return ids.get(title, lines[0][1] if lines else "unknown")


def _read(page: str, attribute: str) -> str:
    for line in page.split("\n"):
        key, _, value = line.partition(" : ")
        if key == attribute:
            return value
    return "unknown"


def _cells(messages: Sequence[Message], name: str, columns: str) -> str:
    """The row's cells from the pages read last."""
    pages = [m["content"] for m in messages if m["role"] == "tool"][1::2]
    if " > " in columns:
        first, second = columns.split(" > ")
        return f"{name} {first} {_read(pages[-2], first)} {second} {_read(pages[-1], second)}"
    return " ".join([name, *(f"{c} {_read(pages[-1], c)}" for c in columns.split(" , "))])
