"""What a run may see and do.

The policy for sandlock, and what a run gives up before its first line.

Four layers, each enforced by the kernel and inherited by everything that the run starts:

    Landlock (sandlock)     files outside of the run's folders and the interpreter, signals, ptrace
    seccomp (sandlock, us)  all system calls but those of an allow list (syscalls.py)
    Landlock (us)           starting any other program than the interpreter
    capabilities, rlimits   root's rights are gone; memory, CPU, files, descriptors; none can be
                            raised again (LAUNCH)
"""

from __future__ import annotations

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

from parl_envs.coding import syscalls

MAX_PROCESSES = 16
MAX_OPEN_FILES = 128
MAX_FILE_MB = 16
"""The largest file that a run can write."""
PT_INTERP = 3

LAUNCH = """
def launch():
    import _ctypes, builtins, posix, sys
    path, folder, program, executables, *limits = sys.argv[1:]
    libc = _ctypes.dlopen(None, 2)
    def call(name, *args):
        if _ctypes.call_function(_ctypes.dlsym(libc, name), args):
            raise OSError(name + " failed: the program was not run")
    def syscall(*args):
        result = _ctypes.call_function(_ctypes.dlsym(libc, "syscall"), args)
        if result < 0:
            raise OSError("system call %d failed: the program was not run" % args[0])
        return result
    def word(number):
        return number.to_bytes(8, "little")
    # Orphans become children of this process, so that none is lost: PR_SET_CHILD_SUBREAPER.
    call("prctl", 36, 1, 0, 0, 0)
    for limit in limits:
        name, value = map(int, limit.split("="))
        call("setrlimit", name, 2 * word(value))
    # Landlock, once more: of all that can be read, only the interpreter (and its loader) can be
    # started. landlock_create_ruleset, landlock_add_rule (LANDLOCK_RULE_PATH_BENEATH) and
    # landlock_restrict_self with LANDLOCK_ACCESS_FS_EXECUTE.
    ruleset = syscall(444, word(1), 8, 0)
    for executable in executables.split(":"):
        fd = posix.open(executable, 0o12000000)  # O_PATH, O_CLOEXEC
        syscall(445, ruleset, 1, word(1) + fd.to_bytes(4, "little"), 0)
        posix.close(fd)
    syscall(446, ruleset, 0)
    posix.close(ruleset)
    # No capabilities: of root only the number remains. _LINUX_CAPABILITY_VERSION_3, this process.
    call("capset", word(0x20080522), bytes(24))
    # PR_SET_SECCOMP, SECCOMP_MODE_FILTER, struct sock_fprog with the address of the first byte.
    steps = bytes.fromhex(program)
    call("prctl", 22, 2, word(len(steps) // 8) + word(id(steps) + bytes.__basicsize__ - 1), 0, 0)
    builtins.exit = builtins.quit = sys.exit  # as the module `site` would, which is not imported
    # Modes, owners and times cannot be changed. Of the run's own files that is no error, so that a
    # copy by `shutil` goes on without them.
    own = [folder, posix.environ[b"HOME"].decode()]
    def is_own(path):
        path = posix.fspath(path) if not isinstance(path, int) else ""
        if not isinstance(path, str) or not path or ".." in path.split("/"):
            return False
        path = path if path.startswith("/") else posix.getcwd() + "/" + path
        return any(path == top or path.startswith(top + "/") for top in own)
    def tolerant(function):
        def change(path, *args, **options):
            try:
                return function(path, *args, **options)
            except PermissionError:
                if not is_own(path):
                    raise
        return change
    for name in ("chmod", "chown", "lchown", "utime"):
        setattr(posix, name, tolerant(getattr(posix, name)))
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
    executables = [":".join((interpreter(), *loader()))]
    shown = [f"{name}={value}" for name, value in limits.items()]
    arguments = [
        str(main),
        str(folder),
        syscalls.program(platform.machine()).hex(),
        *executables,
        *shown,
    ]
    return sandbox.popen(
        [interpreter(), "-I", "-S", "-B", "-X", "utf8", "-c", LAUNCH, *arguments],
        *[sandlock.StdioMode.PIPED] * 3,
    )


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


@cache
def loader() -> Sequence[str]:
    """Return the loader that the interpreter's ELF header names (PT_INTERP).

    None where it needs none.
    """
    with open(interpreter(), "rb") as file:
        header = file.read(64)
        if header[:5] != b"\x7fELF\x02":
            return ()
        offset, entry_size, num_entries = struct.unpack_from("<Q14xHH", header, 32)
        for index in range(num_entries):
            file.seek(offset + index * entry_size)
            kind, position, size = struct.unpack("<I4xQ16xQ", file.read(40))
            if kind == PT_INTERP:
                file.seek(position)
                return (os.path.realpath(file.read(size).rstrip(b"\0").decode()),)
    return ()
