"""Attempts to get out of the sandbox. None may succeed, or leave anything."""

from __future__ import annotations

import os
import platform
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from parl_envs.coding import confine, sandbox
from parl_envs.coding.sandbox import read_files, run_python
from tests.support.helpers import ROOT
from tests.support.sandbox_attempts import CALLS, FILES, NETWORK, PROC, PROCESSES, Attempt
from tests.support.sandbox_outside import run_outside

pytestmark = [
    pytest.mark.usefixtures("sandboxes"),
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.skipif(
        sandbox.problem() is not None, reason=f"no sandbox here: {sandbox.problem()}"
    ),
]

ATTEMPTS = {
    **FILES,
    **PROC,
    **NETWORK,
    **PROCESSES,
    **(CALLS if platform.machine() == "x86_64" else {}),
}


@pytest.fixture
def victims(tmp_path: Path) -> Iterator[SimpleNamespace]:
    """Things of the host: files, a TCP server, Unix sockets, a process."""
    outside, work = tmp_path / "outside", tmp_path / "cwd"
    outside.mkdir()
    work.mkdir()
    (outside / "secret").write_text("secret")
    (outside / "victim").write_text("victim")
    short = tempfile.mkdtemp(
        prefix="ray", dir="/tmp"
    )  # the path of a socket has at most 107 characters
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
    assert (
        run_python(code).stdout == "None ['HOME', 'LANG', 'MALLOC_ARENA_MAX', 'PATH', 'TMPDIR']\n"
    )


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
    outside = subprocess.run(
        command, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=True
    )
    assert outside.stdout == "hijacked\nprogram\n"


def test_a_program_imports_its_files() -> None:
    files = {"helper.py": "x = 5", "pkg/__init__.py": "", "pkg/deep.py": "y = 6"}
    assert (
        run_python("import helper, pkg.deep; print(helper.x + pkg.deep.y)", files=files).stdout
        == "11\n"
    )


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


def test_tracing_and_introspection_show_nothing_of_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PARL_SECRET_TOKEN", "s3cret")
    code = (
        "import gc, sys\nseen = []\nsys.settrace(lambda f, e, a: seen.append(repr(f.f_locals)))\n(lambda: 0)()\n"
        "frame = sys._getframe()\nwhile frame: seen.append(repr(frame.f_locals)); frame = frame.f_back\n"
        "print(len(seen) > 1, 'terc3s' in repr([seen, gc.get_objects()])[::-1])"
    )
    assert run_python(code).stdout == "True False\n"
