"""What `parl eval` evaluates: requests, checked plans, and results over the seeds of an experiment.

    EvalRequest -> plan_run / plan_config -> EvalPlan -> evaluate_run / evaluate -> EvalResult

Everything that can be wrong with a request is refused while plans are made, before the first model
is loaded.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from parl.config import Config, parse
from parl.core import manifest
from parl.core.errors import CheckpointError, ConfigError
from parl.core.machine import pin_threads
from parl.core.progress import Progress
from parl.core.types import Decoding, Episode, Mode, Split, Task
from parl.env.base import AgentEnv
from parl.env.registry import make_env
from parl.env.tasks import fingerprint, load_tasks
from parl.evaluation.evaluator import Evaluator
from parl.evaluation.metrics import heldout_metrics, heldout_rows
from parl.evaluation.statistics import Rows, compare, statistics
from parl.learner import checkpoint as checkpoints
from parl.learner.policies import PolicySet
from parl.rollout.pool import make_pool
from parl.runs.folder import read_resolved, write_atomic


@dataclass(frozen=True, slots=True)
class EvalRequest:
    """The options of `parl eval`."""

    checkpoint: str | None = None
    """Its name; None = the newest."""
    mode: Mode | None = None
    """None = the mode of the config."""
    num_tasks: int | None = None
    """Evaluate the first ones; None = all tasks of the split."""
    trials: int = 1
    """Episodes per task."""
    split: Split | None = None
    """None = the config's `eval.split`."""


@dataclass(frozen=True, slots=True)
class EvalPlan:
    """One evaluation, checked and ready to run."""

    config: Config
    env: AgentEnv
    tasks: Sequence[Task]
    split: Split
    mode: Mode
    trials: int
    run: Path | None = None
    """The run folder; None = the untrained policies of a config."""
    checkpoint: Path | None = None
    """The folder of the checkpoint; None without a run."""

    @property
    def name(self) -> str:
        """CHECKPOINT-SPLIT-MODE, the stem of the result's file names."""
        assert self.checkpoint is not None
        return f"{self.checkpoint.name}-{self.split}-{self.mode}"


@dataclass(frozen=True, slots=True)
class EvalResult:
    """The result of a plan."""

    result: dict[str, Any]
    """`split`, `mode`, `trials`, `statistics`, and the metrics by decoding."""
    rows: Mapping[str, Rows]
    """Decoding -> one row per episode."""


# --- plans -------------------------------------------------------------------------------


def plan_run(run: Path, request: EvalRequest) -> EvalPlan:
    """Plan the evaluation of a run's checkpoint.

    Raises:
        CheckpointError: no run or no such checkpoint, a damaged one, or a folder where the result
            cannot be written.
        ConfigError: the split has no tasks.
    """
    config = parse(read_resolved(run), source=str(run))
    checkpoint = checkpoints.find(run, request.checkpoint)
    # A damaged file is refused here, with the way out, before a model is loaded.
    manifest.verify(checkpoint)
    # An evaluation may take hours: learn now that its result could not be stored.
    if not os.access(run, os.W_OK):
        raise CheckpointError(
            f"The result belongs in {run}/eval, which cannot be written. "
            "Copy the run, evaluate the copy."
        )
    return replace(plan_config(config, request), run=run, checkpoint=checkpoint)


def plan_config(config: Config, request: EvalRequest) -> EvalPlan:
    """Plan the evaluation of a config's untrained policies.

    Raises:
        ConfigError: the environment cannot be made, or the split has no tasks.
    """
    env = make_env(config.env)
    split = request.split or config.eval.split
    tasks = load_tasks(config, env, split)[: request.num_tasks]
    mode = request.mode or config.swarm.mode
    return EvalPlan(config, env, tasks, split, mode, request.trials)


def plan_baselines(plans: Sequence[EvalPlan], request: EvalRequest) -> list[EvalPlan]:
    """Plan the single agents that swarms are compared with: RUN-single of each run.

    Args:
        plans: the evaluations of the runs.
        request: the request behind them; baselines are evaluated in the same way.
    Returns:
        One plan for each run, in order. Empty where there is nothing to compare: the runs are no
        swarms, none has a baseline, or one of the baselines cannot be used, which is said on
        stderr.
    """
    # A swarm without its tools (--mode single) is no single agent: its serial skill decays while
    # it is not used, so a comparison with it would flatter the swarm.
    folders: list[Path] = []
    for plan in plans:
        if plan.mode != "swarm" or plan.config.swarm.mode != "swarm":
            return []
        if plan.run is not None:
            run = plan.run.resolve()
            folders.append(run.with_name(f"{run.name}-single"))
    if not any(folder.is_dir() for folder in folders):
        return []

    try:
        for folder in folders:
            if not (folder / "summary.json").is_file():
                raise CheckpointError(f"{folder} has not finished.")
        single_request = replace(request, mode="single")
        baseline_plans = [plan_run(folder, single_request) for folder in folders]
        check_same_tasks([plans[0], *baseline_plans])
    except (CheckpointError, ConfigError) as error:
        # The evaluation of the swarm is what was asked for; it goes on without the comparison.
        print(f"Not compared with a single agent: {error}", file=sys.stderr)
        return []
    return baseline_plans


def check_seeds(plans: Sequence[EvalPlan]) -> None:
    """Check that several runs can be the seeds of one experiment.

    Raises:
        ConfigError: a run is given twice, or the runs differ in tasks or mode.
    """
    check_same_tasks(plans)
    # A run that counts as two seeds would make the interval over seeds too narrow.
    runs: set[Path] = set()
    for plan in plans:
        if plan.run is None:
            continue
        run = plan.run.resolve()
        if run in runs:
            raise ConfigError(f"{run} is given twice; give each seed's run once.")
        runs.add(run)
    if any(plan.mode != plans[0].mode for plan in plans):
        raise ConfigError(
            "These runs are swarms and single agents; evaluate them apart, or say --mode."
        )


def check_same_tasks(plans: Sequence[EvalPlan]) -> None:
    """Check that results can be put together: the same tasks, and a decoding in common.

    Raises:
        ConfigError: they differ.
    """
    first = plans[0]
    for plan in plans[1:]:
        if fingerprint(plan.tasks) != fingerprint(first.tasks):
            raise ConfigError(
                f"{plan.run} and {first.run} have different tasks in their {first.split} split, "
                "so their results do not belong together. Evaluate them one by one."
            )
        if not set(plan.config.eval.decoding) & set(first.config.eval.decoding):
            raise ConfigError(
                f"{plan.run} and {first.run} have no decoding in common (eval.decoding)."
            )


# --- evaluations -------------------------------------------------------------------------


def evaluate_runs(runs: Sequence[Path], request: EvalRequest) -> dict[str, Any]:
    """Evaluate the seeds of one experiment, and their single agents where there are any.

    Returns:
        What `parl eval --json` prints; `against` is the comparison with the single agents.
    Raises:
        ConfigError: the runs do not belong together.
        CheckpointError: no run there, a damaged checkpoint, or no place to write.
    """
    # All plans before the first evaluation: a refusal must not come after an hour of work.
    plans = [plan_run(run, request) for run in runs]
    check_seeds(plans)
    baseline_plans = plan_baselines(plans, request)

    results = [evaluate_run(plan) for plan in plans]
    combined = combine_runs(results)
    if baseline_plans:
        baselines = [evaluate_run(plan) for plan in baseline_plans]
        combined["against"] = compare_with_baselines(results, baselines)
    return combined


def evaluate_run(plan: EvalPlan) -> EvalResult:
    """Evaluate a run's checkpoint and write result and rows to the run's eval/ folder."""
    assert plan.run is not None
    assert plan.checkpoint is not None
    evaluation = evaluate(plan)
    result = {"run": str(plan.run), "checkpoint": plan.checkpoint.name, **evaluation.result}

    folder = plan.run / "eval"
    folder.mkdir(exist_ok=True)
    for decoding, rows in evaluation.rows.items():
        write_atomic(folder / f"{plan.name}-{decoding}.tasks.json", json.dumps(rows, indent=1))
    write_atomic(folder / f"{plan.name}.json", json.dumps(result, indent=1))
    return EvalResult(result, evaluation.rows)


def evaluate(plan: EvalPlan) -> EvalResult:
    """Evaluate a plan under each decoding of its config."""
    result: dict[str, Any] = {"split": plan.split, "mode": plan.mode, "trials": plan.trials}
    rows_by_decoding: dict[str, Rows] = {}
    for decoding, episodes in run_plan(plan, plan.config.eval.decoding):
        result[decoding] = heldout_metrics(episodes)
        rows_by_decoding[decoding] = heldout_rows(episodes, plan.trials)

    result["statistics"] = {}
    for name, rows in rows_by_decoding.items():
        result["statistics"][name] = statistics([rows], plan.trials)
    return EvalResult(result, rows_by_decoding)


def run_plan(
    plan: EvalPlan, decodings: Sequence[Decoding]
) -> Iterator[tuple[Decoding, list[Episode]]]:
    """Run the episodes of a plan, one decoding after the other.

    Yields:
        A decoding and its episodes: `trials` of each task, in the order of the tasks.
    """
    config = plan.config
    pin_threads(config.threads)
    policies = PolicySet(config, plan.env, plan.checkpoint)
    policies.engines.start()
    run_name = plan.run.name if plan.run else config.name
    with closing(make_pool(config)) as pool:
        evaluator = Evaluator(config, pool)
        for decoding in decodings:
            num_episodes = len(plan.tasks) * plan.trials
            with Progress(f"evaluating {run_name}, {plan.mode}, {decoding}", num_episodes) as bar:
                episodes = evaluator.episodes(
                    policies.handles(),
                    plan.tasks,
                    decoding,
                    plan.mode,
                    label=decoding,
                    trials=plan.trials,
                    progress=bar,
                )
                yield decoding, episodes


# --- results of several runs -------------------------------------------------------------


def combine_runs(runs: Sequence[EvalResult]) -> dict[str, Any]:
    """Combine the results of one experiment's seeds.

    Returns:
        The result of a single run as it is. For several: `runs` (the result of each), for each
        common decoding the mean over the runs of every metric that all have, and `statistics` with
        intervals over seeds and tasks.
    """
    first = runs[0].result
    if len(runs) == 1:
        return dict(first)

    result: dict[str, Any] = {
        "split": first["split"],
        "mode": first["mode"],
        "trials": first["trials"],
        "runs": [],
    }
    for run in runs:
        # An interval over the tasks of one run is no interval over seeds: left out, lest it be
        # taken for one.
        run_result = dict(run.result)
        del run_result["statistics"]
        result["runs"].append(run_result)
    result["statistics"] = {}
    for decoding in _common_decodings(runs):
        result[decoding] = _mean_of_runs([run.result[decoding] for run in runs])
        result["statistics"][decoding] = statistics(_rows(runs, decoding), first["trials"])
    return result


def compare_with_baselines(
    runs: Sequence[EvalResult], baselines: Sequence[EvalResult]
) -> dict[str, Any]:
    """Compare swarms with their single agents, paired by seed and by task.

    Args:
        runs: the results of the swarms.
        baselines: the results of their single agents, in the same order.
    Returns:
        `runs` (the baselines' folders), `mode`, and `parl.evaluation.statistics.compare` for each
        decoding that all have in common.
    """
    comparison: dict[str, Any] = {"runs": [run.result["run"] for run in baselines]}
    comparison["mode"] = "single"
    for decoding in _common_decodings([*runs, *baselines]):
        comparison[decoding] = compare(_rows(runs, decoding), _rows(baselines, decoding))
    return comparison


def _mean_of_runs(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Average each metric that every run has."""
    means: dict[str, float] = {}
    for name in metrics[0]:
        if all(name in run_metrics for run_metrics in metrics):
            means[name] = fmean(run_metrics[name] for run_metrics in metrics)
    return means


def _rows(runs: Sequence[EvalResult], decoding: str) -> list[Rows]:
    return [run.rows[decoding] for run in runs]


def _common_decodings(runs: Sequence[EvalResult]) -> list[str]:
    return [decoding for decoding in runs[0].rows if all(decoding in run.rows for run in runs)]
