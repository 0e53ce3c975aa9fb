"""Text from outside on a page: what a policy or an environment wrote must show as text and do nothing.

In: any string. Out: one in which characters that have no shape, or that change the direction or the place of others,
are visible. HTML is escaped by the templates (autoescape), which pass every string through `visible` first.
"""

from __future__ import annotations

import re

# Controls (not tab and newline), C1, zero-width and direction marks, line separators, surrogates, tags, the BOM.
HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff"
    "\ufff9-\ufffb\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    r"""Control characters as their pictures, the rest as escapes. Example: "a\x1b\u202eb" -> "a␛\\u202eb"."""
    return HIDDEN.sub(_picture, text)


def _picture(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    return (
        f"\\x{code:02x}"
        if code < 0x100
        else f"\\u{code:04x}"
        if code < 0x10000
        else f"\\U{code:08x}"
    )
