"""Commands that make runs, go on with them, or use their policies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from parl.cli.common import CheckpointName, ConfigPath, Mode, Overrides, Split, new_app
from parl.cli.export import export
from parl.cli.rescore import rescore
from parl.cli.seeds import seeds
from parl.cli.serve import serve
from parl.config import load
from parl.config.extras import require_extras
from parl.core.errors import ConfigError
from parl.core.extras import require

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
        parl train quickstart
        parl train quickstart seed=1 reward.terms.parallel.weight=0
        parl train quickstart --resume runs/quickstart
    """
    # A mistake in the config is told before the imports, which take seconds.
    loaded = load(config, overrides or ())
    require_extras(loaded, needed_by="parl train")
    from parl.training.trainer import train as run_training

    run_training(loaded, resume, dry_run)


@runs_app.command("eval")
def evaluate(
    targets: Annotated[
        list[Path],
        typer.Argument(
            metavar="CONFIG_OR_RUN", help="A config, or the run folders of a config's seeds."
        ),
    ],
    checkpoint: CheckpointName = None,
    mode: Annotated[Mode | None, typer.Option(help="Default: the config's.")] = None,
    tasks: Annotated[
        int | None, typer.Option(min=1, help="Number of tasks. Default: the config's.")
    ] = None,
    trials: Annotated[
        int, typer.Option(min=1, help="Attempts per task: Avg@N, Max@N, Pass@N.")
    ] = 1,
    split: Annotated[Split | None, typer.Option(help="Default: the config's.")] = None,
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
    # A run has its config in its folder, and what else that needs was there when it was trained.
    require("train", needed_by="parl eval")
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
        parl sft quickstart
    """
    # As for `parl train`: the config first, then the extras, then the slow imports.
    loaded = load(config, overrides or ())
    require_extras(loaded, needed_by="parl sft")
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
        parl ablate quickstart --vary reward.terms.parallel.weight=0,0.3 --seeds 5
        parl ablate quickstart --configs ablations/no_shaping ablations/toggle
    """
    # An option takes one value each time. What follows it, as in `--configs A B`, arrives in
    # `more`, where only an axis has an equals sign.
    axes, paths = list(vary or ()), list(configs or ())
    for item in more or ():
        (axes if "=" in item else paths).append(item)
    if bool(axes) == bool(paths):
        raise ConfigError(
            "Say what to compare: either --vary key.path=v1,v2 (values of one config) "
            "or --configs A.yaml B.yaml."
        )
    # Once, here: else every run of the ablation would fail on it in a process of its own.
    require_extras(load(config), needed_by="parl ablate")
    from parl.cli.ablate import ablate as run_ablation

    run_ablation(config, vary=axes, configs=[Path(path) for path in paths], seeds=seeds)


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

    # None: not there, and only some machines or configs need it.
    marks = {True: "ok ", False: "FIX", None: "-  "}
    is_complete = True
    for finding in findings():
        typer.echo(f"{marks[finding.ok]}  {finding.name:<14} {finding.value}")
        if finding.fix and not finding.ok:
            typer.echo(f"{'':<20}-> {finding.fix}")
        is_complete = is_complete and finding.ok is not False
    if not is_complete:
        raise typer.Exit(1)
