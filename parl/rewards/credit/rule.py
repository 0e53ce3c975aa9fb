"""Credit rules by name: functions from a group of scored episodes to the advantages of its agents."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar, overload

from parl.config.credit import Credit
from parl.core.errors import ConfigError, did_you_mean
from parl.core.types import ScoredEpisode
from parl.rewards.knobs import Knobs, knobs_of_function, origin

Group = Sequence[ScoredEpisode]
"""The scored episodes of one task, without those that failed."""
Agent = tuple[str, str]
"""(episode id, agent id)."""
Advantages = Mapping[Agent, float | tuple[float, ...]]
"""The advantage of each agent that did not fail: one for all its tokens, or one per turn."""

F = TypeVar("F", bound=Callable[..., Advantages])

_REGISTRY: dict[str, CreditRule] = {}


@dataclass(frozen=True, slots=True)
class CreditRule:
    """A registered rule: its function, its knobs, and what it asks of the rollout."""

    name: str
    function: Callable[..., Advantages]
    knobs: Knobs
    needs_contributions: bool
    """The environment is asked what each subagent's message was worth (`AgentEnv.contributions`)."""
    resamples: bool
    """Some assignments are given to further subagents (`credit.siblings`, `credit.sibling_share`)."""

    @property
    def doc(self) -> str:
        return inspect.getdoc(self.function) or ""

    def bind(self, config: Credit) -> dict[str, Any]:
        """Return the values of the rule's knobs, from the section `credit`.

        The knobs of the shipped rules are keys of the section, so that they can stand beside a list
        of rules to compare; a rule takes those that it knows. Any other key must be a knob of this
        rule.

        Raises:
            ConfigError: a knob is unknown, has another type, or is missing.
        """
        values = dict(config.model_extra or {})
        for knob in self.knobs.validators:
            if knob in type(config).model_fields:
                values[knob] = getattr(config, knob)
        return self.knobs.bind(values, "credit", ("type", *type(config).model_fields))


@overload
def credit_rule(function: F) -> F: ...


@overload
def credit_rule(*, needs_contributions: bool = ..., resamples: bool = ...) -> Callable[[F], F]: ...


def credit_rule(
    function: F | None = None, *, needs_contributions: bool = False, resamples: bool = False
) -> F | Callable[[F], F]:
    """Register a credit rule under the function's name. Use it bare, or with arguments.

    The function takes a group, the scored episodes of one task without those that failed, and
    keyword-only knobs with type hints. It returns agent -> advantage, where an agent is (episode id,
    agent id), and an advantage a number for all tokens of the agent, or a tuple of one per turn.
    Agents that it leaves out have the advantage 0. A config names it: `credit: {type: NAME, knob: 1}`.

    Args:
        needs_contributions: ask the environment what each subagent's message was worth.
        resamples: draw further attempts at some assignments; they are in `episode.siblings`.
    Raises:
        TypeError: the function does not have that form.
        ConfigError: another function has the name already.

    Example:
        @credit_rule
        def above_best(group, *, scale: float = 1.0):
            best = max(s.rewards["0"].total for s in group)
            return {(s.episode.id, "0"): scale * (s.rewards["0"].total - best) for s in group}
    """

    def register(function: F) -> F:
        name = function.__name__
        knobs = knobs_of_function(function, "@credit_rule", "group, *, knob: int = 1")
        if "type" in knobs.validators:
            raise TypeError(f"@credit_rule on {name}: 'type' is taken by the config")
        known = _REGISTRY.get(name)
        if known is not None and origin(known.function) != origin(function):
            raise ConfigError(
                f"Two credit rules are named '{name}': {origin(known.function)} and "
                f"{origin(function)}. Rename one function."
            )
        _REGISTRY[name] = CreditRule(name, function, knobs, needs_contributions, resamples)
        return function

    return register if function is None else register(function)


def registered() -> Mapping[str, CreditRule]:
    """Return all registered rules by name; `parl.env.registry.load()` registers those of plugins."""
    return MappingProxyType(_REGISTRY)


def get(name: str) -> CreditRule:
    """Return the rule of a name.

    Raises:
        ConfigError: there is none.
    """
    if name not in _REGISTRY:
        raise ConfigError(
            f"credit.type: there is no credit rule '{name}'.{did_you_mean(name, _REGISTRY)}"
        )
    return _REGISTRY[name]
