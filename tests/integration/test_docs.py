"""The documentation, typed in: files that a page shows are written, commands that it shows are run.

A page shows a file as its name in backticks and a colon, then a fenced block. Commands stand in fenced `bash` blocks.
Those that would take long are run in a cheaper form, which `cheap` gives: the same arguments, but nothing is trained.
Everything happens in one folder that looks like a checkout with a finished quickstart; the run in it is a smoke run.
"""

from __future__ import annotations

import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from parl.cli import main as cli
from tests.support.helpers import ROOT

pytestmark = [pytest.mark.integration, pytest.mark.slow]

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
FILE = re.compile(r"^`([\w./-]+\.\w+)`:\n\n```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BASH = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RUN = (
    "parl ",
    "python scripts/",
    "python examples/",
    "python first_env.py",
    "python look.py",
    "pytest ",
)  # others (make, pip, git) are not run


def commands() -> list[tuple[str, str]]:
    """(page, command) of every command that a page shows, without its comment, each once."""
    found = []
    for page in PAGES:
        for block in BASH.findall(page.read_text()):
            lines = block.replace("\\\n", " ").splitlines()
            found += [
                (page.name, re.sub(r"\s+#.*", "", line)) for line in lines if line.startswith(RUN)
            ]
    return list(
        {command.replace(" --dry-run", ""): (page, command) for page, command in found}.values()
    )


def cheap(words: list[str], target: Path) -> list[str]:
    """What is run instead of a command, as arguments of `python`.

    parl train, parl sft    `parl train ... --dry-run`: checks and sets up everything
    parl train --resume     `parl config check` of the config that it names
    parl eval               the same on one task
    parl envs new           its --help: the fixture has written what the page shows
    parl models fetch       its --help: test_models.py fetches, where the package is installed
    parl figures            the same with another output
    parl view, parl serve   their --help: they would serve until they are stopped (test_pages.py, test_gateway.py do)
    parl seeds              its --help: it would train five times (tests/training/test_seeds.py)
    scripts                 the --help of chaos.py and the benchmarks (test_chaos.py and test_bench.py run them)
    examples                the --help of plot_ablation.py (test_ablate.py draws)
    """
    program, *rest = words
    if program == "pytest":
        return ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", rest[0], *rest]
    if program == "python":
        script = Path(rest[0])
        if script.parent.name == "bench" or script.name in (
            "chaos.py",
            "scale.py",
            "plot_ablation.py",
        ):
            return [*rest, "--help"]
        return rest
    if rest[0] == "train" and "--resume" in rest:
        rest = ["config", "check", rest[1]]
    elif rest[0] in ("train", "sft"):
        rest = ["train", *(word for word in rest[1:] if word != "--dry-run"), "--dry-run"]
    elif rest[:2] == ["envs", "new"]:
        rest = ["envs", "new", "--help"]
    elif rest[:2] == ["models", "fetch"]:
        rest = ["models", "fetch", "--help"]
    elif rest[0] == "figures":
        rest += ["-o", str(target / "figures")]  # the last one counts
    elif rest[0] in ("view", "serve", "seeds"):
        rest = [rest[0], "--help"]
    elif rest[0] == "eval":
        rest += ["--tasks", "1"]  # the last one counts
    return ["-m", "parl.cli", *rest]


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pages' files, the shipped configs and scripts, a finished run, and the plugins installed."""
    pytest.importorskip(
        "hatchling", reason="builds the plugins without a network: pip install hatchling"
    )
    folder = tmp_path_factory.mktemp("docs")
    for name in ("configs", "scripts", "examples"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for page in PAGES:
        for name, text in FILE.findall(page.read_text()):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    for words in (shlex.split(command) for _, command in commands()):
        if words[:3] == ["parl", "envs", "new"]:
            run(folder, ["-m", "parl.cli", *words[1:]])
    plugins = [str(path.parent) for path in folder.glob("*/pyproject.toml")]
    options = [
        "--quiet",
        "--no-index",
        "--no-deps",
        "--no-build-isolation",
        "--target",
        str(folder / "site"),
    ]
    run(folder, ["-m", "pip", "install", *options, *plugins])
    run(folder, ["-m", "parl.cli", "train", "configs/smoke.yaml", "run_dir=runs/quickstart"])
    for seed, control in itertools.product(range(5), ("", "-single")):
        shutil.copytree(
            folder / f"runs/quickstart{control}", folder / f"runs/seeds/seed_{seed}{control}"
        )
    policy = max((folder / "runs/quickstart/checkpoints").glob("step_*")) / "policies" / "main"
    (folder / "models").mkdir()
    (folder / "models" / "smollm2").symlink_to(policy)  # a transformers folder like any other
    return folder


def run(folder: Path, arguments: list[str], codes: tuple[int, ...] = (0,)) -> str:
    roots = [folder / "site", ROOT, ROOT / "envs", ROOT / "rewards"]
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, roots)),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    env["PATH"] = os.pathsep.join(
        [str(Path(sys.executable).parent), env["PATH"]]
    )  # a page's `python` is this one
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )
    assert done.returncode in codes, f"{shlex.join(arguments)}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("page, command", commands())
def test_command(
    checkout: Path, page: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = shlex.split(command.partition(" | ")[0])
    if words[:2] == ["parl", "ablate"]:
        return ablate_without_runs(checkout, words, monkeypatch)
    codes = (
        (0, 1) if words == ["parl", "doctor"] else (0,)
    )  # a small machine is no fault of the page
    out = run(checkout, cheap(words, tmp_path), codes)
    assert "BAD" not in out


def ablate_without_runs(checkout: Path, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """All that `parl ablate` does, but for the runs themselves."""
    started: list[Any] = []
    monkeypatch.chdir(checkout)

    def record(jobs: list[Any], workers: int) -> list[Any]:
        started.extend(jobs)
        return []

    monkeypatch.setattr("parl.evaluation.ablation.runner.run_all", record)
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as exit_info:
        cli.main()
    assert not exit_info.value.code
    assert len({job.variant.label for job in started}) > 1


def test_the_pages_show_files_and_commands(checkout: Path) -> None:
    """So that a changed layout of the pages does not empty this test."""
    shown = [
        path
        for path in checkout.rglob("*")
        if path.is_file() and path.suffix in (".py", ".yaml", ".jsonl")
    ]
    assert (
        len([path for path in shown if "site" not in path.parts and "runs" not in path.parts]) >= 10
    )
    assert {page for page, _ in commands()} >= {
        "write-an-environment.md",
        "write-a-reward.md",
        "run-an-ablation.md",
    }


def test_the_environment_of_the_page_trains(checkout: Path) -> None:
    """The config of docs/how-to/write-an-environment.md, its cold start cut short."""
    stages = "cold_start={stages: [{name: s, data: {recall: 1, episode: 1}, until: {metric: accuracy/episode, "
    stages += "value: 0, max_steps: 2, every: 2}, tokens_per_step: 1000}]}"
    small = [
        "policies.main.tiny={hidden_size: 32, ff_size: 32}",
        "train={num_steps: 1, tasks_per_step: 1, group_size: 2}",
    ]
    few = ["eval.num_tasks=2", "env.tasks.test.num=2", "run_dir=runs/phone-smoke"]
    run(checkout, ["-m", "parl.cli", "train", "phone.yaml", stages, *small, *few])
    assert (checkout / "runs/phone-smoke/summary.json").is_file()
