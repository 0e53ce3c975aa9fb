"""Knobs of functions that a config names: reward terms, credit rules, policy losses.

A knob is a keyword-only argument with a type hint. A config's values for them are validated before
anything starts.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from parl.core.errors import ConfigError, did_you_mean


@dataclass(frozen=True, slots=True)
class Knobs:
    """The knobs of one function.

    Example: of def f(episode, *, per: int = 4): validators {"per": TypeAdapter(int)}, defaults {"per": 4}
    """

    validators: Mapping[str, TypeAdapter[Any]]
    defaults: Mapping[str, Any]
    """Knob -> default, without the knobs that have none."""

    def bind(
        self, values: Mapping[str, Any], where: str, others: Collection[str] = ()
    ) -> dict[str, Any]:
        """Return the given values, validated against the signature.

        Args:
            where: the section of the config, such as `reward.terms.finish`, for messages.
            others: keys of that section that are no knobs, for suggestions.
        Raises:
            ConfigError: a knob is unknown, has another type, or is missing.
        """
        bound: dict[str, Any] = {}
        for knob, value in values.items():
            if knob not in self.validators:
                hint = did_you_mean(knob, (*others, *self.validators))
                raise ConfigError(f"{where}.{knob}: unknown knob.{hint}")
            try:
                bound[knob] = self.validators[knob].validate_python(value)
            except ValidationError as error:
                message = error.errors()[0]["msg"]
                raise ConfigError(f"{where}.{knob}: {message} (given: {value!r})") from None
        for knob in self.validators:
            if knob not in bound and knob not in self.defaults:
                missing = [k for k in self.validators if k not in bound and k not in self.defaults]
                raise ConfigError(
                    f"{where}: missing {', '.join(missing)}. Add {where}.{missing[0]}."
                )
        return bound


def knobs_of_function(
    function: Callable[..., Any],
    decorator: str,
    example: str,
    num_arguments: int = 1,
    others: Collection[str] = (),
) -> Knobs:
    """Read the knobs from a signature.

    Args:
        decorator: for messages, such as `@reward`.
        example: the arguments that the function should have, such as `episode, *, knob: int = 1`.
        num_arguments: how many arguments come before the knobs.
        others: keyword arguments that are no knobs.
    Raises:
        TypeError: the function does not have that form.
    """
    where = f"{decorator} on {function.__qualname__}"
    parameters = list(inspect.signature(function).parameters.values())
    knobs = [p for p in parameters[num_arguments:] if p.name not in others]
    if len(parameters) < num_arguments or any(p.kind is not p.KEYWORD_ONLY for p in knobs):
        raise TypeError(f"{where}: write def {function.__name__}({example}), knobs after the *")
    written = function.__annotations__
    for parameter in knobs:
        if parameter.name not in written:
            raise TypeError(f"{where}: knob '{parameter.name}' has no type hint")
    # Only the knobs' hints are resolved: those of other arguments may exist for type checkers alone.
    holder = SimpleNamespace(__annotations__={p.name: written[p.name] for p in knobs})
    hints = get_type_hints(holder, globalns=function.__globals__, include_extras=True)
    validators = {name: TypeAdapter(hint) for name, hint in hints.items()}
    defaults = {p.name: p.default for p in knobs if p.default is not p.empty}
    return Knobs(validators, defaults)


def origin(function: Callable[..., Any]) -> str:
    """Return where a function is defined, to tell two of one name apart."""
    return f"{function.__module__}.{function.__qualname__}"
