"""The process that starts the sandbox's runs: what happens when it, or the process that asked, is killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from parl.core.errors import EnvFailure
from parl_envs.coding import host, sandbox
from parl_envs.coding.run import PREFIX
from parl_envs.coding.sandbox import run_python, run_python_async
from tests.support.sandbox_outside import gone, host_pid

pytestmark = [
    pytest.mark.usefixtures("sandboxes"),
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.skipif(
        sandbox.problem() is not None, reason=f"no sandbox here: {sandbox.problem()}"
    ),
]


def test_a_program_dies_with_the_process_that_asked(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "temporary").mkdir()
    code = "import os\nopen('pid', 'w').write(str(os.getpid()))\nwhile True: pass"
    asks = (
        "import sys; from pathlib import Path; from parl_envs.coding.sandbox import run_python\n"
        f"run_python({code!r}, folder=Path({str(tmp_path / 'work')!r}), timeout_s=60)"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path / "temporary")}
    with subprocess.Popen([sys.executable, "-c", asks], env=environment) as process:
        until = time.monotonic() + 20
        while not (pid := running_pid(tmp_path / "work")) and time.monotonic() < until:
            time.sleep(0.05)
        (host,) = [child.pid for child in psutil.Process(process.pid).children()]
        assert list((tmp_path / "temporary").iterdir())
        process.kill()
    assert pid is not None
    assert gone(pid)
    assert gone(host, within_s=10)
    assert list((tmp_path / "temporary").iterdir()) == []


def test_runs_fail_with_their_host_and_the_next_has_another(tmp_path: Path) -> None:
    first = host_pid()
    code = "import os\nopen('pid', 'w').write(str(os.getpid()))\nwhile True: pass"
    with ThreadPoolExecutor() as pool:
        run = pool.submit(run_python, code, folder=tmp_path, timeout_s=60)
        while not (pid := running_pid(tmp_path)):
            time.sleep(0.02)
        os.kill(first, signal.SIGKILL)
        with pytest.raises(
            EnvFailure, match="sandbox_lost: the process that starts programs has ended"
        ):
            run.result(timeout=10)
    assert gone(pid)
    assert run_python("print(1)").stdout == "1\n"
    assert host_pid() != first
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):  # nobody was left to remove it
        shutil.rmtree(folder)


def test_a_host_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "GRACE_S", 0.3)
    for ask in (
        lambda: run_python("", timeout_s=0.1),
        lambda: asyncio.run(run_python_async("", timeout_s=0.1)),
    ):
        os.kill(host_pid(), signal.SIGSTOP)
        with pytest.raises(
            EnvFailure, match="sandbox_lost: the process that starts programs does not answer"
        ):
            ask()
        assert run_python("print(1)", timeout_s=30).stdout == "1\n"


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of forking beside threads
def test_a_fork_has_a_host_of_its_own() -> None:
    pid = os.fork()
    if not pid:
        right = False
        with contextlib.suppress(BaseException):
            right = run_python("print(1)").stdout == "1\n"
        os._exit(0 if right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert run_python("print(1)").stdout == "1\n"


def running_pid(folder: Path) -> int | None:
    """What a program has written about itself."""
    file = folder / "pid"
    return int(file.read_text()) if file.exists() and file.read_text() else None
