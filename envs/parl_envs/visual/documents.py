"""Pages of real data, harder than digits: a table of countries and a bar chart, too small to read in the overview.

In: rows of the World Factbook (those of the search tasks, in the same splits). Out: a page, and where things are on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from parl_envs.search.world import Row, split_rows

COLUMNS = ("country", "capital", "currency", "internet")
CHARTED = ("life_expectancy", "median_age", "peak_height")
"""What charts show: of these no few countries are far above all others."""
NUM_ROWS, NUM_BARS = 20, 10
CLEARANCE = 0.02
"""Of the axis: no bar ends nearer to the one that is asked for, or to a line that it is compared with."""
ROW, FONT = 30, 15
"""Height of a line and of its letters, in pixels."""
WIDTHS = (210, 190, 130, 110)
LABELS, AXIS, BAR, MARGIN = 190, 500, 26, 20
"""Of a chart, in pixels: width of the names and of the longest bar; distance from one bar to the next; rim."""


@dataclass(frozen=True, slots=True)
class BarChart:
    """`bars` are (name, value), from top to bottom; the axis ends at `top`, with a line at each quarter."""

    title: str
    bars: tuple[tuple[str, float], ...]
    top: float

    @property
    def size(self) -> tuple[int, int]:
        return LABELS + AXIS + 2 * MARGIN, 3 * BAR + len(self.bars) * BAR + 2 * MARGIN

    def bbox(self, place: int) -> tuple[int, int, int, int]:
        """A bar in percent of the page."""
        width, height = self.size
        x0, y0, x1, y1 = self.bar(place)
        left, right = round(100 * x0 / width), round(100 * x1 / width)
        upper, lower = round(100 * y0 / height), round(100 * y1 / height)
        return left, upper, max(right, left + 1), max(lower, upper + 1)

    def bar(self, place: int) -> tuple[int, int, int, int]:
        """Left, top, right, bottom in pixels."""
        y = MARGIN + BAR + place * BAR
        return (
            MARGIN + LABELS,
            y + 4,
            MARGIN + LABELS + round(AXIS * self.bars[place][1] / self.top),
            y + BAR - 4,
        )


def table_rows(rng: np.random.Generator, split: str) -> list[list[str]]:
    """Countries with what COLUMNS name."""
    rows = split_rows(split)
    chosen = [rows[i] for i in rng.permutation(len(rows))[:NUM_ROWS]]
    return [[row.name, *(row.facts[c] for c in COLUMNS[1:])] for row in chosen]


def chart(rng: np.random.Generator, split: str) -> BarChart:
    """A chart whose highest bar, and whose bars above each line, can be told by looking."""
    title = str(rng.choice(CHARTED))
    rows = [r for r in split_rows(split) if title in r.facts]
    while True:
        chosen = [rows[i] for i in rng.permutation(len(rows))[:NUM_BARS]]
        found = BarChart(
            title, tuple((r.name, float(r.facts[title])) for r in chosen), _top(chosen, title)
        )
        shares = sorted(value / found.top for _, value in found.bars)
        near = [abs(s - quarter / 4) for s in shares for quarter in (1, 2, 3)]
        if shares[-1] - shares[-2] >= CLEARANCE and min(near) >= CLEARANCE:
            return found


def another(rng: np.random.Generator, split: str, there: Sequence[str]) -> str:
    """A country of the split that is not among those."""
    return str(rng.choice([r.name for r in split_rows(split) if r.name not in there]))


def draw_table(rows: Sequence[Sequence[str]]) -> Any:
    from PIL import Image, ImageDraw

    page = Image.new("RGB", (sum(WIDTHS) + 2 * MARGIN, (len(rows) + 1) * ROW + 2 * MARGIN), "white")
    pen = ImageDraw.Draw(page)
    for i, cells in enumerate([COLUMNS, *rows]):
        x, y = MARGIN, MARGIN + i * ROW
        pen.line(
            [(MARGIN, y + ROW), (page.width - MARGIN, y + ROW)],
            fill="black" if i == 0 else "lightgrey",
        )
        for cell, width in zip(cells, WIDTHS, strict=True):
            page.paste("black", (x + 4, y + 6), _written(cell))
            x += width
    return page


def draw_chart(found: BarChart) -> Any:
    from PIL import Image, ImageDraw

    page = Image.new("RGB", found.size, "white")
    pen = ImageDraw.Draw(page)
    page.paste("black", (MARGIN, MARGIN), _written(found.title))
    bottom = MARGIN + BAR + len(found.bars) * BAR
    for quarter in range(5):
        x = MARGIN + LABELS + AXIS * quarter // 4
        pen.line([(x, MARGIN + BAR), (x, bottom)], fill="lightgrey")
        label = _written(f"{found.top * quarter / 4:g}")
        page.paste("black", (x - label.width // 2, bottom + 4), label)
    for place, (name, _) in enumerate(found.bars):
        x0, y0, x1, y1 = found.bar(place)
        page.paste("black", (MARGIN, y0), _written(name))
        pen.rectangle((x0, y0, x1, y1), fill="steelblue")
    return page


def _top(rows: Sequence[Row], title: str) -> float:
    """A round number above all values."""
    highest = max(float(r.facts[title]) for r in rows)
    step = 10 ** int(np.floor(np.log10(highest))) / 2
    return float(step * (np.floor(highest / step) + 1))


@lru_cache(maxsize=1024)
def _written(text: str) -> Any:
    """A text as a mask to paste through: setting it takes ten times as long as pasting it."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(FONT)
    _, _, right, bottom = font.getbbox(text)
    mask = Image.new("L", (int(right) + 2, int(bottom) + 2))
    ImageDraw.Draw(mask).text((0, 0), text, fill=255, font=font)
    return mask
