"""Run untrusted Python where it can do no harm.

When a call returns, everything that the program started is dead and its temporary folder is gone. A
machine that cannot confine a program is refused: there is no way to run one unconfined.
docs/reference/sandbox.md tells what a program can do and which risks remain.
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
    """Run a program, and return what it printed and how it ended.

    Args:
        code: the program.
        stdin: its input.
        files: relative path -> text, written into its folder first.
        folder: where it works; it stays. None = a new folder, which is removed.
        timeout_s: seconds until it is stopped.
        memory_mb: memory of all its processes together.
    Raises:
        ConfigError: this machine has no sandbox, or a path leads out of the folder.
        EnvFailure: `sandbox_lost`, the process that starts the runs was killed, or does not answer.
    """
    # Not optional: an unconfined run would look the same to the caller.
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
    """Do the same in a coroutine. Cancelling it stops the program first."""
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
    # Absolute, because the host that runs the call may be in another working directory.
    absolute_folder = None if folder is None else folder.absolute()
    temp = tempfile.gettempdir()
    return Call(code, stdin, dict(files or {}), absolute_folder, timeout_s, memory_mb, temp)


# Prints what it can do and should not be able to do.
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
    """Return what keeps this machine from confining a program, and what to do; None if it can.

    It is tried once for each process, by running a program that tries to get out.
    """
    needs = (
        "It needs Linux 6.12 or newer on x86-64 or ARM64, with Landlock switched on "
        "(/sys/kernel/security/lsm)"
    )
    try:
        import sandlock
    except Exception as error:
        # There is no wheel for this platform, or the C library is too old.
        return (
            f"sandlock cannot be imported ({type(error).__name__}: {error}). {needs}; "
            "pip install 'sandlock==0.9.*'"
        )
    abi = sandlock.landlock_abi_version()
    min_abi = sandlock.min_landlock_abi()
    # An older Landlock lacks rights that the policy relies on.
    if abi < min_abi:
        has = f"has Landlock ABI {abi}" if abi > 0 else "has no Landlock"
        return f"this kernel ({os.uname().release}) {has}, and {min_abi} is the least. {needs}"
    try:
        result = run(_call(PROBE, "", None, None, 20.0, 256), threading.Event())
    except Exception as error:
        return (
            f"a test program could not be started ({type(error).__name__}: {error}). {needs}; "
            "a container must let it use seccomp and Landlock"
        )
    # Anything before `done` is an attempt that succeeded.
    if result.stdout != "done\n":
        attempts = result.stdout.removesuffix("done\n").strip().replace("\n", ", ")
        details = attempts or result.stderr.strip()[-300:] or result
        return f"a test program is not confined as it should be: {details}. {needs}"
    return None


def require() -> None:
    """Raise ConfigError on a machine that cannot confine untrusted code."""
    missing = problem()
    if missing is not None:
        raise ConfigError(
            f"Untrusted code is not run on this machine: {missing}.\n"
            "Use such a machine, or an environment that runs no code: parl envs list. "
            "`parl doctor` checks it again."
        )


def describe() -> str:
    """Return one line for `parl doctor`."""
    import sandlock

    return (
        f"sandlock {sandlock.__version__}, Landlock ABI {sandlock.landlock_abi_version()}; "
        f"a run gets {confine.MAX_PROCESSES} processes, {MAX_DISK_MB} MB in {MAX_FILES} files, "
        f"{MAX_OUTPUT >> 20} MB of output"
    )
