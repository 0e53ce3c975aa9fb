"""Attempts to get out of the sandbox, or to take the machine down from inside. None may succeed, or leave anything."""

from __future__ import annotations

import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from parl_envs.coding import confine, sandbox, watch
from parl_envs.coding.sandbox import MAX_OUTPUT, read_files, run_python
from tests.helpers import ROOT
from tests.integration.sandbox_attempts import CALLS, FILES, NETWORK, PROC, PROCESSES, Attempt

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.skipif(sandbox.problem() is not None, reason=f"no sandbox here: {sandbox.problem()}"),
]

ATTEMPTS = {**FILES, **PROC, **NETWORK, **PROCESSES, **(CALLS if platform.machine() == "x86_64" else {})}


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


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the sandbox makes its folders; afterwards nothing is there, nothing runs, no descriptor is open."""
    folder = tmp_path / "sandboxes"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    descriptors = set(os.listdir("/proc/self/fd"))
    yield folder
    assert list(folder.iterdir()) == []
    assert all(gone(pid) for pid in processes(str(folder)))
    assert not [thread for thread in threading.enumerate() if thread.name == "sandbox"]
    assert len(os.listdir("/proc/self/fd")) <= len(descriptors)


@pytest.fixture
def victims(tmp_path: Path) -> Iterator[SimpleNamespace]:
    """Things of the host: files, a TCP server, Unix sockets, a process."""
    outside, work = tmp_path / "outside", tmp_path / "cwd"
    outside.mkdir()
    work.mkdir()
    (outside / "secret").write_text("secret")
    (outside / "victim").write_text("victim")
    short = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # the path of a socket has at most 107 characters
    process = subprocess.Popen(["sleep", "60"])
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_UNIX) as raylet,
        socket.socket(socket.AF_UNIX) as abstract,
    ):
        raylet.bind(f"{short}/raylet")
        raylet.listen()
        abstract.bind(f"\0parl-test-{os.getpid()}")
        abstract.listen()
        yield SimpleNamespace(
            secret=str(outside / "secret"),
            victim=str(outside / "victim"),
            outside=str(outside),
            repo=str(ROOT),
            home=os.path.expanduser("~"),
            packages=os.path.dirname(os.path.dirname(pytest.__file__)),
            port=server.getsockname()[1],
            raylet=f"{short}/raylet",
            abstract=f"\0parl-test-{os.getpid()}",
            pid=process.pid,
            work=work,
        )
        assert process.poll() is None
    process.kill()
    process.wait()
    os.unlink(f"{short}/raylet")
    os.rmdir(short)


def run_outside(code: str, folder: Path, **kwargs: object) -> str:
    command = [confine.interpreter(), "-I", "-S", "-c", code]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=30, check=False, **kwargs)  # type: ignore[call-overload]
    return str(done.stdout)


@pytest.mark.parametrize("name", ATTEMPTS)
def test_an_attempt_is_denied(name: str, victims: SimpleNamespace) -> None:
    attempt: Attempt = ATTEMPTS[name]
    code = attempt.program(**vars(victims))
    inside = run_python(code)
    assert inside.stdout.startswith("denied: "), inside
    assert Path(victims.secret).read_text() == "secret"
    assert Path(victims.victim).read_text() == "victim"
    assert sorted(os.listdir(victims.outside)) == ["secret", "victim"]
    if attempt.outside == "never":
        assert "PermissionError" in inside.stdout
    elif attempt.outside == "always" or os.geteuid() == 0:
        assert run_outside(code, victims.work) == "succeeded\n"


def test_there_are_many_attempts() -> None:
    assert len(ATTEMPTS) >= 40


# --- what a run inherits ---------------------------------------------------------------------------------------


def test_no_variable_of_the_host_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PARL_SECRET_TOKEN", "s3cret")
    code = "import os; print(os.environ.get('PARL_SECRET_TOKEN'), sorted(os.environ))"
    assert "s3cret" in run_outside(code, tmp_path)
    assert run_python(code).stdout == "None ['HOME', 'LANG', 'MALLOC_ARENA_MAX', 'PATH', 'TMPDIR']\n"


def test_no_descriptor_is_inherited(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s3cret")
    code = (
        "import os\nfor fd in range(3, 1000):\n  try: print(fd, os.pread(fd, 9, 0))\n"
        "  except OSError: pass\nprint('end')"
    )
    with open(tmp_path / "secret") as file:
        os.set_inheritable(file.fileno(), True)
        assert "s3cret" in run_outside(code, tmp_path, close_fds=False)
        assert run_python(code).stdout == "end\n"


def test_of_root_only_the_number_is_left() -> None:
    code = (
        "import ctypes\nheader, data = (ctypes.c_uint32 * 2)(0x20080522), (ctypes.c_uint32 * 6)()\n"
        "print(ctypes.CDLL(None).capget(header, data), list(data))"
    )
    assert run_python(code).stdout == "0 [0, 0, 0, 0, 0, 0]\n"


def test_home_is_empty_and_its_own() -> None:
    code = "import os; home = os.path.expanduser('~'); print(os.listdir(home)); open(home + '/x', 'w').write('x')"
    assert [run_python(code).stdout for _ in range(2)] == ["[]\n"] * 2


HOOKS = (
    "sitecustomize.py",
    "usercustomize.py",
    "site.py",
    "_ctypes.py",
    "encodings/__init__.py",
    "evil.pth",
    "codecs.py",
)


def test_files_cannot_run_before_the_program(tmp_path: Path) -> None:
    hooks = dict.fromkeys(HOOKS, "print('hijacked')")
    hooks["evil.pth"] = "import sys; print('hijacked')"
    assert run_python("print('program')", files=hooks).stdout == "program\n"
    (tmp_path / "sitecustomize.py").write_text("print('hijacked')")
    command = [confine.interpreter(), "-c", "print('program')"]
    outside = subprocess.run(command, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=True)
    assert outside.stdout == "hijacked\nprogram\n"


def test_a_program_imports_its_files() -> None:
    files = {"helper.py": "x = 5", "pkg/__init__.py": "", "pkg/deep.py": "y = 6"}
    assert run_python("import helper, pkg.deep; print(helper.x + pkg.deep.y)", files=files).stdout == "11\n"


# --- limits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["AS", "CPU", "FSIZE", "NOFILE", "CORE", "MEMLOCK"])
def test_a_limit_cannot_be_raised(name: str) -> None:
    code = (
        f"import resource\nr = resource.RLIMIT_{name}\nsoft, hard = resource.getrlimit(r)\n"
        "for new in ((hard + 1, hard + 1), (-1, -1)):\n"
        "  try: resource.setrlimit(r, new)\n  except (ValueError, OSError): print('refused')\n"
        "resource.setrlimit(r, (hard, hard))\nprint(soft == hard >= 0)"
    )
    assert run_python(code).stdout == "refused\nrefused\nTrue\n"


BOMB = """
import os, time
while True:
    try: os.fork()
    except OSError: time.sleep(0.001)
"""


def test_a_fork_bomb_stays_small(temporary: Path) -> None:
    counts: list[int] = []
    stop = threading.Event()

    def count() -> None:
        while not stop.is_set():
            counts.append(len(processes(str(temporary))))
            time.sleep(0.02)

    thread = threading.Thread(target=count)
    thread.start()
    began = time.monotonic()
    result = run_python(BOMB, timeout_s=2)
    stop.set()
    thread.join()
    assert time.monotonic() - began < 8
    assert result.timed_out
    assert 1 < max(counts) <= confine.MAX_PROCESSES + 1


def test_a_thread_bomb_stays_small() -> None:
    code = (
        "import threading, time\nthreading.stack_size(32768)\nnum = 0\n"
        "try:\n  while num < 20000: threading.Thread(target=time.sleep, args=(9,), daemon=True).start(); num += 1\n"
        "finally: print(num, flush=True)\ntime.sleep(9)"
    )
    result = run_python(code, timeout_s=8)
    assert result.limit == "processes" or 0 < int(result.stdout) <= watch.MAX_THREADS, result


def test_memory_ends_in_a_memory_error() -> None:
    assert run_python("x = bytearray(200 << 20); print('fits')").stdout == "fits\n"
    assert "MemoryError" in run_python("x = bytearray(300 << 20)").stderr
    assert run_python("x = bytearray(300 << 20); print('fits')", memory_mb=512).stdout == "fits\n"
    assert "MemoryError" in run_python("x = []\nwhile True: x.append(bytearray(1 << 20))").stderr


def test_memory_mapped_or_shared_counts() -> None:
    code = (
        "import mmap\nfor flag in (mmap.MAP_PRIVATE, mmap.MAP_SHARED):\n"
        "  try: mmap.mmap(-1, 300 << 20, flag | mmap.MAP_ANONYMOUS)\n  except OSError: print('refused')"
    )
    assert run_python(code).stdout == "refused\nrefused\n"


def test_memory_is_summed_over_processes() -> None:
    code = (
        "import os, time\nfor _ in range(8):\n  if os.fork() == 0: break\n"
        "x = bytearray(b'x') * (100 << 20)\ntime.sleep(9)"
    )
    result = run_python(code, timeout_s=8)
    assert result.limit == "memory"
    assert result.exit_code == -9


def test_an_orphan_is_counted_too() -> None:
    code = (
        "import os, time\nif os.fork() == 0:\n  os.setsid()\n  for _ in range(3):\n    if os.fork() == 0: break\n"
        "  else: os._exit(0)\n  x = bytearray(b'x') * (120 << 20)\ntime.sleep(9)"
    )
    assert run_python(code, timeout_s=8).limit == "memory"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_flood_is_cut(stream: str) -> None:
    began = time.monotonic()
    result = run_python(f"import sys\nwhile True: sys.{stream}.write('x' * 65536)", timeout_s=20)
    assert result.limit == "output"
    assert getattr(result, stream) == "x" * MAX_OUTPUT
    assert time.monotonic() - began < 15


def test_a_flood_before_a_quick_end_is_cut() -> None:
    result = run_python(f"import os\nos.write(1, b'x' * {MAX_OUTPUT // 2}); print('y' * {MAX_OUTPUT})")
    assert result.limit == "output"
    assert len(result.stdout) == MAX_OUTPUT


@pytest.mark.parametrize(
    "write", ["file.write(bytes(1 << 20) * 100)", "file.truncate(1 << 33)", "file.seek(1 << 33); file.write(b'x')"]
)
def test_a_huge_or_sparse_file_is_refused(write: str, tmp_path: Path) -> None:
    code = (
        f"file = open('huge', 'wb', buffering=0)\ntry: {write}\n"
        "except OSError as error: print(error.errno)\nelse: print('written')"
    )
    assert run_outside(code, tmp_path) == "written\n"
    (tmp_path / "huge").unlink()
    folder = tmp_path / "work"
    folder.mkdir()
    printed = run_python(code, folder=folder).stdout
    assert printed == "27\n" or write.startswith("file.write")  # EFBIG; a write is shortened first
    assert (folder / "huge").stat().st_size <= confine.MAX_FILE_MB << 20


FILL = "import time\nfor i in range(10 ** 6):\n  with open(str(i), 'wb') as file: file.write(bytes({size}))"
HIDE = (
    "import os, time\nfiles = []\nfor i in range(100):\n"
    "  files.append(open('f', 'wb')); files[-1].write(bytes(8 << 20)); os.unlink('f')\ntime.sleep(9)"
)


@pytest.mark.parametrize(
    "code", [FILL.format(size=8 << 20), FILL.format(size=1), HIDE], ids=["bytes", "files", "deleted"]
)
def test_the_disk_cannot_be_filled(code: str) -> None:
    assert run_python(code, timeout_s=20).limit == "disk"


def test_a_quick_run_is_held_to_the_quota_too() -> None:
    """A run that ends before it was looked at."""
    megabytes = confine.MAX_FILE_MB
    num = watch.MAX_DISK_MB // megabytes + 1
    code = f"x = bytes({megabytes} << 20)\nfor i in range({num}): open(str(i), 'wb', buffering=0).write(x)"
    assert run_python(code, timeout_s=20).limit == "disk"


DEEP = "import os\nfor _ in range(3000):\n  os.mkdir('d' * 20); os.chdir('d' * 20)"
CLOSED = (
    "import os\nos.makedirs('a/b'); open('a/b/c', 'w').close()\nfor p in ('a/b/c', 'a/b', 'a', '.'): os.chmod(p, 0)"
)
NAMES = "import os\nos.mkdir(b'\\xff\\n'); open(b'\\xff\\n/-rf', 'w').close(); open('a' * 255, 'w').close()"


@pytest.mark.parametrize("code", [DEEP, CLOSED, NAMES], ids=["deep", "no permissions", "names"])
def test_any_folder_is_removed(code: str) -> None:
    assert run_python(code, timeout_s=20).limit in (None, "disk")  # `temporary` looks


def test_no_core_is_dumped(tmp_path: Path) -> None:
    result = run_python("import os; os.abort()", folder=tmp_path)
    assert result.exit_code == -signal.SIGABRT
    assert not list(tmp_path.rglob("*core*"))


# --- the end ---------------------------------------------------------------------------------------------------

STUBBORN = """
import os, signal, sys, time
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
print(os.getpid(), flush=True)
"""
ENDLESS = {
    "spins": "while True: pass",
    "spins in C": "sum(iter(int, 1))",
    "sleeps": "time.sleep(99)",
    "catches everything": "while True:\n  try:\n    while True: pass\n  except BaseException: pass",
    "stops itself": "os.kill(os.getpid(), signal.SIGSTOP)",
    "waits for a child": "p = os.fork()\nif p: os.waitpid(p, 0)\nwhile True: pass",
    "reads what is not there": "sys.stdin.read(); r, w = os.pipe(); os.read(r, 1)",
    "exits in a hanging hook": "import atexit; atexit.register(time.sleep, 99)",
}


@pytest.mark.parametrize("name", ENDLESS)
def test_the_deadline_holds(name: str) -> None:
    began = time.monotonic()
    result = run_python(STUBBORN + ENDLESS[name], timeout_s=1.5)
    assert result.timed_out
    assert result.exit_code == -9
    assert time.monotonic() - began < 6
    assert gone(int(result.stdout))


DAEMONS = {
    "a child": "if os.fork() == 0: live()",
    "a session of its own": "if os.fork() == 0: os.setsid(); live()",
    "a group of its own": "if os.fork() == 0: os.setpgid(0, 0); live()",
    "a daemon": "if os.fork() == 0:\n  os.setsid()\n  if os.fork(): os._exit(0)\n  live()",
    "a chain": (
        "if os.fork() == 0:\n  for _ in range(6):\n    if os.getsid(0) != os.getpid(): os.setsid()\n"
        "    if os.fork(): os._exit(0)\n  live()"
    ),
    "another program": (
        "import subprocess\ncommand = [sys.executable, '-I', '-S', '-c', 'import time; time.sleep(99)']\n"
        "print(subprocess.Popen(command, start_new_session=True, env={}).pid, flush=True)"
    ),
    "a thread": "import threading; threading.Thread(target=live, daemon=True).start()",
}
LIVE = """
import os, sys, time
def live():
    print(os.getpid(), flush=True)
    for fd in range(3): os.close(fd)
    time.sleep(99)
    os._exit(0)
"""


@pytest.mark.parametrize("ends", [True, False], ids=["ends", "is stopped"])
@pytest.mark.parametrize("name", DAEMONS)
def test_nothing_outlives_the_call(name: str, ends: bool) -> None:
    code = f"{LIVE}{DAEMONS[name]}\ntime.sleep({0.3 if ends else 99})\nos._exit(7)"
    result = run_python(code, timeout_s=10 if ends else 1.5)
    assert result.exit_code == (7 if ends else -9)
    assert gone(int(result.stdout))


def test_a_daemon_outlives_an_ordinary_call(tmp_path: Path) -> None:
    pid = int(run_outside(f"{LIVE}{DAEMONS['a daemon']}\ntime.sleep(0.3)\nos._exit(7)", tmp_path))
    assert not gone(pid, 0.2)
    os.kill(pid, signal.SIGKILL)


def test_a_child_that_holds_the_pipes_is_not_waited_for() -> None:
    began = time.monotonic()
    result = run_python("import os, time\nif os.fork() == 0: time.sleep(99)\nprint('parent')", timeout_s=30)
    assert result.stdout == "parent\n"
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    "code, exit_code",
    [
        ("import os; os._exit(0)", 0),
        ("exit()", 0),
        ("exit(300)", 44),
        ("raise SystemExit('text')", 1),
        ("1 / 0", 1),
        ("import os; os.kill(os.getpid(), 9)", -9),
        ("import os; os.kill(os.getpid(), 11)", -11),
        ("import ctypes; ctypes.string_at(0)", -11),
        ("import os, signal; os.killpg(0, signal.SIGTERM)", -15),
        ("this is no Python", 1),
        ("\0", 1),
        ("\ud800", 1),
    ],
)
def test_exit_codes_are_the_programs_own(code: str, exit_code: int) -> None:
    result = run_python(code)
    assert (result.exit_code, result.limit) == (exit_code, None)


def test_a_program_dies_with_the_process_that_runs_it(tmp_path: Path) -> None:
    code = "import os\nopen('pid', 'w').write(str(os.getpid()))\nwhile True: pass"
    host = (
        "import sys; from pathlib import Path; from parl_envs.coding.sandbox import run_python\n"
        f"run_python({code!r}, folder=Path({str(tmp_path)!r}), timeout_s=60)"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}  # its temporary folder stays: nobody is left to remove it
    with subprocess.Popen([sys.executable, "-c", host], env=environment) as process:
        until = time.monotonic() + 20
        while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()) and time.monotonic() < until:
            time.sleep(0.05)
        process.kill()
    assert gone(int((tmp_path / "pid").read_text()))


def test_all_cannot_be_signalled() -> None:
    """kill(-1) says nothing about whom it reached, so a stopped process waits for a SIGCONT that must not come."""
    with subprocess.Popen(["sleep", "60"]) as process:
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        run_python("import os, signal\ntry: os.kill(-1, signal.SIGCONT)\nexcept OSError: pass")
        state = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
        process.kill()
    assert state == "T"


def test_calls_of_another_architecture_fail() -> None:
    """The 32-bit `int 0x80` and x32 have numbers of their own, which a filter for x86-64 would not know."""
    if platform.machine() != "x86_64":
        pytest.skip("x86 only")
    code = (
        "import ctypes, mmap, os\npage = mmap.mmap(-1, 4096, prot=7)\n"
        # push rbx; mov eax, 359 (socket); mov ebx, 1; mov ecx, 1; xor edx, edx; int 0x80; pop rbx; ret
        "page.write(bytes.fromhex('53b867010000bb01000000b90100000031d2cd805bc3'))\n"
        "call = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))\n"
        "for attempt in (call, lambda: ctypes.CDLL(None).syscall(0x40000000 | 41, 1, 1, 0)):\n"
        "  if os.fork() == 0: os._exit(attempt() >= 0)\n"
        "  print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)"
    )
    assert all(int(line) <= 0 for line in run_python(code).stdout.splitlines())
    assert len(run_python(code).stdout.splitlines()) == 2


def test_a_link_in_the_folder_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s3cret")
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "up").symlink_to(tmp_path)
    code = "for p in ('link', 'up/secret'):\n  try: print(open(p).read())\n  except OSError: print('denied')"
    assert run_python(code, folder=folder).stdout == "denied\ndenied\n"
    assert read_files(folder) == {}


def test_tracing_and_introspection_show_nothing_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARL_SECRET_TOKEN", "s3cret")
    code = (
        "import gc, sys\nseen = []\nsys.settrace(lambda f, e, a: seen.append(repr(f.f_locals)))\n(lambda: 0)()\n"
        "frame = sys._getframe()\nwhile frame: seen.append(repr(frame.f_locals)); frame = frame.f_back\n"
        "print(len(seen) > 1, 'terc3s' in repr([seen, gc.get_objects()])[::-1])"
    )
    assert run_python(code).stdout == "True False\n"
