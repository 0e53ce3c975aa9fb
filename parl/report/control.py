"""The control of a run: a second training (a single agent) in a process of its own, on the other core."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from parl.config.schema import Config
from parl.progress import Progress


class Control:
    """Starts `config.control` beside the run (same seed, folder RUN-single); `result` waits for its summary."""

    def __init__(self, config: Config, run: Path, resumed: bool) -> None:
        self._config = config
        self._path = run.with_name(f"{run.name}-single")
        self._resumed = resumed
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Control:
        if self._config.control is None or (self._path / "summary.json").is_file():
            return self
        command = [sys.executable, "-m", "parl.cli", "train"]
        if (self._path / "config.resolved.yaml").is_file() and self._resumed:
            command += ["--resume", str(self._path)]
        else:
            command += [str(self._config.control), f"run_dir={self._path}", f"seed={self._config.seed}"]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._log = self._path.with_name(f"{self._path.name}.log")
        env = {**os.environ, "OMP_NUM_THREADS": str(self._config.threads)}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=env)
        return self

    def result(self) -> dict[str, Any] | None:
        """The control's summary, waited for. None without a control. Raises RuntimeError when it failed."""
        if self._config.control is None:
            return None
        if self._process is not None:
            with Progress(f"waiting for the control ({self._log})", 1):
                code = self._process.wait()
            if code != 0:
                raise RuntimeError(f"the control run failed with exit code {code}; see {self._log}")
        return dict(json.loads((self._path / "summary.json").read_text()))

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self._process.kill()
