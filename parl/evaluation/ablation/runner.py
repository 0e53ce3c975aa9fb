"""`parl ablate`: variants of a config trained over the same seeds, and what the differences allow to say.

In: a base config and either values of its keys or further configs. Out: a folder `ablate-NAME` beside the base's run
folder, with a run for each variant and seed, the log of each, and ablation.json, ablation.md and ablation.html.

Each run is a `parl train` process of its own; as many run at once as there are cores for their threads. A run that has
a summary is not run again and one that was begun is resumed, so a stopped ablation goes on with the same command.
Variants whose cold start would come out the same share it, seed by seed: one trains it, the others copy it.
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
    """One run: a variant with a seed. Everything about its progress is read from its folder."""

    variant: Variant
    seed: int
    path: Path
    cold_start_key: str | None
    """Equal for runs whose cold start comes out the same; None = there is nothing to share."""

    @property
    def name(self) -> str:
        return f"{self.variant.label} seed {self.seed}"

    @property
    def log(self) -> Path:
        return self.path.with_name(f"{self.path.name}.log")

    @property
    def done(self) -> bool:
        return (self.path / "summary.json").is_file()

    @property
    def in_use(self) -> bool:
        """Another process writes the run: one that outlived the ablation that started it, or another's."""
        return is_locked(self.path)

    @property
    def has_cold_start(self) -> bool:
        return (self.path / "checkpoints" / "cold_start" / "manifest.json").is_file()

    @property
    def cold_start_evaluated(self) -> bool:
        return (self.path / "eval" / "cold_start.json").is_file()

    def steps(self) -> int:
        file = self.path / "metrics.jsonl"
        return len(file.read_bytes().splitlines()) if file.is_file() else 0


# --- the variants ------------------------------------------------------------------------------------------------


def write_config(folder: Path, variant: Variant) -> None:
    """The variant's config, where its runs read it. Raises ConfigError when the folder was made with another one."""
    tree = variant.config.model_dump(mode="json") | {"baseline": None, "run_dir": None}
    file = folder / "config.yaml"
    if file.is_file():
        old = load(file).model_dump(mode="json")
        different = sorted(key for key in tree if tree[key] != old[key])
        if different:
            raise ConfigError(
                f"{folder} holds runs of another config (different: {', '.join(different)}). Delete that folder, or "
                "give the base config another name: `name` makes the folder of an ablation."
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(file, yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))


# --- the runs ----------------------------------------------------------------------------------------------------


def workers(variants: Sequence[Variant]) -> int:
    """How many runs fit on this machine at once."""
    usable = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return max(1, usable // max(v.config.threads for v in variants))


def cold_start_key(config: Config, seed: int) -> str | None:
    """Everything that the cold start depends on; None when there is none. RL's own settings are not in it."""
    if config.cold_start is None:
        return None
    tree = config.model_dump(mode="json")
    for part in tree["env"].get("mix", [tree["env"]]):
        del part["tasks"]["train"]  # demonstrations are no tasks of a split
        part.pop("weight", None)  # how often RL asks for an ability
    for policy in tree["policies"].values():
        del policy["optimizer"]  # a stage has its own
    for role in tree["roles"].values():
        del role["trainable"], role["sampling"]["temperature"]  # gates are greedy
        if config.cold_start.policy is not None:
            del role["policy"]  # all have the same weights
    del tree["swarm"]["critical_step_budget"]  # lifted in demonstrations and evaluations
    kept = {key: tree[key] for key in ("env", "policies", "roles", "swarm", "clock", "cold_start")}
    return json.dumps([seed, kept, tree["eval"]["num_tasks"]], sort_keys=True)


def make_job(folder: Path, variant: Variant, seed: int) -> VariantRun:
    return VariantRun(
        variant,
        seed,
        folder / variant.folder / f"seed_{seed}",
        cold_start_key(variant.config, seed),
    )


def run_all(jobs: Sequence[VariantRun], num_workers: int) -> list[VariantRun]:
    """Run what is not done yet. Returns the runs that failed; the others do not stop for them."""
    waiting = [job for job in jobs if not job.done]
    say(f"{len(jobs)} runs, {len(jobs) - len(waiting)} done before; {num_workers} at once.")
    for job in (job for job in waiting if job.in_use):
        say(f"{job.name} is still running from an earlier start; waiting for it, log {job.log}")
    running: dict[VariantRun, subprocess.Popen[bytes]] = {}
    failed: list[VariantRun] = []
    before = sum(job.steps() for job in waiting)
    total = sum(job.variant.config.train.num_steps for job in waiting) - before
    told = time.monotonic()
    with _stopping(running), Progress("ablation, steps", max(total, 1)) as bar:
        todo = list(waiting)
        while todo or running:
            for job in [j for j, process in running.items() if process.poll() is not None]:
                _ended(job, running.pop(job).returncode, failed)
            for job in [j for j in todo if j.done]:
                say(f"done elsewhere: {job.name}")
                todo.remove(job)
            while len(running) < num_workers and (ready := _next(todo, jobs, running)) is not None:
                job, source = ready
                todo.remove(job)
                running[job] = _start(job, source)
            steps = sum(job.steps() for job in waiting) - before
            if running and steps > 0 and time.monotonic() - told >= PROGRESS_EVERY_S:
                told = time.monotonic()
                bar.advance("; ".join(map(_where, running)), to=steps)
            if todo or running:
                time.sleep(POLL_S)
    return failed


def _next(
    todo: Sequence[VariantRun], jobs: Sequence[VariantRun], running: Mapping[VariantRun, Any]
) -> tuple[VariantRun, VariantRun | None] | None:
    """The first run that can start, and the one whose cold start it takes. None: all wait for others."""
    for job in todo:
        if job.in_use:
            continue
        begun = (job.path / "config.resolved.yaml").is_file()
        if begun or job.cold_start_key is None:
            return job, None
        peers = [j for j in jobs if j is not job and j.cold_start_key == job.cold_start_key]
        for peer in peers:
            if peer.has_cold_start and (peer.cold_start_evaluated or peer not in running):
                return job, peer
        if not any(peer in running or peer.in_use for peer in peers):
            return job, None
    return None


def command(job: VariantRun, source: VariantRun | None) -> list[str]:
    """The run's command line: resumed when it was begun, else new, with the cold start of `source` if there is one."""
    start = [sys.executable, "-m", "parl.cli", "train"]
    own = job.path / "config.resolved.yaml"
    if own.is_file():
        return [*start, str(own), "--resume", str(job.path)]
    config = job.path.parent / "config.yaml"
    group = job.variant.config.tracking.wandb.group or job.path.parents[1].name
    settings = {
        "run_dir": str(job.path),
        "seed": job.seed,
        "name": job.name,
        "tracking.wandb.group": group,
    }
    overrides = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    if source is not None:
        overrides.append(f"cold_start.from_run={json.dumps(str(source.path))}")
    return [*start, str(config), *overrides]


def _start(job: VariantRun, source: VariantRun | None) -> subprocess.Popen[bytes]:
    how = "resumed" if (job.path / "config.resolved.yaml").is_file() else "started"
    taken = f" (cold start of {source.name})" if source else ""
    say(f"{how}: {job.name}{taken}, log {job.log}")
    env = {**os.environ, "OMP_NUM_THREADS": str(job.variant.config.threads)}
    with job.log.open(
        "ab"
    ) as log:  # a session of its own: Ctrl-C reaches this process, which stops the runs once
        return subprocess.Popen(
            command(job, source),
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env=env,
            start_new_session=True,
        )


def _ended(job: VariantRun, code: int, failed: list[VariantRun]) -> None:
    if code == 0 and job.done:
        say(f"done: {job.name}")
        return
    failed.append(job)
    lines = [line for line in job.log.read_text(errors="replace").splitlines() if line.strip()]
    say(
        f"FAILED: {job.name}, exit code {code}, see {job.log}: {lines[-1].strip() if lines else '(empty)'}"
    )


def _where(job: VariantRun) -> str:
    step = job.steps()
    what = (
        f"step {step}/{job.variant.config.train.num_steps}"
        if step or job.has_cold_start
        else "cold start"
    )
    return f"{job.name} {what}"


@contextmanager
def _stopping(running: Mapping[VariantRun, subprocess.Popen[bytes]]) -> Iterator[None]:
    """Ctrl-C and SIGTERM stop the runs, each after its step and with a checkpoint, and end with exit code 1."""

    def handler(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    except KeyboardInterrupt:
        say(
            f"\nStopping {len(running)} runs; those in training save a checkpoint. The same command goes on with them."
        )
        raise SystemExit(1) from None
    finally:
        _stop(running)
        signal.signal(signal.SIGTERM, old)


def _stop(running: Mapping[VariantRun, subprocess.Popen[bytes]]) -> None:
    """A run in its steps writes a checkpoint first; one that is not there yet has nothing to write."""
    alive = [process for process in running.values() if process.poll() is None]
    for job, process in running.items():
        if process in alive:
            process.send_signal(signal.SIGINT if job.steps() else signal.SIGTERM)
    deadline = time.monotonic() + STOP_S
    try:
        for process in alive:
            process.wait(timeout=max(0.0, deadline - time.monotonic()))
    except (KeyboardInterrupt, subprocess.TimeoutExpired):
        for process in alive:
            process.kill()
            process.wait()


# --- what came of them -------------------------------------------------------------------------------------------


def read_results(variant: Variant, jobs: Sequence[VariantRun]) -> VariantResults:
    """The held-out results of a variant's finished runs."""
    runs: dict[int, Mapping[str, Mapping[str, float]]] = {}
    tasks = set()
    for job in jobs:
        if job.done:
            try:
                summary = json.loads((job.path / "summary.json").read_text())
                splits = json.loads((job.path / "tasks.json").read_text())
                runs[job.seed] = summary["heldout"]["trained"][variant.config.swarm.mode]
                tasks.add(splits[summary["split"]]["fingerprint"])
            except (OSError, ValueError, KeyError) as error:
                raise CheckpointError(
                    f"{job.path} has a summary that cannot be read ({error!r}); delete that folder and run the same "
                    "command again."
                ) from None
    return VariantResults(variant.label, variant.folder, runs, frozenset(tasks))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
