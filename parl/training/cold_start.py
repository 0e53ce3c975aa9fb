"""The cold start: a policy learns the tools from demonstrations before any reward.

In: a model, the environment's demonstrator, stages. Out: the model, and what each stage measured. A stage ends when a
skill measured on material that it never trained on reaches its gate: in steps, never in seconds. Demonstrations are
episodes that a scripted expert plays through the swarm runtime, so the tokens are those of a rollout. TRL's SFT trainer
trains on the agents' own tokens only; the trained fraction is checked.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from parl.config.schema import Config
from parl.config.training import ColdStart, Stage
from parl.core.progress import Progress
from parl.core.seeds import seed_for
from parl.env.base import AgentEnv
from parl.env.tasks import load_tasks
from parl.evaluation.evaluator import Evaluator
from parl.evaluation.metrics import heldout_metrics
from parl.learner.policies import PolicySet
from parl.training.demonstrator import Demonstrator, knobs_of
from parl.training.sft import token_accuracy, train_stage


@dataclass(frozen=True, slots=True)
class StageReport:
    """What a stage did: steps, the skill it reached, whether its gate opened, attempts it took."""

    name: str
    steps: int
    metric: str
    value: float
    passed: bool
    attempts: int


def gate_of(metric: str) -> tuple[str, str]:
    """(kind of measurement or "", what it measures). Example: forced_parallel/score -> (forced_parallel, score)."""
    first, _, rest = metric.partition("/")
    return ("", metric) if first == "ability" or not rest else (first, rest)


def run_cold_start(
    config: Config, env: AgentEnv, policies: PolicySet, name: str, evaluator: Evaluator
) -> list[StageReport]:
    """Train the policy `name` in place through all stages: all its weights, also where adapters stand on it.

    A stage that misses its gate is extended by half as many steps again, until `max_attempts`: it never restarts.
    """
    cold: ColdStart | None = config.cold_start
    assert cold is not None
    model, renderer = policies.models[name], policies.renderers[name]
    model.requires_grad_(True)  # adapters on it have frozen it
    seed = seed_for(config.seed, "cold-start", name) % 2**31
    tools = config.policies[name].lists_tools
    source = Demonstrator(env, renderer, config, seed, tools)
    held = Demonstrator(env, renderer, config, seed + 1, tools)
    reports = []
    for stage in cold.stages:
        stage = stage.replace(demonstrator={**cold.demonstrator, **stage.demonstrator})
        measure = _gate(stage, model, held, config, env, policies, evaluator)
        steps = 0
        attempts = 0
        while attempts < cold.max_attempts:
            attempts += 1
            max_steps = (
                stage.until.max_steps if attempts == 1 else max(1, stage.until.max_steps // 2)
            )
            until = stage.until.replace(
                max_steps=max_steps, min_steps=min(stage.until.min_steps, max_steps)
            )
            piece = stage.replace(until=until)
            with Progress(f"cold start, {stage.name}", max_steps) as bar:
                taken, value = train_stage(
                    config, piece, source, model, policies.tokenizers[name], measure, bar
                )
            steps += taken
            if value >= stage.until.value:
                break
        passed = value >= stage.until.value
        if not passed:
            gate = f"{stage.until.metric} {value:.3f}, gate {stage.until.value}"
            print(
                f"cold start, {stage.name}: gate missed after {steps} steps ({gate}); going on.",
                file=sys.stderr,
            )
        reports.append(StageReport(stage.name, steps, stage.until.metric, value, passed, attempts))
    return reports


def _gate(
    stage: Stage,
    model: Any,
    held: Demonstrator,
    config: Config,
    env: AgentEnv,
    policies: PolicySet,
    evaluator: Evaluator,
) -> Callable[[], float]:
    """The stage's skill as a function of the current weights.

    `accuracy/KIND`: next-token accuracy on texts of that kind that are never trained on. Any other metric is one of
    an evaluation on validation tasks, greedy: `score`, or `MODE/METRIC`, such as `forced_parallel/score`.
    """
    metric = stage.until.metric
    if metric.startswith("accuracy/"):
        kind = metric.removeprefix("accuracy/")
        probe = [t for _ in range(40) for t in held.item(kind, knobs_of(kind, stage.demonstrator))]
        return lambda: token_accuracy(model, probe)
    mode, name = gate_of(metric)
    ability = (
        name.split("/")[1] if name.startswith("ability/") else None
    )  # only these tasks are asked then
    tasks = [
        t
        for t in load_tasks(config, env, "validation")[: config.eval.num_tasks]
        if ability is None or t.ability == ability
    ]

    def measure() -> float:
        if config.cold_start is not None and config.cold_start.policy is not None:
            policies.copy_weights(config.cold_start.policy)
        policies.start_engines()
        chosen: Any = mode or config.swarm.mode
        return heldout_metrics(
            evaluator.episodes(policies.handles(), tasks, "greedy", chosen, "gate")
        )[name]

    return measure
