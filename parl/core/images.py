"""Images inside texts, as data URIs.

A text stays a `str` everywhere (prompts, observations, records, pages). An image in it is
`data:image/png;base64,...`, lossless, so that a policy's input can be restored from a record. PIL
is imported where it is used: a text without images costs nothing.
"""

from __future__ import annotations

import base64
import io
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE = re.compile(
    r"data:image/(?:png|jpeg|gif|webp);base64,(?:[A-Zabce-z0-9+/]++|d(?!ata:))+={0,2}"
)
"""A data URI in a text. Two of them may follow each other directly; letters and digits right after
one are read as part of it."""
# The possessive `++` takes a long run at once and never gives it back: linear in the text, and ten
# times faster than letter by letter. The group around it is not possessive, since before Python
# 3.11.5 such a group forgets the result of its lookahead.
FORMATS = ("PNG", "JPEG", "GIF", "WEBP")
NO_IMAGE = "[image]"
"""The text in place of an image, for a policy that does not see."""
# A file of some kilobytes can hold gigabytes, so the size is checked before it is unpacked.
MAX_PIXELS = 4_000_000
"""Most pixels of one image."""


def to_uri(image: Image) -> str:
    """Return an image as a data URI of a PNG, in RGB. The same pixels give the same text."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "PNG", compress_level=6)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def from_uri(uri: str) -> Image:
    """Return the image of a data URI, in RGB.

    Raises:
        ValueError: the text is no image, or the image has more than MAX_PIXELS.
    """
    from PIL import Image

    if not is_image(uri):
        raise ValueError("An image is a data URI: data:image/png;base64,...")
    try:
        data = base64.b64decode(uri.partition(",")[2], validate=True)
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        size = image.width * image.height
        picture = image.convert("RGB") if 0 < size <= MAX_PIXELS else None
    except Exception as error:
        # For damaged data each format's reader raises errors of its own kind.
        raise ValueError(f"The data of an image cannot be read: {error}") from None
    if picture is None:
        raise ValueError(
            f"An image of {size:,} pixels is refused: between 1 and {MAX_PIXELS:,} are read."
        )
    return picture


def split(text: str) -> list[str]:
    """Return the pieces of a text, plain texts and URIs in order.

    Joined they are the text, and none is empty.

    Example:
        split("a data:image/png;base64,AA== b") == ["a ", "data:image/png;base64,AA==", " b"]
    """
    return [piece for piece in re.split(f"({IMAGE.pattern})", text) if piece]


def is_image(piece: str) -> bool:
    """Return whether a piece is one URI and nothing else."""
    return IMAGE.fullmatch(piece) is not None


def find(text: str) -> tuple[str, ...]:
    """Return the URIs of a text, in order."""
    return tuple(IMAGE.findall(text))
