"""Policy losses by name: functions from log-probs and advantages of tokens to a loss."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar, overload

from torch import Tensor

from parl.config.loss import Loss
from parl.core.errors import ConfigError, did_you_mean
from parl.rewards.credit.assign import LossWeighting
from parl.rewards.knobs import Knobs, knobs_of_function
from parl.rewards.knobs import register as add_to_registry

TENSORS = ("logp", "old_logp", "advantages", "mask")
KEYWORDS = ("weights", "denominator")
"""Keyword arguments from the learner; all others are knobs."""
EXAMPLE = "logp, old_logp, advantages, mask, *, knob: float = 1.0, weights=None, denominator=None"

LossFunction = Callable[..., tuple[Tensor, Mapping[str, Tensor]]]
F = TypeVar("F", bound=LossFunction)

_REGISTRY: dict[str, PolicyLoss] = {}


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """A registered loss: its function, its knobs, and how it wants its samples weighted."""

    name: str
    function: LossFunction
    knobs: Knobs
    takes_traces: bool
    """Whether it has a fifth argument `traces`: the index of each token's trace."""
    weighs_traces: bool
    """Whether it averages over traces: every trace weighs what a token does elsewhere."""
    drops_equal_groups: bool
    """Whether groups that give no sample are left out of the mean."""

    @property
    def doc(self) -> str:
        """The function's docstring."""
        return inspect.getdoc(self.function) or ""

    def bind(self, config: Loss) -> dict[str, Any]:
        """Return the values of the loss's knobs, from the section `loss`.

        Raises:
            ConfigError: a knob is unknown, has another type, or is missing.
        """
        return self.knobs.bind_section(config, "loss")


@overload
def policy_loss(function: F) -> F: ...


@overload
def policy_loss(
    *, weighs_traces: bool = ..., drops_equal_groups: bool = ...
) -> Callable[[F], F]: ...


def policy_loss(
    function: F | None = None, *, weighs_traces: bool = False, drops_equal_groups: bool = False
) -> F | Callable[[F], F]:
    """Register a policy loss under the function's name. Use it bare, or with arguments.

    The function has the form of `kimi_k2_5`: (logp, old_logp, advantages, mask), all of one shape,
    then keyword-only `weights`, `denominator` and knobs with type hints; a fifth argument `traces`
    is the index of each token's trace. It returns a scalar to minimise and a mapping of statistics,
    of which `clipped_fraction` becomes a metric. A config names it: `loss: {type: NAME, knob: 1}`.
    A knob with the name of a key of that section, such as `tau`, gets its value.

    Args:
        weighs_traces: the mean is one over traces, not over tokens.
        drops_equal_groups: leave groups that give no sample out of the mean.
    Raises:
        TypeError: the function does not have that form.
        ConfigError: another function has the name already.
    """

    def register(function: F) -> F:
        name = function.__name__
        # Tensors are passed by position and must be in this order; a swap would show in nothing.
        arguments = list(inspect.signature(function).parameters)
        takes_traces = arguments[4:5] == ["traces"]
        has_keywords = set(KEYWORDS) <= set(arguments)
        if not has_keywords or tuple(arguments[:4]) != TENSORS:
            raise TypeError(f"@policy_loss on {name}: write def {name}({EXAMPLE})")
        num_tensors = 5 if takes_traces else 4
        knobs = knobs_of_function(function, "@policy_loss", EXAMPLE, num_tensors, KEYWORDS)
        knobs.refuse_other_defaults(Loss, f"@policy_loss on {name}")
        loss = PolicyLoss(name, function, knobs, takes_traces, weighs_traces, drops_equal_groups)
        add_to_registry(_REGISTRY, loss, "policy losses")
        return function

    return register if function is None else register(function)


def registered() -> Mapping[str, PolicyLoss]:
    """Return all registered losses by name. `parl.env.registry.load` registers those of plugins."""
    return MappingProxyType(_REGISTRY)


def get(name: str) -> PolicyLoss:
    """Return the loss of a name.

    Raises:
        ConfigError: there is none.
    """
    if name not in _REGISTRY:
        hint = did_you_mean(name, _REGISTRY)
        raise ConfigError(f"loss.type: there is no policy loss '{name}'.{hint}")
    return _REGISTRY[name]


def weighting_of(config: Loss) -> LossWeighting:
    """Return how the loss of a config wants its samples weighted.

    Raises:
        ConfigError: there is no such loss, or a knob is unknown, mistyped or missing.
    """
    loss = get(config.type)
    # For its errors: a wrong knob is refused before a model is loaded.
    loss.bind(config)
    return LossWeighting(config.denominator, loss.weighs_traces, loss.drops_equal_groups)
