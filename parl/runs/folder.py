"""A run's folder: config, metrics, episodes, evaluations, summary. One process writes it; a lock says who.

Everything that is replaced is written to a temporary name and renamed, so a reader never sees half a file.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import yaml

from parl.config.schema import Config
from parl.core.errors import CheckpointError
from parl.core.types import ORCHESTRATOR_ID, Sample, ScoredEpisode
from parl.runs.records import episode_record

SCHEMA_VERSION = 2
"""Version of a run folder. 2: config keys, credit rules and metrics were renamed (parl/config/renamed.py)."""


class RunFolder:
    """Open for writing. Use `create` or `resume`."""

    def __init__(self, path: Path, lock: IO[str]) -> None:
        self.path, self._lock = path, lock

    @classmethod
    def create(cls, path: Path, config: Config) -> RunFolder:
        """A new run. Raises CheckpointError when the folder already holds one: nothing is overwritten."""
        if (path / "config.resolved.yaml").exists():
            raise CheckpointError(
                f"{path} already holds a run. Resume it with --resume {path}, choose another run_dir=..., or delete it."
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(p.name != ".lock" for p in path.iterdir()):
                raise CheckpointError(
                    f"{path} is not empty, and no run: choose another run_dir=..., or empty it."
                )
            folder = cls(path, _lock(path))
            (path / "episodes").mkdir(exist_ok=True)
            (path / "eval").mkdir(exist_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"run_dir={path} cannot be made: {error.strerror}. Choose a folder that you may write, run_dir=..."
            ) from None
        resolved = {"schema_version": SCHEMA_VERSION, **config.model_dump(mode="json")}
        write_atomic(
            path / "config.resolved.yaml",
            yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True),
        )
        return folder

    @classmethod
    def resume(cls, path: Path) -> RunFolder:
        """An existing run. Raises CheckpointError: no run there, another schema version, or in use."""
        read_resolved(path)
        (path / "episodes").mkdir(exist_ok=True)
        (path / "eval").mkdir(exist_ok=True)
        return cls(path, _lock(path))

    def close(self) -> None:
        """Let another process write."""
        self._lock.close()

    def truncate_metrics(self, step: int) -> None:
        """Drop metrics of steps at or after `step`, and a half-written last line: they will be computed again."""
        file = self.path / "metrics.jsonl"
        if file.exists():
            whole = [
                line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")
            ]
            try:
                kept = [line.rstrip("\n") for line in whole if json.loads(line)["step"] < step]
            except (ValueError, KeyError, TypeError):
                raise CheckpointError(
                    f"{file} holds a line that is no step's metrics. Delete that line, or the file, and resume again."
                ) from None
            write_atomic(file, "".join(f"{line}\n" for line in kept))

    def log(self, metrics: Mapping[str, float]) -> None:
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(dict(metrics)) + "\n")

    def write_json(self, name: str, value: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        write_atomic(self.path / name, json.dumps(value, indent=1))

    def write_episodes(
        self, step: int, scored: Sequence[ScoredEpisode], samples: Iterable[Sample]
    ) -> None:
        """episodes/step_NNNNNN.jsonl.zst: one episode a line (see docs/reference/metrics.md); beside it, its index."""
        import zstandard

        advantages = {(s.episode, s.agent): s.advantages for s in samples}
        records = [episode_record(s, advantages) for s in scored]
        lines = "".join(json.dumps(record) + "\n" for record in records)
        data = zstandard.ZstdCompressor(level=3).compress(lines.encode())
        file = self.path / "episodes" / f"step_{step:06d}.jsonl.zst"
        write_atomic(file, data)
        index = {"bytes": len(data), "episodes": [index_row(record) for record in records]}
        write_atomic(index_path(file), json.dumps(index))


def read_resolved(path: Path) -> dict[str, Any]:
    """The run's config as a mapping, without the schema version. Raises CheckpointError."""
    file = path / "config.resolved.yaml"
    if not file.is_file():
        raise CheckpointError(f"{path} is no run folder: it has no config.resolved.yaml.")
    try:
        raw = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError, OSError):
        raw = None
    if not isinstance(raw, dict):
        raise CheckpointError(
            f"{file} is damaged: it is no config. Start a new run; its checkpoints may serve as model."
        )
    version = raw.pop("schema_version", None)
    if version != SCHEMA_VERSION:
        raise CheckpointError(
            f"{path} has schema version {version}, this program reads {SCHEMA_VERSION}. Use the version of parl-swarm "
            "that made the run, or start a new run from its policies (policies.NAME.model: RUN)."
        )
    return dict(raw)


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a run's metrics.jsonl, in order; [] before the first step.

    A last line that is being written is left out; so is a value that is no number.
    """
    file = path / "metrics.jsonl"
    lines = file.read_text(errors="replace").splitlines() if file.is_file() else []
    rows = [row for row in map(_row, lines) if isinstance(row.get("step"), int | float)]
    return [
        {k: v for k, v in row.items() if isinstance(v, int | float) and math.isfinite(v)}
        for row in rows
    ]


def _row(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}


def read_episodes(path: Path) -> list[dict[str, Any]]:
    """The episodes of one stored step."""
    return [json.loads(line) for line in _lines(path)]


def read_episode(path: Path, episode_id: str) -> dict[str, Any] | None:
    """One episode of a stored step, without parsing the others; None if it is not there."""
    start = json.dumps({"id": episode_id})[:-1] + ","  # a record begins with its id
    return next((json.loads(line) for line in _lines(path) if line.startswith(start)), None)


def _lines(path: Path) -> list[str]:
    import zstandard

    with path.open("rb") as file:
        data = zstandard.ZstdDecompressor().stream_reader(file).read()
    return data.decode().splitlines()


def index_path(episodes: Path) -> Path:
    """The index of a stored step, episodes/step_NNNNNN.index.json. Its `bytes` is the size of the step's own file."""
    return episodes.with_name(episodes.name.replace(".jsonl.zst", ".index.json"))


def index_row(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a list of episodes shows of one, so that it can be found without reading all of them.

    `reward` is the orchestrator's total, `width` the most subagents that one turn launched, `latency_s` in virtual
    seconds, `tokens` those that all agents wrote. A failed episode has neither reward nor score: null.
    """
    traces = record["traces"]
    launched = Counter(t["spawned_at"] for t in traces[1:])
    return {
        "id": record["id"],
        "step": record["step"],
        "task": record["task"]["id"],
        "group": record["group"],
        "status": record["status"],
        "failure": record["failure"],
        "reward": record["rewards"].get(ORCHESTRATOR_ID, {}).get("total"),
        "score": record["outcome"].get("score"),
        "width": max(launched.values(), default=0),
        "num_subagents": len(traces) - 1,
        "critical_steps": record["critical_steps"],
        "latency_s": record["clock"]["critical_path_s"],
        "tokens": sum(turn["end"] - turn["start"] for t in traces for turn in t["turns"]),
    }


def write_atomic(path: Path, data: str | bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(data.encode() if isinstance(data, str) else data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _lock(path: Path) -> IO[str]:
    file = (path / ".lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise CheckpointError(
            f"{path} is in use by another process. Wait for it, or choose another run_dir."
        ) from None
    return file


def is_locked(path: Path) -> bool:
    """Whether a process holds the run's lock."""
    if not (path / ".lock").is_file():
        return False
    with (path / ".lock").open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
