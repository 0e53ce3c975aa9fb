"""Images inside texts, as data URIs.

In: a text, or a picture. Out: the other. A text stays a `str` everywhere (prompts, observations, records, pages); an
image in it is `data:image/png;base64,...`, lossless, so that what a policy saw can be made again from what was stored.
PIL is imported where it is used: a text without images costs nothing.
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
"""Two of them may follow each other directly; letters and digits that do are read as part of the image. Written so that
long runs are taken in one go and never given back: linear in the text, and ten times faster than letter by letter. The
group itself is not possessive: before Python 3.11.5 such a group forgets what its lookahead said."""
FORMATS = ("PNG", "JPEG", "GIF", "WEBP")
NO_IMAGE = "[image]"
"""What a policy that does not see reads in the place of an image."""
MAX_PIXELS = 4_000_000
"""Of one image. A larger one is refused before it is unpacked: a file of some kilobytes can hold gigabytes."""


def to_uri(image: Image) -> str:
    """The image as a data URI of a PNG, in RGB. The same pixels give the same text."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "PNG", compress_level=6)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def from_uri(uri: str) -> Image:
    """The image of a data URI, in RGB. Raises ValueError: it is no image, or has more than MAX_PIXELS."""
    from PIL import Image

    if not is_image(uri):
        raise ValueError("An image is a data URI: data:image/png;base64,...")
    try:
        image = Image.open(
            io.BytesIO(base64.b64decode(uri.partition(",")[2], validate=True)), formats=FORMATS
        )
        size = image.width * image.height
        picture = image.convert("RGB") if 0 < size <= MAX_PIXELS else None
    except Exception as error:  # damaged data raises whatever the format's reader raises
        raise ValueError(f"The data of an image cannot be read: {error}") from None
    if picture is None:
        raise ValueError(
            f"An image of {size:,} pixels is refused: between 1 and {MAX_PIXELS:,} are read."
        )
    return picture


def split(text: str) -> list[str]:
    """Pieces of text and URIs in order; together they are the text, and none is empty.

    Example: split("a data:image/png;base64,AA== b") == ["a ", "data:image/png;base64,AA==", " b"]
    """
    return [piece for piece in re.split(f"({IMAGE.pattern})", text) if piece]


def is_image(piece: str) -> bool:
    """Whether the whole piece is one URI."""
    return IMAGE.fullmatch(piece) is not None


def find(text: str) -> tuple[str, ...]:
    """The URIs of a text, in order."""
    return tuple(IMAGE.findall(text))
