"""`parl configs ...`: the configs that ship with PARL."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from parl.cli.common import new_app
from parl.config.shipped import SUFFIX, portable_text, shipped_names, summary_of
from parl.core.errors import ConfigError

configs_app = new_app("The configs that ship with PARL.")


@configs_app.command("list")
def configs_list() -> None:
    """List the configs that ship: name and purpose.

    A name stands wherever a command takes a config.

    \b
    Examples:
        parl configs list
        parl train quickstart
    """
    names = shipped_names()
    width = max(map(len, names))
    for name in names:
        typer.echo(f"{name:<{width}}  {summary_of(name)}".rstrip())


@configs_app.command("copy")
def configs_copy(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As in: parl configs list.")],
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="PATH", help="A new file, or a folder. Default: here."),
    ] = None,
) -> None:
    """Copy a config that ships, to change it.

    The copy extends the same configs as the original, by name.

    \b
    Examples:
        parl configs copy quickstart
        parl configs copy ablations/grpo --to experiments/grpo.yaml
    """
    # In another folder the files that it extends are not next to it.
    text = portable_text(name)
    target = to or Path()
    if target.is_dir():
        target = target / f"{Path(name).name}{SUFFIX}"
    # Never over a file: it may be a copy that was changed.
    if target.exists():
        raise ConfigError(f"{target} exists already. Give another place: --to FILE{SUFFIX}.")
    if target.suffix != SUFFIX:
        raise ConfigError(
            f"--to {target}: give a folder that exists, or a file ending in {SUFFIX}."
        )
    if not target.parent.is_dir():
        raise ConfigError(f"--to {target}: there is no folder {target.parent}. Make it first.")
    target.write_text(text, encoding="utf-8")
    typer.echo(f"wrote {target}; next: parl train {target}")
