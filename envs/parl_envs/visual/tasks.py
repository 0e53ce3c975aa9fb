"""Tasks of VisualTools: pages, a question about what only a closer look shows, and the answer.

Tasks are generated, or come from rows of the user's file. A task's data has the `pages` as plain
values, the `question`, the name of its score, `gold`, and whether it can be answered at all. A
single page is in the prompt as its overview. Several pages are not: an agent opens them one by one.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from parl.core import images
from parl.core.errors import ConfigError
from parl.core.types import Task
from parl_envs.visual import documents
from parl_envs.visual.digits import Box, Scene, draw
from parl_envs.visual.pictures import Picture, open_image, read_bbox, read_bboxes
from parl_envs.visual.questions import MAKERS, VisualKnobs
from parl_envs.visual.scores import SCORES, UNKNOWN

ENV_ID = "parl/VisualTools-v0"
CACHED_PAGES = 32
OWN = "own"
"""The name of a user's question."""


def generate(knobs: VisualKnobs, split: str, num: int, seed: int) -> list[Task]:
    """Generate `num` tasks. The same seed gives the same tasks.

    No image of a digit and no country is in two splits.
    """
    # The split's name is in the seed: splits with the same seed do not ask the same questions.
    rng = np.random.default_rng([seed, 17, *split.encode()])
    return [one_task(knobs, rng, split, f"{split}-{seed}-{i}") for i in range(num)]


def one_task(knobs: VisualKnobs, rng: np.random.Generator, split: str, task_id: str) -> Task:
    """Draw a question, and whether it can be answered."""
    name = knobs.questions[int(rng.integers(len(knobs.questions)))]
    # Drawn whatever the share is, so that later draws do not shift with it.
    answerable = bool(rng.random() >= knobs.unanswerable)
    question = MAKERS[name](knobs, rng, split, name, answerable)
    data = {
        "question": name,
        "score": question.score,
        "pages": list(question.pages),
        "gold": question.gold if answerable else UNKNOWN,
        "answerable": answerable,
        "asked": [{"page": page, "box": asdict(box)} for page, box in question.boxes],
        "wanted": question.digit,
    }
    return Task(task_id, ENV_ID, _prompt(question.text, question.pages, knobs.size), data)


def load_task(row: Mapping[str, Any], size: int) -> Task:
    """Make a task from a row of a file: {id, question, image or images, answer, score}.

    Args:
        row: one row; `image` is a file or a data URI, `images` several of them.
        size: longer side of the overview, in pixels.
    Raises:
        ConfigError: a field is missing, or an image or answer cannot be used.
    """
    task_id = str(row.get("id") or "")
    question = row.get("question")
    score = row.get("score") or "read"
    sources = row.get("images") or ([row["image"]] if row.get("image") else [])
    if not task_id or not question or not sources or row.get("answer") is None:
        fields = sorted(name for name, value in row.items() if value is not None)
        raise ConfigError(
            "A visual task has id, question, image (a file or a data URI; or images, several) and "
            f"answer; got the fields {fields}"
        )
    if score not in SCORES:
        raise ConfigError(f"Task {task_id}: score is '{score}'; give one of {', '.join(SCORES)}")
    answerable = row["answer"] != UNKNOWN
    try:
        pages = [{"kind": "image", "source": _source(source)} for source in sources]
        gold = _gold(row["answer"], score) if answerable else UNKNOWN
        for page in pages:
            # A page that cannot be read is refused now, not in the middle of a run.
            page_image(page)
    except ValueError as error:
        raise ConfigError(f"Task {task_id}: {error}") from None
    # `asked` is empty: nobody knows where in the user's image the answer is.
    data = {
        "question": OWN,
        "score": score,
        "pages": pages,
        "gold": gold,
        "answerable": answerable,
        "asked": [],
    }
    return Task(task_id, ENV_ID, _prompt(str(question), pages, size), data)


def boxes_in_question(data: Mapping[str, Any]) -> list[tuple[int, Box]]:
    """Return the boxes that a generated task is about, each with its page's number."""
    return [(item["page"], Box(**item["box"])) for item in data["asked"]]


def boxes_of(page: Mapping[str, Any]) -> tuple[Box, ...]:
    """Return all boxes of a page."""
    return tuple(Box(**box) for box in page.get("boxes", ()))


def page_image(page: Mapping[str, Any]) -> Any:
    """Return the whole image of a page.

    Raises:
        ValueError: it cannot be read.
    """
    # As text, because the cache needs a key that can be hashed.
    return _page_image(json.dumps(page))


# Every look of every agent starts from the whole page, and the episodes of a group share theirs.
@lru_cache(maxsize=CACHED_PAGES)
def _page_image(text: str) -> Any:
    page = json.loads(text)
    if page["kind"] == "digits":
        return draw(Scene(page["size"], boxes_of(page)))
    if page["kind"] == "table":
        return documents.draw_table(page["rows"])
    if page["kind"] == "chart":
        # JSON has made lists of the tuples.
        bars = tuple(map(tuple, page["bars"]))
        return documents.draw_chart(documents.BarChart(page["title"], bars, page["top"]))
    return open_image(page["source"])


def _prompt(question: str, pages: Sequence[Mapping[str, Any]], size: int) -> str:
    if len(pages) > 1:
        return f"{question} : {len(pages)} pages"
    # The overview is all that the prompt shows, at the size of every look.
    overview = Picture(page_image(pages[0]), size)
    return f"{question} : p1 {overview.uri()}"


def _source(image: Any) -> str:
    """A data URI, or the absolute path of a file."""
    # `datasets` gives an image as {bytes, path}.
    if isinstance(image, Mapping):
        if image.get("bytes"):
            return "data:image/png;base64," + base64.b64encode(image["bytes"]).decode()
        image = image.get("path")
    if not isinstance(image, str):
        raise ValueError(f"an image is a file or a data URI, not {type(image).__name__}")
    return image if images.is_image(image) else str(Path(image).resolve())


def _gold(answer: Any, score: str) -> Any:
    """The answer in the form that its score needs.

    Boxes are numbers in percent: a text, or a list of lists.
    """
    if score == "count":
        try:
            return f"{float(answer):g}"
        except (TypeError, ValueError):
            raise ValueError(f"answer is {answer!r}; a count is a number") from None
    if score != "locate":
        return str(answer)
    boxes = read_bboxes(str(answer))
    if not boxes:
        raise ValueError(
            f"answer is {answer!r}; to locate is to give x0 y0 x1 y1 in percent, once or several "
            "times"
        )
    return [list(read_bbox(box)) for box in boxes]
