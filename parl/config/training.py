"""Cold start, RL steps, evaluation and tracking."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from parl.config.base import ConfigModel, NonNegFloat, NonNegInt, PositiveInt
from parl.config.gate import StageGate
from parl.config.policy import Optimizer


class Stage(ConfigModel):
    """One stage of the cold start: a mixture of texts, trained until a skill is reached."""

    name: str
    # A skill that the last stage leaves out is lost: on configs/joint.yaml grounding fell from .99
    # to a zoom overlap of .10, and with a fifth of it among the demonstrations it stayed.
    data: dict[str, NonNegFloat]
    """Mixture over the environment's kinds of demonstrations, by name -> share. With a mix of
    environments, ABILITY/KIND -> share."""
    until: StageGate
    # At AdamW's rates alone a tiny model does not learn where things are in an image: .65 of the
    # places after 140 steps, with Muon at .012 .99 after 100.
    optimizer: Optimizer = Optimizer(lr=3e-3, muon_lr=0.012, betas=(0.9, 0.95), warmup_steps=20)
    tokens_per_step: PositiveInt = 5000
    demonstrator: dict[str, Any] = Field(default_factory=dict)
    """Knobs of the demonstrator in this stage, over those of `cold_start.demonstrator`."""


class ColdStart(ConfigModel):
    """Supervised warm-up: demonstrations that a scripted expert plays through the swarm runtime."""

    # An expert that gives up too often leaves RL nothing to find: with `give_up_prob: 0.7` one of
    # three seeds never learned to look, with 0.5 all three did within 20 steps
    # (configs/joint.yaml).
    demonstrator: dict[str, Any] = Field(default_factory=dict)
    """Knobs of the environment's demonstrator (`episode` demonstrations), in every stage. With a
    mix of environments, by ability."""
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]
    max_attempts: PositiveInt = 2
    """A stage that misses its gate at max_steps is extended by half as many steps, up to this many
    attempts in all."""
    policy: str | None = None
    """The one policy that is trained; the others, models of the same shape, begin as its copies.
    null = each policy has its own cold start."""
    from_run: Path | None = None
    """A run folder whose cold start is used instead of training one: same policies and tasks."""


class Eval(ConfigModel):
    """Evaluations during the run."""

    split: Literal["validation", "test"] = "validation"
    num_tasks: PositiveInt = 54
    decoding: Annotated[tuple[Literal["greedy", "sampled"], ...], Field(min_length=1)] = ("greedy",)
    every: PositiveInt | None = 10
    """RL steps between two evaluations. null = only at the end."""


class Train(ConfigModel):
    """The RL steps."""

    num_steps: PositiveInt = 40
    tasks_per_step: PositiveInt = 8
    group_size: PositiveInt = 8
    """K: episodes per task."""
    tokens_per_batch: PositiveInt = 8192
    """Padded tokens of one micro-batch."""
    updates_per_step: PositiveInt = 1
    """Optimizer steps per step of rollouts: each episode is used once, in one of them."""
    max_subagent_samples: NonNegInt | None = None
    """Subagent traces trained per step, drawn at random. null = all; 0 = none: the subagents play
    the weights that the orchestrator's tokens alone train."""
    mode: Literal["sync", "async"] = "sync"
    """`sync`: sample, then learn; a run repeats bit for bit. `async`: both at once (needs
    `rollout.backend: ray`)."""
    learner_processes: PositiveInt = 1
    """Processes that share the samples of an update (Ray actors, one GPU each where there are
    GPUs)."""
    # The loss's ratio is taken against the log-prob with which each token was sampled, so it is
    # right at any age (ADR 6). What age costs in learning was not measured.
    max_off_policy_steps: NonNegInt = 1
    """async: most weight versions between the first token of a problem and its training."""
    checkpoint_every: PositiveInt = 10
    """RL steps between two checkpoints."""
    keep_checkpoints: PositiveInt = 2
    """The newest checkpoints that stay on disk, in addition to the best."""
    store_episodes_every: PositiveInt = 1
    """RL steps between two steps whose episodes are written to the run folder."""


class Wandb(ConfigModel):
    """Weights & Biases. It gets the same numbers as the run folder."""

    # Offline: a run neither needs a network nor sends anything by default.
    mode: Literal["offline", "online", "disabled"] = "offline"
    project: str = "parl"
    group: str | None = None
    """Runs that belong together. null = none; `parl ablate` takes the name of its folder."""


class Tracking(ConfigModel):
    """Where metrics go besides the run folder."""

    wandb: Wandb = Wandb()
