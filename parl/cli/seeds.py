"""`parl seeds`: one config over several seeds, as a table."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Annotated

import typer

from parl.cli.common import ConfigPath
from parl.config import load
from parl.config.extras import require_extras
from parl.core.errors import ConfigError


def seeds(
    config: ConfigPath,
    more: Annotated[
        list[str] | None,
        typer.Argument(metavar="MORE", help="More seeds, and KEY.PATH=VALUE overrides."),
    ] = None,
    first: Annotated[
        list[int] | None,
        typer.Option("--seeds", metavar="N ...", help="The seeds. Default: 0 1 2 3 4."),
    ] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FOLDER", help="Folder of the runs.")
    ] = Path("runs/seeds"),
) -> None:
    """Train a config over several seeds, for a table.

    The seeds run one after the other, each from nothing and with its baseline. A seed that is done
    is not run again and one that was stopped goes on: after a break, type the same command.

    \b
    Examples:
        parl seeds quickstart
        parl seeds quickstart --seeds 0 1 2 -o runs/three train.num_steps=20
    """
    # An option takes one value each time; what follows it, as in `--seeds 0 1`, arrives in `more`.
    overrides = [item for item in more or () if "=" in item]
    all_seeds = list(first or ())
    for item in more or ():
        if "=" in item:
            continue
        # Without --seeds before it, a bare word is a mistake, not the first seed.
        if not first or not item.isdecimal():
            raise ConfigError(
                f"'{item}' is neither a seed nor an override: give --seeds 0 1 2, "
                "or key.path=value."
            )
        all_seeds.append(int(item))
    all_seeds = all_seeds or [0, 1, 2, 3, 4]
    # A mistake is refused before the first run starts.
    require_extras(load(config, overrides), needed_by="parl seeds")
    from parl.training.seeds import run_seed, seeds_table

    summaries = []
    for seed in all_seeds:
        try:
            summaries.append(run_seed(config, seed, output, overrides))
        except subprocess.CalledProcessError as error:
            typer.echo(f"Seed {seed} did not finish. The same command goes on with it.", err=True)
            raise typer.Exit(max(error.returncode, 1)) from None
    for line in seeds_table(summaries):
        typer.echo(line)
