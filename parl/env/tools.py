"""Tools: methods marked `@tool`, and sets of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from parl.core.errors import did_you_mean

Method = TypeVar("Method", bound=Callable[..., str])


def tool(method: Method) -> Method:
    """Mark a method of an `AgentEnv` or a `Toolset` as a tool, a function that agents can call.

    The schema of its arguments comes from the type hints, their descriptions from
    `Field(description=...)`, the tool's own description from the docstring. Arguments are validated
    before the method runs. The method returns a text, also for what an agent did wrong ("error:
    unknown"): an exception fails the whole episode.

    Example:
        ```python
        @tool
        def lookup(self, person: Annotated[str, Field(description="first.last")]) -> str:
            \"\"\"Tell the extension of a person.\"\"\"
            return self.book.get(person, "error: unknown")
        ```
    """
    method.__parl_tool__ = True  # type: ignore[attr-defined]
    return method


class ToolSpec(BaseModel):
    """A tool as the model sees it."""

    model_config = ConfigDict(frozen=True)

    name: str
    description: str
    parameters: dict[str, Any]
    """JSON schema of the arguments, an object."""


class ToolOwner:
    """A class with methods marked `@tool`, which are collected by the class and called by name."""

    _models: ClassVar[dict[str, type[BaseModel]]] = {}
    _specs: ClassVar[tuple[ToolSpec, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Schemas are made once per class: an environment is forked for every subagent.
        models: dict[str, type[BaseModel]] = {}
        specs: list[ToolSpec] = []
        for name, method in inspect.getmembers(cls):
            if getattr(method, "__parl_tool__", False):
                models[name] = _arguments_model(cls, name, method)
                specs.append(_spec(name, method, models[name]))
        cls._models = models
        cls._specs = tuple(specs)

    @classmethod
    def own_tool_specs(cls) -> tuple[ToolSpec, ...]:
        """Return the tools that the class itself defines, sorted by name."""
        return cls._specs

    def tool_specs(self) -> tuple[ToolSpec, ...]:
        """Return the tools as the model sees them: names, descriptions and schemas."""
        return self._specs

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Validate the arguments and run one tool.

        A wrong name or argument is answered with an error text.
        """
        model = self._models.get(name)
        if model is None:
            known = [spec.name for spec in self.tool_specs()]
            return f"error: no tool '{name}'.{did_you_mean(str(name), known)}"
        try:
            parsed = model.model_validate(arguments)
        except ValidationError as error:
            # Only the first problem: a policy corrects one call at a time, and its window is small.
            problem = error.errors()[0]
            location = "".join(f"{part}: " for part in problem["loc"])
            return f"error: {name}: {location}{problem['msg']}"
        # Not model_dump, which would turn arguments that are models themselves into dicts.
        values = {field: getattr(parsed, field) for field in type(parsed).model_fields}
        return str(getattr(self, name)(**values))


class Toolset(ToolOwner):
    """Tools that any environment can add with `AgentEnv.add_tools`.

    They are methods marked `@tool`, as in an environment. One instance serves an environment, its
    forks, and one episode after another.

    Example:
        ```python
        class Clock(Toolset):
            @tool
            def now(self) -> str:
                \"\"\"Tell the time.\"\"\"
                return time.strftime("%H:%M")
        ```
    """

    blocking: bool = False
    """True when its tools wait (subprocess, network). An environment that adds it becomes
    `blocking`, too."""

    def end_episode(self) -> None:
        """Forget the state of an episode. Called at its beginning and after its final answer."""


def _arguments_model(owner: type, name: str, method: Callable[..., str]) -> type[BaseModel]:
    """Make a pydantic model of a method's arguments: it validates calls and has the schema."""
    hints = get_type_hints(method, include_extras=True)
    _, *parameters = inspect.signature(method).parameters.values()  # the first is `self`
    fields: dict[str, Any] = {}
    for parameter in parameters:
        if parameter.name not in hints:
            raise TypeError(
                f"{owner.__name__}.{name}: argument '{parameter.name}' has no type hint; "
                "tools need them"
            )
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[parameter.name] = (hints[parameter.name], default)
    return create_model(name, __config__=ConfigDict(extra="forbid"), **fields)


def _spec(name: str, method: Callable[..., str], model: type[BaseModel]) -> ToolSpec:
    schema = model.model_json_schema()
    for part in (schema, *schema.get("properties", {}).values()):
        # A title repeats the name: tokens that tell the model nothing.
        part.pop("title", None)
    return ToolSpec(name=name, description=inspect.getdoc(method) or "", parameters=schema)
