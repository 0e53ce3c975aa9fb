"""A run's folder: config, metrics, episodes, evaluations, summary (docs/reference/run-folder.md).

One process writes it and holds its lock. Every file that is replaced is written under a temporary
name and renamed, so a reader never sees half a file.
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
"""Version of a run folder. 2: config keys, credit rules and metrics have other names than in 1
(parl/config/renamed.py)."""
CONFIG = "config.resolved.yaml"
METRICS = "metrics.jsonl"


class RunFolder:
    """A run folder that is open for writing, made by `create` or `resume`."""

    def __init__(self, path: Path, lock: IO[str]) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def create(cls, path: Path, config: Config) -> RunFolder:
        """Make the folder of a new run.

        Raises:
            CheckpointError: the folder is not empty (nothing is overwritten), cannot be made, or is
                in use.
        """
        if (path / CONFIG).exists():
            raise CheckpointError(
                f"{path} already holds a run. Resume it with --resume {path}, choose another "
                "run_dir=..., or delete it."
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
            # A lock alone is left by a run that another process refused.
            if any(file.name != ".lock" for file in path.iterdir()):
                raise CheckpointError(
                    f"{path} is not empty, and no run: choose another run_dir=..., or empty it."
                )
            folder = cls(path, _lock(path))
            (path / "episodes").mkdir(exist_ok=True)
            (path / "eval").mkdir(exist_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"run_dir={path} cannot be made: {error.strerror}. Choose a folder that you may "
                "write, run_dir=..."
            ) from None
        resolved = {"schema_version": SCHEMA_VERSION, **config.model_dump(mode="json")}
        text = yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True)
        # Last, since a folder with a config counts as a run.
        write_atomic(path / CONFIG, text)
        return folder

    @classmethod
    def resume(cls, path: Path) -> RunFolder:
        """Open the folder of an existing run.

        Raises:
            CheckpointError: there is no run, it has another schema version, or it is in use.
        """
        read_resolved(path)
        (path / "episodes").mkdir(exist_ok=True)
        (path / "eval").mkdir(exist_ok=True)
        return cls(path, _lock(path))

    def close(self) -> None:
        """Release the lock, so that another process may write."""
        self._lock.close()

    def truncate_metrics(self, step: int) -> None:
        """Remove the metrics of steps at or after `step`: a resumed run computes them again.

        A half-written last line is removed as well.

        Raises:
            CheckpointError: a line is no step's metrics.
        """
        file = self.path / METRICS
        if not file.exists():
            return
        earlier = []
        for line in file.read_text().splitlines(keepends=True):
            if not line.endswith("\n"):
                continue
            try:
                if json.loads(line)["step"] < step:
                    earlier.append(line)
            except (ValueError, KeyError, TypeError):
                raise CheckpointError(
                    f"{file} holds a line that is no step's metrics. Delete that line, or the "
                    "file, and resume again."
                ) from None
        write_atomic(file, "".join(earlier))

    def log(self, metrics: Mapping[str, float]) -> None:
        """Append a row to metrics.jsonl."""
        with (self.path / METRICS).open("a") as file:
            file.write(json.dumps(dict(metrics)) + "\n")

    def write_json(self, name: str, value: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        """Write or replace a file of the run."""
        write_atomic(self.path / name, json.dumps(value, indent=1))

    def write_episodes(
        self, step: int, scored: Sequence[ScoredEpisode], samples: Iterable[Sample]
    ) -> None:
        """Write the episodes of a step, one a line, and an index of them.

        Args:
            step: names the files, episodes/step_NNNNNN.jsonl.zst and .index.json.
            scored: the episodes of all groups.
            samples: what was trained on, for the advantages. An agent without a sample has none.
        """
        import zstandard

        advantages = {(sample.episode, sample.agent): sample.advantages for sample in samples}
        records = [episode_record(episode, advantages) for episode in scored]
        lines = "".join(json.dumps(record) + "\n" for record in records)
        data = zstandard.ZstdCompressor(level=3).compress(lines.encode())
        file = self.path / "episodes" / f"step_{step:06d}.jsonl.zst"
        write_atomic(file, data)
        # The index names the size of its file. A run that is killed between the two writes leaves
        # an older index, which readers recognise by that.
        index = {"bytes": len(data), "episodes": [index_row(record) for record in records]}
        write_atomic(index_path(file), json.dumps(index))


def read_resolved(path: Path) -> dict[str, Any]:
    """Return the run's config as a mapping, without the schema version.

    Raises:
        CheckpointError: there is no run, it is damaged, or it has another schema version.
    """
    file = path / CONFIG
    if not file.is_file():
        raise CheckpointError(f"{path} is no run folder: it has no config.resolved.yaml.")
    try:
        raw = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError, OSError):
        raw = None
    if not isinstance(raw, dict):
        raise CheckpointError(
            f"{file} is damaged: it is no config. Start a new run; its checkpoints may serve as "
            "model."
        )
    version = raw.pop("schema_version", None)
    if version != SCHEMA_VERSION:
        raise CheckpointError(
            f"{path} has schema version {version}, this program reads {SCHEMA_VERSION}. Use the "
            "version of parl-swarm that made the run, or start a new run from its policies "
            "(policies.NAME.model: RUN)."
        )
    return dict(raw)


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Return the rows of a run's metrics.jsonl, in order; [] before the first step.

    A last line that is being written is left out, and so is a value that is no finite number.
    """
    file = path / METRICS
    lines = file.read_text(errors="replace").splitlines() if file.is_file() else []
    rows = []
    for line in lines:
        row = _parse_row(line)
        if not isinstance(row.get("step"), int | float):
            continue
        numbers = {}
        for name, value in row.items():
            if isinstance(value, int | float) and math.isfinite(value):
                numbers[name] = value
        rows.append(numbers)
    return rows


def _parse_row(line: str) -> dict[str, Any]:
    """Return the mapping of a line, {} where it is none."""
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}


def read_episodes(path: Path) -> list[dict[str, Any]]:
    """Return the records of one stored step."""
    return [json.loads(line) for line in _lines(path)]


def read_episode(path: Path, episode_id: str) -> dict[str, Any] | None:
    """Return the record of one episode of a stored step, or None if it is not there.

    The other records are not parsed: a step of a large model holds megabytes of tokens.
    """
    # A record begins with its id.
    start = json.dumps({"id": episode_id})[:-1] + ","
    for line in _lines(path):
        if line.startswith(start):
            record: dict[str, Any] = json.loads(line)
            return record
    return None


def _lines(path: Path) -> list[str]:
    import zstandard

    with path.open("rb") as file:
        data = zstandard.ZstdDecompressor().stream_reader(file).read()
    return data.decode().splitlines()


def index_path(episodes: Path) -> Path:
    """Return the path of a stored step's index, episodes/step_NNNNNN.index.json.

    Its `bytes` is the size of the step's episode file.
    """
    return episodes.with_name(episodes.name.replace(".jsonl.zst", ".index.json"))


def index_row(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of an episode in lists, so that nobody has to read all records.

    `reward` is the orchestrator's total, `width` the most subagents that one turn launched,
    `latency_s` is in virtual seconds, `tokens` counts those that all agents wrote. A failed episode
    has neither reward nor score: null.
    """
    traces = record["traces"]
    launched_by_turn = Counter(trace["spawned_at"] for trace in traces[1:])
    num_tokens = 0
    for trace in traces:
        num_tokens += sum(turn["end"] - turn["start"] for turn in trace["turns"])
    return {
        "id": record["id"],
        "step": record["step"],
        "task": record["task"]["id"],
        "group": record["group"],
        "status": record["status"],
        "failure": record["failure"],
        "reward": record["rewards"].get(ORCHESTRATOR_ID, {}).get("total"),
        "score": record["outcome"].get("score"),
        "width": max(launched_by_turn.values(), default=0),
        "num_subagents": len(traces) - 1,
        "critical_steps": record["critical_steps"],
        "latency_s": record["clock"]["critical_path_s"],
        "tokens": num_tokens,
    }


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write a file, or replace it in one step, so that a reader has the old or the new one.

    The data are on disk before the new name is: a crash of the machine leaves one of the two as
    well.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(data.encode() if isinstance(data, str) else data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _lock(path: Path) -> IO[str]:
    # The system releases the lock with the process, however that ends; a file with a process id
    # would stay behind a kill.
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
    """Return whether a process holds the run's lock."""
    if not (path / ".lock").is_file():
        return False
    with (path / ".lock").open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
