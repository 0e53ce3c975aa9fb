"""When a role learns: a yes or no, or phases that end at a step or at a skill, inside which it may learn by turns.

In: a schedule and the metrics of the steps. Out: at each step a plain yes or no; the loop resolves it once per step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from parl.config.gate import Gate
from parl.config.roles import RoleConfig, Roles, Trainable
from parl.core.errors import ConfigError
from parl.core.types import Role

Place = tuple[int, int]
"""Where a schedule is: (number of the phase, step at which it began)."""


def learns(trainable: Trainable, place: Place, step: int) -> bool:
    """Whether the role learns at a step (0-based) of the phase that `place` names."""
    if isinstance(trainable, bool):
        return trainable
    index, since = place
    value = trainable[index].value
    return (
        value
        if isinstance(value, bool)
        else value.first == ((step - since) // value.steps % 2 == 0)
    )


def place_by_steps(trainable: Trainable, step: int) -> Place:
    """The place at a step, where steps alone decide. Raises ConfigError when a metric does."""
    since = 0
    if not isinstance(trainable, bool):
        for index, phase in enumerate(trainable):
            until = phase.until
            if until is None or index + 1 == len(trainable):
                return index, since
            if isinstance(until, Gate):
                if step == since:
                    return index, since
                raise ConfigError(
                    f"Whether the role learns at step {step} depends on {until.metric} in the steps before it, which "
                    "only the run itself knows. Say true or false: roles.ROLE.trainable=true."
                )
            if step < until:
                return index, since
            since = max(since, until)
    return 0, 0


def trainable_at(trainable: Trainable, step: int) -> bool:
    """Whether the role learns at a step (0-based). Raises ConfigError when metrics decide (see `roles_at`)."""
    return learns(trainable, place_by_steps(trainable, step), step)


def after(trainable: Trainable, place: Place, step: int, metrics: Mapping[str, float]) -> Place:
    """The place at the next step, once a step is done and measured."""
    index, since = place
    if not isinstance(trainable, bool):
        while index + 1 < len(trainable) and _is_over(trainable[index].until, since, step, metrics):
            index, since = index + 1, step + 1
    return index, since


def _is_over(until: int | Gate | None, since: int, step: int, metrics: Mapping[str, float]) -> bool:
    if isinstance(until, Gate):
        reached = metrics.get(until.metric, -math.inf) >= until.value
        return since <= step and (reached or step + 1 - since >= until.max_steps)
    return until is not None and step + 1 >= until


# --- both roles ------------------------------------------------------------------------------------------------------


def roles_at(roles: Roles, places: Mapping[str, Place], step: int) -> Roles:
    """Return the roles of one step: `trainable` is true or false.

    Args:
        places: role -> place, as `after_step` returned it. A role that is missing is where steps alone put it.
    """
    return Roles(
        **{
            name: role.replace(
                trainable=learns(role.trainable, _place(name, role, places, step), step)
            )
            for name, role in roles.items()
        }
    )


def after_step(
    roles: Roles, places: Mapping[str, Place], step: int, metrics: Mapping[str, float]
) -> dict[str, Place]:
    """Return role -> place at the next step."""
    return {
        name: after(role.trainable, _place(name, role, places, step), step, metrics)
        for name, role in roles.items()
    }


def _place(name: Role, role: RoleConfig, places: Mapping[str, Place], step: int) -> Place:
    return places.get(name) or place_by_steps(role.trainable, step)
