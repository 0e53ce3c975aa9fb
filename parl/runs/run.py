"""A finished or running run, as data: `parl.load_run`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parl.config import Config, parse
from parl.core.errors import CheckpointError
from parl.core.extras import require
from parl.runs.folder import read_resolved
from parl.runs.reader import RunReader

if TYPE_CHECKING:
    import pandas


def load_run(path: str | Path) -> Run:
    """Return a run as data.

    Raises:
        CheckpointError: the folder holds no run, or one of another schema version.
    """
    return Run(Path(path))


class Run:
    """One run folder.

    What is read stays as it was at the first look; load the run again to see more of a running one.

    Example:
        ```python
        run = parl.load_run("runs/quickstart")
        run.metrics.plot(y=["outcome/score", "swarm/critical_steps"])
        run.summary["heldout"]["trained"]["swarm"]["greedy"]["score"]
        run.episodes.groupby("step").score.mean()
        run.episode(0)["traces"][0]["turns"]
        ```
    """

    def __init__(self, path: Path) -> None:
        read_resolved(path)  # raises CheckpointError: no run
        self.path = path
        self._reader = RunReader(path)

    def __repr__(self) -> str:
        return f"Run('{self.path}', {self.state})"

    @property
    def state(self) -> str:
        """`running`, `finished` or `stopped`."""
        return self._reader.state()

    @cached_property
    def config(self) -> Config:
        """The run's config, after `extends` and overrides."""
        return parse(read_resolved(self.path), source=str(self.path))

    @cached_property
    def summary(self) -> Mapping[str, Any] | None:
        """What summary.json holds; None before the end."""
        return self._reader.summary()

    @cached_property
    def metrics(self) -> pandas.DataFrame:
        """One row for each step, indexed by it; a metric that a step lacks is NaN."""
        require("view", "pandas", needed_by="Run.metrics")
        import pandas

        frame = pandas.DataFrame(self._reader.metrics())
        if frame.empty:
            return frame
        return frame.astype({"step": int}).set_index("step")

    @cached_property
    def evaluations(self) -> Mapping[str, Any]:
        """File name in eval/ without its ending -> what it holds."""
        files = sorted((self.path / "eval").glob("*.json"))
        return {file.stem: json.loads(file.read_text()) for file in files}

    @cached_property
    def episodes(self) -> pandas.DataFrame:
        """One row for each stored episode: step, task, status, score, reward, steps, tokens."""
        require("view", "pandas", "zstandard", needed_by="Run.episodes")
        import pandas

        return pandas.DataFrame(self._reader.rows())

    def episode(self, number: int) -> Mapping[str, Any]:
        """Return the whole record of an episode.

        It has the tree of agents, tokens, masks, log-probs, advantages and reward terms.

        Args:
            number: its row in `episodes`.
        Raises:
            IndexError: there is no such row.
            CheckpointError: the file was deleted after the rows were read.
        """
        row = self._reader.rows()[number]
        record = self._reader.episode(row["step"], row["id"])
        if record is None:
            raise CheckpointError(
                f"The episodes of step {row['step']} are no longer in {self.path}."
            )
        return record

    @property
    def checkpoints(self) -> list[Path]:
        """The folders of the cold start and of the steps that are on disk, oldest first."""
        root = self.path / "checkpoints"
        cold_start = [root / "cold_start"] if (root / "cold_start").is_dir() else []
        return [*cold_start, *sorted(root.glob("step_*"))]
