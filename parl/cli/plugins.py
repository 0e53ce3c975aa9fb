"""`parl envs ...` and `parl rewards ...`: the plugins that are installed, and new ones."""

from __future__ import annotations

import inspect
import json
import shlex
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from parl.cli.common import new_app
from parl.cli.scaffold import Scaffold, new_plugin
from parl.config.env import EnvConfig
from parl.config.explain import plain
from parl.core.errors import ConfigError
from parl.env import registry
from parl.env.tools import ToolSpec
from parl.rewards import terms

envs_app = new_app("The environments that are installed.")
rewards_app = new_app("The reward terms that are installed.")

PackageName = Annotated[
    str, typer.Argument(metavar="NAME", help="Of the package, such as phone-book.")
]
PackageDir = Annotated[
    Path | None, typer.Option("--dir", help="Where to write it; default: a folder NAME, here.")
]

NO_DOCSTRING = "(no docstring)"
BOUNDS = {
    "exclusiveMinimum": "above",
    "minimum": "at least",
    "exclusiveMaximum": "below",
    "maximum": "at most",
}
"""Keyword of JSON Schema -> words."""


@envs_app.command("list")
def envs_list() -> None:
    """List the environments: id and first line of the description."""
    summaries = {}
    for env_id in registry.env_ids():
        env_class = registry.env_class(registry.env_spec(env_id))
        summaries[env_id] = _docstring(env_class).splitlines()[0]
    _echo_table(summaries)


@envs_app.command("show")
def envs_show(env_id: Annotated[str, typer.Argument(metavar="ID")]) -> None:
    """Print an environment's description, arguments and tools.

    \b
    Example:
        parl envs show parl/WideSearch-v0
    """
    env_class = registry.agent_env_class(env_id)
    typer.echo(f"{env_id}\n\n{textwrap.indent(_docstring(env_class), '    ')}\n")
    typer.echo(f"env.kwargs: {registry.describe(registry.knobs(env_class))}\n")
    _echo_tools(env_class.own_tool_specs())
    typer.echo(f"\nIn a config:\n    env:\n      id: {env_id}\n      kwargs: {{}}")


@envs_app.command("check")
def envs_check(
    env_id: Annotated[str, typer.Argument(metavar="ID")],
    kwargs: Annotated[
        list[str] | None, typer.Argument(metavar="NAME=VALUE", help="Its arguments.")
    ] = None,
) -> None:
    """Check an environment against its contract.

    Tools, seeds, splits, score, forks, Gymnasium's API, an episode of a swarm, speed.
    Exit code 0 or 2.

    \b
    Examples:
        parl envs check parl/WideSearch-v0
        parl envs check mine/Env-v0 num_pages=3
    """
    # It imports the rollout, for the episode of a swarm that it plays.
    from parl.testing import check_env

    values = dict(_assignment(item) for item in kwargs or ())
    config = EnvConfig(id=env_id, kwargs=values)
    # Before the checks: it is what a policy will be shown, whether they pass or not.
    _echo_tools(check_env.make_within(config).tool_specs())
    typer.echo()

    num_broken = 0
    for finding in check_env.check(config):
        if finding.status == "BAD":
            num_broken += 1
        # What needs no action is one line; a failure has its explanation below it.
        if finding.status in ("ok", "--"):
            remark = f" ({finding.text})" if finding.text else ""
            typer.echo(f"{finding.status:<4} {finding.what}{remark}")
        else:
            typer.echo(f"{finding.status:<4} {finding.what}")
            typer.echo(textwrap.indent(finding.text, "         "))
    if num_broken:
        raise ConfigError(
            f"{env_id} does not keep {num_broken} of its promises; correct it and check again."
        )


@envs_app.command("new")
def envs_new(name: PackageName, folder: PackageDir = None) -> None:
    """Write a package with a new environment.

    It is complete and small: install it, try it, change it.

    \b
    Example:
        parl envs new phone-book
    """
    scaffold = new_plugin("envs", name, folder)
    smoke = shlex.quote(str(scaffold.folder / "smoke.yaml"))
    _echo_next_steps(scaffold, f"parl envs check {scaffold.plugin}", f"parl train {smoke}")


@rewards_app.command("list")
def rewards_list() -> None:
    """List the reward terms: name and first line of the description."""
    # Terms register when their plugin is imported.
    registry.load()
    summaries = {}
    for name, term in sorted(terms.registered().items()):
        summaries[name] = (term.doc or NO_DOCSTRING).splitlines()[0]
    _echo_table(summaries)


@rewards_app.command("show")
def rewards_show(name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """Print a reward term's description, knobs, roles and kind.

    \b
    Example:
        parl rewards show outcome
    """
    registry.load()
    term = terms.get(name)
    knobs: dict[str, inspect.Parameter] = {}
    for knob, parameter in registry.knobs(term.function).items():
        # The first parameter is the episode, which no config sets.
        if knob in term.knobs.validators:
            knobs[knob] = parameter

    typer.echo(f"{name}\n\n{textwrap.indent(term.doc or NO_DOCSTRING, '    ')}\n")
    typer.echo("knobs:" if knobs else "knobs: (none)")
    for knob, parameter in knobs.items():
        bounds = _bounds(term.knobs.validators[knob].json_schema())
        remark = f"  ({bounds})" if bounds else ""
        typer.echo(f"    {registry.describe({knob: parameter})}{remark}")
    typer.echo(f"roles: {', '.join(term.roles)}")
    typer.echo(f"kind: {'outcome, what Toggle gates on' if term.outcome else 'shaping'}")
    settings = ", ".join(["weight: 1.0", *_settings(knobs)])
    typer.echo(f"\nIn a config:\n    reward:\n      terms:\n        {name}: {{{settings}}}")


@rewards_app.command("new")
def rewards_new(name: PackageName, folder: PackageDir = None) -> None:
    """Write a package with a new reward term.

    It is complete and small: install it, try it, change it.

    \b
    Example:
        parl rewards new short-answers
    """
    scaffold = new_plugin("rewards", name, folder)
    _echo_next_steps(scaffold, f"parl rewards show {scaffold.plugin}")


def _settings(knobs: Mapping[str, inspect.Parameter]) -> list[str]:
    """Return the knobs as in a config, with their defaults. Example: ["cap: 8", "per: ..."]"""
    settings = []
    for knob, parameter in knobs.items():
        # A required knob has no default to show.
        default = "..." if parameter.default is parameter.empty else plain(parameter.default)
        settings.append(f"{knob}: {default}")
    return settings


def _bounds(schema: Mapping[str, Any]) -> str:
    """Return the bounds of a knob's type, which its hint does not show.

    Example: "above 0, at most 1"
    """
    return ", ".join(f"{word} {schema[key]:g}" for key, word in BOUNDS.items() if key in schema)


def _echo_table(summaries: Mapping[str, str]) -> None:
    width = max((len(name) for name in summaries), default=0)
    for name, summary in summaries.items():
        typer.echo(f"{name:<{width}}  {summary}")


def _echo_next_steps(scaffold: Scaffold, *commands: str) -> None:
    typer.echo(f"wrote {scaffold.folder} with {scaffold.plugin}; next:")
    typer.echo(f"    pip install -e {shlex.quote(str(scaffold.folder))}")
    for command in commands:
        typer.echo(f"    {command}")


def _echo_tools(specs: Iterable[ToolSpec]) -> None:
    # The schema as a policy gets it, on one line, so that it can be copied.
    for spec in specs:
        typer.echo(f"tool {spec.name}")
        typer.echo(textwrap.indent(spec.description or NO_DOCSTRING, "    "))
        typer.echo(f"    {json.dumps(spec.parameters)}")


def _assignment(item: str) -> tuple[str, Any]:
    name, separator, text = item.partition("=")
    if not separator:
        raise ConfigError(f"'{item}' is not an argument; write name=value, such as num=3.")
    # As in a config, so that what is tried here can be copied into `env.kwargs`.
    try:
        return name, yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"The value in '{item}' is not YAML: {error}") from None


def _docstring(env_class: type | None) -> str:
    docstring = env_class.__doc__ if env_class is not None else None
    return textwrap.dedent(docstring or NO_DOCSTRING).strip()
