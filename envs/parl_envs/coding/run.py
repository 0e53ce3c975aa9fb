"""One run of a program: its folders, its input and output, and its end at a limit.

When `run` returns, everything that the program started is dead and its temporary folder is gone.
"""

from __future__ import annotations

import math
import os
import selectors
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from parl.core.errors import ConfigError
from parl_envs.coding import confine
from parl_envs.coding.watch import ProcessWatch, entries, usage

Limit = Literal["time", "memory", "output", "disk", "processes", "cancelled"]

MAX_OUTPUT = 1 << 20
"""Bytes of each of stdout and stderr; a run that writes more is stopped."""
PREFIX = "parl-sandbox-"
"""Of the temporary folders."""
TICK_S = 0.05
"""Seconds between two looks at the sums over all processes."""
PIPE_BYTES = 65536
"""What is written to or read from a pipe at once: the size of its buffer on Linux."""


@dataclass(frozen=True, slots=True)
class Result:
    """How a program ended.

    Example: run_python("print(1 + 1)") == Result(stdout="2\\n", stderr="", exit_code=0, limit=None)
    """

    stdout: str
    stderr: str
    exit_code: int
    """Negative: the signal that ended it. -9 for one that was stopped."""
    limit: Limit | None = None
    """Why it was stopped; None if it ended by itself."""

    @property
    def timed_out(self) -> bool:
        return self.limit == "time"


@dataclass(frozen=True, slots=True)
class Call:
    """One program and its limits, as it is sent to the host.

    Example:
        Call("print(1 + 1)", stdin="", files={}, folder=None, timeout_s=5.0, memory_mb=256,
        temp="/tmp")
    """

    code: str
    stdin: str
    files: Mapping[str, str]
    folder: Path | None
    """Absolute; None: a new one."""
    timeout_s: float
    memory_mb: int
    temp: str
    """Where the temporary folder is made."""


def run(call: Call, cancelled: threading.Event) -> Result:
    """Run a program to its end, to a limit, or until `cancelled` is set.

    Raises:
        ConfigError: the path of a file leads out of the folder.
    """
    # One folder for all that is temporary: removing it leaves nothing.
    private = Path(tempfile.mkdtemp(prefix=PREFIX, dir=call.temp)).resolve()
    try:
        main = private / "main.py"
        home = private / "home"
        folder = private / "work" if call.folder is None else call.folder.resolve()
        home.mkdir()
        folder.mkdir(exist_ok=True)
        # Lone surrogates in a model's text cannot be encoded; they become `?`.
        main.write_bytes(call.code.encode(errors="replace"))
        write_files(folder, call.files)
        bytes_before, files_before = usage([folder, home])
        # One second more than the wall clock: a program that computes ends at `timeout_s`.
        cpu_s = math.ceil(call.timeout_s) + 1
        process = confine.start(main, folder, home, cpu_s=cpu_s, memory_mb=call.memory_mb)
        # Without a process id (the program has ended) there is nothing in /proc to look at.
        pid = process.pid or -1
        watch = ProcessWatch(pid, [folder, home], call.memory_mb, bytes_before, files_before)
        return _Supervisor(call, cancelled, process, watch).result()
    finally:
        _remove(private)


def write_files(folder: Path, files: Mapping[str, str]) -> None:
    """Write `files` (relative path -> text) below a folder.

    Raises:
        ConfigError: a path leads out of the folder.
    """
    for name, text in files.items():
        path = folder / name
        parts = PurePosixPath(name).parts
        is_relative = bool(parts) and not name.startswith("/") and ".." not in parts
        # The last test follows links that are in the folder already.
        if not is_relative or "\0" in name or not _inside(path, folder):
            raise ConfigError(
                f"files: '{name}' leads out of the folder. Give a relative path without '..': "
                "pkg/mod.py"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode(errors="replace"))


def read_files(folder: Path, max_bytes: int = 1 << 20) -> dict[str, str]:
    """Return all regular files below a folder (relative path -> text), up to a size.

    Links are not followed, so that a program cannot have its caller read something for it.
    """
    texts = {}
    for entry in entries([folder]):
        if not entry.is_file(follow_symlinks=False):
            continue
        if entry.stat(follow_symlinks=False).st_size > max_bytes:
            continue
        path = Path(entry.path)
        texts[str(path.relative_to(folder))] = path.read_bytes().decode(errors="replace")
    return dict(sorted(texts.items()))


def _inside(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


class _Supervisor:
    """Feed a process, collect what it prints, and stop it at a limit."""

    def __init__(
        self, call: Call, cancelled: threading.Event, process: Any, watch: ProcessWatch
    ) -> None:
        self.call = call
        self.cancelled = cancelled
        self.process = process
        self.watch = watch
        self.stdin = memoryview(call.stdin.encode(errors="replace"))
        self.output = {process.stdout: bytearray(), process.stderr: bytearray()}

    def result(self) -> Result:
        try:
            limit = self._wait_for_end()
            # With a limit, this kills all process groups of the run. Without one the program has
            # ended, and the processes that it left die.
            status = self.process.wait(timeout=None if limit is None else 0)
            limit = limit or self._read_rest()
            if limit is None and self.watch.disk_exceeded():
                limit = "disk"
        finally:
            # Kills what remains if something above failed, and closes the pipes.
            self.process.__exit__(None, None, None)
        stdout, stderr = map(_text_of, self.output.values())
        return Result(stdout, stderr, _exit_code(status), limit)

    def _wait_for_end(self) -> Limit | None:
        """Wait until the program ends (None) or a limit is reached."""
        deadline = time.monotonic() + self.call.timeout_s
        next_watch = time.monotonic() + TICK_S
        with selectors.DefaultSelector() as selector:
            pidfd = _pidfd(self.process)
            try:
                # It has ended before it could be watched.
                if pidfd is None:
                    return None
                selector.register(pidfd, selectors.EVENT_READ)
                for stream in self.output:
                    os.set_blocking(stream.fileno(), False)
                    selector.register(stream, selectors.EVENT_READ)
                # A program that does not read its input must not block this thread.
                os.set_blocking(self.process.stdin.fileno(), False)
                selector.register(self.process.stdin, selectors.EVENT_WRITE)
                while True:
                    now = time.monotonic()
                    if now >= deadline:
                        return "time"
                    if self.cancelled.is_set():
                        return "cancelled"
                    if now >= next_watch:
                        if (limit := self.watch.exceeded()) is not None:
                            return limit  # type: ignore[return-value]
                        # At most a tenth of the time goes into looking: a big folder is slow.
                        next_watch = now + max(TICK_S, 10 * (time.monotonic() - now))
                    for key, _ in selector.select(max(0.0, min(deadline, next_watch) - now)):
                        if key.fd == pidfd:
                            return None
                        if key.fileobj is self.process.stdin:
                            self._feed(selector)
                        elif not self._read(key.fileobj):
                            selector.unregister(key.fileobj)
                        elif max(map(len, self.output.values())) > MAX_OUTPUT:
                            return "output"
            finally:
                if pidfd is not None:
                    os.close(pidfd)

    def _feed(self, selector: selectors.BaseSelector) -> None:
        """Write the next piece of the input; close the pipe after the last one."""
        try:
            if self.stdin:
                num_written = self.process.stdin.write(self.stdin[:PIPE_BYTES]) or 0
                self.stdin = self.stdin[num_written:]
        except BrokenPipeError:
            # The program has closed its input: it does not want the rest.
            self.stdin = self.stdin[:0]
        if not self.stdin:
            selector.unregister(self.process.stdin)
            self.process.stdin.close()

    def _read(self, stream: Any) -> bool:
        """Read the next piece of a stream. Returns False at its end."""
        # None: there is nothing to read now. b"": the end.
        piece: bytes | None = stream.read(PIPE_BYTES)
        self.output[stream] += piece or b""
        return piece != b""

    def _read_rest(self) -> Limit | None:
        """Read what is still in the pipes of a program that has ended."""
        for stream, output in self.output.items():
            os.set_blocking(stream.fileno(), False)
            while len(output) <= MAX_OUTPUT:
                piece = stream.read(PIPE_BYTES)
                if not piece:
                    break
                output += piece
            if len(output) > MAX_OUTPUT:
                return "output"
        return None


def _text_of(output: bytearray) -> str:
    return bytes(output[:MAX_OUTPUT]).decode(errors="replace")


def _exit_code(status: Any) -> int:
    """The exit code, or minus the signal that ended the process."""
    if status.exit_code >= 0:
        return int(status.exit_code)
    # sandlock names every signal but SIGKILL.
    if status.signal is not None and status.signal > 0:
        return -int(status.signal)
    return -signal.SIGKILL


def _pidfd(process: Any) -> int | None:
    """A descriptor that becomes readable when the process ends. None: it has ended."""
    try:
        return os.pidfd_open(process.pid)
    except (ProcessLookupError, TypeError):
        return None


def _remove(folder: Path) -> None:
    """Remove a folder, also one without permissions, or nested deeper than Python can follow."""
    try:
        # Quick, and right for all but hostile folders.
        shutil.rmtree(folder)
    except (OSError, RecursionError):
        subprocess.run(["chmod", "-R", "u+rwx", str(folder)], capture_output=True, check=False)
        subprocess.run(["rm", "-rf", str(folder)], capture_output=True, check=True)
