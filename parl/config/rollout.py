"""Where episodes run: in this process or on Ray, with which deadlines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from parl.config.base import Node, NonNegFloat, NonNegInt, PositiveFloat, PositiveInt

if TYPE_CHECKING:
    from parl.config.schema import Config


class Inference(Node):
    """Inference actors of one policy: they batch the requests of all rollout workers."""

    instances: PositiveInt = 1
    """An agent stays with one of them. Roles with policies of their own may have different numbers."""
    num_cpus: NonNegFloat = 1.0
    num_gpus: NonNegFloat = 0.0


class Rollout(Node):
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
    stall_s: PositiveFloat = 120.0
    """A worker whose event loop stands still for so long writes every thread's stack to its log, and is replaced."""
    max_concurrent_episodes: PositiveInt = 512
    episode_deadline_s: PositiveFloat = 600.0
    """Wall-clock deadline of one episode; a later one is a `timeout` failure (and makes the step non-reproducible)."""
    max_retries: NonNegInt = 1
    """New attempts of an episode whose environment failed."""


def check_rollout(config: Config) -> None:
    """Raises ValueError: inference actors of no policy, or what needs Ray without it."""
    backend = config.rollout.backend
    for name in config.rollout.inference:
        if name not in config.policies:
            raise ValueError(f"rollout.inference has '{name}', but policies has {sorted(config.policies)}")
        if config.base_of(name) != name:
            raise ValueError(f"rollout.inference.{name}: it is served with its base; say {config.base_of(name)}")
        if backend != "ray":
            raise ValueError(f"rollout.inference.{name} needs rollout.backend: ray (now: {backend})")
    if config.train.mode == "async" and backend != "ray":
        raise ValueError(
            f"train.mode is async, but rollout.backend is {backend}, which samples in the process that learns; set "
            "rollout.backend: ray, or train.mode: sync"
        )
