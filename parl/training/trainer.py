"""The loop: cold start, then rollouts -> rewards -> advantages -> weights, and a summary at the end.

tasks -> episodes -> scored groups -> samples -> new weights -> engines, once per step
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from parl.config import Config, parse, phases
from parl.config.env import MixConfig
from parl.config.roles import Roles
from parl.core import manifest
from parl.core.errors import CheckpointError, ConfigError, Interrupted, ModelUnavailable
from parl.core.machine import pin_threads, rss_mb
from parl.core.progress import Progress
from parl.core.seeds import seed_for
from parl.core.types import Decoding, Mode, Sample, ScoredEpisode
from parl.env.tasks import fingerprint, load_tasks
from parl.evaluation.evaluator import Evaluator
from parl.evaluation.metrics import (
    heldout_metrics,
    heldout_rows,
    roles_trained,
    staleness,
    step_metrics,
)
from parl.learner import checkpoint as checkpoints
from parl.learner.policies import PolicySet
from parl.report.pages import write_report
from parl.report.summary import print_summary
from parl.reward import credit
from parl.reward.scorer import Scorer
from parl.rollout.pool import make_pool
from parl.rollout.swarm import SwarmRunner
from parl.runs import alarms
from parl.runs.folder import RunFolder, read_metrics, read_resolved
from parl.training.baseline import BaselineRun
from parl.training.preflight import check_names, check_run, check_words, rehearse_without_models
from parl.training.rollout_source import AsyncSource, RolloutSource, SyncSource, TaskSampler
from parl.training.tracking import Tracker


def train(config: Config, resume: Path | None, dry_run: bool) -> None:
    """`parl train`: run the whole pipeline, or go on with a run."""
    if resume is not None:
        config = _config_of_run(config, resume)
    pin_threads(config.threads)
    run = Run(config, dry_run)
    if dry_run:
        print(f"ok: {config.name} would run in {config.run_path}; nothing was trained or written.")
        return
    control = BaselineRun(config, config.run_path)
    folder = RunFolder.resume(resume) if resume else RunFolder.create(config.run_path, config)
    with closing(folder), closing(run.pool), control:
        run.go(folder, control)


def _config_of_run(given: Config, run: Path) -> Config:
    """The run's own config. Raises ConfigError when the one that was given differs: a resumed run equals itself."""
    own = parse({**read_resolved(run), "run_dir": str(run)}, source=str(run))
    mine, other = own.model_dump(mode="json"), given.model_dump(mode="json")
    different = sorted(k for k in mine if k != "run_dir" and mine[k] != other[k])
    if different:
        raise ConfigError(
            f"{run} was made with another config (different: {', '.join(different)}). Resume it with its own: "
            f"parl train {run}/config.resolved.yaml --resume {run}; or start a new run from its policies "
            f"(policies.NAME.model={run})."
        )
    return own


class Run:
    """One training run: the parts that every step uses, and its small state."""

    def __init__(self, config: Config, check_only: bool = False) -> None:
        self.config = config
        self.env = check_names(config)
        self.tasks = {s: load_tasks(config, self.env, s) for s in ("train", "validation", "test")}
        self.untrained: PolicySet | None = None
        if not (
            config.run_path / "checkpoints"
        ).is_dir():  # of a run that is resumed, this was checked when it began
            try:
                self.untrained = PolicySet(config, self.env)
            except ModelUnavailable as error:
                if check_only:
                    rehearse_without_models(config, self.env, self.tasks["train"])
                    raise ModelUnavailable(
                        f"{error} Everything else of the config was checked, and fits."
                    ) from None
                raise
            check_words(config, [t for split in self.tasks.values() for t in split], self.untrained)
            check_run(config, self.tasks["train"], self.untrained)
        if check_only:
            return
        self.pool = make_pool(config)
        self.evaluator = Evaluator(config, self.pool)
        self.scorer = Scorer(config.reward)
        self.interrupted = False
        self.state = checkpoints.State(0, {}, [])

    def open(self, folder: RunFolder) -> None:
        """Take a folder and write down which tasks the run uses."""
        self.folder = folder
        splits = {s: {"num": len(t), "fingerprint": fingerprint(t)} for s, t in self.tasks.items()}
        done = folder.path / "tasks.json"
        if done.is_file() and json.loads(done.read_text()) != splits:
            raise CheckpointError(
                f"The tasks are not those that {folder.path} was made with (see its tasks.json). Restore the tasks "
                "file or the package that made them, or start a new run."
            )
        folder.write_json("tasks.json", splits)

    def go(self, folder: RunFolder, control: BaselineRun) -> None:
        """Cold start if there is none yet, RL from the last checkpoint on, final evaluation."""
        started = time.monotonic()
        self.open(folder)
        self._restore_or_warm_up()
        folder.truncate_metrics(self.state.step)
        num_steps, watch = self.config.train.num_steps, alarms.Watch(read_metrics(folder.path))
        with (
            self._ctrl_c(),
            Tracker(self.config, folder.path) as tracker,
            Progress("training", num_steps) as bar,
        ):
            bar.advance(to=self.state.step)
            for step in range(self.state.step, num_steps):
                control.check()
                metrics = self._step(step)
                due = self._after_step(step, metrics)
                tracker.log(metrics)
                folder.log(
                    metrics
                )  # before the checkpoint: a run that is killed between them repeats the step
                bar.advance(_note(metrics))
                for alarm in watch.add(metrics):
                    bar.say(str(alarm))
                stop = self.interrupted
                if due or stop:
                    self._save()
                if stop:
                    raise Interrupted(step, str(folder.path))
            with _only_a_note("the episodes are not in wandb"):
                tracker.show_episodes()
        self._finish(started, control)

    # --- one step ----------------------------------------------------------------------------------------------------

    def _step(self, step: int) -> dict[str, float]:
        """Rollouts, rewards, credit, update, sync."""
        config, began = self.config, time.monotonic()
        lost_before = self.pool.lost.copy()
        roles = self.roles = self._roles_now()
        handles = self.policies.handles(roles)
        runner = SwarmRunner(
            handles, config.roles, config.swarm, config.clock, credit=config.credit
        )
        groups = self.feed.next(step, runner)
        rolled = time.monotonic()
        episodes = [e for group in groups for e in group]
        staleness_mean, staleness_max = staleness(episodes, self.policies.versions())
        scored, budgets = [], dict(self.state.budgets)
        for group in groups:
            done, budgets = self.scorer.score(group, step, budgets)
            scored.append(done)
        samples, mass = credit.build_samples(scored, config.credit, config.loss, roles, step)
        chosen, mass = self._choose(samples, mass, step)
        update = self.policies.update(chosen, mass, step)
        learned = time.monotonic()
        longest = max((e.orchestrator for e in episodes), key=lambda trace: len(trace.token_ids))
        sync = self.policies.sync(longest.token_ids, longest.images)
        self.feed.push(self.policies.handles(roles))
        now = time.monotonic()
        flat = [s for group in scored for s in group]
        if step % config.train.store_episodes_every == 0:
            by_id = {s.episode.id: s for s in flat}
            stored = [
                by_id.get(e.id) or ScoredEpisode(e, {}) for e in episodes
            ]  # a failed one has no rewards
            self.folder.write_episodes(step, stored, samples)
        self.state = replace(self.state, step=step + 1, budgets=budgets, pending=self.feed.pending)
        tokens = sum(e.tokens() + e.num_sibling_tokens for e in episodes)
        lost = self.pool.lost - lost_before
        return {
            "step": step,
            **step_metrics(flat, episodes),
            **{f"rollout/{kind}": float(count) for kind, count in lost.items()},
            **roles_trained(config.roles, roles),
            **update,
            **sync,
            **self.feed.metrics,
            "rollout/tokens_per_s": tokens / (rolled - began),
            "rollout/episodes_per_s": len(episodes) / (rolled - began),
            "learner/tokens_per_s": sum(len(s.token_ids) for s in chosen)
            / max(learned - rolled, 1e-9),
            "rollout/staleness_mean": staleness_mean,
            "rollout/staleness_max": staleness_max,
            "system/rss_mb": rss_mb(),
            "time/step_s": now - began,
            "time/rollout_s": rolled - began,
            "time/learn_s": learned - rolled,
            "time/sync_s": now - learned,
        }

    def _roles_now(self) -> Roles:
        """The roles at the next step, in which `trainable` is a plain yes or no."""
        return phases.roles_at(self.config.roles, self.state.phases, self.state.step)

    def _choose(
        self, samples: Sequence[Sample], mass: Mapping[str, float], step: int
    ) -> tuple[list[Sample], dict[str, float]]:
        """The samples in a random order, at most `max_subagent_samples` of the subagents' (N shrinks with them)."""
        rng = np.random.default_rng(seed_for(self.config.seed, "choose", step))
        left = dict(mass)
        room = self.config.train.max_subagent_samples
        kept = []
        for i in rng.permutation(len(samples)):
            sample = samples[i]
            if sample.role == "subagent" and room is not None:
                room -= 1
                if room < 0:
                    left[sample.policy] -= sample.weight * sum(sample.mask)
                    continue
            kept.append(sample)
        return kept, left

    # --- around the steps --------------------------------------------------------------------------------------------

    def _restore_or_warm_up(self) -> None:
        found = checkpoints.latest(self.folder.path)
        if found is None:
            if (self.folder.path / "metrics.jsonl").is_file():
                raise CheckpointError(
                    f"{self.folder.path} has metrics but no checkpoint left; start a new run."
                )
            self.warm_up()
            found = self.folder.path / "checkpoints" / manifest.COLD_START
        self.state, learners = checkpoints.load(found)
        self.policies = PolicySet(self.config, self.env, found)
        self.policies.start_engines()
        self.policies.start_learners()
        if learners:
            self.policies.load_learners(learners)
        self.policies.freeze(self.folder.path / "checkpoints" / manifest.COLD_START)
        self.feed = self._feed()
        if self.state.step == 0 and not (self.folder.path / "eval" / "cold_start.json").is_file():
            self._evaluate_cold_start()

    def _feed(self) -> RolloutSource:
        train = self.config.train
        weights = self.config.env.weights if isinstance(self.config.env, MixConfig) else None
        problems = TaskSampler(
            self.tasks["train"], self.config.seed, train.tasks_per_step, train.group_size, weights
        )
        if train.mode == "sync":
            return SyncSource(problems, self.pool)
        stream: Any = self.pool  # the config allows async mode on Ray alone, whose pool streams
        return AsyncSource(
            problems,
            stream,
            train.max_off_policy_steps,
            train.num_steps,
            self.state.step,
            self.state.pending,
        )

    def warm_up(self) -> None:
        """The cold start (or nothing, for a pretrained policy), then its checkpoint."""
        if self.config.cold_start is not None and self.config.cold_start.from_run is not None:
            return self._take_cold_start(self.config.cold_start.from_run)
        policies = self.untrained or PolicySet(self.config, self.env)
        self.untrained = None
        reports: list[dict[str, Any]] = []
        if self.config.cold_start is not None:
            from parl.training.cold_start import run_cold_start

            chosen = self.config.cold_start.policy
            own = [
                n for n in policies.models if self.config.base_of(n) == n
            ]  # adapters begin on what these learn
            for name in own if chosen is None else [chosen]:
                reports += [
                    asdict(r)
                    for r in run_cold_start(self.config, self.env, policies, name, self.evaluator)
                ]
            if chosen is not None:
                policies.copy_weights(chosen)
        state = checkpoints.State(0, {}, reports)
        target = self.folder.path / "checkpoints" / manifest.COLD_START
        target.parent.mkdir(exist_ok=True)
        checkpoints.save(target, state, policies.stored(), {})

    def _take_cold_start(self, run: Path) -> None:
        """Copy another run's cold start; its evaluation too when it would come out the same here."""
        source, target = (
            checkpoints.find(run, "cold-start"),
            self.folder.path / "checkpoints" / manifest.COLD_START,
        )
        manifest.verify(source)
        mine, other, done = (
            self.config.model_dump(mode="json"),
            read_resolved(run),
            run / "eval" / "cold_start.json",
        )
        if done.is_file() and all(
            mine[k] == other.get(k) for k in ("seed", "env", "roles", "swarm", "clock", "eval")
        ):
            for file in done.parent.glob("cold_start*.json"):
                shutil.copy(file, self.folder.path / "eval")
        shutil.copytree(source, target.with_name(f".{target.name}.tmp"), dirs_exist_ok=True).rename(
            target
        )

    def _after_step(self, step: int, metrics: dict[str, float]) -> bool:
        """Evaluate on validation, remember the best, let phases end. Returns whether a checkpoint is due."""
        every, last = self.config.eval.every, step + 1 == self.config.train.num_steps
        due = last or (step + 1) % self.config.train.checkpoint_every == 0
        if every is not None and ((step + 1) % every == 0 or last):
            tasks = self.tasks["validation"][: self.config.eval.num_tasks]
            mode: Mode = self.config.swarm.mode
            handles = self.policies.handles(self.roles)
            result = heldout_metrics(
                self.evaluator.episodes(handles, tasks, "greedy", mode, "validation")
            )
            self.folder.write_json(f"eval/step_{step + 1:06d}.json", result)
            metrics |= {f"eval/{k}": v for k, v in result.items()}
            if self.state.best is None or result["score"] > self.state.best["score"]:
                best = {"step": step + 1, "score": result["score"]}
                self.state = replace(self.state, best=best)
                due = True
        places = phases.after_step(self.config.roles, self.state.phases, step, metrics)
        self.state = replace(self.state, phases=places)
        return due

    def _save(self) -> None:
        root = self.folder.path
        target = root / "checkpoints" / checkpoints.step_name(self.state.step)
        stored = self.policies.stored(root / "checkpoints" / manifest.COLD_START)
        checkpoints.save(target, self.state, stored, self.policies.learner_states())
        spare = self.state.best["step"] if self.state.best else None
        checkpoints.prune(root, self.config.train.keep_checkpoints, spare)

    @contextmanager
    def _ctrl_c(self) -> Iterator[None]:
        """The first Ctrl-C ends the run after the current step, the second at once."""

        def handler(number: int, frame: FrameType | None) -> None:
            if self.interrupted:
                raise KeyboardInterrupt
            self.interrupted = True
            print("\nStopping after this step; press Ctrl-C again to stop at once.", flush=True)

        before = signal.signal(signal.SIGINT, handler)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    # --- what came of it ---------------------------------------------------------------------------------------------

    def _heldout(
        self, phase: str, mode: Mode, decodings: Sequence[Decoding], roles: Roles | None
    ) -> dict[str, dict[str, float]]:
        """Means per decoding; the rows behind them go to eval/PHASE-MODE-DECODING.tasks.json."""
        split = self.config.eval.split
        tasks = self.tasks[split]
        result: dict[str, dict[str, float]] = {}
        for decoding in decodings:
            with Progress(f"held-out tasks ({split}), {mode}, {decoding}", len(tasks)) as bar:
                handles = self.policies.handles(roles)
                episodes = self.evaluator.episodes(
                    handles, tasks, decoding, mode, decoding, progress=bar
                )
            result[decoding] = heldout_metrics(episodes)
            self.folder.write_json(
                f"eval/{phase}-{mode}-{decoding}.tasks.json", heldout_rows(episodes)
            )
        return result

    def _evaluate_cold_start(self) -> None:
        decodings = self.config.eval.decoding
        mode: Mode = self.config.swarm.mode
        result: dict[str, Any] = {mode: self._heldout("cold_start", mode, decodings, None)}
        if mode == "swarm" and self.config.roles.orchestrator.policy not in self.policies.remote:
            result["forced_parallel"] = self._heldout(
                "cold_start", "forced_parallel", ("greedy",), None
            )
        self.folder.write_json("eval/cold_start.json", result)

    def _finish(self, started: float, control: BaselineRun) -> None:
        mode: Mode = self.config.swarm.mode
        decodings = self.config.eval.decoding
        trained: dict[str, Any] = {
            mode: self._heldout("trained", mode, decodings, self._roles_now())
        }
        cold = json.loads((self.folder.path / "eval" / "cold_start.json").read_text())
        other = control.result()
        if other is not None:
            beside = (
                "single" if mode == "swarm" else "control"
            )  # of a single agent, it is another one
            cold[beside] = other["heldout"]["cold_start"]["single"]
            trained[beside] = other["heldout"]["trained"]["single"]
        attempts = max((r["attempts"] for r in self.state.cold_start), default=0)
        summary = {
            "seed": self.config.seed,
            "wall_s": time.monotonic() - started,
            "cold_start_attempts": attempts,
            "cold_start_stages": self.state.cold_start,
            "split": self.config.eval.split,
            "heldout": {"cold_start": cold, "trained": trained},
        }
        self.folder.write_json("summary.json", summary)
        report = None
        with _only_a_note(f"there is no report; try again with: parl report {self.folder.path}"):
            report = write_report(self.folder.path)
        print_summary(
            summary, self.folder.path, report, alarms.check(read_metrics(self.folder.path))
        )


@contextmanager
def _only_a_note(what: str) -> Iterator[None]:
    """Pages only show the run: what goes wrong with them does not end it."""
    try:
        yield
    except Exception as error:
        print(f"note: {what} ({error!r})", file=sys.stderr, flush=True)


def _note(metrics: Mapping[str, float]) -> str:
    parts = [
        f"outcome {metrics.get('outcome/score', 0):.3f}",
        f"critical steps {metrics.get('swarm/critical_steps', 0):.1f}",
    ]
    parts.append(f"subagents {metrics.get('swarm/num_subagents', 0):.1f}")
    if "eval/score" in metrics:
        parts.append(
            f"| validation {metrics['eval/score']:.3f} in {metrics['eval/critical_steps']:.1f} steps"
        )
    return ", ".join(parts)


def sft_command(config: Config) -> None:
    """`parl sft`: the cold start alone. The run folder can be trained later with --resume."""
    from parl.training.trainer import Run

    pin_threads(config.threads)
    run = Run(config)
    with closing(run.pool):
        run.open(RunFolder.create(config.run_path, config))
        run.warm_up()
    path = config.run_path
    print(
        f"The cold start is in {path}/checkpoints. Go on with: parl train {path}/config.resolved.yaml --resume {path}"
    )
