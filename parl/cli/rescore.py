"""`parl rescore`: stored episodes under another reward."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from parl.cli.common import ConfigPath, Overrides, RunPath
from parl.config import load
from parl.core.errors import ConfigError
from parl.core.extras import require


def rescore(
    run: RunPath,
    config: ConfigPath,
    overrides: Overrides = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="FILE.json", help="Write the result, episode by episode."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="The same as one JSON object on stdout.")
    ] = False,
) -> None:
    """Score a run's stored episodes under another reward.

    Reward, credit and roles are the config's. No model is needed.

    \b
    Examples:
        parl rescore runs/quickstart ablations/no_shaping
        parl rescore runs/quickstart quickstart credit.normalize_std=false -o rescored.json
    """
    from parl.evaluation.rescore import rescore_run
    from parl.report.rescored import print_rescored

    loaded = load(config, overrides or ())
    # Before the work, which takes a while.
    if output is not None and not output.parent.is_dir():
        raise ConfigError(
            f"-o {output}: there is no folder {output.parent}. Make it, or name another file."
        )
    # Stored episodes are compressed; nothing else here is beyond the light core.
    require("view", "zstandard", needed_by="parl rescore")
    result = rescore_run(run, loaded, str(config))
    text = json.dumps(asdict(result))
    if output is not None:
        # Indented, for people; stdout has one line, for programs.
        output.write_text(json.dumps(asdict(result), indent=1))
    if as_json:
        typer.echo(text)
    else:
        print_rescored(result)
