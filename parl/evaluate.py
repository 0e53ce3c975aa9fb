"""Held-out evaluation: the same tasks under greedy and sampled decoding, as a swarm, alone, or forced to delegate.

In: a runner per decoding, tasks. Out: the numbers of interfaces' `summary.json`.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from parl import ray_session
from parl.config import Config, load, parse
from parl.config.schema import TaskSource
from parl.env import AgentEnv
from parl.errors import CheckpointError, ConfigError
from parl.metrics import mean_outcome
from parl.plugins import make_env
from parl.policy.base import PolicyHandle
from parl.progress import Progress
from parl.rollout.pool import Job, LocalPool, Pool
from parl.rollout.swarm import SwarmRunner
from parl.run_folder import read_resolved, write_atomic
from parl.system import pin_threads
from parl.types import Episode, Task

Decoding = Literal["greedy", "sampled"]
Mode = Literal["swarm", "single", "forced_parallel"]
Split = Literal["train", "validation", "test"]
FORCED = '<tool_call>{"name": "create_subagent", "arguments": {"name": "'


@dataclass(frozen=True, slots=True)
class Evaluator:
    """Evaluates policies on tasks. Never counts against budgets of training: the step budget is lifted."""

    config: Config
    pool: Pool

    def episodes(
        self,
        handles: Mapping[str, PolicyHandle],
        tasks: Sequence[Task],
        decoding: Decoding,
        mode: Mode,
        label: str,
        trials: int = 1,
        progress: Progress | None = None,
    ) -> list[Episode]:
        """`trials` episodes of each task, in the order of the tasks. `heldout_metrics` makes means of them."""
        runner = self.runner(handles, decoding, mode)
        jobs = [
            Job(task, f"{label}-{task.id}-{k}", task.id, 0, f"{self.config.seed}/eval/{label}/{task.id}/{k}")
            for task in tasks
            for k in range(trials)
        ]
        tick: Callable[[Episode], None] | None = None if progress is None else lambda _: progress.advance()
        return self.pool.run(runner, jobs, tick)

    def runner(self, handles: Mapping[str, PolicyHandle], decoding: Decoding, mode: Mode) -> SwarmRunner:
        swarm = self.config.swarm.model_copy(
            update={"critical_step_budget": None, "mode": "single" if mode == "single" else self.config.swarm.mode}
        )
        forced = FORCED if mode == "forced_parallel" else ""
        return SwarmRunner(handles, self.config.roles, swarm, self.config.clock, decoding, forced)


def make_pool(config: Config) -> Pool:
    """The pool that `rollout.backend` names. Close it when the work is done."""
    if config.rollout.backend == "ray":
        from parl.rollout.ray_pool import RayPool

        return RayPool(config.env, config.rollout, config.threads, ray_session.cpus_of(config))
    return LocalPool(lambda: make_env(config.env), config.rollout)


def heldout_metrics(episodes: Sequence[Episode]) -> dict[str, float]:
    """What summary.json says of one evaluation."""
    ok = [e for e in episodes if e.status != "failed"]
    if not ok:
        raise RuntimeError(f"all {len(episodes)} episodes failed: {episodes[0].orchestrator.stop_reason}")
    metrics = mean_outcome(ok)
    delegating = any(e.num_assigned for e in ok)
    subtasks = [t.score for e in ok for t in e.subagents if t.score is not None]
    return metrics | {
        "critical_steps": fmean(e.critical_steps for e in ok),
        "total_steps": fmean(e.total_steps for e in ok),
        "virtual_latency_s": fmean(e.clock.critical_path_s for e in ok),
        "tokens_per_episode": fmean(e.tokens() for e in ok),
        "spawn_rate": fmean(e.num_assigned > 0 for e in ok),
        "num_subagents": fmean(len(e.subagents) for e in ok),
        "subtask_score": fmean(subtasks) if subtasks else 0.0,
        "finish_rate": fmean(e.num_finished / e.num_assigned for e in ok if e.num_assigned) if delegating else 0.0,
        "num_truncated": float(sum(e.status == "truncated" for e in ok)),
        **{f"num_truncated_{why}": float(num) for why, num in _truncated_by(ok).items()},
        "num_failed": float(len(episodes) - len(ok)),
        "num_tasks": float(len(episodes)),
    }


def _truncated_by(episodes: Sequence[Episode]) -> Counter[str]:
    """Which limit ended how many of the episodes: a step budget says something else than a full window."""
    return Counter(e.orchestrator.stop_reason for e in episodes if e.status == "truncated")


def heldout_rows(episodes: Sequence[Episode]) -> list[dict[str, Any]]:
    """One row per episode: what a comparison task by task, or by the width of the task, needs."""
    return [
        {
            "task": e.task.id,
            "status": e.status,
            "num_parts": e.facts.get("num_parts"),
            **e.outcome,
            "critical_steps": e.critical_steps,
            "total_steps": e.total_steps,
            "virtual_latency_s": e.clock.critical_path_s,
            "tokens": e.tokens(),
            "num_assigned": e.num_assigned,
        }
        for e in episodes
    ]


def load_tasks(config: Config, env: AgentEnv, split: Split) -> list[Task]:
    """The tasks of a split: generated, or read from the user's file with `datasets`. Raises ConfigError."""
    source: TaskSource = getattr(config.env.tasks, split)
    if source.path is None:
        assert source.num is not None
        maker = make_env(config.env.model_copy(update={"kwargs": {**config.env.kwargs, **source.kwargs}}))
        return maker.generate_tasks(split, source.num, source.seed)
    import datasets

    if not source.path.is_file():
        raise ConfigError(f"env.tasks.{split}.path: there is no file {source.path}")
    kind = "parquet" if source.path.suffix == ".parquet" else "json"
    try:
        rows = datasets.load_dataset(kind, data_files=str(source.path), split="train")
    except Exception as error:  # datasets raises many kinds for a bad file
        raise ConfigError(f"{source.path} cannot be read as {kind} tasks: {error}") from None
    tasks = [replace(env.load_task(row), env=config.env.id) for row in rows]
    twice = [task_id for task_id, count in Counter(t.id for t in tasks).items() if count > 1]
    if twice:
        raise ConfigError(
            f"{source.path}: {len(twice)} ids are given to several tasks, '{twice[0]}' first. Rename them."
        )
    return tasks[: source.num] if source.num else tasks


def fingerprint(tasks: Sequence[Task]) -> str:
    """Identity of a split: a hash over ids, prompts and data."""
    import hashlib

    digest = hashlib.sha256()
    for task in tasks:
        digest.update(json.dumps([task.id, task.prompt, task.data], sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]


def evaluate_command(
    target: Path,
    *,
    checkpoint: str | None,
    mode: Literal["swarm", "single"] | None,
    tasks: int | None,
    trials: int,
    split: Literal["train", "validation", "test"] | None,
    as_json: bool,
) -> None:
    """`parl eval`: evaluate a stored checkpoint of a run, or a config's untrained policies; print the numbers."""
    if target.is_dir():
        result = evaluate_run(target, checkpoint, mode, tasks, trials, split)
    else:
        result = _evaluate(load(target), None, mode, tasks, trials, split) | {"config": str(target)}
    if as_json:
        print(json.dumps(result))
    else:
        from parl.report.summary import print_evaluation

        print_evaluation(result)


def evaluate_run(
    run: Path, checkpoint: str | None, mode: Mode | None, num_tasks: int | None, trials: int, split: Split | None
) -> dict[str, Any]:
    """Evaluate a checkpoint of a run; the result is also written to its eval/ folder. Raises CheckpointError."""
    from parl.learner import checkpoint as checkpoints

    config = parse(read_resolved(run), source=str(run))
    folder = checkpoints.find(run, checkpoint)
    checkpoints.verify(folder)
    if not os.access(run, os.W_OK):
        raise CheckpointError(
            f"The result belongs in {run}/eval, which cannot be written. Copy the run, evaluate the copy."
        )
    (run / "eval").mkdir(exist_ok=True)
    result = {"run": str(run), "checkpoint": folder.name, **_evaluate(config, folder, mode, num_tasks, trials, split)}
    name = f"{folder.name}-{result['split']}-{result['mode']}.json"
    write_atomic(run / "eval" / name, json.dumps(result, indent=1))
    return result


def _evaluate(
    config: Config,
    folder: Path | None,
    mode: Mode | None,
    num_tasks: int | None,
    trials: int,
    split: Split | None,
) -> dict[str, Any]:
    from parl.learner.policies import PolicySet

    pin_threads(config.threads)
    env = make_env(config.env)
    policies = PolicySet(config, env, folder)
    policies.start_engines()
    chosen_split = split or config.eval.split
    chosen: Mode = mode or config.swarm.mode
    tasks = load_tasks(config, env, chosen_split)[:num_tasks]
    result: dict[str, Any] = {"split": chosen_split, "mode": chosen, "trials": trials}
    with closing(make_pool(config)) as pool:
        evaluator = Evaluator(config, pool)
        for decoding in config.eval.decoding:
            with Progress(f"evaluating {chosen}, {decoding}", len(tasks) * trials) as progress:
                result[decoding] = heldout_metrics(
                    evaluator.episodes(policies.handles(), tasks, decoding, chosen, decoding, trials, progress)
                )
    return result
