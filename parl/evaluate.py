"""Held-out evaluation: the same tasks under greedy and sampled decoding, as a swarm, alone, or forced to delegate.

In: a runner per decoding, tasks. Out: the numbers of `summary.json`.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from parl import ray_session
from parl.config import Config, load, parse
from parl.config.env import EnvConfig, MixConfig, TaskSource
from parl.env import AgentEnv
from parl.errors import CheckpointError, ConfigError
from parl.metrics import by_ability, mean_outcome, num_contradictions
from parl.mixture import Mixture, by_turns, of_ability
from parl.plugins import make_env
from parl.policy.base import PolicyHandle
from parl.progress import Progress
from parl.rollout.pool import Job, LocalPool, Pool
from parl.rollout.swarm import SwarmRunner
from parl.run_folder import read_resolved, write_atomic
from parl.statistics import Rows, compare, statistics
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

        return RayPool(config.env, config.rollout, ray_session.cpus_of(config))
    return LocalPool(lambda: make_env(config.env), config.rollout)


def heldout_metrics(episodes: Sequence[Episode]) -> dict[str, float]:
    """What summary.json says of one evaluation; of a mix, `ability/NAME/...` says the same of each ability."""
    parts = by_ability(episodes).items()
    return _heldout(episodes) | {f"ability/{a}/{k}": v for a, own in parts for k, v in _heldout(own).items()}


def _heldout(episodes: Sequence[Episode]) -> dict[str, float]:
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
        **num_contradictions(ok),
        **{f"num_truncated_{why}": float(num) for why, num in _truncated_by(ok).items()},
        "num_failed": float(len(episodes) - len(ok)),
        "num_tasks": float(len(episodes)),
    }


def _truncated_by(episodes: Sequence[Episode]) -> Counter[str]:
    """Which limit ended how many of the episodes: a step budget says something else than a full window."""
    return Counter(e.orchestrator.stop_reason for e in episodes if e.status == "truncated")


def heldout_rows(episodes: Sequence[Episode], trials: int = 1) -> list[dict[str, Any]]:
    """One row per episode (`trials` of each task): what statistics, and a comparison by task or by width, need."""
    return [
        {
            "task": e.task.id,
            "trial": index % trials,
            **({"ability": e.task.ability} if e.task.ability else {}),
            "status": e.status,
            "num_parts": e.facts.get("num_parts"),
            **e.outcome,
            "critical_steps": e.critical_steps,
            "total_steps": e.total_steps,
            "virtual_latency_s": e.clock.critical_path_s,
            "tokens": e.tokens(),
            "num_assigned": e.num_assigned,
        }
        for index, e in enumerate(episodes)
    ]


def load_tasks(config: Config, env: AgentEnv, split: Split) -> list[Task]:
    """The tasks of a split: generated, or read from the user's file with `datasets`. Raises ConfigError.

    Of a mix: those of its parts by turns, so that the first so many have the same number of each.
    """
    if isinstance(env, Mixture):
        assert isinstance(config.env, MixConfig)
        found = {p.ability: _tasks_of(p, env.parts[p.ability], split) for p in config.env.mix}
        return by_turns([[of_ability(task, a) for task in tasks] for a, tasks in found.items()])
    assert isinstance(config.env, EnvConfig)
    return _tasks_of(config.env, env, split)


def _tasks_of(config: EnvConfig, env: AgentEnv, split: Split) -> list[Task]:
    source: TaskSource = getattr(config.tasks, split)
    if source.path is None:
        assert source.num is not None
        maker = make_env(config.model_copy(update={"kwargs": {**config.kwargs, **source.kwargs}}))
        return maker.generate_tasks(split, source.num, source.seed)
    import datasets

    if not source.path.is_file():
        raise ConfigError(f"env.tasks.{split}.path: there is no file {source.path}")
    kind = "parquet" if source.path.suffix == ".parquet" else "json"
    try:
        rows = datasets.load_dataset(kind, data_files=str(source.path), split="train")
    except Exception as error:  # datasets raises many kinds for a bad file
        raise ConfigError(f"{source.path} cannot be read as {kind} tasks: {error}") from None
    tasks = [replace(env.load_task(row), env=config.id) for row in rows]
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


# --- `parl eval` -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Asked:
    """What `parl eval` was asked for. None = what the run's config says; of checkpoints, the newest."""

    checkpoint: str | None = None
    mode: Mode | None = None
    num_tasks: int | None = None
    trials: int = 1
    split: Split | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """One evaluation, checked and ready to run. Without a run folder: a config's untrained policies."""

    config: Config
    env: AgentEnv
    tasks: Sequence[Task]
    split: Split
    mode: Mode
    trials: int
    run: Path | None = None
    checkpoint: Path | None = None

    @property
    def name(self) -> str:
        """CHECKPOINT-SPLIT-MODE: what the files of the result are called."""
        assert self.checkpoint is not None
        return f"{self.checkpoint.name}-{self.split}-{self.mode}"


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What came of a plan: what is printed, and the rows behind it by decoding."""

    result: dict[str, Any]
    rows: Mapping[str, Rows]


def evaluate_command(
    targets: Sequence[Path],
    *,
    checkpoint: str | None,
    mode: Literal["swarm", "single"] | None,
    tasks: int | None,
    trials: int,
    split: Literal["train", "validation", "test"] | None,
    as_json: bool,
) -> None:
    """`parl eval`: evaluate stored checkpoints of runs, or a config's untrained policies; print the numbers.

    Several runs are seeds of one experiment.
    A swarm is compared with the single agent in RUN-single, where there is one.
    """
    asked = Asked(checkpoint, mode, tasks, trials, split)
    if len(targets) == 1 and not targets[0].is_dir():
        done = evaluate(_planned(load(targets[0]), asked))
        result = done.result | {"config": str(targets[0])}
    else:
        plans = [plan_run(run, asked) for run in targets]
        check_seeds(plans)
        controls = plan_controls(plans, asked)
        runs = [evaluate_run(plan) for plan in plans]
        result = pooled(runs)
        if controls:
            result["against"] = against(runs, [evaluate_run(plan) for plan in controls])
    if as_json:
        print(json.dumps(result))
    else:
        from parl.report.evaluation import print_evaluation

        print_evaluation(result)


def plan_run(run: Path, asked: Asked) -> Plan:
    """The evaluation of a checkpoint of a run. Raises CheckpointError: none there, damaged, or no place to write."""
    from parl.learner import checkpoint as checkpoints

    config = parse(read_resolved(run), source=str(run))
    folder = checkpoints.find(run, asked.checkpoint)
    checkpoints.verify(folder)
    if not os.access(run, os.W_OK):
        raise CheckpointError(
            f"The result belongs in {run}/eval, which cannot be written. Copy the run, evaluate the copy."
        )
    return replace(_planned(config, asked), run=run, checkpoint=folder)


def _planned(config: Config, asked: Asked) -> Plan:
    env = make_env(config.env)
    split = asked.split or config.eval.split
    tasks = load_tasks(config, env, split)[: asked.num_tasks]
    return Plan(config, env, tasks, split, asked.mode or config.swarm.mode, asked.trials)


def plan_controls(plans: Sequence[Plan], asked: Asked) -> list[Plan]:
    """The single agents that swarms are compared with: RUN-single of each run. Empty, with the reason, without all."""
    if any(plan.mode != "swarm" or plan.config.swarm.mode != "swarm" for plan in plans):
        return []
    folders = [run.with_name(f"{run.name}-single") for run in (plan.run.resolve() for plan in plans if plan.run)]
    if not any(folder.is_dir() for folder in folders):
        return []
    try:
        for folder in folders:
            if not (folder / "summary.json").is_file():
                raise CheckpointError(f"{folder} has not finished.")
        controls = [plan_run(folder, replace(asked, mode="single")) for folder in folders]
        check_same_tasks([plans[0], *controls])
    except (CheckpointError, ConfigError) as error:
        print(f"Not compared with a single agent: {error}", file=sys.stderr)
        return []
    return controls


def check_seeds(plans: Sequence[Plan]) -> None:
    """Several runs must be what a bootstrap over seeds takes them for. Raises ConfigError."""
    check_same_tasks(plans)
    twice = [path for path, count in Counter(plan.run.resolve() for plan in plans if plan.run).items() if count > 1]
    if twice:
        raise ConfigError(f"{twice[0]} is given twice; give each seed's run once.")
    if len({plan.mode for plan in plans}) > 1:
        raise ConfigError("These runs are swarms and single agents; evaluate them apart, or say --mode.")


def check_same_tasks(plans: Sequence[Plan]) -> None:
    """Only results on the same tasks, under a common decoding, can be put together. Raises ConfigError."""
    first = plans[0]
    for plan in plans[1:]:
        if fingerprint(plan.tasks) != fingerprint(first.tasks):
            raise ConfigError(
                f"{plan.run} and {first.run} have different tasks in their {first.split} split, so their results do "
                "not belong together. Evaluate them one by one."
            )
        if not set(plan.config.eval.decoding) & set(first.config.eval.decoding):
            raise ConfigError(f"{plan.run} and {first.run} have no decoding in common (eval.decoding).")


def evaluate_run(plan: Plan) -> Evaluated:
    """Evaluate a run's checkpoint; the result and its rows are also written to the run's eval/ folder."""
    assert plan.run is not None
    assert plan.checkpoint is not None
    done = evaluate(plan)
    result = {"run": str(plan.run), "checkpoint": plan.checkpoint.name, **done.result}
    folder = plan.run / "eval"
    folder.mkdir(exist_ok=True)
    for decoding, rows in done.rows.items():
        write_atomic(folder / f"{plan.name}-{decoding}.tasks.json", json.dumps(rows, indent=1))
    write_atomic(folder / f"{plan.name}.json", json.dumps(result, indent=1))
    return Evaluated(result, done.rows)


def evaluate(plan: Plan) -> Evaluated:
    """All decodings of the config, one after the other."""
    result: dict[str, Any] = {"split": plan.split, "mode": plan.mode, "trials": plan.trials}
    rows: dict[str, list[dict[str, Any]]] = {}
    for decoding, episodes in run_plan(plan, plan.config.eval.decoding):
        result[decoding] = heldout_metrics(episodes)
        rows[decoding] = heldout_rows(episodes, plan.trials)
    result["statistics"] = {decoding: statistics([found], plan.trials) for decoding, found in rows.items()}
    return Evaluated(result, rows)


def run_plan(plan: Plan, decodings: Sequence[Decoding]) -> Iterator[tuple[Decoding, list[Episode]]]:
    """The episodes of a plan, `trials` of each task in the order of the tasks, by decoding."""
    from parl.learner.policies import PolicySet

    pin_threads(plan.config.threads)
    policies = PolicySet(plan.config, plan.env, plan.checkpoint)
    policies.start_engines()
    with closing(make_pool(plan.config)) as pool:
        evaluator = Evaluator(plan.config, pool)
        for decoding in decodings:
            label = f"evaluating {plan.run.name if plan.run else plan.config.name}, {plan.mode}, {decoding}"
            with Progress(label, len(plan.tasks) * plan.trials) as bar:
                yield (
                    decoding,
                    evaluator.episodes(policies.handles(), plan.tasks, decoding, plan.mode, decoding, plan.trials, bar),
                )


def pooled(runs: Sequence[Evaluated]) -> dict[str, Any]:
    """The result of one run as it is; of several, the mean over them of each metric, and statistics over all."""
    first = runs[0].result
    if len(runs) == 1:
        return dict(first)
    result: dict[str, Any] = {key: first[key] for key in ("split", "mode", "trials")}
    result |= {"runs": [{k: v for k, v in run.result.items() if k != "statistics"} for run in runs], "statistics": {}}
    for decoding in _common_decodings(runs):
        metrics = [run.result[decoding] for run in runs]
        result[decoding] = {k: fmean(m[k] for m in metrics) for k in metrics[0] if all(k in m for m in metrics)}
        result["statistics"][decoding] = statistics([run.rows[decoding] for run in runs], first["trials"])
    return result


def against(runs: Sequence[Evaluated], controls: Sequence[Evaluated]) -> dict[str, Any]:
    """The comparison of swarms with single agents: who they are, and the paired differences by decoding."""
    differences = {
        decoding: compare([run.rows[decoding] for run in runs], [run.rows[decoding] for run in controls])
        for decoding in _common_decodings([*runs, *controls])
    }
    return {"runs": [run.result["run"] for run in controls], "mode": "single", **differences}


def _common_decodings(runs: Sequence[Evaluated]) -> list[str]:
    return [decoding for decoding in runs[0].rows if all(decoding in run.rows for run in runs)]
