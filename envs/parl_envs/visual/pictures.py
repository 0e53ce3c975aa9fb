"""What an agent sees of an image: a part of it, never larger than a few tokens; and what it can do with it.

In: a picture and what was asked in words. Out: another picture. Looking closer goes back to the image's own pixels, so
a part of a part is as sharp as the image is. Coordinates are percents of what the agent sees. Bad requests raise
ValueError with a text for the agent.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal

from parl.core import images

UNITS = 100
GRID = 16
"""The shorter side of what is shown is a multiple of it: patches of vision models."""
LONGEST_STRIP = 16
"""The longer side of a part, in shorter ones."""
OPS = ("crop", "rotate", "contrast", "resize", "grid")
Op = Literal["crop", "rotate", "contrast", "resize", "grid"]
Bbox = tuple[float, float, float, float]
WHOLE: Bbox = (0.0, 0.0, float(UNITS), float(UNITS))
BBOX_FORM = f"bbox is x0 y0 x1 y1 with 0 <= x0 < x1 <= {UNITS} and 0 <= y0 < y1 <= {UNITS}"


@dataclass(frozen=True, eq=False)
class Picture:
    """A part of an image. `name` is the page that it is of, `part` where on it (percent), where that is known."""

    image: Any
    """A PIL image in RGB."""
    size: int
    """Longer side of what is shown, in pixels."""
    box: Bbox = WHOLE
    """The part, in percent of the image."""
    name: str = ""
    upright: bool = True
    """False after an operation that moves pixels: then nobody knows where on its page the part is."""

    def zoom(self, bbox: Bbox) -> Picture:
        """A part of this part."""
        inner = _inside(self.box, bbox)
        width, height = _pixels(self.image, inner)
        if min(width, height) < 2:
            raise ValueError("there is nothing more to see: the part has less than 2 pixels")
        if max(width, height) > LONGEST_STRIP * min(width, height):
            raise ValueError(
                f"the part is a strip; its longer side may be {LONGEST_STRIP} times its shorter one"
            )
        return Picture(self.image, self.size, inner, self.name, self.upright)

    def apply(self, op: Op, value: str) -> Picture:
        """One of OPS; `value` is a bbox for crop, else a whole number."""
        if op == "crop":
            part = self.zoom(read_bbox(value))
            own = max(_pixels(part.image, part.box))
            return Picture(
                part.image, max(GRID, min(self.size, int(own))), part.box, self.name, self.upright
            )
        if op == "resize":
            percent = _number(value, op, 10, 200)
            return Picture(
                self.image, max(GRID, self.size * percent // 100), self.box, self.name, self.upright
            )
        if op == "rotate":
            turned = self._own_pixels().rotate(
                -_number(value, op, -360, 360), expand=True, fillcolor="white"
            )
            return Picture(turned, self.size, WHOLE, self.name, upright=False)
        if op == "contrast":
            from PIL import ImageEnhance

            factor = _number(value, op, 10, 1000) / 100
            return self._with(ImageEnhance.Contrast(self._own_pixels()).enhance(factor))
        return self._with(_lines(self.shown(), _number(value, op, 2, 20)))

    def shown(self) -> Any:
        """What the agent sees: the part, its longer side `size` pixels, the other a multiple of GRID."""
        from PIL import Image

        width, height = _pixels(self.image, self.box)
        scale = self.size / max(width, height)
        short = min(self.size, GRID * ceil(min(width, height) * scale / GRID))
        size = (self.size, short) if width >= height else (short, self.size)
        # each pixel is the mean of those it stands for: nothing of a neighbour, and nothing that is smaller
        how = Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR
        left, top, right, bottom = self.box
        w, h = self.image.width / UNITS, self.image.height / UNITS
        return self.image.resize(size, how, box=(left * w, top * h, right * w, bottom * h))

    def uri(self) -> str:
        return images.to_uri(self.shown())

    def _own_pixels(self) -> Any:
        left, top, right, bottom = self.box
        w, h = self.image.width / UNITS, self.image.height / UNITS
        return self.image.crop(
            (round(left * w), round(top * h), round(right * w), round(bottom * h))
        )

    def _with(self, image: Any) -> Picture:
        return Picture(image, self.size, WHOLE, self.name, upright=False)


def read_bbox(given: str | Sequence[float]) -> Bbox:
    """`10 20 30 40`, `10, 20, 30, 40` or four numbers. Raises ValueError with a text for the agent."""
    numbers = read_bboxes(given) if isinstance(given, str) else [tuple(given)]
    if len(numbers) != 1 or len(numbers[0]) != 4:
        raise ValueError(BBOX_FORM)
    x0, y0, x1, y1 = (float(n) for n in numbers[0])
    if not (0 <= x0 < x1 <= UNITS and 0 <= y0 < y1 <= UNITS):
        raise ValueError(BBOX_FORM)
    return x0, y0, x1, y1


def read_bboxes(text: str) -> list[tuple[float, ...]]:
    """All fours of numbers of a text that has nothing but numbers, `;`, `,` and brackets; else none."""
    if re.search(r"[^\d\s.,;()\[\]]", text):
        return []
    try:
        numbers = [float(n) for n in re.findall(r"[\d.]+", text)]
    except ValueError:
        return []
    return (
        [tuple(numbers[i : i + 4]) for i in range(0, len(numbers), 4)]
        if len(numbers) % 4 == 0
        else []
    )


def words(bbox: Sequence[float]) -> str:
    """A bbox as an agent says it."""
    return " ".join(f"{n:g}" for n in bbox)


def open_image(source: str) -> Any:
    """The image of a file or a data URI, in RGB. Raises ValueError: it is none, or has too many pixels."""
    import base64
    from pathlib import Path

    if images.is_image(source):
        return images.from_uri(source)
    try:
        data = Path(source).read_bytes()
    except OSError as error:
        raise ValueError(f"{source} cannot be read: {error.strerror}") from None
    return images.from_uri("data:image/png;base64," + base64.b64encode(data).decode())


def _inside(outer: Bbox, inner: Bbox) -> Bbox:
    left, top, right, bottom = outer
    w, h = (right - left) / UNITS, (bottom - top) / UNITS
    return left + inner[0] * w, top + inner[1] * h, left + inner[2] * w, top + inner[3] * h


def _pixels(image: Any, box: Bbox) -> tuple[float, float]:
    return (box[2] - box[0]) / UNITS * image.width, (box[3] - box[1]) / UNITS * image.height


def _number(value: str, op: str, lowest: int, highest: int) -> int:
    try:
        number = int(value)
    except ValueError:
        number = lowest - 1
    if not lowest <= number <= highest:
        raise ValueError(f"the value of {op} is a whole number from {lowest} to {highest}")
    return number


def _lines(image: Any, num: int) -> Any:
    """Lines that cut the image into `num` columns and rows."""
    from PIL import ImageDraw

    pen = ImageDraw.Draw(image)
    for i in range(1, num):
        x, y = round(i * image.width / num), round(i * image.height / num)
        pen.line([(x, 0), (x, image.height)], fill="magenta")
        pen.line([(0, y), (image.width, y)], fill="magenta")
    return image
