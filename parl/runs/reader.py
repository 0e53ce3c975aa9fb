"""A reader of a run's folder, while another process may be writing it. It never writes itself.

It has the run's config, metrics, evaluations and summary, a row for each stored episode, and
complete records of single episodes. Files are cached until they change, so that a page can ask
every second.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from parl.runs.folder import (
    CONFIG,
    METRICS,
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
"""Name of a stored step's file."""


class RunReader:
    """One run.

    Raises:
        CheckpointError: the folder holds no run, or one of another schema version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._raw = read_resolved(path)
        # File -> (its time and size when it was read, its content).
        self._cache: dict[Path, tuple[tuple[int, int], Any]] = {}

    @property
    def name(self) -> str:
        """The folder's name; its path would tell more about the machine than a report should."""
        return self.path.resolve().name

    @property
    def config(self) -> Mapping[str, Any]:
        """The config as a mapping: a report needs neither its plugins nor a validation."""
        return self._raw

    def state(self) -> State:
        """Return `finished` once there is a summary, `running` while a process holds the lock."""
        if (self.path / "summary.json").is_file():
            return "finished"
        return "running" if is_locked(self.path) else "stopped"

    # --- numbers ---------------------------------------------------------------------------------

    def metrics(self) -> list[dict[str, float]]:
        """Return a mapping for each step (see `parl.runs.folder.read_metrics`)."""
        return self._cached(self.path / METRICS, lambda: read_metrics(self.path)) or []

    def baseline_metrics(self) -> list[dict[str, float]]:
        """Return the metrics of the run's `baseline`, trained at the same time; [] without one."""
        path = self.path.resolve()
        baseline = path.with_name(f"{path.name}-single")
        # It starts after the run: for a while there is a folder without metrics, or none.
        exists = (baseline / METRICS).is_file() and (baseline / CONFIG).is_file()
        if self._raw.get("baseline") is None or not exists:
            return []
        return RunReader(baseline).metrics()

    def summary(self) -> dict[str, Any] | None:
        """Return the content of summary.json, the closing table; None before the end."""
        summary = self._json(self.path / "summary.json")
        return summary if isinstance(summary, dict) else None

    def tasks(self) -> dict[str, Any]:
        """Return the number and fingerprint of each split's tasks."""
        tasks = self._json(self.path / "tasks.json")
        return tasks if isinstance(tasks, dict) else {}

    def evaluations(self) -> dict[str, Any]:
        """Return file name in eval/ without its suffix -> content; not the rows per task."""
        evaluations = {}
        for file in sorted((self.path / "eval").glob("*.json")):
            if file.name.endswith(".tasks.json"):
                continue
            content = self._json(file)
            if isinstance(content, dict):
                evaluations[file.stem] = content
        return evaluations

    def tokenizer(self, policy: str) -> Path | None:
        """Return the policy's tokenizer file, of any checkpoint: it is the same in all of them."""
        files = (self.path / "checkpoints").glob("*/policies/*/tokenizer.json")
        return max((file for file in files if file.parent.name == policy), default=None)

    # --- episodes --------------------------------------------------------------------------------

    def steps(self) -> list[int]:
        """Return the steps whose episodes are stored, in order."""
        steps = []
        for file in (self.path / "episodes").glob("step_*.jsonl.zst"):
            match = STORED.fullmatch(file.name)
            if match:
                steps.append(int(match[1]))
        return sorted(steps)

    def rows(self) -> list[Row]:
        """Return a row for each stored episode, in the order of training.

        Their keys are those of `parl.runs.folder.index_row`.
        """
        rows: list[Row] = []
        for step in self.steps():
            rows += self._rows_of(step)
        return rows

    def episode(self, step: int, episode_id: str) -> dict[str, Any] | None:
        """Return the complete record of one episode, or None if there is none."""
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
        """Return the result of `read`, called again only when the file has changed.

        Returns:
            None where there is no file.
        """
        try:
            stat = file.stat()
            stamp = (stat.st_mtime_ns, stat.st_size)
            if file not in self._cache or self._cache[file][0] != stamp:
                self._cache[file] = (stamp, read())
        except OSError:
            # Not there yet, or removed between `stat` and `read`.
            return None
        return self._cache[file][1]


def _index(file: Path) -> list[Row]:
    """Return the rows of a stored step.

    They come from its index, or from the episodes where the index is missing (older runs) or
    belongs to another version of the file.
    """
    path = index_path(file)
    index = _loads(path.read_text(errors="replace")) if path.is_file() else None
    if isinstance(index, dict) and index.get("bytes") == file.stat().st_size:
        return list(index["episodes"])
    return [index_row(record) for record in read_episodes(file)]


def _loads(text: str) -> Any:
    """Return the JSON value, or None for one that is incomplete."""
    try:
        return json.loads(text)
    except ValueError:
        return None
