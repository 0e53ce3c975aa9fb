"""Progress on stderr: a bar with the time left on a terminal, plain lines with the time left elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType


class Progress:
    """Counts to a total. Use as a context manager."""

    LINE_EVERY_S = 10.0
    SURE_AFTER = 3
    """Steps before an estimate of the time left is shown: the first ones pay for the start-up."""

    def __init__(self, label: str, total: int) -> None:
        self._label, self._total = label, total
        self._done = 0
        self._note = ""
        self._started = self._last = time.monotonic()
        self._bar: object | None = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self._bar = Bar(*columns, console=Console(stderr=True))
            self._bar.start()
            self._id = self._bar.add_task(self._label, total=self._total, note="")
        else:
            _line(f"{self._label} ...")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()  # type: ignore[attr-defined]

    def advance(self, note: str | None = None, to: int | None = None) -> None:
        """One more is done (or `to` are); `note` is shown behind the bar."""
        self._done = self._done + 1 if to is None else to
        self._note = note if note is not None else self._note
        if self._bar is not None:
            self._bar.update(self._id, completed=self._done, note=self._note)  # type: ignore[attr-defined]
            return
        now = time.monotonic()
        if now - self._last >= self.LINE_EVERY_S or (note is not None and now - self._last >= 1.0):
            self._last = now
            left = (now - self._started) / max(self._done, 1) * (self._total - self._done)
            about = f", about {_minutes(left)} left" if self._done >= self.SURE_AFTER else ""
            _line(f"{self._label} {self._done}/{self._total}{about}. {self._note}".rstrip())

    def say(self, text: str) -> None:
        """A line of its own, above the bar."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)  # type: ignore[attr-defined]
        else:
            _line(text)


def _line(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
