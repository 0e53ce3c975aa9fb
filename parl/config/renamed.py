"""Config names that changed before the first release.

An old name is refused with the new one. It is never read in its place: a config that works has one
spelling.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from parl.core.errors import ConfigError

KEYS: Mapping[str, str] = {
    "control": "baseline",
    "cold_start.demos": "demonstrator",
    "cold_start.stages.*.kwargs": "demonstrator",
    "cold_start.stages.*.optimizer.hold": "decay_start",
    "policies.*.optimizer.hold": "decay_start",
    "roles.*.harness": "external_agent",
    "rollout.stall_s": "hang_timeout_s",
    "train.max_staleness": "max_off_policy_steps",
}
"""Path of an old key (`*` stands for any name or index) -> the key in its place."""

KNOBS: Mapping[str, str] = {
    "decide": "train_decision_prob",
    "lazy": "give_up_prob",
    "parallel": "delegate_prob",
}
"""Old knobs of the shipped environments' demonstrators -> new. A plugin's knobs may have any
name."""

CREDIT_TYPES: Mapping[str, str] = {"drop_one": "leave_one_out", "siblings": "resample"}
"""Old names of credit rules -> new."""

METRICS: Mapping[str, str] = {
    "failures/total": "failures/num_failed",
    "swarm/truncated": "swarm/truncated_rate",
    "swarm/work_over_span": "swarm/average_parallelism",
    "tokens/episode": "swarm/tokens_per_episode",
}
"""Old names of metrics -> new."""


def refuse_old_names(raw: Mapping[str, Any], source: str) -> None:
    """Refuse a config that uses an old name.

    Args:
        raw: the merged tree, before it is validated.
        source: the config's name in the message.

    Raises:
        ConfigError: with the new name.
    """
    ships_with_parl = "parl/" in str(raw.get("env"))
    for path, value in _values(raw, ()):
        *parent, key = path
        new_key = _new_key(path)
        if new_key is None and ships_with_parl and "demonstrator" in parent:
            new_key = KNOBS.get(key)
        if new_key is not None:
            new_path = ".".join((*parent, new_key))
            raise ConfigError(f"{source}: {'.'.join(path)} is called {new_path} now. Rename it.")
        if path == ("credit", "type") and value in CREDIT_TYPES:
            raise ConfigError(
                f"{source}: credit.type {value} is called {CREDIT_TYPES[value]} now. Rename it."
            )
        if key == "metric" and value in METRICS:
            raise ConfigError(
                f"{source}: {'.'.join(path)}: the metric {value} is called {METRICS[value]} now. "
                "Rename it."
            )


def _values(node: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every (path, value) below a node, parents first."""
    if isinstance(node, Mapping):
        children = [(str(key), value) for key, value in node.items()]
    elif isinstance(node, list | tuple):
        children = [(str(index), value) for index, value in enumerate(node)]
    else:
        return
    for key, value in children:
        yield (*path, key), value
        yield from _values(value, (*path, key))


def _new_key(path: tuple[str, ...]) -> str | None:
    for pattern, new in KEYS.items():
        parts = pattern.split(".")
        if len(parts) != len(path):
            continue
        if all(part in ("*", key) for part, key in zip(parts, path, strict=True)):
            return new
    return None
