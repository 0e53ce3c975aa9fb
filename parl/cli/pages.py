"""Commands that show a run: in the browser, or as one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from parl.cli.common import new_app
from parl.cli.figures import figures

pages_app = new_app("Pages.")
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]


@pages_app.command()
def view(
    run: RunPath,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Default: a free one.")] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at; the default is this machine only.")
    ] = "127.0.0.1",
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in the browser.")
    ] = True,
) -> None:
    """Look at a run in the browser, also while it is training.

    Curves, all stored episodes, and each episode's timeline, transcripts, tokens and rewards. Ctrl-C ends it.

    \b
    Examples:
        parl view runs/quickstart
        parl view runs/quickstart --port 8080 --no-browser
    """
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
    from parl.report.pages import write_report

    path = write_report(run, output, episodes)
    typer.echo(f"{path}: {path.stat().st_size / 1e6:.1f} MB. Open it in a browser, or send it.")


pages_app.command()(figures)
