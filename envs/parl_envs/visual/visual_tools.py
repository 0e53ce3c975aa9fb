"""`parl/VisualTools-v0`: questions about images whose details cannot be read in the overview.

In: a task (pages, a question, what is right). Out: the score of the answer. Tools: `zoom` looks closer, `image_op`
changes a picture; their results carry images, as data URIs (`parl.core.images`). Each subagent has pictures of its own.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
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
FOUND = 0.5
"""IoU from which on a part counts as that of a box."""
NAME = Annotated[
    str, Field(description="p1, p2, ... (a page, whole) or v1, v2, ... (what a tool returned).")
]


class VisualTools(AgentEnv):
    """Answer questions about images by looking closer.

    Args:
        questions: what tasks may ask, equally likely. Of digits: read, list, sum, max, count, locate; of documents:
            cell, row, highest, above, bar.
        boxes: the range of boxes on a page of digits, [lo, hi].
        n: the range of boxes that list, sum and max ask for.
        paged: each of these boxes is on a page of its own, and no page is in the prompt.
        size: longer side of every image that an agent sees, in pixels, a multiple of 32.
        tools: false leaves out the tools: what can be answered from the overview alone.
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
        self.tools, self.max_images = tools, max_images
        super().__init__()
        for question in questions:
            if question not in MAKERS:
                raise ConfigError(
                    f"env.kwargs.questions: no '{question}'.{did_you_mean(str(question), tuple(MAKERS))}"
                )
        if not questions or (paged and not set(questions) <= set(SEVERAL)):
            raise ConfigError(
                f"env.kwargs.questions is {list(questions)}; give at least one, and with paged: true only some of "
                f"{', '.join(SEVERAL)}"
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
        most = len(COLOURS)
        ranges = _range("boxes", boxes, most), _range("n", n, most)
        self.knobs = VisualKnobs(tuple(questions), *ranges, size, paged, unanswerable)

    # --- tools ---

    @tool
    def zoom(
        self,
        bbox: Annotated[
            str | list[float],
            Field(
                description="The part: x0 y0 x1 y1, each from 0 (left, top) to 100 (right, bottom) of the image."
            ),
        ],
        image: NAME,
    ) -> str:
        """Look closer at a part of an image. Returns its name and the part, enlarged."""
        return self._look(image, lambda seen: seen.zoom(pictures.read_bbox(bbox)))

    @tool
    def image_op(
        self,
        op: Annotated[Op, Field(description="crop, rotate, contrast, resize or grid.")],
        image: NAME,
        value: Annotated[
            str,
            Field(
                description="crop: x0 y0 x1 y1, as zoom's. rotate: degrees clockwise. contrast and resize: percent. "
                "grid: how many columns and rows lines cut it into."
            ),
        ],
    ) -> str:
        """Change an image. Returns the name of the result, and the result."""
        return self._look(image, lambda seen: seen.apply(op, value))

    def tool_specs(self) -> tuple[ToolSpec, ...]:
        return super().tool_specs() if self.tools else ()

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        return super().call(name, arguments) if self.tools else "error: there are no tools; answer"

    def _look(self, name: str, change: Any) -> str:
        if len(self.views) >= self.max_images:
            return f"error: at most {self.max_images} images ; answer"
        try:
            seen = change(self._picture(name))
            uri = seen.uri()
        except ValueError as error:
            return f"error: {error}"
        self.views.append(seen)
        self.looks.append((seen.name, seen.box if seen.upright else None))
        return f"v{len(self.views)} {uri}"

    def _picture(self, name: str) -> Picture:
        """Raises ValueError with a text for the agent."""
        kind, number = name[:1], name[1:]
        here = (
            len(self.task.data["pages"]) if kind == "p" else len(self.views) if kind == "v" else 0
        )
        if not re.fullmatch(r"[1-9]\d{0,3}", number) or int(number) > here:
            pages, views = len(self.task.data["pages"]), len(self.views)
            raise ValueError(
                f"no image {name} ; images : p1 to p{pages}"
                + (f" , v1 to v{views}" if views else "")
            )
        if kind == "v":
            return self.views[int(number) - 1]
        return Picture(
            tasks.page_image(self.task.data["pages"][int(number) - 1]), self.knobs.size, WHOLE, name
        )

    # --- tasks and scores ---

    def generate_tasks(self, split: str, num: int, seed: int) -> list[Task]:
        return tasks.generate(self.knobs, split, num, seed)

    def load_task(self, row: Mapping[str, Any]) -> Task:
        return tasks.load_task(row, self.knobs.size)

    def start(self, task: Task) -> None:
        self.views: list[Picture] = []
        self.looks: list[tuple[str, Bbox | None]] = []
        """Of this agent and its subagents: the page and the part of it, for what the outcome tells about tool use."""
        self.named: list[Box] = []
        """The boxes that a subagent's prompt names."""
        self.said: Question | None = None

    def score(self, answer: str) -> Mapping[str, float]:
        """By the task's own score; where nothing can be told, `unknown` is right."""
        data = self.task.data
        answerable, abstained = data["answerable"], scores.abstains(answer)
        right = (
            scores.SCORES[data["score"]](answer, data["gold"])
            if answerable and not abstained
            else 0.0
        )
        score = right if answerable else float(abstained)
        said: Literal["answer", "unknown", "nothing"] = "unknown" if abstained else "answer"
        self.said = Question(answerable, said if answer.strip() else "nothing", right)
        return {
            "score": score,
            "success": float(score == 1.0),
            "tool_use": float(bool(self.looks)),
            "zoom_iou": self._zoom_iou(),
        }

    def facts(self) -> Mapping[str, Any]:
        """The question's name; whether it can be answered and was abstained from, once it has been scored."""
        facts: dict[str, Any] = {"question": self.task.data["question"]}
        if self.said is not None:
            facts |= {"answerable": self.said.answerable, "abstained": self.said.said == "unknown"}
            if self.knobs.unanswerable or facts["question"] == tasks.OWN:
                facts["calibration"] = tally([self.said])
        return facts

    def num_parts(self) -> int | None:
        return len(self.task.data["asked"]) or None

    def _zoom_iou(self) -> float:
        """Mean over the boxes asked for of the best IoU with what was looked at; 0 where no boxes are asked for."""
        asked = tasks.asked(self.task.data)
        best = [
            max(
                (
                    scores.iou(box.bbox, part)
                    for name, part in self.looks
                    if part and name == f"p{page}"
                ),
                default=0.0,
            )
            for page, box in asked
        ]
        return sum(best) / len(best) if best else 0.0

    # --- subagents ---

    def fork(self, subtask: str) -> VisualTools:
        """A subagent has the pages and no pictures yet. It is asked for the boxes that its prompt names: by where
        they are, else by their colour."""
        child = copy.copy(self)
        child.views, child.named = [], self._named(subtask)
        return child

    def check_result(self, message: str) -> bool:
        """In form: it says something, and has looked at something if it could."""
        return bool(message.strip()) and (bool(self.views) or not self.tools)

    def subtask_score(self, message: str) -> float | None:
        """Share of the boxes that the prompt named whose digits the message gives, in order (gold-informed)."""
        if not self.named:
            return None
        return scores.listing(message, " ".join(box.text for box in self.named))

    def claims(self, message: str) -> Mapping[str, str]:
        """`#2 7` states that the second box that was asked for holds a 7."""
        return dict(re.findall(r"(#\d+) (\d)(?!\S)", message))

    def _named(self, subtask: str) -> list[Box]:
        words = subtask.split()
        pages = self.task.data["pages"]
        page = next(
            (
                int(w[1:])
                for w in words
                if re.fullmatch(r"p[1-9]\d{0,3}", w) and int(w[1:]) <= len(pages)
            ),
            1,
        )
        boxes = tasks.boxes_of(pages[page - 1])
        numbers = " ".join(w for w in words if re.fullmatch(r"\d{1,3}(\.\d+)?", w))
        parts = pictures.read_bboxes(numbers)
        there = [box for part in parts for box in boxes if scores.iou(box.bbox, part) >= FOUND]
        by_colour = {box.colour: box for box in boxes}
        return there or [by_colour[w] for w in words if w in by_colour]

    # --- a policy from nothing ---

    def vocabulary(self) -> Sequence[str]:
        self._only_digits("a tiny model reads few words")
        return practice.vocabulary(self.knobs, self.max_images)

    def demonstrate(
        self, kind: str, rng: np.random.Generator, **knobs: Any
    ) -> Demonstration | Sequence[Segment]:
        """`ground`, `read`, `aggregate`: texts to practise on. `episode`: the expert at work."""
        if kind in practice.KINDS:
            return practice.KINDS[kind](rng, self.knobs)
        if kind != "episode":
            raise ConfigError(
                f"No demonstrations of kind '{kind}'.{did_you_mean(kind, [*practice.KINDS, 'episode'])}"
            )
        self._only_digits("the expert knows digits only")
        task = tasks.one_task(self.knobs, rng, "train", "demo")
        return Demonstration(self, task, expert.VisualExpert(task, rng, self.tools, **knobs))

    def _only_digits(self, why: str) -> None:
        if not set(self.knobs.questions) <= set(DIGITS):
            raise ConfigError(f"{why}: set env.kwargs.questions to some of {', '.join(DIGITS)}")


def _range(name: str, given: Sequence[int], most: int) -> tuple[int, int]:
    if len(given) != 2 or not 1 <= given[0] <= given[1] <= most:
        raise ConfigError(
            f"env.kwargs.{name} is {list(given)}; give [lo, hi] with 1 <= lo <= hi <= {most}"
        )
    return int(given[0]), int(given[1])
