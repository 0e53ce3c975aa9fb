"""An event loop that stands still tells where, and ends its process."""

from __future__ import annotations

import asyncio
import faulthandler


class Watchdog:
    """While anything runs inside `async with`, a loop that stands still for `hang_timeout_s` dumps all stacks and exits.

    Many may be inside at once: it stays armed until the last has left.
    """

    def __init__(self, hang_timeout_s: float) -> None:
        self._stall_s = hang_timeout_s
        self._inside = 0
        self._beat: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        self._inside += 1
        if self._inside == 1:
            self._arm()
            self._beat = asyncio.ensure_future(self._go_on())

    async def __aexit__(self, *_: object) -> None:
        self._inside -= 1
        if self._inside == 0 and self._beat is not None:
            self._beat.cancel()
            faulthandler.cancel_dump_traceback_later()

    def _arm(self) -> None:
        faulthandler.dump_traceback_later(self._stall_s, exit=True)

    async def _go_on(self) -> None:
        while True:
            await asyncio.sleep(min(1.0, self._stall_s / 4))
            self._arm()
