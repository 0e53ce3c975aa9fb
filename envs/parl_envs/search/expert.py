"""The scripted expert of WideSearch: demonstrations for the cold start.

They are played through the swarm runtime. The expert writes an agent's next turn from the messages
of that agent. It reads what any policy reads (the prompt and the observations) and never the gold
answer.

It works alone or delegates, which is decided once per episode. The tokens that carry this decision
can be kept out of the loss ("decision masking"): the policy then learns how to delegate without the
inclination to do it.
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
class SearchExpert:
    """Play the orchestrator and its subagents on one task.

    Args:
        delegate_prob: probability of delegating.
        train_decision_prob: probability that a delegating episode trains its decision tokens.
        give_up_prob: probability that a subagent skips its last look-up and answers `unknown`.
        width_limit: number of rows that are delegated for certain.
        continue_p: probability of delegating each further row, up to the first that is not.
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
        num_rows = len(self.task.data["gold"])
        # Without a limit (the default is above every task's number of rows) all rows are delegated.
        self._width = min(num_rows, self.width_limit)
        while self._width < num_rows and self.rng.random() < self.continue_p:
            self._width += 1

    def __call__(self, messages: Sequence[Message], rng: np.random.Generator) -> Sequence[Segment]:
        """Write the next turn of the agent that has these messages."""
        if messages[0]["role"] == "system" and messages[0]["content"] == SUBAGENT_SYSTEM:
            return self._subagent(messages, rng)
        columns, names = parse_question(user_prompt(messages))
        if self._delegates:
            return self._orchestrator(messages, columns, names)
        return self._alone(messages, columns, names)

    def _orchestrator(
        self, messages: Sequence[Message], columns: str, names: Sequence[str]
    ) -> Sequence[Segment]:
        """Launch one subagent for each row in the first turn; join their messages in the second."""
        if messages[-1]["role"] == "user":
            create = written_call("create_subagent", name=AGENT_NAME, system_prompt=SUBAGENT_SYSTEM)
            launches = []
            for name in names[: self._width]:
                prompt = f"{name} : {columns}"
                launches.append(written_call("assign_task", agent=AGENT_NAME, prompt=prompt))
            # The call that creates the subagent is the decision: what follows from it is skill.
            return [Segment(create, self._trains_decision), Segment(" ".join(launches))]
        # The first observation is the answer to `create_subagent`.
        results = observations_of(messages)[1:]
        return [Segment(" ".join(results))]

    def _subagent(self, messages: Sequence[Message], rng: np.random.Generator) -> Sequence[Segment]:
        """Look one row up; with `give_up_prob` leave the last cell unknown."""
        name, _, columns = user_prompt(messages).partition(" : ")
        turn = _look_up(messages, name, columns)
        last_column = columns.split()[-1]
        # Only the turn that reports can give up; look-ups are always made.
        if "<tool_call>" not in turn and rng.random() < self.give_up_prob:
            cells = turn.rsplit(f" {last_column} ", 1)[0]
            return [Segment(f"{cells} {last_column} unknown")]
        return [Segment(turn)]

    def _alone(
        self, messages: Sequence[Message], columns: str, names: Sequence[str]
    ) -> Sequence[Segment]:
        """Look up one row after another; the turn after a row's last page notes its cells."""
        observations_per_row = 4 if " > " in columns else 2
        row, step = divmod(len(observations_of(messages)), observations_per_row)
        # The runtime asks for the answer when the window is full: what was noted is all there is.
        if messages[-1]["content"] == ANSWER_NOW:
            return [Segment(" ".join(_notes(messages)))]
        if step == 0 and row > 0:
            note = _cells(messages, names[row - 1], columns)
            if row == len(names):
                return [Segment(" ".join([*_notes(messages), note]))]
            next_search = written_call("search", query=entity_of(names[row]))
            return [Segment(f"{note} {next_search}")]
        # Turns and observations alternate, so the row's own messages are the last 2 * step.
        row_messages = messages[-2 * step :] if step else []
        return [Segment(_look_up(row_messages, names[row], columns))]


def _notes(messages: Sequence[Message]) -> list[str]:
    """The cells that the agent's earlier turns noted before their calls."""
    notes = []
    for message in messages:
        if message["role"] == "assistant":
            note = message["content"].split("<tool_call>")[0].strip()
            if note:
                notes.append(note)
    return notes


def _look_up(messages: Sequence[Message], name: str, columns: str) -> str:
    """Write the next turn about one row: search, open; then the same for a second hop."""
    observations = observations_of(messages)
    step = len(observations)
    if step == 0:
        return written_call("search", query=entity_of(name))
    if step % 2 == 1:
        title = entity_of(name) if step == 1 else read_fact(observations[1], "capital")
        return written_call("open", doc=find_document(observations[-1], title))
    if " > " in columns and step == 2:
        return written_call("search", query=read_fact(observations[-1], "capital"))
    return _cells(messages, name, columns)


def _cells(messages: Sequence[Message], name: str, columns: str) -> str:
    """The row's cells from the pages that were read last."""
    # Searches and pages alternate among the observations.
    pages = observations_of(messages)[1::2]
    if " > " in columns:
        return row_text(name, columns, pages[-2], pages[-1])
    return row_text(name, columns, pages[-1])


def row_text(name: str, columns: str, page: str, second_page: str = "") -> str:
    """Write one row of the answer.

    Args:
        name: such as `#1 Kenya`.
        columns: `capital , currency`, or `capital > time` where the second stands on another page.
        page: the country's page.
        second_page: the page of the second hop.
    """
    if " > " in columns:
        first, second = columns.split(" > ")
        first_value = read_fact(page, first)
        return f"{name} {first} {first_value} {second} {read_fact(second_page, second)}"
    cells = [f"{column} {read_fact(page, column)}" for column in columns.split(" , ")]
    return " ".join([name, *cells])


def user_prompt(messages: Sequence[Message]) -> str:
    """The first message of the user."""
    return next(message["content"] for message in messages if message["role"] == "user")


def observations_of(messages: Sequence[Message]) -> list[str]:
    """The results of all tool calls, in order."""
    return [message["content"] for message in messages if message["role"] == "tool"]


def parse_question(prompt: str) -> tuple[str, list[str]]:
    """Take a task's prompt apart.

    Example: 'find capital , currency for : #1 Kenya ; #2 Togo' -> ('capital , currency', ['#1
        Kenya', '#2 Togo'])
    """
    head, _, tail = prompt.partition(" for : ")
    return head.removeprefix("find "), [part.strip() for part in tail.split(";")]


def entity_of(name: str) -> str:
    """Example: '#1 Kenya' -> 'Kenya'."""
    return name.split(" ", 1)[1]


def find_document(results: str, title: str) -> str:
    """The id of the first search result with this title; of the first result when none has it."""
    lines = [line.rsplit(" : ", 1) for line in results.split("\n") if " : " in line]
    # Reversed, because a later entry of a dict wins and the first result is the best.
    ids = dict(reversed(lines))
    first_id = lines[0][1] if lines else "unknown"
    return ids.get(title, first_id)


def read_fact(page: str, attribute: str) -> str:
    """The value of an attribute on a page of `attribute : value` lines."""
    for line in page.split("\n"):
        key, _, value = line.partition(" : ")
        if key == attribute:
            return value
    return "unknown"
