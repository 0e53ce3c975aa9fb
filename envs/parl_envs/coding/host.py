"""The process that starts the runs: a small one, because a process that trains is slow to fork.

A fork copies its parent's page tables, and afterwards every page that either of them writes: 16 ms
for a run in a process of 40 MB, up to 200 ms in one of 2 GB. So each process of PARL has one host,
started by its first run. However that process ends, its host sees it, stops the runs, removes their
folders and ends.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import itertools
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from multiprocessing.connection import Connection

from parl.core.errors import ConfigError, EnvFailure
from parl_envs.coding import run as runs
from parl_envs.coding.run import Call, Result

# The host's program. It gets the path of this process: the code may not be installed.
MAIN = (
    "import sys; sys.path[:] = sys.argv[2:]; "
    "from parl_envs.coding.host import main; main(int(sys.argv[1]))"
)
GRACE_S = 60.0
"""Seconds beyond a run's limit: for the start of the host, and for a machine that is busy."""
STOP_S = 10.0
"""Seconds for the runs to be stopped and their folders to be removed."""


def run(call: Call) -> Result:
    """Run a program in the host.

    Raises:
        ConfigError: the path of a file leads out of the folder.
        RuntimeError: the run failed in another way.
        EnvFailure: `sandbox_lost`, the host has ended or does not answer.
    """
    host = _running()
    number, future = host.submit(call)
    try:
        return future.result(call.timeout_s + GRACE_S)
    except TimeoutError:
        raise host.gives_no_answer() from None
    finally:
        if not future.done():
            # This thread was interrupted: the program must not outlive it.
            host.cancel(number)
            with contextlib.suppress(Exception):
                future.result(STOP_S)


async def run_async(call: Call) -> Result:
    """Do the same in a coroutine. Cancelling it stops the program first."""
    host = _running()
    number, future = host.submit(call)
    waiting = asyncio.wrap_future(future)
    try:
        async with asyncio.timeout(call.timeout_s + GRACE_S):
            return await asyncio.shield(waiting)
    except TimeoutError:
        raise host.gives_no_answer() from None
    finally:
        if not waiting.done():
            host.cancel(number)
            await asyncio.wait({waiting}, timeout=STOP_S)


class Host:
    """The other process, as this one sees it."""

    def __init__(self) -> None:
        near_end, far_end = socket.socketpair()
        # Not `multiprocessing`: its processes import the main module again, which would need an
        # `if __name__ == "__main__"` in every script of a user.
        with far_end:
            command = [sys.executable, "-c", MAIN, str(far_end.fileno()), *sys.path]
            self.process = subprocess.Popen(
                command,
                pass_fds=[far_end.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._link = Connection(near_end.detach())
        self._numbers = itertools.count()
        self._waiting: dict[int, Future[Result]] = {}
        self._lock = threading.Lock()
        self.lost = False
        threading.Thread(target=self._read, name="sandbox-host", daemon=True).start()

    def submit(self, call: Call) -> tuple[int, Future[Result]]:
        """Send a call. Returns its number, for `cancel`, and the future of its result."""
        number = next(self._numbers)
        future = Future[Result]()
        # From now on nobody can cancel the future: only the host's answer ends it.
        future.set_running_or_notify_cancel()
        with self._lock:
            if self.lost:
                future.set_exception(self._gone())
            else:
                self._waiting[number] = future
                self._send(number, call)
        return number, future

    def cancel(self, number: int) -> None:
        """Stop a program. Its result comes as usual, with the limit `cancelled`."""
        with self._lock:
            if not self.lost:
                self._send(number, None)

    def close(self) -> None:
        """Stop all runs and wait for the end of the process."""
        # A duplicate of the descriptor: `_read` still needs the link for the last results.
        with (
            self._lock,
            contextlib.suppress(OSError),
            socket.socket(fileno=os.dup(self._link.fileno())) as link,
        ):
            link.shutdown(socket.SHUT_WR)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_S + 1)

    def gives_no_answer(self) -> EnvFailure:
        """Kill the host, and with it what it runs. The next run starts another one."""
        with self._lock:
            self.lost = True
        self.process.kill()
        return EnvFailure("sandbox_lost", "the process that starts programs does not answer")

    def forget(self) -> None:
        """Close the link in a fork of this process: it is the parent's."""
        self._link.close()

    def _send(self, number: int, call: Call | None) -> None:
        # If the host has ended, `_read` sees it too, and tells all who wait.
        with contextlib.suppress(OSError):
            self._link.send((number, call))

    def _read(self) -> None:
        """Hand out results until the host ends; then fail all calls that wait."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                number, outcome = self._link.recv()
                future = self._waiting.pop(number)
                if isinstance(outcome, Exception):
                    future.set_exception(outcome)
                else:
                    future.set_result(outcome)
        self.process.wait()
        with self._lock:
            self.lost = True
            self._link.close()
        for future in self._waiting.values():
            future.set_exception(self._gone())

    def _gone(self) -> EnvFailure:
        return EnvFailure(
            "sandbox_lost",
            f"the process that starts programs has ended ({self.process.returncode})",
        )


_lock = threading.Lock()
_hosts: list[Host] = []
"""At most one that is alive."""


def _running() -> Host:
    with _lock:
        if not _hosts or _hosts[-1].lost:
            _hosts[:] = [Host()]
        return _hosts[0]


def _forget() -> None:
    """Leave the parent's host alone, in a fork of this process: it has to see the parent end."""
    _lock.release()
    for host in _hosts:
        host.forget()
    _hosts.clear()


@atexit.register
def _close() -> None:
    for host in _hosts:
        host.close()


os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_forget)


def main(fd: int) -> None:
    """Serve calls, each in a thread, until the process that asks has ended.

    Args:
        fd: the descriptor of the link.
    """
    link = Connection(fd)
    sending = threading.Lock()
    # A run must not inherit the link: while a copy is open, the end of the other process is not
    # seen.
    os.set_inheritable(fd, False)
    cancelled: dict[int, threading.Event] = {}

    def work(number: int, call: Call) -> None:
        outcome: Result | Exception
        try:
            outcome = runs.run(call, cancelled[number])
        except ConfigError as error:
            outcome = error
        except Exception as error:
            # Of another library: it may not pickle.
            outcome = RuntimeError(f"{type(error).__name__}: {error}")
        del cancelled[number]
        with sending, contextlib.suppress(OSError):
            link.send((number, outcome))

    with contextlib.suppress(EOFError, OSError):
        while True:
            number, call = link.recv()
            if call is not None:
                cancelled[number] = threading.Event()
                thread = threading.Thread(
                    target=work, args=(number, call), name="sandbox", daemon=True
                )
                thread.start()
                continue
            # `get`, because the run may end, and delete its event, at any time.
            event = cancelled.get(number)
            if event is not None:
                event.set()
    for remaining in list(cancelled.values()):
        remaining.set()
    deadline = time.monotonic() + STOP_S
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join(max(0.0, deadline - time.monotonic()))
