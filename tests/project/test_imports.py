"""Importing a package stays cheap, so that `parl --help`, a config check or a Ray worker starts at once."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "ray", "transformers")


@pytest.mark.parametrize("package", ["parl", "parl_envs", "parl_rewards"])
def test_import_pulls_in_nothing_heavy(package: str) -> None:
    code = f"import sys, {package}; print(*(name for name in {HEAVY} if name in sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [], f"importing {package} also imports {result.stdout.strip()}"
