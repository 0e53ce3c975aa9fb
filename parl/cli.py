"""The command line: `parl COMMAND ...`.

In: arguments. Out: text on stdout, logs and errors on stderr, and an exit code: 0 done, 2 the input is wrong (one
message, no traceback), 1 anything else. Commands import what they need when they run, so that `parl --help` and
`parl config check` start at once, without torch.
"""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
import yaml

from parl.config import load
from parl.config.explain import derived, explain, plain
from parl.errors import CheckpointError, ConfigError

HELP = {"help_option_names": ["-h", "--help"]}


def _app(text: str) -> typer.Typer:
    return typer.Typer(
        help=text,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings=HELP,
    )


app = _app("Reinforcement learning for agents that work in parallel.\n\nStart with: parl train configs/quickstart.yaml")
config_app = _app("Look at a config: resolved, explained or checked.")
envs_app = _app("The environments that are installed.")
rewards_app = _app("The reward terms that are installed.")
app.add_typer(config_app, name="config")
app.add_typer(envs_app, name="envs")
app.add_typer(rewards_app, name="rewards")

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY.PATH=VALUE", help="Override values of the file; VALUE is YAML."),
]


# --- runs ----------------------------------------------------------------------------------------------------


@app.command()
def train(
    config: ConfigPath,
    overrides: Overrides = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Go on with a run folder.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and set up everything, train nothing.")] = False,
) -> None:
    """Train: cold start, RL, evaluation, report.

    Ctrl-C saves a checkpoint and says how to resume.

    \b
    Examples:
        parl train configs/quickstart.yaml
        parl train configs/quickstart.yaml seed=1 reward.terms.parallel.weight=0
        parl train configs/quickstart.yaml --resume runs/quickstart
    """
    loaded = load(config, overrides or ())  # before the imports, which take seconds
    from parl.train import train as run

    run(loaded, resume, dry_run)


@app.command("eval")
def evaluate(
    target: Annotated[Path, typer.Argument(metavar="CONFIG_OR_RUN", help="A YAML file or a run folder.")],
    checkpoint: Annotated[str | None, typer.Option(metavar="STEP|best|cold-start", help="Default: the last.")] = None,
    mode: Annotated[Literal["swarm", "single"] | None, typer.Option(help="Default: the config's.")] = None,
    tasks: Annotated[int | None, typer.Option(min=1, help="Number of tasks. Default: the config's.")] = None,
    trials: Annotated[int, typer.Option(min=1, help="Attempts per task: Avg@N, Max@N, Pass@N.")] = 1,
    split: Annotated[Literal["train", "validation", "test"] | None, typer.Option(help="Default: the config's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Evaluate a run or a config on held-out tasks.

    \b
    Examples:
        parl eval runs/quickstart --split test --tasks 200
        parl eval runs/quickstart --checkpoint cold-start --mode single --json
    """
    from parl.evaluate import evaluate_command

    evaluate_command(target, checkpoint=checkpoint, mode=mode, tasks=tasks, trials=trials, split=split, as_json=as_json)


@app.command()
def sft(config: ConfigPath, overrides: Overrides = None) -> None:
    """Train the cold start alone.

    Supervised stages on demonstrations, each up to its gate.

    \b
    Example:
        parl sft configs/quickstart.yaml
    """
    loaded = load(config, overrides or ())
    from parl.cold_start import sft_command

    sft_command(loaded)


@app.command()
def ablate(
    config: ConfigPath,
    more: Annotated[
        list[str] | None, typer.Argument(metavar="MORE", help="More values of the option before it.")
    ] = None,
    vary: Annotated[list[str] | None, typer.Option(metavar="KEY.PATH=V1,V2 ...", help="Values to compare.")] = None,
    configs: Annotated[list[str] | None, typer.Option(metavar="A B ...", help="Configs to compare.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Paired seeds of each variant.")] = 3,
) -> None:
    """Compare variants of a config over paired seeds.

    The result is a table with confidence intervals, and a page.

    \b
    Examples:
        parl ablate configs/quickstart.yaml --vary reward.terms.parallel.weight=0,0.3 --seeds 5
        parl ablate configs/quickstart.yaml --configs configs/ablations/no_shaping.yaml configs/ablations/toggle.yaml
    """
    # An option takes one value each time; what follows it, as in `--configs A B`, arrives in `more`.
    varied = [*(vary or ()), *(item for item in more or () if "=" in item)]
    compared = [*(configs or ()), *(item for item in more or () if "=" not in item)]
    if bool(varied) == bool(compared):
        raise ConfigError(
            "Say what to compare: either --vary key.path=v1,v2 (values of one config) or --configs A.yaml B.yaml."
        )
    from parl.ablate import ablate as run

    run(config, vary=varied, configs=[Path(c) for c in compared], seeds=seeds)


@app.command()
def doctor() -> None:
    """Show what this machine can do, and the fixes.

    Exit code 1 if something is missing.
    """
    from parl.doctor import findings

    found = findings()
    for item in found:
        typer.echo(f"{ {True: 'ok ', False: 'FIX', None: '-  '}[item.ok] }  {item.name:<14} {item.value}")
        if item.fix and not item.ok:
            typer.echo(f"{'':<20}-> {item.fix}")
    if any(item.ok is False for item in found):
        raise typer.Exit(1)


# --- config --------------------------------------------------------------------------------------------------


@config_app.command("show")
def config_show(config: ConfigPath, overrides: Overrides = None) -> None:
    """Print the config with every value, as YAML.

    \b
    Example:
        parl config show configs/quickstart.yaml train.num_steps=5
    """
    tree = load(config, overrides or ()).model_dump(mode="json")
    typer.echo(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), nl=False)


@config_app.command("explain")
def config_explain(config: ConfigPath, overrides: Overrides = None) -> None:
    """Print every field's meaning and value.

    Below them, the numbers that follow: episodes per step, tokens per agent, ...

    \b
    Example:
        parl config explain configs/quickstart.yaml | less
    """
    loaded = load(config, overrides or ())
    for line in explain(loaded):
        typer.echo(line)
    typer.echo("\nderived")
    numbers = derived(loaded)
    for name, value in numbers.items():
        typer.echo(f"    {name:<{max(map(len, numbers))}}  {value}")


@config_app.command("check")
def config_check(config: ConfigPath, overrides: Overrides = None) -> None:
    """Check a config without running it.

    Its values, its environment (made once) and its reward terms. Exit code 0 or 2.

    \b
    Example:
        parl config check configs/quickstart.yaml loss.tau=0.1
    """
    from parl.preflight import check_names

    loaded = load(config, overrides or ())
    with check_names(loaded) as env:
        tools = ", ".join(spec.name for spec in env.tool_specs())
    typer.echo(f"ok: {config}: {loaded.env.id} (tools: {tools}), rewards: {', '.join(loaded.reward.terms)}")


# --- plugins -------------------------------------------------------------------------------------------------


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


def main() -> None:
    """Run the command line. Bad input becomes one message and exit code 2."""
    try:
        app(prog_name="parl")
    except (ConfigError, CheckpointError) as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
    except SystemExit as exit_:  # typer's way to end; an interrupt is its 130, and 1 in our contract
        sys.exit(1 if exit_.code == 130 else exit_.code)


if __name__ == "__main__":
    main()
