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
from parl.rewards.knobs import Knobs, knobs_of_function, origin

F = TypeVar("F", bound=Callable[..., float | Mapping[str, float]])


_REGISTRY: dict[str, RewardTerm] = {}


@dataclass(frozen=True, slots=True)
class RewardTerm:
    """A registered term: its function, who may get it, and its knobs."""

    name: str
    function: Callable[..., float | Mapping[str, float]]
    roles: tuple[Role, ...]
    """Roles that may get a value. Orchestrator only, unless declared: the shaping terms never reach subagents."""
    outcome: bool
    """Part of r_perf: what Toggle gates on and multiplies."""
    knobs: Knobs

    @property
    def doc(self) -> str:
        return inspect.getdoc(self.function) or ""

    def bind(self, knobs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of a config's knobs, validated.

        Raises:
            ConfigError: a knob is unknown, has another type, or is missing.
        """
        return self.knobs.bind(knobs, f"reward.terms.{self.name}", ("weight",))

    def values(self, episode: Episode, knobs: Mapping[str, Any]) -> dict[str, float]:
        """The term's value of each agent that gets one; a plain number is the orchestrator's.

        Raises:
            ConfigError: the term gives a value to an unknown agent or an undeclared role, or one that is not finite.
        """
        try:
            raw = self.function(episode, **knobs)
        except Exception as error:
            error.add_note(f"in reward term '{self.name}', episode {episode.id}")
            raise
        by_agent = raw if isinstance(raw, Mapping) else {ORCHESTRATOR_ID: raw}
        roles = {t.id: t.role for t in episode.traces}
        for agent, value in by_agent.items():
            if agent not in roles:
                raise ConfigError(
                    f"Reward term '{self.name}' names agent '{agent}'.{did_you_mean(agent, roles)}"
                )
            if roles[agent] not in self.roles:
                raise ConfigError(
                    f"Reward term '{self.name}' gives a value to agent '{agent}', whose role is {roles[agent]}, but "
                    f"declares roles={self.roles}. Declare it: @reward(roles={(*self.roles, roles[agent])})."
                )
            if not math.isfinite(value):
                raise ConfigError(
                    f"Reward term '{self.name}' is {value} for agent '{agent}' of episode {episode.id}"
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

    The function takes an `Episode` and keyword-only knobs with type hints, and returns a float (the orchestrator's)
    or a mapping of agent id -> float.

    Args:
        roles: who may get a value.
        outcome: the term is part of r_perf, the outcome before shaping (see `Toggle`).
    Raises:
        TypeError: the function does not have that form.
        ConfigError: another function has the name already.
    """

    def register(function: F) -> F:
        knobs = knobs_of_function(function, "@reward", "episode, *, knob: int = 1")
        if "weight" in knobs.validators:
            raise TypeError(f"@reward on {function.__qualname__}: 'weight' is taken by the config")
        term = RewardTerm(function.__name__, function, tuple(roles), outcome, knobs)
        unknown = [r for r in term.roles if r not in ROLES]
        if unknown or not term.roles:
            raise TypeError(
                f"@reward on {term.name}: roles={tuple(roles)} must name some of {ROLES}"
            )
        known = _REGISTRY.get(term.name)
        if known is not None and origin(known.function) != origin(function):
            raise ConfigError(
                f"Two reward terms are named '{term.name}': {origin(known.function)} and {origin(function)}. "
                "Rename one function."
            )
        _REGISTRY[term.name] = term
        return function

    return register if function is None else register(function)


def registered() -> Mapping[str, RewardTerm]:
    """All registered terms by name (a read-only view). `parl.env.registry.load()` fills it."""
    return MappingProxyType(_REGISTRY)


def get(name: str) -> RewardTerm:
    """The term of a name. Raises ConfigError with the nearest name."""
    if name not in _REGISTRY:
        raise ConfigError(
            f"reward.terms.{name}: no such reward term.{did_you_mean(name, _REGISTRY)}"
        )
    return _REGISTRY[name]


def is_outcome(name: str) -> bool:
    term = get(name)
    return term.outcome and "orchestrator" in term.roles


def finished(trace: AgentTrace) -> bool:
    """A subagent ended with a non-empty message that the environment accepts (Kimi K2.5, section 3: r_finish)."""
    return trace.status == "completed" and trace.accepted and bool(trace.result.strip())
