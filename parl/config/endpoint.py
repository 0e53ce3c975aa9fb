"""An OpenAI-compatible endpoint: of a judge, or of a policy whose weights are somebody else's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from parl.config.base import Node, NonNegInt, PositiveFloat, PositiveInt

if TYPE_CHECKING:
    from parl.config.schema import Config


class Endpoint(Node):
    """Where a model is asked, and for how long."""

    base_url: str
    """An OpenAI-compatible endpoint: http://127.0.0.1:8000/v1, say."""
    model: str
    """Its name at the endpoint."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the key. The key itself never stands in a file."""
    deadline_s: PositiveFloat = 60.0
    """For what is wanted of it (one turn; all verdicts on an answer), new attempts included."""
    max_retries: NonNegInt = 2
    """New attempts of a request when the endpoint fails or its reply is of no use."""


class RemoteConfig(Endpoint):
    """How a frozen policy generates that an endpoint serves: see docs/policies.md."""

    type: Literal["openai"]
    max_concurrent: PositiveInt = 32
    """Requests that one process has running at once; further ones wait, outside of `deadline_s`."""


def check_endpoints(config: Config) -> None:
    """Raises ValueError: something that needs the weights of a policy whose weights are elsewhere."""
    for name, policy in config.policies.items():
        if policy.remote is None:
            continue
        where = f"policies.{name}.engine.type is openai"
        defaults = {key: field.default for key, field in type(policy).model_fields.items() if key != "engine"}
        given = [key for key, default in defaults.items() if getattr(policy, key) != default]
        if given:
            raise ValueError(
                f"{where}: its weights and chat format are the endpoint's; remove policies.{name}.{given[0]}"
            )
        for role in ("orchestrator", "subagent"):
            settings = getattr(config.roles, role)
            if settings.policy == name and settings.ever_trainable:
                raise ValueError(
                    f"{where}: an endpoint tells no tokens and log-probs to train on; set roles.{role}.trainable: "
                    "false, or give the role a policy with weights"
                )
            if settings.policy == name and settings.harness is not None:
                raise ValueError(
                    f"{where}: roles.{role}.harness asks a policy that records its tokens, which this one does not; "
                    f"remove roles.{role}.harness"
                )
        needs = [
            f"policies.{n}.adapter.base" for n, p in config.policies.items() if p.adapter and p.adapter.base == name
        ]
        needs += [f"rollout.inference.{name}"] if name in config.rollout.inference else []
        needs += ["cold_start.policy"] if config.cold_start and config.cold_start.policy == name else []
        if needs:
            raise ValueError(f"{where}: it has no weights here for {needs[0]}; name another policy there")
        gates = [s.until.metric for s in config.cold_start.stages] if config.cold_start else []
        if config.roles.orchestrator.policy == name and any(g.startswith("forced_parallel/") for g in gates):
            raise ValueError(
                f"{where}: a turn cannot be begun for it, as the gate forced_parallel needs; choose another "
                "cold_start.stages.until.metric, or set cold_start: null"
            )
