#!/usr/bin/env python3
"""Draw a visual task: the page, the overview that an agent is given, and what it sees when it looks closer.

All images are those of the environment itself; the parts looked at are the boxes that the question is about.

    scripts/draw_scene.py -o docs/figures/visual.png
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from parl.config.env import EnvConfig
from parl.core import images
from parl.env.registry import make_env
from parl_envs.visual.pictures import words
from parl_envs.visual.tasks import boxes_in_question, page_image


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/figures/visual.png"))
    parser.add_argument("--seed", type=int, default=0, help="of the task")
    args = parser.parse_args()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    draw(args.seed).savefig(args.output, dpi=110, facecolor="white")
    print(f"wrote {args.output}")


def draw(seed: int) -> Any:
    """A figure with a panel for each image."""
    from matplotlib.figure import Figure

    env = make_env(
        EnvConfig(
            id="parl/VisualTools-v0", kwargs={"questions": ["list"], "boxes": [6, 6], "n": [3, 3]}
        )
    )
    (task,) = env.generate_tasks("test", 1, seed)
    env.reset(options={"task": task})
    (overview,) = images.find(task.prompt)
    question, _, _ = images.IMAGE.sub("", task.prompt).rpartition(" : ")
    panels: list[tuple[str, Any]] = [
        ("the page (512 x 512 pixels)", page_image(task.data["pages"][0])),
        ("the overview, in the prompt (64 x 64)", images.from_uri(overview)),
    ]
    for _, box in boxes_in_question(task.data):
        call = f'zoom("{words(box.bbox)}", "p1")'
        (view,) = images.find(env.call("zoom", {"bbox": words(box.bbox), "image": "p1"}))
        panels.append((f"{call}\nthe {box.colour} box: {box.text}", images.from_uri(view)))
    figure = Figure(figsize=(3 * len(panels), 3.8), layout="constrained")
    figure.suptitle(f"{question}    →    {task.data['gold']}")
    for ax, (title, image) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        ax.imshow(image, interpolation="nearest")
        ax.set_title(title, fontsize=8)
        ax.axis("off")
    return figure


if __name__ == "__main__":
    main()
