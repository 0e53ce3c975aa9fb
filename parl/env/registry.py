"""Plugins: environments and rewards that live in any installed package.

A package names a module in the entry-point group `parl.envs` or `parl.rewards`; the module
registers with Gymnasium or with `parl.rewards.terms` when it is imported. Both registries belong to
a process, so `load` runs first in the driver and in every worker. This module also makes an
environment from its config.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import json
import sys
import threading
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec, load_env_creator
from pydantic import PydanticUserError, TypeAdapter, ValidationError

from parl.config.env import EnvConfig, EnvSection
from parl.core.errors import ConfigError, did_you_mean
from parl.core.extras import missing_extra
from parl.core.moved import OldPathError
from parl.env.base import AgentEnv
from parl.env.mixture import combine
from parl.env.toolsets import toolsets

GROUPS = ("parl.envs", "parl.rewards")

_loaded: set[EntryPoint] = set()
# Reentrant: a plugin may ask for the ids while it is imported.
_lock = threading.RLock()


def load() -> None:
    """Import every plugin that is installed and not imported yet.

    Raises:
        ConfigError: a plugin cannot be imported.
    """
    with _lock:
        for group in GROUPS:
            for entry in entry_points(group=group):
                if entry not in _loaded:
                    _import(entry)
                    _loaded.add(entry)


def modules() -> list[ModuleType]:
    """Return the modules that entry points name, imported, each once, sorted by name."""
    load()
    names = {entry.module for entry in _loaded}
    return [sys.modules[name] for name in sorted(names)]


def env_ids() -> list[str]:
    """Return the ids of the registered environments that are `AgentEnv`s, sorted."""
    load()
    return sorted(spec.id for spec in gymnasium.registry.values() if env_class(spec) is not None)


def env_class(spec: EnvSpec) -> type[AgentEnv] | None:
    """Return the AgentEnv class behind a registration, or None for any other environment.

    Modules of other environments (all of Gymnasium's) are not imported to find out.
    """
    creator: Any = spec.entry_point
    if isinstance(creator, str):
        module = creator.partition(":")[0]
        plugin_packages = {entry.module.partition(".")[0] for entry in _loaded}
        if module not in sys.modules and module.partition(".")[0] not in plugin_packages:
            return None
        creator = _creator(spec)
    is_agent_env = isinstance(creator, type) and issubclass(creator, AgentEnv)
    return creator if is_agent_env else None


def env_spec(env_id: str) -> EnvSpec:
    """Return the registration of an id.

    Args:
        env_id: `namespace/Name-v0`; with `module:` before it, the module is imported first.

    Raises:
        ConfigError: the module cannot be imported, or no environment has this id.
    """
    module, _, env_id = env_id.rpartition(":")
    # Reading all entry points takes 15 ms, ten times the runtime's cost of an episode, and workers
    # make many environments.
    if env_id not in gymnasium.registry:
        load()
    try:
        if module:
            importlib.import_module(module)
        return gymnasium.spec(env_id)
    except ImportError as error:
        raise ConfigError(
            f"'{module}:{env_id}' imports {module} first, which failed: {error}"
        ) from error
    except gymnasium.error.Error:
        hint = did_you_mean(env_id, env_ids())
        raise ConfigError(
            f"No environment '{env_id}' is registered.{hint} One of your own needs "
            f"gymnasium.register(id='{env_id}', ...) in a module that an entry point of the group "
            "parl.envs names; `parl envs list` shows what is found."
        ) from None


def agent_env_class(env_id: str) -> type[AgentEnv]:
    """Return the class of an id.

    Raises:
        ConfigError: the id is unknown, or its environment is not an AgentEnv.
    """
    load()
    cls = env_class(env_spec(env_id))
    if cls is None:
        raise ConfigError(f"{env_id} is not an AgentEnv.{did_you_mean(env_id, env_ids())}")
    return cls


def make_env(config: EnvSection) -> AgentEnv:
    """Make the environment of a config, without Gymnasium's wrappers (they hide `fork`).

    Raises:
        ConfigError: an environment is unknown or cannot be made from its arguments.
    """
    envs: dict[str, AgentEnv] = {}
    for ability, part in config.parts.items():
        try:
            envs[ability] = _make_part(part)
        except ConfigError as error:
            if not ability:
                raise
            raise ConfigError(f"env.mix, {ability}: {error}") from None
    return combine(envs)


def knobs(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Return the parameters that can be passed by keyword; of a class, its constructor's."""
    kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(function).parameters
    return {name: parameter for name, parameter in parameters.items() if parameter.kind in kinds}


def describe(parameters: Mapping[str, inspect.Parameter]) -> str:
    """Return parameters as one line of text, "(none)" for none.

    Example:
        "num: int = 3, path: Path (required)"
    """
    texts = []
    for name, parameter in parameters.items():
        text = name
        if parameter.annotation is not parameter.empty:
            text += f": {_type_name(parameter.annotation)}"
        if parameter.default is parameter.empty:
            text += " (required)"
        else:
            text += f" = {parameter.default!r}"
        texts.append(text)
    return ", ".join(texts) or "(none)"


def _import(entry: EntryPoint) -> None:
    try:
        entry.load()
    except ConfigError:
        # Two plugins register one name. The error says which, and either may be at fault.
        raise
    except Exception as error:
        name = entry.dist.name if entry.dist else entry.module
        version = f" {entry.dist.version}" if entry.dist else ""
        raise ConfigError(
            f"The plugin '{entry.name}' ({entry.group}) of {name}{version} cannot be imported: "
            f"{entry.value} raised {type(error).__name__}: {error}\n"
            f"{_advice(error, name)}, or remove it: pip uninstall {name}"
        ) from error


def _advice(error: Exception, package: str) -> str:
    if isinstance(error, OldPathError):
        return (
            "If it is yours, change that import; else try a newer one "
            f"(pip install --upgrade {package})"
        )
    if isinstance(error, ImportError):
        return f"Install what it needs (pip install --upgrade {package})"
    return "If it is yours, correct that code"


def _creator(spec: EnvSpec) -> Callable[..., Any]:
    """Return the class or function that a registration calls, imported if need be."""
    if callable(spec.entry_point):
        return spec.entry_point
    try:
        return load_env_creator(str(spec.entry_point))
    except Exception as error:
        advice = "Correct that code, or"
        if isinstance(error, ImportError):
            advice = "Install what it needs, or correct"
        raise ConfigError(
            f"{spec.id} is registered with the entry point '{spec.entry_point}', which cannot be "
            f"imported: {type(error).__name__}: {error}\n"
            f"{advice} entry_point in its gymnasium.register(...)."
        ) from error


def _make_part(config: EnvConfig) -> AgentEnv:
    spec = env_spec(config.id)
    creator = _creator(spec)
    _check_kwargs(config, creator)
    # Passed in the spec, since `gymnasium.make` would take some keywords for its own.
    spec = copy.deepcopy(spec)
    spec.kwargs = {**spec.kwargs, **config.kwargs}
    # Gymnasium's wrappers hide `fork`.
    spec.order_enforce = False
    spec.max_episode_steps = None
    spec.additional_wrappers = ()
    try:
        env = gymnasium.make(spec, disable_env_checker=True).unwrapped
    except ConfigError:
        raise
    except ModuleNotFoundError as error:
        raise missing_extra(error, needed_by=config.id) or error from None
    except (TypeError, ValueError, OSError) as error:
        raise ConfigError(
            f"{config.id} cannot be made with env.kwargs {config.kwargs}: {error}\n"
            f"Its arguments: {describe(knobs(creator))}. `parl envs show {config.id}` says more."
        ) from error
    if not isinstance(env, AgentEnv):
        raise ConfigError(
            f"{config.id} is a {type(env).__name__}, not an AgentEnv: it has no tools and cannot "
            "be forked for subagents. Subclass parl.env.base.AgentEnv, or choose one of: "
            f"{', '.join(env_ids()) or '(none)'}."
        )
    env.add_tools(*toolsets(config.tools))
    return env


def _check_kwargs(config: EnvConfig, creator: Callable[..., Any]) -> None:
    """Refuse arguments that the environment does not have, or of another type.

    Gymnasium hands them to the constructor unchecked: a misspelt one would be a bare TypeError, and
    a text where a number belongs would fail in the middle of an episode.
    """
    allowed = knobs(creator)
    parameters = inspect.signature(creator).parameters.values()
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    unknown = [name for name in config.kwargs if name not in allowed]
    if unknown and not takes_any:
        raise ConfigError(
            f"env.kwargs: {config.id} has no argument '{unknown[0]}'."
            f"{did_you_mean(unknown[0], allowed)}"
        )
    for name, value in config.kwargs.items():
        if name in allowed and not _fits(value, name, creator):
            expected = describe({name: allowed[name]})
            raise ConfigError(f"env.kwargs.{name}: {config.id} takes {expected} (given: {value!r})")


def _fits(value: Any, name: str, creator: Callable[..., Any]) -> bool:
    """Return whether a value from YAML has the type of a parameter's hint.

    Without a hint, and with one that cannot be resolved at run time, any value fits.
    """
    try:
        hint = inspect.signature(creator, eval_str=True).parameters[name].annotation
        adapter = TypeAdapter(Any if hint is inspect.Parameter.empty else hint)
        # As JSON, because only there strict mode takes a list for a tuple and a text for a path.
        adapter.validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        # Of a choice of values the environment itself says more.
        return all(problem["type"] == "literal_error" for problem in error.errors())
    except (NameError, TypeError, PydanticUserError):
        return True
    return True


def _type_name(annotation: Any) -> str:
    if isinstance(annotation, str):
        return annotation
    return str(getattr(annotation, "__name__", annotation))
