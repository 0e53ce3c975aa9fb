"""Text of policies and environments on a page: it must show as text and do nothing.

`visible` replaces characters that have no shape, or that change the direction or the place of others.
HTML is escaped by the templates (autoescape), which pass every string through `visible` first.
"""

from __future__ import annotations

import re

# Controls (not tab and newline), C1, zero-width and direction marks, line separators, surrogates,
# tags, the byte order mark.
HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ud800-\udfff\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    r"""Replace hidden characters: controls by their pictures, others by escapes.

    Example: "a\x1b\u202eb" -> "a␛\\u202eb"
    """
    return HIDDEN.sub(_picture, text)


def _picture(match: re.Match[str]) -> str:
    code = ord(match[0])
    # Unicode has a picture for each ASCII control, from U+2400 on.
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    if code < 0x100:
        return f"\\x{code:02x}"
    if code < 0x10000:
        return f"\\u{code:04x}"
    return f"\\U{code:08x}"
