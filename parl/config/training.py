"""Cold start, RL steps, evaluation and tracking."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from parl.config.base import ConfigModel, NonNegFloat, NonNegInt, PositiveInt
from parl.config.gate import StageGate
from parl.config.policy import Optimizer


class Stage(ConfigModel):
    name: str
    data: dict[str, NonNegFloat]
    """Mixture over the environment's demonstration kinds, by name -> share. Of a mix, ABILITY/KIND -> share."""
    until: StageGate
    optimizer: Optimizer = Optimizer(lr=3e-3, muon_lr=0.012, betas=(0.9, 0.95), warmup_steps=20)
    tokens_per_step: PositiveInt = 5000
    demonstrator: dict[str, Any] = Field(default_factory=dict)
    """Knobs of the demonstrator in this stage, over those of `cold_start.demonstrator`."""


class ColdStart(ConfigModel):
    """Supervised warm-up by demonstrations that a scripted expert writes through the same runtime."""

    demonstrator: dict[str, Any] = Field(default_factory=dict)
    """Knobs of the environment's demonstrator (`episode` demonstrations), in every stage. Of a mix, by ability."""
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]
    max_attempts: PositiveInt = 2
    """A stage that misses its gate at max_steps is extended by half as many steps, up to this many attempts in all."""
    policy: str | None = None
    """The one policy that is trained; the others, models of the same shape, begin as its copies. null = each policy
    has a cold start of its own."""
    from_run: Path | None = None
    """A run folder whose cold start is taken instead of training one: same policies and tasks."""


class Eval(ConfigModel):
    split: Literal["validation", "test"] = "validation"
    num_tasks: PositiveInt = 54
    decoding: Annotated[tuple[Literal["greedy", "sampled"], ...], Field(min_length=1)] = ("greedy",)
    every: PositiveInt | None = 10
    """Evaluate every so many steps. null = only at the end."""


class Train(ConfigModel):
    num_steps: PositiveInt = 40
    tasks_per_step: PositiveInt = 8
    group_size: PositiveInt = 8
    """K: episodes per task."""
    tokens_per_batch: PositiveInt = 8192
    """Padded tokens of one micro-batch."""
    updates_per_step: PositiveInt = 1
    """Optimizer steps per step of rollouts: each episode is used once, in one of them."""
    max_subagent_samples: NonNegInt | None = None
    """Subagent traces trained per step, drawn at random. null = all; 0 = none: the subagents play the weights that the
    orchestrator's tokens alone train."""
    mode: Literal["sync", "async"] = "sync"
    """`sync`: sample, then learn; a run repeats bit for bit. `async`: both at once (needs `rollout.backend: ray`)."""
    learner_processes: PositiveInt = 1
    """Processes that share the samples of an update (Ray actors, one GPU each where there are GPUs)."""
    max_off_policy_steps: NonNegInt = 1
    """async: most weight versions between the first token of a problem and its training."""
    checkpoint_every: PositiveInt = 10
    keep_checkpoints: PositiveInt = 2
    store_episodes_every: PositiveInt = 1
    """Episodes are written every so many steps."""


class Wandb(ConfigModel):
    mode: Literal["offline", "online", "disabled"] = "offline"
    project: str = "parl"
    group: str | None = None
    """Runs that belong together. null = none; `parl ablate` takes the name of its folder."""


class Tracking(ConfigModel):
    wandb: Wandb = Wandb()
