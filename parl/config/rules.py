"""Checks across sections of the config. Each takes the sections that it compares and raises ValueError."""

from __future__ import annotations

from collections.abc import Mapping

from parl.config.env import EnvSection
from parl.config.policy import Policy
from parl.config.roles import Roles, Swarm
from parl.config.rollout import Rollout
from parl.config.training import ColdStart, Eval, Train

FROM_THE_BASE = ("tiny", "tiny_vlm", "engine", "dtype", "renderer", "tools_in_prompt")
"""Settings that an adapter takes from its base."""

Policies = Mapping[str, Policy]


def base_of(policies: Policies, name: str) -> str:
    """Return the policy whose weights `name` stands on: itself, or an adapter's base."""
    adapter = policies[name].adapter
    return name if adapter is None else adapter.base


def check_roles(roles: Roles, policies: Policies) -> None:
    """Every role has a policy, and a trained one samples."""
    for name, role in roles.items():
        if role.policy not in policies:
            raise ValueError(
                f"roles.{name}.policy is '{role.policy}', but policies has {sorted(policies)}; "
                f"add policies.{role.policy} or name one of these"
            )
        if role.ever_trainable and role.sampling.temperature == 0:
            raise ValueError(
                f"roles.{name} is trainable with temperature 0: greedy tokens have no sampling log-probs to "
                "train on; set temperature 1.0 or trainable: false"
            )


def check_cold_start(cold_start: ColdStart | None, policies: Policies) -> None:
    """The policy of the cold start has weights of its own."""
    name = cold_start.policy if cold_start is not None else None
    if name is None:
        return
    with_weights = sorted(p for p in policies if base_of(policies, p) == p)
    if name not in with_weights:
        raise ValueError(
            f"cold_start.policy is '{name}', but the policies with weights of their own are {with_weights}"
        )


def check_external_agents(roles: Roles, swarm: Swarm) -> None:
    """An external agent plays one agent and writes its own prompts."""
    if roles.orchestrator.external_agent is not None and swarm.mode != "single":
        raise ValueError(
            "roles.orchestrator.external_agent runs one agent, which cannot launch subagents: set swarm.mode: single. "
            "(roles.subagent.external_agent is for subagents of another framework, launched by our orchestrator.)"
        )
    for name, role in roles.items():
        if role.external_agent is not None and (
            role.system_prompt or role.limits.on_overflow != "truncate"
        ):
            raise ValueError(
                f"roles.{name}.external_agent writes its own prompts: remove roles.{name}.system_prompt and limits.on_overflow"
            )


def check_mix(env: EnvSection, evaluation: Eval, roles: Roles) -> None:
    """Each ability of a mix has a task in evaluations and a system prompt."""
    abilities = set(env.abilities)
    if evaluation.num_tasks < len(abilities):
        raise ValueError(
            f"eval.num_tasks is {evaluation.num_tasks}; give each of {sorted(abilities)} a task"
        )
    for name, role in roles.items():
        prompt = role.system_prompt
        if not isinstance(prompt, str) and set(prompt) != abilities:
            raise ValueError(
                f"roles.{name}.system_prompt is given for {sorted(prompt)}; give one text, or with env.mix one for "
                f"each ability{f' ({sorted(abilities)})' if abilities else ''}"
            )


def check_adapters(policies: Policies, roles: Roles) -> None:
    """An adapter has a known base that is not trained itself, and no setting that is its base's."""
    for name, policy in policies.items():
        if policy.adapter is None:
            continue
        base = policy.adapter.base
        bases = sorted(n for n, p in policies.items() if p.adapter is None)
        if base not in bases:
            raise ValueError(
                f"policies.{name}.adapter.base is '{base}', which is no policy with weights of its own. Those are: "
                f"{', '.join(bases) or '(none)'}; name one of them, or add policies.{base}"
            )
        for key in FROM_THE_BASE:
            if getattr(policy, key) != Policy.model_fields[key].default:
                raise ValueError(
                    f"policies.{name}.{key}: an adapter takes it from its base; set policies.{base}.{key}"
                )
        for role, settings in roles.items():
            if settings.policy == base and settings.ever_trainable:
                raise ValueError(
                    f"roles.{role} trains all weights of the policy '{base}', on which '{name}' is an adapter. Give "
                    f"the role an adapter as well (policies.{role}.adapter={{base: {base}}} and "
                    f"roles.{role}.policy={role}), or freeze it: roles.{role}.trainable=false"
                )


def check_turns(roles: Roles) -> None:
    """Roles that learn by turns have different weights."""
    same_policy = roles.orchestrator.policy == roles.subagent.policy
    for name, role in roles.items():
        phases = () if isinstance(role.trainable, bool) else role.trainable
        interleave = any(not isinstance(phase.value, bool) for phase in phases)
        if interleave and same_policy:
            raise ValueError(
                f"roles.{name}.trainable goes by turns, but both roles have the policy '{role.policy}', which would go "
                "back to the cold start in each of them; give each role a policy or an adapter of its own"
            )


def check_endpoints(
    policies: Policies, roles: Roles, rollout: Rollout, cold_start: ColdStart | None
) -> None:
    """Nothing needs the weights of a policy that an endpoint serves."""
    for name, policy in policies.items():
        if policy.remote is None:
            continue
        where = f"policies.{name}.engine.type is openai"
        for key, field in Policy.model_fields.items():
            if key != "engine" and getattr(policy, key) != field.default:
                raise ValueError(
                    f"{where}: its weights and chat format are the endpoint's; remove policies.{name}.{key}"
                )
        for role, settings in roles.items():
            if settings.policy == name and settings.ever_trainable:
                raise ValueError(
                    f"{where}: an endpoint tells no tokens and log-probs to train on; set roles.{role}.trainable: "
                    "false, or give the role a policy with weights"
                )
            if settings.policy == name and settings.external_agent is not None:
                raise ValueError(
                    f"{where}: roles.{role}.external_agent asks a policy that records its tokens, which this one does not; "
                    f"remove roles.{role}.external_agent"
                )
        needs = [
            f"policies.{n}.adapter.base"
            for n, p in policies.items()
            if p.adapter and p.adapter.base == name
        ]
        if name in rollout.inference:
            needs.append(f"rollout.inference.{name}")
        if cold_start is not None and cold_start.policy == name:
            needs.append("cold_start.policy")
        if needs:
            raise ValueError(
                f"{where}: it has no weights here for {needs[0]}; name another policy there"
            )
        stages = cold_start.stages if cold_start is not None else ()
        forced = any(stage.until.metric.startswith("forced_parallel/") for stage in stages)
        if roles.orchestrator.policy == name and forced:
            raise ValueError(
                f"{where}: a turn cannot be begun for it, as the gate forced_parallel needs; choose another "
                "cold_start.stages.until.metric, or set cold_start: null"
            )


def check_rollout(rollout: Rollout, policies: Policies, train: Train) -> None:
    """Inference actors serve a known policy, and what needs Ray has it."""
    for name in rollout.inference:
        if name not in policies:
            raise ValueError(f"rollout.inference has '{name}', but policies has {sorted(policies)}")
        if base_of(policies, name) != name:
            raise ValueError(
                f"rollout.inference.{name}: it is served with its base; say {base_of(policies, name)}"
            )
        if rollout.backend != "ray":
            raise ValueError(
                f"rollout.inference.{name} needs rollout.backend: ray (now: {rollout.backend})"
            )
    if train.mode == "async" and rollout.backend != "ray":
        raise ValueError(
            f"train.mode is async, but rollout.backend is {rollout.backend}, which samples in the process that learns; "
            "set rollout.backend: ray, or train.mode: sync"
        )
