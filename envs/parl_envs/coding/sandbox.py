"""Untrusted Python, run where it can do no harm.

In: a program, its input, files or a folder. Out: what it printed and how it ended. When a call returns, everything
that the program started is dead and its temporary folder is gone. A machine that cannot confine a program is refused:
there is no way to run one unconfined. docs/sandbox.md says what is allowed and what is left.
"""

from __future__ import annotations

import asyncio
import math
import os
import selectors
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from parl.errors import ConfigError
from parl_envs.coding import confine
from parl_envs.coding.watch import MAX_DISK_MB, MAX_FILES, Watch, entries, usage

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


def run_python(
    code: str,
    *,
    stdin: str = "",
    files: Mapping[str, str] | None = None,
    folder: Path | None = None,
    timeout_s: float = 5.0,
    memory_mb: int = 256,
) -> Result:
    """Run a program. It works in a new folder with `files` (relative path -> text), or in `folder`, which stays.

    Raises ConfigError: this machine has no sandbox, or a path leads out of the folder.
    """
    require()
    return _Call(code, stdin, files or {}, folder, timeout_s, memory_mb).run()


async def run_python_async(
    code: str,
    *,
    stdin: str = "",
    files: Mapping[str, str] | None = None,
    folder: Path | None = None,
    timeout_s: float = 5.0,
    memory_mb: int = 256,
) -> Result:
    """The same in a thread of its own. Cancelling it stops the program first."""
    call = _Call(code, stdin, files or {}, folder, timeout_s, memory_mb)
    future: Future[Result] = Future()

    def work() -> None:
        try:
            require()
            future.set_result(call.run())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, name="sandbox", daemon=True).start()
    waiting = asyncio.wrap_future(future)
    try:
        return await asyncio.shield(waiting)
    except asyncio.CancelledError:
        call.cancelled.set()
        await waiting
        raise


def write_files(folder: Path, files: Mapping[str, str]) -> None:
    """Write `files` (relative path -> text) below a folder. Raises ConfigError for a path that leads out of it."""
    for name, text in files.items():
        path = folder / name
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or "\0" in name or not _inside(path, folder):
            raise ConfigError(f"files: '{name}' leads out of the folder. Give a relative path without '..': pkg/mod.py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode(errors="replace"))


def read_files(folder: Path, max_bytes: int = 1 << 20) -> dict[str, str]:
    """All regular files below a folder (relative path -> text), those of more than `max_bytes` left out.

    Links are not followed, so that a program cannot have its caller read something for it.
    """
    found = {}
    for entry in entries([folder]):
        if entry.is_file(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_size <= max_bytes:
            found[str(Path(entry.path).relative_to(folder))] = Path(entry.path).read_bytes().decode(errors="replace")
    return dict(sorted(found.items()))


def _inside(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


@dataclass(frozen=True)
class _Call:
    code: str
    stdin: str
    files: Mapping[str, str]
    folder: Path | None
    timeout_s: float
    memory_mb: int
    cancelled: threading.Event = field(default_factory=threading.Event)

    def run(self) -> Result:
        private = Path(tempfile.mkdtemp(prefix=PREFIX)).resolve()
        try:
            main, home = private / "main.py", private / "home"
            folder = private / "work" if self.folder is None else self.folder.resolve()
            home.mkdir()
            folder.mkdir(exist_ok=True)
            main.write_bytes(self.code.encode(errors="replace"))
            write_files(folder, self.files)
            had = usage([folder, home])
            cpu_s = math.ceil(self.timeout_s) + 1
            process = confine.start(main, folder, home, cpu_s=cpu_s, memory_mb=self.memory_mb)
            watch = Watch(process.pid or -1, [folder, home], self.memory_mb, *had)
            return _Supervisor(self, process, watch).result()
        finally:
            _remove(private)


class _Supervisor:
    """Feeds a process, takes what it prints, and stops it at a limit."""

    def __init__(self, call: _Call, process: Any, watch: Watch) -> None:
        self.call, self.process, self.watch = call, process, watch
        self.stdin = memoryview(call.stdin.encode(errors="replace"))
        self.output = {process.stdout: bytearray(), process.stderr: bytearray()}

    def result(self) -> Result:
        try:
            limit = self._until_end()
            # With a limit: kills all process groups of the run. Without: the program has ended, and what it left dies.
            ended = self.process.wait(timeout=None if limit is None else 0)
            limit = limit or self._rest() or ("disk" if self.watch.disk_exceeded() else None)
        finally:
            self.process.__exit__(None, None, None)  # kills what is left if something above failed, closes the pipes
        out, err = (bytes(self.output[s][:MAX_OUTPUT]).decode(errors="replace") for s in self.output)
        signal = ended.signal if ended.signal is not None and ended.signal > 0 else 9  # sandlock names all but SIGKILL
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
                    if self.call.cancelled.is_set():
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
            self.stdin = self.stdin[self.process.stdin.write(self.stdin[:65536]) or 0 :] if self.stdin else self.stdin
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


PROBE = """
import os, socket
attempts = {
    "reads a file of the host": lambda: open("/proc/version"),
    "lists the root folder": lambda: os.listdir("/"),
    "makes a socket": lambda: socket.socket(socket.AF_UNIX),
    "signals its parent": lambda: os.kill(os.getppid(), 0),
    "makes a link": lambda: os.symlink("/", "link"),
}
for name, attempt in attempts.items():
    try:
        attempt()
        print(name)
    except OSError:
        pass
open("file", "w").write("its own folder is writable")
print("done")
"""


@cache
def problem() -> str | None:
    """What keeps this machine from confining a program, and what to do; None if it can. Tried once, by a run."""
    needs = "It needs Linux 6.12 or newer on x86-64 or ARM64, with Landlock switched on (/sys/kernel/security/lsm)"
    try:
        import sandlock
    except Exception as error:  # no wheel for this platform, or a C library that is too old
        return f"sandlock cannot be imported ({type(error).__name__}: {error}). {needs}; pip install 'sandlock==0.9.*'"
    abi, least = sandlock.landlock_abi_version(), sandlock.min_landlock_abi()
    if abi < least:
        has = f"has Landlock ABI {abi}" if abi > 0 else "has no Landlock"
        return f"this kernel ({os.uname().release}) {has}, and {least} is the least. {needs}"
    try:
        result = _Call(PROBE, "", {}, None, 20.0, 256).run()
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        return (
            f"a test program could not be started ({reason}). {needs}; a container must let it use seccomp and Landlock"
        )
    if result.stdout != "done\n":
        said = result.stdout.removesuffix("done\n").strip().replace("\n", ", ") or result.stderr.strip()[-300:]
        return f"a test program is not confined as it should be: {said or result}. {needs}"
    return None


def require() -> None:
    """Raises ConfigError where untrusted code cannot be confined."""
    if (missing := problem()) is not None:
        raise ConfigError(
            f"Untrusted code is not run on this machine: {missing}.\n"
            "Use such a machine, or an environment that runs no code: parl envs list. `parl doctor` checks it again."
        )


def describe() -> str:
    """One line for `parl doctor`."""
    import sandlock

    return (
        f"sandlock {sandlock.__version__}, Landlock ABI {sandlock.landlock_abi_version()}; a run gets "
        f"{confine.MAX_PROCESSES} processes, {MAX_DISK_MB} MB in {MAX_FILES} files, {MAX_OUTPUT >> 20} MB of output"
    )
