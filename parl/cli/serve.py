"""The command that serves a run's policies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]


def serve(
    run: RunPath,
    checkpoint: Annotated[
        str | None, typer.Option(metavar="STEP|best|cold-start", help="Default: the last.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at; the default is this machine only.")
    ] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Default: a free one.")] = None,
    record: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Append each turn's tokens and log-probs, one JSON line each."
        ),
    ] = None,
) -> None:
    """Serve the trained policies behind an OpenAI-compatible endpoint.

    A conversation goes on with the tokens that were sampled; it is never rendered again. Ctrl-C ends it.

    \b
    Examples:
        parl serve runs/quickstart --port 8000
        parl serve runs/quickstart --checkpoint best --record turns.jsonl
    """
    from parl.deploy.serve import serve as run_server

    run_server(run, checkpoint, host, port, record)
