"""Metrics to Weights & Biases, offline by default; the run folder stays the source of truth."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from parl.config import Config

MAX_TABLE_ROWS = 10_000
"""The limit of a table in wandb."""


class Tracker:
    """Use as a context manager around the training loop.

    It does nothing where tracking is disabled.
    """

    def __init__(self, config: Config, folder: Path) -> None:
        self._config = config
        self._folder = folder
        self._run: Any = None

    def __enter__(self) -> Self:
        settings = self._config.tracking.wandb
        if settings.mode != "disabled":
            # Imported here: it takes a second and starts a service.
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._run is not None:
            self._run.finish(exit_code=0 if kind is None else 1)

    def log(self, metrics: Mapping[str, float]) -> None:
        """Send the metrics of a step."""
        if self._run is None:
            return
        values = {name: value for name, value in metrics.items() if name != "step"}
        self._run.log(values, step=int(metrics["step"]))

    def show_episodes(self) -> None:
        """Send the newest stored episodes as a table, and the timeline of one of the last step."""
        if self._run is None:
            return
        import wandb

        from parl.report.pages import COLUMNS, panel_html
        from parl.runs.reader import RunReader

        reader = RunReader(self._folder)
        keys = [column.key for column in COLUMNS]
        table = wandb.Table(keys)
        for row in reader.rows()[-MAX_TABLE_ROWS:]:
            table.add_data(*(row[key] for key in keys))
        panel = panel_html(reader)
        if panel is not None:
            self._run.log({"episodes": table, "timeline": wandb.Html(panel, inject=False)})
