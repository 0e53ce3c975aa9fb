"""Plugins: environments and rewards that live in any installed package.

In: the entry-point groups `parl.envs` and `parl.rewards`; each entry names a module that registers with Gymnasium
or with `parl.rewards.scorer` when it is imported. Out: those registries filled, in this process. Gymnasium's registry is
per process, so `load()` runs first in the driver and in every worker. Also here: making an environment from its config.
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
_lock = threading.RLock()  # a plugin may ask for the ids while it is imported


def load() -> None:
    """Import every plugin that is installed and was not imported yet. Raises ConfigError for one that cannot be."""
    with _lock:
        for group in GROUPS:
            for entry in entry_points(group=group):
                if entry not in _loaded:
                    _import(entry)
                    _loaded.add(entry)


def modules() -> list[ModuleType]:
    """The modules that entry points name, imported, each once, sorted by name."""
    load()
    return [sys.modules[name] for name in sorted({entry.module for entry in _loaded})]


def _import(entry: EntryPoint) -> None:
    try:
        entry.load()
    except (
        ConfigError
    ):  # a name that two plugins give: it says which, and either may be the culprit
        raise
    except Exception as error:
        name = entry.dist.name if entry.dist else entry.module
        version = f" {entry.dist.version}" if entry.dist else ""
        raise ConfigError(
            f"The plugin '{entry.name}' ({entry.group}) of {name}{version} cannot be imported: {entry.value} raised "
            f"{type(error).__name__}: {error}\n"
            f"{_advice(error, name)}, or remove it: pip uninstall {name}"
        ) from error


def _advice(error: Exception, name: str) -> str:
    if isinstance(error, OldPathError):
        return f"If it is yours, change that import; else try a newer one (pip install --upgrade {name})"
    if isinstance(error, ImportError):
        return f"Install what it needs (pip install --upgrade {name})"
    return "If it is yours, correct that code"


def env_ids() -> list[str]:
    """Ids of the registered environments that are `AgentEnv`s, sorted."""
    load()
    return sorted(spec.id for spec in gymnasium.registry.values() if env_class(spec) is not None)


def env_class(spec: EnvSpec) -> type[AgentEnv] | None:
    """The AgentEnv class behind a registration; None for any other environment.

    Modules of other environments (all of Gymnasium's) are not imported to find out.
    """
    creator: Any = spec.entry_point
    if isinstance(creator, str):
        module = creator.partition(":")[0]
        packages = {entry.module.partition(".")[0] for entry in _loaded}
        if module not in sys.modules and module.partition(".")[0] not in packages:
            return None
        creator = _creator(spec)
    return creator if isinstance(creator, type) and issubclass(creator, AgentEnv) else None


def _creator(spec: EnvSpec) -> Callable[..., Any]:
    if callable(spec.entry_point):
        return spec.entry_point
    try:
        return load_env_creator(str(spec.entry_point))
    except Exception as error:
        raise ConfigError(
            f"{spec.id} is registered with the entry point '{spec.entry_point}', which cannot be imported: "
            f"{type(error).__name__}: {error}\n"
            + (
                "Install what it needs, or correct"
                if isinstance(error, ImportError)
                else "Correct that code, or"
            )
            + " entry_point in its gymnasium.register(...)."
        ) from error


def env_spec(env_id: str) -> EnvSpec:
    """The registration of an id (`module:namespace/Name-v0` imports the module first). Raises ConfigError."""
    module, _, env_id = env_id.rpartition(":")
    if (
        env_id not in gymnasium.registry
    ):  # reading all entry points takes 15 ms, and workers make many environments
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
            f"No environment '{env_id}' is registered.{hint} One of your own needs gymnasium.register(id='{env_id}', "
            "...) in a module that an entry point of the group parl.envs names; `parl envs list` shows what is found."
        ) from None


def agent_env_class(env_id: str) -> type[AgentEnv]:
    """The class of an id. Raises ConfigError: unknown, or not an AgentEnv."""
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


def _make_part(config: EnvConfig) -> AgentEnv:
    spec = env_spec(config.id)
    creator = _creator(spec)
    _check_kwargs(config, creator)
    # As a spec rather than as keywords, so that no kwarg can be taken for one of `gymnasium.make` itself.
    spec = copy.deepcopy(spec)
    spec.kwargs = {**spec.kwargs, **config.kwargs}
    spec.order_enforce, spec.max_episode_steps, spec.additional_wrappers = False, None, ()
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
            f"{config.id} is a {type(env).__name__}, not an AgentEnv: it has no tools and cannot be forked for "
            f"subagents. Subclass parl.env.base.AgentEnv, or choose one of: {', '.join(env_ids()) or '(none)'}."
        )
    env.add_tools(*toolsets(config.tools))
    return env


def _check_kwargs(config: EnvConfig, creator: Callable[..., Any]) -> None:
    allowed = knobs(creator)
    unknown = [name for name in config.kwargs if name not in allowed]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(creator).parameters.values())
    if unknown and not takes_any:
        raise ConfigError(
            f"env.kwargs: {config.id} has no argument '{unknown[0]}'.{did_you_mean(unknown[0], allowed)}"
        )
    for name, value in config.kwargs.items():
        if name in allowed and not _fits(value, name, creator):
            raise ConfigError(
                f"env.kwargs.{name}: {config.id} takes {describe({name: allowed[name]})} (given: {value!r})"
            )


def _fits(value: Any, name: str, creator: Callable[..., Any]) -> bool:
    """Whether a value from YAML has the type of a parameter's hint (a hint that says nothing takes anything)."""
    try:
        hint = inspect.signature(creator, eval_str=True).parameters[name].annotation
        TypeAdapter(Any if hint is inspect.Parameter.empty else hint).validate_json(
            json.dumps(value), strict=True
        )
    except ValidationError as error:  # of a choice of values the environment itself says more
        return all(e["type"] == "literal_error" for e in error.errors())
    except (NameError, TypeError, PydanticUserError):  # a hint that only a type checker can resolve
        return True
    return True


def knobs(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """The parameters that can be given by keyword, by name (for a class, those of its constructor)."""
    kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return {n: p for n, p in inspect.signature(function).parameters.items() if p.kind in kinds}


def describe(parameters: Mapping[str, inspect.Parameter]) -> str:
    """Example: "num: int = 3, path: Path (required)"; "(none)" for none."""
    shown = []
    for name, parameter in parameters.items():
        hint = (
            ""
            if parameter.annotation is parameter.empty
            else f": {_type_name(parameter.annotation)}"
        )
        default = (
            " (required)" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        )
        shown.append(name + hint + default)
    return ", ".join(shown) or "(none)"


def _type_name(annotation: Any) -> str:
    return (
        annotation
        if isinstance(annotation, str)
        else getattr(annotation, "__name__", str(annotation))
    )
