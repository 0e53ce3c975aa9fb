"""The import contract of pyproject.toml refuses what it is meant to refuse.

Each case plants imports into a copy of the sources and runs the project's own contracts on it.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("parl", "envs/parl_envs", "rewards/parl_rewards")
LINT = "from importlinter.cli import lint_imports_command; lint_imports_command()"

pytest.importorskip("importlinter")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of pyproject.toml and of the three packages' Python files."""
    copy = tmp_path_factory.mktemp("contract")
    shutil.copy(ROOT / "pyproject.toml", copy)
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            target = copy / file.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    return copy


def lint(sources: Path) -> subprocess.CompletedProcess[str]:
    """Run the contracts on the copy. Its paths come first, so that the checkout itself is not read."""
    paths = [sources, sources / "envs", sources / "rewards"]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    return subprocess.run(
        [sys.executable, "-c", LINT, "--no-logo"],
        cwd=sources,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )


def lint_with(sources: Path, additions: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Append each text to its file, which may be new, run the contracts, and undo it."""
    originals: dict[Path, str | None] = {}
    for name, text in additions.items():
        file = sources / name
        originals[file] = file.read_text() if file.exists() else None
        file.write_text(f"{originals[file] or ''}\n{text}\n")
    try:
        return lint(sources)
    finally:
        for file, original in originals.items():
            if original is None:
                file.unlink()
            else:
                file.write_text(original)


def test_the_sources_as_they_are_keep_every_contract(sources: Path) -> None:
    result = lint(sources)
    assert result.returncode == 0, result.stdout
    assert " 0 broken" in result.stdout


UPWARD = {
    "at the top": "from parl.config.schema import Config",
    "in a function": "def function():\n    from parl.config.schema import Config",
    "for type checkers": (
        "from typing import TYPE_CHECKING\n\n"
        "if TYPE_CHECKING:\n    from parl.config.schema import Config"
    ),
}


@pytest.mark.parametrize("text", UPWARD.values(), ids=UPWARD.keys())
def test_an_import_from_a_folder_above_is_refused(sources: Path, text: str) -> None:
    result = lint_with(sources, {"parl/core/seeds.py": text})
    assert result.returncode == 1
    assert "Folders of parl BROKEN" in result.stdout
    assert "parl.core.seeds -> parl.config.schema" in result.stdout


CASES = {
    "folders on one level": (
        "Folders of parl",
        {"parl/env/tools.py": "import parl.rewards.terms"},
    ),
    "a module without a place in the order": (
        "Folders of parl",
        {"parl/attic.py": "import parl.core.seeds"},
    ),
    "two files in a circle": (
        "No circles, among files or folders",
        {
            "parl/core/first.py": "import parl.core.second",
            "parl/core/second.py": "import parl.core.first",
        },
    ),
    "two files in a circle, for type checkers only": (
        "No circles, among files or folders",
        {
            "parl/core/first.py": "import parl.core.second",
            "parl/core/second.py": (
                "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    import parl.core.first"
            ),
        },
    ),
    "a file and a folder in a circle, though no two files are": (
        "No circles, among files or folders",
        {"parl/rollout/swarm.py": "import parl.rollout.pool.watchdog"},
    ),
    "a shipped environment in the platform": (
        "The platform knows no shipped environment or reward",
        {"parl/cli/main.py": "def function():\n    import parl_envs"},
    ),
    "the learner in a rollout": (
        "Rollouts know no learner",
        {"parl/rollout/swarm.py": "import parl.learner.loss"},
    ),
}


@pytest.mark.parametrize("contract, additions", CASES.values(), ids=CASES.keys())
def test_each_contract_refuses(sources: Path, contract: str, additions: dict[str, str]) -> None:
    result = lint_with(sources, additions)
    assert result.returncode == 1
    assert f"{contract} BROKEN" in result.stdout
