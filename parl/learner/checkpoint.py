"""Checkpoints: everything that a run needs to go on exactly, in one folder.

A folder is complete or absent; a half-written one has another name.

    step_000010/
        policies/NAME/   a transformers folder (weights, tokenizer); of an adapter, a peft folder
        learner.pt       optimizer states and weight versions
        state.json       next step, budgets of tokens, what the cold start reported, problems in
                         the works, phases of the roles
        manifest.json    SHA-256 of every other file, checked on load

Random streams and the task cursor are functions of (seed, step), so nothing of them is stored.
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
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from parl.core.errors import CheckpointError
from parl.core.manifest import COLD_START, digest, verify
from parl.policy.models import lora
from parl.policy.models.vision import families


@dataclass(frozen=True, slots=True)
class State:
    """The small state of a run."""

    step: int
    """The next one to take."""
    budgets: Mapping[str, float]
    """The modifiers' budgets of tokens (`Scorer.score`)."""
    cold_start: list[dict[str, Any]]
    """What the cold start reported, a row per stage."""
    best: Mapping[str, Any] | None = None
    """The best evaluation: its step and value."""
    pending: tuple[int, ...] = ()
    """Problems that were started and not trained (asynchronous mode)."""
    phases: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Role -> phase of its `trainable`: the number of the one that `step` is in, and the step at
    which it began."""


Stored = tuple[PreTrainedModel, PreTrainedTokenizerBase] | Path
"""A model and its tokenizer, or a folder in which the same was stored before."""


def step_name(step: int) -> str:
    """Return the name of a step's folder. Example: step_000010"""
    return f"step_{step:06d}"


def save(
    folder: Path,
    state: State,
    policies: Mapping[str, Stored],
    learners: Mapping[str, Any],
) -> None:
    """Write a checkpoint folder.

    Args:
        policies: name -> model and tokenizer, or a folder in which the same was stored before.
            Files of a folder are linked where the file system can: a base that adapters stand on is
            on disk once, however many checkpoints there are.
        learners: name -> state dict of its optimizer and version.
    """
    # Written under another name and renamed at the end: a process that is killed meanwhile leaves
    # no folder that looks like a checkpoint.
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    for name, stored in policies.items():
        target = temporary / "policies" / name
        if isinstance(stored, Path):
            shutil.copytree(stored, target, copy_function=_link)
        else:
            model, tokenizer = stored
            _save_model(model, target, folder / "policies")
            tokenizer.save_pretrained(target)
    torch.save(dict(learners), temporary / "learner.pt")
    (temporary / "state.json").write_text(json.dumps(asdict(state)))
    files = sorted(path for path in temporary.rglob("*") if path.is_file())
    manifest = {str(path.relative_to(temporary)): digest(path) for path in files}
    (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1))
    # On disk before the rename: after a power cut the new name must not lead to empty files.
    for path in [*files, temporary / "manifest.json"]:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    # A resumed run writes steps again that it had reached before.
    if folder.exists():
        shutil.rmtree(folder)
    temporary.rename(folder)


def _save_model(model: PreTrainedModel, target: Path, policies: Path) -> None:
    """Write a model's folder.

    Args:
        policies: where the checkpoint's policies will be; an adapter names its base there.
    """
    if lora.has_adapter(model):
        base = model.peft_config[lora.DEFAULT].base_model_name_or_path
        lora.save_adapter(model, target, str((policies / base).resolve()))
    else:
        model.save_pretrained(target)
        # A model that sees needs its image processor as well.
        families.save(model, target)


def load(folder: Path) -> tuple[State, dict[str, Any]]:
    """Return the state and the learners of a checkpoint.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    verify(folder)
    values = json.loads((folder / "state.json").read_text())
    # JSON has lists for tuples. Checkpoints of before these two fields do not have them.
    values["pending"] = tuple(values.get("pending", ()))
    phases = values.get("phases", {})
    values["phases"] = {role: tuple(place) for role, place in phases.items()}
    learners = torch.load(folder / "learner.pt", weights_only=True, map_location="cpu")
    return State(**values), learners


def steps(run: Path) -> list[Path]:
    """Return the run's step checkpoints, oldest first."""
    return sorted((run / "checkpoints").glob("step_*"))


def latest(run: Path) -> Path | None:
    """Return the newest step checkpoint, else the cold start's, else None."""
    folders = steps(run)
    if folders:
        return folders[-1]
    cold_start = run / "checkpoints" / COLD_START
    return cold_start if cold_start.is_dir() else None


def find(run: Path, which: str | None) -> Path:
    """Return a checkpoint of a run.

    Args:
        which: a step's number or folder name, `best`, `cold-start`, or None for the newest. Without
            an evaluation `best` is the newest.
    Raises:
        CheckpointError: there is no such checkpoint.
    """
    folder = _folder_of(run, which)
    if folder is None or not folder.is_dir():
        names = ", ".join(path.name for path in steps(run)) or "none"
        raise CheckpointError(
            f"{run} has no checkpoint '{which or 'latest'}'. Steps: {names}; also best, cold-start."
        )
    return folder


def _folder_of(run: Path, which: str | None) -> Path | None:
    checkpoints = run / "checkpoints"
    if which is None:
        return latest(run)
    if which == "cold-start":
        return checkpoints / COLD_START
    if which == "best":
        newest = latest(run)
        best = load(newest)[0].best if newest else None
        return checkpoints / step_name(best["step"]) if best else newest
    name = step_name(int(which)) if which.isdecimal() else which
    # Nothing but a step of this run: a name with a slash would lead elsewhere.
    if name.startswith("step_") and "/" not in name:
        return checkpoints / name
    return None


def prune(run: Path, keep: int, spare: int | None) -> None:
    """Delete all but the newest `keep` step checkpoints and the one of step `spare` (the best)."""
    for folder in steps(run)[:-keep]:
        if spare is None or folder.name != step_name(spare):
            shutil.rmtree(folder)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        # Another file system, or one without links.
        shutil.copy2(source, target)
