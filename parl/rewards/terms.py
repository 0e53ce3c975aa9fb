"""Reward terms by name."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar, overload

from parl.core.errors import ConfigError, did_you_mean
from parl.core.types import ORCHESTRATOR_ID, ROLES, AgentTrace, Episode, Role
from parl.rewards.knobs import Knobs, knobs_of_function
from parl.rewards.knobs import register as add_to_registry

F = TypeVar("F", bound=Callable[..., float | Mapping[str, float]])

_REGISTRY: dict[str, RewardTerm] = {}


@dataclass(frozen=True, slots=True)
class RewardTerm:
    """A registered term: its function, who may get it, and its knobs."""

    name: str
    function: Callable[..., float | Mapping[str, float]]
    roles: tuple[Role, ...]
    """Roles that may get a value. Shaping must not reach subagents by accident (Kimi K2.5 shapes
    the orchestrator alone), so a term declares it."""
    outcome: bool
    """Whether it is part of r_perf, the outcome before shaping: what Toggle gates on."""
    knobs: Knobs

    @property
    def doc(self) -> str:
        """The function's docstring."""
        return inspect.getdoc(self.function) or ""

    def bind(self, knobs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of a config's knobs, validated.

        Raises:
            ConfigError: a knob is unknown, has another type, or is missing.
        """
        return self.knobs.bind(knobs, f"reward.terms.{self.name}", ("weight",))

    def values(self, episode: Episode, knobs: Mapping[str, Any]) -> dict[str, float]:
        """Return the term's value of each agent that gets one.

        A plain number is the orchestrator's.

        Raises:
            ConfigError: the term gives a value to an unknown agent or an undeclared role, or one
                that is not finite.
        """
        try:
            result = self.function(episode, **knobs)
        except Exception as error:
            # The traceback ends in a plugin: name the term and the episode as well.
            error.add_note(f"in reward term '{self.name}', episode {episode.id}")
            raise
        by_agent = result if isinstance(result, Mapping) else {ORCHESTRATOR_ID: result}
        roles = {trace.id: trace.role for trace in episode.traces}
        for agent, value in by_agent.items():
            if agent not in roles:
                hint = did_you_mean(agent, roles)
                raise ConfigError(f"Reward term '{self.name}' names agent '{agent}'.{hint}")
            # Most rewards that reach a subagent by mistake would only show in what it learns.
            if roles[agent] not in self.roles:
                raise ConfigError(
                    f"Reward term '{self.name}' gives a value to agent '{agent}', whose role is "
                    f"{roles[agent]}, but declares roles={self.roles}. Declare it: "
                    f"@reward(roles={(*self.roles, roles[agent])})."
                )
            # One NaN would spread to the advantages of the whole group.
            if not math.isfinite(value):
                raise ConfigError(
                    f"Reward term '{self.name}' is {value} for agent '{agent}' of episode "
                    f"{episode.id}"
                )
        return {agent: float(value) for agent, value in by_agent.items()}


@overload
def reward(function: F) -> F: ...


@overload
def reward(*, roles: Sequence[Role] = ..., outcome: bool = ...) -> Callable[[F], F]: ...


def reward(
    function: F | None = None, *, roles: Sequence[Role] = ("orchestrator",), outcome: bool = False
) -> F | Callable[[F], F]:
    """Register a reward term under the function's name. Use it bare, or with arguments.

    The function takes an `Episode` and keyword-only knobs with type hints, and returns a float (the
    orchestrator's) or a mapping of agent id -> float. It is pure: no I/O, no clock, no randomness.
    A judge belongs to the environment and leaves its verdict in `episode.facts`.

    Args:
        roles: who may get a value.
        outcome: the term is part of r_perf, the outcome before shaping (see `Toggle`).
    Raises:
        TypeError: the function does not have that form.
        ConfigError: another function has the name already.

    Example:
        @reward
        def critical_steps(episode: Episode, *, per: int = 100) -> float:
            return -episode.critical_steps / per
    """

    def register(function: F) -> F:
        knobs = knobs_of_function(function, "@reward", "episode, *, knob: int = 1")
        # `weight` stands next to the knobs in the config.
        if "weight" in knobs.validators:
            raise TypeError(f"@reward on {function.__qualname__}: 'weight' is taken by the config")
        term = RewardTerm(function.__name__, function, tuple(roles), outcome, knobs)
        unknown = [role for role in term.roles if role not in ROLES]
        if unknown or not term.roles:
            raise TypeError(
                f"@reward on {term.name}: roles={tuple(roles)} must name some of {ROLES}"
            )
        add_to_registry(_REGISTRY, term, "reward terms")
        return function

    return register if function is None else register(function)


def registered() -> Mapping[str, RewardTerm]:
    """Return all registered terms by name. `parl.env.registry.load` registers those of plugins."""
    return MappingProxyType(_REGISTRY)


def get(name: str) -> RewardTerm:
    """Return the term of a name.

    Raises:
        ConfigError: there is none. The message has the nearest name.
    """
    if name not in _REGISTRY:
        hint = did_you_mean(name, _REGISTRY)
        raise ConfigError(f"reward.terms.{name}: no such reward term.{hint}")
    return _REGISTRY[name]


def is_outcome(name: str) -> bool:
    """Whether a term is part of the orchestrator's outcome."""
    # A term of subagents alone has no value for modifiers to gate on.
    term = get(name)
    return term.outcome and "orchestrator" in term.roles


def finished(trace: AgentTrace) -> bool:
    """Whether a subagent ended with a non-empty message that the environment accepts.

    Source: r_finish of Kimi K2.5, section 3.
    """
    return trace.status == "completed" and trace.accepted and bool(trace.result.strip())
