"""Build the wheel and use it in empty environments, in a folder without a checkout.

    python scripts/check_wheel.py              the light core, then [train]; about two minutes
    python scripts/check_wheel.py --light      the light core alone

It needs a package index. Versions are those of constraints.txt. Prints what was done and the sizes
on disk; ends with exit code 1 at the first thing that is not as it should be.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MB = 1e6


class Failure(Exception):
    """The wheel does not do what it should."""


class Environment:
    """An empty virtual environment, and a folder to work in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.work = folder / "work"
        venv.create(folder / "venv", with_pip=True)
        self.work.mkdir()

    def run(self, *command: str, exit_code: int = 0) -> str:
        """Run a program of the environment in its folder and return its output, errors included.

        Raises:
            Failure: it ended with another exit code.
        """
        # Nothing of the calling environment: a PYTHONPATH would bring the checkout in.
        variables = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        programs = self.folder / "venv" / "bin"
        done = subprocess.run(
            [str(programs / command[0]), *command[1:]],
            cwd=self.work,
            env=variables | {"PATH": f"{programs}:{os.environ['PATH']}"},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        if done.returncode != exit_code:
            raise Failure(
                f"{' '.join(command)} ended with exit code {done.returncode}, not {exit_code}:\n"
                f"{done.stdout}"
            )
        return done.stdout

    def install(self, *requirements: str) -> None:
        """Install with pip, pinned by constraints.txt."""
        pins = str(ROOT / "constraints.txt")
        self.run("python", "-m", "pip", "install", "--quiet", "-c", pins, *requirements)

    def size_mb(self) -> float:
        """Return the size of the environment on disk."""
        files = (self.folder / "venv").rglob("*")
        return sum(file.stat().st_size for file in files if file.is_file()) / MB


def build_wheel(folder: Path) -> Path:
    """Build the wheel of this checkout and return its path."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def check_light_core(wheel: Path, folder: Path) -> None:
    """Write, install and check plugins, and read configs; training names its extra."""
    light = Environment(folder)
    light.install(str(wheel))
    print(f"light core: {light.size_mb():.0f} MB with pip")

    expect(light.run("parl", "--version").strip() in wheel.name, "the version is the wheel's")
    light.run("parl", "envs", "new", "dice")
    light.install("-e", "./dice", "--no-deps")
    out = light.run("parl", "envs", "check", "dice/Dice-v0", "num=5")
    expect("BAD" not in out and "a swarm plays an episode" in out, "a new environment passes")
    light.run("parl", "rewards", "new", "short-answers")
    light.install("-e", "./short-answers", "--no-deps")
    expect("short_answers" in light.run("parl", "rewards", "list"), "a new reward is listed")

    expect("quickstart" in light.run("parl", "configs", "list"), "configs ship")
    light.run("parl", "config", "check", "quickstart")
    light.run("parl", "configs", "copy", "smoke", "--to", "mine.yaml")
    light.run("parl", "config", "check", "mine.yaml", "seed=1")
    light.run("parl", "doctor")

    for command in ("train", "sft", "eval"):
        out = light.run("parl", command, "smoke", exit_code=2)
        expect("pip install 'parl-swarm[train]'" in out, f"parl {command} names its extra")
        expect("Traceback" not in out, f"parl {command} shows no traceback")
    expect(not (light.work / "runs").exists(), "nothing was written")


def check_train(wheel: Path, folder: Path) -> None:
    """Train a shipped config by name with `[train]` alone, from the cold start to the report."""
    train = Environment(folder)
    train.install(f"{wheel}[train]")
    print(f"with [train]: {train.size_mb():.0f} MB")

    train.run("parl", "train", "smoke")
    run = train.work / "runs" / "smoke"
    summary = json.loads((run / "summary.json").read_text())
    expect(set(summary["heldout"]["trained"]) == {"swarm", "single"}, "the summary is complete")
    expect((run / "report.html").stat().st_size > MB, "there is a report")
    train.run("parl", "eval", "runs/smoke", "--tasks", "2", "--json")
    out = train.run("parl", "train", "quickstart", exit_code=2)
    expect("pip install 'parl-swarm[wandb]'" in out, "tracking names its extra")


def expect(is_so: bool, what: str) -> None:
    """Print what holds.

    Raises:
        Failure: it does not hold.
    """
    if not is_so:
        raise Failure(f"This does not hold: {what}")
    print(f"ok  {what}")


def main() -> None:
    """Build the wheel and run the checks."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--light", action="store_true", help="check the light core alone")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel = build_wheel(folder)
        print(f"{wheel.name}: {wheel.stat().st_size / MB:.1f} MB")
        try:
            check_light_core(wheel, folder / "light")
            if not options.light:
                check_train(wheel, folder / "train")
        except Failure as failure:
            sys.exit(str(failure))


if __name__ == "__main__":
    main()
