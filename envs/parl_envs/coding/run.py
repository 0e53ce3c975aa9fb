"""One run of a program: its folders, what it is fed, what it prints, and its end at a limit.

In: a `Call`. Out: a `Result`. When `run` returns, everything that the program started is dead and its temporary folder
is gone.
"""

from __future__ import annotations

import math
import os
import selectors
import shutil
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
TICK_S = 0.05


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
    """What is asked for.

    Example: Call("print(1 + 1)", stdin="", files={}, folder=None, timeout_s=5.0, memory_mb=256, temp="/tmp")
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
    """Run a program to its end, to a limit, or until `cancelled` is set. Raises ConfigError for a file's path."""
    private = Path(tempfile.mkdtemp(prefix=PREFIX, dir=call.temp)).resolve()
    try:
        main, home = private / "main.py", private / "home"
        folder = private / "work" if call.folder is None else call.folder.resolve()
        home.mkdir()
        folder.mkdir(exist_ok=True)
        main.write_bytes(call.code.encode(errors="replace"))
        write_files(folder, call.files)
        had = usage([folder, home])
        cpu_s = math.ceil(call.timeout_s) + 1
        process = confine.start(main, folder, home, cpu_s=cpu_s, memory_mb=call.memory_mb)
        watch = ProcessWatch(process.pid or -1, [folder, home], call.memory_mb, *had)
        return _Supervisor(call, cancelled, process, watch).result()
    finally:
        _remove(private)


def write_files(folder: Path, files: Mapping[str, str]) -> None:
    """Write `files` (relative path -> text) below a folder. Raises ConfigError for a path that leads out of it."""
    for name, text in files.items():
        path = folder / name
        parts = PurePosixPath(name).parts
        if (
            not parts
            or name.startswith("/")
            or ".." in parts
            or "\0" in name
            or not _inside(path, folder)
        ):
            raise ConfigError(
                f"files: '{name}' leads out of the folder. Give a relative path without '..': pkg/mod.py"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode(errors="replace"))


def read_files(folder: Path, max_bytes: int = 1 << 20) -> dict[str, str]:
    """All regular files below a folder (relative path -> text), those of more than `max_bytes` left out.

    Links are not followed, so that a program cannot have its caller read something for it.
    """
    found = {}
    for entry in entries([folder]):
        if (
            entry.is_file(follow_symlinks=False)
            and entry.stat(follow_symlinks=False).st_size <= max_bytes
        ):
            found[str(Path(entry.path).relative_to(folder))] = (
                Path(entry.path).read_bytes().decode(errors="replace")
            )
    return dict(sorted(found.items()))


def _inside(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


class _Supervisor:
    """Feeds a process, takes what it prints, and stops it at a limit."""

    def __init__(
        self, call: Call, cancelled: threading.Event, process: Any, watch: ProcessWatch
    ) -> None:
        self.call, self.cancelled, self.process, self.watch = call, cancelled, process, watch
        self.stdin = memoryview(call.stdin.encode(errors="replace"))
        self.output = {process.stdout: bytearray(), process.stderr: bytearray()}

    def result(self) -> Result:
        try:
            limit = self._until_end()
            # With a limit: kills all process groups of the run. Without: the program has ended, and what it left dies.
            ended = self.process.wait(timeout=None if limit is None else 0)
            limit = limit or self._rest() or ("disk" if self.watch.disk_exceeded() else None)
        finally:
            self.process.__exit__(
                None, None, None
            )  # kills what is left if something above failed, closes the pipes
        out, err = (
            bytes(self.output[s][:MAX_OUTPUT]).decode(errors="replace") for s in self.output
        )
        signal = (
            ended.signal if ended.signal is not None and ended.signal > 0 else 9
        )  # sandlock names all but SIGKILL
        return Result(out, err, ended.exit_code if ended.exit_code >= 0 else -signal, limit)

    def _until_end(self) -> Limit | None:
        """Until the program ends or a limit is reached, whichever is first."""
        deadline, next_watch = time.monotonic() + self.call.timeout_s, time.monotonic() + TICK_S
        with selectors.DefaultSelector() as selector:
            pidfd = _pidfd(self.process)
            try:
                if pidfd is None:
                    return None
                selector.register(pidfd, selectors.EVENT_READ)
                for stream in self.output:
                    os.set_blocking(stream.fileno(), False)
                    selector.register(stream, selectors.EVENT_READ)
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
                        next_watch = now + max(TICK_S, 10 * (time.monotonic() - now))
                    for key, _ in selector.select(max(0.0, min(deadline, next_watch) - now)):
                        if key.fd == pidfd:
                            return None
                        if key.fileobj is self.process.stdin:
                            self._feed(selector)
                        elif not self._take(key.fileobj):
                            selector.unregister(key.fileobj)
                        elif any(len(taken) > MAX_OUTPUT for taken in self.output.values()):
                            return "output"
            finally:
                if pidfd is not None:
                    os.close(pidfd)

    def _feed(self, selector: selectors.BaseSelector) -> None:
        try:
            self.stdin = (
                self.stdin[self.process.stdin.write(self.stdin[:65536]) or 0 :]
                if self.stdin
                else self.stdin
            )
        except BrokenPipeError:
            self.stdin = self.stdin[:0]
        if not self.stdin:
            selector.unregister(self.process.stdin)
            self.process.stdin.close()

    def _take(self, stream: Any) -> bool:
        """Whether there was anything (False: its end)."""
        piece: bytes | None = stream.read(65536)  # None: nothing now
        self.output[stream] += piece or b""
        return piece != b""

    def _rest(self) -> Limit | None:
        """What is still in the pipes of a program that has ended."""
        for stream, taken in self.output.items():
            os.set_blocking(stream.fileno(), False)
            while len(taken) <= MAX_OUTPUT and (piece := stream.read(65536)):
                taken += piece
            if len(taken) > MAX_OUTPUT:
                return "output"
        return None


def _pidfd(process: Any) -> int | None:
    """Becomes readable when the process ends. None: it has."""
    try:
        return os.pidfd_open(process.pid)
    except (ProcessLookupError, TypeError):
        return None


def _remove(folder: Path) -> None:
    """Also one whose permissions were taken away, or nested deeper than Python can follow."""
    try:
        shutil.rmtree(folder)
    except (OSError, RecursionError):
        subprocess.run(["chmod", "-R", "u+rwx", str(folder)], capture_output=True, check=False)
        subprocess.run(["rm", "-rf", str(folder)], capture_output=True, check=True)
