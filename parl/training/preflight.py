"""Everything that can be known to be wrong before a run has a folder: what the config names is there and fits.

In: a config. Raises ConfigError or CheckpointError, and writes nothing. Types of values are the schema's business.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from parl.config import Config, load
from parl.config.roles import Gate
from parl.config.tiny import TinyModel
from parl.config.training import Stage
from parl.core import manifest
from parl.core.abstention import RATES
from parl.core.errors import ConfigError, EndpointFailure, did_you_mean
from parl.core.messages import Message
from parl.core.types import ROLES, Episode, Task
from parl.env import registry as plugins
from parl.env.base import AgentEnv
from parl.env.demonstrations import Segment
from parl.env.mixture import env_of
from parl.env.registry import make_env
from parl.evaluation.metrics import heldout_metrics, step_metrics
from parl.policy.base import Engine, PolicyHandle, Request
from parl.policy.engines.scripted import ScriptedEngine
from parl.reward.scorer import Scorer, validate
from parl.rollout.external_agent import load_external_agent
from parl.rollout.swarm import SwarmRunner

LATER = ("outcome/subtask", "swarm/finish_rate", "reward/subagent")
"""Metrics of steps with subagents, of which the rehearsal has none."""
GATE_MODES = ("swarm", "single", "forced_parallel")


def check_names(config: Config) -> AgentEnv:
    """What needs no model: reward terms, environment, control. Returns the environment."""
    plugins.load()
    validate(config.reward)
    env = make_env(config.env)
    for role in ROLES:
        external_agent = config.roles.of(role).external_agent
        if external_agent is not None:
            load_external_agent(role, external_agent)
    if config.baseline is not None:
        try:
            baseline = load(config.baseline)
            validate(baseline.reward)
            make_env(baseline.env)
        except ConfigError as error:
            raise ConfigError(f"baseline: {error}") from None
    return env


def check_words(config: Config, tasks: Sequence[Task], policies: Any) -> None:
    """A tiny policy must know every word of the tasks: it would read any other as `?`, and the run would be lost."""
    name = config.base_of(config.roles.orchestrator.policy)
    if not config.policies[name].is_tiny or name in policies.remote:
        return
    for task in tasks:
        unknown = policies.renderers[name].unknown_words(task.prompt)
        if unknown:
            raise ConfigError(
                f"policies.{name}.model is {config.policies[name].model}, and its vocabulary, which {config.env.name} "
                f"gives, lacks words of the task {task.id}: {', '.join(dict.fromkeys(unknown[:5]))}. Write tasks in "
                f"words of the corpus, or take a pretrained model: policies.{name}.model=PATH."
            )


def check_run(config: Config, tasks: Sequence[Task], policies: Any) -> None:
    """A rehearsal: one episode is played by a script and scored, each kind of demonstration is drawn once.

    Args:
        policies: the run's `PolicySet`, for its renderers.
    """
    _check_endpoints(policies.remote)
    env = make_env(
        config.env
    )  # one of its own: what it remembers of the rehearsal must not change the run
    renderers = policies.renderers
    firsts = {t.ability: t for t in reversed(tasks)}.values()  # of a mix, one of each ability
    episodes = [_rehearse(config, env, task, renderers) for task in firsts]
    for episode in episodes:
        task, env_id = episode.task, config.env.id_of(episode.task.ability)
        if episode.status == "failed":
            raise ConfigError(
                f"{env_id} fails on the task {task.id}: {episode.orchestrator.stop_reason}. "
                f"`parl envs check {env_id}` may tell more."
            )
        cannot_tell = type(env_of(env, task)).contributions is AgentEnv.contributions
        if config.credit.type == "leave_one_out" and cannot_tell:
            raise ConfigError(
                f"credit.type is leave_one_out, but {env_id} cannot tell what a subagent contributed. Implement its "
                "contributions() (docs/credit.md), or set credit.type: group_mean."
            )
    scored = [s for e in episodes for s in Scorer(config.reward).score([e], 0, {})[0]]
    later = [
        *LATER,
        *(f"outcome/{k}" for k in RATES if any("calibration" in e.facts for e in episodes)),
    ]
    _check_gates(
        config,
        {
            *step_metrics(scored, episodes),
            *later,
            *(f"eval/{k}" for k in heldout_metrics(episodes)),
        },
    )
    cold = config.cold_start
    if cold is None:
        return
    if cold.from_run is not None:
        from parl.learner import checkpoint

        folder = checkpoint.find(cold.from_run, "cold-start")
        manifest.verify(folder)
        lacking = [name for name in policies.models if not (folder / "policies" / name).is_dir()]
        if lacking:
            raise ConfigError(
                f"cold_start.from_run: the cold start of {cold.from_run} has no policy '{lacking[0]}'. Start from its "
                f"weights instead: cold_start=null and policies.NAME.model={folder / 'policies' / 'NAME'}."
            )
        return
    if cold.policy is not None:
        policies.copy_weights(cold.policy)  # refuses policies of another shape
    for name in (n for n in policies.models if config.base_of(n) == n):
        for stage in cold.stages:
            _check_stage(config, name, stage, env, renderers[name], episodes)


def rehearse_without_models(config: Config, env: AgentEnv, tasks: Sequence[Task]) -> None:
    """`check_run` where a model cannot be fetched: small ones stand in for all that have weights of their own."""
    from parl.learner.policies import PolicySet

    stand_in = {"model": "tiny", "tiny": TinyModel(hidden_size=32, ff_size=32), "renderer": "auto"}
    policies = {
        name: policy
        if policy.adapter is not None or policy.remote is not None
        else policy.replace(**stand_in)
        for name, policy in config.policies.items()
    }
    small = config.replace(policies=policies)
    check_run(small, tasks, PolicySet(small, env))


def _check_endpoints(engines: Mapping[str, Engine]) -> None:
    """Every endpoint that plays a role says a word."""
    messages: tuple[Message, ...] = ({"role": "user", "content": "Say ok.", "tool_calls": []},)
    for name, engine in engines.items():
        try:
            asyncio.run(
                engine.generate(
                    Request("check", (), messages, max_tokens=8, temperature=1.0, seed=0)
                )
            )
        except EndpointFailure as error:
            raise ConfigError(
                f"policies.{name}.engine: the endpoint gave no turn ({error.kind}: {error}). Start it, or correct its "
                "base_url, model and api_key_env."
            ) from None


def _check_gates(config: Config, metrics: Iterable[str]) -> None:
    """Phases that wait for a metric must wait for one that there is."""
    for name in ("orchestrator", "subagent"):
        trainable = config.roles.of(name).trainable
        for phase in () if isinstance(trainable, bool) else trainable:
            gate = phase.until
            if (
                isinstance(gate, Gate)
                and gate.metric not in metrics
                and not gate.metric.startswith("policy/")
            ):
                raise ConfigError(
                    f"roles.{name}.trainable waits for the metric '{gate.metric}'.{did_you_mean(gate.metric, metrics)}"
                )
            if (
                isinstance(gate, Gate)
                and gate.metric.startswith("eval/")
                and config.eval.every is None
            ):
                raise ConfigError(
                    f"roles.{name}.trainable waits for {gate.metric}; set eval.every as well."
                )


def _rehearse(config: Config, env: AgentEnv, task: Task, renderers: Any) -> Episode:
    """An episode in which the orchestrator answers nothing."""
    handles = {}
    for name in ("orchestrator", "subagent"):
        renderer = renderers[config.roles.of(name).policy]
        handles[name] = PolicyHandle(
            name, renderer, ScriptedEngine(lambda messages, rng: [Segment("")], renderer), False
        )
    runner = SwarmRunner(handles, config.roles, config.swarm, config.clock)
    return asyncio.run(
        runner.run(env, task, episode_id="rehearsal", group="rehearsal", step=0, seed="rehearsal")
    )


def _check_stage(
    config: Config,
    name: str,
    stage: Stage,
    env: AgentEnv,
    renderer: Any,
    episodes: Sequence[Episode],
) -> None:
    assert config.cold_start is not None
    where = f"cold_start.stages ({stage.name})"
    if not fmean(stage.data.values()) > 0:
        raise ConfigError(
            f"{where}.data: give at least one kind of demonstration a share above 0 (given: {stage.data})"
        )
    from parl.training.cold_start import gate_of
    from parl.training.demonstrator import Demonstrator, knobs_of

    source = Demonstrator(
        env, renderer, config, seed=0, lists_tools=config.policies[name].lists_tools
    )
    for kind in stage.data:
        knobs = knobs_of(kind, {**config.cold_start.demonstrator, **stage.demonstrator})
        try:
            source.item(kind, knobs)
        except ConfigError:
            raise
        except Exception as error:  # whatever an environment's demonstrator raises
            raise ConfigError(
                f"{where}: the demonstration '{kind}' with the knobs {knobs} raised {type(error).__name__}: {error}. "
                "Correct cold_start.demonstrator, the stage's demonstrator, or the environment's demonstrate()."
            ) from error
    metric = stage.until.metric
    mode, measure = gate_of(metric)
    if mode == "accuracy":
        allowed = list(stage.data)
    else:
        if mode and mode not in GATE_MODES:
            raise ConfigError(
                f"{where}.until.metric: '{metric}'.{did_you_mean(mode, ('accuracy', *GATE_MODES))}"
            )
        allowed = list(heldout_metrics(episodes))
    if measure not in allowed:
        raise ConfigError(f"{where}.until.metric: '{metric}'.{did_you_mean(measure, allowed)}")
