"""Schedules of learning: at which steps a role is trained.

A schedule is true or false, or phases that end at a step or at a skill, inside which the role may
learn by turns. The training loop resolves it once per step to true or false.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from parl.config.gate import Gate
from parl.config.roles import RoleConfig, Roles, Trainable
from parl.core.errors import ConfigError
from parl.core.types import Role

Place = tuple[int, int]
"""A place in a schedule: (index of the phase, step at which it began). It is stored in checkpoints,
since with gates the step alone does not tell it."""


# --- one role ------------------------------------------------------------------------------------


def learns(trainable: Trainable, place: Place, step: int) -> bool:
    """Return whether the role learns at a step (0-based) of the phase that `place` names."""
    if isinstance(trainable, bool):
        return trainable
    index, since = place
    value = trainable[index].value
    if isinstance(value, bool):
        return value
    in_first_turn = (step - since) // value.steps % 2 == 0
    return value.first == in_first_turn


def place_by_steps(trainable: Trainable, step: int) -> Place:
    """Return the place at a step (0-based), where steps alone decide it.

    Raises:
        ConfigError: a metric of an earlier step decides.
    """
    since = 0
    if isinstance(trainable, bool):
        return 0, since
    for index, phase in enumerate(trainable):
        until = phase.until
        if until is None or index + 1 == len(trainable):
            return index, since
        if isinstance(until, Gate):
            # At its own first step a gate cannot have ended the phase yet.
            if step == since:
                return index, since
            raise ConfigError(
                f"Whether the role learns at step {step} depends on {until.metric} in the steps "
                "before it, which only the run itself knows. Say true or false: "
                "roles.ROLE.trainable=true."
            )
        if step < until:
            return index, since
        since = max(since, until)
    raise AssertionError("the last phase has no end")


def trainable_at(trainable: Trainable, step: int) -> bool:
    """Return whether the role learns at a step (0-based).

    Raises:
        ConfigError: a metric of an earlier step decides (see `roles_at`).
    """
    return learns(trainable, place_by_steps(trainable, step), step)


def after(trainable: Trainable, place: Place, step: int, metrics: Mapping[str, float]) -> Place:
    """Return the place at the next step, once a step is done and measured."""
    index, since = place
    if isinstance(trainable, bool):
        return place
    # A loop, because a phase may end at a step that has passed already when it begins.
    while index + 1 < len(trainable) and _is_over(trainable[index].until, since, step, metrics):
        index, since = index + 1, step + 1
    return index, since


# --- both roles ----------------------------------------------------------------------------------


def roles_at(roles: Roles, places: Mapping[str, Place], step: int) -> Roles:
    """Return the roles of one step: `trainable` is true or false.

    Args:
        roles: with their schedules.
        places: role -> place, as `after_step` returned it. A role without an entry is where steps
            alone put it.
        step: 0-based.
    """
    resolved: dict[str, RoleConfig] = {}
    for name, role in roles.items():
        place = _place(name, role, places, step)
        resolved[name] = role.replace(trainable=learns(role.trainable, place, step))
    return Roles(**resolved)


def after_step(
    roles: Roles, places: Mapping[str, Place], step: int, metrics: Mapping[str, float]
) -> dict[str, Place]:
    """Return role -> place at the next step."""
    next_places: dict[str, Place] = {}
    for name, role in roles.items():
        place = _place(name, role, places, step)
        next_places[name] = after(role.trainable, place, step, metrics)
    return next_places


def _place(name: Role, role: RoleConfig, places: Mapping[str, Place], step: int) -> Place:
    return places.get(name) or place_by_steps(role.trainable, step)


def _is_over(until: int | Gate | None, since: int, step: int, metrics: Mapping[str, float]) -> bool:
    """Return whether a phase that began at step `since` ends after `step`."""
    if isinstance(until, Gate):
        reached = metrics.get(until.metric, -math.inf) >= until.value
        out_of_time = step + 1 - since >= until.max_steps
        # since > step: the phase begins with the next step, and its metric is not measured yet.
        return since <= step and (reached or out_of_time)
    return until is not None and step + 1 >= until
