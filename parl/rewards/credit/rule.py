"""Credit rules by name: functions from a group of scored episodes to its agents' advantages."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar, overload

from parl.config.credit import Credit
from parl.core.errors import ConfigError, did_you_mean
from parl.core.types import ScoredEpisode
from parl.rewards.knobs import Knobs, knobs_of_function
from parl.rewards.knobs import register as add_to_registry

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
    """Whether the environment is asked what each subagent's message was worth
    (`AgentEnv.contributions`)."""
    resamples: bool
    """Whether some assignments are given to further subagents (`credit.siblings`,
    `credit.sibling_share`)."""

    @property
    def doc(self) -> str:
        """The function's docstring."""
        return inspect.getdoc(self.function) or ""

    def bind(self, config: Credit) -> dict[str, Any]:
        """Return the values of the rule's knobs, from the section `credit`.

        Raises:
            ConfigError: a knob is unknown, has another type, or is missing.
        """
        return self.knobs.bind_section(config, "credit")

    def advantages(self, group: Group, knobs: Mapping[str, Any]) -> Advantages:
        """Return the rule's advantages of a group.

        Raises:
            ConfigError: the rule names an unknown agent, or an advantage is not finite or does not
                fit the agent's turns.
        """
        try:
            result = self.function(group, **knobs)
        except Exception as error:
            # The traceback ends in a plugin: name the rule as well.
            error.add_note(f"in credit rule '{self.name}'")
            raise
        # Siblings too: a rule that draws them gives them advantages.
        num_turns: dict[Agent, int] = {}
        for scored in group:
            for trace in (*scored.episode.traces, *scored.episode.siblings):
                num_turns[scored.episode.id, trace.id] = len(trace.turns)
        # A wrong advantage would show in nothing but what the policy learns, so each is checked.
        advantages: dict[Agent, float | tuple[float, ...]] = {}
        for agent, advantage in result.items():
            if agent not in num_turns:
                raise ConfigError(
                    f"Credit rule '{self.name}' names the agent {agent}, which is not in the "
                    "group. An agent is (episode id, agent id)."
                )
            by_turn = advantage if isinstance(advantage, Sequence) else [advantage]
            if not all(math.isfinite(value) for value in by_turn):
                raise ConfigError(
                    f"Credit rule '{self.name}' gives the agent {agent} the advantage {advantage}"
                )
            # A rule may give whole numbers; samples hold floats.
            if not isinstance(advantage, Sequence):
                advantages[agent] = float(advantage)
                continue
            if len(advantage) != num_turns[agent]:
                raise ConfigError(
                    f"Credit rule '{self.name}' gives the agent {agent} {len(advantage)} "
                    f"advantages, but it took {num_turns[agent]} turns. Give one for each turn, or "
                    "one number for all."
                )
            advantages[agent] = tuple(float(value) for value in advantage)
        return advantages


@overload
def credit_rule(function: F) -> F: ...


@overload
def credit_rule(*, needs_contributions: bool = ..., resamples: bool = ...) -> Callable[[F], F]: ...


def credit_rule(
    function: F | None = None, *, needs_contributions: bool = False, resamples: bool = False
) -> F | Callable[[F], F]:
    """Register a credit rule under the function's name. Use it bare, or with arguments.

    The function takes a group, the scored episodes of one task without those that failed, and
    keyword-only knobs with type hints. It returns agent -> advantage, where an agent is (episode
    id, agent id), and an advantage a number for all tokens of the agent, or a tuple of one per
    turn. Agents that it leaves out have the advantage 0. A config names it: `credit: {type: NAME,
    knob: 1}`. A knob with the name of a key of that section, such as `normalize_std`, gets its
    value.

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
        # `type` names the rule in the same section.
        if "type" in knobs.validators:
            raise TypeError(f"@credit_rule on {name}: 'type' is taken by the config")
        knobs.refuse_other_defaults(Credit, f"@credit_rule on {name}")
        rule = CreditRule(name, function, knobs, needs_contributions, resamples)
        add_to_registry(_REGISTRY, rule, "credit rules")
        return function

    return register if function is None else register(function)


def registered() -> Mapping[str, CreditRule]:
    """Return all registered rules by name. `parl.env.registry.load` registers those of plugins."""
    return MappingProxyType(_REGISTRY)


def get(name: str) -> CreditRule:
    """Return the rule of a name.

    Raises:
        ConfigError: there is none.
    """
    if name not in _REGISTRY:
        hint = did_you_mean(name, _REGISTRY)
        raise ConfigError(f"credit.type: there is no credit rule '{name}'.{hint}")
    return _REGISTRY[name]
