"""Pictures: what an agent sees of an image, and what it can do with it.

A picture is a part of an image, never larger than a few tokens. An operation makes another picture
from it. Looking closer goes back to the image's own pixels, so that a part of a part is as sharp as
the image is. Coordinates are percents of what the agent sees. Bad requests raise ValueError with a
text for the agent.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, Literal

from parl.core import images

UNITS = 100
GRID = 16
"""Pixels. The shorter side of what is shown is a multiple of it: patches of vision models."""
MAX_ASPECT_RATIO = 16
"""Longer over shorter side of a part."""
OPS = ("crop", "rotate", "contrast", "resize", "grid")
Op = Literal["crop", "rotate", "contrast", "resize", "grid"]
Bbox = tuple[float, float, float, float]
WHOLE: Bbox = (0.0, 0.0, float(UNITS), float(UNITS))
BBOX_FORM = f"bbox is x0 y0 x1 y1 with 0 <= x0 < x1 <= {UNITS} and 0 <= y0 < y1 <= {UNITS}"


@dataclass(frozen=True, eq=False)
class Picture:
    """A part of an image."""

    image: Any
    """A PIL image in RGB."""
    size: int
    """Longer side of what is shown, in pixels."""
    box: Bbox = WHOLE
    """The part, in percent of the image."""
    name: str = ""
    """The page that it is of."""
    upright: bool = True
    """False after an operation that moves pixels: the part's place is then not known."""

    def zoom(self, bbox: Bbox) -> Picture:
        """Return a part of this part, enlarged.

        Raises:
            ValueError: there is nothing to see in it.
        """
        inner = _inside(self.box, bbox)
        width, height = _size_in_pixels(self.image, inner)
        # One pixel enlarged is a plain square.
        if min(width, height) < 2:
            raise ValueError("there is nothing more to see: the part has less than 2 pixels")
        # Its shorter side is shown with at least GRID pixels, which would stretch a strip.
        if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
            raise ValueError(
                "the part is a strip; its longer side may be "
                f"{MAX_ASPECT_RATIO} times its shorter one"
            )
        return Picture(self.image, self.size, inner, self.name, self.upright)

    def apply(self, op: Op, value: str) -> Picture:
        """Return the result of an operation.

        Args:
            op: one of OPS.
            value: a bbox for crop, else a whole number.
        Raises:
            ValueError: the value does not suit the operation.
        """
        if op == "crop":
            part = self.zoom(read_bbox(value))
            # Not enlarged: at most as many pixels as the image has there.
            num_pixels = int(max(_size_in_pixels(part.image, part.box)))
            size = max(GRID, min(self.size, num_pixels))
            return Picture(part.image, size, part.box, self.name, self.upright)
        if op == "resize":
            percent = _number(value, op, 10, 200)
            size = max(GRID, self.size * percent // 100)
            return Picture(self.image, size, self.box, self.name, self.upright)
        if op == "rotate":
            # Pillow turns counterclockwise.
            angle = -_number(value, op, -360, 360)
            turned = self._cut_out().rotate(angle, expand=True, fillcolor="white")
            return self._with_image(turned)
        if op == "contrast":
            from PIL import ImageEnhance

            # 100 percent leaves the picture as it is.
            factor = _number(value, op, 10, 1000) / 100
            return self._with_image(ImageEnhance.Contrast(self._cut_out()).enhance(factor))
        num_parts = _number(value, op, 2, 20)
        return self._with_image(_with_lines(self.shown(), num_parts))

    def shown(self) -> Any:
        """Return what the agent sees, a PIL image.

        Its longer side has `size` pixels, the other one a multiple of GRID.
        """
        from PIL import Image

        width, height = _size_in_pixels(self.image, self.box)
        scale = self.size / max(width, height)
        short_side = min(self.size, GRID * ceil(min(width, height) * scale / GRID))
        size = (self.size, short_side) if width >= height else (short_side, self.size)
        # BOX: each pixel is the mean of those that it replaces, and nothing of a neighbour is mixed
        # in. So a digit, whose mean is that of every digit, cannot be told in the overview.
        filter_ = Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR
        return self.image.resize(size, filter_, box=self._box_in_pixels())

    def uri(self) -> str:
        """Return what the agent sees, as a data URI."""
        return images.to_uri(self.shown())

    def _box_in_pixels(self) -> Bbox:
        left, top, right, bottom = self.box
        x_scale = self.image.width / UNITS
        y_scale = self.image.height / UNITS
        return left * x_scale, top * y_scale, right * x_scale, bottom * y_scale

    def _cut_out(self) -> Any:
        """The part in the image's own pixels."""
        return self.image.crop(tuple(map(round, self._box_in_pixels())))

    def _with_image(self, image: Any) -> Picture:
        """A picture of changed pixels."""
        return Picture(image, self.size, WHOLE, self.name, upright=False)


def read_bbox(bbox: str | Sequence[float]) -> Bbox:
    """Read one box: `10 20 30 40`, `10, 20, 30, 40` or four numbers.

    Raises:
        ValueError: it is none, with a text for the agent.
    """
    boxes = read_bboxes(bbox) if isinstance(bbox, str) else [tuple(bbox)]
    if len(boxes) != 1 or len(boxes[0]) != 4:
        raise ValueError(BBOX_FORM)
    x0, y0, x1, y1 = map(float, boxes[0])
    if not (0 <= x0 < x1 <= UNITS and 0 <= y0 < y1 <= UNITS):
        raise ValueError(BBOX_FORM)
    return x0, y0, x1, y1


def read_bboxes(text: str) -> list[tuple[float, ...]]:
    """Read all boxes of a text that has nothing but numbers, `;`, `,` and brackets; else none."""
    # A sentence with four numbers in it is no box: locating would be paid for by chance.
    if re.search(r"[^\d\s.,;()\[\]]", text):
        return []
    try:
        numbers = list(map(float, re.findall(r"[\d.]+", text)))
    except ValueError:
        # Such as 1.2.3.
        return []
    if len(numbers) % 4 != 0:
        return []
    return [tuple(numbers[i : i + 4]) for i in range(0, len(numbers), 4)]


def words(bbox: Sequence[float]) -> str:
    """Write a box as an agent does.

    Example: (3.125, 15.625, 9.375, 21.875) -> "3.125 15.625 9.375 21.875"
    """
    return " ".join(f"{number:g}" for number in bbox)


def open_image(source: str) -> Any:
    """Open the image of a file or a data URI, in RGB.

    Raises:
        ValueError: it cannot be read, is no image, or has too many pixels.
    """
    if images.is_image(source):
        return images.from_uri(source)
    try:
        data = Path(source).read_bytes()
    except OSError as error:
        raise ValueError(f"{source} cannot be read: {error.strerror}") from None
    return images.from_uri("data:image/png;base64," + base64.b64encode(data).decode())


def _inside(outer: Bbox, inner: Bbox) -> Bbox:
    """A box that is in percent of another box, in percent of the image."""
    # Percents of percents: a zoom into a zoom stays exact however deep it goes.
    left, top, right, bottom = outer
    x_scale = (right - left) / UNITS
    y_scale = (bottom - top) / UNITS
    x0, y0, x1, y1 = inner
    return left + x0 * x_scale, top + y0 * y_scale, left + x1 * x_scale, top + y1 * y_scale


def _size_in_pixels(image: Any, box: Bbox) -> tuple[float, float]:
    width = (box[2] - box[0]) / UNITS * image.width
    height = (box[3] - box[1]) / UNITS * image.height
    return width, height


def _number(value: str, op: str, lowest: int, highest: int) -> int:
    try:
        number = int(value)
    except ValueError:
        # Out of the range: no number and a wrong one get the same message.
        number = lowest - 1
    if not lowest <= number <= highest:
        raise ValueError(f"the value of {op} is a whole number from {lowest} to {highest}")
    return number


def _with_lines(image: Any, num: int) -> Any:
    """Draw lines that cut the image into `num` columns and rows."""
    from PIL import ImageDraw

    pen = ImageDraw.Draw(image)
    for i in range(1, num):
        x = round(i * image.width / num)
        y = round(i * image.height / num)
        pen.line([(x, 0), (x, image.height)], fill="magenta")
        pen.line([(0, y), (image.width, y)], fill="magenta")
    return image
