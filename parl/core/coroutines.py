"""Running coroutines from plain functions, in a script as in a notebook."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

Result = TypeVar("Result")


def run_coroutine(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine to its end and return its result.

    A notebook's cells run inside the event loop of the kernel, where `asyncio.run` refuses to work.
    There the coroutine gets a thread with a loop, and this one waits: signals still reach the main
    thread.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    context = contextvars.copy_context()
    with ThreadPoolExecutor(1, thread_name_prefix="parl-loop") as threads:
        return threads.submit(context.run, asyncio.run, coroutine).result()
