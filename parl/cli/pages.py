"""Commands that show a run: in the browser, as one file, as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from parl.cli.common import LOCALHOST, Host, Port, RunPath, new_app
from parl.cli.figures import figures
from parl.core.extras import require

pages_app = new_app("Pages.")


@pages_app.command()
def view(
    run: RunPath,
    port: Port = None,
    host: Host = LOCALHOST,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in the browser.")
    ] = True,
) -> None:
    """Look at a run in the browser, also while it is training.

    Curves, all stored episodes, and each episode's timeline, transcripts, tokens and rewards.
    Ctrl-C ends it.

    \b
    Examples:
        parl view runs/quickstart
        parl view runs/quickstart --port 8080 --no-browser
    """
    # By module, not the whole extra: [train] brings these, too, but no matplotlib.
    require("view", "jinja2", "plotly", "starlette", "uvicorn", "zstandard", needed_by="parl view")
    from parl.report.server import serve

    serve(run, host, port, browser)


@pages_app.command()
def report(
    run: RunPath,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE.html", help="Default: RUN/report.html."),
    ] = None,
    episodes: Annotated[int, typer.Option(min=0, help="Episodes that the file holds whole.")] = 24,
) -> None:
    """Write a run as one HTML file that loads nothing.

    \b
    Example:
        parl report runs/quickstart -o quickstart.html
    """
    # No server: a report is a file.
    require("view", "jinja2", "plotly", "zstandard", needed_by="parl report")
    from parl.report.pages import write_report

    path = write_report(run, output, episodes)
    num_bytes = path.stat().st_size
    typer.echo(f"{path}: {num_bytes / 1e6:.1f} MB. Open it in a browser, or send it.")


pages_app.command()(figures)
