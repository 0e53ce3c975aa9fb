"""What the tests of VisualTools share: an environment in the middle of an episode, and what a tool's answer shows."""

from __future__ import annotations

from typing import Any

from parl.core import images
from parl.core.types import Task
from parl_envs.visual.visual_tools import VisualTools


def started(task: Task | None = None, **kwargs: Any) -> VisualTools:
    env = VisualTools(**kwargs)
    env.reset(seed=0, options={"task": task} if task else None)
    return env


def picture(answer: str) -> Any:
    (uri,) = images.find(answer)
    return images.from_uri(uri)
