"""What the tests of the sandbox look at from outside: processes, and an ordinary run of the same program."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import psutil

from parl_envs.coding import confine


def processes(mark: str) -> list[int]:
    """Living processes whose environment or arguments contain `mark`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            told = (folder / "environ").read_bytes() + (folder / "cmdline").read_bytes()
            dead = (folder / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"
        except OSError:
            continue
        if mark.encode() in told and not dead:
            found.append(int(folder.name))
    return found


def host_pid() -> int:
    """The process that starts the runs of this one."""
    (pid,) = [
        child.pid
        for child in psutil.Process().children()
        if "parl_envs.coding.host" in " ".join(child.cmdline())
    ]
    return pid


def used(pid: int) -> tuple[int, int]:
    """Descriptors and threads of a process."""
    return len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task"))


def gone(pid: int, within_s: float = 2.0) -> bool:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state in "ZX":
            return True
        time.sleep(0.01)
    return False


def run_outside(code: str, folder: Path, **kwargs: object) -> str:
    command = [confine.interpreter(), "-I", "-S", "-c", code]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=30, check=False, **kwargs
    )  # type: ignore[call-overload]
    return str(done.stdout)
