"""What a run uses while it runs, beyond the limits that the kernel holds per process: sums over all of its processes.

In: the process id of a run and its folders. Out: the name of a limit that is exceeded. Only /proc is read.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

MAX_DISK_MB = 64
MAX_FILES = 5_000
MAX_THREADS = 128

_STATUS = re.compile(rb"^(RssAnon|RssShmem|Threads):\s+(\d+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class ProcessWatch:
    """Example: ProcessWatch(pid, [folder, home], memory_mb=256, had_bytes=0, had_files=0).exceeded() == "disk"."""

    pid: int
    folders: Sequence[Path]
    memory_mb: int
    had_bytes: int
    """In the folders when the run began."""
    had_files: int

    def exceeded(self) -> str | None:
        """memory, processes (their threads), disk, or None."""
        pids = list(tree(self.pid))
        used = [status(pid) for pid in pids]
        if sum(kb for kb, _ in used) > self.memory_mb * 1024:
            return "memory"
        if sum(threads for _, threads in used) > MAX_THREADS:
            return "processes"
        return "disk" if self.disk_exceeded(pids) else None

    def disk_exceeded(self, pids: Sequence[int] = ()) -> bool:
        """Whether the folders, and deleted files that are still open, hold more than a run may add."""
        try:
            num_bytes, num_files = usage(self.folders)
        except OSError:  # a path too long to be named
            return True
        num_bytes += sum(map(deleted_bytes, pids))
        return (
            num_bytes > self.had_bytes + (MAX_DISK_MB << 20)
            or num_files > self.had_files + MAX_FILES
        )


def tree(pid: int) -> Iterator[int]:
    """A process and all that descend from it. The launcher adopts orphans, so none gets lost."""
    waiting, seen = [pid], {pid}
    while waiting:
        pid = waiting.pop()
        yield pid
        try:
            tasks = os.listdir(f"/proc/{pid}/task")
            children = [
                int(c)
                for t in tasks
                for c in Path(f"/proc/{pid}/task/{t}/children").read_text().split()
            ]
        except OSError:  # it has just ended
            continue
        waiting += [c for c in children if c not in seen]
        seen.update(children)


def status(pid: int) -> tuple[int, int]:
    """Its own memory in KB (not that of shared libraries), and its threads."""
    try:
        found = {
            name: int(value)
            for name, value in _STATUS.findall(Path(f"/proc/{pid}/status").read_bytes())
        }
    except OSError:
        return 0, 0
    return found.get(b"RssAnon", 0) + found.get(b"RssShmem", 0), found.get(b"Threads", 0)


def deleted_bytes(pid: int) -> int:
    """Of files that a process holds open and that have no name any more."""
    folder, total = f"/proc/{pid}/fd", 0
    try:
        for name in os.listdir(folder):
            info = os.stat(f"{folder}/{name}")
            total += 512 * info.st_blocks if stat.S_ISREG(info.st_mode) and not info.st_nlink else 0
    except OSError:
        pass
    return total


def usage(folders: Sequence[Path]) -> tuple[int, int]:
    """(bytes on disk, entries) below the folders."""
    num_bytes = num_files = 0
    for entry in entries(folders):
        try:
            num_bytes += 512 * entry.stat(follow_symlinks=False).st_blocks
        except FileNotFoundError:
            continue
        num_files += 1
    return num_bytes, num_files


def entries(folders: Sequence[Path]) -> Iterator[os.DirEntry[str]]:
    """Everything below the folders, links not followed. Without recursion: a run may nest as deep as it likes."""
    waiting = [str(folder) for folder in folders]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as found:
                for entry in found:
                    yield entry
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
        except (FileNotFoundError, PermissionError):
            continue
