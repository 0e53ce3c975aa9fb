"""Checkpoints: everything that a run needs to go on exactly, in one folder that is either whole or not there.

    step_000010/policies/NAME/   a transformers folder (weights, tokenizer); of an adapter, a peft folder
                learner.pt       optimizer states and weight versions
                state.json       next step, budgets of tokens, what the cold start reported, problems in the works,
                                 phases of the roles
                manifest.json    SHA-256 of every other file, checked on load

Random streams and the task cursor are functions of (seed, step), so there is nothing of them to store.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from parl.core.errors import CheckpointError
from parl.core.manifest import COLD_START, digest, verify
from parl.policy.models import lora
from parl.policy.models.vision import families as eyes


@dataclass(frozen=True, slots=True)
class State:
    """The small state of a run. `step` is the next one to take."""

    step: int
    budgets: Mapping[str, float]
    cold_start: list[dict[str, Any]]
    best: Mapping[str, Any] | None = None
    pending: tuple[int, ...] = ()
    """Problems that were started and not trained (asynchronous mode)."""
    phases: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Of each role's `trainable`: number of the phase that `step` is in, and the step at which it began."""


def step_name(step: int) -> str:
    return f"step_{step:06d}"


Stored = tuple[Any, Any] | Path
"""(model, tokenizer), or a folder in which the same was stored before."""


def save(
    folder: Path, state: State, policies: Mapping[str, Stored], learners: Mapping[str, Any]
) -> None:
    """Write a checkpoint folder.

    Args:
        policies: name -> what it is. Files of a folder are linked where the file system can: a base that adapters
            stand on is on disk once, however many checkpoints there are.
        learners: name -> state dict of its optimizer and version.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    for name, stored in policies.items():
        target = temporary / "policies" / name
        if isinstance(stored, Path):
            shutil.copytree(stored, target, copy_function=_link)
            continue
        model, tokenizer = stored
        if lora.has_adapter(model):
            base = model.peft_config[lora.DEFAULT].base_model_name_or_path
            lora.save_adapter(model, target, str((folder / "policies" / base).resolve()))
        else:
            model.save_pretrained(target)
            eyes.save(model, target)
        tokenizer.save_pretrained(target)
    torch.save(dict(learners), temporary / "learner.pt")
    (temporary / "state.json").write_text(json.dumps(asdict(state)))
    files = sorted(p for p in temporary.rglob("*") if p.is_file())
    manifest = {str(p.relative_to(temporary)): digest(p) for p in files}
    (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1))
    for path in [*files, temporary / "manifest.json"]:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    if folder.exists():
        shutil.rmtree(folder)
    temporary.rename(folder)


def load(folder: Path) -> tuple[State, dict[str, Any]]:
    """(state, learners) of a whole checkpoint. Raises CheckpointError when a file is missing or damaged."""
    verify(folder)
    values = json.loads((folder / "state.json").read_text())
    learners = torch.load(folder / "learner.pt", weights_only=True, map_location="cpu")
    phases = {role: tuple(place) for role, place in values.get("phases", {}).items()}
    return State(
        **values | {"pending": tuple(values.get("pending", ())), "phases": phases}
    ), learners


def steps(run: Path) -> list[Path]:
    """The run's step checkpoints, oldest first. Half-written ones have another name and are not among them."""
    return sorted((run / "checkpoints").glob("step_*"))


def latest(run: Path) -> Path | None:
    """The newest step checkpoint, else the cold start's, else None."""
    found = steps(run)
    cold = run / "checkpoints" / COLD_START
    return found[-1] if found else cold if cold.is_dir() else None


def find(run: Path, which: str | None) -> Path:
    """A checkpoint by `STEP`, `best`, `cold-start`; the newest without. Raises CheckpointError."""
    folder: Path | None
    if which is None:
        folder = latest(run)
    elif which == "cold-start":
        folder = run / "checkpoints" / COLD_START
    elif which == "best":
        newest = latest(run)
        best = load(newest)[0].best if newest else None
        folder = run / "checkpoints" / step_name(best["step"]) if best else newest
    else:
        name = step_name(int(which)) if which.isdecimal() else which
        folder = (
            run / "checkpoints" / name if name.startswith("step_") and "/" not in name else None
        )
    if folder is None or not folder.is_dir():
        have = ", ".join(p.name for p in steps(run)) or "none"
        raise CheckpointError(
            f"{run} has no checkpoint '{which or 'latest'}'. Steps: {have}; also best, cold-start."
        )
    return folder


def prune(run: Path, keep: int, spare: int | None) -> None:
    """Delete all but the newest `keep` step checkpoints and the one of step `spare` (the best)."""
    for folder in steps(run)[:-keep]:
        if spare is None or folder.name != step_name(spare):
            shutil.rmtree(folder)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)
