"""The watchdog ends a process whose event loop stands still, and no other."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import asyncio, time
from parl.rollout.pool.watchdog import Watchdog

async def short(dog):
    async with dog:
        await asyncio.sleep(0.05)

async def main():
    dog = Watchdog(0.4)
    {before}
    async with dog:
        await asyncio.gather(short(dog), short(dog))
        {inside}
    {after}

asyncio.run(main())
print("alive")
"""
STALL, WAIT = "time.sleep(2)", "await asyncio.sleep(0.9)"


@pytest.mark.parametrize(
    "where, survives",
    [
        ({"inside": STALL}, False),  # right after others have left: it must still be armed
        ({"inside": WAIT}, True),
        pytest.param({"before": STALL}, True, marks=pytest.mark.slow),
        pytest.param({"after": STALL}, True, marks=pytest.mark.slow),
    ],
)
def test_it_stays_armed_until_the_last_has_left(where: dict[str, str], survives: bool) -> None:
    code = CODE.format(**{"before": "", "inside": "", "after": ""} | where)
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.stdout.strip() == "alive") is survives
    assert ("Timeout" in ended.stderr) is not survives
