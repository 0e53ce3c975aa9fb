"""The templates are complete plugins: written under another name by the wheel that is built here, installed, found and
trained without one line changed in PARL.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.helpers import ROOT

pytestmark = pytest.mark.integration

TEMPLATES = [
    (kind, path) for kind in ("envs", "rewards") for path in (ROOT / kind / "template").rglob("*")
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    pytest.importorskip(
        "hatchling", reason="builds wheels without a network: pip install hatchling"
    )
    folder = tmp_path_factory.mktemp("wheel")
    run(ROOT, sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder))
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with PARL from its wheel, and two plugins that it wrote, installed as pip installs a stranger's."""
    folder = tmp_path_factory.mktemp("new")
    site = folder / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    parl(site, "envs", "new", "dice-game")
    parl(site, "rewards", "new", "short-answers", "--dir", "rewards/short")
    options = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--target", str(site)]
    run(folder, sys.executable, "-m", "pip", "install", *options, "./dice-game", "./rewards/short")
    return site


def run(cwd: Path, *command: str, path: Path | None = None) -> str:
    """The command's stdout, with `path` for Python to import from."""
    env = {**os.environ, "PYTHONPATH": str(path or ""), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    result = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def parl(site: Path, *args: str) -> str:
    """In a folder that is not the checkout."""
    return run(site.parent, sys.executable, "-m", "parl.cli", *args, path=site)


def test_the_wheel_carries_the_templates(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        f"parl/templates/{kind}/{path.relative_to(ROOT / kind / 'template').as_posix()}"
        for kind, path in TEMPLATES
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert len(expected) == 10
    assert {name for name in names if name.startswith("parl/templates/")} == expected


def test_what_runs_here_is_the_wheel(site: Path) -> None:
    code = "import parl, parl_envs; print(parl.__file__, parl_envs.__file__)"
    assert run(site.parent, sys.executable, "-c", code, path=site).split() == [
        str(site / "parl" / "__init__.py"),
        str(site / "parl_envs" / "__init__.py"),
    ]


def test_the_environment_is_listed(site: Path) -> None:
    ids = [line.split()[0] for line in parl(site, "envs", "list").splitlines()]
    assert {"dice_game/DiceGame-v0", "parl/WideSearch-v0"} <= set(ids)


def test_the_environment_passes_the_check(site: Path) -> None:
    out = parl(site, "envs", "check", "dice_game/DiceGame-v0", "num=5")
    assert "tool lookup" in out
    statuses = [
        line[:4].strip() for line in out.split("\n\n")[-1].splitlines() if not line.startswith(" ")
    ]
    assert len(statuses) == 10
    assert set(statuses) <= {"ok", "slow"}, out


def test_its_smoke_config_trains(site: Path) -> None:
    parl(site, "train", "dice-game/smoke.yaml")
    summary = json.loads((site.parent / "runs/dice-game-smoke/summary.json").read_text())
    assert summary["heldout"]["trained"]["swarm"]["greedy"]["num_tasks"] == 4
    steps = (site.parent / "runs/dice-game-smoke/metrics.jsonl").read_text().splitlines()
    assert len(steps) == 2


def test_the_reward_is_listed_and_shown(site: Path) -> None:
    names = [line.split()[0] for line in parl(site, "rewards", "list").splitlines()]
    assert {"short_answers", "outcome"} <= set(names)
    assert "limit: int = 400" in parl(site, "rewards", "show", "short_answers")


def test_a_config_uses_both(site: Path) -> None:
    config = site.parent / "mine.yaml"
    config.write_text(
        "name: mine\nenv: {id: dice_game/DiceGame-v0, kwargs: {num: 6}}\n"
        "reward: {terms: {outcome: {}, short_answers: {weight: 0.1, limit: 200}}}\n"
    )
    shown = "dice_game/DiceGame-v0 (tools: lookup), rewards: outcome, short_answers"
    assert shown in parl(site, "config", "check", str(config))


@pytest.mark.parametrize("folder", ["dice-game", "rewards/short"])
def test_the_templates_own_tests_pass(site: Path, folder: str) -> None:
    path = site.parent / folder
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(path),
        "tests",
    ]
    assert " passed" in run(path, *command, path=site)


def test_a_name_that_is_installed_is_taken(site: Path) -> None:
    command = [sys.executable, "-m", "parl.cli", "envs", "new", "dice_game", "--dir", "again"]
    env = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        command, cwd=site.parent, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "The module 'dice_game' is installed already" in done.stderr
    assert not (site.parent / "again").exists()
