"""Commands that make runs, or go on with them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from parl.cli.common import ConfigPath, Overrides, new_app
from parl.cli.export import export
from parl.cli.rescore import rescore
from parl.cli.seeds import seeds
from parl.cli.serve import serve
from parl.config import load
from parl.core.errors import ConfigError

runs_app = new_app("Runs.")


@runs_app.command()
def train(
    config: ConfigPath,
    overrides: Overrides = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on with a run folder.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and set up everything, train nothing.")
    ] = False,
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
    from parl.training.trainer import train as run

    run(loaded, resume, dry_run)


@runs_app.command("eval")
def evaluate(
    targets: Annotated[
        list[Path],
        typer.Argument(
            metavar="CONFIG_OR_RUN", help="A YAML file, or the run folders of a config's seeds."
        ),
    ],
    checkpoint: Annotated[
        str | None, typer.Option(metavar="STEP|best|cold-start", help="Default: the last.")
    ] = None,
    mode: Annotated[
        Literal["swarm", "single"] | None, typer.Option(help="Default: the config's.")
    ] = None,
    tasks: Annotated[
        int | None, typer.Option(min=1, help="Number of tasks. Default: the config's.")
    ] = None,
    trials: Annotated[
        int, typer.Option(min=1, help="Attempts per task: Avg@N, Max@N, Pass@N.")
    ] = 1,
    split: Annotated[
        Literal["train", "validation", "test"] | None, typer.Option(help="Default: the config's.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Evaluate a run or a config on held-out tasks, with 95 % intervals.

    A swarm is compared, task by task, with the single agent in RUN-single.

    \b
    Examples:
        parl eval runs/quickstart --split test --tasks 200
        parl eval runs/seeds/seed_0 runs/seeds/seed_1 --trials 4
        parl eval runs/quickstart --checkpoint cold-start --mode single --json
    """
    from parl.cli.eval import evaluate_command

    evaluate_command(
        targets,
        checkpoint=checkpoint,
        mode=mode,
        tasks=tasks,
        trials=trials,
        split=split,
        as_json=as_json,
    )


@runs_app.command()
def sft(config: ConfigPath, overrides: Overrides = None) -> None:
    """Train the cold start alone.

    Supervised stages on demonstrations, each up to its gate.

    \b
    Example:
        parl sft configs/quickstart.yaml
    """
    loaded = load(config, overrides or ())
    from parl.training.trainer import run_cold_start_alone

    path = run_cold_start_alone(loaded)
    typer.echo(
        f"The cold start is in {path}/checkpoints. Go on with: "
        f"parl train {path}/config.resolved.yaml --resume {path}"
    )


@runs_app.command()
def ablate(
    config: ConfigPath,
    more: Annotated[
        list[str] | None,
        typer.Argument(metavar="MORE", help="More values of the option before it."),
    ] = None,
    vary: Annotated[
        list[str] | None, typer.Option(metavar="KEY.PATH=V1,V2 ...", help="Values to compare.")
    ] = None,
    configs: Annotated[
        list[str] | None, typer.Option(metavar="A B ...", help="Configs to compare.")
    ] = None,
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
    from parl.cli.ablate import ablate as run

    run(config, vary=varied, configs=[Path(c) for c in compared], seeds=seeds)


runs_app.command()(seeds)
runs_app.command()(export)
runs_app.command()(rescore)
runs_app.command()(serve)


@runs_app.command()
def doctor() -> None:
    """Show what this machine can do, and the fixes.

    Exit code 1 if something is missing.
    """
    from parl.cli.doctor import findings

    found = findings()
    for item in found:
        typer.echo(
            f"{ {True: 'ok ', False: 'FIX', None: '-  '}[item.ok] }  {item.name:<14} {item.value}"
        )
        if item.fix and not item.ok:
            typer.echo(f"{'':<20}-> {item.fix}")
    if any(item.ok is False for item in found):
        raise typer.Exit(1)
