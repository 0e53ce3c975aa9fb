"""`parl envs ...` and `parl rewards ...`."""

from __future__ import annotations

import json
import textwrap
from typing import Annotated, Any

import typer
import yaml

from parl.commands.common import new_app
from parl.config.explain import plain
from parl.errors import ConfigError

envs_app = new_app("The environments that are installed.")
rewards_app = new_app("The reward terms that are installed.")


@envs_app.command("list")
def envs_list() -> None:
    """List the environments: id and what it is."""
    from parl import plugins

    ids = plugins.env_ids()
    for env_id in ids:
        typer.echo(f"{env_id:<{max(map(len, ids))}}  {_summary(plugins.env_class(plugins.env_spec(env_id)))}")


@envs_app.command("show")
def envs_show(env_id: Annotated[str, typer.Argument(metavar="ID")]) -> None:
    """Print what an environment is and takes.

    \b
    Example:
        parl envs show parl/WideSearch-v0
    """
    from parl import plugins

    cls = plugins.agent_env_class(env_id)
    typer.echo(f"{env_id}\n\n{textwrap.indent(_docstring(cls), '    ')}\n")
    typer.echo(f"env.kwargs: {plugins.describe(plugins.knobs(cls))}\n")
    _echo_tools(cls.tool_specs())
    typer.echo(f"\nIn a config:\n    env:\n      id: {env_id}\n      kwargs: {{}}")


@envs_app.command("check")
def envs_check(
    env_id: Annotated[str, typer.Argument(metavar="ID")],
    kwargs: Annotated[list[str] | None, typer.Argument(metavar="NAME=VALUE", help="Its arguments.")] = None,
) -> None:
    """Check what an environment has to keep.

    Gymnasium's API, tools, seeds, splits, score, forks. Exit code 0 or 2.

    \b
    Examples:
        parl envs check parl/WideSearch-v0
        parl envs check mine/Env-v0 num_pages=3
    """
    from parl import plugins
    from parl.config.schema import EnvConfig

    config = EnvConfig(id=env_id, kwargs=dict(map(_assignment, kwargs or ())))
    _echo_tools(plugins.make_env(config).tool_specs())
    results = plugins.check(lambda: plugins.make_env(config))
    typer.echo()
    for what, wrong in results:
        typer.echo(f"{'ok ' if wrong is None else 'BAD'}  {what}")
        if wrong is not None:
            typer.echo(textwrap.indent(wrong, "         "))
    bad = sum(wrong is not None for _, wrong in results)
    if bad:
        raise ConfigError(f"{env_id} does not keep {bad} of {len(results)} promises; correct it and check again.")


@rewards_app.command("list")
def rewards_list() -> None:
    """List the reward terms: name and what it is."""
    from parl import plugins, scoring

    plugins.load()
    terms = scoring.registered()
    for name, term in sorted(terms.items()):
        typer.echo(f"{name:<{max(map(len, terms))}}  {(term.doc or '(no docstring)').splitlines()[0]}")


@rewards_app.command("show")
def rewards_show(name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """Print what a reward term is and takes.

    \b
    Example:
        parl rewards show outcome
    """
    from parl import plugins, scoring

    plugins.load()
    term = scoring.get(name)
    knobs = {k: p for k, p in plugins.knobs(term.function).items() if k in term.knobs}
    typer.echo(f"{name}\n\n{textwrap.indent(term.doc or '(no docstring)', '    ')}\n")
    typer.echo(f"knobs: {plugins.describe(knobs)}")
    typer.echo(f"roles: {', '.join(term.roles)}")
    typer.echo(f"outcome: {'yes, what Toggle gates on' if term.outcome else 'no'}")
    example = "".join(f", {k}: {plain(p.default) if p.default is not p.empty else '...'}" for k, p in knobs.items())
    typer.echo(f"\nIn a config:\n    reward:\n      terms:\n        {name}: {{weight: 1.0{example}}}")


def _echo_tools(specs: Any) -> None:
    for spec in specs:
        typer.echo(f"tool {spec.name}\n{textwrap.indent(spec.description or '(no docstring)', '    ')}")
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
