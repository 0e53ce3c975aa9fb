"""The workflow on GitHub runs targets of the Makefile, on the Pythons that the package names."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import yaml

from tests.support.helpers import ROOT

WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
MAKEFILE = (ROOT / "Makefile").read_text()


def steps() -> list[dict[str, Any]]:
    return [step for job in WORKFLOW["jobs"].values() for step in job["steps"]]


def test_the_workflow_runs_targets_of_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z]+):.*## ", MAKEFILE, re.MULTILINE))
    commands = [step["run"] for step in steps() if "run" in step]
    called = set(re.findall(r"^make (\w+)", "\n".join(commands), re.MULTILINE))
    assert called == {"install", "check", "docs", "wheel"}
    assert called <= targets


def test_every_supported_python_is_checked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    prefix = "Programming Language :: Python :: "
    supported = [
        line.removeprefix(prefix) for line in project["classifiers"] if line.startswith(prefix)
    ]
    assert WORKFLOW["jobs"]["check"]["strategy"]["matrix"]["python"] == supported


def test_the_workflow_may_only_read() -> None:
    assert WORKFLOW["permissions"] == {"contents": "read"}


def test_pins_are_sorted_and_unique() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    names = [line.partition("==")[0].lower() for line in lines if not line.startswith("#")]
    assert names == sorted(set(names))
