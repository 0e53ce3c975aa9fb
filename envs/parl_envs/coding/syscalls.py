"""The system calls that a run may make: an allow list, as a seccomp program.

A deny list has to know every call that does harm, also those of kernels to come; Landlock rules
files and signals, but neither metadata nor resources (landlock-lsm/linux#11). So everything that a
Python program does not need fails with EPERM. The list is what CPython and its standard library
were seen to call (`strace` on programs that import all of it, use files, threads, processes and
errors), less what reaches out of the run.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Mapping, Sequence

Numbers = tuple[int | None, int | None]
"""Of x86-64 and of ARM64; None: that machine does not have the call."""

ARCHITECTURES = ("x86_64", "aarch64")
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

ALLOWED: Mapping[str, Numbers] = {
    # Frequent ones first: the kernel goes through the list from the top.
    "read": (0, 63),
    "write": (1, 64),
    "newfstatat": (262, 79),
    "fstat": (5, 80),
    "lseek": (8, 62),
    "close": (3, 57),
    "openat": (257, 56),
    "mmap": (9, 222),
    "futex": (202, 98),
    "munmap": (11, 215),
    "brk": (12, 214),
    "mprotect": (10, 226),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "getdents64": (217, 61),
    # Descriptors and files. Landlock says which files.
    "readv": (19, 65),
    "writev": (20, 66),
    "pread64": (17, 67),
    "pwrite64": (18, 68),
    "preadv": (295, 69),
    "pwritev": (296, 70),
    "sendfile": (40, 71),
    "copy_file_range": (326, 285),
    "close_range": (436, 436),
    "dup": (32, 23),
    "dup2": (33, None),
    "dup3": (292, 24),
    "pipe": (22, None),
    "pipe2": (293, 59),
    "flock": (73, 32),
    "stat": (4, None),
    "lstat": (6, None),
    "statx": (332, 291),
    "access": (21, None),
    "faccessat": (269, 48),
    "getcwd": (79, 17),
    "chdir": (80, 49),
    "fchdir": (81, 50),
    "umask": (95, 166),
    "mkdir": (83, None),
    "mkdirat": (258, 34),
    "rmdir": (84, None),
    "unlink": (87, None),
    "unlinkat": (263, 35),
    "rename": (82, None),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "truncate": (76, 45),
    "ftruncate": (77, 46),
    "fsync": (74, 82),
    "fdatasync": (75, 83),
    "fadvise64": (221, 223),
    # Memory.
    "mremap": (25, 216),
    "madvise": (28, 233),
    "msync": (26, 227),
    # Threads and processes. Landlock says which processes a signal reaches.
    "set_robust_list": (273, 99),
    "rseq": (334, 293),
    "membarrier": (324, 283),
    "sched_yield": (24, 124),
    "gettid": (186, 178),
    "getcpu": (309, 168),
    "set_tid_address": (218, 96),
    "rt_sigreturn": (15, 139),
    "rt_sigpending": (127, 136),
    "rt_sigsuspend": (130, 133),
    "rt_sigtimedwait": (128, 137),
    "sigaltstack": (131, 132),
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "pause": (34, None),
    "alarm": (37, None),
    "setitimer": (38, 103),
    "getitimer": (36, 102),
    "timer_create": (222, 107),
    "timer_settime": (223, 110),
    "timer_gettime": (224, 108),
    "timer_getoverrun": (225, 109),
    "timer_delete": (226, 111),
    "restart_syscall": (219, 128),
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "wait4": (61, 260),
    "waitid": (247, 95),
    "setsid": (112, 157),
    "setpgid": (109, 154),
    "getpgrp": (111, None),
    # What a process asks of itself and of the clock.
    "getpid": (39, 172),
    "getppid": (110, 173),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "getresuid": (118, 148),
    "getresgid": (120, 150),
    "getgroups": (115, 158),
    "capget": (125, 90),
    "uname": (63, 160),
    "sysinfo": (99, 179),
    "getrusage": (98, 165),
    "getrlimit": (97, 163),
    "times": (100, 153),
    "time": (201, None),
    "gettimeofday": (96, 169),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "nanosleep": (35, 101),
    "getrandom": (318, 278),
    "arch_prctl": (158, None),
    # Waiting, and pairs of sockets within the run.
    "poll": (7, None),
    "ppoll": (271, 73),
    "select": (23, None),
    "pselect6": (270, 72),
    "epoll_create": (213, None),
    "epoll_create1": (291, 20),
    "epoll_ctl": (233, 21),
    "epoll_wait": (232, None),
    "epoll_pwait": (281, 22),
    "epoll_pwait2": (441, 441),
    "eventfd2": (290, 19),
    "recvfrom": (45, 207),
    "recvmsg": (47, 212),
    "sendmsg": (46, 211),
    "shutdown": (48, 210),
    "getsockname": (51, 204),
    "getpeername": (52, 205),
    "getsockopt": (55, 209),
    "setsockopt": (54, 208),
}

ERRORS: Mapping[str, tuple[Numbers, int]] = {
    # The flags of clone3, namespaces among them, lie where no filter can look; glibc then takes
    # clone.
    "clone3": ((435, 435), errno.ENOSYS),
    "faccessat2": ((439, 439), errno.ENOSYS),
    # "Not a link": a run has no links, and /proc/PID/exe would list the host's processes.
    "readlink": ((89, None), errno.EINVAL),
    "readlinkat": ((267, 78), errno.EINVAL),
    # FALLOC_FL_KEEP_SIZE takes the whole disk in one call, past the limit of a file's size.
    "fallocate": ((285, 47), errno.EOPNOTSUPP),
    # `shutil.copy2` asks for extended attributes, and takes this for "there are none here".
    "listxattr": ((194, 11), errno.EOPNOTSUPP),
    "llistxattr": ((195, 12), errno.EOPNOTSUPP),
    "flistxattr": ((196, 13), errno.EOPNOTSUPP),
}
"""Calls that fail with another error than EPERM, because a library goes on with it."""

CLONE = (56, 220)
CLONE_ESCAPES = 0x00008000 | 0x00002000 | 0x00800000 | 0x7E020000 | 0x00000080
"""CLONE_PARENT (a child of the host, which nobody counts), PTRACE, UNTRACED, new namespaces."""

ONLY_SELF: Mapping[str, tuple[Numbers, int]] = {
    "prlimit64": ((302, 261), 0),
    "sched_getaffinity": ((204, 123), 0),
    "getpgid": ((121, 155), 0),
    "getsid": ((124, 156), 0),
    "getpriority": ((140, 141), 1),
}
"""Calls about a process, which may be the caller itself alone (0), and which argument names it."""

FCNTL = (72, 25)
FCNTL_COMMANDS = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032, 1034)
"""F_DUPFD to F_SETLKW, the locks of open files, F_DUPFD_CLOEXEC, F_GETPIPE_SZ, F_GET_SEALS. A lease
on a file of the standard library would make everybody wait who opens it; F_NOTIFY would read
names."""

IOCTL = (16, 29)
IOCTL_REQUESTS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
"""TCGETS (isatty), TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX."""

PRCTL = (157, 167)
PRCTL_OPTIONS = (15, 16)
"""PR_SET_NAME, PR_GET_NAME: of a thread."""

SENDTO = (44, 206)
SOCKETPAIR = (53, 199)
AF_UNIX = 1
SOCK_STREAM = 1
SOCK_TYPE_MASK = 0xF

LOAD, JUMP_EQUAL, JUMP_SET, RETURN, AND = 0x20, 0x15, 0x45, 0x06, 0x54
"""Codes of struct sock_filter."""
ALLOW, FAIL = 0x7FFF0000, 0x00050000
NUMBER, ARCHITECTURE = 0, 4

Step = tuple[int, int, int, int]
"""struct sock_filter: code, steps to skip if true, if false, operand."""


def program(machine: str) -> bytes:
    """Return the seccomp program of a machine, for PR_SET_SECCOMP.

    Args:
        machine: as `platform.machine()` says it, x86_64 or aarch64.
    """
    which = ARCHITECTURES.index(machine)
    steps: list[Step] = [
        (LOAD, 0, 0, ARCHITECTURE),
        (JUMP_EQUAL, 1, 0, AUDIT_ARCH[machine]),
        _fail(errno.EPERM),
        (LOAD, 0, 0, NUMBER),
    ]
    for numbers in ALLOWED.values():
        steps += _case(numbers[which], [_allow()])
    for numbers, error in ERRORS.values():
        steps += _case(numbers[which], [_fail(error)])
    steps += _case(CLONE[which], [_load(0), (JUMP_SET, 1, 0, CLONE_ESCAPES), _allow(), _deny()])
    for numbers, argument in ONLY_SELF.values():
        steps += _case(numbers[which], [_load(argument), *_allow_only([0])])
    steps += _case(FCNTL[which], [_load(1), *_allow_only(FCNTL_COMMANDS)])
    steps += _case(IOCTL[which], [_load(1), *_allow_only(IOCTL_REQUESTS, errno.ENOTTY)])
    steps += _case(PRCTL[which], [_load(0), *_allow_only(PRCTL_OPTIONS)])
    steps += _case(SENDTO[which], _without_address())
    steps += _case(SOCKETPAIR[which], _pair_of_streams())
    steps.append(_deny())
    return b"".join(struct.pack("HBBI", *step) for step in steps)


def _case(number: int | None, answer: Sequence[Step]) -> list[Step]:
    """Answer one system call; every answer ends the program."""
    if number is None:
        return []
    return [(JUMP_EQUAL, 0, len(answer), number), *answer]


def _allow_only(values: Sequence[int], error: int = errno.EPERM) -> list[Step]:
    """Allow the call when the loaded word is one of these."""
    steps: list[Step] = []
    for value in values:
        steps += [(JUMP_EQUAL, 0, 1, value), _allow()]
    return [*steps, _fail(error)]


def _without_address() -> list[Step]:
    # A datagram to an address would reach a socket of the host; the fifth argument is a pointer.
    high, low = _load(4, high=True), _load(4)
    return [low, (JUMP_EQUAL, 0, 3, 0), high, (JUMP_EQUAL, 0, 1, 0), _allow(), _deny()]


def _pair_of_streams() -> list[Step]:
    # Of datagrams one end could be sent to an address; a stream is connected and refuses one.
    return [
        _load(0),
        (JUMP_EQUAL, 0, 4, AF_UNIX),
        _load(1),
        (AND, 0, 0, SOCK_TYPE_MASK),
        (JUMP_EQUAL, 0, 1, SOCK_STREAM),
        _allow(),
        _deny(),
    ]


def _load(argument: int, high: bool = False) -> Step:
    """Load the lower or the upper half of an argument, which has 64 bits."""
    return (LOAD, 0, 0, 16 + 8 * argument + 4 * high)


def _allow() -> Step:
    return (RETURN, 0, 0, ALLOW)


def _deny() -> Step:
    return _fail(errno.EPERM)


def _fail(error: int) -> Step:
    return (RETURN, 0, 0, FAIL | error)
