"""The templates are complete plugins: copied, installed and found without one line changed in PARL."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both templates installed from copies, as pip installs a stranger's package."""
    pytest.importorskip("hatchling", reason="builds the templates without a network: pip install hatchling")
    folder = tmp_path_factory.mktemp("templates")
    for kind in ("envs", "rewards"):
        shutil.copytree(ROOT / kind / "template", folder / kind, ignore=shutil.ignore_patterns("__pycache__"))
    options = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--target", str(folder / "site")]
    run(folder, sys.executable, "-m", "pip", "install", *options, str(folder / "envs"), str(folder / "rewards"))
    return folder / "site"


def run(cwd: Path, *command: str, path: Path | None = None) -> str:
    """The command's stdout, in a folder that is not the checkout and with `path` for Python to import from."""
    roots = [path, ROOT, ROOT / "envs", ROOT / "rewards"] if path else []
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, roots)), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    result = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def parl(site: Path, *args: str) -> str:
    return run(site.parent, sys.executable, "-m", "parl.cli", *args, path=site)


def test_the_environment_is_listed(site: Path) -> None:
    ids = [line.split()[0] for line in parl(site, "envs", "list").splitlines()]
    assert {"calc/Calc-v0", "parl/WideSearch-v0"} <= set(ids)


def test_the_environment_passes_the_check(site: Path) -> None:
    out = parl(site, "envs", "check", "calc/Calc-v0", "num=5")
    assert "tool lookup" in out
    assert "BAD" not in out


def test_the_reward_is_listed_and_shown(site: Path) -> None:
    names = [line.split()[0] for line in parl(site, "rewards", "list").splitlines()]
    assert {"brevity", "outcome"} <= set(names)
    assert "knobs: limit: int = 400" in parl(site, "rewards", "show", "brevity")


def test_a_config_uses_both(site: Path) -> None:
    config = site.parent / "mine.yaml"
    config.write_text(
        "name: mine\nenv: {id: calc/Calc-v0, kwargs: {num: 6}}\n"
        "reward: {terms: {outcome: {}, brevity: {weight: 0.1, limit: 200}}}\n"
    )
    assert "calc/Calc-v0 (tools: lookup), rewards: outcome, brevity" in parl(site, "config", "check", str(config))


@pytest.mark.parametrize("kind", ["envs", "rewards"])
def test_the_templates_own_tests_pass(site: Path, kind: str) -> None:
    folder = site.parent / kind
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(folder), "tests"]
    assert " passed" in run(folder, *command, path=site)
