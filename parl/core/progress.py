"""Progress of long work: a bar on a terminal, one line in a notebook, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Protocol, Self


class Progress:
    """Counts to a total, with an estimate of the time left. Use as a context manager.

    Args:
        label: what is counted, such as "training".
        total: the number of steps.
    """

    LINE_EVERY_S = 10.0
    """Between two plain lines of a count."""
    NOTE_EVERY_S = 1.0
    """Between two plain lines where the count comes with a note."""
    SURE_AFTER = 3
    """Steps before an estimate of the time left is shown: the first ones pay for the start-up."""

    def __init__(self, label: str, total: int) -> None:
        self._label = label
        self._total = total
        self._done = 0
        self._note = ""
        self._started = time.monotonic()
        self._display: _Display = _Lines()

    def __enter__(self) -> Self:
        # At the start of the work, not of the process: a notebook may import this long before.
        if _in_notebook():
            self._display = _NotebookLine()
        elif sys.stderr.isatty():
            self._display = _Bar(self._label, self._total)
        self._display.begin(f"{self._label} ...")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._display.end()

    def advance(self, note: str | None = None, to: int | None = None) -> None:
        """Count one step more.

        Args:
            note: shown behind the count; None keeps the last one.
            to: the number of steps that are done, in place of one more.
        """
        self._done = self._done + 1 if to is None else to
        if note is not None:
            self._note = note
        self._display.show(self._done, self._note, self._line(), is_new_note=note is not None)

    def say(self, text: str) -> None:
        """Print a line that stays, above the bar."""
        self._display.say(text)

    def _line(self) -> str:
        """Example: "training 5/40, about 20 s left. outcome 0.531" """
        estimate = ""
        if self._done >= self.SURE_AFTER:
            elapsed_s = time.monotonic() - self._started
            left_s = elapsed_s / self._done * (self._total - self._done)
            estimate = f", about {_duration(left_s)} left"
        return f"{self._label} {self._done}/{self._total}{estimate}. {self._note}".rstrip()


class _Display(Protocol):
    """A place where progress is shown."""

    def begin(self, text: str) -> None: ...

    def show(self, done: int, note: str, line: str, *, is_new_note: bool) -> None: ...

    def say(self, text: str) -> None: ...

    def end(self) -> None: ...


class _Lines:
    """Plain lines, few enough for a log."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def begin(self, text: str) -> None:
        self.say(text)

    def show(self, done: int, note: str, line: str, *, is_new_note: bool) -> None:
        now = time.monotonic()
        interval_s = Progress.NOTE_EVERY_S if is_new_note else Progress.LINE_EVERY_S
        if now - self._last >= interval_s:
            self._last = now
            self.say(line)

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def end(self) -> None:
        return


class _NotebookLine:
    """One line under the cell that is written over.

    Lines would pile up under the cell, and be stored in the file with it; rich's bar needs
    ipywidgets.
    """

    REFRESH_EVERY_S = 0.5

    def __init__(self) -> None:
        self._handle: Any = None
        self._line = ""
        self._last = 0.0

    def begin(self, text: str) -> None:
        self._line = text
        self._handle = _display_text(text, display_id=True)

    def show(self, done: int, note: str, line: str, *, is_new_note: bool) -> None:
        self._line = line
        now = time.monotonic()
        if now - self._last >= self.REFRESH_EVERY_S:
            self._last = now
            self._refresh()

    def say(self, text: str) -> None:
        _display_text(text)

    def end(self) -> None:
        # The last count may have come too soon after the one before.
        self._refresh()

    def _refresh(self) -> None:
        self._handle.update({"text/plain": self._line}, raw=True)


class _Bar:
    """A bar with the time left, by rich."""

    def __init__(self, label: str, total: int) -> None:
        # rich takes 90 ms to import, which plain lines do not need.
        from rich import progress
        from rich.console import Console

        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
        )
        self._label = label
        self._total = total

    def begin(self, text: str) -> None:
        self._bar.start()
        self._task = self._bar.add_task(self._label, total=self._total, note="")

    def show(self, done: int, note: str, line: str, *, is_new_note: bool) -> None:
        self._bar.update(self._task, completed=done, note=note)

    def say(self, text: str) -> None:
        # Brackets in a text are no markup, and a long path must stay on one line to be copied.
        self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def end(self) -> None:
        self._bar.stop()


def _in_notebook() -> bool:
    """Whether this process is the kernel of a notebook, whose cells show rich output."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


def _display_text(text: str, **options: Any) -> Any:
    from IPython import display

    show: Any = display.display
    return show({"text/plain": text}, raw=True, **options)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
