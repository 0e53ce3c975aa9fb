"""The manifest of a checkpoint folder: a SHA-256 digest of each file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from parl.core.errors import CheckpointError

COLD_START = "cold_start"


def verify(folder: Path) -> None:
    """Check every file of a checkpoint against its manifest.

    Raises:
        CheckpointError: a file is missing or was changed. The message says what to do.
    """
    way_out = (
        "Start the run anew: every other checkpoint began there."
        if folder.name == COLD_START
        else f"Delete {folder} to resume from the checkpoint before it."
    )
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        # The manifest is written last: without it, or without these two, the process was killed.
        if not isinstance(manifest, dict) or not {"learner.pt", "state.json"} <= set(manifest):
            raise ValueError
    except (OSError, ValueError):
        raise CheckpointError(
            f"{folder} is no complete checkpoint: its manifest.json is missing or damaged. "
            f"{way_out}"
        ) from None
    for name, expected in manifest.items():
        path = folder / name
        if not path.is_file() or digest(path) != expected:
            raise CheckpointError(
                f"{folder} is damaged: {name} is missing or was changed. {way_out}"
            )


def digest(path: Path) -> str:
    """Return the SHA-256 digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
