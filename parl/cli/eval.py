"""`parl eval`: evaluate runs or a config, and print what came out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from parl.config import load
from parl.evaluation import plan
from parl.evaluation.plan import EvalRequest


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
    request = EvalRequest(checkpoint, mode, tasks, trials, split)
    is_config = len(targets) == 1 and not targets[0].is_dir()
    if is_config:
        evaluated = plan.evaluate(plan.plan_config(load(targets[0]), request))
        result = evaluated.result | {"config": str(targets[0])}
    else:
        result = plan.evaluate_runs(targets, request)
    if as_json:
        print(json.dumps(result))
    else:
        from parl.report.evaluation import print_evaluation

        print_evaluation(result)
