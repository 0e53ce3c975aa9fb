"""`parl figures`: pictures of finished runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from parl.core.extras import require


def figures(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN ...", help="Finished swarms, one for each seed.")
    ],
    single: Annotated[
        list[Path] | None,
        typer.Option(metavar="RUN", help="Their single agents, in order. Default: RUN-single."),
    ] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FOLDER", help="Folder of the pictures.")
    ] = Path("figures"),
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="result|time_to_target|width",
            help="Draw this one; may be given several times. Default: all three.",
        ),
    ] = None,
    decoding: Annotated[
        Literal["greedy", "sampled"], typer.Option(help="Of the held-out episodes.")
    ] = "greedy",
    dpi: Annotated[int, typer.Option(min=1, help="Pixels per inch.")] = 110,
) -> None:
    """Draw finished runs as pictures, and print their numbers.

    result.png: learning curves and held-out results of the first run. time_to_target.png: the
    quality that is reached within a time, and the time that a quality takes. width.png: steps and
    latency when at most w subagents run at once; it evaluates each swarm once. The numbers are
    printed as Markdown.

    \b
    Examples:
        parl figures runs/quickstart -o figures
        parl figures runs/quickstart --only result -o runs/quickstart
        parl figures runs/seeds/seed_0 runs/seeds/seed_1 --decoding sampled
    """
    # `width` evaluates the policies; all pictures read runs with the same code.
    require("train", needed_by="parl figures")
    require("view", "matplotlib", needed_by="parl figures")
    from parl.report.figures import PICTURES, FiguresRequest, write_figures

    request = FiguresRequest(
        runs=runs,
        singles=single or (),
        output=output,
        pictures=only or PICTURES,
        decoding=decoding,
        dpi=dpi,
    )
    for line in write_figures(request):
        typer.echo(line)
