"""The cold start: policies learn the tools from demonstrations before any reward.

Demonstrations are episodes that a scripted expert plays through the swarm runtime, so their tokens
are those of a rollout. A stage ends when a skill, measured on material that is never trained on,
reaches its gate: after a number of steps, never after a time.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

from parl.config.training import ColdStart, Stage
from parl.core import manifest
from parl.core.manifest import COLD_START
from parl.core.progress import Progress
from parl.core.seeds import seed_for
from parl.core.types import Mode, Task
from parl.evaluation.metrics import heldout_metrics
from parl.learner import checkpoint as checkpoints
from parl.learner.checkpoint import State
from parl.runs.folder import RunFolder, read_resolved
from parl.training.assemble import Parts
from parl.training.demonstrator import Demonstrator, SftExample, knobs_of
from parl.training.sft import token_accuracy, train_stage

# With 40 items of a few dozen tokens each an accuracy has a standard error of about .01.
NUM_PROBES = 40
"""Demonstrations that a next-token accuracy is measured on."""
SECTIONS_OF_EVALUATION = ("seed", "env", "roles", "swarm", "clock", "eval")
"""Where these are equal, the evaluation of a cold start comes out the same in two runs."""


@dataclass(frozen=True, slots=True)
class StageReport:
    """What a stage did: steps, the skill it reached, whether its gate opened, attempts it took."""

    name: str
    steps: int
    metric: str
    value: float
    passed: bool
    attempts: int


def cold_start(parts: Parts, folder: RunFolder) -> Path:
    """Train the cold start, or take that of another run, and return its checkpoint.

    Without `cold_start` in the config the checkpoint holds the policies as they are (pretrained,
    say).
    """
    target = folder.path / "checkpoints" / COLD_START
    target.parent.mkdir(exist_ok=True)
    config = parts.config.cold_start
    if config is not None and config.from_run is not None:
        _copy_from_run(parts, config.from_run, folder, target)
        return target
    reports: list[StageReport] = []
    if config is not None:
        # Adapters begin on what their base learns, so only policies with weights are trained.
        names = [config.policy] if config.policy is not None else parts.policies.with_own_weights()
        for name in names:
            reports += _train_policy(parts, config, name)
        if config.policy is not None:
            parts.policies.copy_weights(config.policy)
    state = State(0, {}, [asdict(report) for report in reports])
    checkpoints.save(target, state, parts.policies.stored(), {})
    return target


def gate_of(metric: str) -> tuple[str, str]:
    """Split the metric of a gate into the kind of measurement, "" for none, and what it measures.

    Example: forced_parallel/score -> (forced_parallel, score); ability/search/score -> ("",
        ability/search/score)
    """
    first, _, rest = metric.partition("/")
    return ("", metric) if first == "ability" or not rest else (first, rest)


def _copy_from_run(parts: Parts, run: Path, folder: RunFolder, target: Path) -> None:
    """Copy another run's cold start, and its evaluation where it would come out the same here."""
    source = checkpoints.find(run, "cold-start")
    manifest.verify(source)
    values, other_values = parts.config.model_dump(mode="json"), read_resolved(run)
    is_same = all(values[key] == other_values.get(key) for key in SECTIONS_OF_EVALUATION)
    if is_same and (run / "eval" / "cold_start.json").is_file():
        for file in (run / "eval").glob("cold_start*.json"):
            shutil.copy(file, folder.path / "eval")
    # Renamed when it is complete: a run that is killed here leaves no half checkpoint, and the
    # resumed run copies again.
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.copytree(source, temporary, dirs_exist_ok=True)
    temporary.rename(target)


def _train_policy(parts: Parts, config: ColdStart, name: str) -> list[StageReport]:
    """Train all weights of a policy in place through all stages, also where adapters stand on it.

    A stage that misses its gate is extended by half as many steps again, until `max_attempts`: it
    never restarts.
    """
    parts.policies.models[name].requires_grad_(True)  # adapters on it have frozen it
    renderer = parts.policies.renderers[name]
    lists_tools = parts.config.policies[name].lists_tools
    seed = seed_for(parts.config.seed, "cold-start", name) % 2**31
    source = Demonstrator(parts.env, renderer, parts.config, seed, lists_tools)
    # Probes have a seed of their own: a gate measures what was not trained on.
    probes = Demonstrator(parts.env, renderer, parts.config, seed + 1, lists_tools)
    reports = []
    for stage in config.stages:
        stage = stage.replace(demonstrator={**config.demonstrator, **stage.demonstrator})
        measure = _gate(parts, config, name, stage, probes)
        reports.append(_train_stage(parts, config, name, stage, source, measure))
    return reports


def _train_stage(
    parts: Parts,
    config: ColdStart,
    name: str,
    stage: Stage,
    source: Demonstrator,
    measure: Callable[[], float],
) -> StageReport:
    """Train a stage until its gate opens, in at most `max_attempts` attempts."""
    policies, gate = parts.policies, stage.until
    model, tokenizer = policies.models[name], policies.tokenizers[name]
    num_steps = attempts = 0
    passed = False
    while not passed and attempts < config.max_attempts:
        attempts += 1
        # A second attempt goes on from the weights of the first: a skill that came late (copying is
        # a phase transition) needs more steps, and a restart would throw them away.
        max_steps = gate.max_steps if attempts == 1 else max(1, gate.max_steps // 2)
        attempt = stage.replace(
            until=gate.replace(max_steps=max_steps, min_steps=min(gate.min_steps, max_steps))
        )
        with Progress(f"cold start, {stage.name}", max_steps) as bar:
            steps, value = train_stage(
                parts.config, attempt, source, model, tokenizer, measure, bar
            )
        num_steps += steps
        passed = value >= gate.value
    if not passed:
        print(
            f"cold start, {stage.name}: gate missed after {num_steps} steps "
            f"({gate.metric} {value:.3f}, gate {gate.value}); going on.",
            file=sys.stderr,
        )
    return StageReport(stage.name, num_steps, gate.metric, value, passed, attempts)


def _gate(
    parts: Parts, config: ColdStart, name: str, stage: Stage, probes: Demonstrator
) -> Callable[[], float]:
    """Return the stage's skill as a function of the current weights.

    `accuracy/KIND` is the next-token accuracy on demonstrations of that kind that are never trained
    on. Any other metric is one of a greedy evaluation on validation tasks: `score`, or
    `MODE/METRIC`, such as `forced_parallel/score`.
    """
    metric = stage.until.metric
    if metric.startswith("accuracy/"):
        kind = metric.removeprefix("accuracy/")
        examples: list[SftExample] = []
        for _ in range(NUM_PROBES):
            examples += probes.item(kind, knobs_of(kind, stage.demonstrator))
        model = parts.policies.models[name]
        return lambda: token_accuracy(model, examples)
    kind_of_run, measured = gate_of(metric)
    mode = cast(Mode, kind_of_run or parts.config.swarm.mode)
    tasks = _gate_tasks(parts, measured)

    def measure() -> float:
        # The other roles play in the evaluation too, with the weights as they are by now.
        if config.policy is not None:
            parts.policies.copy_weights(config.policy)
        parts.policies.engines.start()
        handles = parts.policies.handles()
        episodes = parts.evaluator.episodes(handles, tasks, "greedy", mode, "gate")
        return heldout_metrics(episodes)[measured]

    return measure


def _gate_tasks(parts: Parts, measured: str) -> Sequence[Task]:
    """Return the validation tasks of a gate, or those of the one ability that it measures."""
    tasks: Sequence[Task] = parts.tasks["validation"][: parts.config.eval.num_tasks]
    if not measured.startswith("ability/"):
        return tasks
    ability = measured.split("/")[1]
    return [task for task in tasks if task.ability == ability]
