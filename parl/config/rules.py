"""Checks across sections of the config.

Each function takes the sections that it compares and raises ValueError, with the keys to change.
"""

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
    """Check that every role has a policy, and that a trained one samples."""
    for name, role in roles.items():
        if role.policy not in policies:
            raise ValueError(
                f"roles.{name}.policy is '{role.policy}', but policies has {sorted(policies)}; "
                f"add policies.{role.policy} or name one of these"
            )
        if role.ever_trainable and role.sampling.temperature == 0:
            raise ValueError(
                f"roles.{name} is trainable with temperature 0: greedy tokens have no sampling "
                "log-probs to train on; set temperature 1.0 or trainable: false"
            )


def check_cold_start(cold_start: ColdStart | None, policies: Policies) -> None:
    """Check that the policy of the cold start has its own weights."""
    name = cold_start.policy if cold_start is not None else None
    if name is None:
        return
    with_weights = sorted(policy for policy in policies if base_of(policies, policy) == policy)
    if name not in with_weights:
        raise ValueError(
            f"cold_start.policy is '{name}', but the policies with weights of their own are "
            f"{with_weights}"
        )


def check_external_agents(roles: Roles, swarm: Swarm) -> None:
    """Check that an external agent plays one agent and writes its own prompts."""
    if roles.orchestrator.external_agent is not None and swarm.mode != "single":
        raise ValueError(
            "roles.orchestrator.external_agent runs one agent, which cannot launch subagents: set "
            "swarm.mode: single. (roles.subagent.external_agent is for subagents of another "
            "framework, launched by our orchestrator.)"
        )
    for name, role in roles.items():
        if role.external_agent is None:
            continue
        if role.system_prompt or role.limits.on_overflow != "truncate":
            raise ValueError(
                f"roles.{name}.external_agent writes its own prompts: remove "
                f"roles.{name}.system_prompt and limits.on_overflow"
            )


def check_mix(env: EnvSection, evaluation: Eval, roles: Roles) -> None:
    """Check that each ability of a mix has a task in evaluations and a system prompt."""
    abilities = set(env.abilities)
    if evaluation.num_tasks < len(abilities):
        raise ValueError(
            f"eval.num_tasks is {evaluation.num_tasks}; give each of {sorted(abilities)} a task"
        )
    for name, role in roles.items():
        prompt = role.system_prompt
        if not isinstance(prompt, str) and set(prompt) != abilities:
            allowed = f" ({sorted(abilities)})" if abilities else ""
            raise ValueError(
                f"roles.{name}.system_prompt is given for {sorted(prompt)}; give one text, or with "
                f"env.mix one for each ability{allowed}"
            )


def check_adapters(policies: Policies, roles: Roles) -> None:
    """Check each adapter against its base.

    The base is a policy with weights that no role trains, because training it would move the
    ground under the adapter. Settings that belong to the base are not set on the adapter.
    """
    bases = sorted(name for name, policy in policies.items() if policy.adapter is None)
    for name, policy in policies.items():
        if policy.adapter is None:
            continue
        base = policy.adapter.base
        if base not in bases:
            raise ValueError(
                f"policies.{name}.adapter.base is '{base}', which is no policy with weights of its "
                f"own. Those are: {', '.join(bases) or '(none)'}; name one of them, or add "
                f"policies.{base}"
            )
        for key in FROM_THE_BASE:
            if getattr(policy, key) != Policy.model_fields[key].default:
                raise ValueError(
                    f"policies.{name}.{key}: an adapter takes it from its base; set "
                    f"policies.{base}.{key}"
                )
        for role, settings in roles.items():
            if settings.policy == base and settings.ever_trainable:
                raise ValueError(
                    f"roles.{role} trains all weights of the policy '{base}', on which '{name}' is "
                    f"an adapter. Give the role an adapter as well (policies.{role}.adapter="
                    f"{{base: {base}}} and roles.{role}.policy={role}), or freeze it: "
                    f"roles.{role}.trainable=false"
                )


def check_turns(roles: Roles) -> None:
    """Check that roles which learn by turns have different weights.

    A frozen role plays the weights that its policy had before the other role trained it. With one
    policy for both, that would be the cold start in every turn.
    """
    same_policy = roles.orchestrator.policy == roles.subagent.policy
    for name, role in roles.items():
        phases = () if isinstance(role.trainable, bool) else role.trainable
        by_turns = any(not isinstance(phase.value, bool) for phase in phases)
        if by_turns and same_policy:
            raise ValueError(
                f"roles.{name}.trainable goes by turns, but both roles have the policy "
                f"'{role.policy}', which would go back to the cold start in each of them; give "
                "each role a policy or an adapter of its own"
            )


def check_endpoints(
    policies: Policies, roles: Roles, rollout: Rollout, cold_start: ColdStart | None
) -> None:
    """Check that nothing needs the weights of a policy that an endpoint serves."""
    for name, policy in policies.items():
        if policy.remote is None:
            continue
        prefix = f"policies.{name}.engine.type is openai"
        for key, field in Policy.model_fields.items():
            if key != "engine" and getattr(policy, key) != field.default:
                raise ValueError(
                    f"{prefix}: its weights and chat format are the endpoint's; remove "
                    f"policies.{name}.{key}"
                )
        _check_remote_roles(name, roles, prefix)
        _check_remote_uses(name, policies, rollout, cold_start, prefix)
        _check_remote_gates(name, roles, cold_start, prefix)


def check_rollout(rollout: Rollout, policies: Policies, train: Train) -> None:
    """Check that inference actors serve a known policy, and that what needs Ray has it."""
    for name in rollout.inference:
        if name not in policies:
            raise ValueError(f"rollout.inference has '{name}', but policies has {sorted(policies)}")
        base = base_of(policies, name)
        if base != name:
            raise ValueError(f"rollout.inference.{name}: it is served with its base; say {base}")
        if rollout.backend != "ray":
            raise ValueError(
                f"rollout.inference.{name} needs rollout.backend: ray (now: {rollout.backend})"
            )
    if train.mode == "async" and rollout.backend != "ray":
        raise ValueError(
            f"train.mode is async, but rollout.backend is {rollout.backend}, which samples in the "
            "process that learns; set rollout.backend: ray, or train.mode: sync"
        )


def _check_remote_roles(name: str, roles: Roles, prefix: str) -> None:
    """Check that no role trains the policy, and that no external agent needs its tokens."""
    for role, settings in roles.items():
        if settings.policy != name:
            continue
        if settings.ever_trainable:
            raise ValueError(
                f"{prefix}: an endpoint tells no tokens and log-probs to train on; set "
                f"roles.{role}.trainable: false, or give the role a policy with weights"
            )
        if settings.external_agent is not None:
            raise ValueError(
                f"{prefix}: roles.{role}.external_agent asks a policy that records its tokens, "
                f"which this one does not; remove roles.{role}.external_agent"
            )


def _check_remote_uses(
    name: str,
    policies: Policies,
    rollout: Rollout,
    cold_start: ColdStart | None,
    prefix: str,
) -> None:
    """Check that no adapter, inference actor or cold start stands on the policy."""
    uses = []
    for other, policy in policies.items():
        if policy.adapter is not None and policy.adapter.base == name:
            uses.append(f"policies.{other}.adapter.base")
    if name in rollout.inference:
        uses.append(f"rollout.inference.{name}")
    if cold_start is not None and cold_start.policy == name:
        uses.append("cold_start.policy")
    if uses:
        raise ValueError(
            f"{prefix}: it has no weights here for {uses[0]}; name another policy there"
        )


def _check_remote_gates(name: str, roles: Roles, cold_start: ColdStart | None, prefix: str) -> None:
    """Check that no stage measures forced delegation of the policy.

    A forced turn is begun by us and finished by the policy; endpoints take whole messages only.
    """
    if cold_start is None or roles.orchestrator.policy != name:
        return
    for stage in cold_start.stages:
        if stage.until.metric.startswith("forced_parallel/"):
            raise ValueError(
                f"{prefix}: a turn cannot be begun for it, as the gate forced_parallel needs; "
                "choose another cold_start.stages.until.metric, or set cold_start: null"
            )
