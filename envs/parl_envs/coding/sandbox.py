"""Untrusted Python, run where it can do no harm.

In: a program, its input, files or a folder. Out: what it printed and how it ended. When a call returns, everything
that the program started is dead and its temporary folder is gone. A machine that cannot confine a program is refused:
there is no way to run one unconfined. docs/reference/sandbox.md says what is allowed and what is left.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from parl.core.errors import ConfigError
from parl_envs.coding import confine, host
from parl_envs.coding.run import MAX_OUTPUT, Call, Result, read_files, run, write_files
from parl_envs.coding.watch import MAX_DISK_MB, MAX_FILES

__all__ = [
    "MAX_OUTPUT",
    "Result",
    "describe",
    "problem",
    "read_files",
    "require",
    "run_python",
    "run_python_async",
    "write_files",
]


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

    Raises:
        ConfigError: this machine has no sandbox, or a path leads out of the folder.
        EnvFailure: `sandbox_lost`, the process that starts the runs was killed, or does not answer.
    """
    require()
    return host.run(_call(code, stdin, files, folder, timeout_s, memory_mb))


async def run_python_async(
    code: str,
    *,
    stdin: str = "",
    files: Mapping[str, str] | None = None,
    folder: Path | None = None,
    timeout_s: float = 5.0,
    memory_mb: int = 256,
) -> Result:
    """The same for coroutines. Cancelling it stops the program first."""
    require()
    return await host.run_async(_call(code, stdin, files, folder, timeout_s, memory_mb))


def _call(
    code: str,
    stdin: str,
    files: Mapping[str, str] | None,
    folder: Path | None,
    timeout_s: float,
    memory_mb: int,
) -> Call:
    where = None if folder is None else folder.absolute()
    return Call(code, stdin, dict(files or {}), where, timeout_s, memory_mb, tempfile.gettempdir())


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
        result = run(_call(PROBE, "", None, None, 20.0, 256), threading.Event())
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        return f"a test program could not be started ({reason}). {needs}; a container must let it use seccomp and Landlock"
    if result.stdout != "done\n":
        said = (
            result.stdout.removesuffix("done\n").strip().replace("\n", ", ")
            or result.stderr.strip()[-300:]
        )
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
