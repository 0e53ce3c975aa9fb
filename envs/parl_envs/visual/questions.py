"""Questions about the digits in boxes of scenes, and about documents.

A question has a text, pages as plain values, and the right answer. Answers are equally likely
wherever that is possible, so that guessing gains nothing.
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

# These can be shared out to subagents, one box each.
SEVERAL = ("list", "sum", "max")
"""Questions about several boxes."""
DIGITS = ("read", *SEVERAL, "count", "locate")
"""Questions about digits."""
MAX_LOCATED = 3
"""Boxes with the digit that `locate` asks for."""
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
    """What generated tasks look like; see the arguments of `VisualTools`."""

    questions: tuple[str, ...]
    boxes: tuple[int, int]
    n: tuple[int, int]
    size: int
    paged: bool
    unanswerable: float


@dataclass(frozen=True, slots=True)
class VisualQuestion:
    """One question with its pages and the right answer.

    Attributes:
        text: what agents read.
        pages: plain values, from which `tasks.page_image` draws.
        score: one of `scores.SCORES`.
        gold: the right answer, in the form that the score needs.
        boxes: (page number, box) of each box that has to be looked at.
        digit: the digit that is looked for, where one is.
    """

    text: str
    pages: Sequence[Mapping[str, Any]]
    score: str
    gold: Any
    boxes: Sequence[tuple[int, Box]] = ()
    digit: str = ""


Maker = Callable[[VisualKnobs, np.random.Generator, str, str, bool], VisualQuestion]
"""(knobs, generator, split, name of the question, whether it can be answered) -> the question."""


def conclude(name: str, digit: str, texts: Sequence[str], bboxes: Sequence[Sequence[float]]) -> str:
    """Answer a question about digits from what the boxes hold.

    Args:
        name: of the question.
        digit: the digit that is looked for, where one is.
        texts: what is in each box.
        bboxes: where each box is; only `locate` needs it.
    Returns:
        The answer; `unknown` if a box that matters is illegible.
    """
    if name == "locate":
        places = []
        for bbox, text in zip(bboxes, texts, strict=True):
            if text == digit:
                places.append(words(bbox))
        return " ; ".join(places) or UNKNOWN
    # `locate` does without: an illegible box is not known to have the digit.
    if UNKNOWN in texts:
        return UNKNOWN
    if name == "count":
        return str(sum(text == digit for text in texts))
    # The last digit of the sum: all ten are about equally likely, the sum itself is not.
    if name == "sum":
        return str(sum(map(int, texts)) % 10)
    if name == "max":
        return max(texts)
    return " ".join(texts)


# --- digits ---


def _one_page(
    knobs: VisualKnobs, rng: np.random.Generator, split: str, name: str, answerable: bool
) -> VisualQuestion:
    """`read`, `count`, `locate`: one page."""
    scene = draw_scene(knobs, rng, split)
    digit = int(rng.integers(10))
    if name == "read":
        boxes = [scene.boxes[0]]
    else:
        # Reading order: the answer of `locate` lists boxes as a reader of the page meets them.
        in_order = sorted(scene.boxes, key=lambda box: (box.row, box.column))
        boxes = _with_digit(rng, in_order, split, digit, name, answerable)
    # Without any box that has the digit, `locate` has no answer already.
    if not answerable and name != "locate":
        boxes = _scramble_one(rng, boxes)

    texts = [box.text for box in boxes]
    gold: Any
    if name == "locate":
        gold = [list(box.bbox) for box in boxes if box.text == str(digit)]
    else:
        gold = conclude(name, str(digit), texts, ())
    subject = boxes[0].colour if name == "read" else str(digit)
    return VisualQuestion(
        text=TEXTS[name].format(subject),
        pages=[_page(scene, boxes)],
        score=name,
        gold=gold,
        boxes=[(1, box) for box in boxes],
        digit=str(digit),
    )


def _several(
    knobs: VisualKnobs, rng: np.random.Generator, split: str, name: str, answerable: bool
) -> VisualQuestion:
    """`list`, `sum`, `max` of boxes on one page, or each on a page of its own."""
    num = int(rng.integers(knobs.n[0], knobs.n[1] + 1))
    if knobs.paged:
        scenes = [draw_scene(knobs, rng, split) for _ in range(num)]
        boxes = [scene.boxes[0] for scene in scenes]
    else:
        scenes = [draw_scene(knobs, rng, split, num)]
        # At least `num` boxes are on the page; the others are there to be told apart from these.
        boxes = list(scenes[0].boxes[:num])
    if name == "max":
        boxes = _with_largest(rng, boxes, split, int(rng.integers(10)))
    if not answerable:
        boxes = _scramble_one(rng, boxes)

    if knobs.paged:
        pages = [_page(scene, [box]) for scene, box in zip(scenes, boxes, strict=True)]
        placed = list(enumerate(boxes, 1))
    else:
        pages = [_page(scenes[0], boxes)]
        placed = [(1, box) for box in boxes]
    names = []
    for number, (page, box) in enumerate(placed, 1):
        place = f"p{page} {box.colour}" if knobs.paged else box.colour
        names.append(f"#{number} {place}")
    return VisualQuestion(
        text=TEXTS[name].format(" ".join(names)),
        pages=pages,
        score="list" if name == "list" else "read",
        gold=conclude(name, "", [box.text for box in boxes], ()),
        boxes=placed,
    )


def draw_scene(knobs: VisualKnobs, rng: np.random.Generator, split: str, least: int = 1) -> Scene:
    """Draw boxes of different colours that do not touch.

    Args:
        knobs: what scenes look like.
        rng: where it comes from.
        split: which images of digits it has.
        least: the number of boxes, if the knobs' range gives fewer.
    """
    num = max(least, int(rng.integers(knobs.boxes[0], knobs.boxes[1] + 1)))
    places: list[tuple[int, int]] = []
    # Each place at most once, in random order: no loop that may fail to end.
    for cell in rng.permutation(CELLS * CELLS):
        place = divmod(int(cell), CELLS)
        if not any(_touch(place, other) for other in places):
            places.append(place)
            if len(places) == num:
                break
    colours = rng.permutation(list(COLOURS))[:num].tolist()
    digits = rng.integers(10, size=num).tolist()
    boxes = []
    for colour, digit, (column, row) in zip(colours, digits, places, strict=True):
        boxes.append(Box(colour, column, row, _image(rng, split, digit)))
    return Scene(knobs.size, tuple(boxes))


def _touch(place: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two cells are the same or neighbours, corners included."""
    return max(abs(place[0] - other[0]), abs(place[1] - other[1])) <= 1


def _image(rng: np.random.Generator, split: str, digit: int) -> int:
    images = images_of(split, digit)
    return images[int(rng.integers(len(images)))]


def _with_digits(
    rng: np.random.Generator, boxes: Sequence[Box], split: str, digits: Sequence[int]
) -> list[Box]:
    """The boxes with other digits in them."""
    changed = []
    for box, digit in zip(boxes, digits, strict=True):
        changed.append(replace(box, image=_image(rng, split, digit)))
    return changed


def _with_digit(
    rng: np.random.Generator,
    boxes: Sequence[Box],
    split: str,
    digit: int,
    name: str,
    answerable: bool,
) -> list[Box]:
    """The boxes with the digit in some of them; each number of boxes is equally likely."""
    if name == "count":
        num = int(rng.integers(len(boxes) + 1))
    elif answerable:
        num = int(rng.integers(1, min(MAX_LOCATED, len(boxes)) + 1))
    else:
        # Nothing to locate, so that `unknown` is right.
        num = 0
    # The number is drawn first: with independent boxes, few or all of them would be rare.
    with_digit = set(rng.permutation(len(boxes))[:num].tolist())
    others = [other for other in range(10) if other != digit]
    digits = []
    for i in range(len(boxes)):
        digits.append(digit if i in with_digit else others[int(rng.integers(len(others)))])
    return _with_digits(rng, boxes, split, digits)


def _with_largest(
    rng: np.random.Generator, boxes: Sequence[Box], split: str, largest: int
) -> list[Box]:
    """The boxes with random digits and a given largest one: drawn freely it would often be 9."""
    digits = rng.integers(largest + 1, size=len(boxes))
    digits[int(rng.integers(len(boxes)))] = largest
    return _with_digits(rng, boxes, split, digits.tolist())


def _scramble_one(rng: np.random.Generator, boxes: Sequence[Box]) -> list[Box]:
    # One illegible box is enough to make the whole question unanswerable.
    index = int(rng.integers(len(boxes)))
    changed = list(boxes)
    changed[index] = scramble(rng, changed[index])
    return changed


def scramble(rng: np.random.Generator, box: Box) -> Box:
    """Return the box made illegible."""
    return replace(box, scrambled=int(rng.integers(2**31)))


def _page(scene: Scene, boxes: Sequence[Box]) -> Mapping[str, Any]:
    """The scene as plain values, with these boxes in place of those of their colours."""
    box_by_colour = {box.colour: box for box in (*scene.boxes, *boxes)}
    replaced = tuple(box_by_colour[box.colour] for box in scene.boxes)
    return {"kind": "digits", **asdict(replace(scene, boxes=replaced))}


# --- documents ---


def _table(
    knobs: VisualKnobs, rng: np.random.Generator, split: str, name: str, answerable: bool
) -> VisualQuestion:
    """`cell`, `row`: what a table says."""
    rows = documents.table_rows(rng, split)
    row = rows[int(rng.integers(len(rows)))]
    country = row[0]
    # A country that is not in the table: the page looks the same as that of other questions.
    if not answerable:
        country = documents.another_country(rng, split, [other[0] for other in rows])
    page = {"kind": "table", "rows": rows}
    if name == "row":
        text = f"write down the row of {country} as it stands , without the name"
        return VisualQuestion(text, [page], "transcribe", " ".join(row[1:]))
    # The first column is the country, which the question names.
    column = 1 + int(rng.integers(len(documents.COLUMNS) - 1))
    text = f"what is the {documents.COLUMNS[column]} of {country} ?"
    return VisualQuestion(text, [page], "read", row[column])


def _chart(
    knobs: VisualKnobs, rng: np.random.Generator, split: str, name: str, answerable: bool
) -> VisualQuestion:
    """`highest`, `above`, `bar`: what a bar chart shows."""
    chart = documents.chart(rng, split)
    place = int(rng.integers(len(chart.bars)))
    quarter = int(rng.integers(1, 4))
    # A quarter of the axis has a line, and bars keep a clearance from it.
    level = chart.top * quarter / 4
    page = {"kind": "chart", **asdict(chart)}
    if name == "bar":
        names = [bar[0] for bar in chart.bars]
        country = names[place]
        if not answerable:
            country = documents.another_country(rng, split, names)
        text = f"where is the bar of {country} ?"
        return VisualQuestion(text, [page], "locate", [list(chart.bbox(place))])
    title = chart.title
    if not answerable:
        # The chart shows another quantity than the question asks for.
        others = [other for other in documents.CHARTED if other != chart.title]
        title = others[int(rng.integers(len(others)))]
    if name == "highest":
        highest = max(chart.bars, key=lambda bar: bar[1])[0]
        return VisualQuestion(f"which country has the highest {title} ?", [page], "read", highest)
    num_above = sum(value > level for _, value in chart.bars)
    text = f"how many countries have a {title} above {level:g} ?"
    return VisualQuestion(text, [page], "count", str(num_above))


MAKERS: Mapping[str, Maker] = {
    **dict.fromkeys(("read", "count", "locate"), _one_page),
    **dict.fromkeys(SEVERAL, _several),
    **dict.fromkeys(("cell", "row"), _table),
    **dict.fromkeys(("highest", "above", "bar"), _chart),
}
"""Name of a question -> the function that draws one."""
