"""`parl export`: what a run has made, for others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from parl.core.errors import ConfigError


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder; it is only read.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="A new folder.")],
    policy: Annotated[
        str | None, typer.Option(metavar="NAME", help="Default: the only one that roles play.")
    ] = None,
    checkpoint: Annotated[
        str | None, typer.Option(metavar="STEP|best|cold-start", help="Default: the last.")
    ] = None,
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

    A transformers folder; of an adapter a peft folder, or with --merged a transformers folder as well.
    With --episodes, Parquet files for TRL's SFT or DPO trainer. README.md is the model card or the dataset card.

    \b
    Examples:
        parl export runs/quickstart -o quickstart-model
        parl export runs/adapters -o orchestrator --policy orchestrator --merged
        parl export runs/quickstart -o quickstart-sft --episodes sft --min-score 0.8
        parl export runs/quickstart -o quickstart-pairs --episodes preferences --role subagent --steps 20-39
    """
    if episodes is None:
        _refuse(
            "needs --episodes sft or --episodes preferences",
            role=role,
            steps=steps,
            min_score=min_score,
        )
        _refuse("needs --episodes preferences", min_margin=min_margin)
        from parl.deploy.model import export as write

        folder = write(run, output, policy, checkpoint, merged)
        typer.echo(f"{folder}: weights, tokenizer, and README.md, the model card.")
        return
    _refuse(
        "is about a model; --episodes writes none",
        policy=policy,
        checkpoint=checkpoint,
        merged=merged or None,
    )
    if episodes == "sft":
        _refuse("needs --episodes preferences", min_margin=min_margin)
    from parl.deploy.dataset import DEFAULT_MARGIN, DatasetRequest, export_episodes

    margin = DEFAULT_MARGIN if min_margin is None else min_margin
    written = export_episodes(
        run, output, DatasetRequest(episodes, role, steps, min_score or 0.0, margin)
    )
    typer.echo(f"{written.folder}: {written.num_rows} rows, and README.md, the dataset card.")
    for text, num in written.counts.items():
        typer.echo(f"  {text}: {num}")


def _refuse(why: str, **given: object) -> None:
    for name, value in given.items():
        if value is not None:
            raise ConfigError(f"--{name.replace('_', '-')} {why}.")
