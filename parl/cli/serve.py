"""`parl serve`: a run's policies behind an endpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from parl.cli.common import LOCALHOST, CheckpointName, Host, Port, RunPath
from parl.core.extras import require


def serve(
    run: RunPath,
    checkpoint: CheckpointName = None,
    host: Host = LOCALHOST,
    port: Port = None,
    record: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Append each turn's tokens and log-probs, one JSON line each."
        ),
    ] = None,
) -> None:
    """Serve the trained policies behind an OpenAI-compatible endpoint.

    A conversation goes on with the tokens that were sampled; it is never rendered again.
    Ctrl-C ends it.

    \b
    Examples:
        parl serve runs/quickstart --port 8000
        parl serve runs/quickstart --checkpoint best --record turns.jsonl
    """
    require("train", needed_by="parl serve")
    from parl.deploy.serve import serve as run_server

    run_server(run, checkpoint, host, port, record)
