"""The scripted expert of VisualTools: demonstrations for the cold start, written through the swarm runtime.

In: the messages of one agent. Out: its next turn. It looks at every box before it says what is in it, and knows where
the boxes are and what they hold from the task, since it has no eyes. It works alone or gives one box to each subagent.
With a `skill`, only the tokens that carry this skill are learned from (and measured, as `accuracy/SKILL`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from parl.env import Message, Said
from parl.types import Task
from parl_envs.visual.digits import COLOURS
from parl_envs.visual.pictures import OPS, UNITS
from parl_envs.visual.questions import TEXTS, Knobs, conclude
from parl_envs.visual.scores import UNKNOWN
from parl_envs.visual.tasks import asked

SUBAGENT_SYSTEM = "reader"
AGENT_NAME = "helper"
SKILLS = ("ground", "read", "aggregate")
"""Where a box is; what is in a box that was enlarged; an answer from what all boxes hold."""
CALL_END = '"}}</tool_call>'
COMMON = tuple(
    ": ; , ? ok orchestrator pages error: no image images to at most answer answer: bbox is with and <= < "  # noqa: SIM905
    "duplicate task budget exhausted stopped (turns) environment call(s) per turn there are tools".split()
)

Piece = tuple[str, str]
"""(skill, text); the skill is `form` for what is the same in every episode of its kind."""


def vocabulary(knobs: Knobs, max_images: int) -> tuple[str, ...]:
    """Every word that an episode about digits may hold."""
    most = len(COLOURS)
    numbers = [*(str(i) for i in range(UNITS + 1)), *(f"#{i}" for i in range(1, most + 1))]
    names = [*(f"p{i}" for i in range(1, most + 1)), *(f"v{i}" for i in range(1, max_images + 1))]
    questions = [word for text in TEXTS.values() for word in text.split() if word != "{}"]
    words = ["\n", *COMMON, AGENT_NAME, SUBAGENT_SYSTEM, UNKNOWN, *OPS, *COLOURS, *questions, *numbers, *names]
    return tuple(dict.fromkeys(words))


@dataclass
class Expert:
    """Plays the orchestrator and its subagents on one task.

    Args:
        skill: one of SKILLS, to learn only that; None for the whole episode.
        tools: whether there are any: without them it says the answer at once.
        parallel: probability of delegating.
        decide: probability that a delegating episode trains its decision tokens.
        lazy: probability that what is in a box is guessed, not looked at.
    """

    task: Task
    rng: np.random.Generator
    skill: str | None = None
    tools: bool = True
    parallel: float = 0.5
    decide: float = 0.2
    lazy: float = 0.0
    _delegates: bool = field(init=False)
    _trains_decision: bool = field(init=False)
    _guesses: list[bool] = field(init=False)

    def __post_init__(self) -> None:
        self._delegates = bool(self.rng.random() < self.parallel)
        self._trains_decision = bool(self.rng.random() < self.decide)
        self._items = asked(self.task.data)
        self._paged = len(self.task.data["pages"]) > 1
        self._question: str = self.task.data["question"]
        lazy = self.lazy if self.skill is None else 0.0
        self._guesses = (self.rng.random(len(self._items)) < lazy).tolist()
        self._guessed = [str(d) for d in self.rng.integers(10, size=len(self._items))]

    def __call__(self, messages: Sequence[Message], rng: np.random.Generator) -> Sequence[Said]:
        at = next(i for i, m in enumerate(messages) if m["role"] == "user")
        pieces = self._turn(messages, at)
        if self.skill is None:
            return [Said(text, skill != "decide" or self._trains_decision) for skill, text in pieces]
        return [*(Said(text, skill == self.skill) for skill, text in pieces), Said("", train=False)]

    def _turn(self, messages: Sequence[Message], at: int) -> list[Piece]:
        if messages[0]["role"] == "system" and messages[0]["content"] == SUBAGENT_SYSTEM:
            return self._subagent(messages[at:])
        if self._delegates:
            return self._orchestrate(messages[at:])
        return self._alone(messages[at:])

    def _orchestrate(self, messages: Sequence[Message]) -> list[Piece]:
        if len(messages) > 1:
            results = [m["content"].split()[-1] for m in messages if m["role"] == "tool"][1:]
            return self._conclusion(results)
        create = f'<tool_call>{{"name": "create_subagent", "arguments": {{"name": "{AGENT_NAME}", "system_prompt": "'
        pieces = [("decide", f"{create}{SUBAGENT_SYSTEM}{CALL_END}")]
        assign = f'<tool_call>{{"name": "assign_task", "arguments": {{"agent": "{AGENT_NAME}", "prompt": "'
        for number, (page, box) in enumerate(self._items, 1):
            pieces.append(("form", f"{assign}#{number} p{page} "))
            pieces.append(("form", box.colour) if self._paged else ("ground", _words(box.bbox)))
            pieces.append(("form", CALL_END))
        return pieces

    def _subagent(self, messages: Sequence[Message]) -> list[Piece]:
        """Its prompt is such as `#2 p1 6 12 12 19`, or `#2 p2 red`."""
        number = messages[0]["content"].split()[0]
        place = int(number[1:]) - 1
        seen = sum(m["role"] == "tool" for m in messages)
        if self._guesses[place]:
            return [("form", f"{number} {self._guessed[place]}")]
        if not self.tools or seen == self._looks():
            return self._note(place)
        return self._zoom(place, seen, told=not self._paged)

    def _alone(self, messages: Sequence[Message]) -> list[Piece]:
        """One box after the other; the turn after its enlargement notes what is in it."""
        if any(self._guesses):
            return self._conclusion(self._guessed)
        place, at = divmod(sum(m["role"] == "tool" for m in messages), self._looks())
        texts = [box.text for _, box in self._items]
        if not self.tools:
            return self._conclusion(texts)
        if self._question == "read":
            return [("read", texts[0])] if place else self._zoom(0, at)
        before = self._note(place - 1) if place and at == 0 else []
        if place == len(self._items):
            return [*before, *self._conclusion(texts)]
        return [*before, *self._zoom(place, at)]

    def _looks(self) -> int:
        """Calls until a box is enlarged: a page has to be opened first."""
        return 2 if self._paged else 1

    def _zoom(self, place: int, at: int, told: bool = False) -> list[Piece]:
        """`told`: the prompt said where the box is."""
        page, box = self._items[place]
        head = '<tool_call>{"name": "zoom", "arguments": {"bbox": "'
        tail = f'", "image": "p{page}{CALL_END}'
        if at < self._looks() - 1:
            return [("form", f"{head}0 0 {UNITS} {UNITS}{tail}")]
        return [("form", head), ("form" if told else "ground", _words(box.bbox)), ("form", tail)]

    def _note(self, place: int) -> list[Piece]:
        return [("form", f"#{place + 1}"), ("read", self._items[place][1].text)]

    def _conclusion(self, texts: Sequence[str]) -> list[Piece]:
        if self._question == "read":
            return [("aggregate", texts[0])]
        answer = conclude(self._question, self.task.data["wanted"], texts, [box.bbox for _, box in self._items])
        if self._question == "list" and answer != UNKNOWN:
            answer = " ".join(f"#{i} {text}" for i, text in enumerate(texts, 1))
        return [("form", "answer:"), ("aggregate", answer)]


def _words(bbox: Sequence[int]) -> str:
    return " ".join(map(str, bbox))
