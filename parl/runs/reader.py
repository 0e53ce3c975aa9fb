"""Reads a run's folder while another process may be writing it; never writes itself.

In: the folder. Out: its config, metrics, evaluations and summary, a row for each stored episode, and single episodes
whole. Rows come from the index beside each stored step, or from the step itself where there is none (older runs).
What was read is kept until the file changes, so asking again is cheap.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from parl.runs.folder import (
    index_path,
    index_row,
    is_locked,
    read_episode,
    read_episodes,
    read_metrics,
    read_resolved,
)

State = Literal["running", "finished", "stopped"]
Row = Mapping[str, Any]
STORED = re.compile(r"step_(\d{6,})\.jsonl\.zst")


class RunReader:
    """One run. Raises CheckpointError when the folder holds none, or one of another schema version."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._raw = read_resolved(path)
        self._kept: dict[Path, tuple[tuple[int, int], Any]] = {}

    @property
    def name(self) -> str:
        """The folder's own name: the path to it is nobody else's business."""
        return self.path.resolve().name

    @property
    def config(self) -> Mapping[str, Any]:
        """The config as it is written: a report needs neither its plugins nor this version's opinion of it."""
        return self._raw

    def state(self) -> State:
        """`finished` once there is a summary, `running` while a process holds the folder's lock."""
        if (self.path / "summary.json").is_file():
            return "finished"
        return "running" if is_locked(self.path) else "stopped"

    # --- numbers ---------------------------------------------------------------------------------------------------

    def metrics(self) -> list[dict[str, float]]:
        """A mapping for each step (see `run_folder.read_metrics`)."""
        return self._cached(self.path / "metrics.jsonl", lambda: read_metrics(self.path)) or []

    def baseline_metrics(self) -> list[dict[str, float]]:
        """Those of the single agent that was trained beside the run (RUN-single); [] without one."""
        path = self.path.resolve()
        baseline = path.with_name(f"{path.name}-single")
        if self._raw.get("baseline") is None or not (baseline / "metrics.jsonl").is_file():
            return []
        return (
            RunReader(baseline).metrics() if (baseline / "config.resolved.yaml").is_file() else []
        )

    def summary(self) -> dict[str, Any] | None:
        """What the closing table says; None before the end."""
        found = self._json(self.path / "summary.json")
        return found if isinstance(found, dict) else None

    def tasks(self) -> dict[str, Any]:
        """Number and fingerprint of each split's tasks."""
        found = self._json(self.path / "tasks.json")
        return found if isinstance(found, dict) else {}

    def evaluations(self) -> dict[str, Any]:
        """File name in eval/ without its ending -> what it holds, without the rows per task."""
        files = sorted((self.path / "eval").glob("*.json"))
        found = {
            file.stem: self._json(file) for file in files if not file.name.endswith(".tasks.json")
        }
        return {name: value for name, value in found.items() if isinstance(value, dict)}

    def tokenizer(self, policy: str) -> Path | None:
        """A checkpoint's tokenizer of the policy (it is the same in all of them)."""
        files = (self.path / "checkpoints").glob("*/policies/*/tokenizer.json")
        return max((f for f in files if f.parent.name == policy), default=None)

    # --- episodes --------------------------------------------------------------------------------------------------

    def steps(self) -> list[int]:
        """Steps whose episodes are stored."""
        names = (
            STORED.fullmatch(file.name)
            for file in (self.path / "episodes").glob("step_*.jsonl.zst")
        )
        return sorted(int(match[1]) for match in names if match)

    def rows(self) -> list[Row]:
        """A row for each stored episode, in the order of training (see `run_folder.index_row`)."""
        return [row for step in self.steps() for row in self._rows_of(step)]

    def episode(self, step: int, episode_id: str) -> dict[str, Any] | None:
        """One episode whole, as it stands on disk; None if there is none."""
        file = self._file(step)
        return read_episode(file, episode_id) if file.is_file() else None

    def _file(self, step: int) -> Path:
        return self.path / "episodes" / f"step_{step:06d}.jsonl.zst"

    def _rows_of(self, step: int) -> list[Row]:
        file = self._file(step)
        return self._cached(file, lambda: _index(file)) or []

    def _json(self, file: Path) -> Any:
        return self._cached(file, lambda: _loads(file.read_text(errors="replace")))

    def _cached(self, file: Path, read: Callable[[], Any]) -> Any:
        """What `read` gives, again only when the file has changed; None without the file."""
        try:
            stat = file.stat()
            stamp = (stat.st_mtime_ns, stat.st_size)
            if file not in self._kept or self._kept[file][0] != stamp:
                self._kept[file] = (stamp, read())
        except OSError:  # not there, or just being replaced
            return None
        return self._kept[file][1]


def _index(file: Path) -> list[Row]:
    """The stored index if it belongs to this very file, else the same from the episodes themselves."""
    index = index_path(file)
    found = _loads(index.read_text(errors="replace")) if index.is_file() else None
    if isinstance(found, dict) and found.get("bytes") == file.stat().st_size:
        return list(found["episodes"])
    return [index_row(record) for record in read_episodes(file)]


def _loads(text: str) -> Any:
    """The JSON value; None for half a one."""
    try:
        return json.loads(text)
    except ValueError:
        return None
