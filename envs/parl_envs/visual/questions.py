"""Questions: about the digits in boxes of scenes, and about documents.

In: knobs and randomness. Out: a `VisualQuestion`: a text, pages as plain values, and what is right. Answers are equally
likely wherever that can be had, so that guessing gains nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from parl_envs.visual import documents
from parl_envs.visual.digits import CELLS, COLOURS, Box, Scene, images_of
from parl_envs.visual.pictures import words
from parl_envs.visual.scores import UNKNOWN

SEVERAL = ("list", "sum", "max")
"""Questions about several boxes."""
DIGITS = ("read", *SEVERAL, "count", "locate")
MOST_LOCATED = 3
TEXTS = {
    "read": "what digit is in the {} box",
    "list": "list the digits in {}",
    "sum": "last digit of the sum of {}",
    "max": "largest digit of {}",
    "count": "how many boxes hold a {}",
    "locate": "where is each {}",
}


@dataclass(frozen=True, slots=True)
class VisualKnobs:
    """See `VisualTools`."""

    questions: tuple[str, ...]
    boxes: tuple[int, int]
    n: tuple[int, int]
    size: int
    paged: bool
    unanswerable: float


@dataclass(frozen=True, slots=True)
class VisualQuestion:
    """`score` names one of `scores.SCORES`. `asked` are the boxes that have to be looked at, with their pages' numbers;
    `wanted` is the digit that is looked for, where one is."""

    text: str
    pages: Sequence[Mapping[str, Any]]
    score: str
    gold: Any
    asked: Sequence[tuple[int, Box]] = ()
    wanted: str = ""


Maker = Callable[[VisualKnobs, np.random.Generator, str, str, bool], VisualQuestion]
"""(knobs, randomness, split, name of the question, whether it can be answered) -> the question."""


def conclude(
    name: str, wanted: str, texts: Sequence[str], bboxes: Sequence[Sequence[float]]
) -> str:
    """The answer to a question about digits from what the boxes hold: `unknown` if one that matters is illegible."""
    if name == "locate":
        found = [words(bbox) for bbox, text in zip(bboxes, texts, strict=True) if text == wanted]
        return " ; ".join(found) or UNKNOWN
    if UNKNOWN in texts:
        return UNKNOWN
    if name == "count":
        return str(sum(text == wanted for text in texts))
    if name == "sum":
        return str(sum(map(int, texts)) % 10)
    return max(texts) if name == "max" else " ".join(texts)


# --- digits ---


def _one_page(
    knobs: VisualKnobs, rng: np.random.Generator, split: str, name: str, answerable: bool
) -> VisualQuestion:
    """`read`, `count`, `locate`: one page."""
    scene = draw_scene(knobs, rng, split)
    wanted = int(rng.integers(10))
    if name == "read":
        asked = [scene.boxes[0]]
    else:
        in_order = sorted(scene.boxes, key=lambda b: (b.row, b.column))
        asked = _with_digit(rng, in_order, split, wanted, name, answerable)
    if not answerable and name != "locate":
        asked = _scramble_one(rng, asked)
    page = _page(scene, asked)
    subject = asked[0].colour if name == "read" else str(wanted)
    gold: Any = [list(b.bbox) for b in asked if b.text == str(wanted)]
    if name != "locate":
        gold = conclude(name, str(wanted), [b.text for b in asked], ())
    return VisualQuestion(
        TEXTS[name].format(subject), [page], name, gold, [(1, b) for b in asked], str(wanted)
    )


def _several(
    knobs: VisualKnobs, rng: np.random.Generator, split: str, name: str, answerable: bool
) -> VisualQuestion:
    """`list`, `sum`, `max` of boxes on one page, or each on a page of its own."""
    num = int(rng.integers(knobs.n[0], knobs.n[1] + 1))
    if knobs.paged:
        scenes = [draw_scene(knobs, rng, split) for _ in range(num)]
        asked = [scene.boxes[0] for scene in scenes]
    else:
        scenes = [draw_scene(knobs, rng, split, num)]
        asked = list(scenes[0].boxes[:num])
    if name == "max":
        largest = int(rng.integers(10))
        digits = rng.integers(largest + 1, size=num)
        digits[int(rng.integers(num))] = largest
        asked = [
            replace(b, image=_image(rng, split, int(d))) for b, d in zip(asked, digits, strict=True)
        ]
    if not answerable:
        asked = _scramble_one(rng, asked)
    places = list(range(1, num + 1)) if knobs.paged else [1] * num
    placed = list(zip(places, asked, strict=True))
    names = [
        f"#{i} {f'p{page} ' if knobs.paged else ''}{box.colour}"
        for i, (page, box) in enumerate(placed, 1)
    ]
    pages = (
        [_page(scene, [box]) for scene, box in zip(scenes, asked, strict=True)]
        if knobs.paged
        else [_page(scenes[0], asked)]
    )
    gold = conclude(name, "", [b.text for b in asked], ())
    return VisualQuestion(
        TEXTS[name].format(" ".join(names)),
        pages,
        "list" if name == "list" else "read",
        gold,
        placed,
    )


def draw_scene(knobs: VisualKnobs, rng: np.random.Generator, split: str, least: int = 1) -> Scene:
    """Boxes of different colours that do not touch."""
    num = max(least, int(rng.integers(knobs.boxes[0], knobs.boxes[1] + 1)))
    places: list[tuple[int, int]] = []
    for place in rng.permutation(CELLS * CELLS):
        x, y = divmod(int(place), CELLS)
        if all(max(abs(x - a), abs(y - b)) > 1 for a, b in places):
            places.append((x, y))
            if len(places) == num:
                break
    colours = rng.permutation(list(COLOURS))[:num].tolist()
    digits = rng.integers(10, size=num).tolist()
    boxes = [
        Box(c, x, y, _image(rng, split, d))
        for c, d, (x, y) in zip(colours, digits, places, strict=True)
    ]
    return Scene(knobs.size, tuple(boxes))


def _image(rng: np.random.Generator, split: str, digit: int) -> int:
    found = images_of(split, digit)
    return found[int(rng.integers(len(found)))]


def _with_digit(
    rng: np.random.Generator,
    boxes: Sequence[Box],
    split: str,
    digit: int,
    name: str,
    answerable: bool,
) -> list[Box]:
    """The boxes, with the digit in so many of them; each number is equally likely."""
    if name == "count":
        num = int(rng.integers(len(boxes) + 1))
    else:
        num = int(rng.integers(1, min(MOST_LOCATED, len(boxes)) + 1)) if answerable else 0
    there = set(rng.permutation(len(boxes))[:num].tolist())
    others = [d for d in range(10) if d != digit]
    drawn = [digit if i in there else others[int(rng.integers(9))] for i in range(len(boxes))]
    return [replace(b, image=_image(rng, split, d)) for b, d in zip(boxes, drawn, strict=True)]


def _scramble_one(rng: np.random.Generator, boxes: Sequence[Box]) -> list[Box]:
    at = int(rng.integers(len(boxes)))
    return [scramble(rng, b) if i == at else b for i, b in enumerate(boxes)]


def scramble(rng: np.random.Generator, box: Box) -> Box:
    """The box made illegible."""
    return replace(box, scrambled=int(rng.integers(2**31)))


def _page(scene: Scene, boxes: Sequence[Box]) -> Mapping[str, Any]:
    """The scene with these boxes in place of those of their colours."""
    new = {box.colour: box for box in boxes}
    return {
        "kind": "digits",
        **asdict(replace(scene, boxes=tuple(new.get(b.colour, b) for b in scene.boxes))),
    }


# --- documents ---


def _table(
    knobs: VisualKnobs, rng: np.random.Generator, split: str, name: str, answerable: bool
) -> VisualQuestion:
    """`cell`, `row`: what stands in a table."""
    rows = documents.table_rows(rng, split)
    row = rows[int(rng.integers(len(rows)))]
    country = row[0] if answerable else documents.another(rng, split, [r[0] for r in rows])
    page = {"kind": "table", "rows": rows}
    if name == "row":
        text = f"write down the row of {country} as it stands , without the name"
        return VisualQuestion(text, [page], "transcribe", " ".join(row[1:]))
    column = 1 + int(rng.integers(len(documents.COLUMNS) - 1))
    return VisualQuestion(
        f"what is the {documents.COLUMNS[column]} of {country} ?", [page], "read", row[column]
    )


def _chart(
    knobs: VisualKnobs, rng: np.random.Generator, split: str, name: str, answerable: bool
) -> VisualQuestion:
    """`highest`, `above`, `bar`: what a bar chart shows."""
    chart = documents.chart(rng, split)
    place, level = int(rng.integers(len(chart.bars))), chart.top * int(rng.integers(1, 4)) / 4
    page = {"kind": "chart", **asdict(chart)}
    if name == "bar":
        names = [bar[0] for bar in chart.bars]
        country = names[place] if answerable else documents.another(rng, split, names)
        return VisualQuestion(
            f"where is the bar of {country} ?", [page], "locate", [list(chart.bbox(place))]
        )
    others = [title for title in documents.CHARTED if title != chart.title]
    title = chart.title if answerable else others[int(rng.integers(len(others)))]
    if name == "highest":
        highest = max(chart.bars, key=lambda bar: bar[1])[0]
        return VisualQuestion(f"which country has the highest {title} ?", [page], "read", highest)
    above = str(sum(value > level for _, value in chart.bars))
    return VisualQuestion(
        f"how many countries have a {title} above {level:g} ?", [page], "count", above
    )


MAKERS: Mapping[str, Maker] = {
    **dict.fromkeys(("read", "count", "locate"), _one_page),
    **dict.fromkeys(SEVERAL, _several),
    **dict.fromkeys(("cell", "row"), _table),
    **dict.fromkeys(("highest", "above", "bar"), _chart),
}
