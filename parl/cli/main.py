"""The command line: `parl COMMAND ...`.

Results go to stdout, logs and errors to stderr. Exit codes: 0 done, 2 the input is wrong (one
message, no traceback), 1 anything else.

A command imports what it needs when it runs. So `parl --help` and `parl config check` start at
once, without torch.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from parl import __version__
from parl.cli.common import new_app
from parl.cli.config import config_app
from parl.cli.configs import configs_app
from parl.cli.models import models_app
from parl.cli.pages import pages_app
from parl.cli.plugins import envs_app, rewards_app
from parl.cli.runs import runs_app
from parl.core.errors import CheckpointError, ConfigError
from parl.core.extras import missing_extra

HELP = """Reinforcement learning for agents that work in parallel.

Start with: parl train quickstart"""

INTERRUPTED = 130
"""The exit code that typer gives to Ctrl-C; in our contract it is 1."""

app = new_app(HELP)
# Without a name, the commands of an app are commands of `parl` itself.
app.add_typer(runs_app)
app.add_typer(pages_app)
app.add_typer(config_app, name="config")
app.add_typer(configs_app, name="configs")
app.add_typer(envs_app, name="envs")
app.add_typer(rewards_app, name="rewards")
app.add_typer(models_app, name="models")


def _print_version(is_set: bool) -> None:
    if is_set:
        typer.echo(__version__)
        raise typer.Exit


@app.callback(help=HELP)
def root(
    version: Annotated[
        bool,
        # Eager: it is answered before a missing command is an error.
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Take the options of `parl` itself."""


def main() -> None:
    """Run the command line. Bad input becomes one message and exit code 2."""
    try:
        app(prog_name="parl")
    except (ConfigError, CheckpointError) as error:
        _end_with(error)
    except ModuleNotFoundError as error:
        # Commands ask for their extras before they begin. This is for what only a config or an
        # option needs.
        missing = missing_extra(error, needed_by=f"parl {' '.join(sys.argv[1:2])}")
        if missing is None:
            raise
        _end_with(missing)
    except SystemExit as error:  # the way in which typer ends every command
        sys.exit(1 if error.code == INTERRUPTED else error.code)


def _end_with(error: Exception) -> None:
    typer.echo(f"error: {error}", err=True)
    sys.exit(2)


if __name__ == "__main__":
    main()
