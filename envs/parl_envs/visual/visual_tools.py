"""`parl/VisualTools-v0`: questions about images whose details cannot be read in the overview.

A task has pages, a question and the right answer. The tool `zoom` looks closer, `image_op` changes
a picture; their results are images, as data URIs (`parl.core.images`). Each subagent starts without
results.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from parl.core.abstention import Question, tally
from parl.core.errors import ConfigError, did_you_mean
from parl.core.extras import require
from parl.core.types import Task
from parl.env.base import AgentEnv, Demonstration
from parl.env.demonstrations import Segment
from parl.env.tools import ToolSpec, tool
from parl_envs.visual import expert, pictures, practice, scores, tasks
from parl_envs.visual.digits import COLOURS, Box
from parl_envs.visual.pictures import WHOLE, Bbox, Op, Picture
from parl_envs.visual.questions import DIGITS, MAKERS, SEVERAL, VisualKnobs

SIZES = (64, 96, 128, 160, 192, 224, 256)
"""Pixels; a page of digits is 8 times as large."""
MIN_IOU = 0.5
"""IoU at which a part that a prompt gives counts as that of a box."""
NAME = Annotated[
    str, Field(description="p1, p2, ... (a page, whole) or v1, v2, ... (what a tool returned).")
]


class VisualTools(AgentEnv):
    """Answer questions about images by looking closer.

    Args:
        questions: what tasks may ask, equally likely. About digits: read, list, sum, max, count,
            locate; about documents: cell, row, highest, above, bar.
        boxes: the range of the number of boxes on a page of digits, [lo, hi].
        n: the range of the number of boxes that list, sum and max ask for.
        paged: each of these boxes is on another page, and no page is in the prompt.
        size: longer side of every image that an agent sees, in pixels, a multiple of 32.
        tools: false leaves out the tools, which shows what the overview alone can answer.
        unanswerable: share of generated tasks to which `unknown` is the right answer.
        max_images: most images that the tools give one agent.
    """

    def __init__(
        self,
        questions: Sequence[str] = tuple(MAKERS),
        boxes: Sequence[int] = (4, 8),
        n: Sequence[int] = (2, 4),
        paged: bool = False,
        size: int = 64,
        tools: bool = True,
        unanswerable: float = 0.0,
        max_images: int = 16,
    ) -> None:
        # Here rather than at the first picture, which is drawn in the middle of a run.
        require("envs", "PIL", "scipy", needed_by="parl/VisualTools-v0")
        # Before `super`, which asks for the tools.
        self.tools = tools
        self.max_images = max_images
        super().__init__()
        for question in questions:
            if question not in MAKERS:
                hint = did_you_mean(str(question), tuple(MAKERS))
                raise ConfigError(f"env.kwargs.questions: no '{question}'.{hint}")
        if not questions or (paged and not set(questions) <= set(SEVERAL)):
            raise ConfigError(
                f"env.kwargs.questions is {list(questions)}; give at least one, and with paged: "
                f"true only some of {', '.join(SEVERAL)}"
            )
        if size not in SIZES:
            raise ConfigError(
                f"env.kwargs.size is {size}; give one of {', '.join(map(str, SIZES))}"
            )
        if not 0 <= unanswerable <= 1:
            raise ConfigError(f"env.kwargs.unanswerable is {unanswerable}; a share is from 0 to 1")
        if max_images < 1:
            raise ConfigError(
                f"env.kwargs.max_images is {max_images}; give at least 1, or tools: false"
            )
        # Boxes of a page have different colours, so there are at most as many.
        max_boxes = len(COLOURS)
        self.knobs = VisualKnobs(
            questions=tuple(questions),
            boxes=_range("boxes", boxes, max_boxes),
            n=_range("n", n, max_boxes),
            size=size,
            paged=paged,
            unanswerable=unanswerable,
        )

    # --- tools ---

    @tool
    def zoom(
        self,
        bbox: Annotated[
            str | list[float],
            Field(
                description="The part: x0 y0 x1 y1, each from 0 (left, top) to 100 (right, bottom) "
                "of the image."
            ),
        ],
        image: NAME,
    ) -> str:
        """Look closer at a part of an image. Returns its name and the part, enlarged."""
        return self._look(image, lambda picture: picture.zoom(pictures.read_bbox(bbox)))

    @tool
    def image_op(
        self,
        op: Annotated[Op, Field(description="crop, rotate, contrast, resize or grid.")],
        image: NAME,
        value: Annotated[
            str,
            Field(
                description="crop: x0 y0 x1 y1, as zoom's. rotate: degrees clockwise. contrast and "
                "resize: percent. grid: how many columns and rows lines cut it into."
            ),
        ],
    ) -> str:
        """Change an image. Returns the name of the result, and the result."""
        return self._look(image, lambda picture: picture.apply(op, value))

    def tool_specs(self) -> tuple[ToolSpec, ...]:
        return super().tool_specs() if self.tools else ()

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        if not self.tools:
            return "error: there are no tools; answer"
        return super().call(name, arguments)

    def _look(self, name: str, change: Callable[[Picture], Picture]) -> str:
        """Make a new picture, and return its name and image."""
        # Every image takes room in the window, which a loop of looks would fill.
        if len(self.views) >= self.max_images:
            return f"error: at most {self.max_images} images ; answer"
        try:
            view = change(self._picture(name))
            uri = view.uri()
        except ValueError as error:
            return f"error: {error}"
        self.views.append(view)
        # After a rotation, say, the part on the page is unknown, but the look still counts as one.
        self.looks.append((view.name, view.box if view.upright else None))
        return f"v{len(self.views)} {uri}"

    def _picture(self, name: str) -> Picture:
        """The picture of a name such as p1 or v2. Raises ValueError with a text for the agent."""
        pages = self.task.data["pages"]
        kind, number = name[:1], name[1:]
        num_pictures = {"p": len(pages), "v": len(self.views)}.get(kind, 0)
        if not re.fullmatch(r"[1-9]\d{0,3}", number) or int(number) > num_pictures:
            # The agent reads which names would have been right.
            names = f"p1 to p{len(pages)}"
            if self.views:
                names += f" , v1 to v{len(self.views)}"
            raise ValueError(f"no image {name} ; images : {names}")
        index = int(number) - 1
        if kind == "v":
            return self.views[index]
        return Picture(tasks.page_image(pages[index]), self.knobs.size, WHOLE, name)

    # --- tasks and scores ---

    def generate_tasks(self, split: str, num: int, seed: int) -> list[Task]:
        return tasks.generate(self.knobs, split, num, seed)

    def load_task(self, row: Mapping[str, Any]) -> Task:
        return tasks.load_task(row, self.knobs.size)

    def start(self, task: Task) -> None:
        self.views: list[Picture] = []
        self.looks: list[tuple[str, Bbox | None]] = []
        """Page and part of every look of this agent and its subagents, who share the list."""
        self.assigned_boxes: list[Box] = []
        """The boxes that a subagent's prompt names."""
        self.scored: Question | None = None
        """Whether the question was answered, once there is an answer."""

    def score(self, answer: str) -> Mapping[str, float]:
        """Score an answer as the task says. Where nothing can be told, `unknown` is right."""
        data = self.task.data
        answerable = data["answerable"]
        abstained = scores.abstains(answer)
        answer_score = 0.0
        if answerable and not abstained:
            answer_score = scores.SCORES[data["score"]](answer, data["gold"])
        score = answer_score if answerable else float(abstained)

        kind: Literal["answer", "unknown", "nothing"] = "unknown" if abstained else "answer"
        if not answer.strip():
            kind = "nothing"
        self.scored = Question(answerable, kind, answer_score)
        return {
            "score": score,
            "success": float(score == 1.0),
            "tool_use": float(bool(self.looks)),
            "zoom_iou": self._zoom_iou(),
        }

    def facts(self) -> Mapping[str, Any]:
        """Tell the question's name and, once it is scored, whether it can be and was answered."""
        facts: dict[str, Any] = {"question": self.task.data["question"]}
        if self.scored is not None:
            # Known only after `score`, which the runtime calls before it asks for facts.
            facts["answerable"] = self.scored.answerable
            facts["abstained"] = self.scored.reply == "unknown"
            # Where every question has an answer, counting abstentions would say nothing.
            if self.knobs.unanswerable or facts["question"] == tasks.OWN:
                facts["calibration"] = tally([self.scored])
        return facts

    def num_parts(self) -> int | None:
        return len(self.task.data["asked"]) or None

    def _zoom_iou(self) -> float:
        """Mean over the question's boxes of the best IoU with a look; 0 without boxes."""
        boxes = tasks.boxes_in_question(self.task.data)
        if not boxes:
            return 0.0
        total = 0.0
        for page, box in boxes:
            # Only looks at the box's own page count.
            best = 0.0
            for page_name, part in self.looks:
                if part and page_name == f"p{page}":
                    best = max(best, scores.iou(box.bbox, part))
            total += best
        return total / len(boxes)

    # --- subagents ---

    def fork(self, subtask: str) -> VisualTools:
        """Make the environment of a subagent, which has the pages and no results yet.

        It is assigned the boxes that its prompt names: by where they are, else by their colour.
        """
        child = copy.copy(self)
        # `looks` stays shared: what a subagent looked at is tool use of the episode.
        child.views = []
        child.assigned_boxes = self._boxes_in_prompt(subtask)
        return child

    def check_result(self, message: str) -> bool:
        """Accept a subagent that says something and, where there are tools, has looked."""
        return bool(message.strip()) and (bool(self.views) or not self.tools)

    def subtask_score(self, message: str) -> float | None:
        """Score a subagent: the share of its boxes whose digits the message gives, in order.

        Gold-informed. None if its prompt names no box.
        """
        if not self.assigned_boxes:
            return None
        gold = " ".join(box.text for box in self.assigned_boxes)
        return scores.listing(message, gold)

    def claims(self, message: str) -> Mapping[str, str]:
        """Return what a message states: `#2 7` says that the question's second box holds a 7."""
        return dict(re.findall(r"(#\d+) (\d)(?!\S)", message))

    def _boxes_in_prompt(self, subtask: str) -> list[Box]:
        """The boxes that a subtask names, by their places, else by their colours."""
        words = subtask.split()
        boxes = tasks.boxes_of(self._page_in_prompt(words))
        # Without the `#2` and `p1` of the prompt, which are no coordinates.
        numbers = [word for word in words if re.fullmatch(r"\d{1,3}(\.\d+)?", word)]
        placed = []
        for part in pictures.read_bboxes(" ".join(numbers)):
            for box in boxes:
                if scores.iou(box.bbox, part) >= MIN_IOU:
                    placed.append(box)
        if placed:
            return placed
        box_by_colour = {box.colour: box for box in boxes}
        return [box_by_colour[word] for word in words if word in box_by_colour]

    def _page_in_prompt(self, words: Sequence[str]) -> Mapping[str, Any]:
        """The first page that is named; without one, p1."""
        pages: Sequence[Mapping[str, Any]] = self.task.data["pages"]
        for word in words:
            if re.fullmatch(r"p[1-9]\d{0,3}", word) and int(word[1:]) <= len(pages):
                return pages[int(word[1:]) - 1]
        return pages[0]

    # --- a policy from nothing ---

    def vocabulary(self) -> Sequence[str]:
        self._only_digits("a tiny model reads few words")
        return practice.vocabulary(self.knobs, self.max_images)

    def demonstrate(
        self, kind: str, rng: np.random.Generator, **knobs: Any
    ) -> Demonstration | Sequence[Segment]:
        """Draw a demonstration.

        `ground`, `read` and `aggregate` are texts to practise on; `episode` is the expert at work,
        with the knobs of `VisualExpert`.
        """
        if kind in practice.KINDS:
            return practice.KINDS[kind](rng, self.knobs)
        if kind != "episode":
            hint = did_you_mean(kind, [*practice.KINDS, "episode"])
            raise ConfigError(f"No demonstrations of kind '{kind}'.{hint}")
        self._only_digits("the expert knows digits only")
        task = tasks.one_task(self.knobs, rng, "train", "demo")
        return Demonstration(self, task, expert.VisualExpert(task, rng, self.tools, **knobs))

    def _only_digits(self, reason: str) -> None:
        if not set(self.knobs.questions) <= set(DIGITS):
            raise ConfigError(f"{reason}: set env.kwargs.questions to some of {', '.join(DIGITS)}")


def _range(name: str, value: Sequence[int], highest: int) -> tuple[int, int]:
    if len(value) != 2 or not 1 <= value[0] <= value[1] <= highest:
        raise ConfigError(
            f"env.kwargs.{name} is {list(value)}; give [lo, hi] with 1 <= lo <= hi <= {highest}"
        )
    return int(value[0]), int(value[1])
