"""`parl ablate`: check every variant, run all of them, write the table and the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from parl.config import load
from parl.core.errors import ConfigError
from parl.evaluation.ablation.analysis import analyse, print_ablation, write_ablation
from parl.evaluation.ablation.runner import (
    make_job,
    read_results,
    run_all,
    say,
    workers,
    write_config,
)
from parl.evaluation.ablation.variants import Variant, vary_configs, vary_values
from parl.report.ablation_page import write_page
from parl.training.light_parts import build_light_parts


def ablate(path: Path, *, vary: Sequence[str], configs: Sequence[Path], seeds: int) -> None:
    """Run all variants over `seeds` paired seeds, print and write the comparison.

    Raises:
        ConfigError: nothing to compare, a value that is not allowed, or a folder of another ablation.
        SystemExit: with code 1, when a run failed or the ablation was stopped.
    """
    base = load(path)
    variants = vary_values(path, vary) if vary else vary_configs(path, configs)
    _check(variants)
    folder = base.run_path.parent / f"ablate-{base.name}"
    if folder.exists() and not folder.is_dir():
        raise ConfigError(
            f"{folder} is a file, but this ablation needs a folder there. Move it, or set another `name`."
        )
    for variant in variants:
        write_config(folder / variant.folder, variant)
    numbers = range(base.seed, base.seed + seeds)
    jobs = [make_job(folder, variant, seed) for seed in numbers for variant in variants]
    failed = run_all(jobs, workers(variants))
    result = analyse(
        [read_results(v, [j for j in jobs if j.variant is v]) for v in variants], list(numbers)
    )
    result |= {
        "base": str(path),
        "failed": [{"run": str(j.path), "log": str(j.log)} for j in failed],
    }
    write_ablation(result, folder)
    write_page(
        result,
        {v.label: [j.path for j in jobs if j.variant is v and j.done] for v in variants},
        folder,
    )
    print_ablation(result, folder)
    if failed:
        say(
            f"{len(failed)} of {len(jobs)} runs failed and are not in the tables. The same command tries them again."
        )
        for job in failed:
            say(f"    {job.name}: {job.log}")
        raise SystemExit(1)


def _check(variants: Sequence[Variant]) -> None:
    """What `parl config check` does, for each variant: nothing starts when one of them cannot."""
    for variant in variants:
        try:
            build_light_parts(variant.config).close()
        except ConfigError as error:
            raise ConfigError(f"variant {variant.label}: {error}") from None
