"""`parl envs ...` and `parl rewards ...`."""

from __future__ import annotations

import json
import shlex
import textwrap
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from parl.cli.common import new_app
from parl.config.explain import plain
from parl.core.errors import ConfigError
from parl.rewards import terms

envs_app = new_app("The environments that are installed.")
rewards_app = new_app("The reward terms that are installed.")

PackageName = Annotated[
    str, typer.Argument(metavar="NAME", help="Of the package, such as phone-book.")
]
PackageDir = Annotated[
    Path | None, typer.Option("--dir", help="Where to write it; default: a folder NAME, here.")
]


@envs_app.command("list")
def envs_list() -> None:
    """List the environments: id and what it is."""
    from parl.env import registry as plugins

    ids = plugins.env_ids()
    for env_id in ids:
        typer.echo(
            f"{env_id:<{max(map(len, ids))}}  {_summary(plugins.env_class(plugins.env_spec(env_id)))}"
        )


@envs_app.command("show")
def envs_show(env_id: Annotated[str, typer.Argument(metavar="ID")]) -> None:
    """Print what an environment is and takes.

    \b
    Example:
        parl envs show parl/WideSearch-v0
    """
    from parl.env import registry as plugins

    cls = plugins.agent_env_class(env_id)
    typer.echo(f"{env_id}\n\n{textwrap.indent(_docstring(cls), '    ')}\n")
    typer.echo(f"env.kwargs: {plugins.describe(plugins.knobs(cls))}\n")
    _echo_tools(cls.own_tool_specs())
    typer.echo(f"\nIn a config:\n    env:\n      id: {env_id}\n      kwargs: {{}}")


@envs_app.command("check")
def envs_check(
    env_id: Annotated[str, typer.Argument(metavar="ID")],
    kwargs: Annotated[
        list[str] | None, typer.Argument(metavar="NAME=VALUE", help="Its arguments.")
    ] = None,
) -> None:
    """Check what an environment has to keep.

    Tools, seeds, splits, score, forks, Gymnasium's API, an episode of a swarm, speed. Exit code 0 or 2.

    \b
    Examples:
        parl envs check parl/WideSearch-v0
        parl envs check mine/Env-v0 num_pages=3
    """
    from parl.config.env import EnvConfig
    from parl.testing import check_env as runner

    config = EnvConfig(id=env_id, kwargs=dict(map(_assignment, kwargs or ())))
    _echo_tools(runner.made(config).tool_specs())
    typer.echo()
    bad = 0
    for finding in runner.check(config):
        bad += finding.status == "BAD"
        short = finding.status in ("ok", "--")
        typer.echo(
            f"{finding.status:<4} {finding.what}"
            + (f" ({finding.text})" if short and finding.text else "")
        )
        if not short:
            typer.echo(textwrap.indent(finding.text, "         "))
    if bad:
        raise ConfigError(
            f"{env_id} does not keep {bad} of its promises; correct it and check again."
        )


@envs_app.command("new")
def envs_new(name: PackageName, folder: PackageDir = None) -> None:
    """Write a package with an environment of your own.

    It is complete and small: to be installed, tried and changed.

    \b
    Example:
        parl envs new phone-book
    """
    from parl.cli import scaffold

    made = scaffold.new("envs", name, folder)
    smoke = shlex.quote(str(made.folder / "smoke.yaml"))
    _echo_scaffold(made, f"parl envs check {made.plugin}", f"parl train {smoke}")


@rewards_app.command("list")
def rewards_list() -> None:
    """List the reward terms: name and what it is."""
    from parl.env import registry as plugins

    plugins.load()
    known = terms.registered()
    for name, term in sorted(known.items()):
        typer.echo(
            f"{name:<{max(map(len, known))}}  {(term.doc or '(no docstring)').splitlines()[0]}"
        )


@rewards_app.command("show")
def rewards_show(name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """Print what a reward term is and takes.

    \b
    Example:
        parl rewards show outcome
    """
    from parl.env import registry as plugins

    plugins.load()
    term = terms.get(name)
    knobs = {k: p for k, p in plugins.knobs(term.function).items() if k in term.knobs}
    typer.echo(f"{name}\n\n{textwrap.indent(term.doc or '(no docstring)', '    ')}\n")
    typer.echo("knobs:" + ("" if knobs else " (none)"))
    for knob, parameter in knobs.items():
        allowed = _bounds(term.knobs[knob].json_schema())
        typer.echo(
            f"    {plugins.describe({knob: parameter})}" + (f"  ({allowed})" if allowed else "")
        )
    typer.echo(f"roles: {', '.join(term.roles)}")
    typer.echo(f"kind: {'outcome, what Toggle gates on' if term.outcome else 'shaping'}")
    example = "".join(
        f", {k}: {plain(p.default) if p.default is not p.empty else '...'}"
        for k, p in knobs.items()
    )
    typer.echo(
        f"\nIn a config:\n    reward:\n      terms:\n        {name}: {{weight: 1.0{example}}}"
    )


@rewards_app.command("new")
def rewards_new(name: PackageName, folder: PackageDir = None) -> None:
    """Write a package with a reward term of your own.

    It is complete and small: to be installed, tried and changed.

    \b
    Example:
        parl rewards new short-answers
    """
    from parl.cli import scaffold

    made = scaffold.new("rewards", name, folder)
    _echo_scaffold(made, f"parl rewards show {made.plugin}")


def _bounds(schema: dict[str, Any]) -> str:
    """What a knob's type allows, where its hint does not show it. Example: "above 0, at most 1"."""
    words = {
        "exclusiveMinimum": "above",
        "minimum": "at least",
        "exclusiveMaximum": "below",
        "maximum": "at most",
    }
    return ", ".join(f"{word} {schema[key]:g}" for key, word in words.items() if key in schema)


def _echo_scaffold(made: Any, *commands: str) -> None:
    typer.echo(f"wrote {made.folder} with {made.plugin}; next:")
    for command in (f"pip install -e {shlex.quote(str(made.folder))}", *commands):
        typer.echo(f"    {command}")


def _echo_tools(specs: Any) -> None:
    for spec in specs:
        typer.echo(
            f"tool {spec.name}\n{textwrap.indent(spec.description or '(no docstring)', '    ')}"
        )
        typer.echo(f"    {json.dumps(spec.parameters)}")


def _assignment(item: str) -> tuple[str, Any]:
    name, sep, text = item.partition("=")
    if not sep:
        raise ConfigError(f"'{item}' is not an argument; write name=value, such as num=3.")
    try:
        return name, yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"The value in '{item}' is not YAML: {error}") from None


def _docstring(cls: type | None) -> str:
    return textwrap.dedent((cls.__doc__ if cls else None) or "(no docstring)").strip()


def _summary(cls: type | None) -> str:
    return _docstring(cls).splitlines()[0]
