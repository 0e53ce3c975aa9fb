"""Metrics to Weights & Biases: offline unless asked otherwise. The run folder stays the source of truth."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from parl.config.schema import Config

MOST_ROWS = 10_000
"""What wandb takes in one table."""


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

    def show_episodes(self) -> None:
        """The stored episodes as a table (the newest MOST_ROWS), and the timeline of one of the last step."""
        if self._run is None:
            return
        import wandb

        from parl.report.pages import COLUMNS, panel_html
        from parl.runs.reader import RunReader

        reader = RunReader(self._folder)
        keys = [column.key for column in COLUMNS]
        rows = [[row[key] for key in keys] for row in reader.rows()[-MOST_ROWS:]]
        panel = panel_html(reader)
        if panel is not None:
            self._run.log(
                {"episodes": wandb.Table(keys, rows), "timeline": wandb.Html(panel, inject=False)}
            )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._run is not None:
            self._run.finish(exit_code=0 if kind is None else 1)
