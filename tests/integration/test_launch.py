"""The launch scripts check the config and say what they would run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.helpers import ROOT

pytestmark = pytest.mark.integration
SCRIPTS = {"local.sh": "parl train", "cluster.sh": "ray job submit", "slurm.sh": "parl train"}


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("wrong", [False, True])
def test_a_dry_run(name: str, wrong: bool, tmp_path: Path) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    more = [
        f"run_dir={tmp_path}/run",
        "rollout.num_workers=3",
        *(["train.num_stps=1"] if wrong else []),
    ]
    ended = subprocess.run(
        [str(ROOT / "scripts" / "launch" / name), "configs/smoke.yaml", *more],
        cwd=ROOT,
        env={**os.environ, "DRY_RUN": "1", "PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == (2 if wrong else 0), ended.stderr
    assert ended.stdout.startswith(SCRIPTS[name])
    assert (
        ("Did you mean 'num_steps'" in ended.stderr)
        if wrong
        else ("ok: configs/smoke.yaml" in ended.stdout)
    )
    assert not (tmp_path / "run").exists()
