"""What the tests of the sandbox try: each attempt is a few lines that succeed on an ordinary machine.

An attempt runs twice: outside, where it has to succeed (else the test would prove nothing), and in the sandbox, where
it has to fail. `outside` says where the former holds: always, for root, or never (dangerous, or not on every kernel).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Outside = Literal["always", "root", "never"]

HARNESS = """
import os, sys, socket, signal, ctypes, resource
def reach(family, address, kind=socket.SOCK_STREAM):
    with socket.socket(family, kind) as made:
        made.settimeout(2)
        try:
            made.connect(address)
        except (FileNotFoundError, ConnectionRefusedError):
            pass  # nobody is there; but it was allowed to ask
def system_call(number, *arguments):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(number, *arguments) < 0 and ctypes.get_errno() in (1, 38):
        raise PermissionError(ctypes.get_errno(), "refused")
def attempt():
    {body}
try:
    attempt()
except OSError as error:
    print("denied:", type(error).__name__, error)
else:
    print("succeeded")
"""


@dataclass(frozen=True)
class Attempt:
    body: str
    """Placeholders: see the fixture `victims` in test_sandbox_escapes.py."""
    outside: Outside = "always"

    def program(self, **victims: object) -> str:
        return HARNESS.replace("{body}", self.body.format(**victims).replace("\n", "\n    "))


def _call(number: int, *arguments: int | str, outside: Outside = "root") -> Attempt:
    """A system call with arguments that make it harmless where it is allowed. Numbers of x86-64."""
    return Attempt(f"system_call({number}, {', '.join(map(str, arguments))})", outside)


FILES = {
    "read a file": Attempt("open({secret!r}).read()"),
    "read the list of users": Attempt("open('/etc/passwd').read()"),
    "read the checkout": Attempt("open({repo!r} + '/pyproject.toml').read()"),
    "list the user's home": Attempt("os.listdir({home!r})"),
    "list the root": Attempt("os.listdir('/')"),
    "list the temporary files": Attempt("os.listdir('/tmp')"),
    "read the packages": Attempt("os.listdir({packages!r})"),
    "read through ..": Attempt("os.listdir('..')"),
    "read through many ..": Attempt("open('../' * 40 + {secret!r}.lstrip('/')).read()"),
    "read through a folder's descriptor": Attempt(
        "root = os.open('/', os.O_PATH)\nos.read(os.open({secret!r}.lstrip('/'), os.O_RDONLY, dir_fd=root), 9)"
    ),
    "read through a symlink": Attempt("os.symlink({secret!r}, 'l'); open('l').read()"),
    "read through a hard link": Attempt(
        "os.link({secret!r}, {victim!r} + '2'); open({victim!r} + '2').read()"
    ),
    "leave a symlink": Attempt("os.symlink('/', 'left')"),
    "leave a fifo": Attempt("os.mkfifo('left')"),
    "make a device": Attempt("os.mknod('d', 0o60600, os.makedev(7, 0))", "root"),
    "write a new file": Attempt("open({outside!r} + '/new', 'w').write('x')"),
    "write beside the folder": Attempt("open('../new', 'w').write('x')"),
    "append to a file": Attempt("open({victim!r}, 'a').write('x')"),
    "truncate a file": Attempt("os.truncate({victim!r}, 0)"),
    "delete a file": Attempt("os.unlink({victim!r})"),
    "take a file": Attempt("os.rename({victim!r}, 'taken')"),
    "put a file": Attempt("open('mine', 'w').close(); os.rename('mine', {outside!r} + '/mine')"),
    "make a folder": Attempt("os.mkdir({outside!r} + '/folder')"),
    "write the standard library": Attempt("open(os.__file__, 'r+b')", "root"),
    "delete the interpreter": Attempt("os.unlink(sys.executable)", "never"),
    "lease the standard library": Attempt(
        "import fcntl; fcntl.fcntl(open(os.__file__), 1024, 0)", "root"
    ),
    "open shared memory": Attempt(
        "import _posixshmem as shm\n"
        "os.close(shm.shm_open('/parl-test', os.O_CREAT | os.O_RDWR, mode=0o600)); shm.shm_unlink('/parl-test')"
    ),
    "write in /dev/shm": Attempt(
        "open('/dev/shm/parl-test', 'w').close(); os.unlink('/dev/shm/parl-test')"
    ),
    "read the kernel's log": Attempt("os.close(os.open('/dev/kmsg', os.O_RDONLY))", "root"),
    "open the memory": Attempt(
        "os.mknod('mem', 0o20600, os.makedev(1, 1)); open('mem', 'rb').read(1)", "never"
    ),
    "open a terminal": Attempt("os.openpty()"),
    "read /sys": Attempt("os.listdir('/sys/kernel')"),
    "make a cgroup": Attempt("os.mkdir('/sys/fs/cgroup/parl-test')", "never"),
    "make a file without a name": Attempt("os.memfd_create('x')"),
    "change the root": Attempt("os.chroot('.')", "root"),
}

PROC = {
    "read init's environment": Attempt("open('/proc/1/environ').read()", "never"),
    "read its own environment": Attempt("open('/proc/self/environ').read()"),
    "read its parent's environment": Attempt("open(f'/proc/{{os.getppid()}}/environ').read()"),
    "open its parent's memory": Attempt("open(f'/proc/{{os.getppid()}}/mem', 'rb')", "root"),
    "open another's memory": Attempt("open('/proc/{pid}/mem', 'r+b')", "root"),
    "read another's command": Attempt("open('/proc/{pid}/cmdline').read()"),
    "go through /proc/self/root": Attempt("open('/proc/self/root' + {secret!r}).read()"),
    "go through /proc/self/cwd": Attempt("os.listdir('/proc/self/cwd/..')"),
    "list its descriptors": Attempt("os.listdir('/proc/self/fd')"),
    "list all processes": Attempt("os.listdir('/proc')"),
    "protect itself from the OOM killer": Attempt(
        "open('/proc/self/oom_score_adj', 'w').write('0')"
    ),
    "set a kernel parameter": Attempt("open('/proc/sys/kernel/core_pattern', 'r+')", "root"),
}

NETWORK = {
    "TCP": Attempt("reach(socket.AF_INET, ('127.0.0.1', {port}))"),
    "TCP over IPv6": Attempt("reach(socket.AF_INET6, ('::1', {port}))", "never"),
    "TCP server": Attempt("s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen()"),
    "UDP": Attempt(
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {port}))"
    ),
    "UDP over IPv6": Attempt("socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()", "never"),
    "DNS": Attempt("reach(socket.AF_INET, ('127.0.0.1', 53), socket.SOCK_DGRAM)"),
    "cloud metadata": Attempt(
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('169.254.169.254', 80))", "never"
    ),
    "Ray's GCS": Attempt("reach(socket.AF_INET, ('127.0.0.1', 6379))"),
    "Ray's dashboard": Attempt("reach(socket.AF_INET, ('127.0.0.1', 8265))"),
    "Ray's raylet": Attempt("reach(socket.AF_UNIX, {raylet!r})"),
    "Unix datagrams": Attempt("socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).close()"),
    "an abstract Unix socket": Attempt("reach(socket.AF_UNIX, {abstract!r})"),
    "a Unix server in its folder": Attempt(
        "s = socket.socket(socket.AF_UNIX); s.bind('s'); s.listen()"
    ),
    "the X server": Attempt("reach(socket.AF_UNIX, '/tmp/.X11-unix/X0')"),
    "the X server, abstract": Attempt("reach(socket.AF_UNIX, '\\0/tmp/.X11-unix/X0')"),
    "D-Bus": Attempt("reach(socket.AF_UNIX, '/run/dbus/system_bus_socket')"),
    "netlink": Attempt("socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).close()"),
    "raw IP": Attempt("socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close()", "root"),
    "packets": Attempt("socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()", "never"),
    "vsock": Attempt("socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()", "never"),
    "the kernel's cryptography": Attempt(
        "socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET).close()", "never"
    ),
}

PROCESSES = {
    "signal another process": Attempt("os.kill({pid}, 0)"),
    "signal its parent": Attempt("os.kill(os.getppid(), 0)"),
    "signal through a pidfd": Attempt("signal.pidfd_send_signal(os.pidfd_open({pid}), 0)"),
    "trace another process": Attempt("system_call(101, 0x4206, {pid}, 0, 0)", "root"),
    "take another's descriptor": Attempt("system_call(438, os.pidfd_open({pid}), 0, 0)", "root"),
    "lower another's limits": Attempt("resource.prlimit({pid}, resource.RLIMIT_CORE, (0, 0))"),
    "read another's limits": Attempt("resource.prlimit({pid}, resource.RLIMIT_CORE)"),
    "move another to a CPU": Attempt("os.sched_setaffinity({pid}, os.sched_getaffinity({pid}))"),
    "slow another down": Attempt(
        "os.setpriority(os.PRIO_PROCESS, {pid}, os.getpriority(os.PRIO_PROCESS, {pid}))"
    ),
    "join another's group": Attempt("os.setpgid(0, os.getpgid(os.getppid()))"),
    "raise its priority": Attempt("os.nice(-1)", "root"),
    "become real-time": Attempt(
        "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))", "root"
    ),
    "become another user": Attempt("os.setresuid(1, 1, 1)", "root"),
    "run a shell": Attempt("os.posix_spawn('/bin/sh', ['sh', '-c', 'true'], {{}})"),
    "become a shell": Attempt("os.execv('/bin/sh', ['sh', '-c', 'echo succeeded'])"),
    "run a program by the loader": Attempt(
        "import subprocess\n"
        "if subprocess.run(['/lib64/ld-linux-x86-64.so.2', '/bin/true'], stderr=-3).returncode: raise OSError"
    ),
    "read by a child": Attempt(
        "import subprocess\n"
        "command = [sys.executable, '-I', '-S', '-c', 'open(' + repr({secret!r}) + ')']\n"
        "if subprocess.run(command, stderr=-3).returncode: raise OSError"
    ),
}

CALLS = {
    # Metadata, names and resources, which Landlock does not rule.
    "chmod a file": Attempt("os.chmod({victim!r}, 0o6777)"),
    "chmod by descriptor": Attempt("os.chmod(os.open('/dev/null', os.O_RDWR), 0o666)", "root"),
    "set a file's times": Attempt("os.utime({victim!r})"),
    "give a file away": Attempt("os.chown({victim!r}, os.getuid(), os.getgid())"),
    "watch a folder": Attempt(
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "fd = libc.inotify_init()\n"
        "if fd < 0 or libc.inotify_add_watch(fd, {outside!r}.encode(), 0xfff) < 0:\n"
        "    raise PermissionError(ctypes.get_errno(), 'refused')"
    ),
    "list processes by their programs": Attempt("os.readlink('/proc/{pid}/exe')"),
    "list processes by their folders": Attempt("os.readlink('/proc/{pid}/cwd')"),
    "see the host's descriptors": Attempt("os.readlink('/proc/{pid}/fd/0')"),
    "ask for the disk": Attempt("os.statvfs('/')"),
    "start another program": Attempt("os.posix_spawn('/bin/true', ['true'], {{}})"),
    "start a copy of the interpreter": Attempt(
        "import shutil\n"
        "shutil.copy(os.path.realpath(sys.executable), 'program')\n"
        "os.chmod('program', 0o755)\n"
        "os.posix_spawn('./program', ['program', '-c', ''], dict(os.environ))"
    ),
    "send to an address from a pair": Attempt(
        "first, second = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)"
    ),
    "take the disk in one call": Attempt(
        "fd = os.open('large', os.O_RDWR | os.O_CREAT)\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "size = ctypes.c_long(1 << 20)\n"
        "if libc.fallocate(fd, 1, ctypes.c_long(0), size) < 0:\n"
        "    raise PermissionError(ctypes.get_errno(), 'refused')\n"
        "os.unlink('large')"
    ),
    "ask for another's priority": Attempt("os.getpriority(os.PRIO_PROCESS, {pid})"),
    "ask for another's session": Attempt("os.getsid({pid})"),
    "ask for another's processors": Attempt("os.sched_getaffinity({pid})"),
    "know another process by a descriptor": Attempt("os.close(os.pidfd_open({pid}))"),
    "have a child of the host": Attempt(
        "pid = ctypes.CDLL(None, use_errno=True).syscall(56, 0x8000 | 17, 0, 0, 0, 0)\n"
        "if pid == 0:\n"
        "    os._exit(0)\n"
        "if pid < 0:\n"
        "    raise PermissionError(1, 'refused')",
        "never",
    ),
    "mount": _call(165, 0, 0, 0, 0, 0),
    "umount2": _call(166, 0, 0),
    "pivot_root": _call(155, 0, 0),
    "fsopen": _call(430, 0, 0),
    "move_mount": _call(429, -1, 0, -1, 0, 0),
    "unshare": _call(272, 0, outside="always"),
    "setns": _call(308, -1, 0, outside="always"),
    "bpf": _call(321, 99, 0, 0),
    "perf_event_open": _call(298, 0, 0, 0, 0, 0),
    "io_uring_setup": _call(425, 0, 0),
    "keyctl": _call(250, 99, outside="always"),
    "add_key": _call(248, 0, 0, 0, 0, 0, outside="always"),
    "userfaultfd": _call(323, -1, outside="always"),
    "process_vm_readv": _call(310, "{pid}", 0, 0, 0, 0, 0),
    "process_vm_writev": _call(311, "{pid}", 0, 0, 0, 0, 0),
    "process_madvise": _call(440, -1, 0, 0, 0, 0, outside="always"),
    "kcmp": _call(312, "{pid}", "{pid}", 0, 0, 0),
    "init_module": _call(175, 0, 0, 0, outside="never"),
    "kexec_load": _call(246, 0, 0, 0, 0xFFFF, outside="never"),
    "reboot": _call(169, 0, 0, 0, 0),
    "swapon": _call(167, 0, 0),
    "sethostname": _call(170, 0, -1),
    "syslog": _call(103, 99, 0, 0),
    "personality": _call(135, 0xFFFFFFFF, outside="always"),
    "open_by_handle_at": _call(304, -1, 0, 0),
    "name_to_handle_at": _call(303, -1, 0, 0, 0, 0, outside="always"),
    "clock_settime": _call(227, 0, 0),
    "iopl": _call(172, 0, outside="never"),
    "modify_ldt": _call(154, 0, 0, 0, outside="never"),
    "shmget": _call(29, 0, 0, 0, outside="always"),
    "mq_open": _call(240, 0, 0, 0, 0, outside="always"),
    "fanotify_init": _call(300, -1, 0),
    "clone3 with a user namespace": Attempt(
        "a = (ctypes.c_uint64 * 11)(0x10000000, 0, 0, 0, 17)\n"
        "child = ctypes.CDLL(None, use_errno=True).syscall(435, a, 88)\n"
        "if child == 0: os._exit(0)\n"
        "if child < 0: raise OSError(ctypes.get_errno(), 'refused')\n"
        "os.waitpid(child, 0)"
    ),
    "clone with a user namespace": Attempt(
        "child = ctypes.CDLL(None, use_errno=True).syscall(56, 0x10000000 | 17, 0, 0, 0, 0)\n"
        "if child == 0: os._exit(0)\n"
        "if child < 0: raise OSError(ctypes.get_errno(), 'refused')\n"
        "os.waitpid(child, 0)"
    ),
}
