"""`parl rescore`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from parl.cli.common import ConfigPath, Overrides
from parl.config import load
from parl.core.errors import ConfigError


def rescore(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder; it is only read.")],
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
        parl rescore runs/quickstart configs/ablations/no_shaping.yaml
        parl rescore runs/quickstart runs/quickstart/config.resolved.yaml credit.normalize_std=false -o rescored.json
    """
    from parl.evaluation.rescore import rescore_run
    from parl.report.rescored import print_rescored

    loaded = load(config, overrides or ())
    if output is not None and not output.parent.is_dir():  # before the work, which takes a while
        raise ConfigError(
            f"-o {output}: there is no folder {output.parent}. Make it, or name another file."
        )
    result = rescore_run(run, loaded, str(config))
    if output is not None:
        output.write_text(json.dumps(asdict(result), indent=1))
    if as_json:
        typer.echo(json.dumps(asdict(result)))
    else:
        print_rescored(result)
