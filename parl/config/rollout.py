"""Where episodes run: in this process or on Ray, with which deadlines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from parl.config.base import ConfigModel, NonNegFloat, NonNegInt, PositiveFloat, PositiveInt

if TYPE_CHECKING:
    pass


class Inference(ConfigModel):
    """Inference actors of one policy: they batch the requests of all rollout workers."""

    instances: PositiveInt = 1
    """An agent stays with one of them. Roles with policies of their own may have different numbers."""
    num_cpus: NonNegFloat = 1.0
    num_gpus: NonNegFloat = 0.0


class Rollout(ConfigModel):
    backend: Literal["local", "ray"] = "local"
    """`local`: episodes are coroutines of this process. `ray`: of `num_workers` Ray actors, each with engines of its
    own, on this machine or on the cluster of RAY_ADDRESS."""
    num_workers: PositiveInt = 2
    """Rollout actors. Episodes are dealt to them by their index, so that a step does not depend on who was faster."""
    num_cpus_per_worker: PositiveFloat = 1.0
    """CPUs that Ray sets aside for a worker, and its torch threads."""
    num_gpus_per_worker: NonNegFloat = 0.0
    inference: dict[str, Inference] = Field(default_factory=dict)
    """ray: inference actors by policy. A policy that is not here has an engine in every worker, and a step repeats bit
    for bit; with inference actors the batches, and so the last bits, depend on who asks when."""
    max_restarts: NonNegInt = 8
    """How often one step may lose a worker and give its episodes to a new one."""
    max_worker_mb: PositiveInt | None = None
    """A worker that has grown beyond this is started anew, as soon as what it runs is done (an environment leaks)."""
    hang_timeout_s: PositiveFloat = 120.0
    """A worker whose event loop stands still for so long writes every thread's stack to its log, and is replaced."""
    max_concurrent_episodes: PositiveInt = 512
    episode_deadline_s: PositiveFloat = 600.0
    """Wall-clock deadline of one episode; a later one is a `timeout` failure (and makes the step non-reproducible)."""
    max_retries: NonNegInt = 1
    """New attempts of an episode whose environment failed."""
