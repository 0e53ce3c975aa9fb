"""`parl ablate`: run an ablation and print its tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from parl.evaluation.ablation.analysis import print_ablation
from parl.evaluation.ablation.runner import say
from parl.training.ablation import run_ablation


def ablate(path: Path, *, vary: Sequence[str], configs: Sequence[Path], seeds: int) -> None:
    """Run all variants over paired seeds; print and write the comparison.

    Args:
        path: the base config.
        vary: axes such as `loss.tau=0.01,0.1`.
        configs: further configs, one variant each.
        seeds: runs per variant.
    Raises:
        ConfigError: nothing to compare, a value that is not allowed, or a folder of another
            ablation.
        SystemExit: with code 1, when a run failed or the ablation was stopped.
    """
    ablation = run_ablation(path, vary=vary, configs=configs, seeds=seeds)
    print_ablation(ablation.result, ablation.folder)
    if not ablation.failed:
        return
    say(
        f"{len(ablation.failed)} of {len(ablation.runs)} runs failed and are not in the tables. "
        "The same command tries them again."
    )
    for run in ablation.failed:
        say(f"    {run.name}: {run.log}")
    # The tables are complete without the failed runs, but a script must not take this for a
    # success.
    raise SystemExit(1)
