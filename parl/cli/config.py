"""`parl config ...`: one config, resolved, explained or checked."""

from __future__ import annotations

from contextlib import closing

import typer
import yaml

from parl.cli.common import ConfigPath, Overrides, new_app
from parl.config import load
from parl.config.explain import derived, explain

config_app = new_app("Look at a config: resolved, explained or checked.")


@config_app.command("show")
def config_show(config: ConfigPath, overrides: Overrides = None) -> None:
    """Print the config with every value, as YAML.

    \b
    Example:
        parl config show quickstart train.num_steps=5
    """
    # In the order of the schema: sorted keys would tear sections apart.
    tree = load(config, overrides or ()).model_dump(mode="json")
    typer.echo(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), nl=False)


@config_app.command("explain")
def config_explain(config: ConfigPath, overrides: Overrides = None) -> None:
    """Print every field's meaning and value.

    Below them, the numbers that follow: episodes per step, tokens per agent, ...

    \b
    Example:
        parl config explain quickstart | less
    """
    loaded = load(config, overrides or ())
    for line in explain(loaded):
        typer.echo(line)
    typer.echo("\nderived")
    numbers = derived(loaded)
    width = max(map(len, numbers))
    for name, value in numbers.items():
        typer.echo(f"    {name:<{width}}  {value}")


@config_app.command("check")
def config_check(config: ConfigPath, overrides: Overrides = None) -> None:
    """Check a config without running it.

    Its values, its environment (made once) and its reward terms. Exit code 0 or 2.

    \b
    Example:
        parl config check quickstart loss.tau=0.1
    """
    # It imports every plugin, which `parl config show` does not need.
    from parl.training.light_parts import build_light_parts

    # Closing it ends what an environment may have started, such as the server of its tools.
    loaded = load(config, overrides or ())
    with closing(build_light_parts(loaded)) as parts:
        tools = ", ".join(spec.name for spec in parts.env.tool_specs())
    rewards = ", ".join(loaded.reward.terms)
    typer.echo(f"ok: {config}: {loaded.env.name} (tools: {tools}), rewards: {rewards}")
