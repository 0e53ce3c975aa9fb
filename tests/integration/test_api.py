"""`parl.train` in a script: it leaves the process as it was and depends on nothing before it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.helpers import ROOT

pytestmark = pytest.mark.integration

# A cost of tokens gives the untrained policy something to learn: without it, runs would agree by
# standing still.
SHORT = (
    "baseline=null",
    "train.num_steps=2",
    "eval.every=2",
    "eval.decoding=[greedy]",
    "env.tasks.test.num=2",
    "reward.terms.tokens={weight: 1.0, per: 100}",
    "roles.orchestrator.sampling={max_tokens: 200, temperature: 3.0}",
    "train.group_size=4",
)

SCRIPT = '''
import asyncio, gc, json, logging, os, random, signal, sys, threading
import numpy as np, torch
from transformers.utils import logging as transformers_logging
import parl


def settings():
    """What a training could leave changed, as text."""
    blocked = (signal.SIGKILL, signal.SIGSTOP)
    signals = [repr(signal.getsignal(number)) for number in signal.Signals if number not in blocked]
    loggers = {
        name: [logger.level, logger.disabled, logger.propagate, repr(logger.handlers)]
        for name, logger in logging.root.manager.loggerDict.items()
        if isinstance(logger, logging.Logger)
    }
    values = {
        "signals": signals,
        "variables": dict(os.environ),
        "folder": os.getcwd(),
        "path": sys.path,
        "loggers": loggers,
        "root logger": [logging.root.level, repr(logging.root.handlers)],
        "threads": [thread.name for thread in threading.enumerate()],
        "event loops": repr(asyncio.get_event_loop_policy()),
        "hooks": repr([sys.excepthook, threading.excepthook, sys.stdout, sys.stderr]),
        "torch threads": torch.get_num_threads(),
        "torch": repr([torch.get_default_dtype(), torch.is_grad_enabled()]),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "torch rng": torch.get_rng_state().tolist(),
        "numpy rng": repr(np.random.get_state()),
        "python rng": repr(random.getstate()),
        "transformers": [
            transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
        ],
        "numpy errors": np.geterr(),
        "garbage": [gc.isenabled(), gc.get_threshold()],
    }
    return json.loads(json.dumps(values))


FIRST_IMPORTS = ("variables", "loggers", "threads")  # libraries add to these when they are imported
config, folder, seeds, overrides = sys.argv[1], sys.argv[2], sys.argv[3].split(","), sys.argv[4:]
torch.set_num_threads(2)
changes = []
for number, seed in enumerate(seeds):
    random.seed(f"user {number}"), np.random.seed(number + 7), torch.manual_seed(number + 7)
    before = settings()
    summary = parl.train(config, [*overrides, f"seed={seed}", f"run_dir={folder}/{seed}"])
    assert summary.path.name == seed
    after = settings()
    if number == 0:
        for name in FIRST_IMPORTS:
            before.pop(name)
    changes.append([name for name in before if before[name] != after[name]])
    assert "OMP_NUM_THREADS" not in os.environ
print(json.dumps(changes))
'''


def train_in_a_process(folder: Path, seeds: str) -> list[list[str]]:
    """Train the smoke config with one seed after the other, in one process.

    Returns:
        For each training the settings that it changed.
    """
    script = folder / "script.py"
    script.parent.mkdir()
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), "configs/smoke.yaml", str(folder), seeds, *SHORT]
    environment = {"PYTHONPATH": ":".join(sys.path), "PATH": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout.splitlines()[-1]))


def metrics_of(run: Path) -> list[dict[str, Any]]:
    """The metrics that do not depend on the clock."""
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    comparable = []
    for step in steps:
        is_timing = {name: name.startswith(("time/", "system/")) for name in step}
        comparable.append(
            {k: v for k, v in step.items() if not is_timing[k] and not k.endswith("_per_s")}
        )
    return comparable


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[list[str]]]:
    """A run that was the second of its process, the same run in a fresh one, changed settings."""
    folder = tmp_path_factory.mktemp("api")
    changes = train_in_a_process(folder / "twice", "1,0")
    train_in_a_process(folder / "fresh", "0")
    return folder / "twice" / "0", folder / "fresh" / "0", changes


def test_the_second_training_of_a_process_equals_a_fresh_one(
    trained: tuple[Path, Path, list[list[str]]],
) -> None:
    second, fresh, _ = trained
    assert metrics_of(second) == metrics_of(fresh)
    assert any(step["policy/main/grad_norm"] > 0 for step in metrics_of(fresh))
    files = sorted(path.relative_to(fresh) for path in fresh.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(second) for path in second.rglob("*") if path.is_file())
    compared = [
        path
        for path in files
        if path.suffix == ".safetensors" or path.parts[0] in ("episodes", "eval", "tasks.json")
    ]
    assert len(compared) >= 8
    for path in compared:
        assert (second / path).read_bytes() == (fresh / path).read_bytes(), path


def test_a_training_leaves_the_settings_of_the_process(
    trained: tuple[Path, Path, list[list[str]]],
) -> None:
    _, _, changes = trained
    assert changes == [[], []]
