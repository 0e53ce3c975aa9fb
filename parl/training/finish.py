"""Held-out evaluations at the beginning and the end of a run, the summary and the report."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from parl.config import phases
from parl.config.roles import Roles
from parl.core.progress import Progress
from parl.core.types import Decoding, Mode
from parl.evaluation.metrics import heldout_metrics, heldout_rows
from parl.learner.checkpoint import State
from parl.report.pages import write_report
from parl.report.summary import print_summary
from parl.runs import alarms
from parl.runs.folder import RunFolder, read_metrics
from parl.training.assemble import Parts
from parl.training.baseline import BaselineRun
from parl.training.summary import Summary


def evaluate_cold_start(parts: Parts, folder: RunFolder) -> None:
    """Measure on held-out tasks what RL begins with, and write eval/cold_start.json."""
    config = parts.config
    mode: Mode = config.swarm.mode
    result: dict[str, Any] = {
        mode: _heldout(parts, folder, "cold_start", mode, config.eval.decoding, None)
    }
    # A turn of a policy behind an endpoint cannot be begun for it.
    has_weights = config.roles.orchestrator.policy not in parts.policies.remote
    # The cold start never delegates when greedy, so its swarm is measured with the first call
    # forced: what RL adds to skill shows against this one, what it adds to the decision against the
    # other.
    if mode == "swarm" and has_weights:
        result["forced_parallel"] = _heldout(
            parts, folder, "cold_start", "forced_parallel", ("greedy",), None
        )
    folder.write_json("eval/cold_start.json", result)


def evaluate_and_report(
    parts: Parts, folder: RunFolder, state: State, baseline: BaselineRun, started: float
) -> Summary:
    """Evaluate the trained policies on held-out tasks, then write summary and report.

    Args:
        started: when the run began, by `time.monotonic`.
    """
    config, path = parts.config, folder.path
    mode: Mode = config.swarm.mode
    roles = phases.roles_at(config.roles, state.phases, state.step)
    trained: dict[str, Any] = {
        mode: _heldout(parts, folder, "trained", mode, config.eval.decoding, roles)
    }
    cold_start = json.loads((path / "eval" / "cold_start.json").read_text())
    # Waits for the other process: the summary is written once, with both.
    other = baseline.result()
    if other is not None:
        # The baseline is a single agent. Next to a run that is one as well it needs another name.
        name = "single" if mode == "swarm" else "control"
        cold_start[name] = other["heldout"]["cold_start"]["single"]
        trained[name] = other["heldout"]["trained"]["single"]
    summary = Summary(
        seed=config.seed,
        wall_s=time.monotonic() - started,
        cold_start_attempts=max((stage["attempts"] for stage in state.cold_start), default=0),
        cold_start_stages=state.cold_start,
        split=config.eval.split,
        heldout={"cold_start": cold_start, "trained": trained},
        path=path,
    )
    folder.write_json("summary.json", summary.to_json())
    report = None
    with note_failure(f"there is no report; try again with: parl report {path}"):
        report = write_report(path)
    print_summary(summary.to_json(), path, report, alarms.check(read_metrics(path)))
    return summary


@contextmanager
def note_failure(consequence: str) -> Iterator[None]:
    """Turn an exception into a note on stderr.

    Use it around what only shows a run: a page that cannot be drawn must not end a training of
    days.
    """
    try:
        yield
    except Exception as error:
        print(f"note: {consequence} ({error!r})", file=sys.stderr, flush=True)


def _heldout(
    parts: Parts,
    folder: RunFolder,
    phase: str,
    mode: Mode,
    decodings: Sequence[Decoding],
    roles: Roles | None,
) -> dict[str, dict[str, float]]:
    """Return means per decoding; the rows behind them go to eval/PHASE-MODE-DECODING.tasks.json."""
    split = parts.config.eval.split
    tasks = parts.tasks[split]
    handles = parts.policies.handles(roles)
    result: dict[str, dict[str, float]] = {}
    for decoding in decodings:
        with Progress(f"held-out tasks ({split}), {mode}, {decoding}", len(tasks)) as bar:
            episodes = parts.evaluator.episodes(
                handles, tasks, decoding, mode, decoding, progress=bar
            )
        result[decoding] = heldout_metrics(episodes)
        # Rows per task, not only means: intervals and paired comparisons are computed from them.
        rows = heldout_rows(episodes)
        folder.write_json(f"eval/{phase}-{mode}-{decoding}.tasks.json", rows)
    return result
