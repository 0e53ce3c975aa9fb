"""Hooks around a step: evaluation, stored episodes, tracking, progress, alarms, checkpoints.

The loop calls every hook twice a step, in the order of the list: `measure` before the step's
metrics are written, and `after_step` behind that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from parl.config import Config
from parl.config.roles import Roles
from parl.core.errors import Interrupted
from parl.core.manifest import COLD_START
from parl.core.progress import Progress
from parl.core.types import Sample, ScoredEpisode
from parl.evaluation.metrics import heldout_metrics
from parl.learner import checkpoint as checkpoints
from parl.learner.checkpoint import State
from parl.runs import alarms
from parl.runs.folder import RunFolder, read_metrics
from parl.training.assemble import Parts
from parl.training.stop import StopRequest
from parl.training.tracking import Tracker


@dataclass(slots=True)
class StepRecord:
    """One finished step, as the hooks see it."""

    step: int
    roles: Roles
    """As they were in this step: `trainable` is true or false."""
    episodes: list[ScoredEpisode]
    """A failed one has no rewards."""
    samples: list[Sample]
    state: State
    """Small state of the run after the step; the evaluation notes the best step in it."""
    metrics: dict[str, float] = field(default_factory=dict)


class Hook:
    """Something that happens around each step."""

    def measure(self, record: StepRecord) -> Mapping[str, float]:
        """Return further metrics of the step; the hook may replace `record.state`."""
        return {}

    def after_step(self, record: StepRecord) -> None:
        """Act on a step whose metrics are written."""
        return


class StoreEpisodes(Hook):
    """Write the step's episodes to the run folder, every `train.store_episodes_every` steps."""

    def __init__(self, config: Config, folder: RunFolder) -> None:
        self._every = config.train.store_episodes_every
        self._folder = folder

    def measure(self, record: StepRecord) -> Mapping[str, float]:
        # Before the metrics: a run that is killed between the two repeats the step and overwrites
        # the file.
        if record.step % self._every == 0:
            self._folder.write_episodes(record.step, record.episodes, record.samples)
        return {}


class Evaluate(Hook):
    """Evaluate on validation tasks every `eval.every` steps and after the last one.

    The best step is noted in the state, and its checkpoint is kept.
    """

    def __init__(self, parts: Parts, folder: RunFolder) -> None:
        self._parts = parts
        self._folder = folder

    def measure(self, record: StepRecord) -> Mapping[str, float]:
        config, done = self._parts.config, record.step + 1
        every = config.eval.every
        if every is None or not (done % every == 0 or done == config.train.num_steps):
            return {}
        tasks = self._parts.tasks["validation"][: config.eval.num_tasks]
        handles = self._parts.policies.handles(record.roles)
        episodes = self._parts.evaluator.episodes(
            handles, tasks, "greedy", config.swarm.mode, "validation"
        )
        result = heldout_metrics(episodes)
        self._folder.write_json(f"eval/step_{done:06d}.json", result)
        best = record.state.best
        # Strictly better, so the earliest of equal steps stays the best and is kept on disk.
        if best is None or result["score"] > best["score"]:
            record.state = replace(record.state, best={"step": done, "score": result["score"]})
        return {f"eval/{name}": value for name, value in result.items()}


class Track(Hook):
    """Send the metrics to the tracker."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker

    def after_step(self, record: StepRecord) -> None:
        self._tracker.log(record.metrics)


class ShowProgress(Hook):
    """Advance the progress bar, and say the alarms that begin to hold."""

    def __init__(self, bar: Progress, run: Path) -> None:
        self._bar = bar
        # A resumed run goes on with the alarms of the steps before it.
        self._watch = alarms.Watch(read_metrics(run))

    def after_step(self, record: StepRecord) -> None:
        self._bar.advance(_progress_note(record.metrics))
        for alarm in self._watch.add(record.metrics):
            self._bar.say(str(alarm))


class Checkpoint(Hook):
    """Write a checkpoint when one is due, and end the run where Ctrl-C asked for it.

    It is the last hook: what comes after it would be missing in a run that Ctrl-C ended.

    Raises:
        Interrupted: Ctrl-C; the checkpoint is written.
    """

    def __init__(self, parts: Parts, folder: RunFolder, stop: StopRequest) -> None:
        self._parts = parts
        self._root = folder.path
        self._stop = stop

    def after_step(self, record: StepRecord) -> None:
        train, done = self._parts.config.train, record.step + 1
        is_last = done == train.num_steps
        is_best = record.state.best is not None and record.state.best["step"] == done
        is_stopped = self._stop.requested
        if done % train.checkpoint_every == 0 or is_last or is_best or is_stopped:
            self._save(record.state)
        if is_stopped:
            raise Interrupted(record.step, str(self._root))

    def _save(self, state: State) -> None:
        folder = self._root / "checkpoints" / checkpoints.step_name(state.step)
        # Weights that never change are linked to the cold start's, which is never deleted: a frozen
        # model of 16 GB would otherwise be written at each checkpoint.
        policies = self._parts.policies.stored(self._root / "checkpoints" / COLD_START)
        checkpoints.save(folder, state, policies, self._parts.policies.learners.states())
        best_step = state.best["step"] if state.best else None
        checkpoints.prune(self._root, self._parts.config.train.keep_checkpoints, best_step)


def _progress_note(metrics: Mapping[str, float]) -> str:
    note = (
        f"outcome {metrics.get('outcome/score', 0):.3f}, "
        f"critical steps {metrics.get('swarm/critical_steps', 0):.1f}, "
        f"subagents {metrics.get('swarm/num_subagents', 0):.1f}"
    )
    if "eval/score" in metrics:
        score, steps = metrics["eval/score"], metrics["eval/critical_steps"]
        note += f" | validation {score:.3f} in {steps:.1f} steps"
    return note
