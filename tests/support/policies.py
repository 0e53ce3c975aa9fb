"""What tests of policies share: two roles with an adapter each on one small base, trained on made-up samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from parl.config import Config, parse
from parl.core import manifest
from parl.core.types import ROLES, Role, Sample
from parl.learner import checkpoint
from parl.learner.checkpoint import State
from parl.learner.policies import PolicySet
from parl.policy.models import lora
from tests.support.factories import make_sample
from tests.support.helpers import WordsEnv

TOLERANCE = 1e-5
PROBE = list(range(3, 40))
LEARNS = {"lr": 0.02}


def config(**changes: Any) -> Config:
    """Both roles have an adapter on `main`: one on every linear layer, one on attention."""
    raw = {
        "name": "r",
        "env": {"id": "x"},
        "policies": {
            "main": {"tiny": {"hidden_size": 32, "ff_size": 32}},
            "orchestrator": {"adapter": {"base": "main", "rank": 4}, "optimizer": LEARNS},
            "subagent": {
                "adapter": {"base": "main", "target_modules": ["q_proj", "v_proj"]},
                "optimizer": LEARNS,
            },
        },
        "roles": {role: {"policy": role} for role in ROLES},
    }
    return parse(raw | changes)


class Wide(WordsEnv):
    """With words enough for prompts that differ."""

    def vocabulary(self) -> Sequence[str]:
        return [f"w{i}" for i in range(60)]


def started(settings: Config | None = None, folder: Path | None = None) -> PolicySet:
    policies = PolicySet(settings or config(), Wide(), folder)
    policies.engines.start()
    policies.learners.start()
    return policies


def samples(step: int, names: Sequence[str] = ROLES) -> list[Sample]:
    """Four made-up samples of each policy, of 9 to 12 tokens; the step is the seed."""
    generator = torch.Generator().manual_seed(step)
    made_up = []
    for name in names:
        role: Role = "subagent" if name == "subagent" else "orchestrator"
        for i in range(4):
            length = 9 + i
            ids = torch.randint(3, 60, (length,), generator=generator).tolist()
            mask = (0, 0, *[1] * (length - 2))
            logprobs = [-2.0 * bit for bit in mask]
            made_up.append(
                make_sample(ids, mask, logprobs, i - 1.5, agent=str(i), role=role, policy=name)
            )
    return made_up


def update(policies: PolicySet, step: int, names: Sequence[str] = ROLES) -> dict[str, float]:
    metrics = policies.update(samples(step, names), dict.fromkeys(names, 30.0), step)
    return metrics | policies.sync(PROBE)


def digest(model: Any) -> dict[str, bytes]:
    """The bytes of a model's own weights, whatever stands on them."""
    own = lora.base_state(model)
    return {k.replace(".base_layer", ""): v.contiguous().numpy().tobytes() for k, v in own.items()}


def log_probs(model: Any, ids: Sequence[int]) -> torch.Tensor:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0, :-1].float()
    return torch.log_softmax(logits, -1)


def save(policies: PolicySet, run: Path, step: int) -> Path:
    root = run / "checkpoints"
    root.mkdir(exist_ok=True)
    cold, folder = root / manifest.COLD_START, root / checkpoint.step_name(step)
    if not cold.is_dir():
        checkpoint.save(cold, State(0, {}, []), policies.stored(), {})
    checkpoint.save(folder, State(step, {}, []), policies.stored(cold), policies.learners.states())
    return folder
