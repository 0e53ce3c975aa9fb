"""Limits on all processes of a run together. The kernel holds those of one process only.

Nothing but /proc and the run's folders is read.
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

# The unit of `st_blocks`, whatever the block size of the file system.
BLOCK_BYTES = 512

_STATUS = re.compile(rb"^(RssAnon|RssShmem|Threads):\s+(\d+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class ProcessWatch:
    """Watch a run's processes and folders.

    Example:
        watch = ProcessWatch(pid, [folder, home], memory_mb=256, bytes_before=0, files_before=0)
        watch.exceeded() == "disk"
    """

    pid: int
    """The run's first process."""
    folders: Sequence[Path]
    memory_mb: int
    bytes_before: int
    """In the folders when the run began."""
    files_before: int

    def exceeded(self) -> str | None:
        """Return the limit that is exceeded: memory, processes (their threads), disk; or None."""
        pids = list(tree(self.pid))
        memory_kb = 0
        num_threads = 0
        for pid in pids:
            process_kb, process_threads = status(pid)
            memory_kb += process_kb
            num_threads += process_threads
        if memory_kb > self.memory_mb * 1024:
            return "memory"
        if num_threads > MAX_THREADS:
            return "processes"
        return "disk" if self.disk_exceeded(pids) else None

    def disk_exceeded(self, pids: Sequence[int] = ()) -> bool:
        """Return whether folders and deleted files that are open have more than a run may add."""
        try:
            num_bytes, num_files = usage(self.folders)
        except OSError:
            # A path is too long to be named: only a run that nests without end makes one.
            return True
        num_bytes += sum(map(deleted_bytes, pids))
        max_bytes = self.bytes_before + (MAX_DISK_MB << 20)
        max_files = self.files_before + MAX_FILES
        return num_bytes > max_bytes or num_files > max_files


def tree(pid: int) -> Iterator[int]:
    """Yield a process and its descendants. The launcher adopts orphans, so none is lost."""
    waiting = [pid]
    known = {pid}
    while waiting:
        pid = waiting.pop()
        yield pid
        try:
            children = _children(pid)
        except OSError:
            # It has just ended.
            continue
        waiting += [child for child in children if child not in known]
        known.update(children)


def _children(pid: int) -> list[int]:
    """The child processes of all threads of a process. Raises OSError: it has ended."""
    children = []
    for thread in os.listdir(f"/proc/{pid}/task"):
        text = Path(f"/proc/{pid}/task/{thread}/children").read_text()
        children += [int(child) for child in text.split()]
    return children


def status(pid: int) -> tuple[int, int]:
    """Return a process's own memory in KB, without shared libraries, and its number of threads."""
    try:
        text = Path(f"/proc/{pid}/status").read_bytes()
    except OSError:
        return 0, 0
    values = {name: int(value) for name, value in _STATUS.findall(text)}
    # Pages of files are left out: all runs share those of the interpreter.
    memory_kb = values.get(b"RssAnon", 0) + values.get(b"RssShmem", 0)
    return memory_kb, values.get(b"Threads", 0)


def deleted_bytes(pid: int) -> int:
    """Return the size of files that a process has open and that no longer have a name."""
    folder = f"/proc/{pid}/fd"
    total = 0
    try:
        for name in os.listdir(folder):
            info = os.stat(f"{folder}/{name}")
            if stat.S_ISREG(info.st_mode) and not info.st_nlink:
                total += BLOCK_BYTES * info.st_blocks
    except OSError:
        # The process has ended, or closed the file: what was counted so far counts.
        pass
    return total


def usage(folders: Sequence[Path]) -> tuple[int, int]:
    """Return (bytes on disk, number of entries) below the folders."""
    num_bytes = 0
    num_files = 0
    for entry in entries(folders):
        try:
            num_bytes += BLOCK_BYTES * entry.stat(follow_symlinks=False).st_blocks
        # The program is running: a file may go between listing and asking.
        except FileNotFoundError:
            continue
        num_files += 1
    return num_bytes, num_files


def entries(folders: Sequence[Path]) -> Iterator[os.DirEntry[str]]:
    """Yield everything below the folders. Links are not followed."""
    # A list, no recursion: a run can nest folders deeper than Python's stack.
    waiting = [str(folder) for folder in folders]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as iterator:
                for entry in iterator:
                    yield entry
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
        except (FileNotFoundError, PermissionError):
            continue
