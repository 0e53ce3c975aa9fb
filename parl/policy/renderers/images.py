"""Images in what a policy reads: which of them it is shown, and what stands for them in its context.

In: a text from outside. Out: its pieces. A policy without eyes reads `[image]` in their place, and so does one with
eyes where an image cannot be read as one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from parl.core import images

if TYPE_CHECKING:
    from parl.policy.models.vision.families import ImageAdapter

BEGIN = "data:image/"


def without_images(text: str) -> str:
    """As a policy without eyes reads it."""
    return images.IMAGE.sub(images.NO_IMAGE, text) if BEGIN in text else text


class ImageSegmenter:
    """What a renderer knows of images.

    Args:
        eyes: of the model; None where it reads text alone.
    """

    def __init__(self, eyes: ImageAdapter | None) -> None:
        self._eyes = eyes
        self.forbidden: frozenset[int] = frozenset(eyes.forbidden if eyes is not None else ())
        """Ids that stand for a piece of an image: no text, whosever it is, may have them."""

    def shown(self, text: str) -> tuple[str, ...]:
        """The images of a text that the policy sees, in order."""
        if self._eyes is None or BEGIN not in text:
            return ()
        return tuple(filter(self._eyes.accepts, images.find(text)))

    def pieces(self, text: str) -> list[str | tuple[int, ...]]:
        """Texts, and for each image that is seen the ids that stand for it."""
        if BEGIN not in text:
            return [text]
        parts = [self._piece(part) for part in images.split(text)]
        out: list[str | tuple[int, ...]] = []
        for part in parts:
            if isinstance(part, str) and out and isinstance(out[-1], str):
                out[-1] += part  # encoded as one text
            else:
                out.append(part)
        return out

    def _piece(self, part: str) -> str | tuple[int, ...]:
        if not images.is_image(part):
            return part
        return (
            self._eyes.span(part)
            if self._eyes is not None and self._eyes.accepts(part)
            else images.NO_IMAGE
        )
