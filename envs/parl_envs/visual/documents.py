"""Pages of real data, harder than digits: a table of countries, and a bar chart.

They are too small to read in the overview. The data are the World Factbook's: the countries of the
search tasks, in the same splits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from parl_envs.search.world import split_rows

COLUMNS = ("country", "capital", "currency", "internet")
CHARTED = ("life_expectancy", "median_age", "peak_height")
"""What charts show. In others (population, say) a few countries are far above the rest."""
NUM_ROWS = 20
NUM_BARS = 10
CLEARANCE = 0.02
"""Share of the axis by which the highest bar leads, and by which every bar misses a line."""

# All in pixels.
ROW_HEIGHT = 30
FONT_SIZE = 15
COLUMN_WIDTHS = (210, 190, 130, 110)
MARGIN = 20
LABEL_WIDTH = 190
AXIS_WIDTH = 500
# From the top of one bar to the top of the next.
BAR_PITCH = 26
# Left free above and below a bar.
BAR_GAP = 4


@dataclass(frozen=True, slots=True)
class BarChart:
    """A chart of horizontal bars, with a line at each quarter of the axis."""

    title: str
    bars: tuple[tuple[str, float], ...]
    """(name, value), from top to bottom."""
    top: float
    """Where the axis ends."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        width = LABEL_WIDTH + AXIS_WIDTH + 2 * MARGIN
        # Three rows more than bars: the title, the labels of the axis, and one that is empty.
        height = (3 + len(self.bars)) * BAR_PITCH + 2 * MARGIN
        return width, height

    def bbox(self, place: int) -> tuple[int, int, int, int]:
        """Return a bar as left, top, right, bottom in whole percents of the page."""
        width, height = self.size
        x0, y0, x1, y1 = self.bar(place)
        x0_percent = round(100 * x0 / width)
        x1_percent = round(100 * x1 / width)
        y0_percent = round(100 * y0 / height)
        y1_percent = round(100 * y1 / height)
        # At least one percent wide and high: a box without an area matches nothing.
        x1_percent = max(x1_percent, x0_percent + 1)
        y1_percent = max(y1_percent, y0_percent + 1)
        return x0_percent, y0_percent, x1_percent, y1_percent

    def bar(self, place: int) -> tuple[int, int, int, int]:
        """Return a bar as left, top, right, bottom in pixels."""
        x = MARGIN + LABEL_WIDTH
        y = MARGIN + BAR_PITCH + place * BAR_PITCH
        length = round(AXIS_WIDTH * self.bars[place][1] / self.top)
        return x, y + BAR_GAP, x + length, y + BAR_PITCH - BAR_GAP


def table_rows(rng: np.random.Generator, split: str) -> list[list[str]]:
    """Draw countries of a split, with the cells that COLUMNS name."""
    rows = split_rows(split)
    table = []
    for i in rng.permutation(len(rows))[:NUM_ROWS]:
        row = rows[i]
        table.append([row.name, *map(row.facts.__getitem__, COLUMNS[1:])])
    return table


def chart(rng: np.random.Generator, split: str) -> BarChart:
    """Draw a chart that can be read by looking.

    One bar is the highest by CLEARANCE, and every bar ends clearly above or below each line.
    """
    # Drawn again until it is readable: a question must have one right answer.
    title = str(rng.choice(CHARTED))
    rows = [row for row in split_rows(split) if title in row.facts]
    while True:
        order = rng.permutation(len(rows))[:NUM_BARS]
        bars = tuple((rows[i].name, float(rows[i].facts[title])) for i in order)
        candidate = BarChart(title, bars, _top([value for _, value in bars]))
        if _is_readable(candidate):
            return candidate


def _is_readable(candidate: BarChart) -> bool:
    shares = np.sort([value / candidate.top for _, value in candidate.bars])
    lines = np.array([1, 2, 3]) / 4
    distances = np.abs(shares[:, None] - lines)
    return bool(shares[-1] - shares[-2] >= CLEARANCE and distances.min() >= CLEARANCE)


def another_country(rng: np.random.Generator, split: str, excluded: Sequence[str]) -> str:
    """Draw a country of the split that is not excluded."""
    # Of the same split: splits share no country.
    names = [row.name for row in split_rows(split) if row.name not in excluded]
    return str(rng.choice(names))


def draw_table(rows: Sequence[Sequence[str]]) -> Any:
    """Draw a table as a PIL image."""
    from PIL import Image, ImageDraw

    width = sum(COLUMN_WIDTHS) + 2 * MARGIN
    height = (len(rows) + 1) * ROW_HEIGHT + 2 * MARGIN
    page = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(page)
    for i, cells in enumerate([COLUMNS, *rows]):
        y = MARGIN + i * ROW_HEIGHT
        bottom = y + ROW_HEIGHT
        colour = "black" if i == 0 else "lightgrey"
        pen.line([(MARGIN, bottom), (page.width - MARGIN, bottom)], fill=colour)
        x = MARGIN
        for cell, column_width in zip(cells, COLUMN_WIDTHS, strict=True):
            page.paste("black", (x + 4, y + 6), _text_mask(cell))
            x += column_width
    return page


def draw_chart(bar_chart: BarChart) -> Any:
    """Draw a chart as a PIL image."""
    from PIL import Image, ImageDraw

    page = Image.new("RGB", bar_chart.size, "white")
    pen = ImageDraw.Draw(page)
    page.paste("black", (MARGIN, MARGIN), _text_mask(bar_chart.title))
    top = MARGIN + BAR_PITCH
    bottom = top + len(bar_chart.bars) * BAR_PITCH
    for quarter in range(5):
        x = MARGIN + LABEL_WIDTH + AXIS_WIDTH * quarter // 4
        pen.line([(x, top), (x, bottom)], fill="lightgrey")
        # Labelled, so that the level of a question can be found on the axis.
        label = _text_mask(f"{bar_chart.top * quarter / 4:g}")
        page.paste("black", (x - label.width // 2, bottom + 4), label)
    for place, (name, _) in enumerate(bar_chart.bars):
        x0, y0, x1, y1 = bar_chart.bar(place)
        page.paste("black", (MARGIN, y0), _text_mask(name))
        pen.rectangle((x0, y0, x1, y1), fill="steelblue")
    return page


def _top(values: Sequence[float]) -> float:
    """A round number above all values."""
    highest = max(values)
    # The next multiple of half the leading power of ten.
    step = 10 ** int(np.floor(np.log10(highest))) / 2
    return float(step * (np.floor(highest / step) + 1))


# Setting a text takes ten times as long as pasting it, and pages share most of their words.
@lru_cache(maxsize=1024)
def _text_mask(text: str) -> Any:
    """A text as a mask to paste a colour through."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(FONT_SIZE)
    _, _, right, bottom = font.getbbox(text)
    mask = Image.new("L", (int(right) + 2, int(bottom) + 2))
    ImageDraw.Draw(mask).text((0, 0), text, fill=255, font=font)
    return mask
