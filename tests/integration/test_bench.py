"""The benchmarks run, and end with the JSON line that others read. At sizes that measure nothing."""

from __future__ import annotations

import json
import math
import re
import runpy
import sys
from typing import Any

import pytest

from parl_envs.search.wide_search import WideSearch
from tests.support.helpers import ROOT

pytestmark = [pytest.mark.integration, pytest.mark.slow]

BENCH = ROOT / "scripts" / "bench"
KEYS = {
    "overhead.py --episodes 8 --widths 1 3": {"ms_per_turn"},
    "width.py --episodes 1 --widths 1 64 --recorded 8 --repeats 1": {"cost_ratio_64"},
    "engine.py --episodes 2 --batch 8 --repeats 1": {"speedup"},
    "adapters.py --hidden 64 --layers 2": {"full_mb", "adapters_mb", "ratio"},
    "limit.py --episodes 2 --agents 4 --repeats 1": {"rollout_share", "learner_share"},
    "concurrency.py --agents 20 --width 4": {"num_agents", "rss_gib", "episodes_per_s"},
    "sandbox.py --runs 20 --concurrent 4 --seconds 0.1 --gigabytes 0.1": {
        *("runs", "leaked_processes", "leaked_folders", "leaked_descriptors"),
        *("run_ms", "bare_ms", "overhead_ms", "large_ms", "large_no_host_ms", "cores_share"),
    },
    "soak.py --episodes 80 --batch 10 --width 1": {"episodes", "mb_per_10k_episodes", "rss_mb"},
}
KEYS["checkpointing.py --hidden 256 --layers 2 --tokens 600"] = {
    f"{dtype}_{setting}_{unit}"
    for dtype in ("float32", "bfloat16")
    for setting in ("false", "selective", "true")
    for unit in ("mb", "s")
}
MINUTES = ("vs_trl.py", "overlap.py")
"""Those that train for minutes: only their arguments are read here."""


def bench(monkeypatch: pytest.MonkeyPatch, name: str, *args: str) -> None:
    """Run a script in this process: importing torch anew for each would take longer than all of them."""
    monkeypatch.syspath_prepend(str(BENCH))
    monkeypatch.setattr(sys, "argv", [name, *args])
    for method in (
        "step",
        "reset",
        "fork",
        "check_result",
        "subtask_score",
    ):  # overhead.py wraps them for good
        monkeypatch.setattr(WideSearch, method, getattr(WideSearch, method))
    runpy.run_path(str(BENCH / name), run_name="__main__")


@pytest.mark.parametrize("command", KEYS)
def test_the_last_line_is_one_json_object(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bench(monkeypatch, *command.split())
    lines = capsys.readouterr().out.splitlines()
    result: dict[str, Any] = json.loads(lines[-1])
    assert set(result) == KEYS[command]
    assert all(math.isfinite(v) for v in result.values())
    # what a small run adds may fit into memory that is there
    may_be_0 = re.compile("leaked_.*|.*_mb|mb_per_10k_episodes")
    assert all(v > 0 for k, v in result.items() if k == "rss_mb" or not may_be_0.fullmatch(k))
    assert all(v == 0 for k, v in result.items() if k.startswith("leaked_"))
    assert len(lines) >= 3  # a table above it


def test_concurrency_holds_all_agents_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bench(monkeypatch, "concurrency.py", "--agents", "12", "--width", "4")
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["num_agents"] == 12 + 3


@pytest.mark.parametrize("name", MINUTES)
def test_the_long_ones_say_what_they_take(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        bench(monkeypatch, name, "--help")
    assert not exit_.value.code
    assert "--steps" in capsys.readouterr().out


def test_every_benchmark_is_here() -> None:
    scripts = {path.name for path in BENCH.glob("*.py")} - {"common.py", "traffic.py"}
    assert scripts == {command.split()[0] for command in KEYS} | set(MINUTES)
