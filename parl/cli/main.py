"""The command line: `parl COMMAND ...`.

In: arguments. Out: text on stdout, logs and errors on stderr, and an exit code: 0 done, 2 the input is wrong (one
message, no traceback), 1 anything else. Commands import what they need when they run, so that `parl --help` and
`parl config check` start at once, without torch.
"""

from __future__ import annotations

import sys

import typer

from parl.cli.common import new_app
from parl.cli.config import config_app
from parl.cli.models import models_app
from parl.cli.pages import pages_app
from parl.cli.plugins import envs_app, rewards_app
from parl.cli.runs import runs_app
from parl.core.errors import CheckpointError, ConfigError

HELP = """Reinforcement learning for agents that work in parallel.

Start with: parl train configs/quickstart.yaml"""

app = new_app(HELP)
app.add_typer(runs_app)
app.add_typer(pages_app)
app.add_typer(config_app, name="config")
app.add_typer(envs_app, name="envs")
app.add_typer(rewards_app, name="rewards")
app.add_typer(models_app, name="models")


def main() -> None:
    """Run the command line. Bad input becomes one message and exit code 2."""
    try:
        app(prog_name="parl")
    except (ConfigError, CheckpointError) as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
    except (
        SystemExit
    ) as exit_:  # typer's way to end; an interrupt is its 130, and 1 in our contract
        sys.exit(1 if exit_.code == 130 else exit_.code)


if __name__ == "__main__":
    main()
