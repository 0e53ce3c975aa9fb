"""Texts on which a model that starts from nothing learns to look, and its vocabulary.

    ground      saying where boxes are in an overview
    read        saying what enlarged boxes hold
    aggregate   answering from what all boxes hold

A text has several of each, because an image costs more tokens than what is learned from it. Each is
measured by `accuracy/KIND`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from parl.env.base import ANSWER_NOW
from parl.env.demonstrations import Segment, written_call
from parl_envs.visual.digits import COLOURS, EDGES, draw
from parl_envs.visual.expert import AGENT_NAME, SUBAGENT_SYSTEM, conclusion, zoom
from parl_envs.visual.pictures import OPS, UNITS, Picture, words
from parl_envs.visual.questions import SEVERAL, TEXTS, VisualKnobs, draw_scene, scramble
from parl_envs.visual.scores import UNKNOWN

# The chat format's marks, so that a practice text looks like a part of an episode.
END = "<|im_end|>"
TO_TOOL = "\n<|im_start|>tool\n"
TO_AGENT = "\n<|im_start|>assistant\n"

# A call of `zoom` up to its place.
ZOOM = written_call("zoom", bbox="\0", image="").partition("\0")[0]
BOXES_PER_READING = 4

_COMMON_TEXT = (
    ": ; , ok orchestrator pages error: no image images to at most answer answer: bbox is with "
    "and <= < duplicate task budget exhausted stopped (turns) environment call(s) per turn "
    "there are tools"
)
COMMON = tuple(_COMMON_TEXT.split())
"""Words of prompts and of what tools and the runtime write."""


def vocabulary(knobs: VisualKnobs, max_images: int) -> tuple[str, ...]:
    """Every word that an episode about digits may hold."""
    max_boxes = len(COLOURS)
    edges = [words([edge]) for edge in EDGES]
    integers = list(map(str, range(UNITS + 1)))
    numbers = [*edges, *integers, *_numbered("#", max_boxes)]
    names = [*_numbered("p", max_boxes), *_numbered("v", max_images)]
    question_words = " ".join(TEXTS.values()).replace("{}", "").split()
    # Only the pages of a paged task can fill a window.
    answer_now = ANSWER_NOW.split() if knobs.paged else []
    scaffolding = ["\n", *COMMON, *answer_now, AGENT_NAME, SUBAGENT_SYSTEM, UNKNOWN, *OPS]
    # A dict drops what occurs twice and keeps the order: a token's id is its place.
    return tuple(dict.fromkeys([*scaffolding, *COLOURS, *question_words, *numbers, *names]))


def _numbered(letter: str, num: int) -> list[str]:
    return [f"{letter}{i}" for i in range(1, num + 1)]


def ground(rng: np.random.Generator, knobs: VisualKnobs) -> list[Segment]:
    """Show an overview, then say where each box is, as calls and assignments do."""
    scene = draw_scene(knobs, rng, "train", len(COLOURS))
    overview = Picture(draw(scene), knobs.size).uri()
    segments = [Segment(f"p1 {overview}{END}{TO_AGENT}", train=False)]
    head = ZOOM if rng.random() < 0.5 else ""
    for i in rng.permutation(len(scene.boxes)):
        box = scene.boxes[i]
        segments.append(Segment(f"{box.colour} {head}", train=False))
        segments.append(Segment(words(box.bbox)))
    return segments


def read(rng: np.random.Generator, knobs: VisualKnobs) -> list[Segment]:
    """Show enlarged boxes, as an episode has them, and say what each holds."""
    scene = draw_scene(knobs, rng, "train", BOXES_PER_READING)
    boxes = []
    for box in scene.boxes[:BOXES_PER_READING]:
        is_illegible = rng.random() < knobs.unanswerable
        boxes.append(scramble(rng, box) if is_illegible else box)
    page = Picture(draw(replace(scene, boxes=tuple(boxes))), knobs.size)
    segments = []
    for number, box in enumerate(boxes, 1):
        enlarged = page.zoom(box.bbox).uri()
        observation = f"{TO_TOOL}v{number} {enlarged}{END}{TO_AGENT}"
        segments.append(Segment(observation, train=False))
        segments.append(Segment(box.text))
    return segments


def aggregate(rng: np.random.Generator, knobs: VisualKnobs) -> list[Segment]:
    """Write what boxes hold, as an agent's notes or as subagents' messages, and the answer."""
    questions = [question for question in knobs.questions if question in SEVERAL]
    name = str(rng.choice(questions or ["list"]))
    num_boxes = int(rng.integers(knobs.n[0], knobs.n[1] + 1))
    texts = list(map(str, rng.integers(10, size=num_boxes)))
    if rng.random() < knobs.unanswerable:
        texts[int(rng.integers(num_boxes))] = UNKNOWN
    notes = [f"#{i} {text}" for i, text in enumerate(texts, 1)]
    if rng.random() < 0.5:
        messages = [f"{TO_TOOL}{note}{END}" for note in notes]
        context = "".join(messages) + TO_AGENT
    else:
        call = zoom((0, 0, 0, 0), 1)
        context = f" {call}{END}{TO_TOOL}{END}{TO_AGENT}".join(notes)
    question = TEXTS[name].format("").strip()
    return [
        Segment(f"{question}{END}{TO_AGENT}{context}", train=False),
        Segment(conclusion(name, "", texts, [])),
    ]


KINDS: dict[str, Callable[[np.random.Generator, VisualKnobs], list[Segment]]] = {
    "ground": ground,
    "read": read,
    "aggregate": aggregate,
}
"""Kind of demonstration -> the function that writes one text."""
