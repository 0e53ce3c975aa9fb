"""When a role learns: a yes or no, or phases that end at a step or at a skill, inside which it may learn by turns.

In: a schedule and the metrics of the steps. Out: at each step a plain yes or no; the loop resolves it once per step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, Field

from parl.config.base import Node, PositiveInt
from parl.errors import ConfigError

if TYPE_CHECKING:
    from parl.config.schema import RoleConfig, Roles


class Gate(Node):
    """A skill that ends a phase: at the first step whose metric reaches the value, or after `max_steps` without."""

    metric: str
    """A metric of the step, such as outcome/subtask or eval/score. A step that lacks it has not reached the value."""
    value: float
    max_steps: PositiveInt


class Turns(Node):
    """By turns: so many steps learning, so many frozen, counted from where the phase begins."""

    steps: PositiveInt
    first: bool
    """Whether the role learns in the first turn."""


class Phase(Node):
    """A value and its end. The last phase holds to the end of the run."""

    until: PositiveInt | Gate | None = None
    """A step (exclusive), or a skill: {metric: outcome/subtask, value: 0.8, max_steps: 30}."""
    value: bool | Turns
    """Whether the role learns, or by turns: {steps: 5, first: true}."""


def _all_but_the_last_end(phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
    for i, phase in enumerate(phases[:-1]):
        if phase.until is None:
            raise ValueError(f"phase {i} has no `until`, so those after it never begin; give it a step or a metric")
    return phases


Trainable = bool | Annotated[tuple[Phase, ...], Field(min_length=1), AfterValidator(_all_but_the_last_end)]
Place = tuple[int, int]
"""Where a schedule is: (number of the phase, step at which it began)."""


def ever(trainable: Trainable) -> bool:
    """Whether there can be a step at which the role learns."""
    return trainable if isinstance(trainable, bool) else any(p.value is not False for p in trainable)


def learns(trainable: Trainable, place: Place, step: int) -> bool:
    """Whether the role learns at a step (0-based) of the phase that `place` names."""
    if isinstance(trainable, bool):
        return trainable
    index, since = place
    value = trainable[index].value
    return value if isinstance(value, bool) else value.first == ((step - since) // value.steps % 2 == 0)


def place_at(trainable: Trainable, step: int) -> Place:
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


def now(roles: Roles, known: Mapping[str, Place], step: int) -> Roles:
    """The roles of one step: `trainable` is true or false.

    Args:
        known: role -> place, as `after_step` gave it; without it the place is what steps alone say.
    """
    places = _places(roles, known, step)
    plain = {n: r.model_copy(update={"trainable": learns(r.trainable, places[n], step)}) for n, r in _both(roles)}
    return roles.model_copy(update=plain)


def after_step(roles: Roles, known: Mapping[str, Place], step: int, metrics: Mapping[str, float]) -> dict[str, Place]:
    """Role -> place at the next step."""
    places = _places(roles, known, step)
    return {n: after(r.trainable, places[n], step, metrics) for n, r in _both(roles)}


def _places(roles: Roles, known: Mapping[str, Place], step: int) -> dict[str, Place]:
    return {n: known.get(n) or place_at(r.trainable, step) for n, r in _both(roles)}


def _both(roles: Roles) -> tuple[tuple[str, RoleConfig], ...]:
    return ("orchestrator", roles.orchestrator), ("subagent", roles.subagent)
