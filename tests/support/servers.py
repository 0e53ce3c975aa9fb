"""A server in a thread, for tests of what asks one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette

from parl.core.net import listen, url


@contextmanager
def serving(app: Starlette) -> Iterator[str]:
    """Serve an app; yields its address."""
    listening = listen("127.0.0.1", None)
    server = uvicorn.Server(
        uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    yield url("127.0.0.1", listening)
    server.should_exit = True
    thread.join(10)
