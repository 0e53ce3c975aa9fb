"""Tasks: pages, a question about what only a closer look shows, and the answer.

In: knobs and a seed, or one row of the user's file. Out: a `Task` whose data holds the `pages` as plain values, the
`question`, how it is scored, `gold` and whether it can be answered at all. One page is in the prompt as its overview;
several pages are not: an agent opens them one by one.
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
    """`num` tasks, the same for the same seed; no image of a digit and no country is in two splits."""
    rng = np.random.default_rng([seed, 17, *split.encode()])
    return [one_task(knobs, rng, split, f"{split}-{seed}-{i}") for i in range(num)]


def one_task(knobs: VisualKnobs, rng: np.random.Generator, split: str, task_id: str) -> Task:
    """Draw a question, and whether it can be answered."""
    name = knobs.questions[int(rng.integers(len(knobs.questions)))]
    answerable = bool(rng.random() >= knobs.unanswerable)
    made = MAKERS[name](knobs, rng, split, name, answerable)
    data = {
        "question": name,
        "score": made.score,
        "pages": list(made.pages),
        "gold": made.gold if answerable else UNKNOWN,
        "answerable": answerable,
        "asked": [{"page": page, "box": asdict(box)} for page, box in made.asked],
        "wanted": made.wanted,
    }
    return Task(task_id, ENV_ID, _prompt(made.text, made.pages, knobs.size), data)


def load_task(row: Mapping[str, Any], size: int) -> Task:
    """A task from a row of a file: {id, question, image or images, answer, score}. Raises ConfigError."""
    task_id, question, score = (
        str(row.get("id") or ""),
        row.get("question"),
        row.get("score") or "read",
    )
    sources = row.get("images") or ([row["image"]] if row.get("image") else [])
    if not task_id or not question or not sources or row.get("answer") is None:
        raise ConfigError(
            "A visual task has id, question, image (a file or a data URI; or images, several) and answer; got the "
            f"fields {sorted(k for k, v in row.items() if v is not None)}"
        )
    if score not in SCORES:
        raise ConfigError(f"Task {task_id}: score is '{score}'; give one of {', '.join(SCORES)}")
    answerable = row["answer"] != UNKNOWN
    try:
        pages = [{"kind": "image", "source": _source(source)} for source in sources]
        gold = _gold(row["answer"], score) if answerable else UNKNOWN
        for page in pages:
            page_image(page)
    except ValueError as error:
        raise ConfigError(f"Task {task_id}: {error}") from None
    data = {
        "question": OWN,
        "score": score,
        "pages": pages,
        "gold": gold,
        "answerable": answerable,
        "asked": [],
    }
    return Task(task_id, ENV_ID, _prompt(str(question), pages, size), data)


def asked(data: Mapping[str, Any]) -> list[tuple[int, Box]]:
    """The boxes that a generated task is about, each with its page's number."""
    return [(item["page"], Box(**item["box"])) for item in data["asked"]]


def boxes_of(page: Mapping[str, Any]) -> tuple[Box, ...]:
    """All boxes of a page."""
    return tuple(Box(**box) for box in page.get("boxes", ()))


def page_image(page: Mapping[str, Any]) -> Any:
    """The whole image of a page. Raises ValueError: it cannot be read."""
    return _page_image(json.dumps(page))


@lru_cache(maxsize=CACHED_PAGES)
def _page_image(text: str) -> Any:
    page = json.loads(text)
    if page["kind"] == "digits":
        return draw(Scene(page["size"], boxes_of(page)))
    if page["kind"] == "table":
        return documents.draw_table(page["rows"])
    if page["kind"] == "chart":
        return documents.draw_chart(
            documents.BarChart(page["title"], tuple(map(tuple, page["bars"])), page["top"])
        )
    return open_image(page["source"])


def _prompt(question: str, pages: Sequence[Mapping[str, Any]], size: int) -> str:
    if len(pages) > 1:
        return f"{question} : {len(pages)} pages"
    return f"{question} : p1 {Picture(page_image(pages[0]), size).uri()}"


def _source(given: Any) -> str:
    """A data URI, or the whole path of a file; `datasets` gives an image as {bytes, path}."""
    if isinstance(given, Mapping):
        if given.get("bytes"):
            return "data:image/png;base64," + base64.b64encode(given["bytes"]).decode()
        given = given.get("path")
    if not isinstance(given, str):
        raise ValueError(f"an image is a file or a data URI, not {type(given).__name__}")
    return given if images.is_image(given) else str(Path(given).resolve())


def _gold(answer: Any, score: str) -> Any:
    """What is right, as its score wants it. Boxes are numbers in percent: a text, or a list of lists."""
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
            f"answer is {answer!r}; to locate is to give x0 y0 x1 y1 in percent, once or several times"
        )
    return [list(read_bbox(box)) for box in boxes]
