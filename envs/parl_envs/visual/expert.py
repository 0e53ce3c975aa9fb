"""The scripted expert of VisualTools: demonstrations for the cold start.

They are played through the swarm runtime. The expert writes an agent's next turn from the messages
of that agent. It looks at every box before it says what is in it. It cannot see, so it knows from
the task where the boxes are and what is in them.

It works alone or gives one box to each subagent, which is decided once per episode. The tokens that
carry this decision can be kept out of the loss (decision masking).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from parl.core.messages import Message
from parl.core.types import Task
from parl.env.base import ANSWER_NOW
from parl.env.demonstrations import Segment, written_call
from parl_envs.visual.pictures import UNITS, words
from parl_envs.visual.questions import conclude
from parl_envs.visual.scores import UNKNOWN
from parl_envs.visual.tasks import boxes_in_question

SUBAGENT_SYSTEM = "reader"
AGENT_NAME = "helper"


def zoom(bbox: Sequence[float], page: int) -> str:
    """Write the call that looks at a part of a page."""
    return written_call("zoom", bbox=words(bbox), image=f"p{page}")


def conclusion(
    question: str, digit: str, texts: Sequence[str], bboxes: Sequence[Sequence[float]]
) -> str:
    """Write the final message about several boxes.

    Args:
        question: its name.
        digit: the digit that is looked for, where one is.
        texts: what is in each box.
        bboxes: where each box is.
    """
    answer = conclude(question, digit, texts, bboxes)
    if question == "list" and answer != UNKNOWN:
        answer = " ".join(f"#{i} {text}" for i, text in enumerate(texts, 1))
    return f"answer: {answer}"


@dataclass
class VisualExpert:
    """Play the orchestrator and its subagents on one task.

    Args:
        tools: whether there are any. Without them it says the answer at once.
        delegate_prob: probability of delegating.
        train_decision_prob: probability that a delegating episode trains its decision tokens.
        give_up_prob: probability that the text of a box is guessed and not looked at.
    """

    task: Task
    rng: np.random.Generator
    tools: bool = True
    delegate_prob: float = 0.5
    train_decision_prob: float = 0.2
    give_up_prob: float = 0.0
    _delegates: bool = field(init=False)
    _trains_decision: bool = field(init=False)
    _texts: list[str] = field(init=False)
    """What is in each box, or the guess."""
    _guessed: list[bool] = field(init=False)

    def __post_init__(self) -> None:
        self._delegates = bool(self.rng.random() < self.delegate_prob)
        self._trains_decision = bool(self.rng.random() < self.train_decision_prob)
        self._boxes = boxes_in_question(self.task.data)
        self._paged = len(self.task.data["pages"]) > 1
        self._guessed = (self.rng.random(len(self._boxes)) < self.give_up_prob).tolist()
        if not self._delegates:
            # An agent that works alone looks at all boxes or at none.
            self._guessed = [self._guessed[0]] * len(self._boxes)
        guesses = self.rng.integers(10, size=len(self._boxes))
        self._texts = []
        for is_guessed, guess, (_, box) in zip(self._guessed, guesses, self._boxes, strict=True):
            self._texts.append(str(guess) if is_guessed else box.text)

    def __call__(self, messages: Sequence[Message], rng: np.random.Generator) -> Sequence[Segment]:
        """Write the next turn of the agent that has these messages."""
        is_subagent = messages[0]["role"] == "system" and messages[0]["content"] == SUBAGENT_SYSTEM
        # The orchestrator's system prompt may be empty, and is then no message.
        while messages[0]["role"] != "user":
            messages = messages[1:]
        if is_subagent:
            return [Segment(self._subagent(messages))]
        if self._delegates:
            return self._orchestrate(messages)
        return [Segment(self._alone(messages))]

    def _orchestrate(self, messages: Sequence[Message]) -> list[Segment]:
        """Launch one subagent for each box; answer from what they report."""
        if len(messages) > 1:
            # The first observation is the answer to `create_subagent`.
            reports = [message for message in messages if message["role"] == "tool"][1:]
            texts = [report["content"].split()[-1] for report in reports]
            return [Segment(self._answer(texts))]
        create = written_call("create_subagent", name=AGENT_NAME, system_prompt=SUBAGENT_SYSTEM)
        launches = []
        for number, (page, box) in enumerate(self._boxes, 1):
            prompt = f"#{number} p{page} {box.colour}"
            if not self._paged:
                # On a page of its own a box is found by its colour.
                prompt += f" {words(box.bbox)}"
            launches.append(written_call("assign_task", agent=AGENT_NAME, prompt=prompt))
        # The call that creates the subagent is the decision: what follows from it is skill.
        return [Segment(create, self._trains_decision), Segment(" ".join(launches))]

    def _subagent(self, messages: Sequence[Message]) -> str:
        """Look at a box and report its text.

        The prompt is such as `#2 p1 red 3.125 15.625 9.375 21.875`, or `#2 p2 red`.
        """
        number = messages[0]["content"].split()[0]
        index = int(number[1:]) - 1
        num_looks = _count_tool_results(messages)
        if self._guessed[index] or not self.tools or num_looks == self._looks_per_box():
            return self._note(index)
        return self._look(index, num_looks)

    def _alone(self, messages: Sequence[Message]) -> str:
        """Look at one box after another; the turn after a box's enlargement notes what is in it."""
        if self._guessed[0] or not self.tools:
            return self._answer(self._texts)
        index, num_looks = divmod(_count_tool_results(messages), self._looks_per_box())
        if messages[-1]["content"] == ANSWER_NOW:
            # It stands in place of the last result, so that box has not been looked at.
            num_noted = index if num_looks else index - 1
            return self._answer(self._texts[:num_noted])
        if self.task.data["question"] == "read":
            # One box: its text is the answer, without a note.
            return self._answer(self._texts) if index else self._look(0, num_looks)
        note = f"{self._note(index - 1)} " if index and num_looks == 0 else ""
        if index == len(self._boxes):
            return note + self._answer(self._texts)
        return note + self._look(index, num_looks)

    def _looks_per_box(self) -> int:
        """Calls until a box is enlarged: a page that the prompt lacks is opened first."""
        return 2 if self._paged else 1

    def _look(self, index: int, num_looks: int) -> str:
        """The next call on the way to a box."""
        page, box = self._boxes[index]
        if num_looks < self._looks_per_box() - 1:
            return zoom((0, 0, UNITS, UNITS), page)
        # The colour comes first: the place follows from that word and the image alone.
        return f"{box.colour} {zoom(box.bbox, page)}"

    def _note(self, index: int) -> str:
        return f"#{index + 1} {self._texts[index]}"

    def _answer(self, texts: Sequence[str]) -> str:
        question = self.task.data["question"]
        if question == "read":
            return texts[0] if texts else UNKNOWN
        bboxes = [box.bbox for _, box in self._boxes]
        return conclusion(question, self.task.data["wanted"], texts, bboxes)


def _count_tool_results(messages: Sequence[Message]) -> int:
    return sum(message["role"] == "tool" for message in messages)
