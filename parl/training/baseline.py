"""The control of a run: a second training (a single agent) in a process of its own, on the other core."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from parl.config import Config, load
from parl.core.errors import CheckpointError
from parl.core.progress import Progress
from parl.runs.folder import read_resolved


class BaselineRun:
    """Starts `config.baseline` beside the run (same seed, folder RUN-single); `result` waits for its summary.

    Raises CheckpointError, before anything is started, when the folder holds another baseline.
    """

    def __init__(self, config: Config, run: Path) -> None:
        self._config = config
        self._path = run.with_name(f"{run.name}-single")
        self._process: subprocess.Popen[bytes] | None = None
        self._overrides = [f"run_dir={self._path}", f"seed={config.seed}"]
        if config.baseline is not None and (self._path / "config.resolved.yaml").is_file():
            self._check_same(load(config.baseline, self._overrides))

    def __enter__(self) -> BaselineRun:
        if self._config.baseline is None:
            return self
        command = [sys.executable, "-m", "parl.cli", "train"]
        if (self._path / "config.resolved.yaml").is_file():
            if (self._path / "summary.json").is_file():
                return self
            command += [str(self._path / "config.resolved.yaml"), "--resume", str(self._path)]
        else:
            command += [str(self._config.baseline), *self._overrides]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._log = self._path.with_name(f"{self._path.name}.log")
        env = {**os.environ, "OMP_NUM_THREADS": str(self._config.threads)}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=env
            )
        return self

    def _check_same(self, wanted: Config) -> None:
        """A control that is there already must be the one that this run would make. Raises CheckpointError."""
        own, other = wanted.model_dump(mode="json"), read_resolved(self._path)
        different = sorted(k for k in own if k != "run_dir" and own[k] != other.get(k))
        if different:
            raise CheckpointError(
                f"{self._path} holds a baseline of another config (different: {', '.join(different)}). Delete it, or "
                "choose another run_dir=... for the run."
            )

    def check(self) -> None:
        """Raise RuntimeError when the baseline has died: better now than after hours."""
        if self._process is not None and self._process.poll() not in (None, 0):
            raise RuntimeError(
                f"the baseline run failed with exit code {self._process.returncode}; see {self._log}"
            )

    def result(self) -> dict[str, Any] | None:
        """The control's summary, waited for. None without a control. Raises RuntimeError when it failed."""
        if self._config.baseline is None:
            return None
        if self._process is not None:
            with Progress(f"waiting for the baseline ({self._log})", 1):
                self._process.wait()
            self.check()
        return dict(json.loads((self._path / "summary.json").read_text()))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self._process.kill()
