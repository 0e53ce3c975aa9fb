"""What a run of the sandbox may use, and that nothing is left when it has ended."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from parl_envs.coding import confine, sandbox, watch
from parl_envs.coding.sandbox import MAX_OUTPUT, run_python
from tests.support.sandbox_outside import gone, processes, run_outside

pytestmark = [
    pytest.mark.usefixtures("sandboxes"),
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.skipif(
        sandbox.problem() is not None, reason=f"no sandbox here: {sandbox.problem()}"
    ),
]

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


def test_a_fork_bomb_stays_small(sandboxes: Path) -> None:
    counts: list[int] = []
    stop = threading.Event()

    def count() -> None:
        while not stop.is_set():
            counts.append(len(processes(str(sandboxes))))
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
    result = run_python(
        f"import os\nos.write(1, b'x' * {MAX_OUTPUT // 2}); print('y' * {MAX_OUTPUT})"
    )
    assert result.limit == "output"
    assert len(result.stdout) == MAX_OUTPUT


@pytest.mark.parametrize(
    "write",
    [
        "file.write(bytes(1 << 20) * 100)",
        "file.truncate(1 << 33)",
        "file.seek(1 << 33); file.write(b'x')",
    ],
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
    "code",
    [FILL.format(size=8 << 20), FILL.format(size=1), HIDE],
    ids=["bytes", "files", "deleted"],
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
CLOSED = "import os\nos.makedirs('a/b'); open('a/b/c', 'w').close()\nfor p in ('a/b/c', 'a/b', 'a', '.'): os.chmod(p, 0)"
NAMES = "import os\nos.mkdir(b'\\xff\\n'); open(b'\\xff\\n/-rf', 'w').close(); open('a' * 255, 'w').close()"


@pytest.mark.parametrize("code", [DEEP, CLOSED, NAMES], ids=["deep", "no permissions", "names"])
def test_any_folder_is_removed(code: str) -> None:
    assert run_python(code, timeout_s=20).limit in (None, "disk")  # `sandboxes` looks


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
    result = run_python(
        "import os, time\nif os.fork() == 0: time.sleep(99)\nprint('parent')", timeout_s=30
    )
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
