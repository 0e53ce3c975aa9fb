"""A hook of the build: the README for a package index, where relative links lead nowhere.

hatchling calls it for the metadata of a wheel or an sdist (tool.hatch.metadata.hooks.custom in
pyproject.toml).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

PAGES = "https://github.com/parl-swarm/parl/blob/main/"
FILES = "https://raw.githubusercontent.com/parl-swarm/parl/main/"
LINK = re.compile(
    r"(?P<picture>!?)(?P<text>\[[^\]]*\])\((?!https?://|#|mailto:)(?P<path>[^)\s]+)\)"
)


class ReadmeHook(MetadataHookInterface):
    """Sets the project's `readme`."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Put README.md with absolute links into the metadata."""
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": absolute_links(text)}


def absolute_links(text: str) -> str:
    """Return Markdown whose relative links lead to the repository.

    Example: "[a](docs/a.md)" -> "[a](https://github.com/parl-swarm/parl/blob/main/docs/a.md)"
    """

    def absolute(match: re.Match[str]) -> str:
        root = FILES if match["picture"] else PAGES
        return f"{match['picture']}{match['text']}({root}{match['path']})"

    return LINK.sub(absolute, text)
