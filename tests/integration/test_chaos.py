"""The fault test in its short form: workers and the driver are killed, the environment misbehaves, nothing is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.helpers import ROOT

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.mark.parametrize("mode, seed", [("async", 0), ("sync", 1)])
def test_a_run_survives_and_accounts_for_everything(tmp_path: Path, mode: str, seed: int) -> None:
    shape = ["--kills", "3", "--steps", "4", "--every", "4", "--mode", mode, "--seed", str(seed)]
    command = [
        sys.executable,
        str(ROOT / "scripts" / "chaos.py"),
        *shape,
        "--run",
        str(tmp_path / "run"),
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    result = json.loads(ended.stdout.splitlines()[-1])
    assert result["accounted"]
    assert result["hangs"] == 0
    assert result["steps"] == 4
    assert result["kills"] >= 1
    assert result["failures"]["environment"] > 0
