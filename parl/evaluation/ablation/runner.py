"""The runs of an ablation: each a `parl train` process, several at once, in an order that can stop and go on.

A run that has a summary is not run again, and one that was begun is resumed, so a stopped ablation
goes on with the same command. Variants whose cold start would come out the same share it, seed by
seed: one run trains it, the others copy it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from parl.config import Config, load
from parl.core.errors import CheckpointError, ConfigError
from parl.core.progress import Progress
from parl.evaluation.ablation.analysis import VariantResults
from parl.evaluation.ablation.variants import Variant
from parl.runs.folder import is_locked, write_atomic

POLL_S = 0.5
PROGRESS_EVERY_S = 30.0
STOP_S = 180.0
"""How long a stopped run may take to write its checkpoint."""


@dataclass(frozen=True, slots=True, eq=False)
class VariantRun:
    """A variant with a seed.

    All state of the run is read from its folder, since the process that runs it may have been started
    by an earlier call of the ablation.
    """

    variant: Variant
    seed: int
    path: Path
    cold_start_key: str | None
    """Equal for runs whose cold start comes out the same; None without a cold start."""

    @property
    def name(self) -> str:
        return f"{self.variant.label} seed {self.seed}"

    @property
    def log(self) -> Path:
        """What the process prints."""
        return self.path.with_name(f"{self.path.name}.log")

    @property
    def begun(self) -> bool:
        return (self.path / "config.resolved.yaml").is_file()

    @property
    def done(self) -> bool:
        return (self.path / "summary.json").is_file()

    @property
    def in_use(self) -> bool:
        """Whether a process holds the folder, such as one that outlived its ablation."""
        return is_locked(self.path)

    @property
    def has_cold_start(self) -> bool:
        return (self.path / "checkpoints" / "cold_start" / "manifest.json").is_file()

    @property
    def cold_start_evaluated(self) -> bool:
        return (self.path / "eval" / "cold_start.json").is_file()

    def steps(self) -> int:
        """Return the number of RL steps that are done."""
        file = self.path / "metrics.jsonl"
        return len(file.read_bytes().splitlines()) if file.is_file() else 0


# --- the folders of variants -------------------------------------------------------------


def write_config(folder: Path, variant: Variant) -> None:
    """Write the variant's config to the file that its runs read.

    Raises:
        ConfigError: the folder has runs of another config.
    """
    # A baseline is a further training with each run. Nothing in an ablation compares with it.
    tree = variant.config.model_dump(mode="json") | {"baseline": None, "run_dir": None}
    file = folder / "config.yaml"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(file, yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))
        return
    stored = load(file).model_dump(mode="json")
    different = sorted(key for key in tree if tree[key] != stored[key])
    if different:
        raise ConfigError(
            f"{folder} holds runs of another config (different: {', '.join(different)}). Delete that "
            "folder, or give the base config another name: `name` makes the folder of an ablation."
        )


def make_run(folder: Path, variant: Variant, seed: int) -> VariantRun:
    """Return the run of a variant with a seed, in the ablation's folder."""
    path = folder / variant.folder / f"seed_{seed}"
    return VariantRun(variant, seed, path, cold_start_key(variant.config, seed))


def cold_start_key(config: Config, seed: int) -> str | None:
    """Return everything that the cold start depends on, as text; None without a cold start.

    Settings of RL alone are not in it, so variants of a reward or a learning rate share theirs.
    """
    if config.cold_start is None:
        return None
    tree = config.model_dump(mode="json")
    for part in tree["env"].get("mix", [tree["env"]]):
        del part["tasks"]["train"]  # demonstrations are no tasks of a split
        part.pop("weight", None)  # how often RL asks for an ability
    for policy in tree["policies"].values():
        del policy["optimizer"]  # each stage has its own
    for role in tree["roles"].values():
        del role["trainable"]
        del role["sampling"]["temperature"]  # gates are greedy
        if config.cold_start.policy is not None:
            del role["policy"]  # all have the same weights
    del tree["swarm"]["critical_step_budget"]  # lifted in demonstrations and evaluations
    sections = ("env", "policies", "roles", "swarm", "clock", "cold_start")
    relevant = {section: tree[section] for section in sections}
    # Gates are evaluated on the first num_tasks tasks, so they decide when a stage ends.
    return json.dumps([seed, relevant, tree["eval"]["num_tasks"]], sort_keys=True)


# --- running -----------------------------------------------------------------------------


def num_workers(variants: Sequence[Variant]) -> int:
    """Return how many runs fit on this machine at once: one for each `threads` cores."""
    # Where the process may not use all cores (a container, taskset), the affinity says so.
    if hasattr(os, "sched_getaffinity"):
        num_cores = len(os.sched_getaffinity(0))
    else:
        num_cores = os.cpu_count() or 1
    threads = max(variant.config.threads for variant in variants)
    return max(1, num_cores // threads)


def run_all(runs: Sequence[VariantRun], max_running: int) -> list[VariantRun]:
    """Run everything that is not done yet.

    Args:
        runs: in the order in which they should start.
        max_running: processes at once.
    Returns:
        The runs that failed. A failure does not stop the others.
    Raises:
        SystemExit: Ctrl-C or SIGTERM; the runs were stopped, each with a checkpoint.
    """
    unfinished = [run for run in runs if not run.done]
    num_done = len(runs) - len(unfinished)
    say(f"{len(runs)} runs, {num_done} done before; {max_running} at once.")
    for run in unfinished:
        if run.in_use:
            say(f"{run.name} is still running from an earlier start; waiting for it, log {run.log}")

    num_steps = sum(run.variant.config.train.num_steps for run in unfinished)
    steps_before = _num_steps_done(unfinished)
    running: dict[VariantRun, subprocess.Popen[bytes]] = {}
    failed: list[VariantRun] = []
    last_report = time.monotonic()
    num_steps_left = max(num_steps - steps_before, 1)
    with _stopping(running), Progress("ablation, steps", num_steps_left) as bar:
        waiting = list(unfinished)
        while waiting or running:
            _collect_ended(running, failed)
            _drop_done(waiting)
            _start_ready(waiting, runs, running, max_running)

            steps = _num_steps_done(unfinished) - steps_before
            is_due = time.monotonic() - last_report >= PROGRESS_EVERY_S
            if running and steps > 0 and is_due:
                last_report = time.monotonic()
                bar.advance("; ".join(map(_position, running)), to=steps)
            if waiting or running:
                time.sleep(POLL_S)
    return failed


def _num_steps_done(runs: Sequence[VariantRun]) -> int:
    return sum(run.steps() for run in runs)


def _collect_ended(
    running: dict[VariantRun, subprocess.Popen[bytes]], failed: list[VariantRun]
) -> None:
    """Move the runs whose process has ended out of `running`, into `failed` where it failed."""
    for run, process in list(running.items()):
        exit_code = process.poll()
        if exit_code is None:
            continue
        del running[run]
        if exit_code == 0 and run.done:
            say(f"done: {run.name}")
            continue
        failed.append(run)
        say(f"FAILED: {run.name}, exit code {exit_code}, see {run.log}: {_last_line(run.log)}")


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    for line in reversed(lines):
        if line.strip():
            return line.strip()
    return "(empty)"


def _drop_done(waiting: list[VariantRun]) -> None:
    """Remove the runs that a process of an earlier ablation has finished."""
    for run in list(waiting):
        if run.done:
            say(f"done elsewhere: {run.name}")
            waiting.remove(run)


def _start_ready(
    waiting: list[VariantRun],
    runs: Sequence[VariantRun],
    running: dict[VariantRun, subprocess.Popen[bytes]],
    max_running: int,
) -> None:
    """Start runs while there is room and one can start."""
    while len(running) < max_running:
        ready = _next(waiting, runs, running)
        if ready is None:
            return
        run, source = ready
        waiting.remove(run)
        running[run] = _start(run, source)


def _next(
    waiting: Sequence[VariantRun], runs: Sequence[VariantRun], running: Mapping[VariantRun, Any]
) -> tuple[VariantRun, VariantRun | None] | None:
    """Return the first run that can start, and the run whose cold start it copies (or None).

    None where all wait for others: for a process that holds their folder, or for a cold start.
    """
    for run in waiting:
        if run.in_use:
            continue
        if run.begun or run.cold_start_key is None:
            return run, None
        peers = [
            peer for peer in runs if peer is not run and peer.cold_start_key == run.cold_start_key
        ]
        for peer in peers:
            # The copy includes the evaluation of the cold start, so it waits for that as well. A
            # peer that stopped between the two still has a good checkpoint.
            if peer.has_cold_start and (peer.cold_start_evaluated or peer not in running):
                return run, peer
        # No peer trains the shared cold start, so this run does.
        if not any(peer in running or peer.in_use for peer in peers):
            return run, None
    return None


def command(run: VariantRun, source: VariantRun | None) -> list[str]:
    """Return the run's command line: resumed where it was begun, else new.

    Args:
        run: the run.
        source: the run whose cold start a new run copies.
    """
    train = [sys.executable, "-m", "parl.cli", "train"]
    if run.begun:
        return [*train, str(run.path / "config.resolved.yaml"), "--resume", str(run.path)]
    config = run.path.parent / "config.yaml"
    ablation_name = run.path.parents[1].name
    settings = {
        "run_dir": str(run.path),
        "seed": run.seed,
        "name": run.name,
        "tracking.wandb.group": run.variant.config.tracking.wandb.group or ablation_name,
    }
    if source is not None:
        settings["cold_start.from_run"] = str(source.path)
    overrides = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    return [*train, str(config), *overrides]


def _start(run: VariantRun, source: VariantRun | None) -> subprocess.Popen[bytes]:
    verb = "resumed" if run.begun else "started"
    origin = f" (cold start of {source.name})" if source else ""
    say(f"{verb}: {run.name}{origin}, log {run.log}")
    env = {**os.environ, "OMP_NUM_THREADS": str(run.variant.config.threads)}
    with run.log.open("ab") as log:
        # In a new session: the terminal sends Ctrl-C to this process alone, which stops each run
        # once.
        return subprocess.Popen(
            command(run, source),
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env=env,
            start_new_session=True,
        )


def _position(run: VariantRun) -> str:
    """Example: `tau=1 seed 0 step 3/24`."""
    step = run.steps()
    if step or run.has_cold_start:
        return f"{run.name} step {step}/{run.variant.config.train.num_steps}"
    return f"{run.name} cold start"


# --- stopping ----------------------------------------------------------------------------


@contextmanager
def _stopping(running: Mapping[VariantRun, subprocess.Popen[bytes]]) -> Iterator[None]:
    """Stop the runs on Ctrl-C and SIGTERM, each after its step and with a checkpoint; exit code 1."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    old_handler = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        say(
            f"\nStopping {len(running)} runs; those in training save a checkpoint. "
            "The same command goes on with them."
        )
        raise SystemExit(1) from None
    finally:
        _stop(running)
        signal.signal(signal.SIGTERM, old_handler)


def _stop(running: Mapping[VariantRun, subprocess.Popen[bytes]]) -> None:
    alive: list[subprocess.Popen[bytes]] = []
    for run, process in running.items():
        if process.poll() is not None:
            continue
        # SIGINT makes a run in its RL steps write a checkpoint. Before its first step there is
        # nothing to write, so it just ends.
        process.send_signal(signal.SIGINT if run.steps() else signal.SIGTERM)
        alive.append(process)
    deadline = time.monotonic() + STOP_S
    try:
        for process in alive:
            process.wait(timeout=max(0.0, deadline - time.monotonic()))
    except (KeyboardInterrupt, subprocess.TimeoutExpired):
        # A second Ctrl-C, or a run that does not end: no more patience.
        for process in alive:
            process.kill()
            process.wait()


# --- results -----------------------------------------------------------------------------


def read_results(variant: Variant, runs: Sequence[VariantRun]) -> VariantResults:
    """Read the held-out results of a variant's finished runs.

    Raises:
        CheckpointError: a summary cannot be read.
    """
    results: dict[int, Mapping[str, Mapping[str, float]]] = {}
    fingerprints: set[str] = set()
    for run in runs:
        if not run.done:
            continue
        try:
            summary = json.loads((run.path / "summary.json").read_text())
            splits = json.loads((run.path / "tasks.json").read_text())
            results[run.seed] = summary["heldout"]["trained"][variant.config.swarm.mode]
            fingerprints.add(splits[summary["split"]]["fingerprint"])
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"{run.path} has a summary that cannot be read ({error!r}); "
                "delete that folder and run the same command again."
            ) from None
    return VariantResults(variant.label, variant.folder, results, frozenset(fingerprints))


def say(text: str) -> None:
    """Print a line on stderr, at once."""
    print(text, file=sys.stderr, flush=True)
