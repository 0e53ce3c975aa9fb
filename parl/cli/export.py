"""`parl export`: a run's policy or episodes, for other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from parl.cli.common import CheckpointName, RunPath
from parl.core.errors import ConfigError
from parl.core.extras import require


def export(
    run: RunPath,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="A new folder.")],
    policy: Annotated[
        str | None, typer.Option(metavar="NAME", help="Default: the only one that roles play.")
    ] = None,
    checkpoint: CheckpointName = None,
    merged: Annotated[
        bool, typer.Option("--merged", help="An adapter merged into its base, as one model.")
    ] = False,
    episodes: Annotated[
        Literal["sft", "preferences"] | None,
        typer.Option(help="A dataset of the episodes instead of a model."),
    ] = None,
    role: Annotated[
        Literal["orchestrator", "subagent"] | None, typer.Option(help="Of --episodes: one role.")
    ] = None,
    steps: Annotated[
        str | None, typer.Option(metavar="FIRST-LAST", help="Of --episodes: some steps.")
    ] = None,
    min_score: Annotated[
        float | None, typer.Option(help="Of --episodes: lowest score of a row.")
    ] = None,
    min_margin: Annotated[
        float | None, typer.Option(help="Of --episodes preferences. Default: 0.1.")
    ] = None,
) -> None:
    """Write a trained policy as a model folder, or the run's episodes as a dataset.

    A transformers folder; of an adapter a peft folder, or with --merged a transformers folder as
    well. With --episodes, Parquet files for TRL's SFT or DPO trainer. README.md is the model card
    or the dataset card.

    \b
    Examples:
        parl export runs/quickstart -o quickstart-model
        parl export runs/adapters -o orchestrator --policy orchestrator --merged
        parl export runs/quickstart -o sft --episodes sft --min-score 0.8
        parl export runs/quickstart -o pairs --episodes preferences --role subagent --steps 20-39
    """
    # An option of the other kind is a misunderstanding: to ignore it would write another dataset
    # than the one that was meant.
    if episodes is None:
        _refuse(
            "needs --episodes sft or --episodes preferences",
            role=role,
            steps=steps,
            min_score=min_score,
        )
    else:
        _refuse(
            "is about a model; --episodes writes none",
            policy=policy,
            checkpoint=checkpoint,
            merged=merged or None,
        )
    if episodes != "preferences":
        _refuse("needs --episodes preferences", min_margin=min_margin)

    # After the options, which cost nothing to check.
    require("train", needed_by="parl export")
    if episodes is None:
        _export_model(run, output, policy, checkpoint, merged)
    else:
        _export_episodes(run, output, episodes, role, steps, min_score, min_margin)


def _export_model(
    run: Path, output: Path, policy: str | None, checkpoint: str | None, merged: bool
) -> None:
    from parl.deploy.model import export as export_model

    folder = export_model(run, output, policy, checkpoint, merged)
    typer.echo(f"{folder}: weights, tokenizer, and README.md, the model card.")


def _export_episodes(
    run: Path,
    output: Path,
    kind: Literal["sft", "preferences"],
    role: Literal["orchestrator", "subagent"] | None,
    steps: str | None,
    min_score: float | None,
    min_margin: float | None,
) -> None:
    from parl.deploy.dataset import DEFAULT_MARGIN, DatasetRequest, export_episodes

    margin = DEFAULT_MARGIN if min_margin is None else min_margin
    request = DatasetRequest(kind, role, steps, min_score or 0.0, margin)
    result = export_episodes(run, output, request)
    typer.echo(f"{result.folder}: {result.num_rows} rows, and README.md, the dataset card.")
    for text, num in result.counts.items():
        typer.echo(f"  {text}: {num}")


def _refuse(reason: str, **options: object) -> None:
    """Raise ConfigError for the first option that was given."""
    # None stands for an option that was not typed: no default of theirs is None by choice.
    for name, value in options.items():
        if value is not None:
            raise ConfigError(f"--{name.replace('_', '-')} {reason}.")
