"""Plans of `parl eval`: what to evaluate, checked before it runs."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
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
    """What `parl eval` was asked for. None = what the run's config says; of checkpoints, the newest."""

    checkpoint: str | None = None
    mode: Mode | None = None
    num_tasks: int | None = None
    trials: int = 1
    split: Split | None = None


@dataclass(frozen=True, slots=True)
class EvalPlan:
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
class EvalResult:
    """What came of a plan: what is printed, and the rows behind it by decoding."""

    result: dict[str, Any]
    rows: Mapping[str, Rows]


def plan_run(run: Path, asked: EvalRequest) -> EvalPlan:
    """The evaluation of a checkpoint of a run. Raises CheckpointError: none there, damaged, or no place to write."""

    config = parse(read_resolved(run), source=str(run))
    folder = checkpoints.find(run, asked.checkpoint)
    manifest.verify(folder)
    if not os.access(run, os.W_OK):
        raise CheckpointError(
            f"The result belongs in {run}/eval, which cannot be written. Copy the run, evaluate the copy."
        )
    return replace(plan_config(config, asked), run=run, checkpoint=folder)


def plan_config(config: Config, asked: EvalRequest) -> EvalPlan:
    env = make_env(config.env)
    split = asked.split or config.eval.split
    tasks = load_tasks(config, env, split)[: asked.num_tasks]
    return EvalPlan(config, env, tasks, split, asked.mode or config.swarm.mode, asked.trials)


def plan_controls(plans: Sequence[EvalPlan], asked: EvalRequest) -> list[EvalPlan]:
    """The single agents that swarms are compared with: RUN-single of each run. Empty, with the reason, without all."""
    if any(plan.mode != "swarm" or plan.config.swarm.mode != "swarm" for plan in plans):
        return []
    folders = [
        run.with_name(f"{run.name}-single")
        for run in (plan.run.resolve() for plan in plans if plan.run)
    ]
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


def check_seeds(plans: Sequence[EvalPlan]) -> None:
    """Several runs must be what a bootstrap over seeds takes them for. Raises ConfigError."""
    check_same_tasks(plans)
    twice = [
        path
        for path, count in Counter(plan.run.resolve() for plan in plans if plan.run).items()
        if count > 1
    ]
    if twice:
        raise ConfigError(f"{twice[0]} is given twice; give each seed's run once.")
    if len({plan.mode for plan in plans}) > 1:
        raise ConfigError(
            "These runs are swarms and single agents; evaluate them apart, or say --mode."
        )


def check_same_tasks(plans: Sequence[EvalPlan]) -> None:
    """Only results on the same tasks, under a common decoding, can be put together. Raises ConfigError."""
    first = plans[0]
    for plan in plans[1:]:
        if fingerprint(plan.tasks) != fingerprint(first.tasks):
            raise ConfigError(
                f"{plan.run} and {first.run} have different tasks in their {first.split} split, so their results do "
                "not belong together. Evaluate them one by one."
            )
        if not set(plan.config.eval.decoding) & set(first.config.eval.decoding):
            raise ConfigError(
                f"{plan.run} and {first.run} have no decoding in common (eval.decoding)."
            )


def evaluate_runs(runs: Sequence[Path], request: EvalRequest) -> dict[str, Any]:
    """Evaluate runs that are seeds of one experiment, and the single agents beside them, where there are any.

    Raises:
        ConfigError: the runs do not belong together.
        CheckpointError: no run there, a damaged checkpoint, or no place to write.
    """
    plans = [plan_run(run, request) for run in runs]
    check_seeds(plans)
    baseline_plans = plan_controls(plans, request)
    results = [evaluate_run(plan) for plan in plans]
    combined = combine_runs(results)
    if baseline_plans:
        baselines = [evaluate_run(plan) for plan in baseline_plans]
        combined["against"] = compare_with_baselines(results, baselines)
    return combined


def evaluate_run(plan: EvalPlan) -> EvalResult:
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
    return EvalResult(result, done.rows)


def evaluate(plan: EvalPlan) -> EvalResult:
    """All decodings of the config, one after the other."""
    result: dict[str, Any] = {"split": plan.split, "mode": plan.mode, "trials": plan.trials}
    rows: dict[str, list[dict[str, Any]]] = {}
    for decoding, episodes in run_plan(plan, plan.config.eval.decoding):
        result[decoding] = heldout_metrics(episodes)
        rows[decoding] = heldout_rows(episodes, plan.trials)
    result["statistics"] = {
        decoding: statistics([found], plan.trials) for decoding, found in rows.items()
    }
    return EvalResult(result, rows)


def run_plan(
    plan: EvalPlan, decodings: Sequence[Decoding]
) -> Iterator[tuple[Decoding, list[Episode]]]:
    """The episodes of a plan, `trials` of each task in the order of the tasks, by decoding."""

    pin_threads(plan.config.threads)
    policies = PolicySet(plan.config, plan.env, plan.checkpoint)
    policies.engines.start()
    with closing(make_pool(plan.config)) as pool:
        evaluator = Evaluator(plan.config, pool)
        for decoding in decodings:
            label = f"evaluating {plan.run.name if plan.run else plan.config.name}, {plan.mode}, {decoding}"
            with Progress(label, len(plan.tasks) * plan.trials) as bar:
                yield (
                    decoding,
                    evaluator.episodes(
                        policies.handles(),
                        plan.tasks,
                        decoding,
                        plan.mode,
                        decoding,
                        plan.trials,
                        bar,
                    ),
                )


def combine_runs(runs: Sequence[EvalResult]) -> dict[str, Any]:
    """The result of one run as it is; of several, the mean over them of each metric, and statistics over all."""
    first = runs[0].result
    if len(runs) == 1:
        return dict(first)
    result: dict[str, Any] = {key: first[key] for key in ("split", "mode", "trials")}
    result |= {
        "runs": [{k: v for k, v in run.result.items() if k != "statistics"} for run in runs],
        "statistics": {},
    }
    for decoding in _common_decodings(runs):
        metrics = [run.result[decoding] for run in runs]
        result[decoding] = {
            k: fmean(m[k] for m in metrics) for k in metrics[0] if all(k in m for m in metrics)
        }
        result["statistics"][decoding] = statistics(
            [run.rows[decoding] for run in runs], first["trials"]
        )
    return result


def compare_with_baselines(
    runs: Sequence[EvalResult], controls: Sequence[EvalResult]
) -> dict[str, Any]:
    """The comparison of swarms with single agents: who they are, and the paired differences by decoding."""
    differences = {
        decoding: compare(
            [run.rows[decoding] for run in runs], [run.rows[decoding] for run in controls]
        )
        for decoding in _common_decodings([*runs, *controls])
    }
    return {"runs": [run.result["run"] for run in controls], "mode": "single", **differences}


def _common_decodings(runs: Sequence[EvalResult]) -> list[str]:
    return [decoding for decoding in runs[0].rows if all(decoding in run.rows for run in runs)]
