"""`parl eval`: evaluate runs or a config, and print what came out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from parl.config import load
from parl.evaluation.plan import (
    EvalRequest,
    check_seeds,
    combine_runs,
    compare_with_baselines,
    evaluate,
    evaluate_run,
    plan_config,
    plan_controls,
    plan_run,
)


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
    asked = EvalRequest(checkpoint, mode, tasks, trials, split)
    if len(targets) == 1 and not targets[0].is_dir():
        done = evaluate(plan_config(load(targets[0]), asked))
        result = done.result | {"config": str(targets[0])}
    else:
        plans = [plan_run(run, asked) for run in targets]
        check_seeds(plans)
        controls = plan_controls(plans, asked)
        runs = [evaluate_run(plan) for plan in plans]
        result = combine_runs(runs)
        if controls:
            result["against"] = compare_with_baselines(
                runs, [evaluate_run(plan) for plan in controls]
            )
    if as_json:
        print(json.dumps(result))
    else:
        from parl.report.evaluation import print_evaluation

        print_evaluation(result)
