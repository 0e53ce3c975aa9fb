"""The loop: cold start, then rollouts -> rewards -> advantages -> weights, then a summary.

    tasks -> episodes -> scored groups -> samples -> new weights -> engines, once per step

Weights are the only arrow back. What a step does not need (evaluation, checkpoints, tracking) is in
`hooks`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from parl.config import Config, parse, phases
from parl.core.errors import CheckpointError, ConfigError, ModelUnavailable
from parl.core.machine import pin_threads, rss_mb
from parl.core.manifest import COLD_START
from parl.core.progress import Progress
from parl.core.seeds import seed_for
from parl.core.types import Episode, Sample, ScoredEpisode
from parl.env.tasks import fingerprint
from parl.evaluation.metrics import roles_trained, staleness, step_metrics
from parl.learner import checkpoint as checkpoints
from parl.learner.checkpoint import State
from parl.rewards.credit import build_samples
from parl.rollout.swarm import SwarmRunner
from parl.runs.folder import RunFolder, read_resolved
from parl.training.assemble import Parts, assemble
from parl.training.baseline import BaselineRun
from parl.training.cold_start import cold_start
from parl.training.finish import evaluate_and_report, evaluate_cold_start, note_failure
from parl.training.hooks import (
    Checkpoint,
    Evaluate,
    Hook,
    ShowProgress,
    StepRecord,
    StoreEpisodes,
    Track,
)
from parl.training.preflight import preflight, with_stand_ins
from parl.training.rollout_source import RolloutSource, make_source
from parl.training.stop import StopRequest
from parl.training.summary import Summary
from parl.training.tracking import Tracker


def train(config: Config, resume: Path | None = None, dry_run: bool = False) -> Summary | None:
    """Train: the cold start, RL, the final evaluation, and the report.

    Args:
        resume: a run folder to go on with; the config must be the run's own.
        dry_run: build and rehearse everything, write nothing; returns None.
    Raises:
        ConfigError: something does not fit; nothing was written.
        CheckpointError: the folder cannot be used, or a checkpoint is damaged.
        Interrupted: Ctrl-C; a checkpoint was written.
    """
    started = time.monotonic()
    if resume is not None:
        config = _config_of_run(config, resume)
    pin_threads(config.threads)
    checkpoint = checkpoints.latest(resume) if resume is not None else None
    with _assemble(config, checkpoint, dry_run) as parts:
        if dry_run:
            print(
                f"ok: {config.name} would run in {config.run_path}; nothing was trained or written."
            )
            return None
        # The baseline checks its folder before this run has one; its process starts behind that.
        baseline = BaselineRun(config, config.run_path)
        folder = RunFolder.resume(resume) if resume else RunFolder.create(config.run_path, config)
        with closing(folder), baseline:
            state = restore(parts, folder)
            state = Trainer(parts, folder, state, baseline).run()
            return evaluate_and_report(parts, folder, state, baseline, started)


def run_cold_start_alone(config: Config) -> Path:
    """Train the cold start alone and return the run folder; `resume` trains on from there."""
    pin_threads(config.threads)
    with (
        _assemble(config, checkpoint=None) as parts,
        closing(RunFolder.create(config.run_path, config)) as folder,
    ):
        _note_tasks(parts, folder)
        cold_start(parts, folder)
    return config.run_path


def restore(parts: Parts, folder: RunFolder) -> State:
    """Start the policies from the run's last checkpoint, after the cold start in a new run.

    Both ways lead through a checkpoint, so that a resumed run equals an uninterrupted one.
    """
    _note_tasks(parts, folder)
    checkpoint = checkpoints.latest(folder.path)
    if checkpoint is None:
        if (folder.path / "metrics.jsonl").is_file():
            raise CheckpointError(
                f"{folder.path} has metrics but no checkpoint left; start a new run."
            )
        checkpoint = cold_start(parts, folder)
    state, learner_states = checkpoints.load(checkpoint)
    first = folder.path / "checkpoints" / COLD_START
    parts.policies.restore(checkpoint, learner_states, first)
    # A run that was killed between metrics and checkpoint repeats the step.
    folder.truncate_metrics(state.step)
    if state.step == 0 and not (folder.path / "eval" / "cold_start.json").is_file():
        evaluate_cold_start(parts, folder)
    return state


class Trainer:
    """Runs the steps of a training run.

    Args:
        state: where the run stands; `state.step` is the next step.
        baseline: a run next to this one; its death ends this one.
    """

    def __init__(
        self, parts: Parts, folder: RunFolder, state: State, baseline: BaselineRun
    ) -> None:
        self.config = parts.config
        self.parts = parts
        self.folder = folder
        self.state = state
        self.baseline = baseline
        self.source: RolloutSource = make_source(
            parts.config, parts.tasks["train"], parts.pool, state
        )

    def run(self) -> State:
        """Run all steps that are left and return the state after the last one."""
        num_steps = self.config.train.num_steps
        with self._hooks() as hooks:
            for step in range(self.state.step, num_steps):
                self.baseline.check()
                record = self.step(step)
                for hook in hooks:
                    record.metrics |= hook.measure(record)
                self.state = self._after(record)
                record.state = self.state
                # Before the checkpoint: a run that is killed between them repeats the step.
                self.folder.log(record.metrics)
                for hook in hooks:
                    hook.after_step(record)
        return self.state

    def step(self, step: int) -> StepRecord:
        """Rollouts, rewards, credit, gradient, sync."""
        config, policies, pool = self.config, self.parts.policies, self.parts.pool
        roles = phases.roles_at(config.roles, self.state.phases, step)
        runner = SwarmRunner(
            policies.handles(roles), config.roles, config.swarm, config.clock, credit=config.credit
        )
        lost_before = pool.lost.copy()
        times = [time.monotonic()]

        groups = self.source.next(step, runner)
        times.append(time.monotonic())
        episodes = [episode for group in groups for episode in group]
        lag_mean, lag_max = staleness(episodes, policies.learners.versions())

        scored, budgets = self._score(groups, step)
        samples, token_mass = build_samples(
            scored, config.credit, self.parts.weighting, roles, step
        )
        batch, token_mass = self._select(samples, token_mass, step)
        update = policies.update(batch, token_mass, step)
        times.append(time.monotonic())

        # After each sync engine and learner are compared on a text of this very step, the longest,
        # so that windows, caches and images are in it.
        longest = max(episodes, key=_num_orchestrator_tokens).orchestrator
        sync = policies.sync(longest.token_ids, longest.images)
        self.source.push(policies.handles(roles))
        times.append(time.monotonic())

        # Failed episodes are not scored (never 0), but counted and stored.
        by_id = {s.episode.id: s for group in scored for s in group}
        metrics = {
            "step": step,
            **step_metrics(list(by_id.values()), episodes),
            **_lost_workers(pool.lost - lost_before),
            **roles_trained(config.roles, roles),
            **update,
            **sync,
            **self.source.metrics,
            **_rates(times, episodes, batch),
            "rollout/staleness_mean": lag_mean,
            "rollout/staleness_max": lag_max,
            "system/rss_mb": rss_mb(),
        }
        stored = [by_id.get(e.id) or ScoredEpisode(e, {}) for e in episodes]
        state = replace(self.state, step=step + 1, budgets=budgets, pending=self.source.pending)
        return StepRecord(step, roles, stored, samples, state, metrics)

    def _score(
        self, groups: Sequence[Sequence[Episode]], step: int
    ) -> tuple[list[list[ScoredEpisode]], Mapping[str, float]]:
        """Score the groups in turn: each may change the token budgets that the next one meets."""
        scored = []
        budgets = dict(self.state.budgets)
        for group in groups:
            scored_group, budgets = self.parts.scorer.score(group, step, budgets)
            scored.append(scored_group)
        return scored, budgets

    def _select(
        self, samples: Sequence[Sample], token_mass: Mapping[str, float], step: int
    ) -> tuple[list[Sample], dict[str, float]]:
        """Shuffle the samples and drop those of subagents beyond `max_subagent_samples`.

        N, the denominator of the loss, shrinks with them.
        """
        # From the seed and the step, so that a resumed run chooses alike.
        rng = np.random.default_rng(seed_for(self.config.seed, "choose", step))
        limit = self.config.train.max_subagent_samples
        mass = dict(token_mass)
        selected: list[Sample] = []
        num_subagents = 0
        for index in rng.permutation(len(samples)):
            sample = samples[index]
            if sample.role == "subagent" and limit is not None:
                num_subagents += 1
                if num_subagents > limit:
                    mass[sample.policy] -= sample.weight * sum(sample.mask)
                    continue
            selected.append(sample)
        return selected, mass

    def _after(self, record: StepRecord) -> State:
        """Let phases of the roles end: they may wait for a metric, also of the evaluation."""
        places = phases.after_step(
            self.config.roles, self.state.phases, record.step, record.metrics
        )
        return replace(record.state, phases=places)

    @contextmanager
    def _hooks(self) -> Iterator[list[Hook]]:
        config, path = self.config, self.folder.path
        bar = Progress("training", config.train.num_steps)
        with StopRequest() as stop, Tracker(config, path) as tracker, bar:
            bar.advance(to=self.state.step)
            yield [
                StoreEpisodes(config, self.folder),
                Evaluate(self.parts, self.folder),
                Track(tracker),
                ShowProgress(bar, path),
                Checkpoint(self.parts, self.folder, stop),
            ]
            with note_failure("the episodes are not in wandb"):
                tracker.show_episodes()


def _assemble(config: Config, checkpoint: Path | None, dry_run: bool = False) -> Parts:
    """Build the parts and rehearse with them.

    A run that has a checkpoint was rehearsed when it began.
    """
    try:
        parts = assemble(config, checkpoint)
    except ModelUnavailable as error:
        if not dry_run:
            raise
        # Everything else is still worth a check before the model is on this machine.
        preflight(assemble(with_stand_ins(config)))
        raise ModelUnavailable(
            f"{error} Everything else of the config was checked, and fits."
        ) from None
    if checkpoint is None:
        preflight(parts)
    return parts


def _config_of_run(config: Config, run: Path) -> Config:
    """Return the run's own config.

    Raises:
        ConfigError: the config that was passed is another one: a resumed run equals itself.
    """
    run_config = parse({**read_resolved(run), "run_dir": str(run)}, source=str(run))
    run_values = run_config.model_dump(mode="json")
    values = config.model_dump(mode="json")
    different = sorted(k for k in run_values if k != "run_dir" and run_values[k] != values[k])
    if different:
        raise ConfigError(
            f"{run} was made with another config (different: {', '.join(different)}). Resume it with its own: "
            f"parl train {run}/config.resolved.yaml --resume {run}; or start a new run from its policies "
            f"(policies.NAME.model={run})."
        )
    return run_config


def _note_tasks(parts: Parts, folder: RunFolder) -> None:
    """Write down which tasks the run uses.

    Raises:
        CheckpointError: a run that is resumed used other tasks.
    """
    splits: dict[str, Any] = {
        split: {"num": len(tasks), "fingerprint": fingerprint(tasks)}
        for split, tasks in parts.tasks.items()
    }
    file = folder.path / "tasks.json"
    if file.is_file() and json.loads(file.read_text()) != splits:
        raise CheckpointError(
            f"The tasks are not those that {folder.path} was made with (see its tasks.json). Restore the tasks "
            "file or the package that made them, or start a new run."
        )
    folder.write_json("tasks.json", splits)


def _num_orchestrator_tokens(episode: Episode) -> int:
    return len(episode.orchestrator.token_ids)


def _lost_workers(lost: Mapping[str, int]) -> dict[str, float]:
    return {f"rollout/{kind}": float(count) for kind, count in lost.items()}


def _rates(
    times: Sequence[float], episodes: Sequence[Episode], batch: Sequence[Sample]
) -> dict[str, float]:
    """Return seconds and rates of a step.

    Args:
        times: when the step began, and when rollouts, learning and sync ended.
    """
    began, rolled_out, learned, synced = times
    rollout_s, learn_s = rolled_out - began, learned - rolled_out
    num_tokens = sum(e.tokens() + e.num_sibling_tokens for e in episodes)
    num_trained = sum(len(sample.token_ids) for sample in batch)
    return {
        "rollout/tokens_per_s": num_tokens / rollout_s,
        "rollout/episodes_per_s": len(episodes) / rollout_s,
        "learner/tokens_per_s": num_trained / max(learn_s, 1e-9),
        "time/step_s": synced - began,
        "time/rollout_s": rollout_s,
        "time/learn_s": learn_s,
        "time/sync_s": synced - learned,
    }
