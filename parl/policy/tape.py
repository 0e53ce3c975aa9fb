"""The token record of one agent."""

from __future__ import annotations

from collections.abc import Sequence

from parl.core.types import UNKNOWN_TOKEN
from parl.policy.base import Renderer


class Tape:
    """The agent's growing record of tokens, and of the images among them."""

    def __init__(self, prompt: Sequence[int], images: Sequence[str] = ()) -> None:
        self.ids = list(prompt)
        self.mask = [0] * len(self.ids)
        self.logprobs = [0.0] * len(self.ids)
        self.images = list(images)

    def feed(self, ids: Sequence[int], images: Sequence[str] = ()) -> None:
        self.ids += ids
        self.mask += [0] * len(ids)
        self.logprobs += [0.0] * len(ids)
        self.images += images

    def counted(self, num: int, known: int) -> int:
        """An engine that only counts has read `num` tokens, `known` of them in earlier turns; returns the length."""
        del self.ids[known:], self.mask[known:], self.logprobs[known:]
        self.feed([UNKNOWN_TOKEN] * max(0, num - known))
        return len(self.ids)

    def sampled(
        self, ids: Sequence[int], logprobs: Sequence[float], mask: Sequence[int] | None
    ) -> None:
        self.ids += ids
        self.mask += mask if mask is not None else [1] * len(ids)
        self.logprobs += logprobs


def images_in(renderer: Renderer, texts: Sequence[str]) -> tuple[str, ...]:
    """The images that the policy is shown in what it reads."""
    return tuple(uri for text in texts for uri in renderer.images(text))
