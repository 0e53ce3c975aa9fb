"""What a run may see and do: the policy for sandlock, and what this process gives up before it starts the run.

In: the run's folders. Out: a started process that is confined before its first instruction.

Three layers, each enforced by the kernel and inherited by everything that the run starts:

    Landlock (sandlock)     files outside of the run's folders and the interpreter, signals, ptrace
    seccomp (sandlock, us)  dangerous system calls, every socket, links, devices, files without a name
    capabilities, rlimits   root's rights are gone; memory, CPU, files, descriptors; none can be raised again
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

MAX_PROCESSES = 16
MAX_OPEN_FILES = 128
MAX_FILE_MB = 16
"""The largest file that a run can write."""

DENIED = (
    # A file without a name escapes the quota; a link or a fifo would be followed by whoever reads the folder afterwards.
    *("memfd_create", "memfd_secret", "symlink", "symlinkat", "link", "linkat", "mknod", "mknodat"),
    # What no program under test needs.
    *("chroot", "fsopen", "fsmount", "move_mount", "open_tree", "syslog", "pidfd_getfd", "process_madvise", "kcmp"),
    *("setpriority", "sched_setscheduler", "sched_setattr", "sched_setparam", "ioprio_set", "mq_open", "fanotify_init"),
    *("inotify_init1", "modify_ldt", "clock_settime", "settimeofday", "adjtimex", "setxattr", "vhangup"),
    *("landlock_create_ruleset", "seccomp", "migrate_pages", "move_pages", "mbind", "set_mempolicy"),
)
"""System calls that fail with EPERM, on top of sandlock's own list (mount, ptrace, bpf, io_uring, unshare, keyctl ...)."""

LAUNCH = """
def launch():
    import _ctypes, _sitebuiltins, builtins, resource, sys
    path, folder, cpu_s, memory, size, num_files = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
    # Orphans become children of this process, so that whoever watches it sees all of them: PR_SET_CHILD_SUBREAPER.
    _ctypes.call_function(_ctypes.dlsym(_ctypes.dlopen(None, 2), "prctl"), (36, 1, 0, 0, 0))
    # A core limit of 1 also keeps the kernel from starting its core_pattern program; 0 does not.
    limits = {"CORE": 1, "CPU": cpu_s, "FSIZE": size, "NOFILE": num_files, "MSGQUEUE": 0, "MEMLOCK": 0, "AS": memory}
    for name, value in limits.items():
        resource.setrlimit(getattr(resource, "RLIMIT_" + name), (value, value))
    for name in ("exit", "quit"):  # of the module `site`, which is not imported
        setattr(builtins, name, _sitebuiltins.Quitter(name, "Ctrl-D"))
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # a run that is stopped has said what it said
    sys.argv[:] = ["main.py"]
    sys.path.insert(0, folder)
    with open(path, "rb") as file:
        return compile(file.read(), "main.py", "exec", dont_inherit=True)
code = launch()
del launch
exec(globals().pop("code"))
"""
"""What the interpreter runs first, inside of the sandbox."""

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
SYS_SOCKET = {"x86_64": 41, "aarch64": 198}


def start(main: Path, folder: Path, home: Path, *, cpu_s: int, memory_mb: int) -> Any:
    """A `sandlock.Process` that runs the file `main` in `folder`, with pipes for its three streams.

    Call it in a thread of its own: that thread loses its capabilities and can make no socket any more. The process
    dies with the thread. Raises RuntimeError when the sandbox cannot be set up.
    """
    import sandlock

    sandbox = sandlock.Sandbox(
        fs_readable=[*interpreter_paths(), str(main), "/dev/urandom", "/dev/zero"],
        fs_writable=[str(folder), str(home), "/dev/null"],
        cwd=str(folder),
        clean_env=True,
        env=environment(home),
        max_processes=MAX_PROCESSES,
        extra_deny_syscalls=DENIED,
    )
    limits = [cpu_s, memory_mb << 20, MAX_FILE_MB << 20, MAX_OPEN_FILES]
    give_up_rights()
    return sandbox.popen(
        [interpreter(), "-I", "-S", "-B", "-X", "utf8", "-c", LAUNCH, str(main), str(folder), *map(str, limits)],
        *[sandlock.StdioMode.PIPED] * 3,
    )


def environment(home: Path) -> Mapping[str, str]:
    """All that a run inherits. One malloc arena: each further one reserves 64 MB of address space."""
    return {"HOME": str(home), "TMPDIR": str(home), "LANG": "C.UTF-8", "PATH": "", "MALLOC_ARENA_MAX": "1"}


@cache
def interpreter() -> str:
    """The interpreter itself, not a virtual environment's link to it: a run sees the standard library and no package."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


@cache
def interpreter_paths() -> Sequence[str]:
    """What the interpreter reads: itself, its library, and the folders of the system's shared libraries."""
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    library = [sysconfig.get_path(name, vars={"base": sys.base_prefix}) for name in ("stdlib", "platstdlib")]
    shared = [sysconfig.get_config_var("LIBDIR") or "", "/lib64", "/usr/lib64", f"/usr/lib/{multiarch}"]
    paths = [interpreter(), *library, *shared, f"/lib/{multiarch}", "/etc/ld.so.cache"]
    return list(dict.fromkeys(p for p in paths if os.path.exists(p) and p not in ("/usr/lib/", "/lib/")))


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def give_up_rights() -> None:
    """This thread, and what it starts, has no capabilities and can make no socket of any family.

    sandlock answers `socket` itself for some families, and its answer would come before its own deny list; of several
    filters the kernel takes the strictest, so this one cannot be answered.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    no_rights = (ctypes.c_uint32 * 6)()
    _check(libc.capset(ctypes.byref(_Header(0x20080522, 0)), ctypes.byref(no_rights)))
    machine = platform.machine()
    steps = [  # struct sock_filter: code, jump if true, jump if false, operand
        (0x20, 0, 0, 4),  # load the architecture
        (0x15, 0, 3, AUDIT_ARCH[machine]),  # sandlock refuses other ones
        (0x20, 0, 0, 0),  # load the number of the system call
        (0x15, 0, 1, SYS_SOCKET[machine]),
        (0x06, 0, 0, 0x00050000 | 1),  # fail with EPERM
        (0x06, 0, 0, 0x7FFF0000),  # allow
    ]
    code = b"".join(struct.pack("HBBI", *step) for step in steps)
    _check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _check(libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(_Program(len(steps), code)), 0, 0))


def _check(status: int) -> None:
    if status:
        raise RuntimeError(f"rights cannot be given up: {os.strerror(ctypes.get_errno())}")
