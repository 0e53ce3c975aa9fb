"""What a run may see and do.

The policy for sandlock, and what a run gives up before its first line.

Three layers, each enforced by the kernel and inherited by everything that the run starts:

    Landlock (sandlock)     files outside of the run's folders and the interpreter, signals, ptrace
    seccomp (sandlock, us)  dangerous system calls, every socket, links, devices, files without a
    name capabilities, rlimits   root's rights are gone; memory, CPU, files, descriptors; none can
    be raised again (LAUNCH)
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
    # A file without a name escapes the quota; a link or fifo would deceive whoever reads the folder
    # afterwards.
    *("memfd_create", "memfd_secret", "symlinkat", "linkat", "mknodat"),
    *(("symlink", "link", "mknod", "modify_ldt") if platform.machine() == "x86_64" else ()),
    # What no program under test needs.
    *("chroot", "fsopen", "fsmount", "move_mount", "open_tree", "syslog", "pidfd_getfd"),
    *("process_madvise", "kcmp", "setpriority", "sched_setscheduler", "sched_setattr"),
    *("sched_setparam", "ioprio_set", "mq_open", "fanotify_init"),
    *("inotify_init1", "clock_settime", "settimeofday", "adjtimex", "setxattr", "vhangup"),
    *("landlock_create_ruleset", "migrate_pages", "move_pages", "mbind", "set_mempolicy"),
)
"""System calls that fail with EPERM, in addition to sandlock's list (mount, ptrace, bpf, ...)."""

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
    # Orphans become children of this process, so that none is lost: PR_SET_CHILD_SUBREAPER.
    call("prctl", 36, 1, 0, 0, 0)
    for limit in limits:
        name, value = map(int, limit.split("="))
        call("setrlimit", name, 2 * word(value))
    # No capabilities: of root only the number remains. _LINUX_CAPABILITY_VERSION_3, this process.
    call("capset", word(0x20080522), bytes(24))
    # PR_SET_SECCOMP, SECCOMP_MODE_FILTER, struct sock_fprog with the address of the first byte.
    steps = bytes.fromhex(program)
    call("prctl", 22, 2, word(len(steps) // 8) + word(id(steps) + bytes.__basicsize__ - 1), 0, 0)
    builtins.exit = builtins.quit = sys.exit  # as the module `site` would, which is not imported
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # the output of a run that is stopped is not lost
    sys.argv[:] = ["main.py"]
    sys.path.insert(0, folder)
    with open(path, "rb") as file:
        return compile(file.read(), "main.py", "exec", dont_inherit=True)
code = launch()
del launch
exec(globals().pop("code"))
"""
"""What the interpreter runs first, inside of the sandbox.

It gives up all remaining rights and runs the program. Each module that it imports costs every run
30 system calls that sandlock has to answer. Hence no `ctypes`, `resource` or `struct`.
"""

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

# The classic BPF instructions of the second filter, and what it returns (linux/seccomp.h).
BPF_LOAD, BPF_JUMP_IF_EQUAL, BPF_RETURN = 0x20, 0x15, 0x06
RETURN_ALLOW, RETURN_ERRNO = 0x7FFF0000, 0x00050000
# Offsets in struct seccomp_data.
SYSCALL_NUMBER, ARCHITECTURE, FIRST_ARGUMENT, SECOND_ARGUMENT = 0, 4, 16, 24


def start(main: Path, folder: Path, home: Path, *, cpu_s: int, memory_mb: int) -> Any:
    """Start a process that runs the file `main` in `folder`, with pipes for its three streams.

    The process dies with the thread that called.

    Args:
        main: the program.
        folder: where it works and may write.
        home: an empty folder that it may write, too.
        cpu_s: seconds of CPU time of one process.
        memory_mb: address space of one process.
    Returns:
        A `sandlock.Process`.
    Raises:
        RuntimeError: the sandbox cannot be set up.
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
        # 1 also keeps the kernel from starting its core_pattern program; 0 does not.
        resource.RLIMIT_CORE: 1,
        resource.RLIMIT_CPU: cpu_s,
        resource.RLIMIT_FSIZE: MAX_FILE_MB << 20,
        resource.RLIMIT_NOFILE: MAX_OPEN_FILES,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_AS: memory_mb << 20,
    }
    limit_arguments = [f"{name}={value}" for name, value in limits.items()]
    program = second_filter(platform.machine()).hex()
    # Isolated (-I) and without `site` (-S): nothing in the run's folder is executed before the
    # program.
    options = ["-I", "-S", "-B", "-X", "utf8"]
    command = [interpreter(), *options, "-c", LAUNCH]
    arguments = [str(main), str(folder), program, *limit_arguments]
    return sandbox.popen([*command, *arguments], *[sandlock.StdioMode.PIPED] * 3)


def environment(home: Path) -> Mapping[str, str]:
    """Return all environment variables of a run."""
    return {
        "HOME": str(home),
        "TMPDIR": str(home),
        "LANG": "C.UTF-8",
        "PATH": "",
        # Each further arena reserves 64 MB of address space, which the run's limit counts.
        "MALLOC_ARENA_MAX": "1",
    }


@cache
def interpreter() -> str:
    """Return the interpreter, not a virtual environment's link to it: a run gets no packages."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


@cache
def interpreter_paths() -> Sequence[str]:
    """Return what the interpreter reads: itself, its library, the system's shared libraries."""
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    # Without these variables `platstdlib` is the virtual environment's folder, with its packages.
    base = {"base": sys.base_prefix, "installed_base": sys.base_prefix}
    base |= {"platbase": sys.base_exec_prefix, "installed_platbase": sys.base_exec_prefix}
    library = [sysconfig.get_path(name, vars=base) for name in ("stdlib", "platstdlib")]
    shared = [
        sysconfig.get_config_var("LIBDIR") or "",
        "/lib64",
        "/usr/lib64",
        f"/usr/lib/{multiarch}",
    ]
    paths: dict[str, None] = {}
    for path in [interpreter(), *library, *shared, f"/lib/{multiarch}", "/etc/ld.so.cache"]:
        # Without a MULTIARCH the path would be the whole of /usr/lib.
        if os.path.exists(path) and path not in ("/usr/lib/", "/lib/"):
            paths[path] = None
    return list(paths)


def second_filter(machine: str) -> bytes:
    """Write a seccomp program for what sandlock's deny list cannot express.

    Of several filters the kernel takes the strictest. This one refuses

    socket                       of any family; sandlock answers some of them itself, before its
    list
                                 is asked
    clone3                       "no such call": its flags, namespaces among them, are in memory
    that
                                 no filter can read
    prlimit64, sched_setaffinity of another process: Landlock allows them on all of the same user
    fcntl(F_SETLEASE)            on a file of the standard library it would make everybody wait who
                                 opens that file

    Args:
        machine: `platform.machine()`.
    Returns:
        An array of struct sock_filter.
    """
    number = NUMBERS[machine]
    refuse = RETURN_ERRNO | errno.EPERM
    # Each step: code, steps to skip if true, steps to skip if false, operand.
    steps = [
        # Another architecture has other numbers: nothing of it is allowed.
        (BPF_LOAD, 0, 0, ARCHITECTURE),
        (BPF_JUMP_IF_EQUAL, 1, 0, AUDIT_ARCH[machine]),
        (BPF_RETURN, 0, 0, refuse),
        (BPF_LOAD, 0, 0, SYSCALL_NUMBER),
    ]
    for name, error in (("socket", errno.EPERM), ("clone3", errno.ENOSYS)):
        steps += [
            (BPF_JUMP_IF_EQUAL, 0, 1, number[name]),
            (BPF_RETURN, 0, 0, RETURN_ERRNO | error),
        ]
    for name in ("prlimit64", "sched_setaffinity"):
        # Only on the caller itself, which is process 0.
        steps += [
            (BPF_JUMP_IF_EQUAL, 0, 3, number[name]),
            (BPF_LOAD, 0, 0, FIRST_ARGUMENT),
            (BPF_JUMP_IF_EQUAL, 1, 0, 0),
            (BPF_RETURN, 0, 0, refuse),
            (BPF_LOAD, 0, 0, SYSCALL_NUMBER),
        ]
    steps += [
        (BPF_JUMP_IF_EQUAL, 0, 2, number["fcntl"]),
        (BPF_LOAD, 0, 0, SECOND_ARGUMENT),
        (BPF_JUMP_IF_EQUAL, 1, 0, F_SETLEASE),
        (BPF_RETURN, 0, 0, RETURN_ALLOW),
        (BPF_RETURN, 0, 0, refuse),
    ]
    return b"".join(struct.pack("HBBI", *step) for step in steps)
