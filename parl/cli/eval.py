"""`parl eval`: evaluate runs or a config, and print the numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from parl.cli.common import Mode, Split
from parl.config import load
from parl.evaluation import plan
from parl.evaluation.plan import EvalRequest


def evaluate_command(
    targets: Sequence[Path],
    *,
    checkpoint: str | None,
    mode: Mode | None,
    tasks: int | None,
    trials: int,
    split: Split | None,
    as_json: bool,
) -> None:
    """Evaluate stored checkpoints of runs, or a config's untrained policies; print the numbers.

    A swarm is compared with the single agent in RUN-single, where there is one.

    Args:
        targets: one config, or the run folders of one experiment's seeds.
        checkpoint: its name; None takes the newest.
        mode: None takes the config's.
        tasks: evaluate the first ones; None takes the config's number.
        trials: episodes per task.
        split: None takes the config's.
        as_json: print one JSON object in place of tables.
    """
    request = EvalRequest(checkpoint, mode, tasks, trials, split)
    # A run is a folder, a config a file or a name.
    is_config = len(targets) == 1 and not targets[0].is_dir()
    if is_config:
        evaluation = plan.evaluate(plan.plan_config(load(targets[0]), request))
        result = evaluation.result | {"config": str(targets[0])}
    else:
        result = plan.evaluate_runs(targets, request)
    if as_json:
        print(json.dumps(result))
        return
    # rich and the tables take a moment to import, which a script that reads JSON need not wait for.
    from parl.report.evaluation import print_evaluation

    print_evaluation(result)
