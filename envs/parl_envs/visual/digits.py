"""Handwritten digits, and scenes of them: coloured boxes on a grid, with a digit in each.

A `Scene` is plain numbers. On its page, a block of 8 x 8 pixels is one pixel of the overview. A
digit has 8 x 8 pixels and fills such a block, and the ink of all digits is scaled to the same mean:
in the overview every digit is the same grey pixel.
"""

from __future__ import annotations

import gzip
import itertools
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
"""Which tenths of the images a split has. An image's tenth is a function of its pixels."""
BLOCK = 8
"""Pixels of a page, in each direction, that become one of the overview; also those of a digit."""
CELLS = 8
"""Places for boxes, in each direction. One box of each colour always fits without touching."""
_EDGES = tuple((100 * (i + 0.25) / CELLS, 100 * (i + 0.75) / CELLS) for i in range(CELLS))
"""The two edges of a box in each place, in percent: it fills the middle half."""
EDGES = tuple(itertools.chain.from_iterable(_EDGES))
MAX_INK = 16
"""The darkest ink."""
MEAN_INK = 2.8
"""The mean to which all images are scaled: that of the lightest one."""
GROUND = 225
"""Grey of a page."""
# Far apart in RGB, and different from the grey of the ground and of digits.
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

    Attributes:
        colour: one of COLOURS.
        column, row: its place, from 0.
        image: number of a digit's image.
        scrambled: the seed by which its pixels are shuffled. The box is then illegible, which only
            a close look shows.
    """

    colour: str
    column: int
    row: int
    image: int
    scrambled: int | None = None

    @property
    def text(self) -> str:
        """What is in the box: a digit, or `unknown`."""
        if self.scrambled is not None:
            return "unknown"
        _, labels = _load()
        return str(labels[self.image])

    @property
    def bbox(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom in percent of the page."""
        x0, x1 = _EDGES[self.column]
        y0, y1 = _EDGES[self.row]
        return x0, y0, x1, y1


@dataclass(frozen=True, slots=True)
class Scene:
    """A page of boxes on a grey ground."""

    size: int
    """Side of the overview in pixels, a multiple of 4 * CELLS."""
    boxes: tuple[Box, ...]


def images_of(split: str, digit: int) -> tuple[int, ...]:
    """Return the numbers of the images of a digit in a split.

    Raises:
        ConfigError: there is no such split.
    """
    if split not in SPLITS:
        raise ConfigError(f"No split '{split}'.{did_you_mean(split, tuple(SPLITS))}")
    return _dealt()[split][digit]


def glyph(image: int, scrambled: int | None = None) -> Array:
    """Return a digit as (8, 8) grey levels, dark on white."""
    images, _ = _load()
    ink = images[image].astype(np.float64)
    if scrambled is not None:
        # Shuffled pixels have the same mean, so the overview does not give the box away.
        ink = np.random.default_rng(scrambled).permutation(ink)
    # Scaled by its own mean: a light and a dark digit are the same grey in the overview.
    grey: Array = 255 - np.rint(255 * ink * (MEAN_INK / ink.mean()) / MAX_INK)
    return grey.astype(np.uint8).reshape(BLOCK, BLOCK)


def draw(scene: Scene) -> Any:
    """Draw the page, a PIL image of `BLOCK * size` pixels in each direction."""
    from PIL import Image

    # All in pixels of the overview: the cell of the grid, the box in it, the digit in the box.
    cell = scene.size // CELLS
    side = cell // 2
    middle = (side - 1) // 2
    # (row, row in the block, column, column in the block, RGB)
    page = np.full((scene.size, BLOCK, scene.size, BLOCK, 3), GROUND, np.uint8)
    for box in scene.boxes:
        x = box.column * cell + cell // 4
        y = box.row * cell + cell // 4
        page[y : y + side, :, x : x + side] = COLOURS[box.colour]
        page[y + middle, :, x + middle] = glyph(box.image, box.scrambled)[..., None]
    # Blocks become pixels: the five axes are the image in a finer grid.
    page = page.reshape(scene.size * BLOCK, scene.size * BLOCK, 3)
    return Image.fromarray(page)


@lru_cache(maxsize=1)
def _load() -> tuple[Array, Array]:
    """Ink (1797, 64) and labels (1797) of all images."""
    # 57 kB, read once for each process.
    with gzip.open(DATA, "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    return table[:, :-1], table[:, -1]


@lru_cache(maxsize=1)
def _dealt() -> Mapping[str, tuple[tuple[int, ...], ...]]:
    """Split -> the numbers of the images of each digit."""
    ink, labels = _load()
    # By the pixels, so that an image that is in the data twice is in one split.
    tenths = np.array([zlib.crc32(row.tobytes()) % 10 for row in ink])
    dealt = {}
    for split, part in SPLITS.items():
        in_split = np.isin(tenths, list(part))
        images_by_digit: list[tuple[int, ...]] = []
        for digit in range(10):
            images_by_digit.append(tuple(np.flatnonzero(in_split & (labels == digit)).tolist()))
        dealt[split] = tuple(images_by_digit)
    return dealt
