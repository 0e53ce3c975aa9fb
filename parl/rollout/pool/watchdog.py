"""A watchdog of an event loop: where it hangs, its process tells where and ends."""

from __future__ import annotations

import asyncio
import faulthandler


class Watchdog:
    """While anything runs inside `async with`, a loop that hangs dumps all stacks and exits.

    Many tasks may be inside at once: it stays armed until the last has left.

    Args:
        hang_timeout_s: how long the loop may hang.
    """

    def __init__(self, hang_timeout_s: float) -> None:
        self._hang_timeout_s = hang_timeout_s
        self._num_inside = 0
        self._heartbeat: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        self._num_inside += 1
        if self._num_inside == 1:
            self._arm()
            self._heartbeat = asyncio.ensure_future(self._keep_alive())

    async def __aexit__(self, *_: object) -> None:
        self._num_inside -= 1
        if self._num_inside == 0 and self._heartbeat is not None:
            self._heartbeat.cancel()
            faulthandler.cancel_dump_traceback_later()

    def _arm(self) -> None:
        # A C thread of faulthandler: it works even where Python code holds the GIL and hangs.
        faulthandler.dump_traceback_later(self._hang_timeout_s, exit=True)

    async def _keep_alive(self) -> None:
        """Put the deadline off, again and again. A loop that hangs does not come here."""
        while True:
            await asyncio.sleep(min(1.0, self._hang_timeout_s / 4))
            self._arm()
