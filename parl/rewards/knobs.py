"""Knobs of functions that a config names: reward terms, credit rules, policy losses.

A knob is a keyword-only argument with a type hint. A config's values for them are validated before
anything starts.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, MutableMapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Protocol, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

from parl.config.base import ConfigModel
from parl.core.errors import ConfigError, did_you_mean


@dataclass(frozen=True, slots=True)
class Knobs:
    """The knobs of one function.

    Example:
        def f(episode, *, per: int = 4) has the validators {"per": TypeAdapter(int)} and the
        defaults {"per": 4}.
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
        missing = self.validators.keys() - bound.keys() - self.defaults.keys()
        if missing:
            # In the order of the signature.
            names = [knob for knob in self.validators if knob in missing]
            raise ConfigError(f"{where}: missing {', '.join(names)}. Add {where}.{names[0]}.")
        return bound

    def bind_section(self, section: ConfigModel, where: str) -> dict[str, Any]:
        """Return the knobs' values from a section whose `type` names the function.

        The knobs of the shipped functions are fields of the section, so that they can stay in a
        config while `type` varies; a function takes those that it names. Any further key must be a
        knob of this function.

        Raises:
            ConfigError: a knob is unknown, has another type, or is missing.
        """
        fields = type(section).model_fields
        values = dict(section.model_extra or {})
        for knob in self.validators:
            if knob in fields:
                values[knob] = getattr(section, knob)
        return self.bind(values, where, fields)

    def refuse_other_defaults(self, section: type[ConfigModel], where: str) -> None:
        """Refuse a knob that a field of the section has, too, with another default.

        The field has a value in every config, so the function's default would never hold.

        Raises:
            TypeError: a default differs.
        """
        for knob, default in self.defaults.items():
            field = section.model_fields.get(knob)
            if field is not None and field.default != default:
                raise TypeError(
                    f"{where}: the knob '{knob}' gets the config's value, {field.default!r} by "
                    "default. Write it without a default, or call it something else."
                )


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
    # What stands before the `*` is given by position, so its names are free.
    knobs = [p for p in parameters[num_arguments:] if p.name not in others]
    all_keyword_only = all(p.kind is p.KEYWORD_ONLY for p in knobs)
    if len(parameters) < num_arguments or not all_keyword_only:
        raise TypeError(f"{where}: write def {function.__name__}({example}), knobs after the *")
    written = function.__annotations__
    knob_hints: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
    for parameter in knobs:
        if parameter.name not in written:
            raise TypeError(f"{where}: knob '{parameter.name}' has no type hint")
        knob_hints[parameter.name] = written[parameter.name]
        if parameter.default is not parameter.empty:
            defaults[parameter.name] = parameter.default
    # Only the knobs' hints are resolved: those of other arguments may exist for type checkers
    # alone.
    holder = SimpleNamespace(__annotations__=knob_hints)
    hints = get_type_hints(holder, globalns=function.__globals__, include_extras=True)
    validators = {name: TypeAdapter(hint) for name, hint in hints.items()}
    return Knobs(validators, defaults)


class Registered(Protocol):
    """An entry of a registry."""

    @property
    def name(self) -> str: ...

    @property
    def function(self) -> Callable[..., Any]: ...


Entry = TypeVar("Entry", bound=Registered)


def register(registry: MutableMapping[str, Entry], entry: Entry, kind: str) -> None:
    """Add an entry to a registry.

    Args:
        kind: what the registry holds, such as "reward terms", for messages.
    Raises:
        ConfigError: another function has the name.
    """
    known = registry.get(entry.name)
    # A module that is imported again, as notebooks do, registers the same function again.
    if known is not None and _path(known.function) != _path(entry.function):
        raise ConfigError(
            f"Two {kind} are named '{entry.name}': {_path(known.function)} and "
            f"{_path(entry.function)}. Rename one function."
        )
    registry[entry.name] = entry


def _path(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{function.__qualname__}"
