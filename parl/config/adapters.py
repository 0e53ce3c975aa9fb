"""LoRA adapters in the config, and what has to hold between policies and roles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from parl.config.base import Node, PositiveInt

if TYPE_CHECKING:
    from parl.config.schema import Config, Policy

FROM_THE_BASE = ("tiny", "tiny_vlm", "engine", "dtype", "renderer", "tools_in_prompt")


class Adapter(Node):
    """A LoRA adapter: low-rank updates of another policy's linear layers, trained in place of its weights."""

    base: str
    """The policy that it is an adapter on. Several may share one, which is in memory once and not trained by RL."""
    rank: PositiveInt = 16
    alpha: PositiveInt = 32
    """The update is multiplied by alpha / rank (peft's `lora_alpha`)."""
    target_modules: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = "all-linear"
    """Names of linear layers, such as [q_proj, v_proj]; `all-linear` is all of them but the head (and, in a
    mixture of experts, but the experts and their router; of a model that sees, those of its text part)."""


def check_adapters(config: Config) -> None:
    """Raises ValueError: an unknown base, a base that is trained itself, or a setting that is the base's."""
    for name, policy in config.policies.items():
        if policy.adapter is not None:
            _check_base(config.policies, name, policy.adapter.base)
            _check_settings(name, policy, policy.adapter.base)
            _check_roles(config, name, policy.adapter.base)


def check_turns(config: Config) -> None:
    """Raises ValueError: roles that learn by turns in the same weights."""
    one, other = config.roles.orchestrator, config.roles.subagent
    for name, role in (("orchestrator", one), ("subagent", other)):
        by_turns = not isinstance(role.trainable, bool) and any(not isinstance(p.value, bool) for p in role.trainable)
        if by_turns and one.policy == other.policy:
            raise ValueError(
                f"roles.{name}.trainable goes by turns, but both roles have the policy '{role.policy}', which would go "
                "back to the cold start in each of them; give each role a policy or an adapter of its own"
            )


def _check_base(policies: Mapping[str, Policy], name: str, base: str) -> None:
    bases = sorted(n for n, p in policies.items() if p.adapter is None)
    if base not in bases:
        raise ValueError(
            f"policies.{name}.adapter.base is '{base}', which is no policy with weights of its own. Those are: "
            f"{', '.join(bases) or '(none)'}; name one of them, or add policies.{base}"
        )


def _check_settings(name: str, policy: Policy, base: str) -> None:
    for key in FROM_THE_BASE:
        if getattr(policy, key) != type(policy).model_fields[key].default:
            raise ValueError(f"policies.{name}.{key}: an adapter takes it from its base; set policies.{base}.{key}")


def _check_roles(config: Config, name: str, base: str) -> None:
    for role in ("orchestrator", "subagent"):
        settings = getattr(config.roles, role)
        if settings.policy == base and settings.ever_trainable:
            raise ValueError(
                f"roles.{role} trains all weights of the policy '{base}', on which '{name}' is an adapter. Give the "
                f"role an adapter as well (policies.{role}.adapter={{base: {base}}} and roles.{role}.policy={role}), "
                f"or freeze it: roles.{role}.trainable=false"
            )
