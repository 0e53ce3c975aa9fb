"""Arguments and settings that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

ConfigPath = Annotated[
    Path,
    typer.Argument(
        metavar="CONFIG", help="A YAML file, or the name of one that ships: parl configs list."
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY.PATH=VALUE", help="Override values of the file; VALUE is YAML."),
]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder; it is only read.")]
CheckpointName = Annotated[
    str | None, typer.Option(metavar="STEP|best|cold-start", help="Default: the last.")
]
Host = Annotated[str, typer.Option(help="Address to listen at; the default is this machine only.")]
Port = Annotated[int | None, typer.Option(min=1, max=65535, help="Default: a free one.")]
Mode = Literal["swarm", "single"]
Split = Literal["train", "validation", "test"]

# Nothing that runs here asks for a password, so nobody else may reach it unless told so.
LOCALHOST = "127.0.0.1"


def new_app(text: str) -> typer.Typer:
    """Return an empty app.

    Args:
        text: its help.
    """
    return typer.Typer(
        help=text,
        no_args_is_help=True,
        # It would add two options to every help page, and edit the user's shell profile.
        add_completion=False,
        # Our errors are one line. A bug should show Python's own traceback, which can be pasted
        # into an issue.
        pretty_exceptions_enable=False,
        # Help texts hold brackets, such as `parl-swarm[train]`, that rich would take for markup.
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
