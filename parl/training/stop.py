"""Ctrl-C during training: the first ends the run after the current step, the second at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Self


class StopRequest:
    """Use as a context manager around the loop; `requested` is true after the first Ctrl-C.

    Signals reach Python in the main thread alone: in another one nothing is installed, and nothing
    is requested.
    """

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> Self:
        self._in_main_thread = threading.current_thread() is threading.main_thread()
        if self._in_main_thread:
            self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._in_main_thread:
            signal.signal(signal.SIGINT, self._previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # The second Ctrl-C does what the user expects of any program.
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        print("\nStopping after this step; press Ctrl-C again to stop at once.", flush=True)
