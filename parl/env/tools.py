"""Tools: methods marked `@tool`, and sets of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from parl.core.errors import did_you_mean

F = TypeVar("F", bound=Callable[..., str])


class ToolSpec(BaseModel):
    """A tool as the model sees it (name, description, JSON schema of the arguments)."""

    model_config = ConfigDict(frozen=True)

    name: str
    description: str
    parameters: dict[str, Any]


def tool(method: F) -> F:
    """Mark a method as a tool. Its schema comes from the type hints, its description from the docstring."""
    method.__parl_tool__ = True  # type: ignore[attr-defined]
    return method


class _Tools:
    """Methods marked `@tool`, found by their class and called by name."""

    _models: ClassVar[dict[str, type[BaseModel]]] = {}
    _specs: ClassVar[tuple[ToolSpec, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        found: dict[str, Callable[..., str]] = {
            name: method
            for name, method in inspect.getmembers(cls)
            if getattr(method, "__parl_tool__", False)
        }
        cls._models = {name: _arguments_model(cls, name, method) for name, method in found.items()}
        cls._specs = tuple(_spec(name, found[name], model) for name, model in cls._models.items())

    @classmethod
    def own_tool_specs(cls) -> tuple[ToolSpec, ...]:
        """The tools that the class itself defines."""
        return cls._specs

    def tool_specs(self) -> tuple[ToolSpec, ...]:
        """The tools' names, descriptions and schemas."""
        return self._specs

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Validate the arguments and run one tool; a wrong name or argument is answered with an error text."""
        model = self._models.get(name)
        if model is None:
            return f"error: no tool '{name}'.{did_you_mean(str(name), [s.name for s in self.tool_specs()])}"
        try:
            parsed = model.model_validate(arguments)
        except ValidationError as error:
            first = error.errors()[0]
            where = "".join(f"{part}: " for part in first["loc"])
            return f"error: {name}: {where}{first['msg']}"
        return str(
            getattr(self, name)(**{k: getattr(parsed, k) for k in type(parsed).model_fields})
        )


class Toolset(_Tools):
    """Tools that any environment can add (`AgentEnv.add_tools`): methods marked `@tool`, as in an environment.

    One instance serves an environment, its forks, and one episode after another.
    """

    blocking: bool = False
    """True when its tools wait (subprocess, network): an environment that adds it then blocks, too."""

    def end_episode(self) -> None:
        """Forget what an episode has left. Called when one begins and when it has been answered."""


def _arguments_model(owner: type, name: str, method: Callable[..., str]) -> type[BaseModel]:
    hints = get_type_hints(method, include_extras=True)
    fields: dict[str, Any] = {}
    for parameter in list(inspect.signature(method).parameters.values())[1:]:
        if parameter.name not in hints:
            raise TypeError(
                f"{owner.__name__}.{name}: argument '{parameter.name}' has no type hint; tools need them"
            )
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[parameter.name] = (hints[parameter.name], default)
    return create_model(name, __config__=ConfigDict(extra="forbid"), **fields)


def _spec(name: str, method: Callable[..., str], model: type[BaseModel]) -> ToolSpec:
    schema = model.model_json_schema()
    for part in (schema, *schema.get("properties", {}).values()):
        part.pop("title", None)  # repeats the name: tokens that tell the model nothing
    return ToolSpec(name=name, description=inspect.getdoc(method) or "", parameters=schema)
