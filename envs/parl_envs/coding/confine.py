"""What a run may see and do: the policy for sandlock, and what it gives up before its first line.

In: the run's folders. Out: a started process.

Three layers, each enforced by the kernel and inherited by everything that the run starts:

    Landlock (sandlock)     files outside of the run's folders and the interpreter, signals, ptrace
    seccomp (sandlock, us)  dangerous system calls, every socket, links, devices, files without a name
    capabilities, rlimits   root's rights are gone; memory, CPU, files, descriptors; none can be raised again (LAUNCH)
"""

from __future__ import annotations

import errno
import os
import platform
import resource
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
    # A file without a name escapes the quota; a link or fifo would fool whoever reads the folder afterwards.
    *("memfd_create", "memfd_secret", "symlinkat", "linkat", "mknodat"),
    *(("symlink", "link", "mknod", "modify_ldt") if platform.machine() == "x86_64" else ()),
    # What no program under test needs.
    *(
        "chroot",
        "fsopen",
        "fsmount",
        "move_mount",
        "open_tree",
        "syslog",
        "pidfd_getfd",
        "process_madvise",
        "kcmp",
    ),
    *(
        "setpriority",
        "sched_setscheduler",
        "sched_setattr",
        "sched_setparam",
        "ioprio_set",
        "mq_open",
        "fanotify_init",
    ),
    *("inotify_init1", "clock_settime", "settimeofday", "adjtimex", "setxattr", "vhangup"),
    *("landlock_create_ruleset", "migrate_pages", "move_pages", "mbind", "set_mempolicy"),
)
"""System calls that fail with EPERM, on top of sandlock's own list (mount, ptrace, bpf, io_uring, unshare ...)."""

LAUNCH = """
def launch():
    import _ctypes, builtins, sys
    path, folder, program, *limits = sys.argv[1:]
    libc = _ctypes.dlopen(None, 2)
    def call(name, *args):
        if _ctypes.call_function(_ctypes.dlsym(libc, name), args):
            raise OSError(name + " failed: the program was not run")
    def word(number):
        return number.to_bytes(8, "little")
    # Orphans become children of this process, so that whoever watches it sees all of them: PR_SET_CHILD_SUBREAPER.
    call("prctl", 36, 1, 0, 0, 0)
    for limit in limits:
        name, value = map(int, limit.split("="))
        call("setrlimit", name, 2 * word(value))
    # No capabilities: of root, nothing but the number is left. _LINUX_CAPABILITY_VERSION_3, of this process.
    call("capset", word(0x20080522), bytes(24))
    # PR_SET_SECCOMP, SECCOMP_MODE_FILTER, struct sock_fprog with the address of the bytes' first byte.
    steps = bytes.fromhex(program)
    call("prctl", 22, 2, word(len(steps) // 8) + word(id(steps) + bytes.__basicsize__ - 1), 0, 0)
    builtins.exit = builtins.quit = sys.exit  # as the module `site` would, which is not imported
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
"""What the interpreter runs first, inside of the sandbox: it gives up the rest and runs the program. Each module
that it imports costs every run 30 calls that sandlock has to answer; so not `ctypes`, `resource` or `struct`."""

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
NUMBERS = {
    "x86_64": {
        "socket": 41,
        "clone3": 435,
        "prlimit64": 302,
        "sched_setaffinity": 203,
        "fcntl": 72,
    },
    "aarch64": {
        "socket": 198,
        "clone3": 435,
        "prlimit64": 261,
        "sched_setaffinity": 122,
        "fcntl": 25,
    },
}
F_SETLEASE = 1024


def start(main: Path, folder: Path, home: Path, *, cpu_s: int, memory_mb: int) -> Any:
    """A `sandlock.Process` that runs the file `main` in `folder`, with pipes for its three streams.

    The process dies with the thread that called. Raises RuntimeError when the sandbox cannot be set up.
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
    limits = {
        resource.RLIMIT_CORE: 1,  # which also keeps the kernel from starting its core_pattern program; 0 does not
        resource.RLIMIT_CPU: cpu_s,
        resource.RLIMIT_FSIZE: MAX_FILE_MB << 20,
        resource.RLIMIT_NOFILE: MAX_OPEN_FILES,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_AS: memory_mb << 20,
    }
    shown = [f"{name}={value}" for name, value in limits.items()]
    arguments = [str(main), str(folder), second_filter(platform.machine()).hex(), *shown]
    return sandbox.popen(
        [interpreter(), "-I", "-S", "-B", "-X", "utf8", "-c", LAUNCH, *arguments],
        *[sandlock.StdioMode.PIPED] * 3,
    )


def environment(home: Path) -> Mapping[str, str]:
    """All that a run inherits. One malloc arena: each further one reserves 64 MB of address space."""
    return {
        "HOME": str(home),
        "TMPDIR": str(home),
        "LANG": "C.UTF-8",
        "PATH": "",
        "MALLOC_ARENA_MAX": "1",
    }


@cache
def interpreter() -> str:
    """The interpreter itself, not a virtual environment's link to it: a run sees the standard library alone."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


@cache
def interpreter_paths() -> Sequence[str]:
    """What the interpreter reads: itself, its library, and the folders of the system's shared libraries."""
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    base = {"base": sys.base_prefix, "installed_base": sys.base_prefix}
    base |= {"platbase": sys.base_exec_prefix, "installed_platbase": sys.base_exec_prefix}
    library = [sysconfig.get_path(name, vars=base) for name in ("stdlib", "platstdlib")]
    shared = [
        sysconfig.get_config_var("LIBDIR") or "",
        "/lib64",
        "/usr/lib64",
        f"/usr/lib/{multiarch}",
    ]
    paths = [interpreter(), *library, *shared, f"/lib/{multiarch}", "/etc/ld.so.cache"]
    return list(
        dict.fromkeys(p for p in paths if os.path.exists(p) and p not in ("/usr/lib/", "/lib/"))
    )


def second_filter(machine: str) -> bytes:
    """A seccomp program for what sandlock's deny list cannot say. Of several filters the kernel takes the strictest.

    socket                       of any family; sandlock answers some of them itself, before its own list is asked
    clone3                       "no such call": its flags, namespaces among them, lie where no filter can look
    prlimit64, sched_setaffinity of another process: Landlock lets them through to all of the same user
    fcntl(F_SETLEASE)            on a file of the standard library, it would make everybody wait who opens that
    """
    number, load, equal, end = (
        NUMBERS[machine],
        0x20,
        0x15,
        0x06,
    )  # struct sock_filter: code, if true, if false, operand
    fail, first_argument, second_argument = 0x00050000, 16, 24
    steps = [
        (load, 0, 0, 4),
        (equal, 1, 0, AUDIT_ARCH[machine]),
        (end, 0, 0, fail | errno.EPERM),
        (load, 0, 0, 0),
    ]
    for name, error in (("socket", errno.EPERM), ("clone3", errno.ENOSYS)):
        steps += [(equal, 0, 1, number[name]), (end, 0, 0, fail | error)]
    for name in ("prlimit64", "sched_setaffinity"):  # only the caller itself, process 0
        steps += [(equal, 0, 3, number[name]), (load, 0, 0, first_argument), (equal, 1, 0, 0)]
        steps += [(end, 0, 0, fail | errno.EPERM), (load, 0, 0, 0)]
    steps += [
        (equal, 0, 2, number["fcntl"]),
        (load, 0, 0, second_argument),
        (equal, 1, 0, F_SETLEASE),
    ]
    steps += [
        (end, 0, 0, 0x7FFF0000),
        (end, 0, 0, fail | errno.EPERM),
    ]  # allow; the lease is refused
    return b"".join(struct.pack("HBBI", *step) for step in steps)
