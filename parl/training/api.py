"""`parl.train`, `parl.evaluate`, `parl.ablate`: what notebooks and scripts call.

They differ from the commands in what they take and give: configs as objects, paths or mappings;
results as objects; errors as exceptions. Settings of the process (torch's threads, signal handlers,
random states) are as before when they return.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from parl.config import Config, load, parse
from parl.config.extras import require_extras
from parl.config.loader import override
from parl.core.errors import ConfigError
from parl.core.machine import restored_settings
from parl.core.types import Mode, Split
from parl.evaluation import plan
from parl.evaluation.plan import EvalRequest
from parl.training.ablation import Ablation, run_ablation
from parl.training.summary import Summary

ConfigLike = Config | str | Path | Mapping[str, Any]
"""A config, the path of a YAML file, or what such a file holds."""


def train(
    config: ConfigLike,
    overrides: Sequence[str] = (),
    *,
    resume: str | Path | None = None,
) -> Summary:
    """Train, as `parl train` does: cold start, RL, final evaluation, report.

    Args:
        config: a `Config`, the path of a YAML file, or a mapping.
        overrides: dotted assignments such as `train.num_steps=5`.
        resume: a run folder to go on with; the config must be the run's own.
    Raises:
        ConfigError: something does not fit; nothing was written.
        CheckpointError: the folder cannot be used, or a checkpoint is damaged.
        Interrupted: Ctrl-C; a checkpoint was written.

    Example:
        summary = parl.train("configs/smoke.yaml", ["seed=1"])
        summary.heldout["trained"]["swarm"]["greedy"]["score"]
    """
    config = _as_config(config, overrides)
    require_extras(config, needed_by="parl.train")
    with restored_settings():
        # Here, since some libraries draw from the global random state when they are imported.
        from parl.training.trainer import train as run_training

        summary = run_training(config, resume=Path(resume) if resume is not None else None)
    assert summary is not None, "only a dry run has no summary"
    return summary


def evaluate(
    target: ConfigLike | Sequence[str | Path],
    overrides: Sequence[str] = (),
    *,
    checkpoint: str | None = None,
    mode: Mode | None = None,
    num_tasks: int | None = None,
    trials: int = 1,
    split: Split | None = None,
) -> Mapping[str, Any]:
    """Evaluate the checkpoint of a run, or the untrained policies of a config, as `parl eval` does.

    Args:
        target: a run folder, several of them (seeds of one experiment), or a config in any form
            that `train` takes.
        overrides: dotted assignments; for configs alone, since a run has the config that it was
            made with.
        checkpoint: its name, such as `cold_start` or `step_000010`; the newest by default.
        mode: `swarm` or `single`; what the config says by default.
        num_tasks: evaluate the first ones; all by default.
        trials: episodes per task.
        split: `train`, `validation` or `test`; what the config says (`eval.split`) by default.
    Returns:
        What `parl eval --json` prints: metrics by decoding, `statistics` with intervals, and
        `against`, the comparison with the single agent in RUN-single, where there is one.
    Raises:
        ConfigError: the config does not fit, or several runs do not belong together.
        CheckpointError: no run there, or a checkpoint is damaged.
    """
    request = EvalRequest(checkpoint, mode, num_tasks, trials, split)
    runs = _run_folders(target)
    with restored_settings():
        if runs is None:
            # No list of paths: _run_folders would have returned it.
            config = _as_config(target, overrides)  # type: ignore[arg-type]
            return plan.evaluate(plan.plan_config(config, request)).result
        if overrides:
            raise ConfigError(
                f"{runs[0]} is a run: it is evaluated with the config that it was made with, "
                "so `overrides` cannot be used. Drop them, or evaluate a config."
            )
        return plan.evaluate_runs(runs, request)


def ablate(
    config: str | Path,
    *,
    vary: Sequence[str] = (),
    configs: Sequence[str | Path] = (),
    seeds: int = 3,
) -> Ablation:
    """Train variants of a config over paired seeds and compare them, as `parl ablate` does.

    Args:
        config: the path of the base config, variant 0.
        vary: axes such as `loss.tau=0.01,0.1`; every combination is a variant.
        configs: paths of further configs, one variant each. Exactly one of `vary` and `configs` is
            used.
        seeds: runs per variant; the first seed is the base config's own.
    Raises:
        ConfigError: nothing to compare, or a value that is not allowed.
    """
    if bool(vary) == bool(configs):
        raise ConfigError(
            "Say what to compare, either with values, vary=['loss.tau=0.01,0.1'], or with files, "
            "configs=['other.yaml']."
        )
    paths = [Path(path) for path in configs]
    return run_ablation(Path(config), vary=list(vary), configs=paths, seeds=seeds)


def _as_config(config: ConfigLike, overrides: Sequence[str]) -> Config:
    if isinstance(config, str | Path):
        return load(config, overrides)
    if isinstance(config, Config):
        if not overrides:
            return config
        config = config.model_dump(mode="json")
    tree = dict(config)
    for item in overrides:
        override(tree, item)
    return parse(tree)


def _run_folders(target: ConfigLike | Sequence[str | Path]) -> list[Path] | None:
    """Return the run folders that `target` names; None for a config."""
    if isinstance(target, Config | Mapping):
        return None
    if isinstance(target, str | Path):
        return [Path(target)] if Path(target).is_dir() else None
    return [Path(path) for path in target]
