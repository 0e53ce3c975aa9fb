"""Handwritten digits, and scenes of them: coloured boxes on a grid, each with a digit that the overview cannot show.

In: a `Scene`, which is plain numbers. Out: its page, of which 8 x 8 pixels are one pixel of the overview. A digit is
8 x 8 pixels and stands on such a block, and the ink of each is scaled to one mean: in the overview every digit is the
same grey pixel.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from parl.core.errors import ConfigError, did_you_mean

Array = np.ndarray[Any, Any]

DATA = Path(__file__).with_name("data") / "digits.csv.gz"
SPLITS = {"train": range(7), "validation": range(7, 8), "test": range(8, 10)}
"""Which tenths of the digits a split has; a digit's tenth is a function of its pixels."""
BLOCK = 8
"""Pixels of a page, in each direction, that one pixel of the overview stands for; and of a digit."""
CELLS = 8
"""Places for boxes, in each direction. As many boxes as there are colours always find places that do not touch."""
_EDGES = tuple((100 * (i + 0.25) / CELLS, 100 * (i + 0.75) / CELLS) for i in range(CELLS))
"""Of a box, in percent: it fills the middle half of its place."""
EDGES = tuple(edge for both in _EDGES for edge in both)
INK, MEAN_INK = 16, 2.8
"""The darkest ink, and the mean to which all digits are scaled: the lightest one's."""
GROUND = 225
"""Grey of a page."""
COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (255, 0, 0),
    "green": (0, 160, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "purple": (160, 0, 160),
    "cyan": (0, 255, 255),
    "orange": (255, 128, 0),
    "black": (0, 0, 0),
}


@dataclass(frozen=True, slots=True)
class Box:
    """A coloured box at a place (column, row) of the grid.

    `image` is the number of a digit's image. `scrambled` is the seed by which its pixels were shuffled: the box is then
    illegible, and shows it only when it is looked at closely.
    """

    colour: str
    column: int
    row: int
    image: int
    scrambled: int | None = None

    @property
    def text(self) -> str:
        """What is in it: a digit, or `unknown`."""
        return "unknown" if self.scrambled is not None else str(_load()[1][self.image])

    @property
    def bbox(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom in percent of the page."""
        (x0, x1), (y0, y1) = (_EDGES[place] for place in (self.column, self.row))
        return x0, y0, x1, y1


@dataclass(frozen=True, slots=True)
class Scene:
    """A page of boxes on a grey ground. `size` is the side of its overview in pixels, a multiple of 4 * CELLS."""

    size: int
    boxes: tuple[Box, ...]


def images_of(split: str, digit: int) -> tuple[int, ...]:
    """Numbers of the images of a digit in a split."""
    if split not in SPLITS:
        raise ConfigError(f"No split '{split}'.{did_you_mean(split, tuple(SPLITS))}")
    return _dealt()[split][digit]


def glyph(image: int, scrambled: int | None = None) -> Array:
    """A digit as (8, 8) grey levels, dark on white."""
    ink = _load()[0][image].astype(np.float64)
    if scrambled is not None:
        ink = np.random.default_rng(scrambled).permutation(ink)
    grey: Array = 255 - np.rint(255 * ink * (MEAN_INK / ink.mean()) / INK)
    return grey.astype(np.uint8).reshape(BLOCK, BLOCK)


def draw(scene: Scene) -> Any:
    """The page, a PIL image of `BLOCK * size` pixels in each direction."""
    from PIL import Image

    cell = scene.size // CELLS
    side = cell // 2
    middle = (side - 1) // 2
    page = np.full((scene.size, BLOCK, scene.size, BLOCK, 3), GROUND, np.uint8)
    for box in scene.boxes:
        x, y = box.column * cell + cell // 4, box.row * cell + cell // 4
        page[y : y + side, :, x : x + side] = COLOURS[box.colour]
        page[y + middle, :, x + middle] = glyph(box.image, box.scrambled)[..., None]
    page = page.reshape(scene.size * BLOCK, scene.size * BLOCK, 3)
    return Image.fromarray(page)


@lru_cache(maxsize=1)
def _load() -> tuple[Array, Array]:
    """Ink (1797, 64) and digits (1797)."""
    with gzip.open(DATA, "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    return table[:, :-1], table[:, -1]


@lru_cache(maxsize=1)
def _dealt() -> Mapping[str, tuple[tuple[int, ...], ...]]:
    """Split -> the images of each digit."""
    ink, labels = _load()
    tenths = np.array([zlib.crc32(row.tobytes()) % 10 for row in ink])
    return {
        split: tuple(
            tuple(int(i) for i in np.flatnonzero(np.isin(tenths, list(part)) & (labels == digit)))
            for digit in range(10)
        )
        for split, part in SPLITS.items()
    }
