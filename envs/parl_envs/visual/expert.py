"""The scripted expert of VisualTools: demonstrations for the cold start, written through the swarm runtime.

In: the messages of one agent. Out: its next turn. It looks at every box before it says what is in it, and knows where
the boxes are and what they hold from the task, since it has no eyes. It works alone or gives one box to each subagent;
which of the two is decided once per episode, and the tokens that carry that decision may be kept out of the loss
(decision masking).
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
from parl_envs.visual.tasks import asked

SUBAGENT_SYSTEM = "reader"
AGENT_NAME = "helper"


def zoom(bbox: Sequence[float], page: int) -> str:
    """The call that looks at a part of a page."""
    return written_call("zoom", bbox=words(bbox), image=f"p{page}")


def conclusion(
    question: str, wanted: str, texts: Sequence[str], bboxes: Sequence[Sequence[float]]
) -> str:
    """The final message about several boxes."""
    answer = conclude(question, wanted, texts, bboxes)
    if question == "list" and answer != UNKNOWN:
        answer = " ".join(f"#{i} {text}" for i, text in enumerate(texts, 1))
    return f"answer: {answer}"


@dataclass
class VisualExpert:
    """Plays the orchestrator and its subagents on one task.

    Args:
        tools: whether there are any: without them it says the answer at once.
        delegate_prob: probability of delegating.
        train_decision_prob: probability that a delegating episode trains its decision tokens.
        give_up_prob: probability that what is in a box is guessed, not looked at.
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
    """What is in each box, or what it is guessed to be."""
    _guessed: list[bool] = field(init=False)

    def __post_init__(self) -> None:
        self._delegates = bool(self.rng.random() < self.delegate_prob)
        self._trains_decision = bool(self.rng.random() < self.train_decision_prob)
        self._boxes = asked(self.task.data)
        self._paged = len(self.task.data["pages"]) > 1
        self._guessed = (self.rng.random(len(self._boxes)) < self.give_up_prob).tolist()
        if not self._delegates:  # one who works alone looks at all of them or at none
            self._guessed = [self._guessed[0]] * len(self._boxes)
        guesses = self.rng.integers(10, size=len(self._boxes))
        both = zip(self._guessed, guesses, self._boxes, strict=True)
        self._texts = [str(guess) if guessed else box.text for guessed, guess, (_, box) in both]

    def __call__(self, messages: Sequence[Message], rng: np.random.Generator) -> Sequence[Segment]:
        at = next(i for i, m in enumerate(messages) if m["role"] == "user")
        if messages[0]["role"] == "system" and messages[0]["content"] == SUBAGENT_SYSTEM:
            return [Segment(self._subagent(messages[at:]))]
        return (
            self._orchestrate(messages[at:])
            if self._delegates
            else [Segment(self._alone(messages[at:]))]
        )

    def _orchestrate(self, messages: Sequence[Message]) -> list[Segment]:
        if len(messages) > 1:
            results = [m["content"].split()[-1] for m in messages if m["role"] == "tool"][1:]
            return [Segment(self._answer(results))]
        prompts = [
            f"#{i} p{page} {box.colour}" + ("" if self._paged else f" {words(box.bbox)}")
            for i, (page, box) in enumerate(self._boxes, 1)
        ]
        head = written_call("create_subagent", name=AGENT_NAME, system_prompt=SUBAGENT_SYSTEM)
        launches = " ".join(
            written_call("assign_task", agent=AGENT_NAME, prompt=prompt) for prompt in prompts
        )
        return [Segment(head, self._trains_decision), Segment(launches)]

    def _subagent(self, messages: Sequence[Message]) -> str:
        """Its prompt is such as `#2 p1 red 3.125 15.625 9.375 21.875`, or `#2 p2 red`."""
        place = int(messages[0]["content"].split()[0][1:]) - 1
        seen = sum(m["role"] == "tool" for m in messages)
        done = self._guessed[place] or not self.tools or seen == self._looks()
        return self._note(place) if done else self._look(place, seen)

    def _alone(self, messages: Sequence[Message]) -> str:
        """One box after the other; the turn after its enlargement notes what is in it."""
        if self._guessed[0] or not self.tools:
            return self._answer(self._texts)
        place, at = divmod(sum(m["role"] == "tool" for m in messages), self._looks())
        if messages[-1]["content"] == ANSWER_NOW:  # in place of what was called for last
            return self._answer(self._texts[: place if at else place - 1])
        if self.task.data["question"] == "read":
            return self._answer(self._texts) if place else self._look(0, at)
        note = f"{self._note(place - 1)} " if place and at == 0 else ""
        return note + (
            self._answer(self._texts) if place == len(self._boxes) else self._look(place, at)
        )

    def _looks(self) -> int:
        """Calls until a box is enlarged: a page has to be opened first."""
        return 2 if self._paged else 1

    def _look(self, place: int, at: int) -> str:
        """What is looked for is said first: the place follows from that word and the image alone."""
        page, box = self._boxes[place]
        if at < self._looks() - 1:
            return zoom((0, 0, UNITS, UNITS), page)
        return f"{box.colour} {zoom(box.bbox, page)}"

    def _note(self, place: int) -> str:
        return f"#{place + 1} {self._texts[place]}"

    def _answer(self, texts: Sequence[str]) -> str:
        data = self.task.data
        if data["question"] == "read":
            return texts[0] if texts else UNKNOWN
        return conclusion(
            data["question"], data["wanted"], texts, [box.bbox for _, box in self._boxes]
        )
