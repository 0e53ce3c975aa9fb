"""An environment of images: a grey square says where to look, a coloured one there says the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import gymnasium
import numpy as np
from PIL import Image, ImageDraw
from pydantic import Field

from parl.core import images
from parl.core.messages import Message
from parl.core.types import Task, ToolCall
from parl.env.base import AgentEnv, Demonstration
from parl.env.demonstrations import Segment
from parl.env.tools import tool
from parl.policy.engines.scripted import call_text

COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 60, 230)}
SIDES = ("left", "right")
QUESTION = "which colour"


def square(colour: tuple[int, int, int], x: int, y: int) -> str:
    """A white image with one square of 16 x 16."""
    image = Image.new("RGB", (64, 32), "white")
    ImageDraw.Draw(image).rectangle([x, y, x + 15, y + 15], fill=colour)
    return images.to_uri(image)


class Shapes(AgentEnv):
    """The overview does not show the colour; `look` at the right side does."""

    def generate_tasks(self, split: str, num: int, seed: int) -> list[Task]:
        rng = np.random.default_rng([seed, len(split)])
        return [self._task(f"{split}-{i}", rng) for i in range(num)]

    def _task(self, name: str, rng: np.random.Generator) -> Task:
        side = int(rng.integers(2))
        x, y, place = (
            int(v) for v in (32 * side + rng.integers(16), rng.integers(16), rng.integers(48))
        )
        overview = square((120, 120, 120), x, y)
        colour = str(rng.choice(list(COLOURS)))
        data = {"side": SIDES[side], "colour": colour, "place": place}
        return Task(name, "", f"{overview} {QUESTION}", data)

    def start(self, task: Task) -> None:
        pass

    def score(self, answer: str) -> Mapping[str, float]:
        return {"score": float(answer == self.task.data["colour"])}

    @tool
    def look(self, side: Annotated[str, Field(description="left or right")]) -> str:
        """Look closer at a side."""
        if side not in SIDES:
            return "error"
        right = side == self.task.data["side"]
        return (
            square(COLOURS[self.task.data["colour"]], self.task.data["place"], 8)
            if right
            else "nothing"
        )

    def vocabulary(self) -> Sequence[str]:
        return [*COLOURS, *SIDES, *QUESTION.split(), "error", "nothing"]

    def demonstrate(
        self, kind: str, rng: np.random.Generator, **knobs: Any
    ) -> Demonstration | Sequence[Segment]:
        """`episode`; `name`: a text with an image in it, to practise colours on."""
        task = self._task("demo", rng)
        if kind == "name":
            colour = str(rng.choice(list(COLOURS)))
            seen = square(COLOURS[colour], int(rng.integers(48)), int(rng.integers(16)))
            return [Segment(f"{seen} {QUESTION}", train=False), Segment(colour)]

        def play(messages: Sequence[Message], rng: np.random.Generator) -> Sequence[Segment]:
            looked = any(m["role"] == "tool" for m in messages)
            return [
                Segment(
                    task.data["colour"]
                    if looked
                    else call_text(ToolCall("look", {"side": task.data["side"]}))
                )
            ]

        return Demonstration(self, task, play)


gymnasium.register(id="test/Shapes-v0", entry_point=Shapes)  # type: ignore[arg-type]
