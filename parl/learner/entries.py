"""What a config says of each policy, resolved once: its base, its kind, its dtypes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from parl.config.policy import Policy
from parl.config.schema import Config
from parl.core.seeds import seed_for
from parl.policy.engines.torch import BASE


@dataclass(frozen=True, slots=True)
class PolicyEntry:
    """One policy of a run.

    Example: with `policies: {main: {...}, a: {adapter: {base: main}}}` and a role that trains `a`:
        main: kind "full", base "main", is_trained False
        a:    kind "adapter", base "main", is_trained True
    """

    name: str
    config: Policy
    base: str
    """The policy whose weights it stands on: itself, or an adapter's base."""
    kind: Literal["full", "adapter", "endpoint"]
    dtype: torch.dtype
    """Of the forward passes, in engine and learner."""
    storage_dtype: torch.dtype
    """Of the weights that this process holds."""
    is_trained: bool
    """Whether some role trains it at some step."""
    seed: int
    """Of its first weights."""

    @property
    def engine_key(self) -> str:
        """What its engine calls it: an adapter by its name, or the model itself."""
        return self.name if self.kind == "adapter" else BASE


def resolve_policies(config: Config) -> dict[str, PolicyEntry]:
    """Return an entry for each policy of the config, in the config's order."""
    adapted = {policy.adapter.base for policy in config.policies.values() if policy.adapter}
    entries = {}
    for name, policy in config.policies.items():
        base = config.base_of(name)
        # At any step: a policy that a schedule trains later needs float32 weights from the start.
        is_trained = any(
            role.policy == name and role.ever_trainable for _, role in config.roles.items()
        )
        dtype: torch.dtype = getattr(torch, config.policies[base].dtype)
        entries[name] = PolicyEntry(
            name=name,
            config=policy,
            base=base,
            kind=_kind(policy),
            dtype=dtype,
            storage_dtype=_storage_dtype(config, name in adapted, is_trained, dtype),
            is_trained=is_trained,
            # By name, so that adding a policy to a config does not change the first weights of
            # others.
            seed=seed_for(config.seed, "model", name) % 2**31,
        )
    return entries


def adapters_on(entries: Mapping[str, PolicyEntry], base: str) -> list[PolicyEntry]:
    """Return the adapters that stand on a policy, in the config's order."""
    return [entry for entry in entries.values() if entry.kind == "adapter" and entry.base == base]


def _kind(policy: Policy) -> Literal["full", "adapter", "endpoint"]:
    if policy.remote is not None:
        return "endpoint"
    return "adapter" if policy.adapter is not None else "full"


def _storage_dtype(
    config: Config, is_adapted: bool, is_trained: bool, dtype: torch.dtype
) -> torch.dtype:
    # Weights that learn are float32: a bfloat16 weight rounds away an update below about 0.2 % of
    # it (thirty steps at 1e-6 moved bfloat16 weights less than a tenth of the way). A base learns
    # in the cold start, but not while adapters stand on it: adapters are there to save its memory.
    learns_in_cold_start = config.cold_start is not None and not is_adapted
    return torch.float32 if is_trained or learns_in_cold_start else dtype
