"""Metrics to Weights & Biases: offline unless asked otherwise. The run folder stays the source of truth."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from parl.config.schema import Config


class Tracker:
    """Use as a context manager around the training loop."""

    def __init__(self, config: Config, folder: Path) -> None:
        self._config, self._folder = config, folder
        self._run: Any = None

    def __enter__(self) -> Tracker:
        settings = self._config.tracking.wandb
        if settings.mode != "disabled":
            import wandb

            self._run = wandb.init(
                project=settings.project,
                name=self._config.name,
                group=settings.group,
                dir=str(self._folder),
                mode=settings.mode,
                config=self._config.model_dump(mode="json"),
                settings=wandb.Settings(silent=True, console="off"),
            )
        return self

    def log(self, metrics: Mapping[str, float]) -> None:
        if self._run is not None:
            values = {k: v for k, v in metrics.items() if k != "step"}
            self._run.log(values, step=int(metrics["step"]))

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._run is not None:
            self._run.finish(exit_code=0 if kind is None else 1)
