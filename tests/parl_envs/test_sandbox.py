"""The sandbox's API. What it denies: tests/integration/test_sandbox_escapes.py and test_sandbox_limits.py."""

from __future__ import annotations

import asyncio
import re
import sys
import tempfile
import time
from pathlib import Path

import pytest

import parl_envs
from parl.core.errors import ConfigError
from parl_envs.coding import confine, sandbox, watch
from parl_envs.coding.sandbox import Result, read_files, run_python, run_python_async, write_files
from tests.support.helpers import ROOT

needs_sandbox = pytest.mark.skipif(
    sandbox.problem() is not None, reason=f"no sandbox here: {sandbox.problem()}"
)


@needs_sandbox
def test_a_program_says_what_it_says() -> None:
    assert run_python("print(1 + 1)") == Result(stdout="2\n", stderr="", exit_code=0)
    result = run_python(
        "import sys; print(sys.stdin.read()[::-1]); print('warn', file=sys.stderr); exit(3)",
        stdin="añb",
    )
    assert result == Result(stdout="bña\n", stderr="warn\n", exit_code=3)


@needs_sandbox
def test_large_input_and_output_do_not_block() -> None:
    code = "import sys\nfor line in sys.stdin: sys.stdout.write(line)"
    text = "0123456789\n" * 50_000
    assert run_python(code, stdin=text, timeout_s=20).stdout == text
    assert run_python("print('did not read')", stdin=text).stdout == "did not read\n"


@needs_sandbox
def test_the_deadline_is_reported_with_what_was_printed() -> None:
    began = time.monotonic()
    result = run_python("print('before')\nwhile True: pass", timeout_s=0.5)
    assert (result.timed_out, result.limit, result.stdout, result.exit_code) == (
        True,
        "time",
        "before\n",
        -9,
    )
    assert time.monotonic() - began < 4


@needs_sandbox
def test_a_folder_is_changed_and_stays(tmp_path: Path) -> None:
    write_files(tmp_path, {"pkg/add.py": "def add(a, b): return a - b\n"})
    code = "import pathlib; p = pathlib.Path('pkg/add.py'); p.write_text(p.read_text().replace('-', '+'))"
    assert run_python(code, folder=tmp_path).exit_code == 0
    assert run_python("from pkg.add import add; print(add(1, 2))", folder=tmp_path).stdout == "3\n"
    assert read_files(tmp_path) == {"pkg/add.py": "def add(a, b): return a + b\n"}


@needs_sandbox
def test_a_temporary_folder_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    where = run_python(
        "import os; open('new', 'w').close(); print(os.getcwd())", files={"given": ""}
    ).stdout.strip()
    assert Path(where).is_relative_to(tmp_path)
    assert list(tmp_path.iterdir()) == []


@needs_sandbox
def test_the_event_loop_goes_on_meanwhile() -> None:
    async def both() -> tuple[list[Result], int]:
        runs = asyncio.gather(*(run_python_async("import time; time.sleep(0.3)") for _ in range(4)))
        ticks = 0
        while not runs.done():
            await asyncio.sleep(0.01)
            ticks += 1
        return await runs, ticks

    results, ticks = asyncio.run(both())
    assert [r.exit_code for r in results] == [0] * 4
    assert ticks > 5


@needs_sandbox
def test_a_cancelled_call_stops_its_program(tmp_path: Path) -> None:
    async def cancel() -> None:
        code = (
            "import time\nwhile True: open('alive', 'w').write(str(time.time())); time.sleep(0.01)"
        )
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(run_python_async(code, folder=tmp_path, timeout_s=60), 1)

    began = time.monotonic()
    asyncio.run(cancel())
    assert time.monotonic() - began < 10
    last = (tmp_path / "alive").read_text()
    time.sleep(0.2)
    assert (tmp_path / "alive").read_text() == last


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", "", "link/x", "a\0b"])
def test_a_path_out_of_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match=r"leads out of the folder.*Give a relative path"):
        write_files(folder, {name: "text"})
    assert [p.name for p in tmp_path.iterdir()] == ["work"]


def test_links_are_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "secret").write_text("secret")
    (folder / "sub" / "file").write_text("text")
    (folder / "file").symlink_to(tmp_path / "secret")
    (folder / "up").symlink_to(tmp_path)
    (folder / "large").write_text("x" * 100)
    assert read_files(folder, max_bytes=50) == {"sub/file": "text"}


def test_a_machine_without_a_sandbox_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sandlock", None)  # importing it fails
    sandbox.problem.cache_clear()
    try:
        started: list[object] = []
        monkeypatch.setattr(confine, "start", lambda *a, **k: started.append(a))
        for call in (lambda: run_python("1"), lambda: asyncio.run(run_python_async("1"))):
            with pytest.raises(
                ConfigError,
                match=r"(?s)not run on this machine: sandlock cannot be imported.*Linux 6.12.*parl doctor",
            ):
                call()
        assert not started
        (finding,) = parl_envs.doctor()
        assert finding.ok is None
        assert "sandlock cannot be imported" in finding.value
    finally:
        sandbox.problem.cache_clear()


@needs_sandbox
def test_an_old_kernel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sandlock

    sandbox.problem.cache_clear()
    monkeypatch.setattr(sandlock, "landlock_abi_version", lambda: 4)
    try:
        assert "has Landlock ABI 4, and 6 is the least" in str(sandbox.problem())
    finally:
        sandbox.problem.cache_clear()


@needs_sandbox
def test_a_sandbox_that_leaks_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe tries to get out; here it may read /proc."""
    paths = [*confine.interpreter_paths(), "/proc"]
    monkeypatch.setattr(confine, "interpreter_paths", lambda: paths)
    sandbox.problem.cache_clear()
    try:
        assert "not confined as it should be: reads a file of the host" in str(sandbox.problem())
    finally:
        sandbox.problem.cache_clear()


@needs_sandbox
def test_doctor_says_what_a_run_gets() -> None:
    (finding,) = parl_envs.doctor()
    assert finding.ok
    assert "Landlock ABI" in finding.value


@needs_sandbox
def test_the_page_shows_what_happens() -> None:
    (example,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs/reference/sandbox.md").read_text(), re.DOTALL
    )
    exec(example, {})


@pytest.mark.parametrize(
    "said, value",
    [
        (r"processes, threads \| (\d+), 128", confine.MAX_PROCESSES),
        (r"processes, threads \| 16, (\d+)", watch.MAX_THREADS),
        (r"a file, descriptors \| (\d+) MB", confine.MAX_FILE_MB),
        (r"a file, descriptors \| 16 MB, (\d+)", confine.MAX_OPEN_FILES),
        (r"deleted ones too \| (\d+) MB", watch.MAX_DISK_MB),
        (r"deleted ones too \| 64 MB, ([\d,]+)", watch.MAX_FILES),
        (r"stdout, stderr \| (\d+) MB", sandbox.MAX_OUTPUT >> 20),
    ],
)
def test_the_page_shows_the_limits(said: str, value: int) -> None:
    (shown,) = re.findall(said, (ROOT / "docs/reference/sandbox.md").read_text())
    assert int(shown.replace(",", "")) == value
