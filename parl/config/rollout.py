"""`rollout`: where episodes run, in this process or on Ray, and their deadlines."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from parl.config.base import ConfigModel, NonNegFloat, NonNegInt, PositiveFloat, PositiveInt


class Inference(ConfigModel):
    """Inference actors of one policy: they batch the requests of all rollout workers."""

    instances: PositiveInt = 1
    """An agent stays with one of them. Roles with different policies may have different numbers."""
    num_cpus: NonNegFloat = 1.0
    num_gpus: NonNegFloat = 0.0


class Rollout(ConfigModel):
    """Where episodes run, and their deadlines."""

    backend: Literal["local", "ray"] = "local"
    """`local`: episodes are coroutines of this process. `ray`: of `num_workers` Ray actors, each
    with its own engines, on this machine or on the cluster of RAY_ADDRESS."""
    num_workers: PositiveInt = 2
    """Rollout actors. Episodes are dealt to them by their index, so that a step does not depend on
    which was faster."""
    # Measured: two workers with two torch threads each on two cores took 46 s for a rollout of 2 s.
    num_cpus_per_worker: PositiveFloat = 1.0
    """CPUs that Ray sets aside for a worker, and its torch threads."""
    num_gpus_per_worker: NonNegFloat = 0.0
    inference: dict[str, Inference] = Field(default_factory=dict)
    """ray: inference actors by policy. A policy without an entry has an engine in every worker, and
    a step repeats bit for bit; with inference actors the batches, and so the last bits, depend on
    the order of requests."""
    max_restarts: NonNegInt = 8
    """How often one step may lose a worker and give its episodes to a new one."""
    max_worker_mb: PositiveInt | None = None
    """A worker that has grown beyond this is replaced once its episodes are done (an environment
    leaks)."""
    hang_timeout_s: PositiveFloat = 120.0
    """A worker whose event loop stands still for this long writes every thread's stack to its log,
    and is replaced."""
    max_concurrent_episodes: PositiveInt = 512
    # Wall-clock time depends on the machine's load, so only what would hang for ever should reach
    # it.
    episode_deadline_s: PositiveFloat = 600.0
    """Wall-clock deadline of one episode; a later one is a `timeout` failure (and makes the step
    non-reproducible)."""
    max_retries: NonNegInt = 1
    """New attempts of an episode whose environment failed."""
