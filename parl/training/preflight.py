"""The rehearsal of a run with its own parts, before it has a folder.

An episode of each ability is played by a script and scored, each kind of demonstration is drawn
once, every endpoint says a word, and the metrics that phases and stages wait for exist.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from parl.config import Config
from parl.config.gate import Gate
from parl.config.tiny import TinyModel
from parl.config.training import ColdStart, Stage
from parl.core import manifest
from parl.core.abstention import RATES
from parl.core.coroutines import run_coroutine
from parl.core.errors import ConfigError, EndpointFailure, did_you_mean
from parl.core.messages import Message
from parl.core.types import ROLES, Episode, Role, Task
from parl.env.base import AgentEnv
from parl.env.demonstrations import Segment
from parl.env.mixture import env_of
from parl.evaluation.metrics import heldout_metrics, step_metrics
from parl.learner import checkpoint as checkpoints
from parl.policy.base import Engine, PolicyHandle, Request
from parl.policy.engines.scripted import ScriptedEngine
from parl.policy.renderers.chatml import ChatML
from parl.rewards import credit
from parl.rollout.swarm import SwarmRunner
from parl.training.assemble import Parts
from parl.training.cold_start import gate_of
from parl.training.demonstrator import Demonstrator, knobs_of

LATER = ("outcome/subtask", "swarm/finish_rate", "reward/subagent")
"""Metrics of steps with subagents: the rehearsal has none of them."""
GATE_MODES = ("swarm", "single", "forced_parallel")


def preflight(parts: Parts) -> None:
    """Rehearse a run.

    Raises:
        ConfigError: the config names something that is not there or does not fit.
        CheckpointError: the cold start to begin with (`cold_start.from_run`) is missing or damaged.
    """
    # What the environment remembers of the rehearsal must not change the run.
    parts = replace(parts, env=parts.env.for_rehearsal())
    _check_vocabulary(parts)
    _check_endpoints(parts.policies.remote)
    episodes = [_rehearse(parts, task) for task in _first_of_each_ability(parts.tasks["train"])]
    for episode in episodes:
        _check_episode(parts, episode)
    _check_phases(parts.config, _metrics_of_a_step(parts, episodes))
    cold_start = parts.config.cold_start
    if cold_start is None:
        return
    if cold_start.from_run is not None:
        _check_cold_start_of_another_run(parts, cold_start)
        return
    if cold_start.policy is not None:
        # Refuses policies of another shape. All are still as they were made, so nothing is lost.
        parts.policies.copy_weights(cold_start.policy)
    for name in parts.policies.with_own_weights():
        for stage in cold_start.stages:
            _check_stage(parts, name, cold_start, stage, episodes)


def with_stand_ins(config: Config) -> Config:
    """Return the config with a small model in the place of each that has weights of its own.

    With it everything but the models can be rehearsed where they cannot be fetched.
    """
    small = {
        "model": "tiny",
        "tiny": TinyModel(hidden_size=32, ff_size=32),
        "renderer": "auto",
    }
    policies = {}
    for name, policy in config.policies.items():
        has_own_weights = policy.adapter is None and policy.remote is None
        policies[name] = policy.replace(**small) if has_own_weights else policy
    return config.replace(policies=policies)


def _check_vocabulary(parts: Parts) -> None:
    """Refuse tasks with words that a tiny policy does not know: it would read them as `?`."""
    config = parts.config
    name = config.base_of(config.roles.orchestrator.policy)
    if not config.policies[name].is_tiny or name in parts.policies.remote:
        return
    renderer = parts.policies.renderers[name]
    assert isinstance(renderer, ChatML)  # as every tiny policy's
    for tasks in parts.tasks.values():
        for task in tasks:
            unknown = renderer.unknown_words(task.prompt)
            if unknown:
                words = ", ".join(dict.fromkeys(unknown[:5]))
                raise ConfigError(
                    f"policies.{name}.model is {config.policies[name].model}, and its vocabulary, which "
                    f"{config.env.name} gives, lacks words of the task {task.id}: {words}. Write tasks in words of "
                    f"the corpus, or take a pretrained model: policies.{name}.model=PATH."
                )


def _check_endpoints(engines: Mapping[str, Engine]) -> None:
    """Every endpoint that plays a role says a word."""
    messages: tuple[Message, ...] = ({"role": "user", "content": "Say ok.", "tool_calls": []},)
    request = Request("check", (), messages, max_tokens=8, temperature=1.0, seed=0)
    for name, engine in engines.items():
        try:
            run_coroutine(engine.generate(request))
        except EndpointFailure as error:
            raise ConfigError(
                f"policies.{name}.engine: the endpoint gave no turn ({error.kind}: {error}). Start it, or correct its "
                "base_url, model and api_key_env."
            ) from None


def _first_of_each_ability(tasks: Sequence[Task]) -> list[Task]:
    firsts: dict[str, Task] = {}
    for task in tasks:
        firsts.setdefault(task.ability, task)
    return list(firsts.values())


def _rehearse(parts: Parts, task: Task) -> Episode:
    """Play an episode in which the orchestrator answers nothing."""
    config = parts.config
    # A script in place of the model: a rehearsal takes milliseconds, whatever the model.
    handles: dict[str, PolicyHandle] = {}
    for role in ROLES:
        renderer = parts.policies.renderers[config.roles.of(role).policy]
        engine = ScriptedEngine(lambda messages, rng: [Segment("")], renderer)
        handles[role] = PolicyHandle(role, renderer, engine, False)
    runner = SwarmRunner(handles, config.roles, config.swarm, config.clock)
    episode = runner.run(
        parts.env, task, episode_id="rehearsal", group="rehearsal", step=0, seed="rehearsal"
    )
    return run_coroutine(episode)


def _check_episode(parts: Parts, episode: Episode) -> None:
    config, task = parts.config, episode.task
    env_id = config.env.id_of(task.ability)
    if episode.status == "failed":
        raise ConfigError(
            f"{env_id} fails on the task {task.id}: {episode.orchestrator.stop_reason}. "
            f"`parl envs check {env_id}` may tell more."
        )
    # Asked of the class, because asking the instance would need an answer that says something.
    env_class = type(env_of(parts.env, task))
    cannot_tell = env_class.contributions is AgentEnv.contributions
    if credit.get(config.credit.type).needs_contributions and cannot_tell:
        raise ConfigError(
            f"credit.type is {config.credit.type}, but {env_id} cannot tell what a subagent contributed. Implement its "
            "contributions() (docs/explain/credit.md), or set credit.type: group_mean."
        )


def _metrics_of_a_step(parts: Parts, episodes: Sequence[Episode]) -> set[str]:
    """Return the names of the metrics that a step of this run will have."""
    scored = []
    for episode in episodes:
        group, _ = parts.scorer.score([episode], 0, {})
        scored += group
    # From the functions that the run itself uses: a metric that is renamed there is renamed here.
    names = {*step_metrics(scored, episodes), *LATER}
    # The rates exist where some episode has a question; the rehearsal's one may have none of a
    # kind.
    if any("calibration" in episode.facts for episode in episodes):
        names.update(f"outcome/{rate}" for rate in RATES)
    names.update(f"eval/{name}" for name in heldout_metrics(episodes))
    return names


def _check_phases(config: Config, metrics: Collection[str]) -> None:
    """A phase that waits for a metric must wait for one that there is."""
    for role, settings in config.roles.items():
        phases = () if isinstance(settings.trainable, bool) else settings.trainable
        for phase in phases:
            if isinstance(phase.until, Gate):
                _check_phase(config, role, phase.until.metric, metrics)


def _check_phase(config: Config, role: Role, metric: str, metrics: Collection[str]) -> None:
    where = f"roles.{role}.trainable waits for"
    # The metrics of policies come with the first update, which the rehearsal does not make.
    if metric not in metrics and not metric.startswith("policy/"):
        raise ConfigError(f"{where} the metric '{metric}'.{did_you_mean(metric, metrics)}")
    if metric.startswith("eval/") and config.eval.every is None:
        raise ConfigError(f"{where} {metric}; set eval.every as well.")


def _check_cold_start_of_another_run(parts: Parts, cold_start: ColdStart) -> None:
    assert cold_start.from_run is not None
    folder = checkpoints.find(cold_start.from_run, "cold-start")
    manifest.verify(folder)
    for name in parts.policies.models:
        if not (folder / "policies" / name).is_dir():
            raise ConfigError(
                f"cold_start.from_run: the cold start of {cold_start.from_run} has no policy '{name}'. Start from its "
                f"weights instead: cold_start=null and policies.NAME.model={folder / 'policies' / 'NAME'}."
            )


def _check_stage(
    parts: Parts, name: str, cold_start: ColdStart, stage: Stage, episodes: Sequence[Episode]
) -> None:
    where = f"cold_start.stages ({stage.name})"
    if not sum(stage.data.values()) > 0:
        raise ConfigError(
            f"{where}.data: give at least one kind of demonstration a share above 0 (given: {stage.data})"
        )
    renderer = parts.policies.renderers[name]
    lists_tools = parts.config.policies[name].lists_tools
    source = Demonstrator(parts.env, renderer, parts.config, seed=0, lists_tools=lists_tools)
    for kind in stage.data:
        knobs = knobs_of(kind, {**cold_start.demonstrator, **stage.demonstrator})
        try:
            source.item(kind, knobs)
        except ConfigError:
            raise
        # A plugin may raise anything; the user needs the stage and the knobs with it.
        except Exception as error:
            raise ConfigError(
                f"{where}: the demonstration '{kind}' with the knobs {knobs} raised {type(error).__name__}: {error}. "
                "Correct cold_start.demonstrator, the stage's demonstrator, or the environment's demonstrate()."
            ) from error
    _check_gate(where, stage, episodes)


def _check_gate(where: str, stage: Stage, episodes: Sequence[Episode]) -> None:
    metric = stage.until.metric
    mode, measure = gate_of(metric)
    if mode == "accuracy":
        allowed = list(stage.data)
    elif mode and mode not in GATE_MODES:
        hint = did_you_mean(mode, ("accuracy", *GATE_MODES))
        raise ConfigError(f"{where}.until.metric: '{metric}'.{hint}")
    else:
        allowed = list(heldout_metrics(episodes))
    if measure not in allowed:
        hint = did_you_mean(measure, allowed)
        raise ConfigError(f"{where}.until.metric: '{metric}'.{hint}")
