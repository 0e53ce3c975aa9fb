"""An ablation from its configs to its tables: check every variant, run all of them, compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parl.config import load
from parl.core.errors import ConfigError
from parl.evaluation.ablation import runner
from parl.evaluation.ablation.analysis import VariantResults, analyse, write_ablation
from parl.evaluation.ablation.runner import VariantRun
from parl.evaluation.ablation.variants import Variant, vary_configs, vary_values
from parl.report.ablation_page import write_page
from parl.training.light_parts import build_light_parts


@dataclass(frozen=True, slots=True)
class Ablation:
    """The result of an ablation.

    Example: Ablation(...).result["metrics"] holds each metric's mean by variant.
    """

    folder: Path
    """`ablate-NAME`, with ablation.json, ablation.md, ablation.html and the runs."""
    result: Mapping[str, Any]
    """The content of ablation.json."""
    runs: Sequence[VariantRun]
    failed: Sequence[VariantRun]
    """Runs that ended with an error; they are not in the tables. The same call tries them again."""


def run_ablation(
    base_path: Path, *, vary: Sequence[str], configs: Sequence[Path], seeds: int
) -> Ablation:
    """Run all variants over `seeds` paired seeds, and write the comparison.

    Args:
        base_path: the base config; its seed is the first one.
        vary: axes such as `loss.tau=0.01,0.1`; every combination of their values is a variant.
        configs: further config files, one variant each; used where `vary` is empty.
    Raises:
        ConfigError: nothing to compare, a value that is not allowed, or a folder of another
            ablation.
        SystemExit: the ablation was stopped; the same call goes on.
    """
    base = load(base_path)
    variants = vary_values(base_path, vary) if vary else vary_configs(base_path, configs)
    _check(variants)

    folder = base.run_path.parent / f"ablate-{base.name}"
    if folder.exists() and not folder.is_dir():
        raise ConfigError(
            f"{folder} is a file, but this ablation needs a folder there. "
            "Move it, or set another `name`."
        )
    for variant in variants:
        runner.write_config(folder / variant.folder, variant)

    # All variants of a seed before the next seed: a comparison that is stopped early is paired.
    numbers = list(range(base.seed, base.seed + seeds))
    runs = [runner.make_run(folder, variant, seed) for seed in numbers for variant in variants]
    # Each run is a process of its own: one that dies takes no other with it.
    failed = runner.run_all(runs, runner.num_workers(variants))

    results: list[VariantResults] = []
    finished_paths: dict[str, list[Path]] = {}
    for variant in variants:
        runs_of_variant = [run for run in runs if run.variant is variant]
        results.append(runner.read_results(variant, runs_of_variant))
        finished_paths[variant.label] = [run.path for run in runs_of_variant if run.done]

    result = analyse(results, numbers)
    result["base"] = str(base_path)
    result["failed"] = [{"run": str(run.path), "log": str(run.log)} for run in failed]
    write_ablation(result, folder)
    write_page(result, finished_paths, folder)
    return Ablation(folder, result, runs, failed)


def _check(variants: Sequence[Variant]) -> None:
    """Do what `parl config check` does for each variant: nothing starts when one cannot."""
    for variant in variants:
        try:
            build_light_parts(variant.config).close()
        except ConfigError as error:
            raise ConfigError(f"variant {variant.label}: {error}") from None
