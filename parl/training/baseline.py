"""The baseline of a run: a second training, a single agent, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from parl.config import Config, load
from parl.core.errors import CheckpointError
from parl.core.progress import Progress
from parl.runs.folder import read_resolved

STOP_S = 30.0
"""How long a baseline may take to end when its run ends early."""


class BaselineRun:
    """Starts `config.baseline` next to a run, with the same seed, in the folder RUN-single.

    Use as a context manager; without a baseline in the config it does nothing.

    Raises:
        CheckpointError: the folder holds another baseline; nothing was started.
    """

    def __init__(self, config: Config, run: Path) -> None:
        self._config = config
        self._path = run.with_name(f"{run.name}-single")
        self._log = run.with_name(f"{run.name}-single.log")
        self._process: subprocess.Popen[bytes] | None = None
        # The same seed, so that both runs train and are evaluated on the same tasks.
        self._overrides = [f"run_dir={self._path}", f"seed={config.seed}"]
        if config.baseline is not None and self._has_begun:
            self._check_same(load(config.baseline, self._overrides))

    def __enter__(self) -> Self:
        if self._config.baseline is None or self._has_finished:
            return self
        command = [sys.executable, "-m", "parl.cli", "train"]
        if self._has_begun:
            config = self._path / "config.resolved.yaml"
            command += [str(config), "--resume", str(self._path)]
        else:
            command += [str(self._config.baseline), *self._overrides]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # An inherited OMP_NUM_THREADS would be that of this process; two processes with unpinned
        # threads on one machine run 30 to 100 times slower.
        env = {**os.environ, "OMP_NUM_THREADS": str(self._config.threads)}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=env
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            # The run failed or was stopped: a baseline without its run would hold the folder
            # RUN-single, and a resumed run could not start it again.
            self._process.terminate()
            try:
                self._process.wait(timeout=STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()

    def check(self) -> None:
        """Raise RuntimeError when the baseline has died: better now than after hours."""
        if self._process is not None and self._process.poll() not in (None, 0):
            raise RuntimeError(
                f"the baseline run failed with exit code {self._process.returncode}; see {self._log}"
            )

    def result(self) -> dict[str, Any] | None:
        """Wait for the baseline and return its summary; None without a baseline.

        Raises:
            RuntimeError: it failed.
        """
        if self._config.baseline is None:
            return None
        if self._process is not None:
            with Progress(f"waiting for the baseline ({self._log})", 1):
                self._process.wait()
            self.check()
        return dict(json.loads((self._path / "summary.json").read_text()))

    @property
    def _has_begun(self) -> bool:
        return (self._path / "config.resolved.yaml").is_file()

    @property
    def _has_finished(self) -> bool:
        return self._has_begun and (self._path / "summary.json").is_file()

    def _check_same(self, config: Config) -> None:
        """A baseline that is there already must be the one that this run would make."""
        values, other_values = config.model_dump(mode="json"), read_resolved(self._path)
        different = sorted(
            key for key in values if key != "run_dir" and values[key] != other_values.get(key)
        )
        if different:
            raise CheckpointError(
                f"{self._path} holds a baseline of another config (different: {', '.join(different)}). Delete it, or "
                "choose another run_dir=... for the run."
            )
