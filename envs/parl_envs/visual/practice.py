"""Texts on which a model that starts from nothing learns the skills of looking, one by one; and its vocabulary.

`ground` says where boxes are in an overview, `read` what enlarged boxes hold, `aggregate` answers from what all boxes
hold. Many in one text: an image costs more tokens than what is learned from it. Each is measured on its own by
`accuracy/KIND`.
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

END, TO_TOOL, TO_AGENT = "<|im_end|>", "\n<|im_start|>tool\n", "\n<|im_start|>assistant\n"
ZOOM = written_call("zoom", bbox="\0", image="").partition("\0")[0]
"""A call up to its place."""
READ_AT_ONCE = 4
COMMON = tuple(
    ": ; , ok orchestrator pages error: no image images to at most answer answer: bbox is with and <= < "  # noqa: SIM905
    "duplicate task budget exhausted stopped (turns) environment call(s) per turn there are tools".split()
)


def vocabulary(knobs: VisualKnobs, max_images: int) -> tuple[str, ...]:
    """Every word that an episode about digits may hold."""
    most = len(COLOURS)
    numbers = [
        *(words([edge]) for edge in EDGES),
        *(str(i) for i in range(UNITS + 1)),
        *(f"#{i}" for i in range(1, most + 1)),
    ]
    names = [*(f"p{i}" for i in range(1, most + 1)), *(f"v{i}" for i in range(1, max_images + 1))]
    asked = [word for text in TEXTS.values() for word in text.split() if word != "{}"]
    full = ANSWER_NOW.split() if knobs.paged else []
    fixed = ["\n", *COMMON, *full, AGENT_NAME, SUBAGENT_SYSTEM, UNKNOWN, *OPS]
    return tuple(dict.fromkeys([*fixed, *COLOURS, *asked, *numbers, *names]))


def ground(rng: np.random.Generator, knobs: VisualKnobs) -> list[Segment]:
    """An overview, then each of its boxes by its colour: where it is, as calls of `zoom` and assignments say it."""
    scene = draw_scene(knobs, rng, "train", len(COLOURS))
    said = [Segment(f"p1 {Picture(draw(scene), knobs.size).uri()}{END}{TO_AGENT}", train=False)]
    head = ZOOM if rng.random() < 0.5 else ""
    for i in rng.permutation(len(scene.boxes)):
        box = scene.boxes[i]
        said += [Segment(f"{box.colour} {head}", train=False), Segment(words(box.bbox))]
    return said


def read(rng: np.random.Generator, knobs: VisualKnobs) -> list[Segment]:
    """Boxes that were enlarged, as an episode has them, and what each holds."""
    scene = draw_scene(knobs, rng, "train", READ_AT_ONCE)
    boxes = [
        scramble(rng, b) if rng.random() < knobs.unanswerable else b
        for b in scene.boxes[:READ_AT_ONCE]
    ]
    page = Picture(draw(replace(scene, boxes=tuple(boxes))), knobs.size)
    said = []
    for i, box in enumerate(boxes, 1):
        shown = page.zoom(box.bbox).uri()
        said += [Segment(f"{TO_TOOL}v{i} {shown}{END}{TO_AGENT}", train=False), Segment(box.text)]
    return said


def aggregate(rng: np.random.Generator, knobs: VisualKnobs) -> list[Segment]:
    """What boxes hold, as one's own notes or as subagents' messages, and the answer."""
    name = str(rng.choice([q for q in knobs.questions if q in SEVERAL] or ["list"]))
    num = int(rng.integers(knobs.n[0], knobs.n[1] + 1))
    texts = [str(d) for d in rng.integers(10, size=num)]
    if rng.random() < knobs.unanswerable:
        texts[int(rng.integers(num))] = UNKNOWN
    notes = [f"#{i} {text}" for i, text in enumerate(texts, 1)]
    if rng.random() < 0.5:
        between = "".join(f"{TO_TOOL}{note}{END}" for note in notes) + TO_AGENT
    else:
        between = f" {zoom((0, 0, 0, 0), 1)}{END}{TO_TOOL}{END}{TO_AGENT}".join(notes)
    asked = TEXTS[name].format("").strip()
    return [
        Segment(f"{asked}{END}{TO_AGENT}{between}", train=False),
        Segment(conclusion(name, "", texts, [])),
    ]


KINDS: dict[str, Callable[[np.random.Generator, VisualKnobs], list[Segment]]] = {
    "ground": ground,
    "read": read,
    "aggregate": aggregate,
}
